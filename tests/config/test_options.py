"""Wrong values of the commands' options, and files that are no settings: a line or click's usage, exit 2, at once."""

import os
import sys
from pathlib import Path

import pytest

from airpfed import cli
from airpfed.config.settings_file import read_expected

LINK = """
[[tasks]]
name = "a"
devices = 2

[radio]
antennas = 2
snr_db = 10.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "link.toml"
    path.write_text(LINK)
    return path


def airpfed(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    """The exit code of a command in this process."""
    monkeypatch.setattr(sys, "argv", ["airpfed", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("link", ["--draws", "-1"], "--draws -1: should be at least 1"),
        ("link", ["--draws", "9" * 20], "should be at most 100000"),
        ("link", ["--draws", "nan"], "'nan' is not a valid int"),
        ("link", ["--correlation", "inf"], "--correlation inf: should be from 0 to 1"),
        ("link", ["--correlation", "-0.5"], "--correlation -0.5: should be from 0 to 1"),
        ("link", ["--grid", "radio.design=mmse,digital", "--design", "mmse"], "which compares every design"),
        ("link", ["--grid", "tasks.*.prompt=a,b"], "--grid tasks.*.prompt: has no effect on a link study"),
        ("link", ["--grid", "radio.drop=1,2"], "--grid radio.drop: has no effect on a link study"),
        ("link", ["--grid", "run.threads=1,2"], "--grid run.threads: has no effect on a link study"),
        (
            "link",
            ["--grid", "radio.noise_dbm=-90,-80"],
            "noise_dbm = -90.0: does nothing with radio.snr_db = 10.0",
        ),
        ("link", ["--grid", "radio.snr_db=0:1e9999999:1e-9999999"], "should be first:last:step"),
        ("link", ["--grid", "radio.snr_db=0:1e999999999999999999999:1"], "should be first:last:step"),
        (
            "link",
            ["--grid", "radio.snr_db=0:99:0.1", "--grid", "radio.power_dbm=0:99:0.1"],
            "982081 combinations of radio.snr_db, radio.power_dbm; should be at most 10000",
        ),
        ("link", ["--set", "radio.antennas=1000000", "--set", "tasks.*.devices=1000000"], "fewer antennas"),
        ("link", ["--set", "tasks.*.devices=0", "--set", "tasks.*.split=column"], "split.column: missing"),
        (
            "link",
            ["--set", "tasks.*.devices=0", "--set", "tasks.*.split=column", "--set", "tasks.*.split.column=user"],
            "tasks.a.devices = 0: a study reads no data",
        ),
        ("plan", ["--limit", "nan"], "--limit nan: should be a percentage"),
        ("plan", ["--draws", "0"], "--draws 0: should be at least 1"),
        ("plan", ["--draws", "9" * 20], "should be at most 100000"),
        ("plan", ["--split", "1:x"], "--split 1:x: should be R_S:R_P"),
        ("plan", ["--split", "9" * 5000 + ":1"], "should be R_S:R_P"),
        ("plan", ["--grid", "radio.clipping_db=0,3"], "radio.clipping_db: a plan needs claimed errors"),
        ("sweep", ["--seeds", "9" * 20], "should be at most 100000"),
        ("sweep", ["--workers", "9" * 20], "should be at most 100000"),
        ("sweep", ["--grid", "devices.local_lr=1e-3,1e-2"], "devices.local_lr = 0.001: does nothing with"),
        ("sweep", ["--grid", "tasks.*.split.alpha=0.1,1"], "split.alpha: no option of iid"),
        (
            "sweep",
            ["--grid", "tasks.*.split=dirichlet,dirichlet(alpha=0.5)"],
            "are the same settings",
        ),
        ("sweep", ["--grid", "run.threads=1,2"], "are the same settings"),
        ("run", ["--set", "radio.noise_dbm=-90"], "does nothing with radio.snr_db = 10.0"),
        ("run", ["--set", "theory.draws=30"], "theory.draws = 30: does nothing with theory.meter_every = 0"),
    ],
)
def test_a_wrong_option_is_told(command, options, words, file, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert airpfed(monkeypatch, command, file, *options) == 2
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told
    assert told.startswith("Usage") or told.count("\n") == 1
    assert not (tmp_path / "runs").exists(), "nothing is begun"


@pytest.mark.parametrize("command", ["link", "run", "plan", "sweep"])
@pytest.mark.parametrize("kind", ["/dev/zero", "fifo", "large", "folder", "missing"])
def test_what_is_no_settings_file_is_told_and_never_waited_for(command, kind, monkeypatch, capsys, tmp_path):
    place = tmp_path / "it"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "large":
        place.write_bytes(b"#" * (5 << 20))
    elif kind == "folder":
        place.mkdir()
    assert airpfed(monkeypatch, command, "/dev/zero" if kind == "/dev/zero" else place) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("airpfed: ")


def test_a_grid_may_hold_what_applies_at_some_of_its_points(file):
    """A file's key for one of two sizes is no contradiction of the other."""
    from airpfed.sweeps.trials import trials_of

    file.write_text(LINK.replace("devices = 2", "devices = 2\nsizes_sigma = 0.1"))
    points = [("tasks.*.sizes=equal",), ("tasks.*.sizes=lognormal",)]
    assert len(trials_of(file, [], points, 2)) == 4


def test_expected_results_of_another_shape_are_one_line(file, monkeypatch, capsys):
    from airpfed.core.errors import UserError

    for wrong in ("expected = 3\n", "expected = { average = 1 }\n", "expected = { average = ['a', 'b'] }\n"):
        file.write_text(wrong + LINK)
        with pytest.raises(UserError, match=r"expected: should be a table of field = \[least, most\]"):
            read_expected(file)
