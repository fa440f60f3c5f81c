"""Interactive figures of one run, or of several side by side, as plotly takes them.

A chart of one run has a line per task; a chart of several runs has a line per run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean
from typing import Any

from airpfed.core.run_files import NetworkLayout, Probe, RoundRecord, Theory
from airpfed.report.runs import RunData
from airpfed.report.style import PALETTE
from airpfed.theory.verification import applicable_bound, average_bounds

Figure = dict[str, Any]
"""title; data and layout as plotly takes them; across, where the reader may choose: key -> title and x of traces."""
Positions = Mapping[str, Sequence[int | float]]
"""A key of X_AXES -> the horizontal positions of a trace's points. "round" is always there."""

X_AXES = {
    "round": "round",
    "seconds": "seconds on air",
    "joules": "joules radiated, mean of devices",
    "total_seconds": "seconds in all",
    "total_joules": "joules in all, mean of devices",
}
"""The horizontal axes that the reader can choose from, and their titles."""
SYMBOLS = ("circle", "square", "triangle-up", "cross", "triangle-down", "pentagon", "x")
DIAMOND = {"symbol": "diamond", "size": 10}
SPLITS = "lines: dev split; diamonds: test split"
CAUSES = {"gap": "loss gap", "sgd": "SGD noise", "heterogeneity": "data heterogeneity", "channel": "channel"}
"""Parts of Psi_T in the order in which they are stacked, with their labels."""


@dataclass(frozen=True)
class Trace:
    """A line of a chart. style: plotly's keys that differ from a line with markers."""

    name: str
    x: Positions
    y: Sequence[int | float | None]
    style: Mapping[str, Any]


def figures_of(runs: Sequence[RunData]) -> dict[str, dict[str, Figure]]:
    """All figures of a page: tab -> name -> figure."""
    single = len(runs) == 1
    figures: dict[str, dict[str, Figure]] = {
        "overview": {"tasks": task_figure(runs)},
        "learning": {"accuracy": metric_figure(runs), "loss": loss_figure(runs)},
        "air": ({"errors": error_figure(runs[0])} if single else {}) | {"pi": pi_figure(runs)},
        "ledger": {"air-time": air_time_figure(runs)},
    }
    if not single:
        for i, name in enumerate(task_names(runs)):
            figures["learning"][f"accuracy-{i}"] = metric_figure(runs, name)
    layouts = [run.layout for run in runs]
    for i, layout in enumerate(layouts):
        if layout is not None and layout not in layouts[:i]:
            names = ", ".join(run.name for run in runs if run.layout == layout)
            figures["air"]["layout" if single else f"layout-{i}"] = with_run_names(
                layout_figure(layout), "" if single else names
            )
    if any(run.probe for run in runs):
        figures["theory"] = {} if single else {"psi": psi_figure(runs)}
    for i, run in enumerate(runs):
        if run.probe is not None:
            for name, make in THEORY_FIGURES.items():
                figure = with_run_names(make(run.records, run.probe), "" if single else run.name)
                figures["theory"][name if single else f"{name}-{i}"] = figure
    return figures


def with_run_names(figure: Figure, names: str) -> Figure:
    """The figure with the names of its runs in the title, if there are any."""
    return {**figure, "title": f"{figure['title']}: {names}"} if names else figure


def line_chart(
    title: str, x_title: str, y_title: str, traces: Sequence[Trace], costs: bool = False, **y_axis: Any
) -> Figure:
    """A line chart over rounds. costs: the reader can choose seconds on air or joules as the horizontal axis."""
    figure: Figure = {
        "title": title,
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": trace.name,
                "x": list(trace.x["round"]),
                "y": list(trace.y),
                "connectgaps": True,
                **trace.style,
            }
            for trace in traces
        ],
        "layout": {
            "xaxis": {"title": {"text": x_title}, "zeroline": False},
            "yaxis": {"title": {"text": y_title}, "zeroline": False, **y_axis},
        },
    }
    if costs:
        figure["across"] = {
            key: {"title": text, "x": [trace.x[key] for trace in traces]} for key, text in X_AXES.items()
        }
    return figure


def rounds_of(records: Sequence[RoundRecord]) -> Positions:
    """The positions of all rounds, for a chart over rounds alone."""
    return {"round": [row.round for row in records]}


