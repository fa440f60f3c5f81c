"""Public dicts of rows: what varies has a name, and its options are the keyword-only parameters of one function.

DESIGNS = RowDict("design", {"mmse": Design(mmse)}, wrap=Design, function=lambda row: row.solve)
DESIGNS["mine"] = lambda problem: ...           # a bare function becomes a row
DESIGNS.resolve("mmse", {"starts": 4})          # -> every option, checked
"""

import functools
import inspect
import json
import re
import tomllib
import types
import typing
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticUndefined

from airpfed.core.errors import UserError, hint, one_line

Row = TypeVar("Row")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
"""Names of rows: such a name needs no quotes on a command line."""


class OptionsModel(BaseModel):
    """The base of the models that check a row's options: strict types, no unknown names, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Option:
    """One option of a row: its name, its type in words, its default (`...` if it is required) and its meaning."""

    name: str
    accepts: str
    default: Any
    meaning: str


@dataclass(frozen=True)
class RowEntry:
    """A row that entered a public dict. rows: the dict. name: of the row."""

    rows: "RowDict[Any]"
    name: str
    row: Any


@dataclass(frozen=True)
class Registration:
    """What enters the public dicts while a plug-in's code runs. origin: what messages call the plug-in."""

    origin: str
    entries: list[RowEntry]


_registration: ContextVar[Registration | None] = ContextVar("registration", default=None)


@contextmanager
def entries_of(origin: str) -> Iterator[list[RowEntry]]:
    """Collect the rows that enter public dicts within the block, as rows of the plug-in `origin`."""
    entries: list[RowEntry] = []
    token = _registration.set(Registration(origin, entries))
    try:
        yield entries
    finally:
        _registration.reset(token)


class RowDict(UserDict[str, Row], Generic[Row]):
    """A dict of rows of one kind, which checks every row as it enters.

    noun: what a row is called in messages, such as "design". wrap: makes a row of a bare function. function: the
    function of a row whose keyword-only parameters are the row's options. origins: name -> plug-in that a row comes
    from. Raises UserError for a name that is no identifier, for a value that is no row, for a function whose options a
    settings file could not hold, and for a plug-in's row with the name of a row that no plug-in brought.
    """

    def __init__(
        self,
        noun: str,
        rows: Mapping[str, Row],
        *,
        wrap: Callable[[Callable[..., Any]], Row],
        function: Callable[[Row], Callable[..., Any]],
    ) -> None:
        """Check and take the rows."""
        self.noun, self.wrap, self.function = noun, wrap, function
        self.origins: dict[str, str] = {}
        token = _registration.set(None)  # a plug-in may be the first to import the module of a public dict
        try:
            super().__init__(rows)
        finally:
            _registration.reset(token)

    def __setitem__(self, name: str, row: Row | Callable[..., Any]) -> None:
        """Add a row, or make one of a function."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"{self.noun} {name!r}: a name should be letters, digits and _, with a letter first")
        row = self.to_row(name, row)
        registration = _registration.get()
        if registration is not None:
            if name in self and name not in self.origins:
                raise UserError(f"{self.noun} {name}: a row of airpfed has this name; choose another")
            self.origins[name] = registration.origin
            registration.entries.append(RowEntry(self, name, row))
        super().__setitem__(name, row)

    def to_row(self, name: str, row: Row | Callable[..., Any]) -> Row:
        """Return a row as it is, or make one of a function; check it as one that enters. name: for messages."""
        if inspect.isroutine(row) or (callable(row) and not hasattr(row, "__dataclass_fields__")):
            row = self.wrap(row)
        try:
            function = self.function(typing.cast(Row, row))
        except AttributeError:
            raise UserError(
                f"{self.noun} {name}: should be a function, or a row as the other {self.noun}s are, not "
                f"{type(row).__name__}"
            ) from None
        options_model(f"{self.noun} {name}", function)
        return typing.cast(Row, row)

    def name_of(self, row: Any) -> str | None:
        """Return the name of a row, given as the row or as its function; None if it is not in the dict."""
        return next((name for name, entry in self.items() if row is entry or row is self.function(entry)), None)

    def __ior__(self, other: Any) -> "RowDict[Row]":  # type: ignore[override, misc]
        """Add rows, each checked."""
        self.update(other)
        return self

    def restore(self, entry: RowEntry, origin: str) -> None:
        """Let a row of a plug-in stand again under its name, where another's may stand now."""
        self.origins[entry.name] = origin
        self.data[entry.name] = entry.row

    def find(self, name: str) -> Row:
        """Return a row. Raises UserError with the nearest name, or all of them, if there is none."""
        if name not in self:
            known = f"should be one of {', '.join(self)}" if self else f"no {self.noun} has a name here"
            raise UserError(f'{known}{hint(name, self)}; one of your own needs a plug-in, plugins = ["FILE.py"]')
        return self[name]

    def resolve(self, name: str, options: Mapping[str, Any], row: Row | None = None) -> dict[str, Any]:
        """Return the value of every option of a row: those given, checked, and the defaults of the others.

        row: a row that is not in the dict, which `name` then only labels. Raises UserError, whose text begins with
        `.OPTION` if an option is wrong.
        """
        row = self.find(name) if row is None else row
        model = options_model(f"{self.noun} {name}", self.function(row))
        try:
            return dict(model.model_validate(dict(options)))
        except ValidationError as error:
            # An unknown option first: it may be the missing one, misspelt.
            item = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
            option = str(item["loc"][0]) if item["loc"] else ""
            is_unknown = item["type"] == "extra_forbidden" and not hint(option, model.model_fields)
            if is_unknown and _is_positional(self.function(row), option):
                raise UserError(
                    f".{option}: no option of {name}, because its function takes {option} by position; only parameters "
                    "after a * are options"
                ) from None
            raise UserError(_option_error(name, model, item)) from None

    def bind(self, name: str, options: Mapping[str, Any], row: Row | None = None) -> Callable[..., Any]:
        """Return the row's function with its options set, ready to be called with the other arguments."""
        row = self.find(name) if row is None else row
        function, values = self.function(row), self.resolve(name, options, row)

        def bound(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **values, **kwargs)

        return bound if values else function

    def options(self, name: str, row: Row | None = None) -> list[Option]:
        """List the options of a row."""
        model = options_model(f"{self.noun} {name}", self.function(self.find(name) if row is None else row))
        properties = model.model_json_schema()["properties"] if model.model_fields else {}
        return [
            Option(
                key,
                describe_type(properties[key]),
                ... if field.default is PydanticUndefined else field.default,
                field.description or "",
            )
            for key, field in model.model_fields.items()
        ]


