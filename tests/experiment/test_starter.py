"""`airpfed init`: a settings file and its data, both or none, from which a run can start."""

import csv
import errno
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airpfed.config.schema import Settings
from airpfed.config.settings_file import read_new_settings, section_of
from airpfed.experiment import build, starter
from support.commands import command, good

FILES = ["example.csv", "experiment.toml"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_files_are_valid_and_have_data_for_both_tasks(folder: Path) -> None:
    done = good(command("init"))
    assert done.out.splitlines()[-1] == "next: airpfed run" and done.err == ""
    assert names(folder) == FILES
    settings = read_new_settings(folder / "experiment.toml")
    for task in build.load_tasks(settings):
        assert len(task.labels) == {"topic": 4, "tone": 2}[task.name]
        assert ([len(shard) for shard in task.train], len(task.test), len(task.dev)) == ([50, 50], 80, 20)


def test_the_data_are_200_different_rows_of_balanced_classes() -> None:
    rows = list(csv.DictReader(starter.example_data().splitlines()))
    assert len({row["text"] for row in rows}) == len(rows) == 200
    assert set(Counter((row["topic"], row["tone"]) for row in rows).values()) == {25}
    assert starter.example_data() == starter.example_data()


def test_the_comments_name_every_other_key_of_a_section() -> None:
    text = starter.starter_settings()
    tree = tomllib.loads(text)
    assert not any(line.startswith(starter.MORE) for line in text.splitlines())
    for section, table in tree.items():
        tables: list[dict[str, Any]] = table if isinstance(table, list) else [table]
        part = text[text.index(f"[{section}]") :]
        comment = re.search(r"# more keys: (.*?)\n(?!#  )", part, re.DOTALL)
        schema = section_of(Settings.model_fields[section].annotation)
        assert comment and schema
        others = re.findall(r"\w+", comment[1])
        assert sorted([*others, *tables[0]]) == sorted(schema.model_fields)


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_replaced(folder: Path, name: str) -> None:
    (folder / name).write_text("mine")
    done = command("init")
    assert done.code == 2 and done.err.startswith(f"airpfed: {name}: exists already") and done.err.count("\n") == 1
    assert names(folder) == [name] and (folder / name).read_text() == "mine"


def test_what_cannot_be_finished_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the second file."""
    write, calls = starter.write_atomic, list[Path]()

    def full(path: Path, content: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(starter, "write_atomic", full)
    done = command("init")
    assert (done.code, done.err) == (2, f"airpfed: {calls[1]}: No space left on device\n")
    assert names(folder) == []


def test_a_run_without_a_file_is_of_experiment_toml(folder: Path) -> None:
    done = command("run")
    assert done.code == 2 and done.err.startswith("airpfed: experiment.toml: no such settings file here")
    good(command("init"))
    done = command("run", "--set", "model.base=./none")
    assert done.code == 2 and 'model.base = "' in done.err and str(folder / "none") in done.err
