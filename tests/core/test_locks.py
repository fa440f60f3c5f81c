"""Locks of folders: one holder at a time, told in a line; also where the system has none."""

import sys
from pathlib import Path

import pytest

from airpfed.core.errors import UserError
from airpfed.core.files import acquire_lock, exclusive_run


def test_a_folder_has_one_holder_at_a_time(tmp_path: Path) -> None:
    with (
        exclusive_run(tmp_path),
        pytest.raises(UserError, match="another run is at work here"),
        exclusive_run(tmp_path),
    ):
        pass
    file = tmp_path / ".lock"
    with (
        exclusive_run(tmp_path),
        acquire_lock(file, 0.0),
        pytest.raises(UserError, match="another process works"),
        acquire_lock(file, 0.0),
    ):
        pass


def test_what_goes_wrong_inside_is_not_taken_for_another_holder(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), exclusive_run(tmp_path):
        raise BlockingIOError


@pytest.mark.parametrize("lock", [exclusive_run, lambda folder: acquire_lock(folder / ".lock", 0.0)])
def test_a_system_without_locks_is_told_in_a_line(lock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(UserError, match="this system has no fcntl") as caught, lock(tmp_path):
        pass
    assert "\n" not in str(caught.value)
