"""A folder that holds any of a run's files is that run: nothing overwrites it, what cannot go on is left as it is."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airpfed.core import files
from airpfed.core.errors import UserError
from airpfed.experiment import artifacts
from airpfed.experiment.artifacts import (
    FILES,
    FOLDERS,
    check_folder,
    claim_folder,
    clean_up,
    fresh_folder,
    newest_folder,
)

NOTHING_DONE = {"experiment.toml", "environment.json", "layout.json", "first", "run.json", "base.json"}
"""What a run leaves that is killed before its first checkpoint is whole."""
PARTS = (*FILES, "first", "run.json", "base.json", "third", "adapters", "merged", "gguf")
PLACES = {
    "first": "checkpoint/round-000000.safetensors", "third": "checkpoint/round-000003.safetensors",
    "run.json": "checkpoint/run.json", "base.json": "checkpoint/base.json",
    "adapters": "adapters/a/adapter_config.json", "merged": "merged/a/config.json", "gguf": "gguf/a.gguf",
    "latest": "checkpoint/latest.json",
}  # fmt: skip


def made(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        path = folder / PLACES.get(name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_whatever_is_there_of_a_run_a_new_one_is_refused(count: int, tmp_path: Path) -> None:
    for number, names in enumerate(itertools.combinations((*PARTS, "latest"), count)):
        out = made(tmp_path / str(number), names)
        before = tree(out)
        with pytest.raises(UserError, match="holds a run already"):
            check_folder(out, resume=False)
        assert tree(out) == before


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_without_its_checkpoint_begins_again_only_if_nothing_was_done(count: int, tmp_path: Path) -> None:
    for number, names in enumerate(itertools.combinations(PARTS, count)):
        out = made(tmp_path / str(number), names)
        before = tree(out)
        if set(names) <= NOTHING_DONE:
            check_folder(out, resume=True)
        else:
            with pytest.raises(UserError, match=r"latest.json: missing, but rounds were done here"):
                check_folder(out, resume=True)
        assert tree(out) == before
        made(out, ("latest",))
        check_folder(out, resume=True)


def test_no_record_yet_is_no_round(tmp_path: Path) -> None:
    made(tmp_path, ("experiment.toml", "first"))
    (tmp_path / "records.jsonl").touch()
    check_folder(tmp_path, resume=True)


def test_a_folder_of_the_users_own_is_taken_and_left(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("own")
    (tmp_path / "adapter").mkdir()
    check_folder(tmp_path, resume=False)
    with pytest.raises(UserError, match="nothing to resume"):
        check_folder(tmp_path, resume=True)
    clean_up(tmp_path)
    assert tree(tmp_path) == {"notes.txt": "own"}


def test_a_federation_that_was_killed_before_its_first_file_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "flower").mkdir()
    (tmp_path / "federation.log").touch()
    check_folder(tmp_path, resume=True)


def test_killed_before_its_first_file_a_run_can_be_resumed(tmp_path: Path) -> None:
    check_folder(tmp_path, resume=True)
    files.temporary_path(tmp_path / "experiment.toml").write_text("")
    check_folder(tmp_path, resume=True)


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
@pytest.mark.parametrize("resume", [True, False])
def test_what_is_of_another_kind_is_refused(name: str, resume: bool, tmp_path: Path) -> None:
    if name != "checkpoint":
        made(tmp_path, ("latest",))
    if name in FOLDERS:
        (tmp_path / name).write_text("")
    else:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{tmp_path / name}: should be" if resume else "holds a run already"):
        check_folder(tmp_path, resume)


@pytest.mark.parametrize("stem", ["exp", "a[b]c", "x*", "t.o"])
def test_the_newest_run_is_of_this_file_and_no_other(stem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        newest_folder(tmp_path / "none", stem)
    for name in (f"{stem}-big", f"{stem}2", f"{stem}-2x", f"{stem}-", "abc", "x1", "txo", f"{stem}-sweep"):
        made(tmp_path / name, ("experiment.toml", "latest"))
    with pytest.raises(UserError, match="nothing to resume"):
        newest_folder(tmp_path, stem)
    (tmp_path / f"{stem}-3").mkdir()
    for age, name in enumerate((stem, f"{stem}-10", f"{stem}-2")):
        made(tmp_path / name, ("experiment.toml",))
        os.utime(tmp_path / name / "experiment.toml", (1000 + age, 1000 + age))
    assert newest_folder(tmp_path, stem) == tmp_path / f"{stem}-2"


def test_a_fresh_folder_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert claim_folder(None, "exp", False) == Path("runs/exp")
    made(Path("runs/exp"), ("layout.json",))
    assert claim_folder(None, "exp", False) == fresh_folder(Path("runs"), "exp") == Path("runs/exp-2")
    assert claim_folder(None, "exp", True) == Path("runs/exp")


def test_temporary_files_of_killed_processes_go_and_others_stay(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-S", "-c", ""])
    done.wait()
    made(tmp_path, (*FILES, "latest", "adapters", "merged", "gguf"))
    (tmp_path / f".notes.{done.pid}").write_text("the user's own")
    before = tree(tmp_path)
    for place in ("", "checkpoint", "adapters", "merged", "gguf", "adapters/a"):
        (tmp_path / place / f".latest.json.{files.machine_id()}.{done.pid}").write_text("")
        (tmp_path / place / f".a.{files.machine_id()}.{done.pid}").mkdir()
    clean_up(tmp_path)
    assert tree(tmp_path) == before
    assert [path.name for path in tmp_path.rglob(".*")] == [f".notes.{done.pid}"]
    assert artifacts.files_of_run(tmp_path) == [*FILES, *FOLDERS]
