"""Runtime checks of shapes and types in tests: of each function's first calls, for some run ten thousand times."""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from typing import Any

CALLS = 8
"""Calls of each function that are checked in each module of tests; a check takes longer than a small function does."""

counts: Counter[tuple[str, str]] = Counter()
unchecked: list[Any] = []


def rearm() -> None:
    """Check the first calls of every function again."""
    counts.clear()
    while unchecked:
        vars(unchecked.pop()).pop("__no_type_check__", None)


def first_calls(function: Callable[..., Any]) -> Callable[..., Any]:
    """A typechecker for jaxtyping: `beartype`, and after CALLS calls jaxtyping is told to leave the function alone.

    The check is compiled at the first call: a process imports many functions that it never calls.
    """
    check: Callable[..., Any] | None = None
    name = function.__module__, function.__qualname__

    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal check
        counts[name] += 1
        if counts[name] == 2 * CALLS:  # once for the arguments, once with the result
            disarm(*name)
        if counts[name] > 2 * CALLS:
            return function(*args, **kwargs)
        if check is None:
            from beartype import beartype

            check = beartype(function)
        return check(*args, **kwargs)

    return checked


def disarm(module: str, path: str) -> None:
    """Check a function no more until `rearm`; a function within a function has no name to find it by."""
    with suppress(AttributeError, TypeError):
        function: Any = reduce(getattr, path.split("."), sys.modules[module])
        function = function.fget if isinstance(function, property) else function
        function.__no_type_check__ = True
        unchecked.append(function)
