"""A run's records to interactive figures: one function a figure, each from plain rows."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from airpfed.core.run_files import NetworkLayout, RoundRecord, Summary
from airpfed.report.style import PALETTE

Figure = dict[str, Any]
"""title; data and layout as plotly takes them; across, where the reader may choose: key -> title and x of traces."""
Series = tuple[str, Sequence[int | float], Sequence[int | float | None], dict[str, Any]]
Spent = Mapping[str, Sequence[int | float]]
"""A key of ACROSS -> its value at every point of a series."""
Course = tuple[str, Spent, Sequence[float | None], dict[str, Any]]
"""Name, where its points lie, y values, style."""

ACROSS = {"round": "round", "seconds": "seconds on air", "joules": "joules radiated, mean of devices"}
"""What a course can be drawn over."""
SYMBOLS = ("circle", "square", "triangle-up", "cross", "triangle-down", "pentagon", "x")
DIAMOND = {"symbol": "diamond", "size": 10}
HOW = "lines: dev split; diamonds: test split"


def chart(title: str, x: str, y: str, series: Sequence[Series], **axis: Any) -> Figure:
    """A line chart as a plotly figure: series are (name, x values, y values, style)."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": list(xs),
            "y": list(ys),
            "connectgaps": True,
            **s,
        }
        for name, xs, ys, s in series
    ]
    layout = {
        "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"title": {"text": y}, "zeroline": False, **axis},
    }
    return {"title": title, "data": traces, "layout": layout}


def over(title: str, y: str, series: Sequence[Course], **axis: Any) -> Figure:
    """A line chart over rounds, that the reader may turn into one over seconds on air or joules."""
    made = chart(title, ACROSS["round"], y, [(name, x["round"], ys, style) for name, x, ys, style in series], **axis)
    return {
        **made,
        "across": {key: {"title": said, "x": [x[key] for _, x, _, _ in series]} for key, said in ACROSS.items()},
    }


def spent(
    records: Sequence[RoundRecord], where: Callable[[RoundRecord], bool] = lambda row: True
) -> dict[str, Sequence[int | float]]:
    """What had been spent after each round, of those rounds that are wanted."""
    sums = accumulate((row.ledger for row in records), lambda a, b: a + b)
    pairs = [(row, cost) for row, cost in zip(records, sums, strict=True) if where(row)]
    return {
        "round": [row.round for row, _ in pairs],
        "seconds": [cost.air_seconds for _, cost in pairs],
        "joules": [cost.joules_mean for _, cost in pairs],
    }


def ends(summary: Summary) -> dict[str, Sequence[int | float]]:
    """What had been spent before the first round, and in the whole run."""
    cost = summary.ledger
    return {"round": [0, summary.rounds], "seconds": [0.0, cost.air_seconds], "joules": [0.0, cost.joules_mean]}


def colour(index: int, dash: str = "") -> dict[str, Any]:
    """Line style of the index-th task or run: colour and mark, and dashes from the eighth on."""
    shade, k = PALETTE[index % len(PALETTE)], max(index, 0) // len(PALETTE)
    line = {"color": shade, "dash": dash or ("solid", "dash", "dashdot")[k % 3]}
    return {"line": line, "marker": {"color": shade, "size": 6, "symbol": SYMBOLS[index % len(SYMBOLS)]}}


def metric(
    name: str, index: int, dev: tuple[Spent, Sequence[float | None]], test: tuple[Spent, Sequence[float | None]]
) -> list[Course]:
    """A task's or run's metric: a line over the dev split where it was evaluated, diamonds at the test split's.

    One of them is in the legend, both are named where one points at them.
    """
    mark = {"mode": "markers", "marker": {**DIAMOND, "color": PALETTE[index % len(PALETTE)]}, "showlegend": not dev[1]}
    line: list[Course] = [(f"{name} (dev)", *dev, colour(index))] if dev[1] else []
    return [*line, (f"{name} (test)", *test, mark)]


def tasks(records: Sequence[RoundRecord], summary: Summary) -> Figure:
    """The tasks' metrics on the test split: bars, and a rule at the untouched model."""
    values: dict[str, Sequence[Any]] = {"": [task.final for task in summary.tasks.values()]}
    return bars(list(summary.tasks), values, [[task.base for task in summary.tasks.values()]])


def bars(
    names: Sequence[str], finals: Mapping[str, Sequence[float | None]], bases: Sequence[Sequence[float]]
) -> Figure:
    """Bars by task, a run beside the other; bases: the untouched model's metrics by run, drawn where all agree."""
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": run or "its model",
            "x": list(names),
            "y": list(ys),
            "marker": {"color": PALETTE[i % 7]},
        }
        for i, (run, ys) in enumerate(finals.items())
    ]
    if all(base == bases[0] for base in bases):
        mark = {"symbol": "line-ew-open", "size": 28, "color": PALETTE[6], "line": {"width": 2}}
        base = {"type": "scatter", "mode": "markers", "name": "untouched model", "marker": mark}
        traces.append({**base, "x": list(names), "y": list(bases[0])})
    made = chart("Metric by task, test split", "", "metric", [], range=[0, 1.02])
    return {**made, "data": traces}


