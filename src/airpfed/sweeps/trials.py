"""The trials of a sweep: a run's folder for every point of the grid and seed, named by its settings."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpfed.config import applicability, settings_file
from airpfed.config.grid import Point, name_grid_point, overrides_of
from airpfed.config.plugins import code_hashes
from airpfed.config.schema import RunSettings, Settings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import discard, file_name_of, leftovers, path_inside, temporary_path
from airpfed.core.run_files import Summary
from airpfed.training import checkpoint

NOT_TRAINED = {"run": {"threads", "score", "cross_eval", "tracker"}}
"""Settings that do not change what is trained: trials that differ in them alone are the same."""

Fingerprints = Callable[[Settings], str | None]
"""Gives the fingerprint that a run of some settings would have today, or None if data or base model are missing."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    point: a point of the grid, tuned values included. folder: name in the sweep's folder `cells`.
    """

    point: Point
    seed: int
    settings: Settings
    folder: str


def trials_of(
    file: Path, overrides: Sequence[str], points: Iterable[Point], seeds: int, score: str | None = None
) -> list[Trial]:
    """The trials of every point with `seeds` seeds, counted from the file's run.seed, seed by seed.

    A trial computes on one thread unless run.threads is set: its numbers then do not depend on other trials, and one
    core for each is the fastest use of several. score: the value of `run.score` in the trials. Raises UserError if the
    settings of any trial are wrong, or if two points have the same settings.
    """
    first = settings_file.read_settings(file, overrides).run.seed
    grid, read = list(points), list[Settings]()
    trials = []
    for seed in range(first, first + seeds):
        for point in grid:
            with name_grid_point(point):
                settings = settings_file.read_settings(file, [*overrides, *overrides_of(point), f"run.seed={seed}"])
            read.append(settings)
            run = settings.run.model_copy(update={"threads": settings.run.threads or 1, "score": score or "test"})
            settings = settings.model_copy(update={"run": run})
            trials.append(Trial(point=point, seed=seed, settings=settings, folder=folder_name(point, seed, settings)))
    applicability.refuse_ineffective(str(file), read[: len(grid)])
    keys = [_training_key(trial.settings) for trial in trials]
    first_points = {key: trial.point for key, trial in zip(reversed(keys), reversed(trials), strict=True)}
    for key, trial in zip(keys, trials, strict=True):
        if (point := first_points[key]) != trial.point:
            raise UserError(f"--grid: {' '.join(point)} and {' '.join(trial.point)} are the same settings")
    return trials


def _training_key(settings: Settings) -> str:
    """The settings that affect training, as text; two points with the same text train the same model."""
    tree = applicability.effective_tree(settings_file.spelled_out(settings))
    applicability.remove_keys(tree, ((section, key) for section, keys in NOT_TRAINED.items() for key in keys))
    return json.dumps(tree)


def folder_name(point: Point, seed: int, settings: Settings) -> str:
    """A readable name, and eight digits of the resolved settings' sha256, because the name may be incomplete."""
    tree: Any = settings_file.spelled_out(settings).model_dump(mode="json", exclude={**NOT_TRAINED, "plugins": True})
    if code := code_hashes(settings):
        tree = [tree, code]
    digest = hashlib.sha256(json.dumps(tree).encode()).hexdigest()[:8]
    values = (change.split("=", 1)[1] for change in point)
    words = [f"{key}={value}" for key, value in zip(axis_names(point), values, strict=True)]
    return file_name_of("_".join([*words, f"seed={seed}"]))[:120] + f"-{digest}"


def trial_folder(trial: Trial, sweep_folder: Path) -> Path:
    """The path of a trial's folder."""
    return path_inside(sweep_folder / "cells", trial.folder)


def unfinished_trials(trials: Iterable[Trial], sweep_folder: Path, fingerprint_of: Fingerprints) -> list[Trial]:
    """The trials that are not finished in a sweep's folder."""
    return [
        trial
        for trial in trials
        if finished_summary(trial_folder(trial, sweep_folder), trial.settings, fingerprint_of) is None
    ]


def copy_finished(
    trials: Iterable[Trial], sweep_folder: Path, sources: Iterable[Path], fingerprint_of: Fingerprints
) -> int:
    """Copy the trials that other sweeps have finished, and return their number.

    Trials are matched by digest, the end of a folder's name. A copy is written under a temporary name and renamed when
    complete. A trial that has a folder here already is left as it is.
    """
    digests = "[!.]*-" + 8 * "[0-9a-f]"
    by_digest = {path.name[-8:]: path for source in sources for path in (source / "cells").glob(digests)}
    copies = 0
    for trial in trials:
        original, folder = by_digest.get(trial.folder[-8:]), trial_folder(trial, sweep_folder)
        if original is None or folder.exists():
            continue
        if finished_summary(original, trial.settings, fingerprint_of) is None:
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in leftovers(folder.parent, folder.name):
            discard(leftover)
        partial = temporary_path(folder)
        try:
            shutil.copytree(original, partial, ignore=shutil.ignore_patterns(".*"))
            partial.rename(folder)
        except OSError as error:
            if partial.exists():
                discard(partial)
            reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error
            raise UserError(f"{original}: cannot be copied: {reason}") from None
        copies += 1
    return copies


def axis_names(axes: Iterable[str]) -> list[str]:
    """Axes by the last parts of their keys, `lr`; an axis keeps its full key if another would have the same name."""
    keys = [axis.split("=", 1)[0] for axis in axes]
    short = ["+".join(part.split(".")[-1] for part in key.split("/")) for key in keys]
    return [name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True)]


def summary_of(folder: Path) -> Summary | None:
    """A run's summary; None if it cannot be read, or if its records or checkpoint are of another number of rounds."""
    try:
        summary = run_files.load_summary(folder / "summary.json")
        run_files.check_rounds(folder, summary, run_files.load_records(folder / "records.jsonl"))
        latest = checkpoint.latest_of(folder / "checkpoint")
    except UserError:
        return None
    return summary if latest is None or latest.round == summary.rounds else None


def finished_summary(folder: Path, settings: Settings, fingerprint_of: Fingerprints) -> Summary | None:
    """The summary of a run that is complete, scored as these settings require, and from today's data and base model.

    Returns None if any of this does not hold. If data or base model are missing here, they are taken to be unchanged.
    """
    summary = summary_of(folder)
    if not is_finished(summary, settings.run):
        return None
    try:
        environment = run_files.read_json(folder / "environment.json", run_files.Environment)
    except UserError:
        return None
    if environment is None or fingerprint_of(settings) not in (None, environment.root.get("fingerprint")):
        return None
    return summary


def is_finished(summary: Summary | None, run: RunSettings) -> bool:
    """Whether a run is complete and scored as its settings require; a task without a dev split needs no dev score."""
    if summary is None or summary.exit != "completed":
        return False
    tested = all(task.final is not None for task in summary.tasks.values())
    crossed = not run.cross_eval or all(len(t.others) == len(summary.tasks) - 1 for t in summary.tasks.values())
    dev_scored = run.score == "test" or any(task.dev is not None for task in summary.tasks.values())
    return dev_scored and (run.score == "dev" or (tested and crossed))
