"""TOML and `--set` to `Settings`, with errors of one line: the key, its value, what would be right."""

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import tomlkit
from pydantic import BaseModel, ValidationError

from airpfed.config.applicability import refuse, show, unneeded, without
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError, hint
from airpfed.core.paths import base_in, source_in
from airpfed.core.run_files import write_atomic

LARGEST = 4 << 20
"""Bytes of a settings file: what is larger is something else."""


def read(path: Path, overrides: Iterable[str] = ()) -> Settings:
    """The settings of a file, changed by `section.key=value` overrides; raises UserError with a line a problem.

    A task's key is `tasks.NAME.key`, or `tasks.*.key` for every task. Data and model paths are relative to the file,
    also those of overrides.
    """
    tree = _tree(path)
    for override in overrides:
        _apply(tree, override)
    tree.pop("expected", None)
    settings = parse(tree, str(path))
    return _anchor(settings, path.parent)


def asked(path: Path, overrides: Iterable[str] = (), training: bool = True) -> Settings:
    """`read` for a command that begins from the user's file: what has no effect beside the rest is refused too.

    Not for the settings of a run that is there, which may be older than a rule. training: whether the command trains.
    """
    settings = read(path, overrides)
    refuse(str(path), [settings], training)
    return settings


def _tree(path: Path) -> dict[str, Any]:
    """What a TOML file holds; UserError where it is none."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: a directory; a settings file (TOML) is needed")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file; a settings file (TOML) is needed")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{path}: larger than {LARGEST >> 20} MB; a settings file (TOML) is needed")
        return tomllib.loads(content.decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid TOML for settings: brackets within brackets, too deep to be read") from None
    except ValueError as error:  # a null byte in the name; a whole number of thousands of digits
        raise UserError(f"{path}: cannot be read: {str(error).split(';')[0]}") from None


def differences(before: Settings, now: Settings, free: Mapping[str, set[str]]) -> list[str]:
    """`section.key = now (was before)` for every key that differs, those in `free` aside."""
    old, new = (dict(_leaves(one.model_dump(mode="json", exclude=dict(free)))) for one in (before, now))
    return [
        f"{key} = {show(new.get(key))} (was {show(old.get(key))})"
        for key in dict.fromkeys([*new, *old])
        if new.get(key) != old.get(key)
    ]


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a tree of settings, as `--set` spells them; before the tasks' keys, their names."""
    for key, value in tree.items():
        if key == "tasks":
            yield key, [task["name"] for task in value]
        inside = {task["name"]: task for task in value} if key == "tasks" else value
        if isinstance(inside, dict):
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in _leaves(inside))
        else:
            yield key, value


