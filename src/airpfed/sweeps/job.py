"""`airpfed sweep` and `airpfed compare`: from the grid to the tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpfed.config import settings_file
from airpfed.config.grid import Point, axes_of, check_count, grid_points
from airpfed.core.errors import UserError, hint
from airpfed.core.files import write_atomic
from airpfed.experiment.build import current_fingerprints, preparation_key
from airpfed.report import charts
from airpfed.sweeps import executors, files
from airpfed.sweeps.compare import runs_of
from airpfed.sweeps.console import SweepScreen
from airpfed.sweeps.tables import Mean, Run, chosen, means
from airpfed.sweeps.trials import Fingerprints, Trial, adopt, done, lacking, place_of, summary_of, trials_of

Axes = dict[str, list[str]]


@dataclass(frozen=True)
class Plan:
    """What a sweep was asked for.

    tune_seeds: None is all seeds. against: `axis=value` of the reference. reuse: sweeps whose cells may be copied.
    workers: 0 is one a core.
    """

    file: Path
    overrides: tuple[str, ...]
    grid: tuple[str, ...]
    tune: tuple[str, ...]
    tune_seeds: int | None
    seeds: int
    against: tuple[str, ...]
    home: Path
    reuse: tuple[Path, ...]
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

    With `tune`, every point is first trained with every tuned value and `tune_seeds` seeds, and judged on the dev
    splits; only those of the best value are scored on the test splits. Everything that can be wrong with a cell's
    settings is told before the first is begun. Raises KeyboardInterrupt after a whole round of the cells at work.
    """
    axes, tuned = checked(plan)
    against = reference(plan.against, axes)
    failed, now = list[str](), current_fingerprints()
    if tuned:
        cells = trials_of(plan.file, plan.overrides, grid_points(axes | tuned), plan.tune_seeds or plan.seeds, "dev")
        failed += computed(plan, cells, screen, "tuning", now)
        spread = tune(finished(cells, plan.home, (), now), axes, tuned, plan.home, screen)
        cells = trials_of(plan.file, plan.overrides, spread, plan.seeds, "both")
    else:
        cells = trials_of(plan.file, plan.overrides, grid_points(axes), plan.seeds)
    failed += computed(plan, cells, screen, "cells", now)
    runs = finished(cells, plan.home, list(tuned), now)
    if not runs:
        raise UserError(f"{plan.home}: no cell could be computed: {failed[0]}")
    found = means(runs, against)
    tree = files.as_json(found, against) | {"failed": failed}
    made = files.write(runs, found, axes, plan.home, plan.home)
    files.write_json(tree, plan.home / "sweep.json")
    screen.say(f"{plan.home}: wrote {', '.join(['sweep.json', *made])}")
    return Report(found, axes, against, tree, failed)


def checked(plan: Plan) -> tuple[Axes, Axes]:
    """The axes of the grid and the tuned ones. Raises UserError where they cannot go together."""
    axes, tuned = axes_of(plan.grid), axes_of(plan.tune, "--tune")
    varied, chosen_ = ({key for axis in one for key in axis.split("/")} for one in (axes, tuned))
    for folder in plan.reuse:
        if not (folder / "cells").is_dir():
            raise UserError(f"--reuse {folder}: holds no cells; should be the directory of a sweep")
    check_count("--seeds", plan.seeds)
    if plan.workers:
        check_count("--workers", plan.workers)
    if plan.tune_seeds is not None and not tuned:
        raise UserError(f"--tune-seeds {plan.tune_seeds}: goes with --tune, and nothing is tuned")
    if plan.tune_seeds is not None and not 1 <= plan.tune_seeds <= plan.seeds:
        raise UserError(f"--tune-seeds {plan.tune_seeds}: should be 1 to --seeds {plan.seeds}")
    if twice := varied & chosen_:
        raise UserError(f"--tune {min(twice)}: is in --grid too")
    if "run.seed" in varied | chosen_:
        raise UserError("--grid run.seed: should be --seeds, which means are taken over")
    settings = settings_file.read_settings(plan.file, plan.overrides)
    if "run.score" in varied | chosen_ or settings.run.score != "test":
        raise UserError("run.score: a sweep scores the test splits; --tune KEY=A,B chooses on the dev splits first")
    for task in settings.tasks if tuned else ():
        if task.dev_samples == 0:
            raise UserError(f"--tune: tasks.{task.name}.dev_samples = 0: the values are judged on the dev split")
    return axes, tuned


