"""Metrics of predictions by name.

A metric is a function `(predicted, correct, *, options) -> float`, from 0 to 1, larger is better. Both arguments hold
class indices (classify) or texts (generate). All raise ValueError without predictions and for unequal lengths.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from airpfed.core.rows import RowDict


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


def macro_f1(predicted: Sequence[int], labels: Sequence[int]) -> float:
    """Mean over the classes in `labels` of F1, 2 TP / (2 TP + FP + FN)."""
    pairs = list(zip(predicted, labels, strict=True))

    def f1(c: int) -> float:
        right = sum(guess == label == c for guess, label in pairs)
        return 2 * right / sum((guess == c) + (label == c) for guess, label in pairs)

    return _mean([f1(c) for c in sorted(set(labels))])


def auto(predicted: Sequence[Any], correct: Sequence[Any]) -> float:
    """Accuracy of classes, exact match of texts."""
    return exact_match(predicted, correct) if isinstance(next(iter(correct), 0), str) else accuracy(predicted, correct)


@dataclass(frozen=True)
class Metric:
    """A metric. score: (predicted, correct, *, options) -> value. kind: the tasks that it can score; None for both.

    >>> import airpfed as ap
    >>> ap.METRICS["macro_f1"].score([0, 1, 1], [0, 1, 0])
    0.6666666666666666
    """

    score: Callable[..., float]
    kind: Literal["classify", "generate"] | None = None


METRICS: RowDict[Metric] = RowDict(
    "metric",
    {
        "auto": Metric(auto),
        "accuracy": Metric(accuracy, "classify"),
        "balanced_accuracy": Metric(balanced_accuracy, "classify"),
        "macro_f1": Metric(macro_f1, "classify"),
        "exact_match": Metric(exact_match, "generate"),
    },
    wrap=Metric,
    function=lambda row: row.score,
)
"""The metrics that `tasks.metric` knows."""
