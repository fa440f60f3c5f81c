"""Settings files: read, changed by --set, written back; every mistake is one line that says what is right."""

import errno
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from airpfed.config.schema import Settings
from airpfed.config.settings_file import parse_settings, read_settings, write_settings
from airpfed.core.errors import UserError

BASE = """
[adapters]
rank_shared = 2
rank_personal = 1

[[tasks]]
name = "sst2"

[[tasks]]
name = "gym:basic_arithmetic"
devices = 3

[radio]
snr_db = 10.0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(BASE)
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read_settings(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("radio.antenas=4", ["radio.antenas", "unknown key", "did you mean 'antennas'?"]),
        ("radio.zzz=4", ["radio.zzz", "unknown key", "known: ", "antennas"]),
        ("radoi.antennas=4", ["radoi", "unknown key", "'radio'"]),
        ("tasks.sst2.prompts=x", ["tasks.sst2.prompts", "unknown key", "'prompt'"]),
        ("tasks.sst2.split_as=other", ['tasks.sst2.split_as = "other"', "the name of another task"]),
        (
            "tasks.sst2.split_as=gym:basic_arithmetic",
            ["tasks.sst2.split_as", "source should be the same in both tasks"],
        ),
        ("radio.antennas=many", ['radio.antennas = "many"', "a whole number", "at least 1"]),
        ("radio.antennas=2.5", ["radio.antennas = 2.5", "a whole number"]),
        ("radio.antennas=0", ["radio.antennas = 0", "at least 1"]),
        ("radio.antennas=true", ["radio.antennas = true", "a whole number"]),
        ("radio.bandwidth_hz=-1.0", ["radio.bandwidth_hz = -1.0", "at least 1"]),
        ("radio.csi_error=1.0", ["radio.csi_error = 1.0", "less than 1"]),
        ("radio.snr_db=inf", ["radio.snr_db = inf", "number"]),
        ("radio.noise_dbm=loud", ['radio.noise_dbm = "loud"', '"thermal", "off"']),
        ("radio.min_distance_m=200.0", ["min_distance_m = 200", "less than cell_radius_m = 200"]),
        ("radio.snr_db=1e9", ["radio.snr_db = 1000000000.0", "200"]),
        ("radio.power_dbm=-1e9", ["radio.power_dbm", "-200"]),
        ("radio.noise_dbm=-1e9", ["noise_dbm = -1e+09", "from -300 to 300"]),
        ("radio.correlation=1.0", ["correlation = 1", '"estimated", "none", or from 0 to below 1']),
        ("radio.personal_slots=2", ["personal_slots = 2", 'access = "auto", not "tdma"']),
        ("radio.design.starts=0", ["radio.design.starts = 0", "at least 1"]),
        (
            "radio.design.truncation=1.5",
            ["radio.design.truncation: no option of uniform_forcing; its options are starts"],
        ),
        ("radio.design=channel_inversion(truncation=1.5)", ["radio.design.truncation = 1.5", "at most 1", '"best"']),
        ("radio.design=best", ['radio.design = "best"', "uniform_forcing, mmse"]),
        ("adapters.method=fedavg", ['adapters.method = "fedavg"', "airpfed", "did you mean"]),
        ("radio.design=error_free", ['radio.design = "error_free"', 'it is now radio.scheme = "error_free"']),
        ("radio.debias=true", ['radio.debias: is now radio.design = "debiased_mmse"', "airpfed upgrade"]),
        ("radio.rician_k_db=3", ['is now an option of a row: radio.channel = { name = "rician", k_db = ... }']),
        ("radio.design={ starts = 2 }", ["radio.design", "should have a name"]),
        ("adapters.target_modules=[]", ["adapters.target_modules = ", "at least 1"]),
        ("adapters.layers=first-3", ['adapters.layers = "first-3"', "last-"]),
        ("server.rounds=0", ["server.rounds = 0", "at least 1"]),
        ("tasks.sst2.devices=0", ["tasks.sst2", "devices = 0", "at least 1"]),
        ("tasks.sst2.split=column", ["tasks.sst2.split.column: missing", "column that names a sample's device"]),
        ("tasks.sst2.name=gym:basic_arithmetic", ["gym:basic_arithmetic", "stands twice"]),
        ("tasks.gym:basic_arithmetic.samples_per_device=10000000", ["30000300 samples", "at most 1000000"]),
        ("run.seed=-1", ["run.seed = -1", "at least 0"]),
        ("model.max_tokens=3", ["model.max_tokens = 3", "at least 4"]),
    ],
)
def test_a_wrong_setting_is_one_line_with_file_key_value_and_what_is_right(file, override, words):
    line = complaint(file, override)
    assert "\n" not in line and line.startswith(f"{file}: ")
    for word in words:
        assert word in line


def test_a_total_rank_of_zero_is_refused(file):
    line = complaint(file, "adapters.rank_shared=0", "adapters.rank_personal=0")
    assert "\n" not in line and "rank_shared + rank_personal = 0" in line and "at least 1" in line


def test_every_mistake_has_a_line(file):
    lines = complaint(file, "radio.antennas=0", "server.lr=-1").splitlines()
    assert len(lines) == 2 and all(line.startswith(f"{file}: ") for line in lines)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("antennas=4", ["--set antennas=4", "section.key=value"]),
        ("radio.antennas", ["--set radio.antennas", "section.key=value"]),
        ("tasks.sst3.devices=2", ["--set tasks.sst3.devices=2", "did you mean 'sst2'?"]),
        ("radio.antennas.x=4", ["--set radio.antennas.x=4", "antennas"]),
    ],
)
def test_a_wrong_override_is_one_line(file, override, words):
    file.write_text(BASE + "antennas = 4\n")
    line = complaint(file, override)
    assert "\n" not in line and all(word in line for word in words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such settings file"]),
        ("[radio\nantennas = 4", ["not valid TOML", "line 1"]),
        (b"name = '\xff'", ["not UTF-8"]),
        ("", ["tasks", "missing", "[[tasks]]"]),
        ("tasks = []", ["tasks", "[[tasks]]"]),
        ("tasks = 3", ["tasks", "[[tasks]]"]),
        ("[tasks]\nname = 'sst2'", ["tasks"]),
        ("[[tasks]]\ndevices = 2", ["tasks.0.name", "missing", "name of the task"]),
        ("radio = 3\n[[tasks]]\nname = 'sst2'", ["radio = 3", "a table"]),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, content, words):
    path = tmp_path / "broken.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = complaint(path)
    assert "\n" not in line and line.startswith(f"{path}: ")
    for word in words:
        assert word in line


def test_a_directory_is_no_settings_file(tmp_path):
    assert "a settings file (TOML) is needed" in complaint(tmp_path)


def test_overrides_reach_sections_and_tasks(file):
    settings = read_settings(
        file,
        [
            "radio.antennas=4",
            "radio.noise_dbm=-90.5",
            "radio.design=mmse",
            'model.base="smollm2-360m"',
            "adapters.target_modules=['q_proj']",
            "tasks.*.samples_per_device=7",
            "tasks.gym:basic_arithmetic.devices=9",
            "tasks.sst2.labels={ negative = ' bad', positive = ' good' }",
        ],
    )
    assert (settings.radio.antennas, settings.radio.noise_dbm, settings.radio.design.label) == (4, -90.5, "mmse")
    assert settings.model.base == "smollm2-360m"
    assert settings.adapters.target_modules == ("q_proj",)
    assert [task.samples_per_device for task in settings.tasks] == [7, 7]
    assert [task.devices for task in settings.tasks] == [4, 9]
    assert settings.tasks[0].labels == {"negative": " bad", "positive": " good"}


def test_the_last_override_of_a_key_counts(file):
    assert read_settings(file, ["run.seed=1", "run.seed=2"]).run.seed == 2


@pytest.mark.parametrize(
    "overrides",
    [[], ["radio.design=channel_inversion(truncation=0.25)", "adapters.layers=[0, 2]", "tasks.*.prompt=a\\nb"]],
)
def test_written_settings_read_back_equal(file, tmp_path, overrides):
    settings = read_settings(file, overrides)
    write_settings(settings, tmp_path / "experiment.toml")
    assert read_settings(tmp_path / "experiment.toml") == settings


def test_a_failed_write_leaves_the_settings_written_before(file, tmp_path, monkeypatch):
    """A run that is resumed on a full disk must keep what it was started with."""
    path = tmp_path / "experiment.toml"
    write_settings(read_settings(file), path)
    before = path.read_text()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_settings(read_settings(file, ["run.seed=7"]), path)
    assert path.read_text() == before


def test_paths_are_relative_to_the_settings_file(tmp_path, monkeypatch):
    """Wherever the command is called; catalogue names stay names, and written settings hold absolute paths."""
    study = tmp_path / "study"
    (study / "data").mkdir(parents=True)
    (study / "data" / "mine.csv").write_text("text,label\na,b\n")
    (study / "base").mkdir()
    (study / "s.toml").write_text(
        '[model]\nbase = "./base"\n[[tasks]]\nname = "mine"\nsource = "data/mine.csv"\n[[tasks]]\nname = "sst2"\n'
    )
    monkeypatch.chdir(tmp_path)
    settings = read_settings(Path("study/s.toml"))
    assert settings.tasks[0].source == str(study / "data" / "mine.csv")
    assert settings.model.base == str(study / "base")
    assert settings.tasks[1].source == "sst2"
    write_settings(settings, tmp_path / "elsewhere.toml")
    assert read_settings(tmp_path / "elsewhere.toml") == settings


def test_expected_results_may_stand_beside_the_settings(file):
    plain = read_settings(file)
    file.write_text(BASE + "\n[expected]\naverage = 0.8\n")
    assert read_settings(file) == plain


def test_settings_are_frozen(file):
    settings = read_settings(file)
    with pytest.raises(ValidationError, match="frozen"):
        settings.radio.antennas = 3


def test_defaults_of_every_section_are_valid():
    assert parse_settings({"tasks": [{"name": "sst2"}]}, "nowhere") == Settings.model_validate(
        {"tasks": [{"name": "sst2"}]}
    )


def test_an_option_in_its_section_is_answered_with_its_place(file):
    line = complaint(file, "server.momentum=0.9")
    assert 'is an option of server.optimizer: optimizer = { name = "sgd", momentum = ... }' in line
    assert "tasks.split" in complaint(file, "tasks.sst2.alpha=0.1")
