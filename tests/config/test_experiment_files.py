"""Experiments of the package go by name, and a file of one's own goes by its path."""

from pathlib import Path

import pytest

from airpfed.config.experiment_files import (
    FOLDER,
    RENAMED,
    default_path,
    display_name,
    experiment_names,
    experiment_title,
    settings_path,
)
from airpfed.core.errors import UserError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_experiment_goes_by_its_name():
    assert {"quickstart", "minilm", "theory", "three_devices", "four_tasks"} <= set(experiment_names())
    for name in experiment_names():
        path = settings_path(name)
        assert path.is_file() and path.parent == FOLDER and path.stem == name
        assert display_name(path) == name


def test_a_title_is_the_start_of_the_comment_at_the_top():
    assert experiment_title("mixed") == "Four unlike tasks (questions, spam, sentiment, news), a head each"
    assert all(20 < len(experiment_title(name)) < 120 or name in ("link", "theory") for name in experiment_names())


@pytest.mark.parametrize("text", ["mine.toml", "folder/mine", "./mine.toml", "/none/mine.toml"])
def test_a_path_stays_a_path(text: str):
    assert settings_path(text) == Path(text)
    assert display_name(settings_path(text)) == str(Path(text))


def test_a_file_is_preferred_to_an_experiment_and_a_folder_is_not(empty_folder: Path):
    packaged = settings_path("quickstart")
    (empty_folder / "quickstart").mkdir()
    assert settings_path("quickstart") == packaged
    (empty_folder / "quickstart").rmdir()
    (empty_folder / "quickstart").write_text("")
    assert settings_path("quickstart") == Path("quickstart")
    assert display_name(packaged) == str(packaged), "the name alone would mean the other file"
    (empty_folder / "minilm.toml").write_text("")
    assert settings_path("minilm.toml") == Path("minilm.toml")
    assert settings_path("minilm") == FOLDER / "minilm.toml"


def test_the_packages_file_goes_by_its_path_too():
    path = settings_path("quickstart")
    assert settings_path(str(path)) == path


@pytest.mark.parametrize("text", ["quikstart", "quickstart.tml"])
def test_a_wrong_name_is_told_with_the_nearest_and_all(text: str):
    with pytest.raises(UserError) as told:
        settings_path(text)
    line = str(told.value)
    assert line.startswith(f"{text}: no such file") and line.endswith("did you mean 'quickstart'?")
    assert "\n" not in line and all(name in line for name in experiment_names())


@pytest.mark.parametrize("text", ["experiments/minilm.toml", "minilm.toml", "./minilm"])
def test_a_missing_file_of_an_experiments_name_is_told_its_name(text: str):
    with pytest.raises(UserError, match=r"no such settings file; the package's experiment .* is called minilm$"):
        settings_path(text)


def test_a_command_without_a_file_takes_experiment_toml(empty_folder: Path):
    with pytest.raises(UserError, match=r"^experiment.toml: no such settings file here; `airpfed init` writes one"):
        default_path()
    (empty_folder / "experiment.toml").write_text("")
    assert default_path() == Path("experiment.toml")


@pytest.mark.parametrize("text", ["link", "federation", "experiments/link.toml"])
def test_a_former_name_is_answered_with_todays(text, empty_folder):
    name = RENAMED[Path(text).stem]
    with pytest.raises(UserError, match=f"^{text}: no such file; the experiment of this name is called {name} now"):
        settings_path(text)
    assert settings_path(name).is_file()
