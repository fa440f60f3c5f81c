"""One cell of a sweep, in the process that computes it; what cells share is loaded once a process."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from multiprocessing import parent_process
from pathlib import Path
from typing import Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from airpfed.config.schema import Settings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import acquire_lock, read_bytes, write_atomic
from airpfed.experiment import artifacts, build
from airpfed.experiment.artifacts import clean_up
from airpfed.experiment.loggers import TRACKERS
from airpfed.experiment.run import train_run
from airpfed.sweeps.trials import done
from airpfed.training import checkpoint
from airpfed.training.experiment import Experiment
from airpfed.training.loop import read_records

BASE = "base"
"""Folder beside the cells' with the scores of the untouched model."""


@dataclass(frozen=True)
class Result:
    """How a cell ended; why, if it failed, or was played again because what was there is damaged or of other data."""

    end: Literal["done", "stopped", "failed"]
    why: str = ""


_stopping: Callable[[], bool] = lambda: False  # noqa: E731
_kept: dict[str, build.Preparation] = {}
"""The last preparation of this process."""


def begin(stopping: Callable[[], bool]) -> None:
    """Set up a worker process: Ctrl-C is for its parent to answer, and it ends with its parent, however that ends."""
    global _stopping
    _stopping = stopping
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def work(settings_json: str, folder: Path, command: str, stopping: Callable[[], bool] | None = None) -> Result:
    """Bring a cell to its end from wherever it is; nothing is done twice, also if another process is at the same cell.

    settings_json: of `Settings`. folder: the cell's directory, made if need be. A cell that cannot be computed is
    `failed`, and told in a line.
    """
    settings = Settings.model_validate_json(settings_json)
    try:
        with acquire_lock(folder / ".lock", inf):
            clean_up(folder)
            if done(folder, settings, build.current_fingerprints()):
                return Result("done")
            return _play(settings, folder, command, stopping or _stopping)
    except UserError as error:
        return Result("failed", str(error).splitlines()[0])
    except OSError as error:
        return Result("failed", f"{error.filename or folder}: {error.strerror or error}")


def _play(settings: Settings, folder: Path, command: str, stopping: Callable[[], bool]) -> Result:
    made = prepared(settings)
    experiment = build.build_experiment(settings, made.tasks, made)
    track = TRACKERS[settings.run.tracker](folder)
    again = list(artifacts.damaged_files(folder))
    own, common = folder / "checkpoint" / "base.json", folder.parent.parent / BASE / f"{made.base_key[:16]}.json"
    own.parent.mkdir(exist_ok=True)
    if (scores := read_bytes(common)) is not None:
        write_atomic(own, scores)
    resume, why = resumable(folder, experiment)
    outcome = train_run(settings, experiment, made.tasks, command, folder, resume, track, stopping, lambda _: None)
    common.parent.mkdir(exist_ok=True)
    if read_bytes(common) != (scores := own.read_bytes()):
        write_atomic(common, scores)
    return Result("done" if outcome.completed else "stopped", "; ".join([*again, *([why] if why else [])]))


def resumable(folder: Path, experiment: Experiment) -> tuple[bool, str]:
    """Whether a cell can go on from its checkpoint; else why it is played again, if anything of it is there."""
    try:
        if checkpoint.exists(folder / "checkpoint"):
            state = checkpoint.load_state(folder / "checkpoint", experiment.initial, experiment.fingerprint)
            read_records(folder / "records.jsonl", state.round)
            return True, ""
        if run_files.load_records(folder / "records.jsonl"):
            return False, f"{folder / 'checkpoint'}: no checkpoint; played again"
    except UserError as error:
        return False, f"{error}; played again"
    return False, ""


def prepared(settings: Settings) -> build.Preparation:
    """Tasks, tokens and base model of these settings; kept for the next cell that wants the same."""
    key = build.preparation_key(settings)
    if key not in _kept:
        _kept.clear()
        _kept[key] = build.build_preparation(settings, build.load_tasks(settings))
    return _kept[key]
