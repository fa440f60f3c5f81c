"""`airpfed sweep` and `airpfed compare`: from the grid to the tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpfed import record
from airpfed.errors import UserError, hint
from airpfed.grid import axes_of, points
from airpfed.report import charts
from airpfed.sweep import files, pool
from airpfed.sweep.cells import Cell, cells_of, is_done, summary_of
from airpfed.sweep.compare import runs_of
from airpfed.sweep.screen import SweepScreen
from airpfed.sweep.tables import Mean, Run, Where, chosen, means

Axes = dict[str, list[str]]


@dataclass(frozen=True)
class Plan:
    """What a sweep was asked for. against: `axis=value` of the reference. workers: 0 is one a core."""

    file: Path
    overrides: tuple[str, ...]
    grid: tuple[str, ...]
    tune: tuple[str, ...]
    seeds: int
    against: tuple[str, ...]
    home: Path
    workers: int
    ray: str | None
    command: str


@dataclass(frozen=True)
class Report:
    """A sweep's outcome. tree: as JSON. failed: what could not be computed, a line each."""

    found: list[Mean]
    axes: Axes
    against: dict[str, str]
    tree: dict[str, Any]
    failed: list[str]


def sweep(plan: Plan, screen: SweepScreen) -> Report:
    """Compute the cells that are missing, then write tables and figures into the sweep's directory.

    With `tune`, every point is first trained with every tuned value and judged on the dev splits; only those of the
    best value are scored on the test splits. Everything that can be wrong with a cell's settings is told before the
    first is begun. Raises KeyboardInterrupt after a whole round of the cells at work.
    """
    axes, tuned = axes_of(plan.grid), axes_of(plan.tune, "--tune")
    if plan.seeds < 1:
        raise UserError(f"--seeds {plan.seeds}: should be at least 1")
    if twice := set(axes) & set(tuned):
        raise UserError(f"--tune {min(twice)}: is in --grid too")
    against = reference(plan.against, axes)
    spread = points(axes)
    failed: list[str] = []
    cells = cells_of(plan.file, plan.overrides, points(axes | tuned), plan.seeds, "dev" if tuned else None)
    if tuned:
        for task in cells[0].settings.tasks:
            if task.dev_samples == 0:
                raise UserError(f"--tune: tasks.{task.name}.dev_samples = 0: the values are judged on the dev split")
        failed += computed(plan, cells, screen, "tuning")
        best = chosen(finished(cells, plan.home, ()), list(tuned))
        tuning(best, [*axes, *tuned], plan.home)
        spread = [tuple(f"{k}={v}" for k, v in (*point, *value)) for point, (value, _) in best.items()]
        cells = cells_of(plan.file, plan.overrides, spread, plan.seeds, "both")
    failed += computed(plan, cells, screen, "cells")
    runs = finished(cells, plan.home, list(tuned))
    if not runs:
        raise UserError(f"{plan.home}: no cell could be computed: {failed[0]}")
    found = means(runs, against)
    tree = files.as_json(found, against) | {"failed": failed}
    made = files.write(runs, found, axes, plan.home)
    files.write_json(tree, plan.home / "sweep.json")
    screen.say(f"{plan.home}: wrote {', '.join(['sweep.json', *made])}")
    return Report(found, axes, against, tree, failed)


def compare(folders: Sequence[Path], against: Sequence[str]) -> Report:
    """Finished runs side by side; pairs are runs of one seed. Raises UserError where a folder holds none."""
    runs, axes = runs_of(folders)
    base = reference(against, axes)
    found = means(runs, base)
    return Report(found, axes, base, files.as_json(found, base), [])


def computed(plan: Plan, cells: Sequence[Cell], screen: SweepScreen, what: str) -> list[str]:
    """Compute the cells that are not done; a line for each that could not be."""
    missing = [c for c in cells if not is_done(summary_of(plan.home / "cells" / c.folder), c.settings.run)]
    if len(cells) > len(missing):
        screen.say(f"{what}: {len(cells) - len(missing)} of {len(cells)} are there already")
    if not missing:
        return []
    failed = []
    with screen.progress(what, missing, plan.home) as (tick, passed):
        if plan.ray is not None:
            stream = pool.on_ray(missing, plan.home, plan.command, plan.ray, tick)
        else:
            workers = pool.workers_of(plan.workers, missing[0].settings)
            stream = pool.local(missing, plan.home, plan.command, workers, tick)
        for cell, result in stream:
            passed(cell, result, summary_of(plan.home / "cells" / cell.folder))
            if result.end == "failed":
                failed.append(f"{cell.folder}: {result.why}")
    return failed


def finished(cells: Iterable[Cell], home: Path, tuned: Sequence[str]) -> list[Run]:
    """The cells that are done as runs, point by point; a tuned value is a column and no axis."""
    found = []
    for cell in sorted(cells, key=lambda cell: cell.seed):
        summary = summary_of(home / "cells" / cell.folder)
        if summary is not None and is_done(summary, cell.settings.run):
            pairs = [(key, value) for key, _, value in (axis.partition("=") for axis in cell.point)]
            where = tuple((k, v) for k, v in pairs if k not in tuned)
            extra = tuple((k, v) for k, v in pairs if k in tuned)
            found.append(Run(where, cell.seed, summary, f"cells/{cell.folder}", extra))
    order = list(dict.fromkeys(run.where for run in found))
    return sorted(found, key=lambda run: order.index(run.where))


def tuning(best: dict[Where, tuple[Where, list[tuple[Where, float, int]]]], axes: Sequence[str], home: Path) -> None:
    """tuning.csv: what was tried at every point, its mean dev metric, and which was chosen."""
    lines: list[charts.Line] = [
        {**dict(point), **dict(value), "dev": dev, "count": count, "chosen": str(value == choice).lower()}
        for point, (choice, tried) in best.items()
        for value, dev, count in tried
    ]
    record.write_atomic(home / "tuning.csv", charts.text([*axes, "dev", "count", "chosen"], lines))


def reference(against: Sequence[str], axes: Axes) -> dict[str, str]:
    """`axis=value` of the reference, checked; by default the first value of the first axis that has two."""
    if not against:
        first = next((axis for axis, values in axes.items() if len(values) > 1), None)
        return {first: axes[first][0]} if first else {}
    found = {}
    for one in against:
        axis, _, value = one.partition("=")
        if axis not in axes:
            raise UserError(f"--against {one}: {axis} is not varied{hint(axis, axes)}")
        if value not in axes[axis]:
            raise UserError(f"--against {one}: should be one of {', '.join(axes[axis])}")
        found[axis] = value
    return found
