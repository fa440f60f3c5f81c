"""Settings from TOML files and `--set`, with one-line errors, and the differences between settings."""

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomlkit
from pydantic import BaseModel, ValidationError

from airpfed.config.applicability import (
    default_keys_without_effect,
    disabled_keys,
    format_value,
    refuse_ineffective,
    remove_keys,
)
from airpfed.config.choice import BY_KEY, Choice, choices_checked, unchecked_choices
from airpfed.config.experiment_files import FOLDER, settings_text
from airpfed.config.plugins import load_plugins, plugin_paths
from airpfed.config.schema import Settings
from airpfed.config.upgrade import present_key, present_value, upgrade_tree
from airpfed.core.errors import UserError, hint
from airpfed.core.files import write_atomic
from airpfed.core.paths import base_in, option_in, source_in
from airpfed.core.rows import describe_type, parse_call

# Reading and writing


def read_settings(
    path: Path,
    overrides: Iterable[str] = (),
    notes: list[str] | None = None,
    run_plugins: bool = True,
    older: bool = False,
    training: bool = True,
) -> Settings:
    """Read the settings of a file and apply `section.key=value` overrides. Raises UserError with a line per problem.

    The key of a task is `tasks.NAME.key`, or `tasks.*.key` for all tasks. Data and model paths are relative to the
    file, including those of overrides. notes: a list that receives lines for the user on what overrides drop.
    run_plugins: whether the plug-ins that the file names are loaded; without them, their rows should be there. older:
    whether the settings may be those of an older version, such as a finished run's. training: whether they are for a
    run; then keys of the file that overrides disable are left out, so that the file that the run writes can be run. A
    study keeps them: it may compare designs or schemes that use them.
    """
    return settings_from_tree(read_tree(path), str(path), path.parent, overrides, notes, run_plugins, older, training)


def settings_from_tree(
    tree: Mapping[str, Any],
    source: str,
    folder: Path,
    overrides: Iterable[str] = (),
    notes: list[str] | None = None,
    run_plugins: bool = True,
    older: bool = False,
    training: bool = True,
) -> Settings:
    """Make settings of the tree of a settings file, with `section.key=value` overrides, as `read_settings` does.

    source: what messages call the tree. folder: the folder that paths of data, models and plug-ins are relative to.
    notes, run_plugins, older, training: see `read_settings`.
    """
    copy = deepcopy(dict(tree))
    if older:
        upgrade_tree(copy)
    overrides = list(overrides)
    dropped = _apply_overrides(copy, overrides)
    if notes is not None:
        notes += dropped
    copy.pop("expected", None)
    copy = _load_plugins_of(copy, folder, run_plugins)
    settings = parse_settings(copy, source)
    if training and choices_checked():
        overridden = overridden_keys(overrides)
        while disabled := disabled_keys(settings, overridden):
            remove_keys(copy, (key.path for key in disabled))
            settings = parse_settings(copy, source)
            overridden |= {
                f"{key.path[0]}.{key.path[-1]}" for key in disabled
            }  # back at a default that may disable more
            if notes is not None:
                notes += [key.line for key in disabled]
    tasks = tuple(
        task.model_copy(update={"source": source_in(task.source or task.name, folder)}) for task in settings.tasks
    )
    model = settings.model.model_copy(update={"base": base_in(settings.model.base, folder)})
    settings = settings.model_copy(update={"tasks": tuple(_with_files(task, folder) for task in tasks)})
    sections = {name: _with_files(getattr(settings, name), folder) for name in ("adapters", "server", "radio")}
    return settings.model_copy(update={**sections, "model": model})


SectionType = TypeVar("SectionType", bound=BaseModel)


def _with_files(section: SectionType, folder: Path) -> SectionType:
    """Make the options of a section's choices absolute that name a file of a folder: texts with a slash or an ending.

    They then mean the same file from every working directory, and its content is part of a run's fingerprint.
    """

    def resolve(choice: Choice) -> Choice:
        files = {name: option_in(value, folder) for name, value in choice.options.items() if type(value) is str}
        changed = any(choice.options[name] != value for name, value in files.items())
        return replace(choice, options={**choice.options, **files}) if changed else choice

    changes: dict[str, Any] = {}
    for key, value in section:
        if isinstance(value, Choice) and resolve(value) is not value:
            changes[key] = resolve(value)
        elif isinstance(value, tuple) and any(isinstance(item, Choice) for item in value):
            changes[key] = tuple(resolve(item) for item in value)
    return section.model_copy(update=changes) if changes else section


