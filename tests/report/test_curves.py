"""Figures of link studies: what is plotted, that it is SVG, and that the same lines give the same bytes."""

import csv
import io
import itertools
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from airpfed.report import charts, plots

DESIGNS = ("uniform_forcing", "mmse", "naive_ao")
SVG = "{http://www.w3.org/2000/svg}"


def lines_of(axes: charts.Axes, error: float | None = 0.5) -> list[charts.Line]:
    """Made-up numbers, all different, for every point of a grid in the order of a study."""
    count = itertools.count()
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [
        {**point, "design": design, "claimed_db": -0.9 * n, "pi_db": -float(n), "pi_db_se": error, "ms": 1.0}
        for point in points
        for design, n in zip(DESIGNS, count, strict=False)
    ]


def drawn(axes: charts.Axes, key: str) -> tuple[charts.Chart, Figure]:
    chart = charts.chart_of(lines_of(axes), axes, key)
    return chart, plots.draw_link(chart)


PANELS = {"radio.snr_db": ("0", "10"), "radio.access": ("concurrent", "tdma"), "radio.antennas": ("4", "8", "16")}
GRIDS = {
    "numbers": {"radio.snr_db": ("20", "0", "10")},
    "names": {"radio.access": ("concurrent", "tdma")},
    "mixed": {"radio.truncation": ("best", "0.1", "0.2")},
    "panels": {"radio.snr_db": ("0", "10", "20"), "radio.antennas": ("4",), "radio.access": ("concurrent", "tdma")},
    "one point": {"radio.snr_db": ("0",)},
    "none": {},
    "mathematics": {"model.base": ("$a_b$", "$", "c\\d<&>")},
}


@pytest.mark.parametrize(("grid", "error"), [*((grid, 0.5) for grid in GRIDS), ("numbers", None), ("names", None)])
def test_files_are_the_promised_ones_and_the_same_every_time(grid, error):
    """Also where the user's matplotlibrc says something else, which is left as it was."""
    axes = GRIDS[grid]
    lines = lines_of(axes, error)
    made = dict(plots.link_files(lines, axes))
    assert list(made) == charts.file_names(axes)
    for name, content in made.items():
        if name.endswith("svg"):
            root = ET.fromstring(content)
            assert root.tag == f"{SVG}svg" and root.findall(f".//{SVG}path")
            assert b"dc:date" not in content
        elif name.endswith("png"):
            assert content.startswith(b"\x89PNG\r\n\x1a\n")
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "mine", "axes.grid": False}):
        assert dict(plots.link_files(lines, axes)) == made
        assert matplotlib.rcParams["font.size"] == 20


def test_another_number_is_another_figure():
    axes = GRIDS["numbers"]
    lines = lines_of(axes)
    other = [{**lines[0], "pi_db": -0.02}, *lines[1:]]
    before, after = (dict(plots.link_files(some, axes)) for some in (lines, other))
    assert all(before[name] != after[name] for name in before)


def test_over_numbers_claimed_is_the_line_and_measured_the_marker():
    axes = GRIDS["numbers"]
    chart, figure = drawn(axes, "radio.snr_db")
    (place,) = figure.axes
    assert chart.values == ("0", "10", "20")
    for i, name in enumerate(DESIGNS):
        mine = sorted(
            (line for line in lines_of(axes) if line["design"] == name), key=lambda o: float(o["radio.snr_db"])
        )
        claimed, measured = place.lines[4 * i], place.containers[i]
        assert claimed.get_xdata().tolist() == [0, 10, 20]
        assert claimed.get_ydata().tolist() == [line["claimed_db"] for line in mine]
        assert measured.lines[0].get_ydata().tolist() == [line["pi_db"] for line in mine]
        bars = np.array(measured.lines[2][0].get_segments())
        assert np.ptp(bars[:, :, 1], axis=1).tolist() == [1.0, 1.0, 1.0]
    assert (place.get_xlabel(), place.get_ylabel(), place.get_title()) == ("SNR (dB)", "NMSE of Π (dB)", "")
    assert len({line.get_color() for line in place.lines[: 4 * len(DESIGNS) : 4]}) == len(DESIGNS)


