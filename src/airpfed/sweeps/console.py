"""What a sweep shows: a bar over all rounds of all cells on a terminal, a line a cell elsewhere; a table at the end."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from airpfed.core.run_files import Summary, format_metric
from airpfed.sweeps.tables import Interval, Mean, Where
from airpfed.sweeps.trials import Trial, names, place_of
from airpfed.sweeps.worker import Result

Passed = Callable[[Trial, Result, Summary | None], None]
COLUMNS = {"average": "average", "worst": "worst task", "others": "other tasks"}
"""Measures of the final table that are metrics, and their heads."""
COSTS = ("pi_mean", "air_seconds", "joules_mean")


class SweepScreen:
    """Where a sweep's lines go: standard error, so that tables and JSON can be piped."""

    def __init__(self) -> None:
        """On standard error."""
        self.console = Console(stderr=True, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line of what is happening."""
        self.console.print(text, style="dim", highlight=False, markup=False)

    @contextmanager
    def progress(self, what: str, cells: Sequence[Trial], home: Path) -> Iterator[tuple[Callable[[], None], Passed]]:
        """A bar over the rounds of `cells`, read off their records: (look again, a cell has ended)."""
        total, ended = sum(cell.settings.server.rounds for cell in cells), [0]
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
        with Progress(
            *columns, TimeRemainingColumn(), TextColumn("left"), console=self.console, transient=True,
            disable=not self.console.is_terminal,
        ) as bar:  # fmt: skip
            task = bar.add_task(f"{what} 0/{len(cells)}", total=total)

            def tick() -> None:
                done = sum(rounds_done(place_of(cell, home)) for cell in cells) if not bar.disable else 0
                bar.update(task, completed=done, description=f"{what} {ended[0]}/{len(cells)}")

            def passed(cell: Trial, result: Result, summary: Summary | None) -> None:
                ended[0] += 1
                again = f" ({result.why})" if result.end == "done" and result.why else ""
                self.say(f"{ended[0]}/{len(cells)} {cell.folder}: {told(result, summary)}{again}")
                tick()

            yield tick, passed


def rounds_done(folder: Path) -> int:
    """Rounds that a run has written down."""
    try:
        return (folder / "records.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def told(result: Result, summary: Summary | None) -> str:
    """How a cell ended, in a few words."""
    if result.end != "done" or summary is None:
        return f"{result.end} {result.why}".strip()
    if summary.average is None:
        reached = [task.dev for task in summary.tasks.values() if task.dev is not None]
        return f"dev {format_metric(sum(reached) / len(reached) if reached else None)}"
    return f"average {format_metric(summary.average)}"


def table(found: Sequence[Mean], against: Mapping[str, str]) -> Table:
    """A line a point: metrics with 95 % intervals, the paired difference from the reference, Pi and what it cost."""
    points: dict[Where, dict[str, Mean]] = {}
    for mean in found:
        points.setdefault(mean.where, {})[mean.measure] = mean
    axes = [axis for axis, _ in next(iter(points), ())]
    shown = [key for key in COLUMNS if any(key in one for one in points.values())]
    what = " ".join(f"{axis}={value}" for axis, value in against.items())
    heads = [*names(axes), "seeds", *(COLUMNS[key] for key in shown), "minus reference", "Pi", "s on air", "J a device"]
    made = Table(*heads, title=f"mean and 95 % interval over seeds{f'; reference {what}' if what else ''}")
    for where, one in points.items():
        average = one.get("average")
        gap = average.difference if average else None
        costs = [f"{one[key].value.mean:.3g}" if key in one else "-" for key in COSTS]
        values = [in_brackets(one[key].value) if key in one else "-" for key in shown]
        seeds = str(average.value.count if average else 0)
        made.add_row(*(value for _, value in where), seeds, *values, in_brackets(gap, "+") if gap else "", *costs)
    return made


def in_brackets(value: Interval, sign: str = "") -> str:
    """`0.832 [0.815, 0.849]`; the mean alone where there is no interval."""
    if value.low is None:
        return f"{value.mean:{sign}.3f}"
    return f"{value.mean:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"
