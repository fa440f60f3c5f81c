"""The contract of metrics: our rows keep it, and a metric of a user that breaks it is told how."""

import importlib.util
import random

import pytest

from airpfed import testing
from airpfed.tasks.metrics import METRICS, Metric


@pytest.mark.parametrize("name", METRICS)
def test_our_metrics_keep_the_contract(name):
    module = METRICS[name].module
    if module and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    report = testing.check_metric(name)
    assert report.ok, str(report)


def within(predicted, correct, *, distance: int = 0):
    """A metric as a user would write it."""
    pairs = list(zip(predicted, correct, strict=True))
    return sum(abs(guess - label) <= distance for guess, label in pairs) / len(pairs)


def test_a_users_function():
    report = testing.check_metric(Metric(within, "classify"), distance=0)
    assert report.ok, str(report)
    assert str(report).startswith("metric within(distance=0): all 11 checks pass")


def percent(predicted, correct):
    return 100 * within(predicted, correct)


def error_rate(predicted, correct):
    return 1 - within(predicted, correct)


def drops_the_last(predicted, correct):
    return sum(a == b for a, b in zip(predicted, correct, strict=False)) / len(correct)


def sorts_in_place(predicted, correct):
    pairs = sorted(zip(predicted, correct, strict=True))
    if isinstance(predicted, list):
        predicted.sort()
    return sum(a == b for a, b in pairs) / len(pairs)


def weighted_by_place(predicted, correct):
    right = [a == b for a, b in zip(predicted, correct, strict=True)]
    return sum((n + 1) * flag for n, flag in enumerate(right)) / sum(range(1, len(right) + 1))


def sampled(predicted, correct):
    return within(predicted, correct) * random.uniform(0.9, 1.0)


def as_text(predicted, correct):
    return f"{within(predicted, correct):.3f}"


def as_array(predicted, correct):
    return (predicted == correct) * 1.0 if isinstance(predicted, tuple) else 0.5


def of_two_classes(predicted, correct):
    pairs = list(zip(predicted, correct, strict=True))
    return sum(a == b for a, b in pairs if b != 2) / sum(b != 2 for _, b in pairs)


def forgives_silence(predicted, correct):
    pairs = [(a, b) for a, b in zip(predicted, correct, strict=True) if a >= 0]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0


@pytest.mark.parametrize(
    ("metric", "check", "words"),
    [
        (percent, "range", "good answers give 100; should be from 0 to 1"),
        (error_rate, "right answers are best", "larger should be better"),
        (drops_the_last, "unequal lengths", "zip(..., strict=True)"),
        (sorts_in_place, "arguments are not changed", "the metric changes the predictions"),
        (weighted_by_place, "order of the samples", "for the same samples in another order"),
        (sampled, "deterministic", "two calls give"),
        (as_text, "gives a number", "should be a finite number"),
        (as_array, "lists and tuples", "tuples give"),
        (of_two_classes, "one class, one sample", "ZeroDivisionError"),
        (forgives_silence, "no answer", "answers -1 give 1, and right ones 1"),
    ],
)
def test_a_planted_fault_is_named(metric, check, words):
    report = testing.check_metric(Metric(metric, "classify"))
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]


def test_a_metric_of_texts_that_cannot_read_empty_ones():
    def first_word(predicted, correct):
        return sum(a.split()[0] == b.split()[0] for a, b in zip(predicted, correct, strict=True)) / len(correct)

    report = testing.check_metric(Metric(first_word, "generate"))
    assert [result.name for result in report.failures] == ["no answer"]


def test_a_perplexity_that_says_larger_is_better():
    row = METRICS["perplexity"]
    report = testing.check_metric(Metric(row.score, "generate", "likelihoods"))
    assert {"range", "right answers are best"} <= {result.name for result in report.failures}


def test_wrong_declarations():
    report = testing.check_metric(Metric(within, "regression"))  # type: ignore[arg-type]
    assert "kind is 'regression'" in {result.name: result.detail for result in report.failures}["declarations"]
