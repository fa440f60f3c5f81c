"""The cells of a sweep: a run's directory for every point of the grid and seed, named by what it is."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from airpfed.config import applicability, settings_file
from airpfed.config.grid import Point, name_grid_point, overrides_of
from airpfed.config.schema import RunSettings, Settings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import discard, file_name_of, leftovers, path_inside, temporary_path
from airpfed.core.run_files import Summary
from airpfed.training import checkpoint

UNNAMED = {"run": {"threads", "score", "cross_eval", "tracker"}}
"""Settings that make no other cell: they do not change what is trained."""

Fingerprints = Callable[[Settings], str | None]
"""The fingerprint that a run of some settings would have now; None where data or base model are not to be had."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep. point: of the grid (a tuned value is part of it). folder: below the sweep's `cells`."""

    point: Point
    seed: int
    settings: Settings
    folder: str


def trials_of(
    file: Path, overrides: Sequence[str], points: Iterable[Point], seeds: int, score: str | None = None
) -> list[Trial]:
    """Every point with every seed, seed by seed: `seeds` of them from the file's run.seed on.

    A cell computes on one thread unless run.threads is set: its numbers then depend on no other cell, and a core each
    is the faster use of them. score: what `run.score` becomes. Raises UserError if any cell's settings are wrong.
    """
    first = settings_file.read_settings(file, overrides).run.seed
    chosen, read = list(points), list[Settings]()
    found = []
    for seed in range(first, first + seeds):
        for point in chosen:
            with name_grid_point(point):
                settings = settings_file.read_settings(file, [*overrides, *overrides_of(point), f"run.seed={seed}"])
            read.append(settings)
            run = settings.run.model_copy(update={"threads": settings.run.threads or 1, "score": score or "test"})
            settings = settings.model_copy(update={"run": run})
            found.append(Trial(point, seed, settings, folder_of(point, seed, settings)))
    applicability.refuse_ineffective(str(file), read[: len(chosen)])
    same = [_trained(cell.settings) for cell in found]
    once = {key: cell.point for key, cell in zip(reversed(same), reversed(found), strict=True)}
    for key, cell in zip(same, found, strict=True):
        if (other := once[key]) != cell.point:
            raise UserError(f"--grid: {' '.join(other)} and {' '.join(cell.point)} are the same settings")
    return found


def _trained(settings: Settings) -> str:
    """What of the settings is trained: two points that agree in it are one."""
    tree = applicability.effective_tree(settings)
    applicability.remove_keys(tree, ((section, key) for section, keys in UNNAMED.items() for key in keys))
    return json.dumps(tree)


def folder_of(point: Point, seed: int, settings: Settings) -> str:
    """A readable name and, since that need not tell all, eight digits of the resolved settings' sha256."""
    tree = settings.model_dump(mode="json", exclude=UNNAMED)
    digest = hashlib.sha256(json.dumps(tree).encode()).hexdigest()[:8]
    words = [f"{key}={value}" for key, value in zip(names(point), (p.split("=", 1)[1] for p in point), strict=True)]
    return file_name_of("_".join([*words, f"seed={seed}"]))[:120] + f"-{digest}"


def place_of(cell: Trial, home: Path) -> Path:
    """A cell's folder in a sweep's directory."""
    return path_inside(home / "cells", cell.folder)


def lacking(cells: Iterable[Trial], home: Path, now: Fingerprints) -> list[Trial]:
    """The cells of a sweep's directory that are not done."""
    return [cell for cell in cells if done(place_of(cell, home), cell.settings, now) is None]


def adopt(cells: Iterable[Trial], home: Path, others: Iterable[Path], now: Fingerprints) -> int:
    """Copy the cells that are done in another sweep, whatever they are called there; how many were.

    A cell comes whole or not at all, for its folder gets its name last; one that was begun here goes on here.
    """
    there = {path.name[-8:]: path for other in others for path in (other / "cells").glob("[!.]*-" + 8 * "[0-9a-f]")}
    copied = 0
    for cell in cells:
        found, own = there.get(cell.folder[-8:]), place_of(cell, home)
        if found is not None and not own.exists() and done(found, cell.settings, now) is not None:
            own.parent.mkdir(parents=True, exist_ok=True)
            for left in leftovers(own.parent, own.name):
                discard(left)
            partial = temporary_path(own)
            try:
                shutil.copytree(found, partial, ignore=shutil.ignore_patterns(".*"))
                partial.rename(own)
            except OSError as error:
                if partial.exists():
                    discard(partial)
                why = error.args[0][0][2] if isinstance(error, shutil.Error) else error
                raise UserError(f"{found}: cannot be copied: {why}") from None
            copied += 1
    return copied


def names(axes: Iterable[str]) -> list[str]:
    """Axes by the last parts of their keys, `lr`; as given where two axes would be called alike."""
    keys = [axis.split("=", 1)[0] for axis in axes]
    short = ["+".join(part.split(".")[-1] for part in key.split("/")) for key in keys]
    return [name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True)]


def summary_of(folder: Path) -> Summary | None:
    """A run's summary; None where there is none that can be read, or its records or checkpoint are of other rounds."""
    try:
        summary = run_files.load_summary(folder / "summary.json")
        run_files.check_rounds(folder, summary, run_files.load_records(folder / "records.jsonl"))
        latest = checkpoint.latest_of(folder / "checkpoint")
    except UserError:
        return None
    return summary if latest is None or latest.round == summary.rounds else None


def done(folder: Path, settings: Settings, now: Fingerprints) -> Summary | None:
    """The summary of a run that is complete, scored as these settings ask, and of them, today's data and base model.

    now: gives the fingerprint of settings, data and base model today. A run that cannot be compared, because data or
    base model are not to be had any more, is taken as it is.
    """
    summary = summary_of(folder)
    if not is_done(summary, settings.run):
        return None
    try:
        kept = run_files.read_json(folder / "environment.json", run_files.Environment)
    except UserError:
        return None
    return summary if kept is not None and now(settings) in (None, kept.root.get("fingerprint")) else None


def is_done(summary: Summary | None, run: RunSettings) -> bool:
    """Whether a run is complete and scored as its settings ask; a task without a dev split has no dev score."""
    if summary is None or summary.exit != "completed":
        return False
    tested = all(task.final is not None for task in summary.tasks.values())
    crossed = not run.cross_eval or all(len(t.others) == len(summary.tasks) - 1 for t in summary.tasks.values())
    tuned = run.score == "test" or any(task.dev is not None for task in summary.tasks.values())
    return tuned and (run.score == "dev" or (tested and crossed))
