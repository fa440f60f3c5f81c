"""`airpfed list`: the rows of the public dicts, with their options, as lines."""

from collections.abc import Iterator
from typing import Any

from airpfed.config.choice import KINDS, Kind
from airpfed.core.errors import UserError, hint
from airpfed.core.rows import Option, label_of, summary_line


def list_rows(kinds: list[str]) -> Iterator[str]:
    """Write the lines of some kinds of rows, all by default. Raises UserError if there is no such kind."""
    for name in kinds:
        if name not in KINDS:
            raise UserError(f"airpfed list {name}: should be one of {', '.join(KINDS)}{hint(name, KINDS)}")
    for name in kinds or KINDS:
        yield from _lines_of(KINDS[name])


def _lines_of(kind: Kind) -> Iterator[str]:
    yield f"{kind.name} ({kind.key})"
    rows = kind.rows
    width = max(map(len, rows), default=0)
    if not rows:
        yield "  none; a plug-in adds them"
    for name, row in rows.items():
        yield f"  {name:<{width}}  {summary_line(rows.function(row))}".rstrip()
        for option in rows.options(name):
            yield f"  {'':<{width}}    {describe_option(option)}"
    yield ""


def describe_option(option: Option) -> str:
    """Write an option in a line: name, default, type, meaning."""
    default = "required" if option.default is ... else f"= {_value(option.default)}"
    text = f"{option.name} {default}: {option.accepts}"
    return f"{text} ({option.meaning})" if option.meaning else text


def _value(value: Any) -> str:
    return "absent" if value is None else f'"{value}"' if isinstance(value, str) else label_of({"name": value})
