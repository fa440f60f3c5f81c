"""Settings of an older version in the words of this one: where every key went, and `airpfed upgrade`."""

from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions

from airpfed.core.errors import UserError
from airpfed.core.files import write_atomic

MOVED_OPTIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "radio.truncation": ("design", "truncation", ("channel_inversion",)),
    "radio.starts": ("design", "starts", ("uniform_forcing", "mmse", "debiased_mmse")),
    "radio.digital_bits": ("scheme", "bits", ("digital",)),
    "radio.digital_access": ("scheme", "access", ("digital",)),
    "radio.rician_k_db": ("channel", "k_db", ("rician",)),
    "radio.delay_spread_s": ("channel", "delay_spread_s", ("rayleigh", "rician", "cdl_*", "tdl_*")),
    "radio.time_correlation": ("channel", "time_correlation", ("rayleigh", "rician")),
    "radio.round_correlation": ("channel", "round_correlation", ("rayleigh", "rician")),
    "radio.speed_mps": ("channel", "speed_mps", ("umi", "uma", "rma", "cdl_*", "tdl_*")),
    "tasks.dirichlet_alpha": ("split", "alpha", ("dirichlet",)),
    "tasks.device_column": ("split", "column", ("column",)),
}
"""Old key -> the choice that has it as an option now, the option, and the rows that have it."""

DEFAULTS = {"design": "uniform_forcing", "scheme": "linear", "channel": "rayleigh", "split": "iid"}
"""Old defaults of these choices."""
SCHEMES = ("error_free", "digital")
"""Old designs that are schemes now."""


def present_key(key: str) -> str:
    """Say where an old key went; empty if it is none. Keys of tasks are `tasks.key`."""
    if key == "radio.debias":
        return 'is now radio.design = "debiased_mmse"'
    if key not in MOVED_OPTIONS:
        return ""
    choice, option, rows = MOVED_OPTIONS[key]
    section = key.split(".")[0]
    return f'is now an option of a row: {section}.{choice} = {{ name = "{rows[0].replace("*", "a")}", {option} = ... }}'


def present_value(key: str, value: Any) -> str:
    """Say where an old value of a choice went; empty if it went nowhere."""
    if key == "radio.design" and value in SCHEMES:
        return f'it is now radio.scheme = "{value}"'
    return ""


def upgrade_tree(tree: MutableMapping[str, Any]) -> list[str]:
    """Rewrite the settings of an older version in place. Returns a line for each change.

    An option that had no effect beside the others is left out, as a choice takes only its own options.
    """
    lines: list[str] = []
    radio = tree.get("radio")
    if isinstance(radio, MutableMapping):
        lines += _upgrade_design(radio)
        lines += _upgrade_table(radio, "radio")
    tasks = tree.get("tasks")
    for task in tasks if isinstance(tasks, list) else []:
        if isinstance(task, MutableMapping):
            lines += _upgrade_table(task, "tasks")
    return lines


def _upgrade_design(radio: MutableMapping[str, Any]) -> list[str]:
    """Move designs that are schemes now, and `debias`."""
    lines = []
    if (design := radio.get("design")) in SCHEMES:
        _replace(radio, "design", "scheme", design)
        lines.append(f'radio.design = "{design}" is now radio.scheme = "{design}"')
    if "debias" in radio:
        debias = radio.pop("debias")
        if debias and radio.get("design") == "mmse":
            radio["design"] = "debiased_mmse"
            lines.append('radio.debias = true is now radio.design = "debiased_mmse"')
        else:
            lines.append("radio.debias had no effect and is left out")
    return lines


def _replace(table: MutableMapping[str, Any], old: str, new: str, value: Any) -> None:
    """Put a key in another's place, so that comments stay where they are."""
    items = [(new, value) if key == old else (key, item) for key, item in table.items()]
    if isinstance(table, dict) and not hasattr(table, "as_string"):
        table.clear()
        table.update(items)
        return
    table[new] = value
    table.pop(old)


def _upgrade_table(table: MutableMapping[str, Any], section: str) -> list[str]:
    """Move the options of one table into its choices."""
    lines = []
    for key, (choice, option, rows) in MOVED_OPTIONS.items():
        old = key.split(".")[1]
        if not key.startswith(f"{section}.") or old not in table:
            continue
        value, current = table[old], table.get(choice, DEFAULTS[choice])
        name = current["name"] if isinstance(current, Mapping) else current
        if not _matches(str(name), rows):
            table.pop(old)
            lines.append(f"{key} had no effect beside {choice} = {name} and is left out")
            continue
        values = {**(current if isinstance(current, Mapping) else {"name": name}), option: value}
        inline = tomlkit.inline_table()
        inline.update(values)
        table.pop(old)
        table[choice] = inline if hasattr(table, "as_string") else values
        lines.append(f"{key} is now {section}.{choice}.{option}")
    return lines


def _matches(name: str, rows: tuple[str, ...]) -> bool:
    return any(name == row or (row.endswith("*") and name.startswith(row[:-1])) for row in rows)


def upgrade_file(path: Path) -> list[str]:
    """Rewrite a settings file of an older version, or the one of a run's folder, comments kept.

    Returns a line for each change, none if it is up to date. Raises UserError if there is no such file or if it is not
    TOML.
    """
    file = path / "experiment.toml" if path.is_dir() else path
    try:
        document = tomlkit.parse(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such settings file") from None
    except (tomlkit.exceptions.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid TOML: {str(error).splitlines()[0]}") from None
    lines = upgrade_tree(document)
    if lines:
        write_atomic(file, tomlkit.dumps(document))
    return lines
