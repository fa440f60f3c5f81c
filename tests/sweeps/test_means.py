"""A sweep's figures: numbers beside them, series and panels by the grid, the same bytes every time."""

import csv
import io
import itertools

import pytest

from airpfed.config.reference import section_of
from airpfed.config.schema import Settings
from airpfed.report import plots
from airpfed.report.charts import SERIES, SPLIT, chart_of_measure
from airpfed.report.plots import UNTOUCHED, draw_means, error_lengths, mean_files, task_files

AXES = {"method": ["airpfed", "fedit"], "snr_db": ["20", "0", "10"], "antennas": ["4", "16"]}


def lines(axes: dict[str, list[str]]) -> list[dict[str, str | float | None]]:
    found = []
    for i, values in enumerate(itertools.product(*axes.values())):
        mean = 0.5 + i / 100
        found.append(
            {**dict(zip(axes, values, strict=True)), "mean": mean, "low": mean - 0.02, "high": mean + 0.03, "count": 5}
        )
    return found


def test_every_axis_with_two_values_gets_a_figure_and_its_numbers() -> None:
    made = dict(mean_files(lines(AXES), AXES, "average"))
    endings = ("csv", "svg", "png", "pdf")
    assert set(made) == {f"average-{key}.{end}" for key in AXES for end in endings}
    table = list(csv.DictReader(io.StringIO(made["average-snr_db.csv"].decode())))
    assert list(table[0]) == [*AXES, "mean", "low", "high", "count"] and len(table) == 12
    wanted = {tuple(str(v) for v in line.values()) for line in lines(AXES)}
    assert {tuple(row.values()) for row in table} == wanted
    assert made["average-snr_db.svg"].startswith(b"<?xml") and made["average-snr_db.pdf"].startswith(b"%PDF")
    assert dict(mean_files(lines(AXES), AXES, "average")) == made, "the same bytes"


def test_names_are_series_and_numbers_are_across() -> None:
    chart = chart_of_measure(lines(AXES), AXES, "snr_db", "average")
    assert chart.values == ("0", "10", "20") and [title for title, _ in chart.panels] == ["antennas 4", "antennas 16"]
    figure = draw_means(chart, "average")
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
    figure = draw_means(chart_of_measure(lines(axes), axes, "method", "worst"), "worst")
    (one,) = figure.axes[0].containers
    assert list(one.lines[0].get_xdata()) == [0.0, 1.0, 2.0]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == axes["method"]


def test_series_over_names_do_not_hide_each_other() -> None:
    """Points of two series at one name lie apart; bars at one task do not overlap."""
    axes = {"method": ["airpfed", "fedit"], "access": ["tdma", "concurrent"]}
    figure = draw_means(chart_of_measure(lines(axes), axes, "access", "average"), "average")
    first, second = (series.lines[0].get_xdata().tolist() for series in figure.axes[0].containers)
    assert len(first) == 2 and all(a < j < b for j, (a, b) in enumerate(zip(first, second, strict=True)))
    axes = {"method": ["airpfed", "fedit"], "task": ["trec", "sms"]}
    with_base = [{**line, UNTOUCHED: 0.3} for line in lines(axes)]
    figure = draw_means(chart_of_measure(with_base, axes, "task", "final"), "final")
    boxes = [box for box in figure.axes[0].containers if hasattr(box, "patches")]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for box in boxes for bar in box.patches)
    assert len(edges) == 4 and all(a[1] < b[0] for a, b in itertools.pairwise(edges))


def test_error_bars_are_the_intervals() -> None:
    known, alone = ({"mean": 0.5, "low": low, "high": high} for low, high in ((0.4, 0.7), (None, None)))
    assert error_lengths([known, alone]) == [[pytest.approx(0.1), 0.0], [pytest.approx(0.2), 0.0]]
    assert error_lengths([alone, alone]) is None


def test_splits_of_one_rank_lie_at_their_share_and_others_are_names() -> None:
    axes = {SPLIT: ["8/0", "2/6", "4/4"], "method": ["airpfed", "feddpa"]}
    chart = chart_of_measure(lines(axes), axes, SPLIT, "average")
    assert chart.values == ("2/6", "4/4", "8/0")
    place = draw_means(chart, "average").axes[0]
    assert list(place.containers[0].lines[0].get_xdata()) == [0.25, 0.5, 1.0]
    assert [tick.get_text() for tick in place.get_xticklabels()] == ["2:6", "4:4", "8:0"]
    assert place.get_xlabel() == "R_s : R_p"
    axes = {SPLIT: ["8/0", "2/5"]}
    place = draw_means(chart_of_measure(lines(axes), axes, SPLIT, "average"), "average").axes[0]
    assert [tick.get_text() for tick in place.get_xticklabels()] == ["8:0", "2:5"]


def test_an_axis_may_have_any_settings_name() -> None:
    """`radio.design` is an axis like any other, and no column of our own is the last part of a setting's key."""
    axes = {"design": ["mmse", "digital"], "snr_db": ["0", "10"]}
    place = draw_means(chart_of_measure(lines(axes), axes, "design", "average"), "average").axes[0]
    assert [tick.get_text() for tick in place.get_xticklabels()] == ["mmse", "digital"]
    sections = [section_of(field.annotation) for field in Settings.model_fields.values()]
    keys = {key for section in sections if section for key in section.model_fields}
    assert {"design", "rank_shared", "rank_personal"} <= keys
    assert not keys & {SERIES, UNTOUCHED, "task", *plots.MEAN_COLUMNS, *plots.ROUND_COLUMNS}


def test_tasks_are_bars_with_intervals_and_the_untouched_model() -> None:
    axes = {"method": ["airpfed", "fedit"], "task": ["trec", "sms", "bbc"]}
    made = [{**line, UNTOUCHED: 0.3 + i / 50} for i, line in enumerate(lines(axes))]
    chart = chart_of_measure(made, axes, "task", "final")
    figure = draw_means(chart, "final")
    (place,) = figure.axes
    boxes = [box for box in place.containers if hasattr(box, "patches")]
    assert [box.get_label() for box in boxes] == axes["method"]
    for name, box in zip(axes["method"], boxes, strict=True):
        mine = [line for line in made if line["method"] == name]
        assert [patch.get_height() for patch in box.patches] == [line["mean"] for line in mine]
        segments = box.errorbar.lines[2][0].get_segments()
        assert [tuple(s[:, 1]) for s in segments] == [pytest.approx((line["low"], line["high"])) for line in mine]
    rules = [segment[0, 1] for many in place.collections for segment in many.get_segments() if len(segment) == 2]
    assert {line[UNTOUCHED] for line in made} <= {float(y) for y in rules}
    assert [text.get_text() for text in figure.legends[0].texts] == [*axes["method"], "untouched model"]
    table = list(csv.DictReader(io.StringIO(dict(task_files(made, axes))["final-task.csv"].decode())))
    assert [float(row[UNTOUCHED]) for row in table] == [line[UNTOUCHED] for line in made]


def test_without_an_axis_of_two_values_there_is_no_figure() -> None:
    assert list(mean_files(lines({"method": ["a"]}), {"method": ["a"]}, "average")) == []
    assert list(mean_files(lines({}), {}, "average")) == []
