"""Metrics of predictions, each in 0..1. All raise ValueError on no predictions and on unequal lengths."""

import unicodedata
from collections.abc import Sequence


def accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Share of predictions that are the label."""
    return _mean([guess == label for guess, label in zip(predicted, labels, strict=True)])


def balanced_accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Mean over the classes that occur in `labels` of the share of that class that is predicted right."""
    pairs = list(zip(predicted, labels, strict=True))
    return _mean([_mean([guess == label for guess, label in pairs if label == one]) for one in sorted(set(labels))])


def exact_match(predicted: Sequence[str], answers: Sequence[str]) -> float:
    """Share of texts that equal the answer, white space at both ends aside and however accents are composed (NFC)."""
    return _mean([_plain(guess) == _plain(answer) for guess, answer in zip(predicted, answers, strict=True)])


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _mean(values: Sequence[bool] | Sequence[float]) -> float:
    if not values:
        raise ValueError("no predictions to score")
    return sum(values) / len(values)