def tune(runs: Sequence[Run], axes: Axes, tuned: Axes, home: Path, screen: SweepScreen) -> list[Point]:
    """The points of the grid with their best tuned values; writes tuning.csv: what was tried, its mean dev metric.

    Says where the best is the least or the most that was tried, for the grid may then be too narrow.
    """
    best = chosen(runs, list(tuned))
    lines: list[charts.Line] = [
        {**dict(point), **dict(value), "dev": dev, "count": count, "chosen": str(value == choice).lower()}
        for point, (choice, tried) in best.items()
        for value, dev, count in tried
    ]
    home.mkdir(parents=True, exist_ok=True)
    write_atomic(home / "tuning.csv", charts.text([*axes, *tuned, "dev", "count", "chosen"], lines))
    for point, (choice, _) in best.items():
        for axis, value in choice:
            if len(tuned[axis]) > 2 and charts.numeric(tuned[axis]):
                ordered = sorted(tuned[axis], key=float)
                if value in (ordered[0], ordered[-1]):
                    where = " ".join(f"{key}={one}" for key, one in point)
                    screen.say(f"tuning: {where}: the best {axis} = {value} is at the edge of what was tried")
    return [tuple(f"{key}={value}" for key, value in (*point, *choice)) for point, (choice, _) in best.items()]


def compare(folders: Sequence[Path], against: Sequence[str], out: Path | None, screen: SweepScreen) -> Report:
    """Finished runs side by side; pairs are runs of one seed. Raises UserError where a folder holds none.

    out: where to write the tables and figures too.
    """
    runs, axes = runs_of(folders, screen.say)
    base = reference(against, axes)
    found = means(runs, base)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made: {error.strerror}") from None
        screen.say(f"{out}: wrote {', '.join(files.write(runs, found, axes, out, Path()))}")
    return Report(found, axes, base, files.as_json(found, base), [])


def computed(plan: Plan, cells: Sequence[Trial], screen: SweepScreen, what: str, now: Fingerprints) -> list[str]:
    """Compute the cells that are not done; a line for each that could not be.

    What another sweep of `reuse` has is copied. Those that share data and base model come one after another, so that a
    worker loads them once.
    """
    missing = lacking(cells, plan.home, now)
    if copied := adopt(missing, plan.home, plan.reuse, now):
        screen.say(f"{what}: {copied} copied from {', '.join(map(str, plan.reuse))}")
        missing = lacking(missing, plan.home, now)
    missing.sort(key=lambda cell: (cell.seed, preparation_key(cell.settings)))
    if len(cells) > len(missing):
        screen.say(f"{what}: {len(cells) - len(missing)} of {len(cells)} are there already")
    if not missing:
        return []
    failed = []
    with screen.progress(what, missing, plan.home) as (tick, passed):
        if plan.ray is not None:
            stream = executors.on_ray(missing, plan.home, plan.command, plan.ray, tick)
        else:
            workers = executors.workers_of(plan.workers, missing[0].settings)
            stream = executors.local(missing, plan.home, plan.command, workers, tick)
        for cell, result in stream:
            passed(cell, result, summary_of(place_of(cell, plan.home)))
            if result.end == "failed":
                failed.append(f"{cell.folder}: {result.why}")
    return failed


def finished(cells: Iterable[Trial], home: Path, tuned: Sequence[str], now: Fingerprints) -> list[Run]:
    """The cells that are done as runs, point by point; a tuned value is a column and no axis."""
    found = []
    for cell in sorted(cells, key=lambda cell: cell.seed):
        summary = done(place_of(cell, home), cell.settings, now)
        if summary is not None:
            pairs = [(key, value) for key, _, value in (axis.partition("=") for axis in cell.point)]
            where = tuple((k, v) for k, v in pairs if k not in tuned)
            extra = tuple((k, v) for k, v in pairs if k in tuned)
            found.append(Run(where, cell.seed, summary, f"cells/{cell.folder}", extra))
    order = list(dict.fromkeys(run.where for run in found))
    return sorted(found, key=lambda run: order.index(run.where))


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