def costs_so_far(
    records: Sequence[RoundRecord], selected: Callable[[RoundRecord], bool] = lambda row: True
) -> Positions:
    """The positions of the selected rounds: number, and seconds on air and joules up to and with each."""
    sums = accumulate((row.ledger for row in records), lambda a, b: a + b)
    pairs = [(row, cost) for row, cost in zip(records, sums, strict=True) if selected(row)]
    return {
        "round": [row.round for row, _ in pairs],
        "seconds": [cost.air_seconds for _, cost in pairs],
        "joules": [cost.joules_mean for _, cost in pairs],
        "total_seconds": [cost.total_seconds for _, cost in pairs],
        "total_joules": [cost.total_joules_mean for _, cost in pairs],
    }


def colour(index: int, dash: str = "") -> dict[str, Any]:
    """The style of the index-th task or run: colour and marker, and from the eighth on dashes."""
    shade, k = PALETTE[index % len(PALETTE)], max(index, 0) // len(PALETTE)
    line = {"color": shade, "dash": dash or ("solid", "dash", "dashdot")[k % 3]}
    return {"line": line, "marker": {"color": shade, "size": 6, "symbol": SYMBOLS[index % len(SYMBOLS)]}}


def task_names(runs: Sequence[RunData]) -> list[str]:
    """All tasks of the runs, in order of appearance."""
    return list(dict.fromkeys(name for run in runs for name in run.summary.tasks))


def metric_axis(runs: Sequence[RunData]) -> dict[str, Any]:
    """The range of an axis of metrics: from 0 to 1, unless one is a perplexity."""
    bounded = all(task.larger_is_better for run in runs for task in run.summary.tasks.values())
    return {"range": [0, 1.02]} if bounded else {}


def task_figure(runs: Sequence[RunData]) -> Figure:
    """The tasks' metrics on the test split as bars, run beside run.

    A rule marks the metrics of the untouched model if they agree in all runs.
    """
    names = task_names(runs)
    by_run = [[run.summary.tasks.get(name) for name in names] for run in runs]
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": run.name if len(runs) > 1 else "its model",
            "x": names,
            "y": [task.final if task else None for task in tasks],
            "marker": {"color": PALETTE[i % 7]},
        }
        for i, (run, tasks) in enumerate(zip(runs, by_run, strict=True))
    ]
    bases = [[task.base for task in tasks if task] for tasks in by_run]
    if all(base == bases[0] for base in bases):
        marker = {"symbol": "line-ew-open", "size": 28, "color": PALETTE[6], "line": {"width": 2}}
        rule = {"type": "scatter", "mode": "markers", "name": "untouched model", "marker": marker}
        traces.append({**rule, "x": names, "y": bases[0]})
    chart = line_chart("Metric by task, test split", "", "metric", [], **metric_axis(runs))
    return {**chart, "data": traces}


def metric_figure(runs: Sequence[RunData], task: str | None = None) -> Figure:
    """The metric over rounds: a line per task for one run, a line per run for several.

    task: for several runs, the task that is shown; None shows the mean over each run's tasks.

    Lines show the dev split in the rounds that evaluated all of a line's tasks, diamonds the test split before the
    first round and after the last.
    """
    if len(runs) == 1:
        title, lines = "Metric by task", [(name, runs[0], [name]) for name in runs[0].summary.tasks]
    elif task is None:
        title, lines = "Metric, mean of tasks", [(run.name, run, list(run.summary.tasks)) for run in runs]
    else:
        title, lines = f"Metric of {task}", [(run.name, run, [task]) for run in runs]
    traces: list[Trace] = []
    for index, (label, run, names) in enumerate(lines):
        if not set(names) <= set(run.summary.tasks):
            continue

        def complete(row: RoundRecord, names: Sequence[str] = names) -> bool:
            return all(name in row.accuracy for name in names)

        dev = [fmean(row.accuracy[name] for name in names) for row in run.records if complete(row)]
        if dev:
            traces.append(Trace(f"{label} (dev)", costs_so_far(run.records, complete), dev, colour(index)))
        tasks, cost = [run.summary.tasks[name] for name in names], run.summary.ledger
        finals = [task.final for task in tasks if task.final is not None]
        ends: Positions = {
            "round": [0, run.summary.rounds],
            "seconds": [0.0, cost.air_seconds],
            "joules": [0.0, cost.joules_mean],
            "total_seconds": [0.0, cost.total_seconds],
            "total_joules": [0.0, cost.total_joules_mean],
        }
        test = [fmean(task.base for task in tasks), fmean(finals) if len(finals) == len(tasks) else None]
        marker = {**DIAMOND, "color": PALETTE[index % len(PALETTE)]}
        style = {"mode": "markers", "marker": marker, "showlegend": not dev}  # one entry of the legend for both
        traces.append(Trace(f"{label} (test)", ends, test, style))
    return line_chart(f"{title} ({SPLITS})", X_AXES["round"], "metric", traces, costs=True, **metric_axis(runs))