def accuracy(records: Sequence[RoundRecord], summary: Summary) -> Figure:
    """Metric by task: base and final on the test split (diamonds), dev split during the run (lines)."""
    series: list[Course] = []
    for index, (name, task) in enumerate(summary.tasks.items()):
        points = spent(records, lambda row, name=name: name in row.accuracy)  # type: ignore[misc]
        reached: list[float | None] = [row.accuracy[name] for row in records if name in row.accuracy]
        series += metric(name, index, (points, reached), (ends(summary), [task.base, task.final]))
    return over(f"Metric by task ({HOW})", "metric", series, range=[0, 1.02])


def loss(records: Sequence[RoundRecord], summary: Summary) -> Figure:
    """Training loss of each round's batches, by task."""
    points = spent(records)
    series = [(name, points, [r.loss.get(name) for r in records], colour(i)) for i, name in enumerate(summary.tasks)]
    return over("Training loss by task", "loss, nats", series)


def errors(records: Sequence[RoundRecord], summary: Summary) -> Figure:
    """MSE of the s-slot and of each p-slot: measured (solid) beside claimed (dotted)."""
    rows: dict[str, list[Any]] = {"s": [row.mse.s for row in records]}
    rows |= {f"p {name}": [row.mse.p.get(name) for row in records] for name in summary.tasks}
    rounds = [row.round for row in records]
    series: list[Series] = []
    for index, (name, errors) in enumerate(rows.items(), start=-1):  # tasks keep their colours; s has the last, black
        if any(errors):
            measured = [e.measured if e else None for e in errors]
            series.append((f"{name} measured", rounds, measured, colour(index)))
            claimed = [e.claimed if e else None for e in errors]
            series.append((f"{name} claimed", rounds, claimed, {**colour(index, "dot"), "mode": "lines"}))
    return chart("Error of the over-the-air sums", "round", "MSE per normalised entry", series, type="log")


def pi(records: Sequence[RoundRecord], summary: Summary) -> Figure:
    """Pi of each round, measured and claimed."""
    return pis({"": records})


def pis(runs: Mapping[str, Sequence[RoundRecord]]) -> Figure:
    """Pi of each round by run, measured (solid) beside claimed (dotted)."""
    series: list[Series] = []
    for index, (name, records) in enumerate(runs.items()):
        rounds = [row.round for row in records]
        claimed = {**colour(index, "dot"), "mode": "lines"}
        series.append((f"{name} measured".strip(), rounds, [row.pi for row in records], colour(index)))
        series.append((f"{name} claimed".strip(), rounds, [row.pi_claimed for row in records], claimed))
    return chart("\u03a0, the sums' error weighted by the adapters' shares", "round", "\u03a0", series, type="log")


def air_time(records: Sequence[RoundRecord], summary: Summary) -> Figure:
    """Seconds on air spent so far."""
    return air_times({"": records})


def air_times(runs: Mapping[str, Sequence[RoundRecord]]) -> Figure:
    """Seconds on air spent so far, by run."""
    series: list[Series] = []
    for index, (name, records) in enumerate(runs.items()):
        points = spent(records)
        series.append((name, points["round"], points["seconds"], colour(index)))
    return chart("Seconds on air so far", "round", "seconds on air", series)


def layout(place: NetworkLayout) -> Figure:
    """Stations and devices from above, metres; a device's label tells its mean gain."""
    traces: list[dict[str, Any]] = []
    for index, name in enumerate(dict.fromkeys(one.task for one in place.devices)):
        own = [(number, one) for number, one in enumerate(place.devices) if one.task == name]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [one.x for _, one in own],
                "y": [one.y for _, one in own],
                "text": [f"device {number}, {one.gain_db:.1f} dB" for number, one in own],
                "marker": {"color": PALETTE[index % len(PALETTE)], "size": 7},
            }
        )
    x, y = zip(*place.stations, strict=True)
    station = {"symbol": "triangle-up", "size": 12 if len(x) < 50 else 5, "color": "#777777"}
    traces.append({"type": "scatter", "mode": "markers", "name": "stations", "x": x, "y": y, "marker": station})
    made = chart("Stations and devices", "east, m", "north, m", [], scaleanchor="x")
    return {**made, "data": traces}


FIGURES: dict[str, dict[str, Callable[[Sequence[RoundRecord], Summary], Figure]]] = {
    "overview": {"tasks": tasks},
    "learning": {"accuracy": accuracy, "loss": loss},
    "air": {"errors": errors, "pi": pi},
    "ledger": {"air-time": air_time},
}
"""Tab of the page -> name -> figure of one run."""
