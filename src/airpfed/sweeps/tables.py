"""Statistics over the runs of a sweep: means over seeds, 95 % intervals, differences paired by seed, tuned values."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from airpfed.core.errors import UserError
from airpfed.core.run_files import Summary

Coordinates = tuple[tuple[str, str], ...]
"""A point of a sweep: (axis, value) for each axis, in the grid's order."""


@dataclass(frozen=True)
class ScoredRun:
    """A finished run. extra: columns that are no axes, such as a tuned value. folder: the run's path as text."""

    point: Coordinates
    seed: int
    summary: Summary
    folder: str
    extra: Coordinates = ()


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds and its 95 % interval (t distribution); low and high are None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Mean:
    """One measure at one point: over its seeds, and its difference from the reference over the common seeds."""

    point: Coordinates
    measure: str
    value: Interval
    difference: Interval | None
    seeds: tuple[int, ...]


def measures(summary: Summary) -> dict[str, float | None]:
    """The measures of a run: its metrics, each task's metric as `task NAME`, and its costs.

    worst: the worst metric of any task, None where larger is better in one task and smaller in another. others: mean
    over pairs of tasks of one task's model on the other's data.
    """
    finals = [task.final for task in summary.tasks.values() if task.final is not None]
    directions = {task.larger_is_better for task in summary.tasks.values()}
    worst = None if not finals or len(directions) > 1 else min(finals) if True in directions else max(finals)
    others = [value for task in summary.tasks.values() for value in task.others.values() if value is not None]
    values: dict[str, float | None] = {
        "average": summary.average,
        "worst": worst,
        "others": fmean(others) if others else None,
        "average_base": summary.average_base,
        "pi_mean": summary.pi_mean,
        "rounds": summary.rounds,
    }
    values |= {f"task {name}": task.final for name, task in summary.tasks.items()}
    values |= summary.ledger.model_dump()
    return {key: None if value is None or not math.isfinite(value) else float(value) for key, value in values.items()}


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values: mean +- t s / sqrt(n)."""
    count, mean = len(values), fmean(values)
    if count < 2:
        return Interval(mean, None, None, count)
    half = t_quantile(count - 1) * stdev(values) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


@functools.cache
def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit  # imported here, because it takes longer than all else that a table needs

    return float(stdtrit(freedom, 0.975))


def means(runs: Iterable[ScoredRun], reference: Mapping[str, str]) -> list[Mean]:
    """Average every measure at every point over its seeds, points in the order of `runs`.

    reference: axis -> value. A point is compared with the point that has these values and agrees on the other axes,
    over the seeds that both have.
    """
    points: dict[Coordinates, dict[int, dict[str, float | None]]] = {}
    for run in runs:
        points.setdefault(run.point, {})[run.seed] = measures(run.summary)
    result = []
    for point, seeds in points.items():
        partner = (
            points.get(tuple((axis, reference.get(axis, value)) for axis, value in point), {}) if reference else {}
        )
        for measure in dict.fromkeys(key for values in seeds.values() for key in values):
            values = {seed: v for seed, row in sorted(seeds.items()) if (v := row.get(measure)) is not None}
            if values:
                gaps = [v - w for s, v in values.items() if (w := partner.get(s, {}).get(measure)) is not None]
                difference = t_interval(gaps) if gaps and partner is not seeds else None
                result.append(
                    Mean(
                        point=point,
                        measure=measure,
                        value=t_interval(list(values.values())),
                        difference=difference,
                        seeds=tuple(values),
                    )
                )
    return result


@dataclass(frozen=True)
class TunedPoint:
    """The tuned values of one point of the grid.

    best: the values with the best mean dev metric, the first of equals. tried: (values, mean dev metric, number of
    seeds) of all values, in the order of the runs.
    """

    best: Coordinates
    tried: list[tuple[Coordinates, float, int]]


def choose_tuned(runs: Iterable[ScoredRun], tuned_axes: Sequence[str]) -> dict[Coordinates, TunedPoint]:
    """Choose the best tuned values for every point, a point being its coordinates without the tuned axes.

    The dev metric of a run is the mean over its tasks; values are compared by its mean over seeds. Raises UserError
    where larger metrics are better in one task and smaller ones in another, because no mean compares these.
    """
    scores: dict[Coordinates, dict[Coordinates, list[float]]] = {}
    directions = set[bool]()
    for run in runs:
        directions |= {task.larger_is_better for task in run.summary.tasks.values()}
        point = tuple(pair for pair in run.point if pair[0] not in tuned_axes)
        values = tuple(pair for pair in run.point if pair[0] in tuned_axes)
        dev = [task.dev for task in run.summary.tasks.values() if task.dev is not None]
        scores.setdefault(point, {}).setdefault(values, []).append(fmean(dev))
    if len(directions) > 1:
        raise UserError(
            "--tune: larger metrics are better in one task and smaller ones in another, as perplexities are; "
            "tasks.*.metric should have one direction"
        )
    best = min if directions == {False} else max
    return {
        point: TunedPoint(
            best=best(by_values, key=lambda values: fmean(by_values[values])),
            tried=[(values, fmean(seeds), len(seeds)) for values, seeds in by_values.items()],
        )
        for point, by_values in scores.items()
    }