def _load_plugins_of(tree: dict[str, Any], folder: Path, run_plugins: bool) -> dict[str, Any]:
    """Load the plug-ins of a settings tree, and return the tree with their paths resolved.

    Nothing is loaded where choices are read unchecked.
    """
    names = tree.get("plugins", [])
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        # Nobody writes beside the experiments of the package: with those, a plug-in lies in the working directory.
        folder = Path() if folder == FOLDER else folder
        tree = tree | ({"plugins": list(plugin_paths(names, folder))} if names else {})
        if choices_checked():
            load_plugins(tree.get("plugins", []) if run_plugins else [])
    return tree


def settings_from_json(text: str) -> Settings:
    """Rebuild the settings that another process sent as JSON; loads their plug-ins first."""
    tree = json.loads(text)
    load_plugins(tree.get("plugins", []))
    return Settings.model_validate_json(text)


def read_stored(path: Path) -> Settings:
    """Read the settings of a finished run, which an older version may have written.

    They are read without the rows of its choices, which may be a plug-in's.
    """
    with unchecked_choices():
        return read_settings(path, older=True)


def read_new_settings(
    path: Path, overrides: Iterable[str] = (), training: bool = True, notes: list[str] | None = None
) -> Settings:
    """Read the settings of a new run, and refuse keys without effect.

    An existing run uses `read_settings`, because it may be older than a rule. training: whether the settings are for a
    run, which trains. notes: a list that receives lines for the user on what the overrides make ineffective.
    """
    overrides = list(overrides)
    settings = read_settings(path, overrides, notes, training=training)
    check_new(settings, str(path), overrides, training, notes)
    return settings


def check_new(
    settings: Settings,
    source: str,
    overrides: Iterable[str],
    training: bool = True,
    notes: list[str] | None = None,
) -> None:
    """Refuse settings of a new run with keys without effect.

    source: what messages call the settings. training, notes: see `read_new_settings`.
    """
    lines = refuse_ineffective(source, [settings], training, overridden_keys(overrides))
    if notes is not None:
        notes += lines


def overridden_keys(overrides: Iterable[str]) -> set[str]:
    """Return the keys that overrides set, `section.key`; those of tasks are `tasks.key`."""
    keys = set()
    for override in overrides:
        parts = override.partition("=")[0].strip().split(".")
        keys |= {f"{parts[0]}.{part}" for part in parts[1:]}
    return keys


