"""Grids of settings (`--grid`): the axes, and all combinations of their values.

An axis is written `section.key=a,b,c`. A value may be a range `first:last:step`, both ends included. Keys that change
together are joined by a slash, like their values: `adapters.rank_shared/adapters.rank_personal=8/0,4/4`.
"""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from numbers import Integral

from airpfed.core.errors import UserError
from airpfed.core.rows import split_outside_brackets

Point = tuple[str, ...]
"""A point of the grid: `axis=value` for each axis."""

MAX_POINTS = 10_000
"""Values of a range, and points of a grid. A typing error should not fill the memory."""
MAX_COUNT = 100_000
"""Draws, seeds or workers."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER}):({_NUMBER}):({_NUMBER})")


def axes_of(grid: Sequence[str], option: str = "--grid") -> dict[str, list[str]]:
    """Map each axis to its values as written, with ranges expanded.

    Raises UserError if an axis has no values, or if a key or value appears twice.
    """
    axes: dict[str, list[str]] = {}
    for axis in grid:
        key, equals, values = (part.strip() for part in axis.partition("="))
        source = f"{option} {axis}"
        if not equals or not values:
            raise UserError(f"{source}: should be section.key=a,b,c, e.g. {option} radio.snr_db=0,10,20")
        if repeated := set(key.split("/")) & {part for other in axes for part in other.split("/")}:
            raise UserError(f"{source}: {min(repeated)} occurs in another {option} too: give all its values in one")
        axes[key] = [
            expanded for value in split_outside_brackets(values) for expanded in _expand(value.strip(), source)
        ]
        twice = [value for value in axes[key] if axes[key].count(value) > 1]
        if twice:
            raise UserError(f"{source}: the value {twice[0]} occurs twice")
        for value in axes[key] if "/" in key else []:
            if len(split_outside_brackets(value, "/")) != key.count("/") + 1:
                raise UserError(
                    f"{source}: {value} should be {key.count('/') + 1} values joined by slashes, as the keys"
                )
    return axes


def _expand(text: str, source: str) -> list[str]:
    """Return the values of a range, or the text itself."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return [text]
    try:
        first, last, step = (Decimal(part) for part in match.groups())
        is_valid = step != 0 and (last - first) * step >= 0 and (last - first) / step < MAX_POINTS
        if is_valid and max(abs(first), abs(last), 1 / abs(step)) < Decimal("1e300"):
            return [f"{(first + k * step).normalize():f}" for k in range(int((last - first) / step) + 1)]
    except ArithmeticError:  # exponents of a million
        pass
    raise UserError(f"{source}: {text} should be first:last:step, a step that leads from the first to the last")


def check_count(option: str, value: int) -> None:
    """Raise UserError unless an option's count is a whole number from 1 to MAX_COUNT."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UserError(f"{option} {value!r}: should be a whole number")
    if value < 1:
        raise UserError(f"{option} {value}: should be at least 1")
    if value > MAX_COUNT:
        raise UserError(f"{option} {value}: should be at most {MAX_COUNT}")


def grid_points(axes: dict[str, list[str]]) -> list[Point]:
    """List all combinations of the axes' values, the last axis fastest. Raises UserError beyond MAX_POINTS."""
    if (count := math.prod(len(values) for values in axes.values())) > MAX_POINTS:
        raise UserError(f"--grid: {count} combinations of {', '.join(axes)}; should be at most {MAX_POINTS}")
    return list(itertools.product(*([f"{key}={value}" for value in values] for key, values in axes.items())))


def overrides_of(point: Point) -> list[str]:
    """Write a point as `section.key=value` overrides, with joined keys separated."""
    overrides = []
    for axis in point:
        key, value = axis.split("=", 1)
        pairs = zip(key.split("/"), split_outside_brackets(value, "/"), strict=True) if "/" in key else [(key, value)]
        overrides += [f"{name}={part}" for name, part in pairs]
    return overrides


@contextmanager
def name_grid_point(point: Point) -> Iterator[None]:
    """Put the grid's point before every line of a UserError of the block."""
    try:
        yield
    except UserError as error:
        prefix = f"--grid at {' '.join(point)}: " if point else ""
        raise UserError("\n".join(prefix + line for line in str(error).splitlines())) from None
