"""`airpfed link`: what it claims is what random symbols measure, and what it writes is what it prints."""

import csv
import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from airpfed import cli
from airpfed.air.designs import DESIGNS
from airpfed.air.impairments import steady_distortion
from airpfed.cli import app
from airpfed.config.grid import axes_of
from airpfed.config.settings_file import read_settings
from airpfed.core.errors import UserError
from airpfed.experiment.build.uplink import build_network
from airpfed.planning import link_study
from airpfed.planning.channel_study import draw_channels, schedule_full_round
from airpfed.planning.link_study import COLUMNS, columns_of, compare_designs, draw_drops, link_of, study_grid

pytestmark = pytest.mark.usefixtures("shared_bases")

SETTINGS = """
[adapters]
rank_shared = 1
rank_personal = 3

[[tasks]]
name = "a"
devices = 3

[[tasks]]
name = "b"
devices = 2
samples_per_device = 20

[radio]
antennas = 6
snr_db = 10.0
coherence_symbols = 20000
pilots = "perfect"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "link.toml").write_text(SETTINGS)
    return tmp_path / "link.toml"


@pytest.mark.parametrize("change", ["radio.antennas=6", "radio.access=concurrent", "radio.packing=real"])
def test_claimed_is_measured(file: Path, change: str) -> None:
    """At least 500 independent symbols a slot and 30 channels: the ratio's standard error is 0.6 %."""
    rows = compare_designs(read_settings(file, [change]), 30, 0.0)
    assert set(rows) == set(DESIGNS)
    for one in rows.values():
        assert abs(one.measured / one.claimed - 1) < 0.03
        assert one.pi_db[0] < 0


def test_csi_error_is_in_the_claim(file: Path) -> None:
    """An error is drawn once a channel and device: over 30 channels of 5 devices the ratio's standard error is 10 %."""
    only = ["uniform_forcing"]
    perfect = compare_designs(read_settings(file, ["radio.snr_db=20"]), 5, 0.0, only)["uniform_forcing"]
    one = compare_designs(read_settings(file, ["radio.snr_db=20", "radio.csi_error=0.05"]), 30, 0.0, only)[
        "uniform_forcing"
    ]
    assert one.claimed > 3 * perfect.claimed
    assert abs(one.measured / one.claimed - 1) < 0.5


def test_nothing_is_claimed_of_a_clipping_amplifier(file: Path) -> None:
    rows = compare_designs(read_settings(file, ["radio.clipping_db=3", "radio.mixing=none"]), 2, 0.0, ["mmse"])
    told = link_study.as_json(rows)["mmse"]
    assert told["claimed"] is None and told["measured"] is not None and columns_of(rows["mmse"])["claimed_db"] is None
    claimed = link_study.design_table("", rows, 2).columns[4]
    assert claimed.header == "claimed" and list(claimed.cells) == ["-"]


def test_certified_gaps_are_small_and_absent_where_none_is_known(file: Path) -> None:
    rows = compare_designs(read_settings(file), 5, 0.0)
    assert rows["mmse"].gap is not None and 0 <= rows["mmse"].gap < 0.05
    rows = compare_designs(read_settings(file, ["radio.access=concurrent"]), 2, 0.0)
    assert all(one.gap is None for one in rows.values())


def test_correlated_symbols_cost_the_shrinking_design_more_than_it_claims(file: Path) -> None:
    rows = compare_designs(read_settings(file, ["radio.snr_db=-10", "radio.correlation=none"]), 20, 0.7)
    assert rows["mmse"].measured > 1.2 * rows["mmse"].claimed


def test_grid_and_json(file: Path) -> None:
    result = CliRunner().invoke(
        app, ["link", str(file), "--draws", "2", "--grid", "radio.snr_db=0,20", "--grid", "radio.antennas=4", "--json"]
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["set"] for line in lines] == [f"radio.snr_db={snr} radio.antennas=4" for snr in (0, 20)]
    assert set(lines[0]["mmse"]) == {"pi_db", "s_db", "p_db", "claimed", "measured", "gap", "ms", "uses"}
    assert lines[1]["mmse"]["pi_db"] < lines[0]["mmse"]["pi_db"] - 10


def test_a_grid_without_values_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^--grid radio.snr_db: should be section.key=a,b,c"):
        axes_of(["radio.snr_db"])


