"""Figures of several runs side by side: a colour a run."""

from collections.abc import Callable, Sequence
from statistics import fmean

from airpfed.core.run_files import RoundRecord
from airpfed.report.figures import (
    HOW,
    Course,
    Figure,
    Series,
    air_times,
    bars,
    chart,
    colour,
    ends,
    metric,
    over,
    pis,
    spent,
)
from airpfed.report.runs import Run
from airpfed.theory.verification import average_bounds


def task_names(runs: Sequence[Run]) -> list[str]:
    """All tasks of the runs, in the order met."""
    return list(dict.fromkeys(name for run in runs for name in run.summary.tasks))


def tasks(runs: Sequence[Run]) -> Figure:
    """The tasks' metrics on the test split, run beside run."""
    names = task_names(runs)
    found = [[run.summary.tasks.get(name) for name in names] for run in runs]
    finals = {run.name: [one.final if one else None for one in own] for run, own in zip(runs, found, strict=True)}
    return bars(names, finals, [[one.base for one in own if one] for own in found])


def accuracy(runs: Sequence[Run]) -> Figure:
    """Mean metric of the tasks: base and final on the test split (diamonds), dev split during the run (lines)."""
    return courses(runs, list, "Metric, mean of tasks")


def task_accuracy(runs: Sequence[Run], name: str) -> Figure:
    """One task's metric by run, as `accuracy`."""
    having = [run for run in runs if name in run.summary.tasks]
    return courses(having, lambda _: [name], f"Metric of {name}", [runs.index(run) for run in having])


def courses(
    runs: Sequence[Run],
    chosen: Callable[[Sequence[str]], Sequence[str]],
    title: str,
    colours: Sequence[int] | None = None,
) -> Figure:
    """Mean metric of the tasks that are chosen of a run's; the dev split's in the rounds that evaluated all of them."""
    series: list[Course] = []
    for index, run in zip(colours or range(len(runs)), runs, strict=False):
        names = chosen(list(run.summary.tasks))

        def whole(row: RoundRecord, names: Sequence[str] = names) -> bool:
            return all(name in row.accuracy for name in names)

        reached = [fmean(row.accuracy[name] for name in names) for row in run.records if whole(row)]
        finals = [run.summary.tasks[name].final for name in names]
        known = [one for one in finals if one is not None]
        last = fmean(known) if len(known) == len(finals) else None
        base = fmean(run.summary.tasks[name].base for name in names)
        series += metric(run.name, index, (spent(run.records, whole), reached), (ends(run.summary), [base, last]))
    return over(f"{title} ({HOW})", "metric", series, range=[0, 1.02])


def loss(runs: Sequence[Run]) -> Figure:
    """Mean of the tasks' training losses, by run."""
    series = [
        (
            run.name,
            spent(run.records),
            [fmean(row.loss.values()) if row.loss else None for row in run.records],
            colour(i),
        )
        for i, run in enumerate(runs)
    ]
    return over("Training loss, mean of tasks", "loss, nats", series)


def pi(runs: Sequence[Run]) -> Figure:
    """Pi of each round, by run."""
    return pis({run.name: run.records for run in runs})


def air_time(runs: Sequence[Run]) -> Figure:
    """Seconds on air so far, by run."""
    return air_times({run.name: run.records for run in runs})


def psi(runs: Sequence[Run]) -> Figure:
    """Psi_T over T of the runs with a probe."""
    series: list[Series] = []
    for i, run in enumerate(runs):
        if run.probe:
            found = [one.total if one else None for one in average_bounds(run.records, run.probe)]
            series.append((run.name, [row.round for row in run.records], found, colour(i)))
    return chart("Average bound", "rounds T", "\u03a8_T", series, type="log")


SIDE: dict[str, dict[str, Callable[[Sequence[Run]], Figure]]] = {
    "overview": {"tasks": tasks},
    "learning": {"accuracy": accuracy, "loss": loss},
    "air": {"pi": pi},
    "ledger": {"air-time": air_time},
}
"""Tab of the page -> name -> figure of several runs."""
