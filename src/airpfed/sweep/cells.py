"""The cells of a sweep: a run's directory for every point of the grid and seed, named by what it is."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from airpfed import reading, record
from airpfed.errors import UserError
from airpfed.grid import Point, at, changes
from airpfed.record import Summary
from airpfed.settings import RunSettings, Settings

UNNAMED = {"run": {"threads", "score", "cross_eval", "tracker"}}
"""Settings that make no other cell: they do not change what is trained."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep. point: of the grid (a tuned value is part of it). folder: below the sweep's `cells`."""

    point: Point
    seed: int
    settings: Settings
    folder: str


def cells_of(
    file: Path, overrides: Sequence[str], points: Iterable[Point], seeds: int, score: str | None = None
) -> list[Cell]:
    """Every point with every seed, seed by seed: `seeds` of them from the file's run.seed on.

    A cell computes on one thread unless run.threads is set: its numbers then depend on no other cell, and a core each
    is the faster use of them. score: what `run.score` becomes. Raises UserError if any cell's settings are wrong.
    """
    first = reading.read(file, overrides).run.seed
    chosen = list(points)
    found = []
    for seed in range(first, first + seeds):
        for point in chosen:
            with at(point):
                settings = reading.read(file, [*overrides, *changes(point), f"run.seed={seed}"])
            run = settings.run.model_copy(update={"threads": settings.run.threads or 1, "score": score or "test"})
            settings = settings.model_copy(update={"run": run})
            found.append(Cell(point, seed, settings, folder_of(point, seed, settings)))
    once = {cell.folder[-8:]: cell.point for cell in reversed(found)}
    for cell in found:
        if (other := once[cell.folder[-8:]]) != cell.point:
            raise UserError(f"--grid: {' '.join(other)} and {' '.join(cell.point)} are the same settings")
    return found


def folder_of(point: Point, seed: int, settings: Settings) -> str:
    """A readable name and, since that need not tell all, eight digits of the resolved settings' sha256."""
    tree = settings.model_dump(mode="json", exclude=UNNAMED)
    digest = hashlib.sha256(json.dumps(tree).encode()).hexdigest()[:8]
    words = [f"{key}={value}" for key, value in zip(names(point), (p.split("=", 1)[1] for p in point), strict=True)]
    return re.sub(r"[^\w.=+,-]", "-", "_".join([*words, f"seed={seed}"]))[:120] + f"-{digest}"


def lacking(cells: Iterable[Cell], home: Path) -> list[Cell]:
    """The cells of a sweep's directory that are not done."""
    return [cell for cell in cells if not is_done(summary_of(home / "cells" / cell.folder), cell.settings.run)]


def adopt(cells: Iterable[Cell], home: Path, others: Iterable[Path]) -> int:
    """Copy the cells that are done in another sweep, whatever they are called there; how many were.

    A cell comes whole or not at all, for its folder gets its name last; one that was begun here goes on here.
    """
    there = {path.name[-8:]: path for other in others for path in (other / "cells").glob("[!.]*-" + 8 * "[0-9a-f]")}
    copied = 0
    for cell in cells:
        found, own = there.get(cell.folder[-8:]), home / "cells" / cell.folder
        if found is not None and not own.exists() and is_done(summary_of(found), cell.settings.run):
            partial = own.with_name(f".{own.name}")
            try:
                shutil.copytree(found, partial, dirs_exist_ok=True)
            except shutil.Error as error:
                raise UserError(f"{partial}: {error.args[0][0][2]}") from None
            partial.rename(own)
            copied += 1
    return copied


def names(axes: Iterable[str]) -> list[str]:
    """Axes by the last parts of their keys, `lr`; as given where two axes would be called alike."""
    keys = [axis.split("=", 1)[0] for axis in axes]
    short = ["+".join(part.split(".")[-1] for part in key.split("/")) for key in keys]
    return [name if short.count(name) == 1 else key for name, key in zip(short, keys, strict=True)]


def summary_of(folder: Path) -> Summary | None:
    """A run's summary, or None where there is none (that can be read) or its records are gone."""
    if not (folder / "records.jsonl").is_file():
        return None
    try:
        return record.load_summary(folder / "summary.json")
    except UserError:
        return None


def is_done(summary: Summary | None, run: RunSettings) -> bool:
    """Whether a run is complete and scored as its settings ask; a task without a dev split has no dev score."""
    if summary is None or summary.exit != "completed":
        return False
    tested = all(task.final is not None for task in summary.tasks.values())
    crossed = not run.cross_eval or all(len(t.others) == len(summary.tasks) - 1 for t in summary.tasks.values())
    tuned = run.score == "test" or any(task.dev is not None for task in summary.tasks.values())
    return tuned and (run.score == "dev" or (tested and crossed))
