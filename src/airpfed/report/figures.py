"""Records to figures: one function a figure, each from plain rows."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from airpfed.record import Layout, RoundRecord, Summary
from airpfed.report.style import PALETTE

Figure = dict[str, Any]
Series = tuple[str, Sequence[int | float], Sequence[int | float | None], dict[str, Any]]


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
        "title": {"text": title},
        "xaxis": {"title": {"text": x}, "zeroline": False},
        "yaxis": {"title": {"text": y}, "zeroline": False, **axis},
        "margin": {"t": 48, "r": 16},
        "legend": {"orientation": "h", "y": -0.25},
    }
    return {"data": traces, "layout": layout}


def colour(index: int, dash: str = "solid") -> dict[str, Any]:
    """Line style of the index-th task."""
    shade = PALETTE[index % len(PALETTE)]
    return {"line": {"color": shade, "dash": dash}, "marker": {"color": shade, "size": 5}}


def accuracy(records: Sequence[RoundRecord], summary: Summary) -> Figure:
    """Metric by task: base and final on the test split (diamonds), dev split during the run (lines)."""
    series: list[Series] = []
    for index, (name, task) in enumerate(summary.tasks.items()):
        points = [(row.round, row.accuracy[name]) for row in records if name in row.accuracy]
        series.append((f"{name} (dev)", [p[0] for p in points], [p[1] for p in points], colour(index)))
        style = {
            **colour(index),
            "mode": "markers",
            "marker": {"symbol": "diamond", "size": 10, "color": PALETTE[index % 7]},
        }
        series.append((f"{name} (test)", [0, summary.rounds], [task.base, task.final], style))
    return chart("Metric by task", "round", "metric", series, range=[0, 1.02])


def loss(records: Sequence[RoundRecord], summary: Summary) -> Figure:
    """Training loss of each round's batches, by task."""
    series: list[Series] = [
        (name, [r.round for r in records], [r.loss.get(name) for r in records], colour(i))
        for i, name in enumerate(summary.tasks)
    ]
    return chart("Training loss by task", "round", "loss, nats", series)


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


def air_time(records: Sequence[RoundRecord], summary: Summary) -> Figure:
    """Training loss against seconds on air."""
    seconds = list(accumulate(row.ledger.air_seconds for row in records))
    series: list[Series] = [
        (name, seconds, [r.loss.get(name) for r in records], colour(i)) for i, name in enumerate(summary.tasks)
    ]
    return chart("Training loss over seconds on air", "seconds on air", "loss, nats", series)


def layout(place: Layout) -> Figure:
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
    station = {"symbol": "triangle-up", "size": 12 if len(x) < 50 else 5, "color": "#666666"}
    traces.append({"type": "scatter", "mode": "markers", "name": "stations", "x": x, "y": y, "marker": station})
    made = chart("Stations and devices", "east, m", "north, m", [], scaleanchor="x")
    return {**made, "data": traces}


FIGURES: dict[str, Callable[[Sequence[RoundRecord], Summary], Figure]] = {
    "accuracy": accuracy,
    "loss": loss,
    "errors": errors,
    "air-time": air_time,
}
