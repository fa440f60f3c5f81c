"""Metrics by hand."""

import pytest

from airpfed.tasks.metrics import accuracy, balanced_accuracy, exact_match


def test_accuracy_and_balanced_accuracy() -> None:
    labels, always_zero = [0, 0, 0, 1], [0, 0, 0, 0]
    assert accuracy(always_zero, labels) == 0.75
    assert balanced_accuracy(always_zero, labels) == 0.5
    assert balanced_accuracy([0, 0, 2, 1], labels) == pytest.approx((2 / 3 + 1) / 2)


def test_balanced_accuracy_counts_only_classes_that_occur() -> None:
    assert balanced_accuracy([5, 5], [5, 5]) == 1.0


def test_exact_match_strips_and_nothing_else() -> None:
    assert exact_match([" 42\n", "a  b", "Yes"], ["42", "a b", "yes"]) == pytest.approx(1 / 3)


def test_exact_match_does_not_see_how_accents_are_composed() -> None:
    assert exact_match(["caf\u00e9 ", "e\u0301"], ["cafe\u0301", "\u00e9"]) == 1.0
    assert exact_match(["\u00e9", "\u00b2"], ["e", "2"]) == 0.0


@pytest.mark.parametrize("metric", [accuracy, balanced_accuracy])
def test_nothing_to_score_is_an_error(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ValueError, match="no predictions"):
        metric([], [])
    with pytest.raises(ValueError):
        metric([1], [1, 2])
