"""A round's waveform from the command line: recordings of all antennas, decoded to the sums of the run."""

import json
from pathlib import Path

import pytest
import torch

from airpfed.air import round_waveform as waveforms
from airpfed.air import sigmf
from airpfed.experiment.library import Experiment
from airpfed.experiment.waveform_export import load_receivers, read_sums
from support.commands import command, good
from support.settings import save_settings

pytestmark = pytest.mark.usefixtures("shared_bases")
CHANGES = ("radio.coherence_symbols=50", "radio.subcarriers=32", "radio.subcarrier_groups=4", "radio.csi_error=0.1")
SETS = tuple(word for change in CHANGES for word in ("--set", change))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_settings(tmp_path_factory.mktemp("waveform"), False)


def test_the_recordings_hold_the_second_round_of_the_run(file, tmp_path):
    done = good(command("export-waveform", file, *SETS, "--round", "2", "--out", tmp_path / "out"))
    assert "round 2 at 8 antennas, slots s, p0, p1" in done.out and "relative difference" in done.out
    experiment = Experiment.from_toml(file, list(CHANGES))
    states = [state for state, _ in experiment.rounds()][:2]
    sums = read_sums(tmp_path / "out", 2)
    before, after = (state.server.shared.value[0].double() for state in states)
    optimizer = states[1].server.shared.optimizer_state
    first = optimizer["first"][0].double() - 0.9 * states[0].server.shared.optimizer_state["first"][0].double()
    torch.testing.assert_close(first / 0.1, sums["s"], rtol=1e-3, atol=1e-4 * float(sums["s"].abs().max()))
    assert float((after - before).abs().max()) > 0 and set(sums) == {"s", "colours", "moods"}


def test_the_annotations_lie_in_the_recording_and_on_the_band(file, tmp_path):
    good(command("export-waveform", file, *SETS, "--out", tmp_path / "out"))
    grid, prefix, pilots, receivers = load_receivers(tmp_path / "out" / "receivers.npz")
    collection = json.loads((tmp_path / "out" / "round-1.sigmf-collection").read_text())["collection"]
    assert [stream["name"] for stream in collection["core:streams"]] == [f"round-1-antenna-{m}" for m in range(8)]
    recording = sigmf.read_collection(tmp_path / "out" / "round-1")[3]
    notes, fields = recording.metadata["annotations"], recording.metadata["global"]
    assert fields["airpfed:antenna"] == 3 and fields["airpfed:cyclic_prefix"] == prefix == 2
    labels = [note["core:label"] for note in notes]
    uses = max(segment.first_use + segment.block_ranges[-1][1] for segment in receivers)
    assert labels[0] == "pilots" and {"slot s", "slot p0", "slot p1"} <= set(labels)
    assert [label for label in labels if label.startswith("block")] == [f"block {i}" for i in range(-(-uses // 50))]
    length = grid.subcarriers + prefix
    for note in notes:
        assert note["core:sample_start"] % length == 0 and note["core:sample_count"] % length == 0
        assert note["core:sample_start"] + note["core:sample_count"] <= len(recording.samples)
        low, high = note["core:freq_lower_edge"] - 3.5e9, note["core:freq_upper_edge"] - 3.5e9
        assert -10e6 - 20e6 / 32 <= low < high <= 10e6
    block = notes[labels.index("block 1")]  # the second of four groups of 8 subcarriers, -8 to -1 of the carrier's
    edges = (block["core:freq_lower_edge"] - 3.5e9, block["core:freq_upper_edge"] - 3.5e9)
    assert edges == (pytest.approx(-8.5 * 20e6 / 32), pytest.approx(-0.5 * 20e6 / 32))
    first_slot = min(note["core:sample_start"] for note in notes if note["core:label"].startswith("slot"))
    assert first_slot == pilots * length


def test_a_waveform_of_another_round_is_refused(file, tmp_path, monkeypatch):
    """The check at the end of the command: here the devices would send their entries in another order."""
    pack = waveforms.pack_symbols
    monkeypatch.setattr(waveforms, "pack_symbols", lambda u, packing: pack(u.flip(1), packing))
    done = command("export-waveform", file, "--out", tmp_path / "out")
    assert done.code == 2 and "differ by" in done.err and "is not part of the waveform" in done.err
    assert not list((tmp_path / "out").iterdir())


REFUSED = {
    "scheme": (("--set", "radio.scheme=digital"), 'radio.scheme = "digital": superposes no symbols'),
    "round 0": (("--round", "0"), "--round 0: should be from 1 to server.rounds = 3"),
    "round 4": (("--round", "4"), "--round 4: should be from 1 to server.rounds = 3"),
    "air": (("--round", "3", "--set", "server.air_seconds=1e-6"), "--round 3: server.air_seconds ends the run before"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_waveform_is_one_line(name, file, tmp_path):
    words, message = REFUSED[name]
    done = command("export-waveform", file, *words, "--out", tmp_path / "out")
    assert done.code == 2 and not done.traceback and message in done.err, done
    assert not (tmp_path / "out").exists()


def test_no_folder_is_overwritten(file, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    done = command("export-waveform", file, "--out", tmp_path)
    assert done.code == 2 and "exists already; should be a new or an empty folder" in done.err
