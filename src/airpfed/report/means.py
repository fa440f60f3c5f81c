"""A sweep on paper: a measure over an axis of the grid, or task by task; means with 95 % intervals over seeds.

A line or a row of points a series, bars where tasks are across. The look is `style`'s.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from airpfed.report import style
from airpfed.report.charts import SERIES, Axes, Chart, Line, arranged, drawn, label, scale, text, told_value
from airpfed.report.curves import ticks

PLOTTED = ("mean", "low", "high", "count")
LABELS = {
    "average": "metric, mean of tasks",
    "worst": "metric of the worst task",
    "final": "metric",
    "pi_mean": "Π, mean of rounds",
}
LOGARITHMIC = ("pi_mean",)
UNTOUCHED = "untouched"


def files(lines: Sequence[Line], axes: Axes, measure: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a figure over every axis with two values or more: its numbers as CSV, then SVG, PNG and PDF.

    lines: axis -> value as given, and PLOTTED. The same lines give the same bytes. No such axis: no figure.
    """
    for key in (key for key in drawn(axes) if key):
        yield from figure_files(arranged(lines, axes, key, measure), (*axes, *PLOTTED), measure)


def task_files(lines: Sequence[Line], axes: Axes) -> Iterator[tuple[str, bytes]]:
    """The same of the bars by task. axes: with "task"; lines: with UNTOUCHED too, the metric of the untouched model."""
    yield from figure_files(arranged(lines, axes, "task", "final"), (*axes, *PLOTTED, UNTOUCHED), "final")


def figure_files(chart: Chart, columns: Sequence[str], measure: str) -> Iterator[tuple[str, bytes]]:
    """A chart's numbers and pictures."""
    yield f"{chart.name}.csv", text(columns, [line for _, panel in chart.panels for line in panel]).encode()
    for ending, content in style.rendered(partial(drawing, chart, measure)).items():
        yield f"{chart.name}.{ending}", content


def drawing(chart: Chart, measure: str) -> Any:
    """The matplotlib figure: a panel a setting of the axes that are neither across nor series, one legend above all."""
    figure, places = style.panels(len(chart.panels), LABELS.get(measure, measure))
    handles: list[Any] = []
    for place, (title, lines) in zip(places, chart.panels, strict=True):
        handles = (bars if chart.key == "task" else points)(place, chart, lines)
        style.upright(place, lines, measure in LOGARITHMIC)
        place.set_title(title)
    style.legend(figure, handles, len(places))
    return figure


def by_series(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of a panel by series, in the order met."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(str(line[SERIES]), []).append(line)
    return found


def points(place: Any, chart: Chart, lines: Sequence[Line]) -> list[Any]:
    """Draw one panel: series side by side over names, as lines over numbers; returns the legend."""
    series = by_series(lines)
    at = scale(chart.key, chart.values)
    handles = []
    for i, (name, mine) in enumerate(series.items()):
        shift = 0.0 if at else (i - (len(series) - 1) / 2) * 0.6 / len(series)
        indices = [chart.values.index(str(line[chart.key])) for line in mine]
        x = [at[j] if at else j + shift for j in indices]
        y, error = [float(line["mean"] or 0) for line in mine], lengths(mine)
        look = style.line(i) if at else {**style.line(i), "linestyle": "none"}
        handles.append(place.errorbar(x, y, error, capsize=2, elinewidth=0.8, markersize=4, label=name, **look))
    if at:
        ticks(place, chart)
    else:
        named(place, chart)
    return handles


def bars(place: Any, chart: Chart, lines: Sequence[Line]) -> list[Any]:
    """Draw one panel: bars of the series side by side, intervals, a rule at the untouched model; returns the legend."""
    from matplotlib.lines import Line2D

    series = by_series(lines)
    width = 0.8 / len(series)
    place.grid(axis="x", visible=False)
    handles: list[Any] = []
    for i, (name, mine) in enumerate(series.items()):
        x = [chart.values.index(str(line["task"])) + (i - (len(series) - 1) / 2) * width for line in mine]
        y, base = ([float(line[column] or 0) for line in mine] for column in ("mean", UNTOUCHED))
        error = {"yerr": lengths(mine), "capsize": 2, "error_kw": {"elinewidth": 0.8}}
        handles.append(place.bar(x, y, width * 0.92, label=name, **error, **style.bar(i)))
        place.hlines(base, [v - width / 2 for v in x], [v + width / 2 for v in x], color="black", linewidth=1.4)
    named(place, chart)
    return [*handles, Line2D([], [], color="black", linewidth=1.4, label="untouched model")]


def named(place: Any, chart: Chart) -> None:
    """Ticks of an axis of names."""
    names = [told_value(chart.key, value) for value in chart.values]
    place.set_xticks(range(len(names)), names, rotation=30 if len("".join(names)) > 40 else 0)
    place.set_xlim(-0.6, len(names) - 0.4)
    place.set_xlabel(label(chart.key))


def lengths(lines: Sequence[Line]) -> list[list[float]] | None:
    """Lengths of the error bars below and above; none where a mean is of one seed, None where all are."""
    if all(line["low"] is None for line in lines):
        return None
    pairs = [(float(line["mean"] or 0), line["low"], line["high"]) for line in lines]
    below = [0.0 if low is None else mean - float(low) for mean, low, _ in pairs]
    above = [0.0 if high is None else float(high) - mean for mean, _, high in pairs]
    return [below, above]
