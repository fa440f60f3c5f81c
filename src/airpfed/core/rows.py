"""Public dicts of rows: what varies has a name, and its options are the keyword-only parameters of one function.

DESIGNS = RowDict("design", {"mmse": Design(mmse)}, wrap=Design, function=lambda row: row.solve)
DESIGNS["mine"] = lambda problem: ...           # a bare function becomes a row
DESIGNS.resolve("mmse", {"starts": 4})          # -> every option, checked
"""

import functools
import inspect
import re
import tomllib
import types
import typing
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
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


class RowDict(UserDict[str, Row], Generic[Row]):
    """A dict of rows of one kind, which checks every row as it enters.

    noun: what a row is called in messages, such as "design". wrap: makes a row of a bare function. function: the
    function of a row whose keyword-only parameters are the row's options. Raises UserError for a name that is no
    identifier, and for a function whose options a settings file could not hold.
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
        super().__init__(rows)

    def __setitem__(self, name: str, row: Row | Callable[..., Any]) -> None:
        """Add a row, or make one of a function."""
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UserError(f"{self.noun} {name!r}: a name should be letters, digits and _, with a letter first")
        super().__setitem__(name, self.to_row(name, row))

    def to_row(self, name: str, row: Row | Callable[..., Any]) -> Row:
        """Return a row as it is, or make one of a function; check it as one that enters. name: for messages."""
        if inspect.isroutine(row) or (callable(row) and not hasattr(row, "__dataclass_fields__")):
            row = self.wrap(row)
        options_model(f"{self.noun} {name}", self.function(typing.cast(Row, row)))
        return typing.cast(Row, row)

    def name_of(self, row: Any) -> str | None:
        """Return the name of a row, given as the row or as its function; None if it is not in the dict."""
        return next((name for name, entry in self.items() if row is entry or row is self.function(entry)), None)

    def find(self, name: str) -> Row:
        """Return a row. Raises UserError with the nearest name, or all of them, if there is none."""
        if name not in self:
            raise UserError(f"should be one of {', '.join(self)}{hint(name, self)}")
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
            raise UserError(_option_error(name, model, error.errors()[0])) from None

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
        inner = function.func if isinstance(function, functools.partial) else function
        hints = typing.get_type_hints(inspect.unwrap(inner), include_extras=True)
    except (TypeError, ValueError, NameError) as error:
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
                TypeAdapter(annotation, config=ConfigDict(strict=True)).validate_python(default)
        except ValidationError:
            raise UserError(f"{source}: option {name} has the default {default!r}, which its type forbids") from None
    _MODELS[function] = create_model("Options", __base__=OptionsModel, **fields)
    return _MODELS[function]


def _is_settable(annotation: Any) -> bool:
    """Check whether a TOML file can hold every value of a type."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _is_settable(parts[0])
    if origin in (typing.Union, types.UnionType):
        return all(_is_settable(part) for part in parts)
    if origin is Literal:
        return all(isinstance(part, (bool, int, float, str)) for part in parts)
    if origin in (tuple, list, Sequence):
        return all(part is ... or _is_settable(part) for part in parts)
    return annotation in (bool, int, float, str, type(None))


def _lenient(annotation: Any) -> Any:
    """Allow a TOML list for a tuple; every other type stays strict."""
    inner = typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation
    if typing.get_origin(inner) in (tuple, Sequence):
        return Annotated[annotation, Field(strict=False)]
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


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value)


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
        if not equals or not key:
            raise ValueError(f"{part.strip()!r} should be written option=value")
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    return options


def split_outside_brackets(text: str, separator: str = ",") -> list[str]:
    """Split a text at separators outside round, square and curly brackets and quotes; no parts of an empty text."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        depth += 0 if quote else (char in "([{") - (char in ")]}")
        if char == separator and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return parts if text.strip() else []
