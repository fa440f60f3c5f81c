"""Figures on paper of link studies and sweeps: each as SVG, PNG and PDF, with the plotted numbers as CSV.

A link study shows claimed and measured errors of designs. A sweep shows a measure over an axis of its grid or by task,
and its course over the rounds; a bar or band is the 95 % interval over seeds. The same lines give the same bytes.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from textwrap import fill
from typing import Any

from airpfed.report import charts, style
from airpfed.report.charts import (
    LINK_COLUMNS,
    SERIES,
    SPLIT,
    Axes,
    Chart,
    Line,
    are_numbers,
    axis_label,
    axis_positions,
    by_series,
    chart_of_measure,
    value_label,
)

MEAN_COLUMNS = ("mean", "low", "high", "count")
"""A mean over seeds, its 95 % interval, and the number of seeds."""
UNTOUCHED = "untouched"
"""Column of the untouched model's metric."""
ROUND_COLUMNS = ("round", "seconds_on_air", "joules_a_device")
"""Horizontal axes of a course. The costs, in s and J, are sums up to and with the round, as means over seeds."""
COST_UNITS = {"seconds_on_air": "s", "joules_a_device": "J"}
MAX_TICKS = 8
MAX_MARKERS = 10


@dataclass(frozen=True)
class Measure:
    """A sweep's measure as a figure shows it. x_columns: horizontal axes of its course, empty if it is one number."""

    label: str
    logarithmic: bool = False
    x_columns: tuple[str, ...] = ()


MEASURES = {
    "average": Measure("metric, mean of tasks"),
    "worst": Measure("metric of the worst task"),
    "final": Measure("metric"),
    "pi_mean": Measure("Π, mean of rounds", logarithmic=True),
    "dev": Measure("metric on the dev split", x_columns=ROUND_COLUMNS),
    "pi": Measure("Π, measured", logarithmic=True, x_columns=ROUND_COLUMNS[:1]),
    "psi": Measure("Ψ_T", logarithmic=True, x_columns=ROUND_COLUMNS[:1]),
}


def link_files(lines: Sequence[Line], axes: Axes) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of a link study's figures, one for each axis with at least two values.

    lines: axis -> value as the user wrote it, "design", and LINK_COLUMNS. A grid without such an axis gives one figure
    with a bar for each design and no CSV, because the lines themselves are its numbers.
    """
    for key in charts.figure_keys(axes):
        chart = charts.chart_of(lines, axes, key)
        columns = (*(other for other in axes if other != key), key, "design", *LINK_COLUMNS) if key else ()
        yield from figure_files(chart, chart.name, columns, partial(draw_link, chart))


def mean_files(lines: Sequence[Line], axes: Axes, measure: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of a measure's figures, one for each axis with at least two values.

    lines: axis -> value as the user wrote it, and MEAN_COLUMNS.
    """
    for key in (key for key in charts.figure_keys(axes) if key):
        chart = chart_of_measure(lines, axes, key, measure)
        yield from figure_files(chart, chart.name, (*axes, *MEAN_COLUMNS), partial(draw_means, chart, measure))


def task_files(lines: Sequence[Line], axes: Axes) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the figure with the final metrics as bars by task.

    axes: the grid's axes and "task". lines: lines in the form of `mean_files`, with the column UNTOUCHED.
    """
    chart = chart_of_measure(lines, axes, "task", "final")
    yield from figure_files(chart, chart.name, (*axes, *MEAN_COLUMNS, UNTOUCHED), partial(draw_means, chart, "final"))


def course_files(lines: Sequence[Line], axes: Axes, measure: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of a measure's course over each of its horizontal axes.

    lines: a line for each round: axis -> value as the user wrote it, ROUND_COLUMNS, and MEAN_COLUMNS.
    """
    rounds = sorted({int(str(line["round"])) for line in lines})
    by_round = [{**line, "round": str(line["round"])} for line in lines]
    chart = chart_of_measure(by_round, {**axes, "round": [str(number) for number in rounds]}, "round", measure)
    for x_column in MEASURES[measure].x_columns:
        draw = partial(draw_course, chart, measure, x_column)
        yield from figure_files(chart, f"{measure}-{x_column}", (*axes, *ROUND_COLUMNS, *MEAN_COLUMNS), draw)


def figure_files(
    chart: Chart, name: str, columns: Sequence[str], draw: Callable[[], Any]
) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of a chart's numbers and pictures; no CSV if there are no columns."""
    if columns:
        lines = [line for _, panel_lines in chart.panels for line in panel_lines]
        yield f"{name}.csv", charts.to_csv(columns, lines).encode()
    for ending, content in style.render(draw).items():
        yield f"{name}.{ending}", content


DrawPanel = Callable[[Any, Chart, Mapping[str, Sequence[Line]]], list[Any]]
"""Draws the series of one panel and returns the legend's handles."""


