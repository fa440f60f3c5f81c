"""Settings of an older version in the words of this one: the experiments of then, and every option that moved."""

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest
import tomlkit

from airpfed.config.choice import KINDS
from airpfed.config.experiment_files import FOLDER, RENAMED
from airpfed.config.settings_file import differences, read_new_settings, read_settings, read_stored
from airpfed.config.upgrade import DEFAULTS, MOVED_OPTIONS, upgrade_file, upgrade_tree
from airpfed.core.errors import UserError
from support.commands import command, contents, good
from support.settings import make_settings

OLD = "393eb78"
"""The last commit with the former words."""
ROOT = Path(__file__).parents[2]


def old_text(name: str) -> str:
    """A settings file of the old commit; skips where history is not there."""
    order = ["git", "-C", str(ROOT), "show", f"{OLD}:experiments/{name}"]
    done = subprocess.run(order, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"commit {OLD} is not here")
    return done.stdout


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.name)
def test_an_experiment_of_the_old_commit_becomes_todays(path, tmp_path):
    old = tmp_path / path.name
    old.write_text(old_text(next((f"{was}.toml" for was, name in RENAMED.items() if name == path.stem), path.name)))
    upgrade_file(old)
    # Defaults that moved: today's files give the former ones, and an old file says nothing of them.
    radio = tomllib.loads(path.read_text())["radio"]
    former = [f"radio.{key}={radio[key]}" for key in ("coherence_symbols", "pilots") if key in radio]
    upgraded, today = read_new_settings(old, former), read_new_settings(path)
    moved = {"tasks": {"__all__": {"source"}}, "model": {"base"}}  # paths lie beside their own file
    assert differences(upgraded, today, moved) == []
    assert tomllib.loads(old.read_text()).get("expected") == tomllib.loads(path.read_text()).get("expected")


@pytest.mark.parametrize("name", ["federation.toml", "skewed.toml", "quickstart.toml"])
def test_comments_stay_and_a_second_time_changes_nothing(name, tmp_path):
    file = tmp_path / name
    file.write_text(old_text(name))
    comments = [line.partition("#")[2] for line in file.read_text().splitlines() if "#" in line]
    upgrade_file(file)
    text = file.read_text()
    assert [line.partition("#")[2] for line in text.splitlines() if "#" in line] == comments
    assert upgrade_file(file) == [] and file.read_text() == text


OLD_TEXT = """\ufeff# A study.\r
[radio]  # the radio\r
design = "error_free"  # exact\r
snr_db = 10.0\r
# of the channel\r
rician_k_db = 4.0  # measured\r
channel = "rician"  # a street\r
\r
# ---- tasks\r
[[tasks]]\r
name = "sst2"\r
dirichlet_alpha = 0.3  # skewed\r
split = "dirichlet"\r
"""


def test_places_comments_and_line_ends_stay(tmp_path):
    file = tmp_path / "study.toml"
    file.write_bytes(OLD_TEXT.encode())
    assert upgrade_file(file) == [
        'radio.design = "error_free" is now radio.scheme = "error_free"',
        "radio.rician_k_db is now radio.channel.k_db",
        "tasks.dirichlet_alpha is now tasks.split.alpha",
    ]
    lines = file.read_bytes().decode().split("\r\n")
    assert lines == [
        "# A study.",
        "[radio]  # the radio",
        'scheme = "error_free"  # exact',
        "snr_db = 10.0",
        "# of the channel",
        'channel = {name = "rician", k_db = 4.0}  # a street; measured',
        "",
        "# ---- tasks",
        "[[tasks]]",
        'name = "sst2"',
        'split = {name = "dirichlet", alpha = 0.3}  # skewed',
        "",
    ]
    assert read_settings(file).radio.channel.label == "rician(k_db=4.0)"


VALUES = {
    "truncation": 0.3, "starts": 3, "bits": 2, "access": "spatial", "k_db": 4.0, "delay_spread_s": 1e-7,
    "time_correlation": 0.5, "round_correlation": 0.4, "speed_mps": 3.0, "alpha": 0.7, "column": "user",
}  # fmt: skip
NAMES = {"scheme": "design"}
"""Choice -> the old key that decided it."""


def old_file(folder: Path, radio: dict[str, object], task: dict[str, object]) -> Path:
    file = folder / "study.toml"
    file.write_text(tomlkit.dumps({"radio": radio, "tasks": [{"name": "sst2", **task}]}))
    return file


CASES = [
    (key, choice, option, row.replace("*", "a"))
    for key, (choice, option, rows) in MOVED_OPTIONS.items()
    for row in rows
]


