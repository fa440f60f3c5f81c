"""A few of the kills of `python -m fuzz.kills`, and one of a whole process."""

import re
from pathlib import Path

import pytest

from fuzz import kills
from fuzz.kills import killed_processes, same, spread
from support import forks
from support.forks import forked
from support.settings import save_settings


@forked
def test_killed_at_events_of_the_disk_every_program_ends_as_undisturbed() -> None:
    lines: list[str] = []
    assert kills.main(4, lines.append) == 0, "\n".join(lines)
    found = dict(re.findall(r"^(\w+): 4 of (\d+) events", "\n".join(lines), re.MULTILINE))
    assert lines[-1] == "0 failed" and found.keys() == {"run", "export", "report", "sweep"}
    assert int(found["run"]) > 60, "events are seen"


def test_a_killed_process_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "settings").mkdir()
    file = save_settings(tmp_path / "settings", check_round=False)
    assert forks.call(killed_processes, 1, file, tmp_path) == 1


def test_events_are_spread_from_the_first_to_the_last() -> None:
    assert spread(5, None) == spread(5, 9) == [1, 2, 3, 4, 5]
    assert spread(100, 4) == [1, 34, 67, 100]


def test_what_differs_is_seen() -> None:
    """The comparison that all kills are held to."""
    whole = {"records.jsonl": b'{"round": 1, "seconds": 2}\n', "a": b"1"}
    same(whole, {**whole, "records.jsonl": b'{"round": 1, "seconds": 3}\n'}, "")
    for other in (
        {"a": b"1"},
        {**whole, ".b": b""},
        {**whole, "a": b"2"},
        {**whole, "records.jsonl": b'{"round": 2}\n'},
    ):
        with pytest.raises(AssertionError):
            same(whole, other, "")
