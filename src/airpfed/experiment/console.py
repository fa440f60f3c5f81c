"""The console output of a run: a line per round, and a progress bar if the output is a terminal."""

import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from airpfed.config.experiment_files import display_name
from airpfed.core.run_files import Ledger, RoundRecord, Summary, format_metric

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended after a complete round, as shells count signals."""


@dataclass(frozen=True)
class RunConsole:
    """The lines and the progress bar that a run prints."""

    console: Console
    progress: Progress
    bar: TaskID

    def log(self, text: str) -> None:
        """Print a line about the progress."""
        self.console.print(text, style="dim", highlight=False, markup=False)

    def round(self, row: RoundRecord) -> None:
        """Print the line of a round, and advance the bar."""
        self.console.print(round_line(row), highlight=False, markup=False)
        self.progress.update(self.bar, completed=row.round)

    def summary(self, summary: Summary, out: Path) -> None:
        """Print the final table and the cost."""
        self.progress.stop()
        self.console.print(final_table(summary))
        cost = summary.ledger
        self.console.print(
            f"on air {cost.air_seconds:.3g} s, {cost.channel_uses:,} channel uses, {cost.joules_mean:.3g} J a device\n"
            f"{whole_cost(cost)}\n"
            f"{out}: report.html, summary.json, records.jsonl" + (", adapters/" if summary.exit == "completed" else ""),
            highlight=False,
            markup=False,
        )

    def compare_with_expected(self, summary: Summary, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Print a line per expected result of the settings file: its range and the result."""
        for key, (low, high) in ranges.items():
            value = getattr(summary, key)
            verdict = "not scored" if value is None else "met" if low <= value <= high else "MISSED"
            self.console.print(
                f"expected {key} {low:g} to {high:g}: {format_metric(value)}, {verdict}", highlight=False
            )


@contextmanager
def open_console(rounds: int, file: IO[str] | None = None, verbose: bool = True) -> Iterator[RunConsole]:
    """Open the console of a run. Without a terminal there is no bar, and lines are not wrapped.

    file: output of the lines, by default the standard output. verbose: whether anything is printed.
    """
    console = Console(soft_wrap=True, file=file, width=160 if file else None, quiet=not verbose)
    columns = (TextColumn("round"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(
        *columns, console=console, disable=console.quiet or not console.is_terminal, transient=True
    ) as progress:
        yield RunConsole(console, progress, progress.add_task("rounds", total=rounds))


@contextmanager
def interruptible(console: RunConsole) -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C end the run after the current round, and a second Ctrl-C end it at once.

    Only the main thread receives Ctrl-C; in another thread nothing changes.
    """
    requests: list[bool] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(_number: int, _frame: object) -> None:
        requests.append(True)
        signal.signal(signal.SIGINT, previous)
        console.log("stopping after this round (Ctrl-C again: at once; the last round's checkpoint stays)")

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(requests)
    finally:
        signal.signal(signal.SIGINT, previous)


def resume_line(subcommand: str, file: Path, overrides: Sequence[str], out: Path, rounds: int) -> str:
    """Write the line with the command that resumes a run after `rounds` completed rounds."""
    called = Path(sys.argv[0])
    program = str(called) if called.name == "airpfed" and not shutil.which("airpfed") else "airpfed"
    words = [program, *subcommand.split(), display_name(file)]
    words += [part for item in overrides for part in ("--set", item)]
    return f"stopped after round {rounds}; go on with: {shlex.join([*words, '--out', str(out), '--resume'])}"


def round_line(row: RoundRecord) -> str:
    """Write the line of a round: losses and metrics by task, MSE as claimed/measured, seconds, absent devices."""
    parts = [f"round {row.round}", "loss " + " ".join(f"{name} {value:.3f}" for name, value in row.loss.items())]
    if row.accuracy:
        parts.append("dev " + " ".join(f"{name} {value:.3f}" for name, value in row.accuracy.items()))
    personal = max(row.mse.p.values(), key=lambda error: error.measured, default=None)
    for name, error in (("s", row.mse.s), ("p", personal)):  # of the p-slots, the one with the largest error
        if error:
            claimed = "-" if error.claimed is None else f"{error.claimed:.2e}"
            parts.append(f"mse {name} {claimed}/{error.measured:.2e}")
    parts.append(f"air {row.ledger.air_seconds:.3g} s")
    parts.append(f"{sum(row.seconds.values()):.1f} s")
    if row.clipped is not None:
        parts.append(f"clipped {row.clipped:.0%}")
    if absent := [device for device in row.absent if device not in row.late]:
        parts.append(f"absent {absent} (no finite gradient)")
    if row.late:
        parts.append(f"late {row.late}")
    return "  ".join(parts)


def whole_cost(cost: Ledger) -> str:
    """Write the line of the whole cost: seconds of both links and of computing, and the mean energy of a device."""
    return (
        f"in all {cost.total_seconds:.3g} s: uplink {cost.air_seconds:.3g}, downlink {cost.downlink_seconds:.3g}, "
        f"computing {cost.compute_seconds:.3g}; {cost.total_joules_mean:.3g} J a device: radiated "
        f"{cost.radiated_joules:.3g}, amplifier {cost.amplifier_joules:.3g}, circuits {cost.circuit_joules:.3g}, "
        f"computing {cost.compute_joules:.3g}"
    )


def final_table(summary: Summary) -> Table:
    """Build the table of test metrics of the untouched model and of the tasks' models."""
    table = Table("task", "metric", "untouched", "fine-tuned", "samples", title=f"test split, {summary.rounds} rounds")
    for name, task in summary.tasks.items():
        table.add_row(name, task.metric, format_metric(task.base), format_metric(task.final), str(task.samples))
        for label, value in task.base_metrics.items():
            table.add_row("", label, format_metric(value), format_metric(task.final_metrics.get(label)), "")
    table.add_row("average", "", format_metric(summary.average_base), format_metric(summary.average), "", style="bold")
    return table