def draw_panels(chart: Chart, y_label: str, series: str, draw_panel: DrawPanel) -> Any:
    """The matplotlib figure of a chart: its panels with their titles, and one legend above all."""
    figure, panels = style.make_panels(len(chart.panels), y_label)
    handles: list[Any] = []
    for panel, (title, lines) in zip(panels, chart.panels, strict=True):
        handles = draw_panel(panel, chart, by_series(lines, series))
        panel.set_title(title)
    style.add_legend(figure, handles, len(panels))
    return figure


def draw_link(chart: Chart) -> Any:
    """The matplotlib figure of a link study: claimed and measured NMSE of Pi by design."""
    draw_panel = draw_designs if not chart.key else draw_claims if are_numbers(chart.values) else draw_claim_bars
    wrapped = tuple((fill(title, 52), lines) for title, lines in chart.panels)
    return draw_panels(replace(chart, panels=wrapped), "NMSE of Π (dB)", "design", draw_panel)


def draw_claims(panel: Any, chart: Chart, designs: Mapping[str, Sequence[Line]]) -> list[Any]:
    """Draw designs over numbers: the claimed errors as lines, the measured as markers with standard errors."""
    from matplotlib.lines import Line2D

    handles = []
    for i, (name, lines) in enumerate(designs.items()):
        x = [float(str(line[chart.key])) for line in lines]
        look = {**style.line_style(i), "markerfacecolor": "none"}
        claimed, measured, error = (numbers_of(lines, column) for column in LINK_COLUMNS)
        panel.plot(x, claimed, color=look["color"], linestyle=look["linestyle"])
        panel.errorbar(x, measured, error, capsize=2, elinewidth=0.8, **{**look, "linestyle": "none"})
        handles.append(Line2D([], [], label=name, **look))
    label_numbers(panel, chart)
    return [*handles, *claim_handles(panel, style.GREY, "o")]


def draw_claim_bars(panel: Any, chart: Chart, designs: Mapping[str, Sequence[Line]]) -> list[Any]:
    """Draw designs over names: bars beside each other."""
    width = 0.8 / len(designs)
    handles = []
    for i, (name, lines) in enumerate(designs.items()):
        x = [j + (i - (len(designs) - 1) / 2) * width for j in range(len(lines))]
        handles.append(draw_design_bars(panel, i, name, lines, x, width))
    panel.set_xticks(range(len(chart.values)), chart.values)
    panel.set_xlabel(axis_label(chart.key.split(".")[-1]))
    return [*handles, *claim_handles(panel, "black", "none")]


def draw_designs(panel: Any, chart: Chart, designs: Mapping[str, Sequence[Line]]) -> list[Any]:
    """Draw one bar for each design."""
    for i, (name, lines) in enumerate(designs.items()):
        draw_design_bars(panel, i, name, lines, [float(i)], 0.7)
    panel.set_xticks(range(len(designs)), [name.replace("_", "\n") for name in designs])
    return claim_handles(panel, "black", "none")


def draw_design_bars(panel: Any, i: int, name: str, lines: Sequence[Line], x: Sequence[float], width: float) -> Any:
    """Draw the measured errors of the i-th design down from 0 dB, where nothing is sent, with a rule at the claim."""
    claimed, measured, error = (numbers_of(lines, column) for column in LINK_COLUMNS)
    panel.axhline(0, color="black", linewidth=0.8)
    bars = draw_bars(panel, i, name, x, width, measured, error)
    draw_rules(panel, x, width, claimed, 1.6)
    return bars


def draw_bars(
    panel: Any, i: int, name: str, x: Sequence[float], width: float, heights: Sequence[float], error: Any
) -> Any:
    """Draw the bars of the i-th series with error bars, and return them as a handle of the legend."""
    panel.grid(axis="x", visible=False)
    look = {"yerr": error, "capsize": 2, "error_kw": {"elinewidth": 0.8}, **style.bar_style(i)}
    return panel.bar(x, heights, width * 0.92, label=name, **look)


def draw_rules(panel: Any, x: Sequence[float], width: float, heights: Sequence[float], linewidth: float) -> None:
    """Draw a horizontal rule over each bar at a reference value."""
    panel.hlines(heights, [v - width / 2 for v in x], [v + width / 2 for v in x], color="black", linewidth=linewidth)


