"""`ap.link_study`: the numbers of `airpfed link`, for functions too, and one line for what is no design."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import airpfed as ap
from airpfed.cli import app
from airpfed.config.choice import parse_choice
from airpfed.config.settings_file import read_settings
from support import checks

SETTINGS = """
[[tasks]]
name = "task0"
devices = 3

[[tasks]]
name = "task1"
devices = 2

[radio]
antennas = 6
coherence_symbols = 20000
pilots = "perfect"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "link.toml").write_text(SETTINGS)
    return tmp_path / "link.toml"


@pytest.fixture
def net() -> ap.RadioNetwork:
    return ap.single_cell(devices=[3, 2], antennas=6, snr_db=10)


def mine(problem: ap.TransceiverProblem, *, truncation: float = 0.2) -> ap.Transceiver:
    return ap.designs.channel_inversion(problem, truncation=truncation)


def frame(*arguments, **grid):
    """A study of 2 draws without bounds, and without the column of times."""
    return ap.link_study(*arguments, **{"draws": 2, "gap": False, **grid}).drop(columns="ms")


def test_the_numbers_are_those_of_the_command(file):
    """Bit by bit, for text, functions and rows, from a network, settings and a file."""
    arguments = ["--draws", "2", "--grid", "radio.snr_db=0,20", "--grid", "radio.access=tdma,concurrent", "--json"]
    arguments += ["--design", "mmse", "--design", "channel_inversion(truncation=0.2)"]
    lines = CliRunner().invoke(app, ["link", str(file), *arguments]).stdout.splitlines()
    designs = {"mmse": ap.designs.mmse, "channel_inversion(truncation=0.2)": mine}
    network = ap.single_cell(devices=[3, 2], antennas=6)
    grid = {"snr_db": range(0, 21, 20), "access": ["tdma", "concurrent"], "draws": 2}
    table = ap.link_study(designs, network, **grid)
    assert list(table.columns[:3]) == ["design", "snr_db", "access"]
    rows = [(line["set"], *pair) for line in map(json.loads, lines) for pair in line.items() if pair[0] != "set"]
    assert len(table) == len(rows) == 8
    names = {"nmse_db": "pi_db", "nmse_s_db": "s_db", "nmse_p_db": "p_db"}
    for (setting, label, result), row in zip(rows, table.to_dict("records"), strict=True):
        assert (setting, label) == (f"radio.snr_db={row['snr_db']} radio.access={row['access']}", row["design"])
        for column in ("nmse_db", "nmse_s_db", "nmse_p_db", "claimed", "measured", "gap", "uses"):
            value = result[names.get(column, column)]
            assert row[column] == value or (value is None and row[column] != row[column]), column
    for source in (file, str(file), read_settings(file)):
        again = ap.link_study(["mmse", "channel_inversion(truncation=0.2)"], source, **grid)
        assert again.drop(columns="ms").equals(table.drop(columns="ms"))


def test_every_form_of_a_design_is_the_same_design(net):
    forms = ["mmse(starts=2)", parse_choice("designs", "mmse(starts=2)"), (ap.designs.mmse, {"starts": 2})]
    tables = [frame({"x": form}, net) for form in forms]
    assert all(table.equals(tables[0]) for table in tables)
    assert frame("mmse", net).equals(frame(ap.DESIGNS["mmse"], net))
    assert list(frame(mine, net)["design"]) == ["mine"]
    assert list(frame(None, net)["design"]) == list(ap.DESIGNS)
    settings = read_settings_of(net, {"name": "channel_inversion", "truncation": 0.2})
    assert frame("channel_inversion", settings)["claimed"].equals(frame(mine, net)["claimed"])


def read_settings_of(net: ap.RadioNetwork, design: dict[str, object]):
    """The network's settings with another design, whose options are those that its bare name stands for."""
    radio = net.settings.radio.model_copy(update={"design": parse_choice("designs", design)})
    return net.settings.model_copy(update={"radio": radio})


def test_a_row_s_options_and_flags_count(net):
    """A shrinking design is scaled to the symbols' correlation, a bare function with the same result is not."""

    def shrink(problem):
        return ap.designs.mmse(problem)

    table = frame(
        {"bare": shrink, "row": ap.Design(shrink, shrinks=True), "ours": "mmse"}, net, snr_db=-10, correlation=0.7
    )
    claimed = table.set_index("design")["claimed"]
    assert claimed["row"] == pytest.approx(claimed["ours"], rel=1e-9) and claimed["bare"] != claimed["ours"]
    half = frame({"half": (mine, {"truncation": 0.5})}, net)
    assert half["claimed"].equals(frame("channel_inversion(truncation=0.5)", net)["claimed"])


def test_a_grid_has_choices_and_numbers_of_numpy(net):
    channels = ["rayleigh", ("rician", {"k_db": 5.0}), "rician(k_db=9)"]
    table = frame("channel_inversion", net.replace(snr_db=None), channel=channels, snr_db=np.arange(0, 21, 20))
    assert list(table["channel"]) == ["rayleigh", "rician(k_db=5.0)", "rician(k_db=9.0)"] * 2
    assert list(table["snr_db"]) == [0, 0, 0, 20, 20, 20]
    assert list(frame("channel_inversion", net, antennas=[2, 8])["antennas"]) == [2, 8]


