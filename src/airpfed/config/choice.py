"""Choices: settings whose value is the name of a row of a public dict, with that row's options.

`design = "mmse"`, `design = { name = "mmse", starts = 4 }` and, on the command line, `design=mmse(starts=4)` mean the
same kind of thing. A choice is stored resolved: with every option of its row, so that it has one form.
"""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from airpfed.core.errors import UserError
from airpfed.core.rows import RowDict, label_of, parse_call


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

    def is_row(self, value: Any) -> bool:
        """Check whether a value is a row of this kind, or a function that could become one."""
        if hasattr(value, "__dataclass_fields__"):
            return isinstance(value, tuple({type(row) for row in self.rows.values()}))
        return callable(value)


KINDS: dict[str, Kind] = {
    "schemes": Kind("schemes", "scheme", "radio.scheme", "airpfed.air.schemes:SCHEMES"),
    "designs": Kind("designs", "design", "radio.design", "airpfed.air.designs:DESIGNS"),
    "channels": Kind("channels", "channel", "radio.channel", "airpfed.air.channels:CHANNELS"),
    "methods": Kind("methods", "method", "adapters.method", "airpfed.model.methods:METHODS"),
    "splits": Kind("splits", "split", "tasks.split", "airpfed.tasks.split:SPLITS"),
    "sources": Kind("sources", "source", "tasks.source", "airpfed.tasks.sources:SOURCES"),
    "metrics": Kind("metrics", "metric", "tasks.metric", "airpfed.tasks.metrics:METRICS"),
    "optimizers": Kind("optimizers", "optimizer", "server.optimizer", "airpfed.training.optimizers:OPTIMIZERS"),
    "schedules": Kind("schedules", "schedule", "server.schedule", "airpfed.training.schedules:SCHEDULES"),
    "aggregators": Kind("aggregators", "aggregator", "server.aggregator", "airpfed.training.aggregators:AGGREGATORS"),
    "trackers": Kind("trackers", "tracker", "run.tracker", "airpfed.experiment.loggers:TRACKERS"),
}
"""The kinds of rows, by the name of `airpfed list`."""
BY_KEY = {kind.key: kind for kind in KINDS.values()}
"""Setting -> its kind."""


@dataclass(frozen=True)
class Choice:
    """A row's name and the value of each of its options.

    kind: the kind of row, a key of KINDS. given_row: the row itself if a notebook gave it and it has no name in the
    public dict; None for the row of that name.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    given_row: Any = field(default=None, repr=False)

    @property
    def row(self) -> Any:
        """The row. Raises UserError if there is none of this name, which only a choice read unchecked can have."""
        return KINDS[self.kind].rows.find(self.name) if self.given_row is None else self.given_row

    @property
    def function(self) -> Any:
        """The row's function, its options not set."""
        return KINDS[self.kind].rows.function(self.row)

    def find_row(self) -> Any:
        """The row, or None if the choice was read unchecked and there is none of its name."""
        return KINDS[self.kind].rows.get(self.name) if self.given_row is None else self.given_row

    def bind(self) -> Any:
        """The row's function with these options set."""
        return KINDS[self.kind].rows.bind(self.name, self.options, self.given_row)

    @property
    def defaults(self) -> dict[str, Any]:
        """The row's options in its order, with their defaults; empty for a choice read unchecked without its row."""
        rows, row = KINDS[self.kind].rows, self.find_row()
        return {} if row is None else {option.name: option.default for option in rows.options(self.name, row)}

    def with_option(self, name: str, value: Any) -> "Choice":
        """The choice with another value of an option, its options in the row's order."""
        options = {**self.options, name: value}
        return replace(self, options={key: options[key] for key in [*self.defaults, *options] if key in options})

    @property
    def label(self) -> str:
        """The name, with the options that differ from their defaults: `mmse(starts=4)`."""
        defaults = self.defaults
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


def parse_choice(kind: str, value: Any) -> Choice:
    """Read a choice: a name or a table with a name and options, as in a settings file, or, from Python, a `Choice`, a
    row, a function that becomes a row, or a pair (name or function, options).

    Raises ValueError, whose text begins with `.OPTION` if an option is wrong.
    """
    rows_checked = _checked.get()
    if isinstance(value, Choice):
        return value
    pair = value if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping) else (value, {})
    if KINDS[kind].is_row(pair[0]):
        return _choose_row(kind, *pair)
    value = {"name": pair[0], **pair[1]} if pair is value else value
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
    return _resolve(kind, name, tree)


def _resolve(kind: str, name: str, options: Mapping[str, Any], row: Any = None) -> Choice:
    """Make a choice with every option. Raises ValueError, as `parse_choice` does."""
    try:
        return Choice(kind, name, KINDS[kind].rows.resolve(name, options, row), row)
    except UserError as error:
        text = str(error)
        raise ValueError(text if text.startswith(".") else f' = "{name}": {text}') from None


def _choose_row(kind: str, value: Any, options: Mapping[str, Any]) -> Choice:
    """Choose a row or a function itself: by its name if it is in the public dict, else under the function's name."""
    rows = KINDS[kind].rows
    name = rows.name_of(value)
    if name is not None:
        return _resolve(kind, name, options)
    function = value if callable(value) and not hasattr(value, "__dataclass_fields__") else rows.function(value)
    label = str(getattr(function, "__name__", "")).strip("<>") or type(function).__name__
    return _resolve(kind, label, options, rows.to_row(label, value))


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
