"""Metrics of predictions by name.

A metric is a function `(predicted, correct, *, options) -> float`. Both arguments hold class indices (classify) or
texts (generate, chat); a metric of likelihoods gets the log-likelihoods of the right answers and their numbers of
tokens. All but perplexity are from 0 to 1, larger is better. All raise ValueError without predictions and for unequal
lengths.
"""

import importlib
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from airpfed.core.errors import UserError
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


def token_f1(
    predicted: Sequence[str],
    answers: Sequence[str],
    *,
    normalise: Annotated[
        bool, Field(description="compare words in lower case, without punctuation and English articles")
    ] = True,
) -> float:
    """Mean over texts of F1 of the words that prediction and answer share (Rajpurkar et al., SQuAD, 2016).

    A word counts as often as it stands in both. Two texts without words agree.
    """

    def words(text: str) -> Counter[str]:
        text = unicodedata.normalize("NFC", text)
        if normalise:
            text = _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION))
        return Counter(text.split())

    def f1(guess: Counter[str], answer: Counter[str]) -> float:
        total = guess.total() + answer.total()
        return 2 * (guess & answer).total() / total if total else 1.0

    return _mean([f1(words(guess), words(answer)) for guess, answer in zip(predicted, answers, strict=True)])


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l(
    predicted: Sequence[str],
    answers: Sequence[str],
    *,
    stemmer: Annotated[bool, Field(description="compare the stems of English words")] = False,
) -> float:
    """Mean over texts of ROUGE-L, F1 of the longest common subsequence of words (Lin, 2004; package rouge-score)."""
    scorer = import_package("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=stemmer)
    pairs = zip(predicted, answers, strict=True)
    return _mean([float(scorer.score(answer, guess)["rougeL"].fmeasure) for guess, answer in pairs])


def chrf(
    predicted: Sequence[str],
    answers: Sequence[str],
    *,
    word_order: Annotated[int, Field(ge=0, le=6, description="longest n-gram of words; 2: chrF++")] = 0,
) -> float:
    """Corpus chrF of n-grams of characters (Popovic, 2015; package sacrebleu), divided by 100."""
    _check_texts(predicted, answers)
    metric = import_package("sacrebleu.metrics").CHRF(word_order=word_order)
    return float(metric.corpus_score(list(predicted), [list(answers)]).score) / 100


def bleu(
    predicted: Sequence[str],
    answers: Sequence[str],
    *,
    lowercase: Annotated[bool, Field(description="compare in lower case")] = False,
) -> float:
    """Corpus BLEU with the 13a tokenisation (Papineni et al., 2002; Post, 2018; package sacrebleu), divided by 100."""
    _check_texts(predicted, answers)
    metric = import_package("sacrebleu.metrics").BLEU(lowercase=lowercase)
    return min(1.0, float(metric.corpus_score(list(predicted), [list(answers)]).score) / 100)


def _check_texts(predicted: Sequence[str], answers: Sequence[str]) -> None:
    """Raise ValueError for no texts, and for unequal numbers of texts."""
    _mean([0.0 for _ in zip(predicted, answers, strict=True)])


def import_package(module: str) -> Any:
    """A module of an optional package. Raises UserError that names the extra where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = PACKAGES[module.partition(".")[0]]
        raise UserError(f'needs the package {package}; run pip install "airpfed[metrics]"') from None


PACKAGES = {"rouge_score": "rouge-score", "sacrebleu": "sacrebleu"}
"""Module -> package of the extra `metrics`."""

MAX_NATS = 100.0
"""Largest mean loss of a token in a perplexity: a larger or undefined loss counts as this one."""


def perplexity(log_likelihoods: Sequence[float], tokens: Sequence[int]) -> float:
    """exp of the mean loss of an answer's token, over all tokens of all answers; smaller is better.

    log_likelihoods: of each right answer in nats. tokens: their numbers of tokens. A model whose likelihoods are not
    finite has the perplexity exp(MAX_NATS).
    """
    _mean([0.0 for _ in zip(log_likelihoods, tokens, strict=True)])
    loss = -sum(log_likelihoods) / sum(tokens)
    return math.exp(loss if loss < MAX_NATS else MAX_NATS)


def auto(predicted: Sequence[Any], correct: Sequence[Any]) -> float:
    """Accuracy of classes, exact match of texts."""
    return exact_match(predicted, correct) if isinstance(next(iter(correct), 0), str) else accuracy(predicted, correct)


MetricInput = Literal["answers", "likelihoods"]


@dataclass(frozen=True)
class Metric:
    """A metric. score: (predicted, correct, *, options) -> value. kind: the tasks that it can score; None for all.

    "generate" stands for every kind whose answers are texts, chats too. reads: `answers` of the model and right
    answers, or the log-`likelihoods` of the right answers and their numbers of tokens. larger_is_better: the direction
    in which a sweep tunes. module: of an optional package that it needs.

    >>> import airpfed as ap
    >>> ap.METRICS["macro_f1"].score([0, 1, 1], [0, 1, 0])
    0.6666666666666666
    """

    score: Callable[..., float]
    kind: Literal["classify", "generate"] | None = None
    reads: MetricInput = "answers"
    larger_is_better: bool = True
    module: str = ""


METRICS: RowDict[Metric] = RowDict(
    "metric",
    {
        "auto": Metric(auto),
        "accuracy": Metric(accuracy, "classify"),
        "balanced_accuracy": Metric(balanced_accuracy, "classify"),
        "macro_f1": Metric(macro_f1, "classify"),
        "exact_match": Metric(exact_match, "generate"),
        "token_f1": Metric(token_f1, "generate"),
        "rouge_l": Metric(rouge_l, "generate", module="rouge_score"),
        "chrf": Metric(chrf, "generate", module="sacrebleu"),
        "bleu": Metric(bleu, "generate", module="sacrebleu"),
        "perplexity": Metric(perplexity, "generate", reads="likelihoods", larger_is_better=False),
    },
    wrap=Metric,
    function=lambda row: row.score,
)
"""The metrics that `tasks.metric` and `tasks.further_metrics` know."""
