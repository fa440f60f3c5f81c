"""`airpfed link`: what it claims is what random symbols measure."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airpfed.air.designs.table import DESIGNS
from airpfed.cli import app
from airpfed.errors import UserError
from airpfed.reading import read
from airpfed.study import compare, points

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
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "link.toml").write_text(SETTINGS)
    return tmp_path / "link.toml"


@pytest.mark.parametrize("change", ["radio.antennas=6", "radio.access=concurrent", "radio.packing=real"])
def test_claimed_is_measured(file: Path, change: str) -> None:
    """At least 500 independent symbols a slot and 30 channels: the ratio's standard error is 0.6 %."""
    rows = compare(read(file, [change]), 30, 0.0)
    assert set(rows) == set(DESIGNS)
    for one in rows.values():
        assert abs(one.measured / one.claimed - 1) < 0.03
        assert one.pi_db[0] < 0


def test_csi_error_is_in_the_claim(file: Path) -> None:
    """An error is drawn once a channel and device: over 30 channels of 5 devices the ratio's standard error is 10 %."""
    only = ["uniform_forcing"]
    perfect = compare(read(file, ["radio.snr_db=20"]), 5, 0.0, only)["uniform_forcing"]
    one = compare(read(file, ["radio.snr_db=20", "radio.csi_error=0.05"]), 30, 0.0, only)["uniform_forcing"]
    assert one.claimed > 3 * perfect.claimed
    assert abs(one.measured / one.claimed - 1) < 0.5


def test_certified_gaps_are_small_and_absent_where_none_is_known(file: Path) -> None:
    rows = compare(read(file), 5, 0.0)
    assert rows["mmse"].gap is not None and 0 <= rows["mmse"].gap < 0.05
    rows = compare(read(file, ["radio.access=concurrent"]), 2, 0.0)
    assert all(one.gap is None for one in rows.values())


def test_correlated_symbols_cost_the_shrinking_design_more_than_it_claims(file: Path) -> None:
    rows = compare(read(file, ["radio.snr_db=-10"]), 20, 0.7)
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
        points(["radio.snr_db"])