def loss_figure(runs: Sequence[RunData]) -> Figure:
    """Training loss of the rounds' batches: a line per task for one run, the mean over tasks per run for several."""
    if len(runs) == 1:
        title, rows = "Training loss by task", runs[0].records
        lines = [(name, rows, [row.loss.get(name) for row in rows]) for name in runs[0].summary.tasks]
    else:
        title = "Training loss, mean of tasks"
        lines = [
            (run.name, run.records, [fmean(row.loss.values()) if row.loss else None for row in run.records])
            for run in runs
        ]
    traces = [Trace(name, costs_so_far(rows), values, colour(i)) for i, (name, rows, values) in enumerate(lines)]
    return line_chart(title, X_AXES["round"], "loss, nats", traces, costs=True)


def error_figure(run: RunData) -> Figure:
    """The MSE of the s-slot and of each p-slot: measured (solid) and claimed (dotted)."""
    records, traces = run.records, list[Trace]()
    rows: dict[str, list[Any]] = {"s": [row.mse.s for row in records]}
    rows |= {f"p {name}": [row.mse.p.get(name) for row in records] for name in run.summary.tasks}
    for index, (name, errors) in enumerate(rows.items(), start=-1):  # tasks keep their colours; s has the last, black
        if any(errors):
            measured, claimed = ([getattr(e, key) if e else None for e in errors] for key in ("measured", "claimed"))
            dotted = {**colour(index, "dot"), "mode": "lines"}
            traces.append(Trace(f"{name} measured", rounds_of(records), measured, colour(index)))
            traces.append(Trace(f"{name} claimed", rounds_of(records), claimed, dotted))
    return line_chart("Error of the over-the-air sums", "round", "MSE per normalised entry", traces, type="log")


def pi_figure(runs: Sequence[RunData]) -> Figure:
    """Pi of each round: measured (solid) and claimed (dotted)."""
    traces: list[Trace] = []
    for index, run in enumerate(runs):
        name, rounds = run.name if len(runs) > 1 else "", rounds_of(run.records)
        dotted = {**colour(index, "dot"), "mode": "lines"}
        traces.append(Trace(f"{name} measured".strip(), rounds, [row.pi for row in run.records], colour(index)))
        traces.append(Trace(f"{name} claimed".strip(), rounds, [row.pi_claimed for row in run.records], dotted))
    return line_chart("\u03a0, the sums' error weighted by the adapters' shares", "round", "\u03a0", traces, type="log")


def air_time_figure(runs: Sequence[RunData]) -> Figure:
    """Seconds on air up to and with each round."""
    traces: list[Trace] = []
    for index, run in enumerate(runs):
        costs = costs_so_far(run.records)
        traces.append(Trace(run.name if len(runs) > 1 else "", costs, costs["seconds"], colour(index)))
    return line_chart("Seconds on air so far", "round", "seconds on air", traces)


def layout_figure(layout: NetworkLayout) -> Figure:
    """Stations and devices from above, in metres, each device with its mean gain."""
    traces: list[dict[str, Any]] = []
    for index, name in enumerate(dict.fromkeys(device.task for device in layout.devices)):
        devices = [(number, device) for number, device in enumerate(layout.devices) if device.task == name]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [device.x for _, device in devices],
                "y": [device.y for _, device in devices],
                "text": [f"device {number}, {device.gain_db:.1f} dB" for number, device in devices],
                "marker": {"color": PALETTE[index % len(PALETTE)], "size": 7},
            }
        )
    x, y = zip(*layout.stations, strict=True)
    station = {"symbol": "triangle-up", "size": 12 if len(x) < 50 else 5, "color": "#777777"}
    traces.append({"type": "scatter", "mode": "markers", "name": "stations", "x": x, "y": y, "marker": station})
    chart = line_chart("Stations and devices", "east, m", "north, m", [], scaleanchor="x")
    return {**chart, "data": traces}


