"""Rows that do not come with the package: which of them settings choose, and a hash of their source.

A function given from Python is stored with a run as its name and this hash, so that a resumed run stands on the same
function. The code itself is not stored.
"""

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType
from typing import Any

from airpfed.config.choice import BY_KEY, KINDS
from airpfed.config.schema import Settings, choices_of
from airpfed.core.errors import UserError
from airpfed.core.rows import RowDict

PACKAGE = __name__.partition(".")[0]


def add_row(key: str, row: Any) -> str:
    """Add a function, or a row of its kind, to the public dict of a setting, and return its name.

    key: a setting of `config.choice.BY_KEY`, `radio.design`. A row of the package only gives its name. A row of the
    user's with the same name is replaced. Raises UserError if the row has no name, or that of a row of the package or
    of a plug-in.

    >>> from airpfed.config.user_rows import add_row
    >>> def halved_sgd(lr: float):
    ...     from airpfed.training.optimizers import sgd
    ...     return sgd(lr / 2)
    >>> add_row("server.optimizer", halved_sgd)
    'halved_sgd'
    """
    kind = BY_KEY[key]
    rows: RowDict[Any] = kind.rows
    if not callable(row) and not is_dataclass(row):
        raise UserError(
            f"{kind.noun}: should be a function or a row, not {row!r:.60}; a name belongs to the overrides, "
            f'{{"{key}": "NAME"}}'
        )
    function = rows.function(row) if is_dataclass(row) and not isinstance(row, type) else row
    for name, present in rows.items():
        if not is_user_function(function) and rows.function(present) is function:
            return name
    name = str(getattr(function, "__name__", type(function).__name__))
    if name in rows and not is_user_function(rows.function(rows[name])):
        raise UserError(f"{kind.noun} {name}: the package has a {kind.noun} of this name; call the function otherwise")
    if name in rows.origins:
        raise UserError(
            f"{kind.noun} {name}: the plug-in {rows.origins[name]} has one of this name; rename the function"
        )
    rows[name] = row
    return name


def user_functions(settings: Settings) -> dict[str, dict[str, str]]:
    """Map each setting that chooses a row from outside the package to `{"name": ..., "sha256": ...}` of the row.

    Without the rows of plug-ins, which are hashed as files.
    """
    functions = {}
    for key, choice in choices_of(settings).items():
        rows, row = KINDS[choice.kind].rows, choice.find_row()
        if row is not None and choice.name not in rows.origins and is_user_function(rows.function(row)):
            functions[key] = {"name": choice.name, "sha256": source_sha256(row)}
    return functions


def is_user_function(function: Any) -> bool:
    """Whether a row's function does not come with the package."""
    return _module(function).partition(".")[0] != PACKAGE


def source_sha256(row: Any) -> str:
    """Hash the source of a function, or of all functions and plain values of a row.

    The source is the text that `inspect.getsource` reads, or else the bytecode, which differs between versions of
    Python. Numbers and texts that a function takes from the function around it count too; global names that it uses do
    not.
    """
    return hashlib.sha256("\n".join(_parts(row)).encode(errors="backslashreplace")).hexdigest()


def _module(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(inspect.unwrap(function), "__module__", None) or "")


def _parts(value: Any) -> Iterator[str]:
    """Describe a value in texts that are equal for equal sources."""
    if isinstance(value, partial):
        yield from _parts(value.func)
        yield from _parts((*value.args, *sorted(value.keywords.items())))
    elif is_dataclass(value) and not isinstance(value, type):
        for item in fields(value):
            yield item.name
            yield from _parts(getattr(value, item.name))
    elif isinstance(value, (tuple, list)):
        for member in value:
            yield from _parts(member)
    elif callable(value):
        yield from _function_parts(value)
    else:
        yield repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__qualname__


def _function_parts(function: Callable[..., Any]) -> Iterator[str]:
    inner: Any = inspect.unwrap(function)
    if not is_user_function(inner):
        yield f"{inner.__module__}.{inner.__qualname__}"
        return
    if not (inspect.isroutine(inner) or isinstance(inner, type)):  # an object with a method `__call__`
        inner = type(inner)
    code = getattr(inner, "__code__", None)
    try:
        if getattr(inner, "__name__", "") == "<lambda>":  # its source is all of its line, and may be another's too
            raise OSError
        yield textwrap.dedent(inspect.getsource(inner))
    except (OSError, TypeError):
        yield from _code_parts(code) if code else [f"{inner.__module__}.{inner.__qualname__}"]
    for cell in getattr(inner, "__closure__", None) or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not yet filled
            continue
        if isinstance(content, (bool, int, float, str, tuple)):
            yield from _parts(content)


def _code_parts(code: CodeType) -> Iterator[str]:
    yield from (code.co_code.hex(), repr(code.co_names), repr(code.co_varnames))
    for constant in code.co_consts:
        yield from _code_parts(constant) if isinstance(constant, CodeType) else [repr(constant)]
