"""The report of a contract check: a line per check, and what broke with numbers."""

import functools
import random
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import isnan
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from airpfed.config.choice import KINDS
from airpfed.core.errors import UserError, one_line
from airpfed.core.rows import NAME, RowDict, label_of

Outcome = Literal["pass", "FAIL", "skip"]


class BrokenContractError(AssertionError):
    """A check that fails; the text says what is wrong, where, and by how much."""


class CheckSkipped(Exception):  # noqa: N818
    """A check that does not apply to a row; the text says why."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check. detail: what was measured, or what is wrong."""

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Report:
    """The outcome of all checks of a row. `print(report)` shows a line per check.

    subject: kind, name and options of the row.
    """

    subject: str
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no check fails."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The checks that fail."""
        return tuple(result for result in self.results if result.outcome == "FAIL")

    def __str__(self) -> str:
        """Write a headline, and a line per check."""
        count = sum(result.outcome != "skip" for result in self.results)
        verdict = f"{len(self.failures)} of {count} checks fail" if self.failures else f"all {count} checks pass"
        width = max((len(result.name) for result in self.results), default=0)
        lines = [f"  {r.outcome}  {r.name:<{width}}  {r.detail}".rstrip() for r in self.results]
        return "\n".join([f"{self.subject}: {verdict}", *lines])

    def raise_if_failed(self) -> None:
        """Raise AssertionError with the checks that fail, one a line, if there are any."""
        if self.failures:
            lines = [f"  {result.name}: {result.detail}" for result in self.failures]
            raise BrokenContractError("\n".join([f"{self.subject} breaks its contract", *lines]))


@dataclass(frozen=True)
class Subject:
    """A row to check.

    name: of the row. label: kind, name and options. function: the row's function with its options set. options: the
    value of every option.
    """

    name: str
    label: str
    row: Any
    function: Callable[..., Any]
    options: Mapping[str, Any]


def subject_of(kind: str, row: Any, options: Mapping[str, Any]) -> Subject:
    """The subject of a row, as the public dict of its kind would hold it.

    kind: a key of `config.choice.KINDS`. row: a row, a function, or the name of a row of the public dict. Raises
    UserError for a row that the dict would refuse, and for wrong options.
    """
    table = KINDS[kind].rows
    name = row if isinstance(row, str) else _name_of(row, table)
    single = RowDict(table.noun, {}, wrap=table.wrap, function=table.function)
    single[name] = table.find(name) if isinstance(row, str) else row
    try:
        values, function = single.resolve(name, options), single.bind(name, options)
    except UserError as error:
        raise UserError(f"{table.noun} {name}{error}") from None
    return Subject(name, f"{table.noun} {label_of({'name': name, **options})}", single[name], function, values)


def _name_of(row: Any, table: RowDict[Any]) -> str:
    """The name of a row's function; the kind of row if the function has no name that a settings file could hold."""
    function: Any = row if not hasattr(row, "__dataclass_fields__") else table.function(row)
    function = function.func if isinstance(function, functools.partial) else function
    name = getattr(function, "__name__", "")
    return name if NAME.fullmatch(name) else table.noun


def run_checks(subject: Subject, checks: Sequence[tuple[str, Callable[[], str]]]) -> Report:
    """Run the checks of a row one after another.

    checks: names and functions. A function returns what it measured; it raises BrokenContractError, or CheckSkipped.
    Any other exception fails the check as well, because it comes from the row.
    """
    return Report(subject.label, tuple(_run(name, check) for name, check in checks))


def _run(name: str, check: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, "pass", check())
    except BrokenContractError as error:
        return CheckResult(name, "FAIL", str(error))
    except CheckSkipped as skipped:
        return CheckResult(name, "skip", str(skipped))
    except Exception as error:
        return CheckResult(name, "FAIL", describe_exception(error))


def describe_exception(error: BaseException) -> str:
    """The type, text and last line of code of an exception, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    line = f" ({frames[-1].filename.rpartition('/')[2]}, line {frames[-1].lineno})" if frames else ""
    return f"raises {type(error).__name__}: {one_line(error)[:200]}{line}"


def require(condition: bool, text: str) -> None:
    """Raise BrokenContractError with the text unless the condition holds."""
    if not condition:
        raise BrokenContractError(text)


def check_declarations(row: Any, **choices: Any) -> str:
    """Check that the fields of a row have values that exist. choices: name of a field -> its Literal type."""
    for name, literal in choices.items():
        value, values = getattr(row, name), get_args(literal)
        require(
            value in values, f"{name} is {value!r}; should be one of {', '.join(f'{choice!r}' for choice in values)}"
        )
    return ", ".join(f'{name} = "{getattr(row, name)}"' for name in choices)


def largest_relative_difference(values: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the expected entries, infinite if only one of the two is finite."""
    if values.shape != expected.shape:
        return float("inf")
    difference = (values - expected).abs() / expected.abs().clamp_min(1e-300)
    difference = torch.where(values == expected, torch.zeros_like(difference), difference)
    largest = float(difference.max()) if difference.numel() else 0.0
    return float("inf") if isnan(largest) else largest


def largest_z(samples: Tensor) -> float:
    """The largest mean over rows in units of its standard error, rows being independent draws.

    A column whose entries are all 0 counts as 0; a constant column that is not 0 counts as infinite.
    """
    samples = samples.double().reshape(len(samples), -1)
    mean, error = samples.mean(0).abs(), samples.std(0) / len(samples) ** 0.5
    z = torch.where(mean == 0, 0.0, mean / error.clamp_min(1e-300))  # NaN stays NaN
    return float("inf") if bool(z.isnan().any()) else float(z.max())


def with_global_seeds(function: Callable[[], Any]) -> tuple[Any, Any]:
    """Call a function twice, with unlike states of the global generators of torch, numpy and Python; restore them."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    results = []
    try:
        with torch.random.fork_rng(devices=[]):
            for seed in (0, 1):
                torch.manual_seed(seed)
                np.random.seed(seed)
                random.seed(seed)
                results.append(function())
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
    return results[0], results[1]


def clone_tensors(value: Any) -> Any:
    """A copy of a tensor, of a mapping or sequence of tensors, or of a dataclass with fields of tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: clone_tensors(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(clone_tensors(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: clone_tensors(getattr(value, f.name)) for f in fields(value) if f.init})
    return value


def tensors_equal(first: Any, second: Any) -> bool:
    """Whether two values that `clone_tensors` takes have tensors that are equal bit for bit; NaN equals NaN."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        return bool(((first == second) | (first.isnan() & second.isnan())).all())
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(tensors_equal(first[key], second[key]) for key in first)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return len(first) == len(second) and all(map(tensors_equal, first, second))
    if is_dataclass(first) and is_dataclass(second):
        return all(tensors_equal(getattr(first, f.name), getattr(second, f.name)) for f in fields(first))
    return bool(first == second)
