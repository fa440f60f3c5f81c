"""`--grid`: what is varied, and every combination of it.

An axis is written `section.key=a,b,c`, a value also as a range `first:last:step` (both ends belong to it). Keys that
change together are joined by a slash, and so are their values: `adapters.rank_shared/adapters.rank_personal=8/0,4/4`.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal

from airpfed.core.errors import UserError

Point = tuple[str, ...]
"""A point of the grid as `axis=value`, one an axis."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER}):({_NUMBER})")
MOST = 10_000
"""Values of a range, and points of a grid: a slip of the pen should not fill the memory."""

MOST_COUNTED = 100_000
"""Draws, seeds or workers."""


def axes_of(grid: Sequence[str], option: str = "--grid") -> dict[str, list[str]]:
    """Axis -> its values as given, ranges written out; raises UserError where one has none or one stands twice."""
    axes: dict[str, list[str]] = {}
    for axis in grid:
        key, equals, values = (part.strip() for part in axis.partition("="))
        where = f"{option} {axis}"
        if not equals or not values:
            raise UserError(f"{where}: should be section.key=a,b,c, e.g. {option} radio.snr_db=0,10,20")
        if taken := set(key.split("/")) & {one for other in axes for one in other.split("/")}:
            raise UserError(f"{where}: {min(taken)} stands twice: give all its values in one {option}")
        axes[key] = [one for value in values.split(",") for one in _values(value.strip(), where)]
        twice = [value for value in axes[key] if axes[key].count(value) > 1]
        if twice:
            raise UserError(f"{where}: {twice[0]} stands twice")
        for value in axes[key] if "/" in key else []:
            if value.count("/") != key.count("/"):
                raise UserError(
                    f"{where}: {value} should be {key.count('/') + 1} values joined by slashes, as the keys"
                )
    return axes


def _values(text: str, where: str) -> list[str]:
    """One value, or a range's."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return [text]
    try:
        first, last, step = (Decimal(part) for part in match.groups())
        leads = step != 0 and (last - first) * step >= 0 and (last - first) / step < MOST
        if leads and max(abs(first), abs(last), 1 / abs(step)) < Decimal("1e300"):
            return [f"{(first + k * step).normalize():f}" for k in range(int((last - first) / step) + 1)]
    except ArithmeticError:  # exponents of a million
        pass
    raise UserError(f"{where}: {text} should be first:last:step, a step that leads from the first to the last")


def counted(option: str, value: int) -> None:
    """UserError unless an option's count is from 1 to MOST_COUNTED."""
    if value < 1:
        raise UserError(f"{option} {value}: should be at least 1")
    if value > MOST_COUNTED:
        raise UserError(f"{option} {value}: should be at most {MOST_COUNTED}")


def points(axes: dict[str, list[str]]) -> list[Point]:
    """All combinations of the axes' values, the last axis fastest; UserError where they are more than MOST."""
    if (count := math.prod(len(values) for values in axes.values())) > MOST:
        raise UserError(f"--grid: {count} combinations of {', '.join(axes)}; should be at most {MOST}")
    return list(itertools.product(*([f"{key}={value}" for value in values] for key, values in axes.items())))


def changes(point: Point) -> list[str]:
    """A point as `section.key=value` overrides, joined keys one by one."""
    pairs = [axis.split("=", 1) for axis in point]
    return [f"{key}={one}" for keys, value in pairs for key, one in _joined(keys, value)]


def _joined(keys: str, value: str) -> list[tuple[str, str]]:
    if "/" not in keys:
        return [(keys, value)]
    return list(zip(keys.split("/"), value.split("/"), strict=True))


@contextmanager
def at(point: Point) -> Iterator[None]:
    """Put the grid's point before every line of a UserError."""
    try:
        yield
    except UserError as error:
        where = f"--grid at {' '.join(point)}: " if point else ""
        raise UserError("\n".join(where + line for line in str(error).splitlines())) from None
