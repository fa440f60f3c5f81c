"""The contract of a tracker, checked with the records of a short run in a temporary folder."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, RoundRecord, Summary, TaskSummary
from airpfed.experiment.loggers import Tracker
from airpfed.testing.report import CheckSkipped, Report, require, run_checks, subject_of

ROUNDS = 4
RUN_FILES = ("experiment.toml", "records.jsonl", "summary.json")
"""Files of a run that a tracker leaves alone."""


def check_tracker(tracker: Callable[..., Tracker] | str, **options: Any) -> Report:
    """Check a tracker: everything that a run, an interrupted run and a resumed run rely on.

    tracker: a function `(folder, *, options) -> track`, or the name of a row of `TRACKERS`. options: its options. The
    tracker writes into temporary folders. Raises UserError for a function that cannot be a row, and for wrong options.

    >>> from airpfed import testing
    >>> testing.check_tracker("none").ok
    True
    """
    subject = subject_of("trackers", tracker, options)
    trial = TrackerTrial(subject.function)
    return run_checks(
        subject,
        [
            ("opens", trial.opens),
            ("a run", trial.run),
            ("numbers without a value", trial.missing_numbers),
            ("records are not changed", trial.records_unchanged),
            ("the run's files", trial.run_files),
            ("the working directory", trial.working_directory),
            ("an interrupted run goes on", trial.resumes),
            ("two runs", trial.two_runs),
        ],
    )


def round_record(number: int) -> RoundRecord:
    """The record of a round."""
    return RoundRecord.model_validate(
        {
            "round": number,
            "loss": {"trec": 2.0 / number, "sms": 1.0 / number},
            "accuracy": {"trec": 0.5} if number % 2 == 0 else {},
            "mse": {},
            "pi": 0.01,
            "pi_claimed": None,
            "ledger": {"air_seconds": 0.2},
            "seconds": {"gradients": 0.5},
        }
    )


def run_summary(rounds: int) -> Summary:
    """The summary of a run."""
    task = TaskSummary(metric="accuracy", base=0.2, final=0.8, samples=250)
    return Summary(
        method="airpfed",
        rounds=rounds,
        tasks={"trec": task, "sms": task},
        average=0.8,
        average_base=0.2,
        pi_mean=0.01,
        ledger=Ledger(),
        seconds={"gradients": 2.0},
        exit="completed",
    )


@contextmanager
def run_folder() -> Iterator[Path]:
    """A temporary folder of a run, with files of it; the working directory is another temporary folder meanwhile."""
    current = Path.cwd()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        root = Path(name).resolve()
        (root / "elsewhere").mkdir()
        (root / "run").mkdir()
        for file in RUN_FILES:
            (root / "run" / file).write_text(file)
        os.chdir(root / "elsewhere")
        try:
            yield root / "run"
        finally:
            os.chdir(current)


@dataclass(frozen=True)
class TrackerTrial:
    """A tracker with its options set."""

    function: Callable[[Path], Tracker]

    def open(self, folder: Path) -> Tracker:
        """Open the tracker for a folder; skip the check where its package is not installed."""
        try:
            track = self.function(folder)
        except UserError as error:
            raise CheckSkipped(str(error)) from None
        require(callable(track), f"returns {type(track).__name__}; should be a function of a record")
        return track

    def track_run(self, folder: Path, first: int = 1, complete: bool = True) -> None:
        """Track the rounds from `first` on, and the summary of a complete run."""
        track = self.open(folder)
        for number in range(first, ROUNDS + 1):
            track(round_record(number))
        if complete:
            track(run_summary(ROUNDS))

    def opens(self) -> str:
        """A function of a record."""
        with run_folder() as folder:
            track = self.open(folder)
            track(run_summary(0))
        return ""

    def run(self) -> str:
        """All rounds, and the summary."""
        with run_folder() as folder:
            self.track_run(folder)
            names = sorted(path.name for path in folder.iterdir() if path.name not in RUN_FILES)
        return f"writes {', '.join(names)}" if names else "writes nothing here"

    def missing_numbers(self) -> str:
        """A round in which nothing was sent, and the summary of an interrupted run, lack some numbers."""
        with run_folder() as folder:
            track = self.open(folder)
            track(round_record(1).model_copy(update={"pi": None, "loss": {}, "accuracy": {}}))
            track(round_record(2).model_copy(update={"pi": float("nan"), "loss": {"trec": float("inf")}}))
            task = TaskSummary(metric="accuracy", base=0.2, final=None, samples=250)
            track(run_summary(2).model_copy(update={"average": None, "pi_mean": None, "tasks": {"trec": task}}))
        return ""

    def records_unchanged(self) -> str:
        """The records stay as they are, because the run writes them too."""
        with run_folder() as folder:
            record, summary = round_record(2), run_summary(2)
            before = (record.model_dump_json(), summary.model_dump_json())
            track = self.open(folder)
            track(record)
            track(summary)
            for name, text, row in zip(("record", "summary"), before, (record, summary), strict=True):
                require(row.model_dump_json() == text, f"changes the {name} that it gets")
        return ""

    def run_files(self) -> str:
        """The run's own files stay as they are."""
        with run_folder() as folder:
            self.track_run(folder)
            for name in RUN_FILES:
                file = folder / name
                require(file.is_file() and file.read_text() == name, f"changes {name}, which is the run's own")
        return ""

    def working_directory(self) -> str:
        """Output goes to the run's folder, not to the working directory or beside the folder."""
        with run_folder() as folder:
            self.track_run(folder)
            require(Path.cwd() == folder.parent / "elsewhere", "changes the working directory")
            stray = [path.name for path in (folder.parent / "elsewhere").iterdir()]
            stray += [path.name for path in folder.parent.iterdir() if path.name not in ("run", "elsewhere")]
            require(not stray, f"writes {', '.join(sorted(stray))} outside the run's folder")
        return ""

    def resumes(self) -> str:
        """A run that stopped without a summary is opened again, and its last rounds are tracked a second time."""
        with run_folder() as folder:
            self.track_run(folder, complete=False)
            self.track_run(folder, first=2)
        return ""

    def two_runs(self) -> str:
        """Two runs in one process do not share anything: a sweep or a notebook has several."""
        with run_folder() as folder:
            other = folder / "other"
            other.mkdir()
            first, second = self.open(folder), self.open(other)
            second(round_record(1))
            before = _contents(other)
            first(round_record(1))
            first(run_summary(1))
            require(_contents(other) == before, "a record of one run changes the files of another")
            second(run_summary(1))
        return ""


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
