"""A choice in every form that a settings file and a command line may give it."""

import json
from pathlib import Path

import pytest

from airpfed.air.designs import DESIGNS
from airpfed.config.choice import KINDS, Choice, parse_choice, unchecked_choices
from airpfed.config.schema import Settings, choices_of
from airpfed.config.settings_file import differences, read_settings, read_stored, write_settings
from airpfed.core.errors import UserError
from airpfed.experiment.build.data import fingerprint
from airpfed.sweeps.trials import trials_of

TASKS = '\n[[tasks]]\nname = "sst2"\n\n[[tasks]]\nname = "trec"\nsplit = { name = "dirichlet", alpha = 0.3 }\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(TASKS)
    return path


def read(file: Path, radio: str = "", *overrides: str, notes: list[str] | None = None) -> Settings:
    file.write_text(TASKS + f"\n[radio]\n{radio}\n")
    return read_settings(file, overrides, notes)


def refused(file: Path, radio: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read(file, radio, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


MMSE = (
    'design = "mmse"',
    'design = { name = "mmse" }',
    'design = { name = "mmse", starts = 1 }',
    '[radio.design]\nname = "mmse"\nstarts = 1',
    'design = "mmse(starts=1)"',
    'design = "mmse()"',
    'design.name = "mmse"',
)


def test_every_form_is_one_choice_with_one_fingerprint(file):
    settings = [read(file, form) for form in MMSE]
    settings += [read(file, "", *words) for words in (["radio.design=mmse"], ["radio.design=mmse(starts=1)"])]
    settings += [read(file, "", "radio.design.starts=1", "radio.design.name=mmse")]
    settings += [read(file, "", 'radio.design={name = "mmse", starts = 1}')]
    assert all(one == settings[0] and hash(one.radio.design) == hash(settings[0].radio.design) for one in settings)
    assert {fingerprint(one, ["data"], "base") for one in settings} == {fingerprint(settings[0], ["data"], "base")}
    assert settings[0].radio.design.options == {"starts": 1}
    other = read(file, 'design = "mmse(starts=2)"')
    assert fingerprint(other, ["data"], "base") != fingerprint(settings[0], ["data"], "base")


def test_a_float_given_as_a_whole_number_is_the_same_choice(file):
    one, other = (read(file, f'channel = {{ name = "rician", k_db = {value} }}') for value in ("3", "3.0"))
    default = read(file, 'channel = "rician"')
    assert len({fingerprint(settings, [], "") for settings in (one, other, default)}) == 1


# The command line


@pytest.mark.parametrize("before", ["", *MMSE])
def test_an_option_on_the_line_turns_a_name_or_the_default_into_a_table(before, file):
    notes: list[str] = []
    settings = read(file, before, "radio.design.starts=4", notes=notes)
    name = "mmse" if before else "uniform_forcing"
    assert settings.radio.design == Choice("designs", name, {"starts": 4}) and notes == []


@pytest.mark.parametrize("before", ['{ name = "mmse", starts = 4 }', '"mmse(starts=4)"'])
def test_a_name_on_the_line_drops_the_old_options_and_says_so(before, file):
    notes: list[str] = []
    settings = read(file, f"design = {before}", "radio.design=debiased_mmse", notes=notes)
    assert settings.radio.design == Choice("designs", "debiased_mmse", {"starts": 1})
    assert notes == ["--set radio.design=debiased_mmse: drops starts of mmse"]
    notes.clear()
    kept = read(file, f"design = {before}", "radio.design.name=debiased_mmse", notes=notes)
    assert kept.radio.design == Choice("designs", "debiased_mmse", {"starts": 4}) and notes == []
    line = refused(file, f"design = {before}", "radio.design.name=naive_ao")
    assert "radio.design.starts: no option of naive_ao" in line
    plain = read(file, f"design = {before}", "radio.design=", notes=notes)
    assert plain.radio.design.label == "uniform_forcing" and notes == ["--set radio.design=: drops starts of mmse"]


def test_the_order_on_the_line_does_not_matter(file):
    words = ["radio.design=debiased_mmse", "radio.design.starts=3"]
    one, other = (read(file, 'design = "mmse(starts=4)"', *order) for order in (words, words[::-1]))
    assert one == other and one.radio.design.label == "debiased_mmse(starts=3)"


def test_options_of_tasks_are_set_for_one_and_for_all(file):
    file.write_text(TASKS)
    one = read_settings(file, ["tasks.trec.split.alpha=0.7"])
    assert [task.split.label for task in one.tasks] == ["iid", "dirichlet(alpha=0.7)"]
    both = read_settings(file, ["tasks.*.split.alpha=0.9", "tasks.*.split=dirichlet"])
    assert [task.split.label for task in both.tasks] == ["dirichlet(alpha=0.9)"] * 2
    with pytest.raises(UserError, match=r"tasks.sst2.split.alpha: no option of iid"):
        read_settings(file, ["tasks.*.split.alpha=0.9"])
    dotted = file.with_name("dotted.toml")
    dotted.write_text('[[tasks]]\nname = "a.split"\nsource = "sst2"\n')
    assert read_settings(dotted, ["tasks.a.split.devices=7"]).tasks[0].devices == 7


@pytest.mark.parametrize(
    ("radio", "overrides", "words"),
    [
        ('design = "mms"', [], 'radio.design = "mms": should be one of uniform_forcing, mmse'),
        ('design = "mms"', [], "did you mean 'mmse'?"),
        ("design = 3", [], "radio.design: should be a name, or a table with a name and options, not int"),
        ("design = { starts = 3 }", [], 'radio.design: should have a name: { name = "...", option = ... }'),
        ('design = { name = "mmse", start = 3 }', [], "radio.design.start: no option of mmse; its options are starts"),
        ('design = { name = "mmse", starts = "x" }', [], 'radio.design.starts = "x": should be a whole number'),
        ('design = "error_free"', [], 'it is now radio.scheme = "error_free"'),
        ('design = "digital"', [], 'it is now radio.scheme = "digital"'),
        ("starts = 3", [], 'radio.starts: is now an option of a row: radio.design = { name = "uniform_forcing"'),
        ("", ["radio.design.starts.x=3"], "radio.design"),
        ("", ["radio.antennas.x=3"], "radio.antennas = {'x': 3}: should be a whole number"),
        ('design = "mmse(starts)"', ["radio.design.starts=3"], "radio.design"),
        ('scheme = "linaer"', [], "did you mean 'linear'"),
    ],
)
def test_a_wrong_choice_is_one_line(radio, overrides, words, file):
    assert words in refused(file, radio, *overrides)


# Grids


def test_grids_take_options_with_brackets_and_commas_and_label_their_points(file):
    file.write_text(TASKS)
    points = [(f"radio.design={value}",) for value in ("mmse", "mmse(starts=4)", "debiased_mmse(starts=2)")]
    trials = trials_of(file, [], points, 1)
    assert [trial.settings.radio.design.label for trial in trials] == [
        "mmse",
        "mmse(starts=4)",
        "debiased_mmse(starts=2)",
    ]
    assert len({trial.folder for trial in trials}) == 3 and "starts=4" in trials[1].folder
    with pytest.raises(UserError, match="are the same settings"):
        trials_of(file, [], [("radio.design=mmse",), ("radio.design=mmse(starts=1)",)], 1)
    joined = [("radio.design/radio.antennas=mmse(starts=4)/8",), ("radio.design/radio.antennas=naive_ao/4",)]
    assert [trial.settings.radio.antennas for trial in trials_of(file, [], joined, 1)] == [8, 4]
    options = [("radio.design.starts=2",), ("radio.design.starts=3",)]
    assert [t.settings.radio.design.label for t in trials_of(file, ["radio.design=mmse"], options, 1)] == [
        "mmse(starts=2)",
        "mmse(starts=3)",
    ]


# Stored


def test_a_choice_is_stored_with_every_option_and_read_back(file, tmp_path):
    settings = read(file, 'design = "mmse(starts=4)"\nchannel = { name = "rician", k_db = 5 }')
    write_settings(settings, tmp_path / "experiment.toml")
    text = (tmp_path / "experiment.toml").read_text()
    assert "starts = 4" in text and "k_db = 5.0" in text and "time_correlation = 0.0" in text
    assert read_settings(tmp_path / "experiment.toml") == settings
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_stored_settings_are_read_without_the_rows(file, tmp_path):
    """A finished run's settings, whose rows are not here, and whose options no signature can check."""
    settings = read(file, 'design = "mmse(starts=4)"\nscheme = "error_free"')
    write_settings(settings, tmp_path / "experiment.toml")
    text = (tmp_path / "experiment.toml").read_text().replace('"mmse"', '"theirs"').replace("starts", "depth")
    text = text.replace('name = "airpfed"', 'name = "their_method"').replace('"uplink"', '"their_rule"')
    (tmp_path / "experiment.toml").write_text(text.replace('name = "adam"', 'name = "lion"'))
    with pytest.raises(UserError, match=r'radio.design = "theirs": should be one of'):
        read_settings(tmp_path / "experiment.toml")
    stored = read_stored(tmp_path / "experiment.toml")
    assert stored.radio.design.label == "theirs(depth=4)" and stored.radio.design.find_row() is None
    with pytest.raises(UserError, match="should be one of"):
        stored.radio.design.row  # noqa: B018
    labels = {key: choice.name for key, choice in choices_of(stored).items()}
    assert labels["adapters.method"] == "their_method" and labels["server.aggregator"] == "their_rule"
    (line,) = differences(read(file, 'scheme = "error_free"'), stored, {"adapters": True, "server": True})
    assert line == 'radio.design = "theirs(depth=4)" (was "uniform_forcing")'
    with unchecked_choices():
        assert parse_choice("designs", "theirs(depth=4)").tree() == {"name": "theirs", "depth": 4}


# Labels


def test_a_label_names_only_what_differs_from_the_default(file):
    settings = read(file, 'channel = "rician(k_db=3)"\ndesign = "channel_inversion(truncation=0.1)"')
    assert (
        str(settings.radio.channel) == "rician" and settings.radio.design.label == "channel_inversion(truncation=0.1)"
    )
    for design in DESIGNS:
        assert parse_choice("designs", parse_choice("designs", design).label).label == design


def test_every_kind_names_its_setting_and_its_dict():
    settings = Settings.model_validate({"tasks": [{"name": "sst2"}]})
    keys = {key.replace("tasks.sst2.", "tasks.") for key in choices_of(settings)}
    with_setting = {kind.key for kind in KINDS.values() if kind.key in keys}
    assert keys == with_setting
    for kind in KINDS.values():
        assert kind.rows.noun == kind.noun
    assert json.loads(settings.model_dump_json())["radio"]["design"] == {"name": "uniform_forcing", "starts": 1}
