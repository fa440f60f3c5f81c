"""The contract of a split of samples over devices, checked on random samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from airpfed.core.errors import UserError
from airpfed.tasks.sample import Sample
from airpfed.tasks.split import SampleSplit, check_shares
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

NUM_SAMPLES, NUM_CLASSES, NUM_VALUES = 120, 4, 5


def check_split(split: SampleSplit | Callable[..., Any] | str, **options: Any) -> Report:
    """Check a split of a task's samples over its devices: everything that a run and a resumed run rely on.

    split: a `SampleSplit`, a function `(samples, counts, rng, *, options) -> indices of each device`, or the name of a
    row of `SPLITS`. options: its options. Raises UserError for a function that cannot be a row, and for wrong options.

    >>> from airpfed import testing
    >>> testing.check_split("dirichlet", alpha=0.1).ok
    True
    """
    subject = subject_of("splits", split, options)
    trial = SplitTrial.from_subject(subject)
    return run_checks(
        subject,
        [
            ("declarations", trial.declarations),
            ("every device has samples, none twice", trial.shares),
            ("sizes", trial.sizes),
            ("values", trial.values),
            ("extreme sizes", trial.extremes),
            ("random numbers", trial.random_numbers),
            ("arguments are not changed", trial.arguments_unchanged),
            ("texts without classes", trial.without_classes),
        ],
    )


def random_samples(count: int = NUM_SAMPLES, classes: bool = True) -> tuple[Sample, ...]:
    """Samples of unlike classes and of five values of the device column."""
    rng = np.random.default_rng(7)
    labels = rng.choice(NUM_CLASSES, size=count, p=[0.4, 0.3, 0.2, 0.1]).tolist()
    return tuple(
        Sample(f"text {n}", f" {label}", label if classes else -1, f"user {n % NUM_VALUES}")
        for n, label in enumerate(labels)
    )


@dataclass(frozen=True)
class SplitTrial:
    """A split with its options set."""

    row: SampleSplit
    share: Callable[..., Any]

    @classmethod
    def from_subject(cls, subject: Subject) -> "SplitTrial":
        """The trial of a row."""
        return cls(subject.row, subject.function)

    def parts(self, samples: Sequence[Sample], counts: Sequence[int], seed: int = 0) -> list[list[int]]:
        """The indices of each device, checked as a run checks them."""
        result = self.share(tuple(samples), np.array(counts), np.random.default_rng(seed))
        try:
            check_shares(result, len(samples), len(counts), "the split")
        except UserError as error:
            require(False, f"counts {list(counts)}: {str(error).removeprefix('the split: ')}")
        except (TypeError, ValueError) as error:
            require(False, f"counts {list(counts)}: should give a list of indices for each device ({error})")
        for part in result:
            for index in part:
                require(
                    isinstance(index, (int, np.integer)) and not isinstance(index, bool),
                    f"an index is {index!r}; should be a whole number",
                )
        return [[int(index) for index in part] for part in result]

    @property
    def counts(self) -> list[int]:
        """Wanted numbers of samples of the checks' devices; one a value where devices are the values of a column."""
        return [20] * NUM_VALUES if self.row.by_value else [3, 12, 7, 25, 1]

    def declarations(self) -> str:
        """The fields of the row have values that exist."""
        return check_declarations(self.row, by_value=Literal[True, False])

    def shares(self) -> str:
        """Every device has a sample, and no sample has two devices."""
        samples = random_samples()
        for seed in range(3):
            self.parts(samples, self.counts, seed)
        return ""

    def sizes(self) -> str:
        """A device has as many samples as were asked for; where devices are values of a column, at most as many."""
        sizes = [len(part) for part in self.parts(random_samples(), self.counts)]
        if self.row.by_value:
            require(
                all(size <= count for size, count in zip(sizes, self.counts, strict=True)),
                f"devices have {sizes} samples; at most {self.counts} were asked for",
            )
        else:
            require(sizes == self.counts, f"devices have {sizes} samples; {self.counts} were asked for")
        return ""

    def values(self) -> str:
        """Where devices are the values of a column, each has the samples of one value, in the order of the values."""
        if not self.row.by_value:
            raise CheckSkipped("devices are not the values of a column")
        samples = random_samples()
        parts = self.parts(samples, self.counts)
        for number, part in enumerate(parts):
            values = sorted({samples[index].device for index in part})
            require(
                values == [f"user {number}"],
                f"device {number} has samples of {', '.join(values)}; should be those of user {number} alone",
            )
        return ""

    def extremes(self) -> str:
        """One device, all samples in use, and a sample for each device."""
        samples = random_samples()
        if self.row.by_value:
            self.parts(samples, [1] * NUM_VALUES)
            self.parts(samples, [NUM_SAMPLES] * NUM_VALUES)
            return ""
        for counts in ([1], [NUM_SAMPLES], [NUM_SAMPLES // 4] * 4, [1] * NUM_SAMPLES):
            parts = self.parts(samples, counts)
            require(
                sum(map(len, parts)) == sum(counts), f"counts {counts[:4]}: {sum(map(len, parts))} samples are used"
            )
        return ""

    def random_numbers(self) -> str:
        """All randomness comes from the generator that the split gets, so that a resumed run splits alike."""
        samples = random_samples()
        first, second = with_global_seeds(lambda: self.parts(samples, self.counts))
        require(first == second, "two calls with equal generators give other shares: draw from `rng` alone")
        return ""

    def arguments_unchanged(self) -> str:
        """The counts stay as they are."""
        counts = np.array(self.counts)
        self.share(random_samples(), counts, np.random.default_rng(0))
        require(counts.tolist() == self.counts, f"the split changes its counts in place, to {counts.tolist()}")
        return ""

    def without_classes(self) -> str:
        """Samples of a task without classes are split, or refused by ValueError, which becomes one line."""
        try:
            self.parts(random_samples(classes=False), self.counts)
        except ValueError as error:
            return f"refused: {error}"
        return "split"
