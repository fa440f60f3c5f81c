"""Runtime checks of shapes and types in tests: of each function's first calls, for some pass it by the ten thousand."""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from typing import Any

from beartype import beartype

CALLS = 8
"""Checked of each function in each test; checks take longer than what small functions do."""

seen: Counter[tuple[str, str]] = Counter()
resting: list[Any] = []


def begin() -> None:
    """A test begins: every function is checked again."""
    seen.clear()
    while resting:
        vars(resting.pop()).pop("__no_type_check__", None)


def first_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """A typechecker for jaxtyping: `beartype`, and from CALLS on jaxtyping is told to leave the function alone."""
    checked: Callable[..., Any] = beartype(function)
    place = function.__module__, function.__qualname__

    def one(*args: Any, **kwargs: Any) -> Any:
        seen[place] += 1
        if seen[place] == 2 * CALLS:  # once for the arguments, once with what is returned
            rest(*place)
        return (checked if seen[place] <= 2 * CALLS else function)(*args, **kwargs)

    return one


def rest(module: str, path: str) -> None:
    """Leave a function alone until the test ends; one within a function cannot be found."""
    with suppress(AttributeError, TypeError):
        found: Any = reduce(getattr, path.split("."), sys.modules[module])
        found = found.fget if isinstance(found, property) else found
        found.__no_type_check__ = True
        resting.append(found)
