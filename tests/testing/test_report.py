"""Reports: what they print, what counts as a failure, and the measures that checks share."""

import random

import numpy as np
import pytest
import torch

from airpfed.testing.report import (
    BrokenContractError,
    CheckSkipped,
    Report,
    Subject,
    largest_relative_difference,
    largest_z,
    run_checks,
    tensors_equal,
    with_global_seeds,
)

SUBJECT = Subject("mine", "design mine", None, print, {})


def broken() -> str:
    raise BrokenContractError("2 is not 1")


def skipped() -> str:
    raise CheckSkipped("not claimed")


def crashes() -> str:
    raise ValueError("no\nluck")


def test_a_line_per_check():
    report = run_checks(SUBJECT, [("one", lambda: "1"), ("two", broken), ("three", skipped), ("four", crashes)])
    lines = str(report).splitlines()
    assert lines[:4] == [
        "design mine: 2 of 3 checks fail",
        "  pass  one    1",
        "  FAIL  two    2 is not 1",
        "  skip  three  not claimed",
    ]
    assert lines[4].startswith("  FAIL  four   raises ValueError: no luck (test_report.py, line ")
    assert len(lines) == 5 and not report.ok
    with pytest.raises(AssertionError, match=r"design mine breaks its contract\n  two: 2 is not 1\n  four: raises"):
        report.raise_if_failed()


def test_skipped_checks_are_no_failure():
    report = run_checks(SUBJECT, [("one", lambda: ""), ("two", skipped)])
    assert report.ok and str(report).startswith("design mine: all 1 checks pass")
    report.raise_if_failed()
    assert Report("design mine", ()).ok


def test_differences_and_deviations():
    ones = torch.ones(3)
    assert largest_relative_difference(ones, ones) == 0
    assert largest_relative_difference(1.5 * ones, ones) == 0.5
    assert largest_relative_difference(torch.tensor([1.0, torch.nan, 1.0]), ones) == float("inf")
    assert largest_relative_difference(ones[:2], ones) == float("inf")
    draws = torch.tensor([[1.0, -1.0], [3.0, 1.0]])
    assert largest_z(draws) == pytest.approx(2 / (2**0.5 / 2**0.5))
    assert largest_z(torch.zeros(4, 2)) == 0
    assert largest_z(torch.full((4, 2), torch.nan)) == float("inf")


def test_equal_bits():
    nan = torch.tensor([1.0, torch.nan])
    assert tensors_equal({"a": (nan, 1)}, {"a": (nan.clone(), 1)})
    assert not tensors_equal({"a": nan}, {"b": nan})
    assert not tensors_equal(nan, nan.double())
    assert not tensors_equal((nan,), (nan, nan))
    assert not tensors_equal(SUBJECT, Subject("mine", "design mine", nan, print, {}))
    assert tensors_equal(SUBJECT, SUBJECT)


def test_global_generators_go_on_as_before():
    draw = [lambda: float(torch.rand(1)), lambda: float(np.random.rand()), random.random]
    for function in draw:
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        expected = function()
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        first, second = with_global_seeds(function)
        assert first != second
        assert function() == expected
