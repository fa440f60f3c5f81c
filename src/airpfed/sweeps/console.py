"""A sweep's progress and results: a bar over the rounds of all trials on a terminal, a line for each trial, a table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from airpfed.core.run_files import Summary, format_metric
from airpfed.sweeps.tables import Coordinates, Interval, Mean
from airpfed.sweeps.trials import Trial, axis_names, trial_folder
from airpfed.sweeps.worker import Result

TrialCallback = Callable[[Trial, Result, Summary | None], None]
METRIC_COLUMNS = {"average": "average", "worst": "worst task", "others": "other tasks"}
"""Metrics of the final table -> their column heads."""
COST_COLUMNS = ("pi_mean", "air_seconds", "joules_mean")


class SweepConsole:
    """Lines and progress of a sweep on standard error, so that tables and JSON can be piped."""

    def __init__(self, verbose: bool = True) -> None:
        """Open the console on standard error. verbose: whether anything is printed."""
        self.console = Console(stderr=True, soft_wrap=True, quiet=not verbose)

    def log(self, text: str) -> None:
        """Print one line about the progress."""
        self.console.print(text, style="dim", highlight=False, markup=False)

    @contextmanager
    def progress(
        self, description: str, trials: Sequence[Trial], sweep_folder: Path
    ) -> Iterator[tuple[Callable[[], None], TrialCallback]]:
        """Show a bar over the rounds of `trials`, read from their records.

        Yields (refresh the bar, report the end of a trial).
        """
        total, ended = sum(trial.settings.server.rounds for trial in trials), 0
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        with Progress(
            *columns, TimeRemainingColumn(), TextColumn("left"), console=self.console, transient=True,
            disable=self.console.quiet or not self.console.is_terminal,
        ) as bar:  # fmt: skip
            task = bar.add_task(f"{description} 0/{len(trials)}", total=total)

            def refresh() -> None:
                done = 0
                if not bar.disable:
                    done = sum(count_rounds(trial_folder(trial, sweep_folder)) for trial in trials)
                bar.update(task, completed=done, description=f"{description} {ended}/{len(trials)}")

            def end_trial(trial: Trial, result: Result, summary: Summary | None) -> None:
                nonlocal ended
                ended += 1
                restarted = f" ({result.reason})" if result.end == "done" and result.reason else ""
                self.log(f"{ended}/{len(trials)} {trial.folder}: {outcome_text(result, summary)}{restarted}")
                refresh()

            yield refresh, end_trial


def count_rounds(folder: Path) -> int:
    """The number of rounds in a run's records file."""
    try:
        return (folder / "records.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def outcome_text(result: Result, summary: Summary | None) -> str:
    """The end of a trial in a few words."""
    if result.end != "done" or summary is None:
        return f"{result.end} {result.reason}".strip()
    if summary.average is None:
        dev = [task.dev for task in summary.tasks.values() if task.dev is not None]
        return f"dev {format_metric(sum(dev) / len(dev) if dev else None)}"
    return f"average {format_metric(summary.average)}"


def means_table(means: Sequence[Mean], reference: Mapping[str, str]) -> Table:
    """The final table, a row per point: metrics with 95 % intervals, difference from the reference, Pi, and costs."""
    points: dict[Coordinates, dict[str, Mean]] = {}
    for mean in means:
        points.setdefault(mean.point, {})[mean.measure] = mean
    axes = [axis for axis, _ in next(iter(points), ())]
    metrics = [key for key in METRIC_COLUMNS if any(key in by_measure for by_measure in points.values())]
    heads = [*axis_names(axes), "seeds", *(METRIC_COLUMNS[key] for key in metrics), "minus reference"]
    title = "mean and, from 3 seeds on, 95 % interval over seeds"
    if reference:
        title += "; reference " + " ".join(f"{axis}={value}" for axis, value in reference.items())
    table = Table(*heads, "Pi", "s on air", "J a device", title=title)
    for point, by_measure in points.items():
        average = by_measure.get("average")
        difference = average.difference if average else None
        table.add_row(
            *(value for _, value in point),
            str(average.value.count if average else 0),
            *(interval_text(by_measure[key].value) if key in by_measure else "-" for key in metrics),
            interval_text(difference, "+") if difference else "",
            *(f"{by_measure[key].value.mean:.3g}" if key in by_measure else "-" for key in COST_COLUMNS),
        )
    return table


def interval_text(value: Interval, sign: str = "") -> str:
    """`0.832 [0.815, 0.849]`, or the mean alone of fewer than 3 seeds, whose interval says next to nothing."""
    if value.low is None or value.count < 3:
        return f"{value.mean:{sign}.3f}"
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"
