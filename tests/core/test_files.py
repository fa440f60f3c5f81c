"""Paths made from names lie where they should; what airpfed did not write is never removed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpfed.config.settings_file import parse_settings
from airpfed.core.errors import UserError
from airpfed.core.files import (
    MAX_NAME_LENGTH,
    collision_key,
    discard,
    file_name_of,
    leftovers,
    path_inside,
    replace_folder,
    temporary_path,
    write_atomic,
)


@pytest.mark.parametrize("name", ["a", "a:b", "A-1", "gym:x.y_z", "7", "x" * MAX_NAME_LENGTH])
def test_a_name_lies_right_below_its_folder(name: str, tmp_path: Path) -> None:
    path = path_inside(tmp_path, name)
    assert path.parent == tmp_path and path == tmp_path / name.replace(":", "-")
    path.mkdir()


@given(st.text(max_size=300))
def test_no_name_leads_elsewhere(name: str) -> None:
    folder = Path("/nowhere/at/all")
    try:
        path = path_inside(folder, name)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert Path(os.path.normpath(path)).parent == folder and len(path.name) <= MAX_NAME_LENGTH


@pytest.mark.parametrize("name", [".", "..", "", ".a", "-a", "../a", "/a", "a.", "x" * 300, "\n", "nul", "COM1.txt"])
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot name a file"):
        path_inside(tmp_path, name)


def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for target in (tmp_path / "own", tmp_path / "none", tmp_path / "a"):
        (tmp_path / "a").symlink_to(target)
        with pytest.raises(UserError, match="a symbolic link"):
            path_inside(tmp_path, "a")
        (tmp_path / "a").unlink()


@pytest.mark.parametrize("name", ["..", ".", ".a", "-", ":a", "a.", "", "a/b", "é", "a b", "nul", "aux.x", "x" * 201])
def test_tasks_cannot_be_called_so(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        parse_settings({"tasks": [{"name": name}]}, "file")


@pytest.mark.parametrize("names", [("a:b", "a-b"), ("A", "a"), ("gym:X", "gym-x")])
def test_tasks_whose_folders_would_be_one_are_refused(names: tuple[str, str]) -> None:
    assert collision_key(names[0]) == collision_key(names[1])
    with pytest.raises(UserError, match=f'"{names[1]}" would have the same folder as "{names[0]}"'):
        parse_settings({"tasks": [{"name": name} for name in names]}, "file")


@given(st.lists(st.text("aA-:.b0", min_size=1, max_size=4), min_size=2, max_size=3, unique=True))
def test_accepted_tasks_have_folders_of_their_own(names: list[str]) -> None:
    try:
        tasks = parse_settings({"tasks": [{"name": name} for name in names]}, "file").tasks
    except UserError:
        return
    assert len({path_inside(Path("/nowhere"), task.name).name.lower() for task in tasks}) == len(names)
    assert all(file_name_of(task.name)[0] not in ".-" for task in tasks)


def fill(folder: Path, text: str, *names: str) -> None:
    with replace_folder(folder) as spare:
        for name in names:
            (spare / name).write_text(text)


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_put_in_place_whole_and_again(tmp_path: Path) -> None:
    fill(tmp_path / "deep" / "a", "1", "x", "y")
    fill(tmp_path / "deep" / "a", "2", "x", "y", "z")
    assert tree(tmp_path) == {f"deep/a/{name}": "2" for name in "xyz"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]


@pytest.mark.parametrize("stranger", ["notes.txt", "x as a folder", "a link", "a file"])
def test_what_others_put_there_stays(stranger: str, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x").write_text("theirs")
    if stranger == "a link":
        folder.symlink_to(tmp_path / "theirs")
    elif stranger == "a file":
        folder.write_text("theirs")
    else:
        folder.mkdir()
        (folder / "x").mkdir() if "folder" in stranger else (folder / stranger).write_text("theirs")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="move"):
        fill(folder, "ours", "x")
    assert tree(tmp_path) == before and folder.is_symlink() == (stranger == "a link")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "theirs"}


def test_a_fill_that_was_killed_between_its_moves_puts_the_old_back(tmp_path: Path) -> None:
    old = tmp_path / f".a.old.{temporary_path(Path('a')).name.split('.')[2]}.{ended_process()}"
    fill(old, "1", "x")
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path / "a"):
        _ = 1 / 0
    assert tree(tmp_path) == {"a/x": "1"}


def test_pieces_that_are_not_written_again_may_be_named(tmp_path: Path) -> None:
    fill(tmp_path / "a", "1", "x", "x-1-of-2", "x-2-of-2")
    with replace_folder(tmp_path / "a", r"x-\d-of-\d") as spare:
        (spare / "x").write_text("2")
    assert tree(tmp_path) == {"a/x": "2"}


def test_a_fill_that_fails_leaves_the_old(tmp_path: Path) -> None:
    fill(tmp_path / "a", "1", "x")
    with pytest.raises(ZeroDivisionError), replace_folder(tmp_path / "a") as spare:
        (spare / "x").write_text("2")
        _ = 1 / 0
    assert tree(tmp_path) == {"a/x": "1"} and len(list(tmp_path.iterdir())) == 1


def ended_process() -> int:
    done = subprocess.Popen([sys.executable, "-S", "-c", ""])
    done.wait()
    return done.pid


def test_what_a_killed_write_left_goes_with_the_next_and_nothing_else(tmp_path: Path) -> None:
    gone, machine = ended_process(), temporary_path(Path("a")).name.split(".")[2]
    stale = [f".a.{machine}.{gone}", f".a.{gone}"]
    others = [f".a.{machine}.1", f".b.{machine}.{gone}", f".a.00000000.{gone}", "a.1", ".a", ".a.txt"]
    for name in [*stale, *others]:
        (tmp_path / name).write_text("x")
    (tmp_path / f".f.{machine}.{gone}").mkdir()
    (tmp_path / f".f.{machine}.{gone}" / "x").write_text("x")
    assert {path.name for path in leftovers(tmp_path, "a")} == set(stale)
    write_atomic(tmp_path / "a", "new")
    fill(tmp_path / "f", "new", "x")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "f", *others}


def test_discarding_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "x").write_text("theirs")
    spare = temporary_path(tmp_path / "a")
    (spare / "deep").mkdir(parents=True)
    (spare / "deep" / "link").symlink_to(tmp_path / "theirs")
    (spare / "link").symlink_to(tmp_path / "theirs" / "x")
    discard(spare)
    assert tree(tmp_path) == {"theirs/x": "theirs"} and not spare.exists()
    spare.symlink_to(tmp_path / "theirs")
    discard(spare)
    assert tree(tmp_path) == {"theirs/x": "theirs"}
    with pytest.raises(AssertionError):
        discard(tmp_path / "theirs")
