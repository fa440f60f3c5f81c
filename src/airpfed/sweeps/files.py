"""What a sweep leaves: tidy tables, means with intervals, figures. No wall-clock time is in any of them.

The same cells give the same bytes, however often the sweep was stopped on the way.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from airpfed.core import files, run_files
from airpfed.core.files import file_name_of, path_inside
from airpfed.core.run_files import RoundRecord
from airpfed.report import charts, means
from airpfed.sweeps import figures
from airpfed.sweeps.figures import plotted
from airpfed.sweeps.tables import Mean, Run
from airpfed.sweeps.trials import names

Line = dict[str, charts.Value]


def write(
    runs: Sequence[Run], found: Sequence[Mean], axes: Mapping[str, Sequence[str]], home: Path, base: Path
) -> list[str]:
    """Write all tables and figures of runs into `home`; returns the names of the files.

    axes: of the grid, or what differs between the runs that are compared. base: where the runs' folders stand.
    """
    extra = list(dict.fromkeys(axis for run in runs for axis, _ in run.extra))
    rounds = {run.folder: run_files.load_records(base / run.folder / "records.jsonl") for run in runs}
    made = {
        "cells.csv": table([line for run in runs for line in task_lines(run)], [*axes, *extra]),
        "rounds.csv": table([line for run in runs for line in round_lines(run, rounds[run.folder])], [*axes, *extra]),
        "means.csv": table([mean_line(one) for one in found], list(axes)),
    }
    written = {name: content.encode() for name, content in made.items()}
    plain = dict(zip(names(axes), axes.values(), strict=True))
    written |= dict(figures.files(runs, found, plain, rounds, base))
    for name, content in written.items():
        files.write_atomic(path_inside(home, name), content)
    return [file_name_of(name) for name in written]


def table(lines: Sequence[Line], first: Sequence[str]) -> str:
    """Lines as CSV: the axes first, then every other key in the order of its first line; an empty cell is no value."""
    columns = list(dict.fromkeys([*first, *(key for line in lines for key in line)]))
    return charts.text(columns, [{column: line.get(column) for column in columns} for line in lines])


def task_lines(run: Run) -> list[Line]:
    """A line a task: its metrics, and what the whole run cost."""
    whole: Line = {"method": run.summary.method, "rounds": run.summary.rounds, "pi_mean": run.summary.pi_mean}
    whole |= run.summary.ledger.model_dump()
    lines: list[Line] = []
    for name, task in run.summary.tasks.items():
        own: Line = {key: value for key, value in task.model_dump().items() if key != "others"}
        own |= {f"on {other}": value for other, value in task.others.items()}
        lines.append(axes_of(run) | {"task": name} | own | whole | {"run": run.folder})
    return lines


def round_lines(run: Run, records: Sequence[RoundRecord]) -> list[Line]:
    """A line a round and task: loss, dev metric, error of the sums, and what was spent up to then."""
    spent = accumulate((row.ledger for row in records), lambda a, b: a + b)
    lines: list[Line] = []
    for row, cost in zip(records, spent, strict=True):
        costs: Line = {key: getattr(cost, key) for key in ("channel_uses", "air_seconds", "joules_mean")}
        errors: Line = {"pi": row.pi, "pi_claimed": row.pi_claimed}
        for name in run.summary.tasks:
            reached: Line = {"loss": row.loss.get(name), "dev": row.accuracy.get(name)}
            lines.append(axes_of(run) | {"round": row.round, "task": name} | reached | errors | costs)
    return lines


def axes_of(run: Run) -> Line:
    """Where a run stands in the sweep: a column an axis, tuned values, the seed."""
    return {**dict(run.where), **dict(run.extra), "seed": run.seed}


def mean_line(one: Mean) -> Line:
    """One measure at one point."""
    line: Line = {**dict(one.where), "measure": one.measure, **plotted(one.value)}
    gap = plotted(one.difference) if one.difference else dict.fromkeys(means.PLOTTED)
    return line | {f"difference_{key}": value for key, value in gap.items()}


def as_json(found: Sequence[Mean], against: Mapping[str, str]) -> dict[str, Any]:
    """What `--json` prints: a point each, measures with mean, interval and paired difference."""
    points: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for one in found:
        point = points.setdefault(one.where, {"set": dict(one.where), "seeds": list(one.seeds), "measures": {}})
        gap = plotted(one.difference) if one.difference else None
        point["measures"][one.measure] = plotted(one.value) | {"difference": gap}
    return {"against": dict(against), "points": list(points.values())}


def write_json(tree: Mapping[str, Any], path: Path) -> None:
    """The same tree as a file."""
    files.write_atomic(path, json.dumps(run_files.to_json_tree(tree), indent=2, allow_nan=False) + "\n")