def link(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    """The entry point in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["airpfed", "link", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_hold_the_numbers_of_json(file, tmp_path, monkeypatch, capsys):
    out = tmp_path / "made" / "here"
    grid = ("--grid", "radio.snr_db=20,0", "--grid", "radio.access=tdma,concurrent")
    assert not link(monkeypatch, file, "--draws", "2", "--json", "--out", out, *grid)
    shown = capsys.readouterr()
    points = [json.loads(line) for line in shown.out.splitlines()]
    lines = table(out / "link.csv")
    assert list(lines[0]) == ["radio.snr_db", "radio.access", "design", *COLUMNS]
    assert len(lines) == len(points) * len(DESIGNS) == 4 * len(DESIGNS)
    for point, line in zip((p for p in points for _ in DESIGNS), lines, strict=True):
        assert point["set"] == f"radio.snr_db={line['radio.snr_db']} radio.access={line['radio.access']}"
        for key, value in point[line["design"]].items():
            assert line[key] == ("" if value is None else str(value)), key
        assert (line["gap"] == "") == (line["radio.access"] == "concurrent")
        assert float(line["claimed_db"]) == pytest.approx(float(line["pi_db"]), abs=0.3)
    made = [
        "link.csv",
        *(f"link-{key}.{ending}" for key in ("snr_db", "access") for ending in ("csv", "svg", "png", "pdf")),
    ]
    assert shown.err == f"{out}: wrote {', '.join(made)}\n"
    assert sorted(path.name for path in out.iterdir()) == sorted(made)
    found = {tuple(line.values()) for line in table(out / "link-snr_db.csv")}
    keys = ("radio.access", "radio.snr_db", "design", "claimed_db", "pi_db", "pi_db_se")
    assert found == {tuple(line[key] for key in keys) for line in lines}


def test_without_a_grid_a_bar_a_design_and_empty_cells_for_no_number(file, tmp_path, monkeypatch, capsys):
    """One draw has no standard error; without a personal adapter there is no p-slot."""
    arguments = ("--draws", "1", "--set", "adapters.rank_personal=0", "--out", tmp_path, "--json")
    assert not link(monkeypatch, file, *arguments)
    assert {path.name for path in tmp_path.glob("link.*")} == {
        "link.toml",
        "link.csv",
        "link.svg",
        "link.png",
        "link.pdf",
    }
    shown = json.loads(capsys.readouterr().out)
    for line in table(tmp_path / "link.csv"):
        assert line["pi_db_se"] == line["p_db"] == line["p_db_se"] == ""
        assert shown[line["design"]]["p_db"] is None
        assert float(line["s_db"]) == float(line["pi_db"]) == shown[line["design"]]["pi_db"]


def test_a_stopped_grid_leaves_the_finished_points(file, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the third point; the figure of an earlier study does not stay beside new numbers."""
    (tmp_path / "link-snr_db.svg").write_text("old")
    (tmp_path / "mine.svg").write_text("mine")
    original, done = link_study.compare_designs, []

    def compare_twice(settings, draws, rho, designs):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(settings)
        return original(settings, draws, rho, ["mmse"])

    monkeypatch.setattr(link_study, "compare_designs", compare_twice)
    assert link(monkeypatch, file, "--draws", "2", "--grid", "radio.snr_db=0,10,20,30", "--out", tmp_path) == 130
    assert [line["radio.snr_db"] for line in table(tmp_path / "link.csv")] == ["0", "10"]
    assert {path.name for path in tmp_path.iterdir()} == {"link.toml", "link.csv", "mine.svg"}
    assert "wrote" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--design", "mmsee"], "--design mmsee: should be one of uniform_forcing, "),
        (["--set", "adapters.method=local"], 'adapters.method = "local": sends nothing'),
        (["--draws", "0"], "--draws 0: should be at least 1"),
        (["--correlation", "1.5"], "--correlation 1.5: should be from 0 to 1"),
        (["--correlation", "nan"], "--correlation nan: should be from 0 to 1"),
        (
            ["--grid", "radio.snr_db=0", "--grid", "radio.snr_db=1"],
            "--grid radio.snr_db=1: radio.snr_db occurs in another --grid",
        ),
        (["--grid", "radio.snr_db=0,0"], "--grid radio.snr_db=0,0: the value 0 occurs twice"),
        (
            ["--grid", "radio.access=tdma,fdma", "--grid", "radio.antennas=4"],
            "--grid at radio.access=fdma radio.antennas=4: ",
        ),
    ],
)
def test_wrong_options_are_one_line_before_anything_is_made(file, tmp_path, monkeypatch, capsys, options, message):
    assert link(monkeypatch, file, "--out", tmp_path / "out", *options) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"airpfed: {message}") and shown.err.count("\n") == 1
    assert shown.out == "" and not (tmp_path / "out").exists()


def test_every_line_of_a_point_with_two_faults_names_the_point(file):
    with pytest.raises(UserError) as raised:
        study_grid(file, ["radio.antennas=0"], ["radio.access=fdma"], 2, 0.0)
    lines = str(raised.value).splitlines()
    assert len(lines) == 2 and all(line.startswith("--grid at radio.access=fdma: ") for line in lines)


def test_a_directory_that_cannot_be_made_is_one_line(file, monkeypatch, capsys):
    assert link(monkeypatch, file, "--out", file / "below") == 2
    assert capsys.readouterr().err == f"airpfed: {file}/below: cannot be made: Not a directory\n"


