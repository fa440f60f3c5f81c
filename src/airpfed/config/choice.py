"""Choices: settings whose value is the name of a row of a public dict, with that row's options.

`design = "mmse"`, `design = { name = "mmse", starts = 4 }` and, on the command line, `design=mmse(starts=4)` mean the
same kind of thing. A choice is stored resolved: with every option of its row, so that it has one form.
"""

import importlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from airpfed.core.errors import UserError
from airpfed.core.rows import RowDict


@dataclass(frozen=True)
class Kind:
    """A kind of row. name: of `airpfed list`. noun: what one is called. key: the setting. address: `module:NAME` of
    the public dict, which is imported when the first choice of the kind is read, because its module may lie in a folder
    above.
    """

    name: str
    noun: str
    key: str
    address: str

    @property
    def rows(self) -> RowDict[Any]:
        """The public dict."""
        module, name = self.address.split(":")
        rows: RowDict[Any] = getattr(importlib.import_module(module), name)
        return rows


KINDS: dict[str, Kind] = {
    "schemes": Kind("schemes", "scheme", "radio.scheme", "airpfed.air.schemes:SCHEMES"),
    "designs": Kind("designs", "design", "radio.design", "airpfed.air.designs:DESIGNS"),
    "channels": Kind("channels", "channel", "radio.channel", "airpfed.air.channels:CHANNELS"),
    "methods": Kind("methods", "method", "adapters.method", "airpfed.model.methods:METHODS"),
    "splits": Kind("splits", "split", "tasks.split", "airpfed.tasks.split:SPLITS"),
    "metrics": Kind("metrics", "metric", "tasks.metric", "airpfed.tasks.metrics:METRICS"),
    "optimizers": Kind("optimizers", "optimizer", "server.optimizer", "airpfed.training.optimizers:OPTIMIZERS"),
    "aggregators": Kind("aggregators", "aggregator", "server.aggregator", "airpfed.training.aggregators:AGGREGATORS"),
    "trackers": Kind("trackers", "tracker", "run.tracker", "airpfed.experiment.loggers:TRACKERS"),
}
"""The kinds of rows, by the name of `airpfed list`."""
BY_KEY = {kind.key: kind for kind in KINDS.values()}
"""Setting -> its kind."""


@dataclass(frozen=True)
class Choice:
    """A row's name and the value of each of its options.

    kind: the kind of row, a key of KINDS.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> Any:
        """The row. Raises UserError if there is none of this name, which only a choice read unchecked can have."""
        return KINDS[self.kind].rows.find(self.name)

    @property
    def function(self) -> Any:
        """The row's function, its options not set."""
        rows = KINDS[self.kind].rows
        return rows.function(rows.find(self.name))

    def find_row(self) -> Any:
        """The row, or None if the choice was read unchecked and there is none of its name."""
        return KINDS[self.kind].rows.get(self.name)

    def bind(self) -> Any:
        """The row's function with these options set."""
        return KINDS[self.kind].rows.bind(self.name, self.options)

    @property
    def label(self) -> str:
        """The name, with the options that differ from their defaults: `mmse(starts=4)`."""
        rows = KINDS[self.kind].rows
        defaults = {option.name: option.default for option in rows.options(self.name)} if self.name in rows else {}
        return label_of({"name": self.name, **{k: v for k, v in self.options.items() if defaults.get(k, ...) != v}})

    def __str__(self) -> str:
        """Write the label."""
        return self.label

    def __hash__(self) -> int:
        """Hash by the label of all options."""
        return hash((self.kind, label_of(self.tree())))

    def tree(self) -> dict[str, Any]:
        """The choice as a table of a settings file; options without a value are left out."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items() if v is not None}
        return {"name": self.name, **values}


def label_of(tree: Mapping[str, Any]) -> str:
    """Write a table with a name as `name(option=value, ...)`."""
    options = ", ".join(f"{key}={_toml(value)}" for key, value in tree.items() if key != "name")
    return f"{tree['name']}({options})" if options else str(tree["name"])


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        return value if BARE.fullmatch(value) and _value(value) == value else json.dumps(value, ensure_ascii=False)
    return str(value)


_checked: ContextVar[bool] = ContextVar("checked", default=True)


def choices_checked() -> bool:
    """Whether choices are held against the rows of their dicts."""
    return _checked.get()


@contextmanager
def unchecked_choices() -> Iterator[None]:
    """Read choices without their rows: the settings of a finished run, whose rows may be a plug-in's."""
    token = _checked.set(False)
    try:
        yield
    finally:
        _checked.reset(token)


BARE = re.compile(r"[\w./~:-]([\w ./~:-]*[\w./~:-])?")
"""Texts that need no quotes as the value of an option, unless they read as a number or another value."""
CALL = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*\((.*)\)\s*", re.DOTALL)


def parse_call(text: str) -> dict[str, Any]:
    """Read `name` or `name(option=value, ...)`; a value is TOML, and any other text is a string.

    Raises ValueError for other text.
    """
    match = CALL.fullmatch(text)
    if match is None:
        return {"name": text.strip()}
    options: dict[str, Any] = {"name": match[1]}
    for part in split_outside_brackets(match[2]):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise ValueError(f"{part.strip()!r} should be written option=value")
        if key in options:
            raise ValueError(f"{text.strip()}: {key} stands twice")
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    """Read a TOML value; any other text is a string. Raises ValueError if it is nested too deeply."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (RecursionError, ValueError):
        raise ValueError("brackets are nested too deeply, or a number has too many digits") from None
    return tree["value"] if len(tree) == 1 else text


def split_outside_brackets(text: str, separator: str = ",") -> list[str]:
    """Split a text at separators outside round, square and curly brackets and quotes; no parts of an empty text.

    A quotation mark opens where a value begins, so that the apostrophe of a word is a letter.
    """
    parts, depth, quote, escaped = [""], 0, "", False
    for char in text:
        if quote:
            if char == quote and not escaped:
                quote = ""
            escaped = char == "\\" and quote == '"' and not escaped
        elif char in "\"'" and (not (before := parts[-1].rstrip()) or before[-1] in "=([{,"):
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == separator and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts if text.strip() else []


def parse_choice(kind: str, value: Any) -> Choice:
    """Read a choice from a settings file: a name, a table with a name and options, or a `Choice`.

    Raises ValueError, whose text begins with `.OPTION` if an option is wrong.
    """
    rows_checked = _checked.get()
    if isinstance(value, Choice):
        return value
    if isinstance(value, str):
        tree = parse_call(value)
    elif isinstance(value, Mapping):
        tree = dict(value)
    else:
        raise ValueError(f"should be a name, or a table with a name and options, not {type(value).__name__}")
    name = tree.pop("name", None)
    if not isinstance(name, str):
        raise ValueError('should have a name: { name = "...", option = ... }')
    if not rows_checked:
        return Choice(kind, name, tree)
    try:
        return Choice(kind, name, KINDS[kind].rows.resolve(name, tree))
    except UserError as error:
        text = str(error)
        raise ValueError(text if text.startswith(".") else f' = "{name}": {text}') from None


@dataclass(frozen=True)
class ChoiceOf:
    """The annotation of a setting that is a choice: `Annotated[Choice, ChoiceOf("designs")]`."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read with `parse_choice`; write as a table."""
        return core_schema.no_info_plain_validator_function(
            partial(parse_choice, self.kind),
            serialization=core_schema.plain_serializer_function_ser_schema(Choice.tree),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Name the kind, for the reference page and for messages."""
        return {"type": "choice", "kind": self.kind}
