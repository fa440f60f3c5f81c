"""A base model's fingerprint, kept for files that did not change."""

import hashlib
import os
from pathlib import Path

import pytest

from airpfed.model import catalog


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRPFED_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"b": 1, "a": 2}')
    (made / "model.safetensors").write_bytes(b"weights")
    return made


def fresh(folder: Path) -> str:
    """As another process has it."""
    catalog.identity.cache_clear()
    return catalog.identity(str(folder))


def test_it_is_of_config_and_weights(folder: Path) -> None:
    expected = hashlib.sha256(b'{"a": 2, "b": 1}' + b"7" + hashlib.sha256(b"weights").digest()).hexdigest()
    assert fresh(folder) == expected == fresh(folder)
    (folder / "config.json").write_text('{"b": 1, "a": 3}')
    assert fresh(folder) != expected


def test_weights_are_read_again_only_when_their_file_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, reads = fresh(folder), []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: reads.append(args) or digest(*args))
    assert fresh(folder) == before and reads == []
    weights = folder / "model.safetensors"
    time = weights.stat().st_mtime_ns
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(time + 1, time + 1))
    assert fresh(folder) != before and len(reads) == 1


def test_a_cache_that_cannot_be_written_is_done_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fresh(folder)
    monkeypatch.setenv("AIRPFED_CACHE", str(folder / "config.json"))
    assert fresh(folder) == before
