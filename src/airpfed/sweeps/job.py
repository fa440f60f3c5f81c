"""`airpfed sweep` and `airpfed compare`: from the grid to the tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airpfed.config import settings_file
from airpfed.config.grid import Point, axes_of, check_count, grid_points
from airpfed.core import run_files
from airpfed.core.errors import UserError, hint
from airpfed.core.files import write_atomic
from airpfed.experiment.artifacts import copy_plugins
from airpfed.experiment.build import current_fingerprints, preparation_key
from airpfed.report import charts
from airpfed.sweeps import executors, files
from airpfed.sweeps.compare import read_runs
from airpfed.sweeps.console import SweepConsole
from airpfed.sweeps.tables import Mean, ScoredRun, choose_tuned, means
from airpfed.sweeps.trials import (
    Fingerprints,
    Trial,
    copy_finished,
    finished_summary,
    summary_of,
    trial_folder,
    trials_of,
    unfinished_trials,
)

Axes = dict[str, list[str]]


@dataclass(frozen=True)
class SweepRequest:
    """The options of a sweep.

    tune_seeds: number of seeds that tuned values are judged on, None for all. reference: `axis=value` of the point with
    which others are compared. reuse: folders of sweeps whose trials may be copied. workers: number of workers; 0 is one
    for each core. ray: the address of a cluster, or None.
    """

    file: Path
    overrides: tuple[str, ...]
    grid: tuple[str, ...]
    tune: tuple[str, ...]
    tune_seeds: int | None
    seeds: int
    reference: tuple[str, ...]
    folder: Path
    reuse: tuple[Path, ...]
    workers: int
    ray: str | None
    command: str


@dataclass(frozen=True)
class SweepResult:
    """The outcome of a sweep or a comparison.

    runs: the runs that were scored. tree: the outcome, ready to be written as JSON. failures: a line for each trial
    that failed.
    """

    runs: list[ScoredRun]

    means: list[Mean]
    axes: Axes
    reference: dict[str, str]
    tree: dict[str, Any]
    failures: list[str]


def run_sweep(request: SweepRequest, console: SweepConsole) -> SweepResult:
    """Compute the trials that are missing, then write tables and figures into the sweep's folder.

    With `tune`, every point is first trained with every tuned value and `tune_seeds` seeds and judged on the dev
    splits; only the best value of a point is then scored on the test splits. Raises UserError before the first trial
    starts if the settings of any are wrong, and KeyboardInterrupt after the running trials have finished a round.
    """
    axes, tuned_axes = check_request(request)
    reference = parse_reference(request.reference, axes)
    failures, fingerprint_of = list[str](), current_fingerprints()
    if tuned_axes:
        tune_seeds = request.tune_seeds or request.seeds
        trials = trials_of(request.file, request.overrides, grid_points(axes | tuned_axes), tune_seeds, "dev")
        trials = with_copied_plugins(trials, request.folder)
        failures += compute_trials(request, trials, console, "tuning", fingerprint_of)
        runs = finished_runs(trials, request.folder, (), fingerprint_of)
        best = tune(runs, axes, tuned_axes, request.folder, console)
        trials = trials_of(request.file, request.overrides, best, request.seeds, "both")
    else:
        trials = trials_of(request.file, request.overrides, grid_points(axes), request.seeds)
    trials = with_copied_plugins(trials, request.folder)
    failures += compute_trials(request, trials, console, "trials", fingerprint_of)
    runs = finished_runs(trials, request.folder, list(tuned_axes), fingerprint_of)
    if not runs:
        raise UserError(f"{request.folder}: no trial could be computed: {failures[0]}")
    averages = means(runs, reference)
    tree = files.as_json(averages, reference) | {"failed": failures}
    names = files.write_files(runs, averages, axes, request.folder, request.folder)
    run_files.write_json(request.folder / "sweep.json", tree)
    console.log(f"{request.folder}: wrote {', '.join(['sweep.json', *names])}")
    return SweepResult(runs=runs, means=averages, axes=axes, reference=reference, tree=tree, failures=failures)


def with_copied_plugins(trials: Sequence[Trial], folder: Path) -> list[Trial]:
    """Copy the plug-ins of a sweep into its folder, and return the trials with settings that name the copies."""
    return [replace(trial, settings=copy_plugins(trial.settings, folder)) for trial in trials]


def check_request(request: SweepRequest) -> tuple[Axes, Axes]:
    """Read the axes of the grid and the tuned axes. Raises UserError if options are wrong or exclude one another."""
    axes, tuned_axes = axes_of(request.grid), axes_of(request.tune, "--tune")
    grid_keys, tuned_keys = ({key for axis in group for key in axis.split("/")} for group in (axes, tuned_axes))
    for folder in request.reuse:
        if not (folder / "cells").is_dir():
            raise UserError(f"--reuse {folder}: should be the directory of a sweep, and has no folder `cells`")
    check_count("--seeds", request.seeds)
    if request.workers:
        check_count("--workers", request.workers)
    if request.tune_seeds is not None and not tuned_axes:
        raise UserError(f"--tune-seeds {request.tune_seeds}: has no effect without --tune")
    if request.tune_seeds is not None and not 1 <= request.tune_seeds <= request.seeds:
        raise UserError(f"--tune-seeds {request.tune_seeds}: should be 1 to --seeds {request.seeds}")
    if common := grid_keys & tuned_keys:
        raise UserError(f"--tune {min(common)}: is in --grid too")
    if "run.seed" in grid_keys | tuned_keys:
        raise UserError("--grid run.seed: should be --seeds N; means are taken over seeds")
    settings = settings_file.read_settings(request.file, request.overrides)
    if "run.score" in grid_keys | tuned_keys or settings.run.score != "test":
        raise UserError("run.score: a sweep scores the test splits; --tune KEY=A,B chooses on the dev splits first")
    for task in settings.tasks if tuned_axes else ():
        if task.dev_samples == 0:
            raise UserError(f"--tune: tasks.{task.name}.dev_samples = 0: values are judged on the dev split")
    return axes, tuned_axes


def parse_reference(options: Sequence[str], axes: Axes) -> dict[str, str]:
    """Parse `axis=value` of the reference; by default it is the first value of the first axis with at least two.

    Raises UserError if an axis or value is not in the grid.
    """
    if not options:
        first = next((axis for axis, values in axes.items() if len(values) > 1), None)
        return {first: axes[first][0]} if first else {}
    reference = {}
    for option in options:
        axis, _, value = option.partition("=")
        if axis not in axes:
            raise UserError(f"--against {option}: {axis} is not varied{hint(axis, axes)}")
        if value not in axes[axis]:
            raise UserError(f"--against {option}: should be one of {', '.join(axes[axis])}")
        reference[axis] = value
    return reference


def compute_trials(
    request: SweepRequest,
    trials: Sequence[Trial],
    console: SweepConsole,
    description: str,
    fingerprint_of: Fingerprints,
) -> list[str]:
    """Compute the trials that are not finished and return a line for each failure.

    Trials that a sweep of `reuse` has finished are copied. Trials with the same data and base model follow one another,
    so that a worker loads them once.
    """
    missing = unfinished_trials(trials, request.folder, fingerprint_of)
    if copies := copy_finished(missing, request.folder, request.reuse, fingerprint_of):
        console.log(f"{description}: {copies} copied from {', '.join(map(str, request.reuse))}")
        missing = unfinished_trials(missing, request.folder, fingerprint_of)
    missing.sort(key=lambda trial: (trial.seed, preparation_key(trial.settings)))
    if len(trials) > len(missing):
        console.log(f"{description}: {len(trials) - len(missing)} of {len(trials)} are finished already")
    if not missing:
        return []
    failures = []
    with console.progress(description, missing, request.folder) as (tick, end_trial):
        if request.ray is not None:
            results = executors.run_on_ray(missing, request.folder, request.command, request.ray, tick)
        else:
            workers = executors.count_workers(request.workers, missing[0].settings)
            results = executors.run_local(missing, request.folder, request.command, workers, tick)
        for trial, result in results:
            end_trial(trial, result, summary_of(trial_folder(trial, request.folder)))
            if result.end == "failed":
                failures.append(f"{trial.folder}: {result.reason}")
    return failures


def finished_runs(
    trials: Iterable[Trial], sweep_folder: Path, tuned_axes: Sequence[str], fingerprint_of: Fingerprints
) -> list[ScoredRun]:
    """The finished trials as runs, point by point; a tuned value is an extra column and no axis."""
    runs = []
    for trial in sorted(trials, key=lambda trial: trial.seed):
        summary = finished_summary(trial_folder(trial, sweep_folder), trial.settings, fingerprint_of)
        if summary is not None:
            pairs = [(key, value) for key, _, value in (axis.partition("=") for axis in trial.point)]
            run = ScoredRun(
                point=tuple(pair for pair in pairs if pair[0] not in tuned_axes),
                seed=trial.seed,
                summary=summary,
                folder=f"cells/{trial.folder}",
                extra=tuple(pair for pair in pairs if pair[0] in tuned_axes),
            )
            runs.append(run)
    order = list(dict.fromkeys(run.point for run in runs))
    return sorted(runs, key=lambda run: order.index(run.point))


def tune(
    runs: Sequence[ScoredRun], axes: Axes, tuned_axes: Axes, sweep_folder: Path, console: SweepConsole
) -> list[Point]:
    """The points of the grid with their best tuned values; writes all tried values and dev metrics to tuning.csv.

    A line is logged if the best value is the lowest or highest of its axis, because the grid may be too narrow.
    """
    tuned = choose_tuned(runs, list(tuned_axes))
    lines: list[charts.Line] = [
        {**dict(point), **dict(values), "dev": dev, "count": count, "chosen": str(values == choice.best).lower()}
        for point, choice in tuned.items()
        for values, dev, count in choice.tried
    ]
    sweep_folder.mkdir(parents=True, exist_ok=True)
    columns = [*axes, *tuned_axes, "dev", "count", "chosen"]
    write_atomic(sweep_folder / "tuning.csv", charts.to_csv(columns, lines))
    for point, choice in tuned.items():
        for axis, value in choice.best:
            if len(tuned_axes[axis]) > 2 and charts.are_numbers(tuned_axes[axis]):
                ordered = sorted(tuned_axes[axis], key=float)
                if value in (ordered[0], ordered[-1]):
                    setting = " ".join(f"{key}={part}" for key, part in point)
                    console.log(f"tuning: {setting}: the best {axis} = {value} is at the edge of what was tried")
    return [tuple(f"{key}={value}" for key, value in (*point, *choice.best)) for point, choice in tuned.items()]


def compare_runs(
    folders: Sequence[Path], reference_options: Sequence[str], out: Path | None, console: SweepConsole
) -> SweepResult:
    """Compare finished runs, paired by seed. out: a folder for tables and figures, or None.

    Raises UserError if a folder holds no finished run.
    """
    runs, axes = read_runs(folders, console.log)
    reference = parse_reference(reference_options, axes)
    averages = means(runs, reference)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made: {error.strerror}") from None
        console.log(f"{out}: wrote {', '.join(files.write_files(runs, averages, axes, out, Path()))}")
    tree = files.as_json(averages, reference)
    return SweepResult(runs=runs, means=averages, axes=axes, reference=reference, tree=tree, failures=[])