def claim_handles(panel: Any, colour: str, marker: str) -> list[Any]:
    """Legend handles common to all designs: a line for the claim, an error bar for the measurement."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"color": colour, "marker": marker, "markerfacecolor": "none", "linestyle": "none"}
    measured = panel.errorbar([], [], [], capsize=2, elinewidth=0.8, label="measured ± s.e.", **look)
    return [Line2D([], [], color=colour, label="claimed"), measured]


def draw_means(chart: Chart, measure: str) -> Any:
    """The matplotlib figure of a measure over an axis of the grid, or over the tasks."""
    return draw_panels(chart, MEASURES[measure].label, SERIES, partial(draw_mean_panel, measure))


def draw_mean_panel(measure: str, panel: Any, chart: Chart, series: Mapping[str, Sequence[Line]]) -> list[Any]:
    """Draw one panel of means: bars over tasks, lines over numbers, points over other names."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    positions = [] if chart.key == "task" else axis_positions(chart.key, chart.values)
    for i, (name, lines) in enumerate(series.items()):
        indices = [chart.values.index(str(line[chart.key])) for line in lines]
        y, error = [float(line["mean"] or 0) for line in lines], error_lengths(lines)
        offset = i - (len(series) - 1) / 2
        if chart.key == "task":
            width = 0.8 / len(series)
            x = [j + offset * width for j in indices]
            handles.append(draw_bars(panel, i, name, x, width, y, error))
            draw_rules(panel, x, width, [float(line[UNTOUCHED] or 0) for line in lines], 1.4)
            continue
        look, shift = style.line_style(i), 0.0
        if not positions:
            look, shift = {**look, "linestyle": "none"}, offset * 0.6 / len(series)
        x = [positions[j] if positions else j + shift for j in indices]
        handles.append(panel.errorbar(x, y, error, capsize=2, elinewidth=0.8, markersize=4, label=name, **look))
    if positions:
        label_numbers(panel, chart)
    else:
        names = [value_label(chart.key, value) for value in chart.values]
        panel.set_xticks(range(len(names)), names, rotation=30 if len("".join(names)) > 40 else 0)
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.set_xlabel(axis_label(chart.key))
    if chart.key == "task":
        handles.append(Line2D([], [], color="black", linewidth=1.4, label="untouched model"))
    style.set_vertical_scale(panel, list(itertools.chain(*series.values())), MEASURES[measure].logarithmic)
    return handles


def draw_course(chart: Chart, measure: str, x_column: str) -> Any:
    """The matplotlib figure of a measure's course: a line with its band for each series."""
    return draw_panels(chart, MEASURES[measure].label, SERIES, partial(draw_course_panel, measure, x_column))


def draw_course_panel(
    measure: str, x_column: str, panel: Any, chart: Chart, series: Mapping[str, Sequence[Line]]
) -> list[Any]:
    """Draw one panel of a course: means as lines with markers at some of the rounds, intervals as bands."""
    from matplotlib.ticker import EngFormatter

    handles, logarithmic = [], MEASURES[measure].logarithmic
    for i, (name, lines) in enumerate(series.items()):
        x, y = ([float(line[column] or 0) for line in lines] for column in (x_column, "mean"))
        step = -(-len(x) // MAX_MARKERS)
        handles += panel.plot(x, y, label=name, markersize=4, markevery=(i % step, step), **style.line_style(i))
        if any(line["low"] is not None for line in lines):
            low, high = (
                [m if line[end] is None else float(line[end] or 0) for m, line in zip(y, lines, strict=True)]
                for end in ("low", "high")
            )
            if logarithmic:  # the axis cannot show an interval below zero: the band ends at a hundredth of the mean
                low = [max(a, m / 100) for a, m in zip(low, y, strict=True)]
            panel.fill_between(x, low, high, color=style.line_style(i)["color"], alpha=0.15, linewidth=0)
    style.set_vertical_scale(panel, list(itertools.chain(*series.values())), logarithmic)
    panel.set_xlim(left=0)
    panel.set_xlabel(axis_label(x_column))
    if x_column in COST_UNITS:
        panel.xaxis.set_major_formatter(EngFormatter(COST_UNITS[x_column]))
    return handles


def numbers_of(lines: Sequence[Line], column: str) -> list[float]:
    """A column of numbers, with nan for None."""
    return [math.nan if line[column] is None else float(line[column] or 0) for line in lines]


def error_lengths(lines: Sequence[Line]) -> list[list[float]] | None:
    """Lengths of the error bars below and above the means, 0 for a mean of one seed; None if all are of one seed."""
    if all(line["low"] is None for line in lines):
        return None
    intervals = [(float(line["mean"] or 0), line["low"], line["high"]) for line in lines]
    below = [0.0 if low is None else mean - float(low) for mean, low, _ in intervals]
    above = [0.0 if high is None else float(high) - mean for mean, _, high in intervals]
    return [below, above]


def label_numbers(panel: Any, chart: Chart) -> None:
    """Label an axis of numbers, with a tick at each value or at each n-th.

    The axis is logarithmic if that spaces the values more evenly, but never for a quantity in dB.
    """
    name = chart.key.split(".")[-1]
    values = axis_positions(chart.key, chart.values)
    panel.set_xlabel(axis_label(name))
    may_be_logarithmic = min(values) > 0 and not name.endswith(("_db", "_dbm")) and name != SPLIT
    if may_be_logarithmic and smallest_step([math.log(v) for v in values]) > smallest_step(values):
        panel.set_xscale("log")
    step = math.ceil(len(values) / MAX_TICKS)
    panel.set_xticks(values[::step], [value_label(name, v) if name == SPLIT else v for v in chart.values[::step]])
    panel.set_xticks([], minor=True)


def smallest_step(values: Sequence[float]) -> float:
    """The smallest step between rising values, relative to their range."""
    return min(b - a for a, b in itertools.pairwise(values)) / ((values[-1] - values[0]) or 1)
