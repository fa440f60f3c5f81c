"""What a sweep's figures show: lines of means with intervals, from its runs; `report` draws them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import isfinite
from pathlib import Path
from statistics import fmean

from airpfed.core import run_files
from airpfed.core.run_files import RoundRecord
from airpfed.report import course, means
from airpfed.report.charts import SPLIT, Axes, Line
from airpfed.sweeps.tables import Interval, Mean, Run, Where, interval
from airpfed.theory.verification import average_bounds

DRAWN = ("average", "worst", "pi_mean", "final", "dev", "pi", "psi")
"""What gets figures: measures over every axis, final metrics by task, courses."""

Rounds = Mapping[str, Sequence[RoundRecord]]
"""Folder of a run, as the run names it -> its rounds."""
Values = dict[int, float]
"""Round -> value."""


def files(
    runs: Sequence[Run], found: Sequence[Mean], axes: Axes, rounds: Rounds, base: Path
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of all figures and their numbers. axes: by their short names; base: where folders stand."""
    where = {run.where: dict(zip(axes, (value for _, value in run.where), strict=True)) for run in runs}
    where, axes = with_split(where, axes)
    for measure in ("average", "worst", "pi_mean"):
        lines: list[Line] = [{**where[one.where], **plotted(one.value)} for one in found if one.measure == measure]
        if lines and measure in DRAWN:
            yield from means.files(lines, axes, measure)
    if "final" in DRAWN:
        tasks = list(dict.fromkeys(name for run in runs for name in run.summary.tasks))
        yield from means.task_files(task_lines(runs, found, where), {**axes, "task": tasks})
    for measure, values in COURSES.items():
        lines, own = course_lines(runs, rounds, partial(values, base), where, axes)
        if lines and measure in DRAWN:
            yield from course.files(lines, own, measure)


def with_split(
    where: dict[Where, dict[str, str]], axes: Axes
) -> tuple[dict[Where, dict[str, str]], dict[str, Sequence[str]]]:
    """The same with R_s and R_p as one axis where each R_s goes with one R_p only."""
    pair = ("rank_shared", "rank_personal")
    met = list(dict.fromkeys(tuple(one.get(key, "") for key in pair) for one in where.values()))
    if not set(pair) <= set(axes) or not len(met) == len({s for s, _ in met}) == len({p for _, p in met}):
        return where, dict(axes)
    joined = {point: {**one, SPLIT: "/".join(one[key] for key in pair)} for point, one in where.items()}
    kept = {key: values for key, values in axes.items() if key not in pair}
    return joined, {**kept, SPLIT: ["/".join(ranks) for ranks in met]}


def plotted(value: Interval) -> dict[str, float | None]:
    """An interval under the names of its parts."""
    return {"mean": value.mean, "low": value.low, "high": value.high, "count": value.count}


def task_lines(runs: Sequence[Run], found: Sequence[Mean], where: Mapping[Where, Mapping[str, str]]) -> list[Line]:
    """A line a point and task: its final metric, and that of the untouched model, mean over the seeds."""
    bases: dict[tuple[Where, str], list[float]] = {}
    for run in runs:
        for name, task in run.summary.tasks.items():
            bases.setdefault((run.where, name), []).append(task.base)
    named = [(one, one.measure.removeprefix("task ")) for one in found if one.measure.startswith("task ")]
    return [
        {**where[one.where], "task": name, **plotted(one.value), means.UNTOUCHED: fmean(bases[one.where, name])}
        for one, name in named
    ]


def course_lines(
    runs: Sequence[Run],
    rounds: Rounds,
    values: Callable[[Run, Sequence[RoundRecord]], dict[str, Values]],
    where: Mapping[Where, Mapping[str, str]],
    axes: Axes,
) -> tuple[list[Line], dict[str, Sequence[str]]]:
    """(lines, axes): a line a point and round that all seeds have; where nothing is varied, a line a task too.

    values: of a run, task -> round -> value, the whole under the empty name.
    """
    points: dict[Where, list[Run]] = {}
    for run in runs:
        points.setdefault(run.where, []).append(run)
    lines: list[Line] = []
    names: list[str] = []
    for point, seeds in points.items():
        reached = [values(run, rounds[run.folder]) for run in seeds]
        spent = [costs(rounds[run.folder]) for run in seeds]
        names = [""] if len(points) > 1 or len(reached[0]) == 1 else [name for name in reached[0] if name]
        for name in names:
            having = [{number for number, value in one.get(name, {}).items() if isfinite(value)} for one in reached]
            for number in sorted(set.intersection(*having)):
                cost = {key: fmean(one[number][key] for one in spent) for key in course.ACROSS[1:]}
                value = plotted(interval([one[name][number] for one in reached]))
                lines.append({**where[point], "task": name, "round": number, **cost, **value})
    return lines, {**axes, "task": names} if len(names) > 1 else dict(axes)


def costs(rows: Sequence[RoundRecord]) -> dict[int, dict[str, float]]:
    """Round -> seconds on air and joules spent up to and with it."""
    spent = accumulate((row.ledger for row in rows), lambda a, b: a + b)
    return {
        row.round: dict(zip(course.ACROSS[1:], (cost.air_seconds, cost.joules_mean), strict=True))
        for row, cost in zip(rows, spent, strict=True)
    }


def dev(base: Path, run: Run, rows: Sequence[RoundRecord]) -> dict[str, Values]:
    """The dev metric of the tasks that have one, and their mean, in the rounds in which all were evaluated."""
    names = [name for name in run.summary.tasks if any(name in row.accuracy for row in rows)]
    whole = [row for row in rows if names and all(name in row.accuracy for name in names)]
    found = {name: {row.round: row.accuracy[name] for row in whole} for name in names}
    return {"": {row.round: fmean(row.accuracy[name] for name in names) for row in whole}, **found}


def pi(base: Path, run: Run, rows: Sequence[RoundRecord]) -> dict[str, Values]:
    """Measured Pi of the rounds in which anything was sent."""
    return {"": {row.round: row.pi for row in rows if row.pi is not None}}


def psi(base: Path, run: Run, rows: Sequence[RoundRecord]) -> dict[str, Values]:
    """Psi_T of a run with a probe, of plain SGD, if it had stopped at that round."""
    probe = run_files.load_probe(base / run.folder / "theory.json")
    plain = probe is not None and any(row.theory and row.theory.bounds.one_round is not None for row in rows)
    found = average_bounds(rows, probe) if probe and plain else []
    return {"": {row.round: one.total for row, one in zip(rows, found, strict=False) if one is not None}}


COURSES: Mapping[str, Callable[[Path, Run, Sequence[RoundRecord]], dict[str, Values]]] = {
    "dev": dev,
    "pi": pi,
    "psi": psi,
}