@pytest.mark.parametrize(("key", "choice", "option", "row"), CASES)
def test_every_moved_option_is_an_option_of_its_rows(key, choice, option, row, tmp_path):
    section, old = key.split(".")
    table = {NAMES.get(choice, choice): row, old: VALUES[option]}
    if row in ("cdl_a", "tdl_a"):
        table["delay_spread_s"] = VALUES["delay_spread_s"]
    if row == "debiased_mmse":
        table |= {"design": "mmse", "debias": True}
    file = old_file(tmp_path, *((table, {}) if section == "radio" else ({}, table)))
    lines = upgrade_file(file)
    assert f"{key} is now {section}.{choice}.{option}" in lines
    settings = read_new_settings(file)
    chosen = getattr(settings.radio if section == "radio" else settings.tasks[0], choice)
    assert chosen.name == row and chosen.options[option] == VALUES[option]


def test_a_moved_option_stands_for_the_default_of_its_choice():
    for key, (choice, option, rows) in MOVED_OPTIONS.items():
        section, old = key.split(".")
        if DEFAULTS[choice] not in rows:
            continue
        tree = {section: {old: VALUES[option]}} if section == "radio" else {"tasks": [{old: VALUES[option]}]}
        upgrade_tree(tree)
        table = tree["radio"] if section == "radio" else tree["tasks"][0]
        assert table == {choice: {"name": DEFAULTS[choice], option: VALUES[option]}}


def test_rows_of_moved_options_are_all_that_have_them_now():
    """A row of today with the option is one that the old key meant, and every other kept its silence."""
    kinds = {"design": "designs", "scheme": "schemes", "channel": "channels", "split": "splits"}
    for choice, option, rows in MOVED_OPTIONS.values():
        today = KINDS[kinds[choice]].rows
        having = {name for name in today if option in [item.name for item in today.options(name)]}
        patterns = tuple(row.removesuffix("*") for row in rows)
        assert having == {name for name in today if name in rows or (name.startswith(patterns) and name in having)}
        assert all(any(name.startswith(pattern) for name in having) for pattern in patterns), (option, rows)


@pytest.mark.parametrize(
    ("radio", "task", "line"),
    [
        ({"truncation": 0.3}, {}, "radio.truncation had no effect beside design = uniform_forcing and is left out"),
        ({"design": "naive_ao", "starts": 3}, {}, "radio.starts had no effect beside design = naive_ao"),
        (
            {"design": "error_free", "digital_bits": 4},
            {},
            "radio.digital_bits had no effect beside scheme = error_free",
        ),
        ({"digital_access": "spatial"}, {}, "radio.digital_access had no effect beside scheme = linear"),
        ({"rician_k_db": 3.0}, {}, "radio.rician_k_db had no effect beside channel = rayleigh"),
        ({"channel": "umi", "time_correlation": 0.5}, {}, "radio.time_correlation had no effect beside channel = umi"),
        ({"channel": "rician", "speed_mps": 1.0}, {}, "radio.speed_mps had no effect beside channel = rician"),
        ({"debias": True}, {}, "radio.debias had no effect and is left out"),
        ({"design": "mmse", "debias": False}, {}, "radio.debias had no effect and is left out"),
        ({}, {"dirichlet_alpha": 0.3}, "tasks.dirichlet_alpha had no effect beside split = iid"),
        (
            {},
            {"split": "dirichlet", "device_column": "u"},
            "tasks.device_column had no effect beside split = dirichlet",
        ),
    ],
)
def test_what_had_no_effect_is_dropped_and_told(radio, task, line, tmp_path):
    file = old_file(tmp_path, radio, task)
    lines = upgrade_file(file)
    assert any(told.startswith(line) for told in lines)
    read_new_settings(file)
    for old in (*radio, *task):
        if old not in ("design", "channel", "split"):
            assert old not in file.read_text()


def test_debias_is_a_design_now(tmp_path):
    file = old_file(tmp_path, {"design": "mmse", "debias": True, "starts": 4}, {})
    assert upgrade_file(file)[0] == 'radio.debias = true is now radio.design = "debiased_mmse"'
    assert read_settings(file).radio.design.label == "debiased_mmse(starts=4)"


@pytest.mark.parametrize("key", [*MOVED_OPTIONS, "radio.debias"])
def test_an_old_key_is_answered_with_where_it_is_now(key, tmp_path):
    section, old = key.split(".")
    file = old_file(tmp_path, *(({old: 1}, {}) if section == "radio" else ({}, {old: 1})))
    with pytest.raises(UserError) as caught:
        read_settings(file)
    line = str(caught.value)
    assert "\n" not in line and old in line and "is now" in line and "airpfed upgrade FILE" in line
    override = f"{section}.{old}=1" if section == "radio" else f"tasks.sst2.{old}=1"
    file.write_text('[[tasks]]\nname = "sst2"\n')
    with pytest.raises(UserError, match="is now"):
        read_settings(file, [override])


# Files that are none, and the command


BROKEN: dict[str, bytes] = {
    "half": b"[radio\n",
    "binary": b"\xff\xfe\x00",
    "twice": b"a = 1\na = 2\n",
    "deep": b"a = " + b"[" * 9000 + b"]" * 9000,
    "digits": b"a = " + b"9" * 9000,
    "large": b"#" * (5 << 20),
}


