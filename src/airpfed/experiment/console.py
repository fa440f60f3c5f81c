"""What a run shows: a line a round and a progress bar on a terminal, plain lines elsewhere."""

import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from airpfed.core.run_files import RoundRecord, SlotError, Summary, number

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended after a whole round, as shells count signals."""


@dataclass(frozen=True)
class Screen:
    """Where a run's lines go."""

    console: Console
    progress: Progress
    bar: TaskID

    def say(self, text: str) -> None:
        """One line of what is happening."""
        self.console.print(text, style="dim", highlight=False, markup=False)

    def round(self, row: RoundRecord) -> None:
        """One round's line; the bar moves on."""
        self.console.print(round_line(row), highlight=False, markup=False)
        self.progress.update(self.bar, completed=row.round)

    def summary(self, summary: Summary, out: Path) -> None:
        """The final table."""
        self.progress.stop()
        self.console.print(final_table(summary))
        cost = summary.ledger
        self.console.print(
            f"on air {cost.air_seconds:.3g} s, {cost.channel_uses:,} channel uses, {cost.joules_mean:.3g} J a device\n"
            f"{out}: report.html, summary.json, records.jsonl" + (", adapters/" if summary.exit == "completed" else ""),
            highlight=False,
            markup=False,
        )

    def expected(self, summary: Summary, ranges: Mapping[str, tuple[float, float]]) -> None:
        """One line a result that the settings file expects: what it should be, what it is."""
        for key, (low, high) in ranges.items():
            value = getattr(summary, key)
            verdict = "not scored" if value is None else "met" if low <= value <= high else "MISSED"
            self.console.print(f"expected {key} {low:g} to {high:g}: {number(value)}, {verdict}", highlight=False)


@contextmanager
def open_screen(rounds: int, file: IO[str] | None = None) -> Iterator[Screen]:
    """A screen for a run of so many rounds; without a terminal there is no bar and lines are never wrapped.

    file: where lines go instead of the standard output.
    """
    console = Console(soft_wrap=True, file=file, width=160 if file else None)
    columns = (TextColumn("round"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield Screen(console, progress, progress.add_task("rounds", total=rounds))


@contextmanager
def interruptible(screen: Screen) -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends the run after the round it falls into; a second one ends it at once."""
    asked: list[bool] = []

    def ask(_number: int, _frame: object) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, before)
        screen.say("stopping after this round (Ctrl-C again: at once; the last round's checkpoint stays)")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def go_on(subcommand: str, file: Path, overrides: Sequence[str], out: Path, done: int) -> str:
    """The line that says how to resume a run that was stopped after `done` rounds."""
    called = Path(sys.argv[0])
    program = str(called) if called.name == "airpfed" and not shutil.which("airpfed") else "airpfed"
    words = [program, *subcommand.split(), str(file)]
    words += [part for item in overrides for part in ("--set", item)]
    return f"stopped after round {done}; go on with: {shlex.join([*words, '--out', str(out), '--resume'])}"


def round_line(row: RoundRecord) -> str:
    """Losses by task, metrics where evaluated, MSE claimed and measured, seconds on air, absent devices."""
    parts = [f"round {row.round}", "loss " + " ".join(f"{name} {value:.3f}" for name, value in row.loss.items())]
    if row.accuracy:
        parts.append("dev " + " ".join(f"{name} {value:.3f}" for name, value in row.accuracy.items()))
    parts += [f"mse {name} {claim_and_truth(error)}" for name, error in slots(row) if error]
    parts.append(f"air {row.ledger.air_seconds:.3g} s")
    parts.append(f"{sum(row.seconds.values()):.1f} s")
    if row.absent:
        parts.append(f"absent {row.absent} (no finite gradient)")
    return "  ".join(parts)


def slots(row: RoundRecord) -> list[tuple[str, SlotError | None]]:
    """The s-slot's error and the largest of the p-slots'."""
    personal = max(row.mse.p.values(), key=lambda error: error.measured, default=None)
    return [("s", row.mse.s), ("p", personal)]


def claim_and_truth(error: SlotError) -> str:
    """MSE as claimed/measured; a dash where nothing is claimed."""
    return f"{'-' if error.claimed is None else f'{error.claimed:.2e}'}/{error.measured:.2e}"


def final_table(summary: Summary) -> Table:
    """Test metrics of the untouched model and of the tasks' models."""
    table = Table("task", "metric", "untouched", "fine-tuned", "samples", title=f"test split, {summary.rounds} rounds")
    for name, task in summary.tasks.items():
        table.add_row(name, task.metric, number(task.base), number(task.final), str(task.samples))
    table.add_row("average", "", number(summary.average_base), number(summary.average), "", style="bold")
    return table
