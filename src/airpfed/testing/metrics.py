"""The contract of a metric, checked on random predictions of the kinds of task that it can score."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from airpfed.tasks.metrics import Metric, MetricInput
from airpfed.testing.report import (
    CheckSkipped,
    Report,
    Subject,
    check_declarations,
    require,
    run_checks,
    subject_of,
    with_global_seeds,
)

NUM_SAMPLES = 40
TEXTS = ("the cat sat on the mat", "a dog ran home", "42", "it is red and blue", "no", "Paris, in the spring")
"""Right answers of the checks with texts."""


def check_metric(metric: Metric | Callable[..., float] | str, **options: Any) -> Report:
    """Check a metric: everything that evaluation, sweeps and reports rely on.

    metric: a `Metric`, a function `(predicted, correct, *, options) -> number`, or the name of a row of `METRICS`.
    options: its options. Raises UserError for a function that cannot be a row, and for wrong options.

    >>> from airpfed import testing
    >>> testing.check_metric("macro_f1").ok
    True
    """
    subject = subject_of("metrics", metric, options)
    trial = MetricTrial.from_subject(subject)
    return run_checks(
        subject,
        [
            ("declarations", trial.declarations),
            ("gives a number", trial.gives_a_number),
            ("range", trial.range),
            ("right answers are best", trial.right_is_best),
            ("order of the samples", trial.order),
            ("deterministic", trial.deterministic),
            ("arguments are not changed", trial.arguments_unchanged),
            ("lists and tuples", trial.lists_and_tuples),
            ("no answer", trial.no_answer),
            ("one class, one sample", trial.degenerate),
            ("unequal lengths", trial.unequal_lengths),
        ],
    )


@dataclass(frozen=True)
class MetricCase:
    """Predictions that a metric scores. best, worst: instead of `predicted`, as good and as bad as they can be."""

    name: str
    predicted: tuple[Any, ...]
    correct: tuple[Any, ...]
    best: tuple[Any, ...]
    worst: tuple[Any, ...]


def metric_cases(row: Metric) -> list[MetricCase]:
    """Random predictions of every kind that a metric can score."""
    rng = random.Random(0)
    if row.reads == "likelihoods":
        tokens = tuple(rng.randint(1, 9) for _ in range(NUM_SAMPLES))
        likelihoods = tuple(-count * rng.uniform(0.1, 6.0) for count in tokens)
        certain, unlikely = tuple(0.0 for _ in tokens), tuple(-10.0 * count for count in tokens)
        return [MetricCase("likelihoods", likelihoods, tokens, certain, unlikely)]
    cases = []
    if row.kind in (None, "classify"):
        correct = tuple(rng.randrange(4) for _ in range(NUM_SAMPLES))
        predicted = tuple(label if rng.random() < 0.6 else rng.randrange(4) for label in correct)
        cases.append(MetricCase("classes", predicted, correct, correct, tuple((label + 1) % 4 for label in correct)))
    if row.kind in (None, "generate"):
        correct_texts = tuple(rng.choice(TEXTS) for _ in range(NUM_SAMPLES))
        texts = tuple(text if rng.random() < 0.6 else rng.choice(TEXTS) for text in correct_texts)
        wrong = tuple("zzz qqq" for _ in correct_texts)
        cases.append(MetricCase("texts", texts, correct_texts, correct_texts, wrong))
    return cases


@dataclass(frozen=True)
class MetricTrial:
    """A metric with its options set, and what it scores."""

    row: Metric
    score: Callable[..., float]
    cases: tuple[MetricCase, ...]

    @classmethod
    def from_subject(cls, subject: Subject) -> "MetricTrial":
        """The trial of a row."""
        return cls(subject.row, subject.function, tuple(metric_cases(subject.row)))

    def declarations(self) -> str:
        """The fields of the row have values that exist."""
        return check_declarations(
            self.row,
            kind=Literal["classify", "generate", None],
            reads=MetricInput,
            larger_is_better=Literal[True, False],
        )

    def gives_a_number(self) -> str:
        """A finite number, no truth value."""
        values = [self.value(case, case.predicted) for case in self.cases]
        return ", ".join(f"{case.name} {value:.3g}" for case, value in zip(self.cases, values, strict=True))

    def range(self) -> str:
        """From 0 to 1 where larger is better, which reports show so; else not negative."""
        for case in self.cases:
            for name, answers in (("good", case.best), ("random", case.predicted), ("wrong", case.worst)):
                value = self.value(case, answers)
                require(
                    value >= -1e-12 and (value <= 1 + 1e-9 or not self.row.larger_is_better),
                    f"{case.name}: {name} answers give {value:.6g}; should be "
                    + ("from 0 to 1" if self.row.larger_is_better else "at least 0"),
                )
        return ""

    def right_is_best(self) -> str:
        """Right answers are better than random ones, and these better than wrong ones."""
        sign = 1 if self.row.larger_is_better else -1
        for case in self.cases:
            best, some, worst = (self.value(case, answers) for answers in (case.best, case.predicted, case.worst))
            direction = "larger" if self.row.larger_is_better else "smaller"
            require(
                sign * best > sign * some > sign * worst,
                f"{case.name}: right answers give {best:.4g}, random ones {some:.4g} and wrong ones {worst:.4g}; "
                f"{direction} should be better",
            )
        return ""

    def order(self) -> str:
        """The order of the samples does not matter: evaluation does not keep any."""
        for case in self.cases:
            order = random.Random(1).sample(range(NUM_SAMPLES), NUM_SAMPLES)
            value = self.value(case, case.predicted)
            other = self.call([case.predicted[n] for n in order], [case.correct[n] for n in order], case.name)
            require(
                math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-12),
                f"{case.name}: {value:.6g}, and {other:.6g} for the same samples in another order",
            )
        return ""

    def deterministic(self) -> str:
        """Two calls give the same number, whatever the global generators hold."""
        for case in self.cases:
            first, second = with_global_seeds(partial(self.value, case, case.predicted))
            require(first == second, f"{case.name}: two calls give {first!r} and {second!r}")
        return ""

    def arguments_unchanged(self) -> str:
        """The lists of predictions and answers stay as they are, because other metrics read them too."""
        for case in self.cases:
            predicted, correct = list(case.predicted), list(case.correct)
            self.call(predicted, correct, case.name)
            require(predicted == list(case.predicted), f"{case.name}: the metric changes the predictions")
            require(correct == list(case.correct), f"{case.name}: the metric changes the right answers")
        return ""

    def lists_and_tuples(self) -> str:
        """Both kinds of sequence give the same number."""
        for case in self.cases:
            value = self.value(case, case.predicted)
            other = self.call(list(case.predicted), list(case.correct), case.name)
            require(value == other, f"{case.name}: tuples give {value!r}, lists {other!r}")
        return ""

    def no_answer(self) -> str:
        """A model that is not finite answers with class -1, or with an empty text: this counts as wrong."""
        cases = [case for case in self.cases if case.name != "likelihoods"]
        if not cases:
            raise CheckSkipped("the metric reads likelihoods")
        sign = 1 if self.row.larger_is_better else -1
        for case in cases:
            missing: Any = -1 if case.name == "classes" else ""
            silent = self.value(case, tuple(missing for _ in case.correct))
            best = self.value(case, case.best)
            require(
                sign * silent < sign * best,
                f"{case.name}: answers {missing!r} give {silent:.4g}, and right ones {best:.4g}",
            )
        return ""

    def degenerate(self) -> str:
        """A split with one sample, and one with a single class, have a number."""
        for case in self.cases:
            self.call(case.predicted[:1], case.correct[:1], f"{case.name}, one sample")
            for answer in sorted(set(case.correct)):
                same = (answer,) * len(case.correct)
                self.call(case.predicted, same, f"{case.name}, one right answer for all")
                if case.name != "likelihoods":
                    self.call(same, case.correct, f"{case.name}, one prediction for all")
        return ""

    def unequal_lengths(self) -> str:
        """Predictions of other samples are an error, not a number."""
        for case in self.cases:
            try:
                value = self.score(case.predicted[:-1], case.correct)
            except Exception:
                continue
            require(
                False,
                f"{case.name}: {NUM_SAMPLES - 1} predictions for {NUM_SAMPLES} answers give {value!r}; should raise "
                "ValueError, as zip(..., strict=True) does",
            )
        return ""

    def value(self, case: MetricCase, predicted: Sequence[Any]) -> float:
        """The metric of a case with some predictions."""
        return self.call(predicted, case.correct, case.name)

    def call(self, predicted: Sequence[Any], correct: Sequence[Any], name: str) -> float:
        """Call the metric, and check that it gives a finite number."""
        value = self.score(predicted, correct)
        require(
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value),
            f"{name}: gives {value!r:.60}; should be a finite number",
        )
        return float(value)