def summary_line(function: Callable[..., Any]) -> str:
    """Return the first line of a function's documentation, without a closing full stop."""
    function = function.func if isinstance(function, functools.partial) else function
    lines = (inspect.getdoc(function) or "").strip().splitlines()
    return lines[0].removesuffix(".") if lines else ""


# Options from signatures

_MODELS: dict[Callable[..., Any], type[OptionsModel]] = {}


def options_model(source: str, function: Callable[..., Any]) -> type[OptionsModel]:
    """Make the model that checks a function's options, from its keyword-only parameters.

    source: what messages call the function. An option's range and meaning stand in its annotation,
    `Annotated[int, Field(ge=1, description="...")]`. Raises UserError if the signature cannot be read, has `**options`,
    or has an option without a type or with a type that a settings file cannot hold.
    """
    try:
        if function in _MODELS:
            return _MODELS[function]
    except TypeError:  # an unhashable callable
        raise UserError(f"{source}: should be a function, not {type(function).__name__}") from None
    if not callable(function):
        raise UserError(f"{source}: should be a function, not {type(function).__name__}")
    try:
        parameters = inspect.signature(function).parameters
        hints = typing.get_type_hints(_plain_function(function), include_extras=True)
    except (TypeError, ValueError, NameError, AttributeError, SyntaxError) as error:
        raise UserError(f"{source}: the signature of its function cannot be read ({one_line(error)})") from None
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise UserError(f"{source}: **{name} hides the options; each should be a keyword-only parameter")
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        annotation = hints.get(name)
        if annotation is None:
            raise UserError(f"{source}: option {name} has no type; it should be written {name}: float = ...")
        if name == "name" or name.startswith("_") or name.startswith("model_"):
            raise UserError(f"{source}: an option cannot be called {name}; choose another name")
        if not _is_settable(annotation):
            raise UserError(
                f"{source}: option {name} has a type that a settings file cannot hold; should be bool, int, float, "
                "str, a Literal of them, or a tuple of one of them"
            )
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (_lenient(annotation), default)
    for name, (annotation, default) in fields.items():
        try:
            if default is not ...:
                adapter = TypeAdapter(annotation, config=ConfigDict(strict=True))
                fields[name] = (annotation, adapter.validate_python(default))  # 1 of a float becomes 1.0
        except ValidationError:
            raise UserError(f"{source}: option {name} has the default {default!r}, which its type forbids") from None
    with warnings.catch_warnings():  # an option may be called `copy`, as a method of the model is
        warnings.simplefilter("ignore", UserWarning)
        _MODELS[function] = create_model("Options", __base__=OptionsModel, **fields)
    return _MODELS[function]


