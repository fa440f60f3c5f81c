"""Locks of folders: one holder at a time, told in a line; also where the system has none."""

import sys
from pathlib import Path

import pytest

from airpfed.core.errors import UserError
from airpfed.core.locks import alone, only


def test_a_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    with only(tmp_path), pytest.raises(UserError, match="another run is at work here"), only(tmp_path):
        pass
    file = tmp_path / ".lock"
    with only(tmp_path), alone(file, 0.0), pytest.raises(UserError, match="another process works"), alone(file, 0.0):
        pass


def test_what_goes_wrong_inside_is_not_taken_for_another_holder(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), only(tmp_path):
        raise BlockingIOError


@pytest.mark.parametrize("lock", [only, lambda folder: alone(folder / ".lock", 0.0)])
def test_a_system_without_locks_is_told_in_a_line(lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UserError, match="this system has no fcntl") as caught, lock(tmp_path):
        pass
    assert "\n" not in str(caught.value)
