"""The contract of trackers: our rows keep it, and a tracker of a user that breaks it is told how."""

import json
import os
from pathlib import Path

import pytest

from airpfed import testing
from airpfed.core.errors import UserError
from airpfed.core.run_files import RoundRecord
from airpfed.experiment.loggers import TRACKERS, scalars


@pytest.mark.parametrize("name", TRACKERS)
def test_our_trackers_keep_the_contract(name):
    report = testing.check_tracker(name)
    assert report.ok, str(report)


def lines(folder, *, file: str = "lines.jsonl"):
    """A tracker as a user would write it."""

    def track(row):
        with (folder / file).open("a") as out:
            out.write(json.dumps(scalars(row)) + "\n")

    return track


def test_a_users_function():
    report = testing.check_tracker(lines, file="mine.jsonl")
    assert report.ok, str(report)
    assert str(report).startswith("tracker lines(file=mine.jsonl): all 8 checks pass")
    assert {result.name: result.detail for result in report.results}["a run"] == "writes mine.jsonl"


def returns_nothing(folder):
    (folder / "started").touch()


def wants_pi(folder):
    return lambda row: print(f"{row.pi:.3f}", end="") if isinstance(row, RoundRecord) else None


def working_directory(folder):
    return lambda row: Path("log.txt").write_text("x")


def changes_directory(folder):
    os.chdir(folder)
    return lambda row: None


def rewrites_records(folder):
    return lambda row: (folder / "records.jsonl").write_text("mine")


def new_folder_only(folder):
    (folder / "log").mkdir()
    return lambda row: None


OPENED: list[Path] = []


def last_opened(folder):
    OPENED.append(folder)
    return lambda row: (OPENED[-1] / "log.txt").open("a").write("x")


def edits_records(folder):
    return lambda row: row.seconds.clear()


@pytest.mark.parametrize(
    ("tracker", "check", "words"),
    [
        (returns_nothing, "opens", "returns NoneType; should be a function of a record"),
        (wants_pi, "numbers without a value", "TypeError"),
        (working_directory, "the working directory", "writes log.txt outside the run's folder"),
        (changes_directory, "the working directory", "changes the working directory"),
        (rewrites_records, "the run's files", "changes records.jsonl"),
        (new_folder_only, "an interrupted run goes on", "FileExistsError"),
        (last_opened, "two runs", "a record of one run changes the files of another"),
        (edits_records, "records are not changed", "changes the record"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_planted_fault_is_named(tracker, check, words):
    report = testing.check_tracker(tracker)
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]


def test_a_package_that_is_missing_skips_its_checks():
    def needs(folder):
        raise UserError("not installed")

    report = testing.check_tracker(needs)
    assert report.ok and {result.outcome for result in report.results} == {"skip"}