@pytest.mark.parametrize(("pushes", "name"), [(0, "link.csv"), (2, "link-snr_db.csv"), (3, "link-snr_db.svg")])
def test_a_full_disk_names_the_file_and_leaves_no_part(file, tmp_path, monkeypatch, capsys, pushes, name):
    """Pushes to the disk: the header, then a point each (here two values, the second after the first), then figures."""
    left = [pushes + (pushes > 0)]

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    original = link_study.compare_designs
    monkeypatch.setattr(link_study, "compare_designs", lambda *arguments: original(*arguments[:3], ["mmse"]))
    monkeypatch.setattr(os, "fsync", fsync)
    out = tmp_path / "out"
    assert link(monkeypatch, file, "--draws", "1", "--grid", "radio.snr_db=0,20", "--out", out) == 2
    assert capsys.readouterr().err == f"airpfed: {out / name}: No space left on device\n"
    assert name not in {path.name for path in out.iterdir()}
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_every_drop_is_at_the_stated_snr(file: Path) -> None:
    """So more draws do not move the noise of the first ones."""
    settings = read_settings(file, ["radio.snr_db=10"])
    noises = []

    def spied(link, job, drops, entries, rho):
        medians = (link.power_limit * drops.gain.amax(1)).median(1).values / link.noise
        assert medians.tolist() == pytest.approx([10.0] * len(drops.gain))
        noises.append(link.noise)
        return link_draw(link, job, drops, entries, rho)

    link_draw = link_study.draw_segment
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link_study, "draw_segment", spied)
        for draws in (2, 5):
            compare_designs(settings, draws, 0.0, ["channel_inversion"])
    assert len(set(noises)) == 1


def test_only_the_designs_asked_for(file: Path) -> None:
    result = CliRunner().invoke(app, ["link", str(file), "--draws", "1", "--json", "--design", "mmse"])
    assert set(json.loads(result.stdout)) == {"mmse"}


def test_the_gap_is_of_independent_symbols_whatever_receivers_believe(file: Path) -> None:
    gaps = [
        compare_designs(read_settings(file, [f"radio.correlation={rho}"]), 3, 0.0, ["naive_ao"])["naive_ao"].gap
        for rho in (0.0, 0.5)
    ]
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-9)


def test_channels_of_several_networks_are_scaled_and_in_order(file: Path) -> None:
    """Gains and error variances scale with the factor, channels with its root."""
    settings = read_settings(file, ["radio.csi_error=0.1"])
    link = link_of(settings)
    networks = [build_network(settings.radio.model_copy(update={"drop": n}), 0, link.task_of, 2) for n in (1, 2)]
    drops = draw_channels(link, [(networks[0], 1.0), (networks[1], 4.0)], 3)
    for n, (network, scale) in enumerate(zip(networks, (1.0, 4.0), strict=True)):
        h_est, h = replace(link, network=network).channels(0, 3)
        blocks = slice(3 * n, 3 * n + 3)
        assert torch.equal(drops.h_est[blocks], scale**0.5 * h_est) and torch.equal(drops.h[blocks], scale**0.5 * h)
        assert torch.equal(drops.gain[blocks], scale * network.gain.expand(3, -1, -1))
    variance = drops.csi_variance
    assert torch.equal(variance[0], variance[2]) and float((drops.h_est - drops.h).abs().square().mean()) > 0
    assert float(variance[3:].mean() / networks[1].gain.mean()) == pytest.approx(
        4 * float(variance[:3].mean() / networks[0].gain.mean())
    )


@pytest.mark.parametrize("change", ["radio.pilots=2", "radio.interferers=[{x_m=100.0}]"])
def test_the_drop_of_a_run_does_not_matter_and_claims_hold(file: Path, change: str) -> None:
    """Pilots and receivers meet the noise that data meets: that of drop 1, whatever `radio.drop` is."""
    changes = [change, "radio.interference=mean"] if "interferers" in change else [change]
    rows = [
        compare_designs(read_settings(file, [*changes, f"radio.drop={drop}"]), 60, 0.0, ["uniform_forcing"])
        for drop in (0, 1, 7)
    ]
    first, *others = (row["uniform_forcing"] for row in rows)
    assert all(other.pi_db == first.pi_db for other in others)
    assert first.claimed == pytest.approx(first.measured, rel=0.1)


@pytest.mark.parametrize("change", ["radio.outage=0.2", "radio.phase_error_deg=20"])
def test_drops_lose_devices_and_turn_phases_each_in_its_own_way(file: Path, change: str) -> None:
    settings = read_settings(file, [change])
    drops, link = draw_drops(settings, link_of(settings), 200)
    factors = (drops.h / drops.h_est)[:, 0]
    assert len({tuple(row) for row in factors.angle().add(2 * factors.abs()).round(decimals=6).tolist()}) > 20
    statistics = steady_distortion(link.impairments)
    assert float((factors.mean() - statistics.mean).abs()) < 0.03


@pytest.mark.parametrize(("access", "names"), [("tdma", ["s", "p0", "p1"]), ("concurrent", ["s", "p0,1"])])
def test_all_devices_take_part_in_the_round_that_is_studied(file: Path, access: str, names: list[str]) -> None:
    link = link_of(read_settings(file, [f"radio.access={access}"]))
    drops = draw_channels(link, [(link.network, 1.0)], 1)
    slots = schedule_full_round(link, drops)
    assert [slot.name for slot in slots] == names
    assert sorted(k for slot in slots[1:] for k in slot.devices.tolist()) == list(range(5))