def psi_figure(runs: Sequence[RunData]) -> Figure:
    """Psi_T over T of the runs that have a probe."""
    traces: list[Trace] = []
    for i, run in enumerate(runs):
        if run.probe:
            values = [bound.total if bound else None for bound in average_bounds(run.records, run.probe)]
            traces.append(Trace(run.name, rounds_of(run.records), values, colour(i)))
    return line_chart("Average bound", "rounds T", "\u03a8_T", traces, type="log")


def monitored_rounds(records: Sequence[RoundRecord]) -> tuple[Positions, list[Theory]]:
    """The positions of the rounds with a theory row, and their rows."""
    rows = [record for record in records if record.theory]
    return rounds_of(rows), [record.theory for record in rows if record.theory]


def decrease_figure(records: Sequence[RoundRecord], probe: Probe) -> Figure:
    """The change of F in each monitored round, measured and bounded; open markers where an assumption failed."""
    rounds, rows = monitored_rounds(records)
    marker = {"color": PALETTE[0], "symbol": ["circle-open" if row.failed else "circle" for row in rows], "size": 8}
    notes = ["failed: " + ", ".join(row.failed) if row.failed else "assumptions held" for row in rows]
    traces = [
        Trace("measured", rounds, [row.change for row in rows], {**colour(0), "marker": marker, "text": notes}),
        Trace("mean over channel draws", rounds, [row.change_mean for row in rows], colour(5, "dot")),
        Trace("(38), E1 + E2 + E3 + E4", rounds, [row.bounds.descent for row in rows], colour(2)),
        Trace(
            "(41)" if probe.unbiased else "ours, for biased sums",
            rounds,
            [applicable_bound(row, probe) for row in rows],
            colour(1),
        ),
    ]
    if probe.unbiased:
        printed = [row.bounds.one_round_printed for row in rows]
        traces.append(Trace("(41), A3 as printed", rounds, printed, colour(4, "dot")))
        traces.append(Trace("ours", rounds, [row.bounds.one_round_ours for row in rows], colour(3)))
    return line_chart("Change of F in a round, measured and bounded", "round", "F after - F before, nats", traces)


def share_figure(records: Sequence[RoundRecord], probe: Probe) -> Figure:
    """The shares of the causes in Psi_T, stacked, over T."""
    bounds = average_bounds(records, probe)
    traces = [
        Trace(
            label,
            rounds_of(records),
            [bound.shares[cause] if bound else None for bound in bounds],
            {"mode": "none", "stackgroup": "all", "fillcolor": PALETTE[index]},
        )
        for index, (cause, label) in enumerate(CAUSES.items())
    ]
    return line_chart("Shares of the average bound", "rounds T", "share of \u03a8_T", traces, range=[0, 1])


def average_figure(records: Sequence[RoundRecord], probe: Probe) -> Figure:
    """Psi_T over T beside the mean of the measured Lambda."""
    bounds = [bound.total if bound else None for bound in average_bounds(records, probe)]
    rounds, rows = monitored_rounds(records)
    sums = accumulate(row.gradient for row in rows)
    traces = [
        Trace("\u03a8_T", rounds_of(records), bounds, colour(1)),
        Trace("mean of metered \u039b", rounds, [total / count for count, total in enumerate(sums, 1)], colour(0)),
        Trace("\u039b of a round", rounds, [row.gradient for row in rows], colour(5, "dot")),
    ]
    return line_chart("Average bound and gradients", "rounds T", "squared norm", traces, type="log")


THEORY_FIGURES: dict[str, Callable[[Sequence[RoundRecord], Probe], Figure]] = {
    "theory-decrease": decrease_figure,
    "theory-shares": share_figure,
    "theory-average": average_figure,
}
