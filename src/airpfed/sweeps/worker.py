"""The worker of a sweep: one trial in the process that computes it. A process loads what trials share only once."""

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

from airpfed.config.plugins import fault_of
from airpfed.config.schema import Settings
from airpfed.config.settings_file import settings_from_json
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import acquire_lock, read_bytes, write_atomic
from airpfed.experiment import artifacts, build
from airpfed.experiment.artifacts import clean_up
from airpfed.experiment.run import train_run
from airpfed.sweeps.trials import finished_summary
from airpfed.training import checkpoint
from airpfed.training.loop import read_records
from airpfed.training.setup import TrainingSetup

BASE = "base"
"""Folder beside `cells` with the scores of the untouched model."""


@dataclass(frozen=True)
class Result:
    """The outcome of a trial. reason: why it failed, or why it restarted from round 1 (damaged files or other data)."""

    end: Literal["done", "stopped", "failed"]
    reason: str = ""


_stopping: Callable[[], bool] = lambda: False  # noqa: E731
_preparations: dict[str, build.Preparation] = {}
"""The latest preparation of this process, by its key."""


def start_worker(stopping: Callable[[], bool]) -> None:
    """Set up a worker process: its parent handles Ctrl-C, and the worker ends whenever its parent ends."""
    global _stopping
    _stopping = stopping
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def run_trial(settings_json: str, folder: Path, command: str, stopping: Callable[[], bool] | None = None) -> Result:
    """Train a trial to its end, from its checkpoint if there is one. Two processes never train the same trial at once.

    settings_json: `Settings` as JSON. folder: the trial's folder, created if it is missing. The result is `failed`,
    with the reason in one line, if the trial cannot be computed; UserError and OSError are not raised.
    """
    settings = settings_from_json(settings_json)
    try:
        with acquire_lock(folder / ".lock", inf):
            clean_up(folder)
            if finished_summary(folder, settings, build.current_fingerprints()):
                return Result("done")
            return _train(settings, folder, command, stopping or _stopping)
    except UserError as error:
        return Result("failed", str(error).splitlines()[0])
    except Exception as error:
        if fault := fault_of(error):
            return Result("failed", fault)
        if isinstance(error, OSError):
            return Result("failed", f"{error.filename or folder}: {error.strerror or error}")
        raise


def _train(settings: Settings, folder: Path, command: str, stopping: Callable[[], bool]) -> Result:
    preparation = prepare_trial(settings)
    experiment = build.build_experiment(settings, preparation.tasks, preparation)
    track = settings.run.tracker.bind()(folder)
    reasons = list(artifacts.damaged_files(folder))
    scores_file = folder / "checkpoint" / "base.json"
    common_file = folder.parent.parent / BASE / f"{preparation.base_key[:16]}.json"
    scores_file.parent.mkdir(exist_ok=True)
    if (scores := read_bytes(common_file)) is not None:
        write_atomic(scores_file, scores)
    resume, reason = can_resume(folder, experiment)
    outcome = train_run(
        settings, experiment, preparation.tasks, command, folder, resume, track, stopping, lambda _: None
    )
    common_file.parent.mkdir(exist_ok=True)
    if read_bytes(common_file) != (scores := scores_file.read_bytes()):
        write_atomic(common_file, scores)
    return Result("done" if outcome.completed else "stopped", "; ".join([*reasons, *([reason] if reason else [])]))


def can_resume(folder: Path, experiment: TrainingSetup) -> tuple[bool, str]:
    """Whether a trial can resume from its checkpoint; if not, the reason, empty for a trial that has not started."""
    try:
        if checkpoint.exists(folder / "checkpoint"):
            state = checkpoint.load_state(folder / "checkpoint", experiment.initial, experiment.fingerprint)
            read_records(folder / "records.jsonl", state.round)
            return True, ""
        if run_files.load_records(folder / "records.jsonl"):
            return False, f"{folder / 'checkpoint'}: no checkpoint; started again"
    except UserError as error:
        return False, f"{error}; started again"
    return False, ""


def prepare_trial(settings: Settings) -> build.Preparation:
    """Tasks, tokens and base model of these settings. The last result is cached for trials that need the same."""
    key = build.preparation_key(settings)
    if key not in _preparations:
        _preparations.clear()
        _preparations[key] = build.build_preparation(settings, build.load_tasks(settings))
    return _preparations[key]