def _plain_function(function: Any) -> Any:
    """The function whose annotations give the types: that within partials and decorators, or an object's call."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    return function if inspect.isroutine(function) or inspect.isclass(function) else type(function).__call__


def _is_positional(function: Callable[..., Any], name: str) -> bool:
    """Check whether a parameter of this name can be given by position."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


def _is_settable(annotation: Any, in_list: bool = False) -> bool:
    """Check whether a TOML file can hold every value of a type. in_list: whether it is the type of a list's items."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _is_settable(parts[0], in_list)
    if origin in (typing.Union, types.UnionType):
        return all(_is_settable(part, in_list) for part in parts)
    if origin is Literal:
        return all(isinstance(part, (bool, int, float, str)) for part in parts)
    if origin is tuple and not in_list:
        return all(part is ... or _is_settable(part, True) for part in parts)
    return annotation in (bool, int, float, str) or (annotation is type(None) and not in_list)


def _lenient(annotation: Any) -> Any:
    """Allow a TOML list for a tuple; every other type stays strict."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return Annotated[annotation, Field(strict=False)]
    if origin is Annotated:
        return Annotated[(_lenient(parts[0]), *parts[1:])]
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_lenient, parts))]  # noqa: UP007
    return annotation


def _option_error(name: str, model: type[OptionsModel], item: Any) -> str:
    """Write the first error of pydantic as `.option = value: what would be right`."""
    option = str(item["loc"][0]) if item["loc"] else ""
    field = model.model_fields.get(option)
    if item["type"] == "extra_forbidden":
        known = f"its options are {', '.join(model.model_fields)}" if model.model_fields else "it has no options"
        return f".{option}: no option of {name}; {known}{hint(option, model.model_fields)}"
    text = f" ({field.description})" if field and field.description else ""
    schema = model.model_json_schema()["properties"].get(option, {}) if field else {}
    if item["type"] == "missing":
        return f".{option}: missing, {name} needs it; should be {describe_type(schema)}{text}"
    if item["type"] == "value_error":
        return f".{option} = {item['input']!r}: {item['msg'].removeprefix('Value error, ')}"
    value = f'"{item["input"]}"' if isinstance(item["input"], str) else str(item["input"])[:60]
    index = next((part for part in item["loc"] if isinstance(part, int)), None)
    if index is not None:
        lists = [part for part in (schema, *schema.get("anyOf", ())) if part.get("type") == "array"]
        kind = describe_type(lists[0]["items"]) if lists and "items" in lists[0] else "of another type"
        return f".{option}: item {index + 1} = {value}: should be {kind}{text}"
    return f".{option} = {value}: should be {describe_type(schema)}{text}"


def describe_type(schema: Mapping[str, Any]) -> str:
    """Describe the JSON schema of a key in words: type, choices and range."""
    if "anyOf" in schema:
        return " or ".join(describe_type(option) for option in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(
            f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in schema["enum"]
        )
    if "const" in schema:
        return f'"{schema["const"]}"'
    words = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false",
             "array": "a list", "object": "a table", "null": "absent"}  # fmt: skip
    bounds = {"minimum": "at least {}", "exclusiveMinimum": "greater than {}", "maximum": "at most {}",
              "exclusiveMaximum": "less than {}", "pattern": "matching {}", "minItems": "of at least {}"}  # fmt: skip
    kind = words.get(str(schema.get("type")), "a table")
    limits = [text.format(schema[key]) for key, text in bounds.items() if key in schema]
    return " ".join([kind, " and ".join(limits)]).strip()


# The form of a call, on a command line and in labels


def label_of(tree: Mapping[str, Any]) -> str:
    """Write a table with a name as `name(option=value, ...)`."""
    options = ", ".join(f"{key}={_toml(value)}" for key, value in tree.items() if key != "name")
    return f"{tree['name']}({options})" if options else str(tree["name"])


def _toml(value: Any, in_list: bool = False) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item, True) for item in value) + "]"
    if isinstance(value, str):
        is_bare = not in_list and BARE.fullmatch(value) and _value(value) == value
        return value if is_bare else json.dumps(value, ensure_ascii=False)
    return str(value)


BARE = re.compile(r"[\w./~:-]([\w ./~:-]*[\w./~:-])?")
"""Texts that need no quotes as the value of an option, unless they read as a number or another value."""
CALL = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*\((.*)\)\s*", re.DOTALL)


def parse_call(text: str) -> dict[str, Any]:
    """Read `name` or `name(option=value, ...)`; a value is TOML, and any other text is a string.

    Raises ValueError for other text.
    """
    match = CALL.fullmatch(text)
    if match is None:
        if re.match(r"\s*[A-Za-z]\w*\s*\([^)]*$", text):
            raise ValueError(f"{text.strip()}: a bracket is open; should be name(option=value)")
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
