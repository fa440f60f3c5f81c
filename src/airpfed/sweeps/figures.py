"""The figures of a sweep: lines of means with intervals, computed from the sweep's runs; `report.plots` draws them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from math import isfinite
from pathlib import Path
from statistics import fmean

from airpfed.core import run_files
from airpfed.core.run_files import RoundRecord
from airpfed.report import plots
from airpfed.report.charts import SPLIT, Axes, Line
from airpfed.sweeps.tables import Coordinates, Interval, Mean, ScoredRun, t_interval
from airpfed.theory.verification import average_bounds

FIGURES = ("average", "worst", "pi_mean", "final", "dev", "pi", "psi")
"""The measures that get figures: over every axis, final metrics by task, courses over the rounds."""

Rounds = Mapping[str, Sequence[RoundRecord]]
"""Folder of a run, as in `ScoredRun` -> its rounds."""
Values = dict[int, float]
"""Round -> value."""
PointSettings = Mapping[Coordinates, Mapping[str, str]]
"""Point -> axis by its short name -> value."""


def sweep_figures(
    runs: Sequence[ScoredRun], means: Sequence[Mean], axes: Axes, rounds: Rounds, base: Path
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of all figures and their numbers.

    axes: values of each axis, by its short name. base: the folder that the runs' folders are relative to.
    """
    settings = {run.point: dict(zip(axes, (value for _, value in run.point), strict=True)) for run in runs}
    settings, axes = join_ranks(settings, axes)
    for measure in ("average", "worst", "pi_mean"):
        lines: list[Line] = [
            {**settings[mean.point], **interval_columns(mean.value)} for mean in means if mean.measure == measure
        ]
        if lines and measure in FIGURES:
            yield from plots.mean_files(lines, axes, measure)
    if "final" in FIGURES:
        tasks = list(dict.fromkeys(name for run in runs for name in run.summary.tasks))
        yield from plots.task_files(task_lines(runs, means, settings), {**axes, "task": tasks})
    for measure, values in COURSES.items():
        lines, course_axes = course_lines(runs, rounds, partial(values, base), settings, axes)
        if lines and measure in FIGURES:
            yield from plots.course_files(lines, course_axes, measure)


def join_ranks(
    settings: dict[Coordinates, dict[str, str]], axes: Axes
) -> tuple[dict[Coordinates, dict[str, str]], dict[str, Sequence[str]]]:
    """Make one axis of R_s and R_p if each R_s occurs with a single R_p; returns the settings and the axes."""
    ranks = ("rank_shared", "rank_personal")
    splits = list(dict.fromkeys(tuple(point.get(key, "") for key in ranks) for point in settings.values()))
    if not set(ranks) <= set(axes) or not len(splits) == len({s for s, _ in splits}) == len({p for _, p in splits}):
        return settings, dict(axes)
    joined = {key: {**point, SPLIT: "/".join(point[rank] for rank in ranks)} for key, point in settings.items()}
    remaining = {key: values for key, values in axes.items() if key not in ranks}
    return joined, {**remaining, SPLIT: ["/".join(split) for split in splits]}


def interval_columns(value: Interval) -> dict[str, float | None]:
    """Column name -> value of an interval, for the columns `plots.MEAN_COLUMNS`."""
    return {"mean": value.mean, "low": value.low, "high": value.high, "count": value.count}


def task_lines(runs: Sequence[ScoredRun], means: Sequence[Mean], settings: PointSettings) -> list[Line]:
    """A line for each point and task: the final metric, and the untouched model's, as means over seeds."""
    bases: dict[tuple[Coordinates, str], list[float]] = {}
    for run in runs:
        for name, task in run.summary.tasks.items():
            bases.setdefault((run.point, name), []).append(task.base)
    lines: list[Line] = []
    for mean in means:
        if mean.measure.startswith("task "):
            name = mean.measure.removeprefix("task ")
            columns = {**interval_columns(mean.value), plots.UNTOUCHED: fmean(bases[mean.point, name])}
            lines.append({**settings[mean.point], "task": name, **columns})
    return lines


def course_lines(
    runs: Sequence[ScoredRun],
    rounds: Rounds,
    values_of: Callable[[ScoredRun, Sequence[RoundRecord]], dict[str, Values]],
    settings: PointSettings,
    axes: Axes,
) -> tuple[list[Line], dict[str, Sequence[str]]]:
    """Lines of a course for each point and round that all seeds have, and their axes.

    If there is a single point, each task has lines of its own. values_of: a function from a run to task -> round ->
    value, with the mean over tasks under the empty name.
    """
    points: dict[Coordinates, list[ScoredRun]] = {}
    for run in runs:
        points.setdefault(run.point, []).append(run)
    lines: list[Line] = []
    names: list[str] = []
    for point, seeds in points.items():
        values = [values_of(run, rounds[run.folder]) for run in seeds]
        costs = [costs_by_round(rounds[run.folder]) for run in seeds]
        names = [""] if len(points) > 1 or len(values[0]) == 1 else [name for name in values[0] if name]
        for name in names:
            finite = [{number for number, value in seed.get(name, {}).items() if isfinite(value)} for seed in values]
            for number in sorted(set.intersection(*finite)):
                cost = {key: fmean(seed[number][key] for seed in costs) for key in plots.ROUND_COLUMNS[1:]}
                interval = t_interval([seed[name][number] for seed in values])
                lines.append({**settings[point], "task": name, "round": number, **cost, **interval_columns(interval)})
    return lines, {**axes, "task": names} if len(names) > 1 else dict(axes)


def costs_by_round(rows: Sequence[RoundRecord]) -> dict[int, dict[str, float]]:
    """Round -> seconds on air and joules up to and with it."""
    sums = accumulate((row.ledger for row in rows), lambda a, b: a + b)
    return {
        row.round: dict(zip(plots.ROUND_COLUMNS[1:], (cost.air_seconds, cost.joules_mean), strict=True))
        for row, cost in zip(rows, sums, strict=True)
    }


def dev_course(base: Path, run: ScoredRun, rows: Sequence[RoundRecord]) -> dict[str, Values]:
    """The dev metrics of the tasks that have one, and their mean, in the rounds in which all were evaluated."""
    names = [name for name in run.summary.tasks if any(name in row.accuracy for row in rows)]
    complete = [row for row in rows if names and all(name in row.accuracy for name in names)]
    by_task = {name: {row.round: row.accuracy[name] for row in complete} for name in names}
    return {"": {row.round: fmean(row.accuracy[name] for name in names) for row in complete}, **by_task}


def pi_course(base: Path, run: ScoredRun, rows: Sequence[RoundRecord]) -> dict[str, Values]:
    """The measured Pi of the rounds in which anything was sent."""
    return {"": {row.round: row.pi for row in rows if row.pi is not None}}


def psi_course(base: Path, run: ScoredRun, rows: Sequence[RoundRecord]) -> dict[str, Values]:
    """Psi_T for T up to each round, of a run with a probe and plain SGD."""
    probe = run_files.load_probe(base / run.folder / "theory.json")
    plain = any(row.theory and row.theory.bounds.one_round is not None for row in rows)
    bounds = average_bounds(rows, probe) if probe and plain else []
    return {"": {row.round: bound.total for row, bound in zip(rows, bounds, strict=False) if bound is not None}}


COURSES: Mapping[str, Callable[[Path, ScoredRun, Sequence[RoundRecord]], dict[str, Values]]] = {
    "dev": dev_course,
    "pi": pi_course,
    "psi": psi_course,
}
