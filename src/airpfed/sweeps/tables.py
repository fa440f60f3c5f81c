"""What cells say together: means over seeds with their 95 % intervals, and differences paired by seed."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from airpfed.core.run_files import Summary

Where = tuple[tuple[str, str], ...]
"""Axis -> value, of every axis, in the grid's order."""


@dataclass(frozen=True)
class Run:
    """A finished run. extra: columns of its own, such as a tuned value. folder: where it is kept."""

    where: Where
    seed: int
    summary: Summary
    folder: str
    extra: Where = ()


@dataclass(frozen=True)
class Interval:
    """A mean over `count` seeds with its 95 % interval (t distribution); no interval of fewer than two."""

    mean: float
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True)
class Mean:
    """One measure at one point: over seeds, and its difference from the reference with the same seeds."""

    where: Where
    measure: str
    value: Interval
    difference: Interval | None
    seeds: tuple[int, ...]


def measures(summary: Summary) -> dict[str, float | None]:
    """What a run is judged by: its metrics, each task's metric as `task NAME`, and what it cost.

    worst: the least of the tasks'. others: mean over pairs of tasks of one's model on the other's data.
    """
    finals = [task.final for task in summary.tasks.values() if task.final is not None]
    others = [value for task in summary.tasks.values() for value in task.others.values() if value is not None]
    found: dict[str, float | None] = {
        "average": summary.average,
        "worst": min(finals) if finals else None,
        "others": fmean(others) if others else None,
        "average_base": summary.average_base,
        "pi_mean": summary.pi_mean,
        "rounds": summary.rounds,
    }
    found |= {f"task {name}": task.final for name, task in summary.tasks.items()}
    found |= summary.ledger.model_dump()
    return {key: None if value is None or not math.isfinite(value) else float(value) for key, value in found.items()}


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values: mean +- t s / sqrt(n)."""
    count, middle = len(values), fmean(values)
    if count < 2:
        return Interval(middle, None, None, count)
    half = t_quantile(count - 1) * stdev(values) / math.sqrt(count)
    return Interval(middle, middle - half, middle + half, count)


@functools.cache
def t_quantile(freedom: int) -> float:
    """The t that Student's distribution stays within with probability 0.95, by bisection of its distribution function.

    Abramowitz and Stegun 26.7.3 and 26.7.4, for whole degrees of freedom from 1.
    """
    low, high = 1.9, 13.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| <= t)."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= k / (k + 1) * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def means(runs: Iterable[Run], against: Mapping[str, str]) -> list[Mean]:
    """Every measure at every point, points in the order of `runs`.

    against: axis -> value of the reference; a point is compared with the one whose other axes agree, over the seeds
    that both have.
    """
    points: dict[Where, dict[int, dict[str, float | None]]] = {}
    for run in runs:
        points.setdefault(run.where, {})[run.seed] = measures(run.summary)
    found = []
    for where, seeds in points.items():
        other = points.get(tuple((axis, against.get(axis, value)) for axis, value in where), {}) if against else {}
        for measure in dict.fromkeys(key for one in seeds.values() for key in one):
            values = {seed: v for seed, one in sorted(seeds.items()) if (v := one.get(measure)) is not None}
            if values:
                pairs = [v - w for s, v in values.items() if (w := other.get(s, {}).get(measure)) is not None]
                gap = interval(pairs) if pairs and other is not seeds else None
                found.append(Mean(where, measure, interval(list(values.values())), gap, tuple(values)))
    return found


def chosen(runs: Iterable[Run], tuned: Sequence[str]) -> dict[Where, tuple[Where, list[tuple[Where, float, int]]]]:
    """For every point without its tuned axes: the tuned values with the best mean dev metric, and all that were tried.

    The dev metric is the mean over tasks, averaged over seeds; the first of equals is chosen. Tried: (values, mean dev
    metric, seeds), in the order of `runs`.
    """
    scores: dict[Where, dict[Where, list[float]]] = {}
    for run in runs:
        point = tuple(pair for pair in run.where if pair[0] not in tuned)
        value = tuple(pair for pair in run.where if pair[0] in tuned)
        reached = [task.dev for task in run.summary.tasks.values() if task.dev is not None]
        scores.setdefault(point, {}).setdefault(value, []).append(fmean(reached))
    return {
        point: (
            max(tried, key=lambda value: fmean(tried[value])),
            [(value, fmean(found), len(found)) for value, found in tried.items()],
        )
        for point, tried in scores.items()
    }
