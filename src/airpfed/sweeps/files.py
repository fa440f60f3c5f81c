"""The files of a sweep: tidy tables, means with intervals, figures.

They hold no wall-clock times: the same trials give the same bytes, however often the sweep was interrupted.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from airpfed.core import run_files
from airpfed.core.files import file_name_of, path_inside, write_atomic
from airpfed.core.run_files import RoundRecord
from airpfed.report import charts, plots
from airpfed.sweeps.figures import interval_columns, sweep_figures
from airpfed.sweeps.tables import Mean, ScoredRun
from airpfed.sweeps.trials import axis_names

Line = dict[str, charts.Value]


def write_files(
    runs: Sequence[ScoredRun], means: Sequence[Mean], axes: Mapping[str, Sequence[str]], folder: Path, base: Path
) -> list[str]:
    """Write all tables and figures of runs into `folder` and return the names of the files.

    axes: the grid's axes, or the settings that differ between compared runs. base: the folder that the runs' folders
    are relative to.
    """
    extra = list(dict.fromkeys(axis for run in runs for axis, _ in run.extra))
    rounds = {run.folder: run_files.load_records(base / run.folder / "records.jsonl") for run in runs}
    tables = {
        "cells.csv": csv_table([line for run in runs for line in run_lines(run)], [*axes, *extra]),
        "rounds.csv": csv_table(
            [line for run in runs for line in round_lines(run, rounds[run.folder])], [*axes, *extra]
        ),
        "means.csv": csv_table([mean_line(mean) for mean in means], list(axes)),
    }
    files = {name: text.encode() for name, text in tables.items()}
    short_axes = dict(zip(axis_names(axes), axes.values(), strict=True))
    files |= dict(sweep_figures(runs, means, short_axes, rounds, base))
    for name, content in files.items():
        write_atomic(path_inside(folder, name), content)
    return [file_name_of(name) for name in files]


def csv_table(lines: Sequence[Line], first: Sequence[str]) -> str:
    """Lines as CSV: the axes first, then the other keys in order of appearance; an empty field is a missing value."""
    columns = list(dict.fromkeys([*first, *(key for line in lines for key in line)]))
    return charts.to_csv(columns, [{column: line.get(column) for column in columns} for line in lines])


def run_lines(run: ScoredRun) -> list[Line]:
    """A line for each task of a run: the task's metrics, and the costs of the whole run."""
    common: Line = {"method": run.summary.method, "rounds": run.summary.rounds, "pi_mean": run.summary.pi_mean}
    common |= run.summary.ledger.model_dump()
    lines: list[Line] = []
    for name, task in run.summary.tasks.items():
        others = ("others", "base_metrics", "final_metrics", "larger_is_better")
        metrics: Line = {key: value for key, value in task.model_dump().items() if key not in others}
        metrics |= {f"base {label}": value for label, value in task.base_metrics.items()}
        metrics |= {f"final {label}": value for label, value in task.final_metrics.items()}
        metrics |= {f"on {other}": value for other, value in task.others.items()}
        lines.append(coordinates_of(run) | {"task": name} | metrics | common | {"run": run.folder})
    return lines


COSTS = ("channel_uses", "air_seconds", "joules_mean", "total_seconds", "total_joules_mean")
"""Costs of the ledger that a line for a round has."""


def round_lines(run: ScoredRun, records: Sequence[RoundRecord]) -> list[Line]:
    """A line for each round and task: loss, dev metric, error of the sums, and costs up to and with the round."""
    sums = accumulate((row.ledger for row in records), lambda a, b: a + b)
    lines: list[Line] = []
    for row, cost in zip(records, sums, strict=True):
        costs: Line = {key: getattr(cost, key) for key in COSTS}
        errors: Line = {"pi": row.pi, "pi_claimed": row.pi_claimed}
        for name in run.summary.tasks:
            metrics: Line = {"loss": row.loss.get(name), "dev": row.accuracy.get(name)}
            lines.append(coordinates_of(run) | {"round": row.round, "task": name} | metrics | errors | costs)
    return lines


def coordinates_of(run: ScoredRun) -> Line:
    """The columns of a run's point in the sweep: the axes, tuned values, the seed."""
    return {**dict(run.point), **dict(run.extra), "seed": run.seed}


def mean_line(mean: Mean) -> Line:
    """The line of one measure at one point."""
    line: Line = {**dict(mean.point), "measure": mean.measure, **interval_columns(mean.value)}
    difference = interval_columns(mean.difference) if mean.difference else dict.fromkeys(plots.MEAN_COLUMNS)
    return line | {f"difference_{key}": value for key, value in difference.items()}


def as_json(means: Sequence[Mean], reference: Mapping[str, str]) -> dict[str, Any]:
    """The tree that `--json` prints: for each point its measures with mean, interval and paired difference."""
    points: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for mean in means:
        empty = {"set": dict(mean.point), "seeds": list(mean.seeds), "measures": {}}
        difference = interval_columns(mean.difference) if mean.difference else None
        measures = points.setdefault(mean.point, empty)["measures"]
        measures[mean.measure] = interval_columns(mean.value) | {"difference": difference}
    return {"against": dict(reference), "points": list(points.values())}
