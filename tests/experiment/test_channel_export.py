"""Exported channels: a run with the file is the run with the model, bit for bit; what is refused, and when."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airpfed.core import run_files
from support.commands import Done, command, good, timeless
from support.settings import save_settings

pytestmark = pytest.mark.usefixtures("shared_bases")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Settings of a run of three rounds with three coherence blocks each."""
    file = save_settings(tmp_path_factory.mktemp("export"), False)
    file.write_text(file.read_text().replace("coherence_symbols = 5000", "coherence_symbols = 50"))
    return file


def words_of(changes: dict[str, Any]) -> list[str]:
    return [word for key, value in changes.items() for word in ("--set", f"radio.{key}={value}")]


def run(file: Path, out: Path, changes: dict[str, Any], *more: str) -> Done:
    return command("run", file, "--out", out, *words_of(changes), *more)


def files_of(folder: Path) -> dict[str, Any]:
    """What a run computed: records, adapters, and positions."""
    adapters = {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("adapters/**/*.safetensors"))
    }
    assert adapters
    names = [name for name in ("records.jsonl", "layout.json") if (folder / name).exists()]
    return adapters | {name: timeless((folder / name).read_bytes()) for name in names}


RUNS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "rayleigh": ("npz", {"csi_error": 0.1, "noise_dbm": "-100", "snr_db": ""}, ()),
    "umi": ("mat", {"channel": "umi(speed_mps=3)", "min_distance_m": 40, "subcarrier_groups": 2}, ("min_distance_m",)),
    "umi, derived blocks and pilots": (
        "npz",
        {"channel": "umi(speed_mps=3)", "min_distance_m": 40, "coherence_symbols": "", "pilots": ""},
        ("min_distance_m",),
    ),
}
"""Case -> the file's ending, the settings, and keys that the file's run leaves out."""


@pytest.mark.parametrize("name", RUNS)
def test_a_run_with_the_file_is_the_run_with_the_model(name, file, tmp_path):
    ending, changes, dropped = RUNS[name]
    if name.startswith("umi"):
        pytest.importorskip("sionna.phy")
    good(run(file, tmp_path / "model", changes))
    path = tmp_path / f"h.{ending}"
    done = good(command("export-channels", file, *words_of(changes), "--out", path))
    assert f"{path}: h (3 rounds, " in done.out
    kept = {key: value for key, value in changes.items() if key not in ("channel", *dropped)}
    good(run(file, tmp_path / "file", kept | {"channel": f'file(path="{path}")'}))
    expected = files_of(tmp_path / "model")
    assert "layout.json" in expected and files_of(tmp_path / "file") == expected


def test_a_scheme_of_bits_gets_the_blocks_of_its_rates(file, tmp_path):
    out = tmp_path / "h.npz"
    done = good(command("export-channels", file, "--set", "radio.scheme=digital", "--out", out))
    assert "h (3 rounds, 8 blocks, 8 antennas, 4 devices) of rayleigh" in done.out


def test_another_file_is_another_run(file, tmp_path):
    """The power of the equality above; and a resumed run stands on its file."""
    good(command("export-channels", file, "--out", tmp_path / "h.npz"))
    path = {"channel": f"file(path={tmp_path / 'h.npz'})"}
    with np.load(tmp_path / "h.npz") as arrays:
        content = dict(arrays)
    good(run(file, tmp_path / "first", path))
    environment = json.loads((tmp_path / "first" / "environment.json").read_text())
    assert set(environment["files"]) == {"radio.channel.path"}
    np.savez(tmp_path / "h.npz", **content | {"h": content["h"] * (1 + 1e-6)})
    done = run(file, tmp_path / "first", path, "--resume")
    assert done.code == 2 and "the file of radio.channel.path has changed since this run started" in done.err
    good(run(file, tmp_path / "second", path))
    first, second = (run_files.load_records(tmp_path / name / "records.jsonl") for name in ("first", "second"))
    assert first[0].pi != second[0].pi