def expected(path: Path) -> dict[str, tuple[float, float]]:
    """The results that stand beside a file's settings: field of the summary -> (least, most)."""
    found = _tree(path).get("expected", {})
    try:
        return {str(key): (float(low), float(high)) for key, (low, high) in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{path}: expected: should be a table of field = [least, most], two numbers each") from None


def parse(tree: Mapping[str, Any], where: str) -> Settings:
    """A parsed tree as settings; `where` names the file in messages."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        # A list whose members are wrong is also reported as too short: the members say it better.
        items = [e for e in error.errors() if e["type"] != "too_short" or e["loc"] != ("tasks",)] or error.errors()
        lines = list(dict.fromkeys(_line(item, tree).replace("\n", "\\n") for item in items))
        raise UserError("\n".join(f"{where}: {line}" for line in lines)) from None


def write(settings: Settings, path: Path, heading: str = "", defaults: bool = True) -> None:
    """Write the resolved settings as TOML; `read` gives them back.

    heading: comment lines to begin with. defaults: whether keys at their defaults are written too, but for those that
    do nothing beside the others.
    """
    tree = settings.model_dump(mode="json", exclude_none=True, exclude_defaults=not defaults)
    without(tree, unneeded(settings))
    write_atomic(path, heading + tomlkit.dumps(tree))


def _anchor(settings: Settings, folder: Path) -> Settings:
    """The paths of data and of the base model made absolute, so that a run does not depend on the working directory."""
    tasks = tuple(t.model_copy(update={"source": source_in(t.source or t.name, folder)}) for t in settings.tasks)
    model = settings.model.model_copy(update={"base": base_in(settings.model.base, folder)})
    return settings.model_copy(update={"tasks": tasks, "model": model})


def _apply(tree: dict[str, Any], override: str) -> None:
    """Put one `section.key=value` into the tree; `section.key=` takes the key out, so that its default holds."""
    path, equals, text = override.partition("=")
    keys, text = path.strip().split("."), text.strip()
    if not equals or len(keys) < 2 or not all(keys):
        raise UserError(f"--set {_cut(override)}: should be section.key=value, e.g. --set radio.snr_db=10")
    for target in _targets(tree, keys, override):
        if text:
            target[keys[-1]] = _value(text, override)
        else:
            target.pop(keys[-1], None)


def _targets(tree: dict[str, Any], keys: Sequence[str], override: str) -> list[dict[str, Any]]:
    if keys[0] == "tasks" and len(keys) >= 3:
        name, given = ".".join(keys[1:-1]), tree.get("tasks", [])
        tables = [task for task in given if isinstance(task, dict)] if isinstance(given, list) else []
        tasks = [task for task in tables if name in ("*", task.get("name"))]
        if not tasks:
            known = [str(task.get("name")) for task in tables]
            raise UserError(f"--set {_cut(override)}: no task {show(name)}{nearest(name, known)}")
        return tasks
    target = tree
    for key in keys[:-1]:
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise UserError(f"--set {_cut(override)}: {show(key)} is not a section")
    return [target]


def _value(text: str, override: str) -> Any:
    """A TOML value; what is none is a string, so that quotes may be left away."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError):
        raise UserError(f"--set {_cut(override)}: too deep, or a number of too many digits") from None
    return tree["value"] if len(tree) == 1 else text


def _cut(text: str) -> str:
    """An override as a message quotes it: on one line, not too long."""
    text = text.replace("\n", "\\n")
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """The nearest known name, or all of them where none is near."""
    names = sorted(show(name)[1:-1] for name in known)
    return hint(name, names) or f"; known: {', '.join(names)}"


def _line(item: Any, tree: Mapping[str, Any]) -> str:
    """One pydantic error as one line."""
    keys, model, leaf = _locate(item["loc"])
    name = _spell(keys, tree)
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown key{nearest(str(keys[-1]), model.model_fields)}"
    if item["type"] == "missing":
        return f"{name}: missing; {_meaning(model, leaf)}"
    message = item["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if item["type"] == "value_error":
        return f"{name + ': ' if name else ''}{message}"
    if leaf == "tasks":
        return "tasks: should be written [[tasks]], in two brackets, once for each task"
    right = _right(model, leaf) or "should be a table"
    return f"{name} = {show(item['input'])}: {right}"


def _locate(loc: tuple[Any, ...]) -> tuple[list[Any], type[BaseModel], str]:
    """Keys of the settings file in an error's location (pydantic adds the members of a union), model and field."""
    model: type[BaseModel] = Settings
    keys: list[Any] = []
    leaf = ""
    for part in loc:
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
    """The settings class in a field's annotation: itself, a list's members, or what may be absent."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


def _spell(keys: Sequence[Any], tree: Mapping[str, Any]) -> str:
    """Keys as the user writes them; a task by its name where it has one."""
    if len(keys) > 1 and keys[0] == "tasks":
        task = tree["tasks"][keys[1]] if isinstance(tree.get("tasks"), list) else {}
        name = task.get("name", keys[1]) if isinstance(task, dict) else keys[1]
        keys = ["tasks", name, *keys[2:]]
    return ".".join(str(key) for key in keys)


def _meaning(model: type[BaseModel], leaf: str) -> str:
    field = model.model_fields.get(leaf)
    return field.description if field and field.description else "at least one [[tasks]] table is needed"


def _right(model: type[BaseModel], leaf: str) -> str:
    """What a field accepts, in words, from its own declaration."""
    field = model.model_fields.get(leaf)
    schema = model.model_json_schema()["properties"].get(leaf, {}) if field else {}
    return f"should be {accepts(schema)} ({_meaning(model, leaf)})" if schema else ""


def accepts(schema: Mapping[str, Any]) -> str:
    """A JSON schema of one key in words: type, choices and range."""
    if "anyOf" in schema:
        return " or ".join(accepts(option) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(f'"{choice}"' for choice in schema["enum"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
             "array": "a list", "object": "a table", "null": "absent"}  # fmt: skip
    bounds = {"minimum": "at least {}", "exclusiveMinimum": "greater than {}", "maximum": "at most {}",
              "exclusiveMaximum": "less than {}", "pattern": "matching {}", "minItems": "of at least {}"}  # fmt: skip
    kind = words.get(str(schema.get("type")), "a table")
    limits = [text.format(schema[key]) for key, text in bounds.items() if key in schema]
    return " ".join([kind, " and ".join(limits)]).strip()
