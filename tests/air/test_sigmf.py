"""SigMF recordings: what is written is read again, and what is damaged is refused in one line."""

import json
from pathlib import Path

import pytest
import torch

from airpfed.air.sigmf import read_collection, read_recording, write_collection, write_recording
from airpfed.core.errors import UserError
from airpfed.core.rng import stream

SAMPLES = torch.randn(50, dtype=torch.complex128, generator=stream(0, "samples"))
NOTES = [{"core:sample_start": start, "core:sample_count": 5, "core:label": f"at {start}"} for start in (20, 0, 10)]


def write(folder: Path, name: str = "round.1") -> str:
    return write_recording(folder / name, SAMPLES, 20e6, 3.5e9, {"airpfed:round": 1}, NOTES)


def test_samples_and_metadata_are_read_again(tmp_path):
    write(tmp_path)
    recording = read_recording(tmp_path / "round.1")
    assert torch.equal(recording.samples, SAMPLES.to(torch.complex64))
    fields = recording.metadata["global"]
    assert fields["core:datatype"] == "cf32_le" and fields["core:sample_rate"] == 20e6 and fields["airpfed:round"] == 1
    assert recording.metadata["captures"] == [{"core:sample_start": 0, "core:frequency": 3.5e9}]
    assert [note["core:sample_start"] for note in recording.metadata["annotations"]] == [0, 10, 20]


def test_the_data_are_pairs_of_little_endian_float32(tmp_path):
    write(tmp_path)
    data = (tmp_path / "round.1.sigmf-data").read_bytes()
    pairs = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(-1, 2)
    assert torch.equal(pairs, torch.view_as_real(SAMPLES.to(torch.complex64)))


def test_a_collection_lists_its_recordings(tmp_path):
    streams = {name: write(tmp_path, name) for name in ("a", "b")}
    write_collection(tmp_path / "both", streams, "two antennas")
    assert [len(recording.samples) for recording in read_collection(tmp_path / "both")] == [50, 50]
    write(tmp_path, "b")  # the same again
    assert len(read_collection(tmp_path / "both")) == 2
    meta = tmp_path / "b.sigmf-meta"
    meta.write_text(meta.read_text().replace("at 20", "at 21"))
    with pytest.raises(UserError, match="the metadata of b is missing or has changed"):
        read_collection(tmp_path / "both")


def test_a_collection_leads_nowhere_else(tmp_path):
    (tmp_path / "inner").mkdir()
    write_collection(tmp_path / "inner" / "both", {"../a": write(tmp_path, "a")}, "outside")
    with pytest.raises(UserError, match="is missing or has changed"):
        read_collection(tmp_path / "inner" / "both")


def change_data(folder: Path) -> None:
    path = folder / "round.1.sigmf-data"
    path.write_bytes(b"\1" + path.read_bytes()[1:])


def change_type(folder: Path) -> None:
    path = folder / "round.1.sigmf-meta"
    tree = json.loads(path.read_text())
    tree["global"]["core:datatype"] = "ci16_le"
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_data, "round.1.sigmf-data: damaged"),
        (change_type, "core:datatype should be cf32_le"),
        (lambda folder: (folder / "round.1.sigmf-data").unlink(), "round.1.sigmf-data: missing"),
        (lambda folder: (folder / "round.1.sigmf-meta").unlink(), "round.1.sigmf-meta: missing"),
        (lambda folder: (folder / "round.1.sigmf-meta").write_text("[]"), "round.1.sigmf-meta: no metadata of SigMF"),
    ],
)
def test_what_is_damaged_is_one_line(change, words, tmp_path):
    write(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=words):
        read_recording(tmp_path / "round.1")


def test_samples_beyond_float32_are_refused(tmp_path):
    with pytest.raises(UserError, match="samples are infinite, NaN or beyond float32"):
        write_recording(tmp_path / "a", 1e40 * SAMPLES, 1.0, 1.0, {}, [])