def test_a_path_is_relative_to_the_settings_file_and_needs_no_model(file, tmp_path, monkeypatch):
    """With a number of blocks, neither the data nor the base model are read."""
    monkeypatch.chdir(tmp_path)
    text = file.read_text().replace("/llama", "/missing")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "other.toml").write_text(text)
    words = ("--rounds", "2", "--blocks", "5", "--out", "below/h.npz")
    done = good(command("export-channels", "below/other.toml", *words))
    assert "h (2 rounds, 5 blocks, 8 antennas, 4 devices) of rayleigh" in done.out
    with np.load("below/h.npz") as arrays:
        assert arrays["h"].shape == (2, 5, 8, 4) and arrays["h"].dtype == np.complex128
        assert int(arrays["seed"]) == 0 and str(arrays["channel"]) == "rayleigh"
        assert float(arrays["carrier_hz"]) == 3.5e9 and str(arrays["shape"]) == "rounds, blocks, antennas, devices"
    words = ("--draws", "10", "--design", "uniform_forcing", "--json", "--set", "radio.channel=file(path=h.npz)")
    good(command("link", "below/other.toml", *words))
    done = command("link", "below/other.toml", "--draws", "11", *words[2:])
    assert done.code == 2 and "h has 2 rounds of 5 blocks, and draw 11 is beyond these 10" in done.err


def test_too_few_rounds_or_blocks_are_refused_before_the_first(file, tmp_path):
    out = tmp_path / "h.npz"
    good(command("export-channels", file, "--rounds", "2", "--out", out))
    channel = {"channel": f"file(path={out})"}
    done = run(file, tmp_path / "short", channel)
    assert (
        done.code == 2 and "h has 2 rounds of 3 blocks, and round 3 needs one of its own; a longer file, or" in done.err
    )
    assert not (tmp_path / "short" / "records.jsonl").exists()
    good(run(file, tmp_path / "two", channel, "--set", "server.rounds=2"))
    good(run(file, tmp_path / "repeated", {"channel": f"file(path={out}, repeat=true)"}))
    good(command("export-channels", file, "--blocks", "1", "--out", out))
    done = run(file, tmp_path / "narrow", channel)
    assert done.code == 2 and "h has 3 rounds of 1 block, and round 3 needs " in done.err
    assert not (tmp_path / "narrow" / "records.jsonl").exists()


def test_where_the_end_is_not_known_it_is_one_line_in_the_round(file, tmp_path):
    """With a limit of time on air."""
    out = tmp_path / "h.npz"
    good(command("export-channels", file, "--rounds", "2", "--out", out))
    done = run(file, tmp_path / "run", {"channel": f"file(path={out})"}, "--set", "server.air_seconds=100")
    assert (
        done.code == 2
        and "h has 2 rounds of 3 blocks, and round 3 needs one of its own" in done.err
        and not done.traceback
    )
    assert len(run_files.load_records(tmp_path / "run" / "records.jsonl")) == 2


def test_an_error_free_link_reads_no_file(file, tmp_path):
    """Not even with pooled devices, which are other than the file's."""
    good(command("export-channels", file, "--out", tmp_path / "h.npz"))
    words = ["--set", f"radio.channel=file(path={tmp_path / 'h.npz'})", "--set", "radio.scheme=error_free"]
    good(command("run", file, "--out", tmp_path / "run", *words, "--set", "adapters.method=centralised"))


REFUSED = {
    "ending": (("--out", "h.csv"), "--out h.csv: should be a file that ends in .npz or .mat"),
    "rounds": (("--out", "h.npz", "--rounds", "0"), "--rounds 0: should be at least 1"),
    "blocks": (("--out", "h.npz", "--blocks", "0"), "--blocks 0: should be at least 1"),
    "memory": (("--out", "h.npz", "--rounds", "99999999999", "--blocks", "9"), "--rounds 99999999999: channels of"),
    "scheme": (("--out", "h.npz", "--set", "radio.scheme=error_free"), 'radio.scheme = "error_free": sends nothing'),
    "positions": (
        ("--out", "h.npz", "--set", "radio.cell_radius_m=100", "--set", "radio.channel=file(path=h.npz)"),
        "radio.channel.path: ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exported_is_one_line(name, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, message = REFUSED[name]
    done = command("export-channels", file, *words)
    assert done.code == 2 and not done.traceback and message in done.err and done.err.count("\n") == 1, done
    assert not list(tmp_path.iterdir())


def test_positions_of_the_settings_do_nothing(file, tmp_path):
    good(command("export-channels", file, "--blocks", "5", "--out", tmp_path / "h.npz"))
    changes = {"channel": f"file(path={tmp_path / 'h.npz'})", "cell_radius_m": 100}
    done = run(file, tmp_path / "run", changes)
    assert done.code == 2 and "radio.cell_radius_m = 100.0: does nothing with radio.channel = " in done.err