@pytest.mark.parametrize("fault", [*BROKEN, "missing", "folder", "fifo", "/dev/zero"])
def test_what_is_no_settings_file_is_one_line(fault, tmp_path):
    path = tmp_path / "it"
    if fault == "folder":
        path.mkdir()
    elif fault == "fifo":
        os.mkfifo(path)
    elif fault in BROKEN:
        path.write_bytes(BROKEN[fault])
    done = command("upgrade", "/dev/zero" if fault == "/dev/zero" else path)
    assert done.code == 2 and not done.traceback and done.err.count("\n") == 1 and done.err.startswith("airpfed: "), (
        done
    )
    assert fault not in BROKEN or path.read_bytes() == BROKEN[fault]


@pytest.mark.parametrize(
    "tree",
    [
        {"radio": 3},
        {"tasks": 3},
        {"tasks": [3]},
        {"radio": {"design": 3, "truncation": 1}},
        {"radio": {"design": {"starts": 2}, "starts": 3}},
        {"radio": {"channel": [], "rician_k_db": 3.0}},
        {"radio": {"design": "error_free", "scheme": "digital"}},
    ],
)
def test_wrong_settings_are_left_to_the_reader(tree, tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(tomlkit.dumps(tree))
    upgrade_file(file)
    with pytest.raises(UserError):
        read_settings(file)


def test_the_command_says_what_changed_and_where(tmp_path):
    file = old_file(tmp_path, {"design": "error_free"}, {})
    other = tmp_path / "new.toml"
    other.write_text('[[tasks]]\nname = "sst2"\n')
    done = good(command("upgrade", file, other))
    assert done.out.splitlines() == [
        f'{file}: radio.design = "error_free" is now radio.scheme = "error_free"',
        f"{other}: up to date",
    ]
    assert other.read_text() == '[[tasks]]\nname = "sst2"\n'


# Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_llama: Path, shared_bases: None) -> Path:
    """A run's folder as the older version left it: settings in its words, and no format in environment.json."""
    folder = tmp_path_factory.mktemp("older")
    file = make_settings(folder, small_llama)
    words = [
        "server.rounds=2",
        "tasks.*.test_samples=4",
        "radio.design=debiased_mmse(starts=2)",
        "radio.channel=rician",
    ]
    good(command("run", file, *(word for text in words for word in ("--set", text)), "--out", folder / "run"))
    settings = folder / "run" / "experiment.toml"
    tree = tomlkit.parse(settings.read_text())
    radio = tree["radio"]
    radio.pop("scheme")
    radio["design"], radio["debias"], radio["starts"] = "mmse", True, 2
    radio |= {"truncation": "best", "digital_bits": 8, "speed_mps": 0.0}
    channel = radio["channel"]
    radio["channel"], radio["rician_k_db"] = "rician", channel["k_db"]
    for key in ("delay_spread_s", "time_correlation", "round_correlation"):
        radio[key] = channel.get(key, 0.0)
    for task in tree["tasks"]:
        task["split"], task["dirichlet_alpha"] = "iid", 0.5
        task.pop("metric")
    settings.write_text(tomlkit.dumps(tree))
    environment = json.loads((folder / "run" / "environment.json").read_text())
    environment.pop("settings_format")
    environment["fingerprint"] = "0" * 64
    (folder / "run" / "environment.json").write_text(json.dumps(environment))
    latest = json.loads((folder / "run" / "checkpoint" / "latest.json").read_text())
    (folder / "run" / "checkpoint" / "latest.json").write_text(json.dumps(latest | {"fingerprint": "0" * 64}))
    return folder / "run"


def test_an_older_run_is_reported_compared_and_exported_as_it_is(run):
    assert read_stored(run / "experiment.toml").radio.design.label == "debiased_mmse(starts=2)"
    adapters = contents(run / "adapters")
    good(command("report", run))
    assert "average" in good(command("compare", run)).out
    assert good(command("export", run)).out.count("same logits") == 2
    assert contents(run / "adapters") == adapters


def test_an_older_run_that_is_upgraded_is_still_exported(run):
    before = (run / "experiment.toml").read_text()
    lines = good(command("upgrade", run)).out
    assert "radio.starts is now radio.design.starts" in lines and "radio.digital_bits had no effect" in lines
    assert good(command("upgrade", run)).out == f"{run}: up to date\n"
    assert good(command("export", run)).out.count("same logits") == 2
    (run / "experiment.toml").write_text(before)


def test_a_run_of_today_is_held_to_its_fingerprint(run):
    environment = run / "environment.json"
    tree = json.loads(environment.read_text())
    environment.write_text(json.dumps(tree | {"settings_format": 2}))
    done = command("export", run)
    environment.write_text(json.dumps(tree))
    assert done.code == 2 and "this checkpoint is of other settings" in done.err
