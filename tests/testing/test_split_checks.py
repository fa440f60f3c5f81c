"""The contract of splits: our rows keep it, and a split of a user that breaks it is told how."""

import numpy as np
import pytest

from airpfed import testing
from airpfed.tasks.split import SPLITS, SampleSplit

OPTIONS = {"column": {"column": "who"}}


@pytest.mark.parametrize("name", SPLITS)
def test_our_splits_keep_the_contract(name):
    report = testing.check_split(name, **OPTIONS.get(name, {}))
    assert report.ok, str(report)


def by_length(samples, counts, rng, *, longest_first: bool = True):
    """A split as a user would write it."""
    order = sorted(range(len(samples)), key=lambda n: len(samples[n].prompt), reverse=longest_first)
    ends = np.cumsum(counts)
    return [order[end - count : end] for end, count in zip(ends, counts, strict=True)]


def test_a_users_function():
    report = testing.check_split(by_length, longest_first=False)
    assert report.ok, str(report)
    assert str(report).startswith("split by_length(longest_first=false): all 7 checks pass")


def with_replacement(samples, counts, rng):
    return [rng.integers(len(samples), size=count).tolist() for count in counts]


def one_short(samples, counts, rng):
    return [part[:-1] or part for part in by_length(samples, counts, rng)]


def leaves_a_device_out(samples, counts, rng):
    return by_length(samples, counts, rng)[:-1]


def global_numbers(samples, counts, rng):
    order = np.random.permutation(len(samples)).tolist()
    return [order[end - count : end] for end, count in zip(np.cumsum(counts), counts, strict=True)]


def shrinks_counts(samples, counts, rng):
    counts -= counts // 2
    return by_length(samples, counts, rng)


def gives_samples(samples, counts, rng):
    return [[samples[n] for n in part] for part in by_length(samples, counts, rng)]


def halves(samples, counts, rng):
    return [[float(n) for n in part] for part in by_length(samples, counts, rng)]


@pytest.mark.parametrize(
    ("split", "check", "words"),
    [
        (with_replacement, "every device has samples, none twice", "none twice"),
        (one_short, "sizes", "devices have [2, 11, 6, 24, 1] samples; [3, 12, 7, 25, 1] were asked for"),
        (leaves_a_device_out, "every device has samples, none twice", "it gave 4 parts"),
        (global_numbers, "random numbers", "draw from `rng` alone"),
        (shrinks_counts, "arguments are not changed", "changes its counts in place"),
        (gives_samples, "every device has samples, none twice", "should give a list of indices"),
        (halves, "every device has samples, none twice", "should be a whole number"),
    ],
)
def test_a_planted_fault_is_named(split, check, words):
    report = testing.check_split(split)
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]


def test_a_split_by_value_that_mixes_values():
    report = testing.check_split(SampleSplit(by_length, by_value=True))
    assert "values" in {result.name for result in report.failures}