def test_over_names_bars_are_grouped():
    axes = GRIDS["names"]
    _, figure = drawn(axes, "radio.access")
    (place,) = figure.axes
    made = [box for box in place.containers if hasattr(box, "patches")]
    for name, box in zip(DESIGNS, made, strict=True):
        mine = [line["pi_db"] for line in lines_of(axes) if line["design"] == name]
        assert [bar.get_height() for bar in box.patches] == mine
        assert [round(bar.get_x() + bar.get_width() / 2) for bar in box.patches] == [0, 1]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for box in made for bar in box.patches)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(edges)), "no bar hides another"
    assert [tick.get_text() for tick in place.get_xticklabels()] == ["concurrent", "tdma"]


def test_other_axes_are_panels_and_their_numbers_the_csv():
    axes = PANELS
    chart, figure = drawn(axes, "radio.snr_db")
    assert [place.get_title() for place in figure.axes] == [
        f"access {access}, antennas {antennas}" for access in ("concurrent", "tdma") for antennas in (4, 8, 16)
    ]
    name, content = next(plots.link_files(lines_of(axes), axes))
    assert name == "link-snr_db.csv"
    found = list(csv.DictReader(io.StringIO(content.decode())))
    assert list(found[0]) == ["radio.access", "radio.antennas", "radio.snr_db", "design", *charts.LINK_COLUMNS]
    assert [float(line["pi_db"]) for line in found] == [line["pi_db"] for _, panel in chart.panels for line in panel]
    assert len(found) == 12 * len(DESIGNS)


def test_more_than_six_panels_are_cut_to_the_first_and_the_title_says_so():
    axes = {"radio.snr_db": ("0", "10"), "radio.antennas": tuple(map(str, range(2, 9))), "run.seed": ("3",)}
    chart, figure = drawn(axes, "radio.snr_db")
    assert [place.get_title() for place in figure.axes] == ["antennas 2 (first of 7 settings)"]
    assert {line["radio.antennas"] for _, panel in chart.panels for line in panel} == {"2"}


@pytest.mark.parametrize(
    ("key", "values", "scale"),
    [
        ("radio.antennas", ("4", "8", "16", "32"), "log"),
        ("radio.antennas", ("1", "2", "3", "4"), "linear"),
        ("radio.csi_error", ("0", "0.01", "0.1"), "linear"),
        ("radio.snr_db", ("1", "10", "100"), "linear"),
        ("run.seed", tuple(map(str, range(1, 30))), "linear"),
    ],
)
def test_doublings_get_a_logarithmic_axis_and_decibels_never(key, values, scale):
    (place,) = drawn({key: values}, key)[1].axes
    assert place.get_xscale() == scale
    assert len(place.get_xticks()) <= plots.MAX_TICKS and not len(place.get_xticks(minor=True))


def test_names_of_files_differ_where_last_parts_are_the_same():
    axes = {"tasks.a.devices": ("2", "3"), "tasks.*.b:c": ("x", "y"), "tasks.b.devices": ("2", "3"), "radio.x": ("1",)}
    stems = [name.removesuffix(".svg") for name in charts.file_names(axes) if name.endswith("svg")]
    assert stems == ["link-a-devices", "link-b-c", "link-b-devices"]


def test_labels_have_units():
    names = ("snr_db", "cell_radius_m", "antennas", "csi_error", "power_dbm", "m")
    assert [charts.axis_label(name) for name in names] == [
        "SNR (dB)", "cell radius (m)", "antennas M", "CSI error", "power (dBm)", "m",
    ]  # fmt: skip
    assert charts.setting_label("snr_db", "10") == "SNR 10 dB"


def test_the_legend_is_inside_the_figure():
    for axes in GRIDS.values():
        for key in charts.figure_keys(axes):
            _, figure = drawn(axes, key)
            figure.draw_without_rendering()
            box, whole = figure.legends[0].get_window_extent(), figure.bbox
            assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1


def test_matplotlib_is_loaded_only_to_draw():
    code = "import sys, airpfed.cli, airpfed.report.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
