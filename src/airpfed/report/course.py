"""How runs went, on paper: a measure over rounds, seconds on air or joules; a band is the 95 % interval over seeds."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from airpfed.report import style
from airpfed.report.charts import Axes, Chart, Line, arranged, label, text
from airpfed.report.means import PLOTTED, by_series

ACROSS = ("round", "seconds_on_air", "joules_a_device")
"""What a course is drawn over; the costs, in s and J, are sums up to and with the round, means over the seeds."""
UNITS = {"seconds_on_air": "s", "joules_a_device": "J"}
MEASURES = {
    "dev": ("metric on the dev split", ACROSS, False),
    "pi": ("Π, measured", ACROSS[:1], True),
    "psi": ("Ψ_T", ACROSS[:1], True),
}
"""Measure -> (label, what it is drawn over, whether its axis is logarithmic)."""
MOST_MARKS = 10


def files(lines: Sequence[Line], axes: Axes, measure: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a measure's figures: the numbers as CSV, then SVG, PNG and PDF.

    lines: axis -> value as given, ACROSS, and PLOTTED of `means`; a line a round. The same lines give the same bytes.
    """
    rounds = sorted({int(str(line["round"])) for line in lines})
    known = [{**line, "round": str(line["round"])} for line in lines]
    chart = arranged(known, {**axes, "round": [str(number) for number in rounds]}, "round", measure)
    plotted = [line for _, panel in chart.panels for line in panel]
    for across in MEASURES[measure][1]:
        yield f"{measure}-{across}.csv", text((*axes, *ACROSS, *PLOTTED), plotted).encode()
        for ending, content in style.rendered(partial(drawing, chart, measure, across)).items():
            yield f"{measure}-{across}.{ending}", content


def drawing(chart: Chart, measure: str, across: str) -> Any:
    """The matplotlib figure: a line a series with its band, a panel a setting of the other axes."""
    said, _, logarithmic = MEASURES[measure]
    figure, places = style.panels(len(chart.panels), said)
    handles: list[Any] = []
    for place, (title, lines) in zip(places, chart.panels, strict=True):
        handles = [
            one_line(place, i, name, mine, across, logarithmic)
            for i, (name, mine) in enumerate(by_series(lines).items())
        ]
        style.upright(place, lines, logarithmic)
        place.set_xlim(left=0)
        place.set_xlabel(label(across))
        if across in UNITS:
            style.quantity(place.xaxis, UNITS[across])
        place.set_title(title)
    style.legend(figure, handles, len(places))
    return figure


def one_line(place: Any, i: int, name: str, lines: Sequence[Line], across: str, logarithmic: bool) -> Any:
    """Draw a series: its mean, marks at some of the rounds, its band; returns the line."""
    x, y = ([float(line[column] or 0) for line in lines] for column in (across, "mean"))
    step = -(-len(x) // MOST_MARKS)
    (made,) = place.plot(x, y, label=name, markersize=4, markevery=(i % step, step), **style.line(i))
    if any(line["low"] is not None for line in lines):
        low, high = (
            [m if line[end] is None else float(line[end] or 0) for m, line in zip(y, lines, strict=True)]
            for end in ("low", "high")
        )
        if logarithmic:  # an interval below zero has no place on this axis: down to a hundredth of the mean
            low = [max(a, m / 100) for a, m in zip(low, y, strict=True)]
        place.fill_between(x, low, high, color=style.line(i)["color"], alpha=0.15, linewidth=0)
    return made