def read_expected(path: Path) -> dict[str, tuple[float, float]]:
    """Read the expected results of a settings file: field of the summary -> (minimum, maximum)."""
    table = read_tree(path).get("expected", {})
    try:
        return {str(key): (float(low), float(high)) for key, (low, high) in table.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: expected: should be a table of field = [least, most], two numbers each") from None


def read_tree(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises UserError if it is not one."""
    try:
        return tomllib.loads(settings_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid TOML for settings: brackets are nested too deeply") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{path}: cannot be read: {str(error).split(';')[0]}") from None


def parse_settings(tree: Mapping[str, Any], source: str) -> Settings:
    """Validate a tree as settings. source: name of the file in messages."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        # pydantic also reports a list with invalid members as too short. The errors of the members say more.
        items = [e for e in error.errors() if e["type"] != "too_short" or e["loc"] != ("tasks",)] or error.errors()
        lines = list(dict.fromkeys(_error_line(item, tree).replace("\n", "\\n") for item in items))
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None


def write_settings(settings: Settings, path: Path, heading: str = "", defaults: bool = True) -> None:
    """Write the resolved settings as TOML, so that `read_settings` returns them.

    heading: comment lines at the top. defaults: whether keys at their defaults are written. Those without effect are
    always left out.
    """
    tree = settings.model_dump(mode="json", exclude_none=True, exclude_defaults=not defaults)
    if not defaults and "radio" in tree:  # defaults that depend on other keys
        tree["radio"] = {key: value for key, value in tree["radio"].items() if key in settings.radio.model_fields_set}
    if settings.radio.pilots != "perfect":  # the 0 of csi_error is not given, and would ask for known channels
        tree.get("radio", {}).pop("csi_error", None)
    if plugins := [Path(plugin) for plugin in tree.pop("plugins", ())]:
        inside = [path.parent.absolute(), path.parent.resolve()]
        names = [
            next((str(file.relative_to(folder)) for folder in inside if file.is_relative_to(folder)), str(file))
            for file in plugins
        ]
        tree = {"plugins": names} | tree
    if "meter_every" in settings.theory.model_fields_set:  # an explicit 0 says that the section's other keys are meant
        tree.setdefault("theory", {})["meter_every"] = settings.theory.meter_every
    remove_keys(tree, default_keys_without_effect(settings))
    write_atomic(path, heading + tomlkit.dumps(tree))


# Differences


def flatten_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map the dotted keys of a tree to values. A table in a list goes by its name, as `--set` spells it.

    The key of the list itself maps to the names, so that two lists of different tables differ. A choice is one value,
    its label.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and _choice_key(prefix + key) and "name" in value:
            flat[prefix + key] = _label(_choice_key(prefix + key), value)
        elif isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and value and all(isinstance(table, Mapping) for table in value):
            tables = {str(table.get("name", number)): table for number, table in enumerate(value)}
            flat |= {prefix + key: list(tables)} | flatten_settings(tables, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _choice_key(dotted: str) -> str:
    """The setting in `BY_KEY` of a dotted key, whatever the task; empty if it is no choice."""
    parts = dotted.split(".")
    key = f"{parts[0]}.{parts[-1]}" if parts[0] == "tasks" and len(parts) > 2 else dotted
    return key if key in BY_KEY else ""


def _label(key: str, tree: Mapping[str, Any]) -> str:
    """The label of a choice's table."""
    options = {name: value for name, value in tree.items() if name != "name"}
    return Choice(BY_KEY[key].name, str(tree["name"]), options).label


def varying_keys(rows: Sequence[Mapping[str, str]], absent: str = "-") -> dict[str, list[str]]:
    """Select the keys in which rows differ: key -> value of each row. absent: value of a row without the key."""
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: [row.get(key, absent) for row in rows] for key in keys}
    return {key: column for key, column in columns.items() if len(set(column)) > 1}


def spelled_out(settings: Settings) -> Settings:
    """Settings with the channel's delay spread written out, so that those of the same meaning are equal."""
    radio = settings.radio.model_copy(update={"channel": settings.radio.resolved_channel})
    return settings.model_copy(update={"radio": radio})


def differences(previous: Settings, current: Settings, ignored: Mapping[str, Any]) -> list[str]:
    """List `section.key = current (was previous)` for every key that differs, without the ignored ones."""
    old, new = (
        flatten_settings(spelled_out(settings).model_dump(mode="json", exclude=dict(ignored)))
        for settings in (previous, current)
    )
    return [
        f"{key} = {format_value(new.get(key))} (was {format_value(old.get(key))})"
        for key in dict.fromkeys([*new, *old])
        if new.get(key) != old.get(key)
    ]


# Overrides


def override_of(key: str, value: Any) -> str:
    """Write a value of Python as an override, `section.key=value`; None stands for the default.

    >>> from airpfed.config.settings_file import override_of
    >>> override_of("server.rounds", 3), override_of("tasks.a.labels", {"no": " no"}), override_of("tasks.*.text", "1")
    ('server.rounds=3', 'tasks.a.labels={no = " no"}', 'tasks.*.text="1"')
    """
    value = value.item() if hasattr(value, "item") else value  # a number of numpy or torch
    if value is None:
        return f"{key}="
    if isinstance(value, str) and value and _value(value, key) == value == value.strip():
        return f"{key}={value}"
    try:
        return f"{key}={toml_text(value)}"
    except (ValueError, TypeError):  # tomlkit's error for other types is a ValueError
        kind = type(value).__name__
        raise UserError(f"{key}: a settings file holds numbers, texts, lists and tables of them, not {kind}") from None


def toml_text(value: Any) -> str:
    """Write a value as TOML on one line."""
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update(value)
        return table.as_string()
    return str(tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string())


ADD_PLUGIN = "plugins+="
"""Start of an override that adds a plug-in file to those of the settings file."""


def _apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Put `section.key=value` overrides into the tree, and return lines on what they drop.

    `section.key=` removes the key, so that its default applies. Names of choices are set before their options, so that
    the order does not matter; an option turns the name in the file, or the default, into a table.
    """
    added = [override.removeprefix(ADD_PLUGIN) for override in overrides if override.startswith(ADD_PLUGIN)]
    parsed = [_parse_override(override) for override in overrides if not override.startswith(ADD_PLUGIN)]
    notes: list[str] = []
    for keys, text, override in sorted(parsed, key=lambda item: len(_option_of(tree, item[0])) > 0):
        option = _option_of(tree, keys)
        for target in _targets(tree, keys[:-1] if option else keys, override):
            if option:
                _set_option(target, keys[-2], option, text, override)
                continue
            old = target.get(keys[-1])
            if text:
                target[keys[-1]] = _value(text, override)
            else:
                target.pop(keys[-1], None)
            tree_of_old = _tree_of(old) if _choice_key(".".join(keys)) else {}
            if dropped := [name for name in tree_of_old if name != "name"]:
                notes.append(f"--set {_cut(override)}: drops {', '.join(dropped)} of {tree_of_old.get('name')}")
    if added and isinstance(tree.get("plugins", []), list):
        tree["plugins"] = [*tree.get("plugins", []), *added]
    return notes


def _tree_of(choice: Any) -> dict[str, Any]:
    """The table of a choice as a settings file may hold it: a name, a name with options in brackets, or a table."""
    if isinstance(choice, Mapping):
        return dict(choice)
    try:
        return parse_call(choice) if isinstance(choice, str) else {}
    except ValueError:
        return {"name": choice}  # refused with the key where the settings are validated


def _parse_override(override: str) -> tuple[list[str], str, str]:
    """Return the keys, the value and the whole of an override."""
    path, equals, text = override.partition("=")
    keys, text = path.strip().split("."), text.strip()
    if not equals or (len(keys) < 2 and keys != ["plugins"]) or not all(keys):
        raise UserError(f"--set {_cut(override)}: should be section.key=value, e.g. --set radio.snr_db=10")
    return keys, text, override


def _option_of(tree: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The option that keys name beyond a choice, `starts` of `radio.design.starts`; empty if they name none."""
    if len(keys) < 3 or not _choice_key(".".join(keys[:-1])):
        return ""
    if keys[0] == "tasks":  # a task may be called `trec.split`
        tasks = tree.get("tasks")
        names = [task.get("name") for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
        if len(keys) < 4 or ".".join(keys[1:-1]) in names:
            return ""
    return keys[-1]


def _set_option(target: dict[str, Any], key: str, option: str, text: str, override: str) -> None:
    """Set an option of a choice; `name` changes the row and keeps the other options."""
    section = next(setting for setting in BY_KEY if setting.endswith(f".{key}"))
    table = section_of(Settings.model_fields[section.split(".")[0]].annotation)
    default = table.model_fields[key].default if table else ""
    current = target.get(key, default)
    choice = _tree_of(current)
    if text:
        choice[option] = _value(text, override)
    else:
        choice.pop(option, None)
    target[key] = choice


def _targets(tree: dict[str, Any], keys: Sequence[str], override: str) -> list[dict[str, Any]]:
    """Find the tables that an override changes: a section, a task, or all tasks."""
    if keys[0] == "tasks" and len(keys) >= 3:
        name, tasks = ".".join(keys[1:-1]), tree.get("tasks", [])
        tables = [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
        selected = [task for task in tables if name in ("*", task.get("name"))]
        if not selected:
            names = [str(task.get("name")) for task in tables]
            raise UserError(f"--set {_cut(override)}: no task {format_value(name)}{suggest(name, names)}")
        return selected
    target = tree
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise UserError(f"--set {_cut(override)}: {format_value(key)} is not a section")
    return [target]


def _value(text: str, override: str) -> Any:
    """Parse a TOML value. Any other text is a string, so that quotes may be omitted."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError):
        raise UserError(
            f"--set {_cut(override)}: brackets are nested too deeply, or a number has too many digits"
        ) from None
    return tree["value"] if len(tree) == 1 else text


def _cut(text: str) -> str:
    """Shorten an override to one line of a message."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= 60 else text[:57] + "..."


# Errors


def suggest(name: str, valid_names: Iterable[str]) -> str:
    """Suggest the closest valid name, or list all of them if none is close."""
    names = sorted(format_value(name)[1:-1] for name in valid_names)
    return hint(name, names) or f"; known: {', '.join(names)}"


def _error_line(item: Any, tree: Mapping[str, Any]) -> str:
    """Write an error of pydantic as a line: the key, its value, what would be right."""
    keys, model, leaf = _locate(item["loc"])
    if len(keys) > 1 and keys[0] == "tasks":  # a task goes by its name
        task = tree["tasks"][keys[1]] if isinstance(tree.get("tasks"), list) else {}
        keys = ["tasks", task.get("name", keys[1]) if isinstance(task, dict) else keys[1], *keys[2:]]
    name = ".".join(str(key) for key in keys)
    field = model.model_fields.get(leaf)
    meaning = field.description if field and field.description else "at least one [[tasks]] table is needed"
    if item["type"] == "extra_forbidden":
        general = f"tasks.{keys[-1]}" if keys[0] == "tasks" else name
        if present := present_key(general):
            return f"{name}: {present}; `airpfed upgrade FILE` rewrites a settings file"
        if where := option_place(general):
            return f"{name}: {where}"
        return f"{name}: unknown key{suggest(str(keys[-1]), model.model_fields)}"
    if item["type"] == "missing":
        return f"{name}: missing; {meaning}"
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if item["type"] == "value_error" and leaf and message.startswith((".", " = ")):
        moved = present_value(_choice_key(name), item["input"]) or ""
        return f"{name}{message}" + (f"; {moved}" if moved else "")
    if item["type"] == "value_error":
        return f"{name + ': ' if name else ''}{message}"
    if leaf == "tasks":
        return "tasks: should be written [[tasks]], in two brackets, once for each task"
    schema = model.model_json_schema()["properties"].get(leaf, {}) if field else {}
    table = "a list of tables, such as [{ key = value }]" if item["type"] in ("tuple_type", "list_type") else "a table"
    remedy = f"should be {describe_type(schema)} ({meaning})" if schema else f"should be {table}"
    return f"{name} = {format_value(item['input'])}: {remedy}"


def option_place(key: str) -> str:
    """Say of which row a key is an option, if its section has a choice with such a row; empty if there is none."""
    section, _, option = key.rpartition(".")
    for setting, kind in BY_KEY.items():
        if setting.startswith(f"{section}."):
            for name in kind.rows:
                if any(item.name == option for item in kind.rows.options(name)):
                    table = f'{setting.rpartition(".")[2]} = {{ name = "{name}", {option} = ... }}'
                    return f"is an option of {setting}: {table}, or --set {setting}.{option}=..."
    return ""


def _locate(location: tuple[Any, ...]) -> tuple[list[Any], type[BaseModel], str]:
    """Return the keys of an error's location, without the members of a union that pydantic adds; model and field."""
    model: type[BaseModel] = Settings
    keys: list[Any] = []
    leaf = ""
    for part in location:
        keys.append(part)
        if isinstance(part, int):
            continue
        leaf = part
        field = model.model_fields.get(part)
        inner = section_of(field.annotation) if field else None
        if inner is None:
            break
        model = inner
    return keys, model, leaf


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Find the settings class in a field's annotation: the class, the members of a list, or an optional class."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((section for part in get_args(annotation) if (section := section_of(part))), None)
