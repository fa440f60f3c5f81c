"""Metrics of predictions, from 0 to 1. All raise ValueError without predictions and for unequal lengths."""

import unicodedata
from collections.abc import Sequence


def accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Share of correct predictions."""
    return _mean([guess == label for guess, label in zip(predicted, labels, strict=True)])


def balanced_accuracy(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Mean over the classes in `labels` of the share of correct predictions within the class."""
    pairs = list(zip(predicted, labels, strict=True))
    return _mean([_mean([guess == label for guess, label in pairs if label == c]) for c in sorted(set(labels))])


def exact_match(predicted: Sequence[str], answers: Sequence[str]) -> float:
    """Share of texts that equal the answer, without white space at both ends and in composed Unicode form (NFC)."""

    def normalize(text: str) -> str:
        return unicodedata.normalize("NFC", text).strip()

    return _mean([normalize(guess) == normalize(answer) for guess, answer in zip(predicted, answers, strict=True)])


def _mean(values: Sequence[bool] | Sequence[float]) -> float:
    if not values:
        raise ValueError("no predictions to score")
    return sum(values) / len(values)