def test_samples_of_every_device_count(net):
    network = ap.single_cell(devices=[3, 2], antennas=6, snr_db=10, samples=[[1, 1, 100], [50, 50]])
    assert not frame("mmse", network)["claimed"].equals(frame("mmse", net)["claimed"])


def test_claims_are_measured_and_bounded(net):
    """At least 500 independent symbols a slot and 10 channels: the ratio's standard error is 1 %."""
    table = ap.link_study(["uniform_forcing", "mmse"], net, draws=10)
    assert (table["measured"] / table["claimed"] - 1).abs().max() < 0.05
    assert (table["gap"] >= 0).all() and table["gap"].iloc[1] < 0.05
    exact = frame("uniform_forcing", ap.single_cell(devices=[3, 2], antennas=6, noise_dbm="off"))
    assert exact["nmse_db"].max() < -200


def test_a_plot_is_one_line(net):
    import matplotlib

    matplotlib.use("Agg")
    table = frame(["mmse", mine], net, snr_db=[0, 10])
    axes = table.pivot(index="snr_db", columns="design", values="nmse_db").plot()
    assert [line.get_label() for line in axes.get_lines()] == ["mine", "mmse"]
    assert axes.get_lines()[1].get_ydata() == pytest.approx(table[table["design"] == "mmse"]["nmse_db"])


def changed(**changes):
    return lambda problem: replace(ap.designs.mmse(problem), **{k: f(problem) for k, f in changes.items()})


def of_shape(name, shape, value=0j):
    return changed(**{name: lambda problem: torch.full(shape(problem), value, dtype=torch.complex128)})


def hidden(problem, **options):
    return ap.designs.mmse(problem)


@pytest.mark.parametrize(
    ("design", "message"),
    [
        (lambda problem: 3, "design mine: returns int; should return a Transceiver"),
        (lambda problem: ap.designs.mmse(problem).receiver, "design mine: returns Tensor; should return a Transceiver"),
        (
            lambda problem: replace(t := ap.designs.mmse(problem), transmit_factors=1.5 * t.transmit_factors),
            r"design mine: lets a device send 2\.25 times its power limit",
        ),
        (of_shape("transmit_factors", lambda p: (2, 1)), r"design mine: returns a transmit_factors of \(2, 1\)"),
        (of_shape("receiver", lambda p: (2, 6), 0j), r"design mine: returns a receiver of \(2, 6\) torch.complex128; "),
        (changed(receiver=lambda p: p.weights), "design mine: returns a receiver of .*float64; should be "),
        (
            of_shape("receiver", lambda p: (len(p.h), 6, 1), complex("nan")),
            "design mine: returns a receiver that is not",
        ),
        (lambda h, noise: 3, "design mine: should take one argument, the problem"),
        (lambda: 3, "design mine: should take one argument, the problem"),
        (lambda problem, *, starts: 3, "design lambda: option starts has no type"),
        (hidden, r"design hidden: \*\*options hides the options"),
        ("mmsee", "design mine: should be one of uniform_forcing, .*did you mean 'mmse'"),
        ("mmse(start=2)", "design mine: start: no option of mmse"),
        (3, "design mine: should be a name"),
    ],
)
def test_what_is_no_design_is_one_line(net, design, message):
    with pytest.raises(ap.UserError, match=message) as raised:
        frame({"mine": design}, net)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"draws": 0}, "draws 0: should be at least 1"),
        ({"correlation": 2.0}, "correlation 2: should be from 0 to 1"),
        ({"antenas": 4}, "link_study: antenas does not change the link; .*did you mean 'antennas'"),
        ({"design": "mmse"}, "link_study: design does not change the link"),
        ({"drop": [1, 2]}, "link_study: drop does not change the link"),
        ({"antennas": []}, "link_study: antennas has no values"),
        ({"antennas": [4, 0]}, "link_study: radio.antennas = 0: should be a whole number"),
        ({"noise_dbm": [-90]}, "link_study: radio.noise_dbm = -90.0: does nothing with radio.snr_db"),
        ({"antennas": range(1, 200), "carrier_hz": range(10**6, 10**6 + 100)}, "link_study: 19900 combinations"),
    ],
)
def test_a_wrong_study_is_one_line(net, values, message):
    with pytest.raises(ap.UserError, match=message) as raised:
        frame("mmse", net, **values)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("designs", "network", "message"),
    [
        (["mmse", "mmse"], None, "designs: mmse stands twice"),
        ([], None, "designs: none given"),
        ("mmse", 3, "link_study: network is int; should be a network"),
        ("mmse", "absent.toml", "absent.toml: no such settings file"),
    ],
)
def test_wrong_arguments_are_one_line(net, designs, network, message):
    checks.disarm("airpfed.planning.link_frame", "link_study")
    checks.disarm("airpfed.planning.link_frame", "settings_of")
    with pytest.raises(ap.UserError, match=message):
        frame(designs, net if network is None else network)
