"""A sweep on paper: a measure over an axis of the grid, means with 95 % intervals, a line or a row of points a series.

The look is that of the link's figures (`curves`); matplotlib is loaded when a figure is drawn.
"""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from airpfed.report.charts import Axes, Chart, Line, Value, chart_of, drawn, label, numeric, text
from airpfed.report.curves import COLUMNS, DASHES, MARKERS, PANEL, STYLE, ticks
from airpfed.report.figures import PALETTE

PLOTTED = ("mean", "low", "high", "count")
LABELS = {"average": "metric, mean of tasks", "worst": "metric of the worst task"}


def files(lines: Sequence[Line], axes: Axes, measure: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a figure over every axis with two values or more: its numbers as CSV, then SVG, PNG and PDF.

    lines: axis -> value as given, and PLOTTED. The same lines give the same bytes. No such axis: no figure.
    """
    for key in (key for key in drawn(axes) if key):
        chart = chart_for(lines, axes, key, measure)
        plotted = [line for _, panel in chart.panels for line in panel]
        yield f"{chart.name}.csv", text((*axes, *PLOTTED), plotted).encode()
        for ending, content in pictures(chart, measure).items():
            yield f"{chart.name}.{ending}", content


def chart_for(lines: Sequence[Line], axes: Axes, key: str, measure: str) -> Chart:
    """The lines of a figure by panel and series: the first other axis that holds names, or else the first other one."""
    others = [other for other in axes if other != key and len(axes[other]) > 1]
    series = next((other for other in others if not numeric(axes[other])), next(iter(others), ""))
    named = [{**line, "design": line[series] if series else ""} for line in lines]
    chart = chart_of(named, {axis: values for axis, values in axes.items() if axis != series}, key)
    return replace(chart, name=chart.name.replace("link", measure.replace(" ", "-"), 1))


def pictures(chart: Chart, measure: str) -> dict[str, bytes]:
    """A chart as SVG, PNG and PDF, without date, and whatever the user's matplotlibrc says."""
    import matplotlib

    found = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "pdf.fonttype": 42})
        figure = drawing(chart, measure)
        dateless: dict[str, dict[str, Value]] = {
            "svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None},
        }  # fmt: skip
        for ending, metadata in dateless.items():
            file = io.BytesIO()
            figure.savefig(file, format=ending, metadata=metadata)
            found[ending] = file.getvalue()
    return found


def drawing(chart: Chart, measure: str) -> Any:
    """The matplotlib figure: a panel a setting of the axes that are neither across nor series, one legend above all."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    figure = Figure(figsize=(columns * PANEL[0], rows * PANEL[1] + 0.5), layout="constrained")
    places = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten().tolist()
    handles: list[Any] = []
    for place, (title, lines) in zip(places, chart.panels, strict=False):
        handles = panel(place, chart, lines)
        place.set_title(title)
    for place in places[::columns]:
        place.set_ylabel(LABELS.get(measure, measure))
    for place in places[len(chart.panels) :]:
        place.remove()
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), columns + 1))
    return figure


def panel(place: Any, chart: Chart, lines: Sequence[Line]) -> list[Any]:
    """Draw one panel: series side by side over names, as lines over numbers; returns the legend."""
    series = list(dict.fromkeys(str(line["design"]) for line in lines))
    numbers = numeric(chart.values)
    handles = []
    for i, name in enumerate(series):
        mine = [line for line in lines if line["design"] == name]
        shift = 0.0 if numbers else (i - (len(series) - 1) / 2) * 0.6 / len(series)
        x = [float(str(v)) if numbers else chart.values.index(str(v)) + shift for v in (li[chart.key] for li in mine)]
        y, error = [float(line["mean"] or 0) for line in mine], bars(mine)
        look = {"color": PALETTE[i % 7], "marker": MARKERS[i % 7], "linestyle": DASHES[i % 7] if numbers else "none"}
        handles.append(place.errorbar(x, y, error, capsize=2, elinewidth=0.8, markersize=4, label=name, **look))
    if numbers:
        ticks(place, chart)
    else:
        place.set_xticks(range(len(chart.values)), chart.values, rotation=30 if len("".join(chart.values)) > 40 else 0)
        place.set_xlabel(label(chart.key))
    return handles


def bars(lines: Sequence[Line]) -> list[list[float]]:
    """Lengths of the error bars below and above; none where a mean is of one seed."""
    pairs = [(line["mean"], line["low"], line["high"]) for line in lines]
    below = [0.0 if low is None else float(mean or 0) - float(low) for mean, low, _ in pairs]
    above = [0.0 if high is None else float(high) - float(mean or 0) for mean, _, high in pairs]
    return [below, above]
