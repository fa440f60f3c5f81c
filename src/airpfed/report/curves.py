"""Link studies on paper: a figure and its numbers an axis of the grid. matplotlib is loaded when one is drawn."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import Any

from airpfed.report import charts, style
from airpfed.report.charts import PLOTTED, Axes, Chart, Line, label, numeric

MOST_TICKS = 8
NMSE = "NMSE of Π (dB)"


def files(lines: Sequence[Line], axes: Axes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every figure as SVG, PNG and PDF, before them its CSV of the plotted numbers.

    The same lines give the same bytes. A grid without an axis of two values gives one bar figure by design, whose
    numbers are the lines themselves: no CSV.
    """
    for key in charts.drawn(axes):
        chart = charts.chart_of(lines, axes, key)
        if key:
            columns = (*(other for other in axes if other != key), key, "design", *PLOTTED)
            plotted = [line for _, panel in chart.panels for line in panel]
            yield f"{chart.name}.csv", charts.text(columns, plotted).encode()
        for ending, content in style.rendered(partial(drawing, chart)).items():
            yield f"{chart.name}.{ending}", content


def drawing(chart: Chart) -> Any:
    """The matplotlib figure of a chart: a panel a setting, one legend above all."""
    figure, places = style.panels(len(chart.panels), NMSE)
    draw = PAINTERS["design" if not chart.key else "numbers" if numeric(chart.values) else "names"]
    handles: list[Any] = []
    for place, (title, lines) in zip(places, chart.panels, strict=True):
        designs = list(dict.fromkeys(str(line["design"]) for line in lines))
        handles = draw(place, chart, {name: [line for line in lines if line["design"] == name] for name in designs})
        place.set_title(fill(title, 52))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(style.COLUMNS, len(places)) + 1)
    return figure


def numbers(lines: Sequence[Line], key: str) -> list[float]:
    """A column; nan where there is no number."""
    return [math.nan if line[key] is None else float(line[key] or 0) for line in lines]


def draw_numbers(place: Any, chart: Chart, designs: Mapping[str, Sequence[Line]]) -> list[Any]:
    """Over a numeric axis: claimed as lines, measured as markers with standard errors; returns the legend."""
    from matplotlib.lines import Line2D

    handles = []
    for i, (name, lines) in enumerate(designs.items()):
        x = [float(str(line[chart.key])) for line in lines]
        look = {**style.line(i), "markerfacecolor": "none"}
        claimed, measured, error = (numbers(lines, column) for column in PLOTTED)
        place.plot(x, claimed, color=look["color"], linestyle=look["linestyle"])
        place.errorbar(x, measured, error, capsize=2, elinewidth=0.8, **{**look, "linestyle": "none"})
        handles.append(Line2D([], [], label=name, **look))
    ticks(place, chart)
    return [*handles, *key_to(place, style.GREY, "o")]


def ticks(place: Any, chart: Chart) -> None:
    """A tick at every value, or every few; a logarithmic axis where it spreads them better (never for dB)."""
    name = chart.key.split(".")[-1]
    values = charts.scale(chart.key, chart.values)
    place.set_xlabel(label(name))
    if (
        min(values) > 0
        and not name.endswith(("_db", "_dbm"))
        and name != charts.SPLIT
        and spread([math.log(v) for v in values]) > spread(values)
    ):
        place.set_xscale("log")
    step = math.ceil(len(values) / MOST_TICKS)
    place.set_xticks(
        values[::step], [charts.told_value(name, v) if name == charts.SPLIT else v for v in chart.values[::step]]
    )
    place.set_xticks([], minor=True)


def spread(values: Sequence[float]) -> float:
    """The least step of rising values relative to their range."""
    return min(b - a for a, b in itertools.pairwise(values)) / ((values[-1] - values[0]) or 1)


def draw_names(place: Any, chart: Chart, designs: Mapping[str, Sequence[Line]]) -> list[Any]:
    """Over a categorical axis: bars of the designs side by side; returns the legend."""
    width = 0.8 / len(designs)
    handles = [
        bars(place, i, [j + (i - (len(designs) - 1) / 2) * width for j in range(len(lines))], lines, width, name)
        for i, (name, lines) in enumerate(designs.items())
    ]
    place.set_xticks(range(len(chart.values)), chart.values)
    place.set_xlabel(label(chart.key.split(".")[-1]))
    return [*handles, *key_to(place, "black", "none")]


def draw_designs(place: Any, chart: Chart, designs: Mapping[str, Sequence[Line]]) -> list[Any]:
    """One bar a design; returns the legend."""
    for i, (name, lines) in enumerate(designs.items()):
        bars(place, i, [float(i)], lines, 0.7, name)
    place.set_xticks(range(len(designs)), [name.replace("_", "\n") for name in designs])
    return key_to(place, "black", "none")


def bars(place: Any, i: int, x: Sequence[float], lines: Sequence[Line], width: float, name: str) -> Any:
    """The i-th design's bars down from 0 dB (nothing sent): measured, its standard error, a rule at the claim."""
    claimed, measured, error = (numbers(lines, column) for column in PLOTTED)
    place.grid(axis="x", visible=False)
    place.axhline(0, color="black", linewidth=0.8)
    look = {"capsize": 2, "error_kw": {"elinewidth": 0.8}, **style.bar(i)}
    made = place.bar(x, measured, width * 0.92, yerr=error, label=name, **look)
    place.hlines(claimed, [v - width / 2 for v in x], [v + width / 2 for v in x], color="black", linewidth=1.6)
    return made


def key_to(place: Any, colour: str, marker: str) -> list[Any]:
    """Legend of what is common to all designs: a claim is a line, a measurement has an error bar."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": colour, "marker": marker, "markerfacecolor": "none", "linestyle": "none"}
    measured = place.errorbar([], [], [], capsize=2, elinewidth=0.8, label="measured ± s.e.", **look)
    return [Line2D([], [], color=colour, label="claimed"), measured]


PAINTERS: Mapping[str, Callable[[Any, Chart, Mapping[str, Sequence[Line]]], list[Any]]] = {
    "numbers": draw_numbers,
    "names": draw_names,
    "design": draw_designs,
}
