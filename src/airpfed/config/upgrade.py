"""Settings of an older version in the words of this one: where every key went, and `airpfed upgrade`."""

import tomllib
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.exceptions
from tomlkit.container import Container

from airpfed.config.experiment_files import settings_text
from airpfed.core.errors import UserError, one_line
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
    if (design := radio.get("design")) in SCHEMES and "scheme" not in radio:
        _rename(radio, "design", "scheme")
        lines.append(f'radio.design = "{design}" is now radio.scheme = "{design}"')
    if "debias" in radio:
        debias = radio.pop("debias")
        if debias and radio.get("design") == "mmse":
            radio["design"] = "debiased_mmse"
            lines.append('radio.debias = true is now radio.design = "debiased_mmse"')
        else:
            lines.append("radio.debias had no effect and is left out")
    return lines


def _rename(table: MutableMapping[str, Any], old: str, new: str) -> None:
    """Rename a key in its place, with its comment."""
    container = getattr(table, "value", None)
    if isinstance(container, Container):
        container._replace(old, new, table[old])
    else:
        table[new] = table.pop(old)


def _plain(value: Any) -> Any:
    """A value without its place in a document: its comment, white space and line end."""
    return value.unwrap() if hasattr(value, "unwrap") else value


def _upgrade_table(table: MutableMapping[str, Any], section: str) -> list[str]:
    """Move the options of one table into its choices."""
    lines = []
    for key, (choice, option, rows) in MOVED_OPTIONS.items():
        old = key.split(".")[1]
        if not key.startswith(f"{section}.") or old not in table:
            continue
        current = _plain(table.get(choice, DEFAULTS[choice]))
        values = {**current} if isinstance(current, Mapping) else {"name": str(current)}
        name = str(values.get("name", DEFAULTS[choice]))
        comment = getattr(getattr(table[old], "trivia", None), "comment", "")
        value = _plain(table[old])
        table.pop(old)
        if not _matches(name, rows):
            lines.append(f"{key} had no effect beside {choice} = {name} and is left out")
            continue
        values |= {"name": name, option: value}
        if hasattr(table, "as_string"):
            inline = tomlkit.inline_table()
            inline.update(values)
            table[choice] = inline
            trivia = table[choice].trivia
            if comment and comment not in trivia.comment:
                trivia.comment = "; ".join(filter(None, [trivia.comment, comment.removeprefix("#").strip()]))
                trivia.comment = "# " + trivia.comment.removeprefix("#").strip()
                trivia.comment_ws = trivia.comment_ws or "  "
        else:
            table[choice] = values
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
    text = settings_text(file)
    try:
        tomllib.loads(text)
        document = tomlkit.parse(text)
    except (tomllib.TOMLDecodeError, tomlkit.exceptions.TOMLKitError, ValueError) as error:
        raise UserError(f"{file}: not valid TOML: {one_line(error)}") from None
    except RecursionError:
        raise UserError(f"{file}: not valid TOML for settings: brackets are nested too deeply") from None
    lines = upgrade_tree(document)
    if lines:
        write_atomic(file, tomlkit.dumps(document).encode())
    return lines
