"""A sweep's figures: numbers beside them, series and panels by the grid, the same bytes every time."""

import csv
import io

import pytest

from airpfed.report.means import bars, chart_for, drawing, files

AXES = {"method": ["airpfed", "fedit"], "snr_db": ["20", "0", "10"], "antennas": ["4", "16"]}


def lines(axes: dict[str, list[str]]) -> list[dict[str, str | float | None]]:
    import itertools

    found = []
    for i, values in enumerate(itertools.product(*axes.values())):
        mean = 0.5 + i / 100
        found.append(
            {**dict(zip(axes, values, strict=True)), "mean": mean, "low": mean - 0.02, "high": mean + 0.03, "count": 5}
        )
    return found


def test_every_axis_with_two_values_gets_a_figure_and_its_numbers() -> None:
    made = dict(files(lines(AXES), AXES, "average"))
    endings = ("csv", "svg", "png", "pdf")
    assert set(made) == {f"average-{key}.{end}" for key in AXES for end in endings}
    table = list(csv.DictReader(io.StringIO(made["average-snr_db.csv"].decode())))
    assert list(table[0]) == [*AXES, "mean", "low", "high", "count"] and len(table) == 12
    wanted = {tuple(str(v) for v in line.values()) for line in lines(AXES)}
    assert {tuple(row.values()) for row in table} == wanted
    assert made["average-snr_db.svg"].startswith(b"<?xml") and made["average-snr_db.pdf"].startswith(b"%PDF")
    assert dict(files(lines(AXES), AXES, "average")) == made, "the same bytes"


def test_names_are_series_and_numbers_are_across() -> None:
    chart = chart_for(lines(AXES), AXES, "snr_db", "average")
    assert chart.values == ("0", "10", "20") and [title for title, _ in chart.panels] == ["antennas 4", "antennas 16"]
    figure = drawing(chart, "average")
    place = figure.axes[0]
    series = list(place.containers)
    assert [one.get_label() for one in series] == ["airpfed", "fedit"]
    line = series[1].lines[0]
    mine = [row for row in lines(AXES) if (row["method"], row["antennas"]) == ("fedit", "4")]
    assert list(line.get_xdata()) == [0.0, 10.0, 20.0]
    assert list(line.get_ydata()) == [row["mean"] for row in sorted(mine, key=lambda row: float(str(row["snr_db"])))]
    assert place.get_xlabel() == "SNR (dB)" and place.get_ylabel() == "metric, mean of tasks"


def test_names_across_stand_beside_each_other() -> None:
    axes = {"method": ["airpfed", "fedit", "local"]}
    figure = drawing(chart_for(lines(axes), axes, "method", "worst"), "worst")
    (one,) = figure.axes[0].containers
    assert list(one.lines[0].get_xdata()) == [0.0, 1.0, 2.0]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == axes["method"]


def test_error_bars_are_the_intervals() -> None:
    assert bars([{"mean": 0.5, "low": 0.4, "high": 0.7}, {"mean": 0.5, "low": None, "high": None}]) == [
        [pytest.approx(0.1), 0.0], [pytest.approx(0.2), 0.0],
    ]  # fmt: skip


def test_without_an_axis_of_two_values_there_is_no_figure() -> None:
    assert list(files(lines({"method": ["a"]}), {"method": ["a"]}, "average")) == []
    assert list(files(lines({}), {}, "average")) == []
