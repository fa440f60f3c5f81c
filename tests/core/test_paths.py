"""Paths of data and models are relative to the settings file and to nothing else."""

import os
from pathlib import Path

import pytest

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.core.paths import TABLES, base_in, source_in
from airpfed.experiment import build
from airpfed.tasks.table_files import READERS

TABLE = "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside the working directory, which holds other things of the same names."""
    for name in ("study", "elsewhere"):
        for folder in ("data", "owner/name", "sms", "models/tiny"):
            (tmp_path / name / folder).mkdir(parents=True)
        (tmp_path / name / "mine.csv").write_text(TABLE)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "study"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mine.csv", "mine.csv"),
        ("./mine.csv", "mine.csv"),
        ("data/../mine.csv", "mine.csv"),
        ("missing.csv", "missing.csv"),
        ("data/missing.CSV", "data/missing.CSV"),
        ("UPPER.JSONL", "UPPER.JSONL"),
        ("with space é.parquet", "with space é.parquet"),
        ("./mine.tsv", "mine.tsv"),
        ("/abs/x.csv", "/abs/x.csv"),
        ("~/x.csv", "../home/x.csv"),
        ("hf:./data", "hf:data"),
        ("hf:./missing", "hf:missing"),
        ("hf:.", "hf:."),
        ("hf:data/../data:conf@test[:5]", "hf:data:conf@test[:5]"),
        ("hf:owner/name@test", "hf:owner/name@test"),
        ("hf:../elsewhere", "hf:../elsewhere"),
        ("hf:~/data", "hf:../home/data"),
    ],
)
def test_sources_that_are_paths(study: Path, name: str, path: str) -> None:
    prefix, inner = ("hf:", path[3:]) if path.startswith("hf:") else ("", path)
    cut = min((inner.index(mark) for mark in ":@" if mark in inner), default=len(inner))
    wanted = f"{prefix}{os.path.normpath(study / inner[:cut])}{inner[cut:]}"
    assert source_in(name, study) == wanted
    assert source_in(wanted, Path("/")) == wanted, "what a run's folder holds is valid from anywhere"


@pytest.mark.parametrize(
    "name", ["sms", "gym:chain_sum", "hf:imdb", "hf:other/name@test", "hf:sms", "data.cvs", "v1.2"]
)
def test_sources_that_are_names(study: Path, name: str) -> None:
    assert source_in(name, study) == name


def test_base_models(study: Path) -> None:
    for name in ("./models/tiny", "models/tiny", "x.gguf", "X.GGUF", "../study/models/tiny"):
        assert base_in(name, study) == os.path.normpath(study / name)
    assert base_in("minilm", study) == "minilm" and base_in("owner/model", study) == "owner/model"
    assert base_in(".", study) == str(study) and base_in("~/m", study) == str(study.parent / "home" / "m")


def test_a_link_keeps_its_own_name_and_ending(study: Path) -> None:
    (study / "blob").write_text(TABLE)
    (study / "link.csv").symlink_to(study / "blob")
    assert source_in("link.csv", study) == str(study / "link.csv")
    (study / "loop.csv").symlink_to(study / "loop.csv")
    assert source_in("loop.csv", study) == str(study / "loop.csv")


@pytest.mark.parametrize("name", ["a\0b.csv", "./\udcff.csv"])
def test_what_can_be_no_path_is_one_line(study: Path, name: str) -> None:
    with pytest.raises(UserError, match="no path of a file or folder"):
        source_in(name, study)


def settings_of(study: Path, source: str, *overrides: str) -> Settings:
    (study / "s.toml").write_text(
        f'[[tasks]]\nname = "mine"\nsource = "{source}"\ndev_samples = 4\ntest_samples = 10\n'
    )
    return settings_file.read_settings(study / "s.toml", overrides)


def test_what_is_not_beside_the_settings_is_not_taken_from_the_working_directory(study: Path) -> None:
    (study / "mine.csv").rename(study / "MINE.CSV")
    assert build.load_tasks(settings_of(study, "MINE.CSV"))[0].counts.rows == 40
    for settings in (settings_of(study, "mine.csv"), settings_of(study, "x.csv", "tasks.mine.source=mine.csv")):
        with pytest.raises(UserError) as caught:
            build.load_tasks(settings)
        text = str(caught.value)
        assert f"{study}/mine.csv: No such file" in text and "relative to the settings file, also with --set" in text
        assert f"{study.parent}/elsewhere/mine.csv is in the working directory, which is not looked at" in text


@pytest.mark.parametrize("name", ["models/tiny", "sms"])
def test_a_base_of_the_hub_is_not_taken_from_the_working_directory(study: Path, name: str) -> None:
    (study / "models" / "tiny").rmdir()
    settings = settings_of(study, "mine.csv", f"model.base={name}")
    with pytest.raises(
        UserError, match=f'"{name}": is also a folder of the working directory, .* write "./{name}" for a folder beside'
    ):
        build.load_backbone(settings, build.load_tasks(settings))


def test_the_folder_of_a_data_set_is_the_one_beside_the_settings(study: Path) -> None:
    (study / "data" / "train.csv").write_text(TABLE)
    (study.parent / "elsewhere" / "data" / "train.csv").write_text("text,label\nother,a\n")
    settings = settings_of(study, "hf:./data")
    assert build.load_tasks(settings)[0].counts.rows == 40
    settings_file.write_settings(settings, study.parent / "experiment.toml")
    assert settings_file.read_settings(study.parent / "experiment.toml") == settings


def test_the_endings_of_data_files_are_those_that_are_read() -> None:
    assert sorted(TABLES) == sorted(READERS)
