"""What is told of a run's data before round 1: counted by hand on small tables, and kept in the run's folder."""

import json
from pathlib import Path

import pytest

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core.run_files import DataReport
from airpfed.experiment import build
from airpfed.experiment.data_report import data_lines, report_data
from airpfed.experiment.run import run_file

pytestmark = pytest.mark.usefixtures("shared_bases")


def reports(file: Path, *overrides: str) -> dict[str, DataReport]:
    settings = settings_file.read_settings(file, overrides)
    tasks = build.load_tasks(settings)
    return report_data(settings, tasks, build.build_experiment(settings, tasks))


def rows(file: Path, name: str, lines: list[str]) -> None:
    (file.parent / f"{name}.csv").write_text("text,label\n" + "".join(f"{line}\n" for line in lines))


def words(count: int) -> str:
    return " ".join(["ba"] * count)


def test_counts_of_a_table(small_settings: Path) -> None:
    """100 rows: 2 without label, 3 told before (one of them of another class), 60 long; 24 tokens are read."""
    short = [f"ba {'aeiou'[i % 5]} {'bcdfghj'[i // 5]}{'aeiou'[i % 5]},{('red', 'blue')[i % 2]}" for i in range(35)]
    long = [f"{words(28)} {'bcdfghjklmnp'[i // 5]}{'aeiou'[i % 5]},{('red', 'blue')[i % 2]}" for i in range(60)]
    other = [short[0].upper().replace("RED", "red"), short[1], short[2].replace("red", "blue")]
    rows(small_settings, "colours", [*short, *long, *other, "do,", "du, "])
    report = reports(small_settings, "tasks.colours.test_samples=20", "tasks.colours.samples_per_device=40")["colours"]
    assert (report.rows, report.skipped, report.duplicates, report.contradictions) == (100, 2, 3, 1)
    assert (report.devices, report.samples_least, report.samples_most, report.dev, report.test) == (2, 34, 34, 6, 20)
    train, dev, test = (sum(column) for column in zip(*report.classes.values(), strict=True))
    assert list(report.classes) == ["red", "blue"] and (train, dev, test) == (68, 6, 20)
    assert "samples_per_device = 40, and there are fewer" in report.notes
    assert report.answers_cut == 0 and report.prompts_cut_tokens == 28 + 1 + 2  # "Label", ":"
    assert 55 / 94 <= report.prompts_cut <= 60 / 94
    lines = data_lines({"colours": report})
    assert lines[0].startswith("task colours: 2 devices x 34 samples, dev 6, test 20; classes (train/test) red ")
    assert lines[0].endswith(
        "left out of 100 rows: 2 without text or label, 3 duplicates (1 of another class or answer than the "
        "retained row)"
    )
    assert lines[1] == f"  model.max_tokens cuts {report.prompts_cut:.1%} of the prompts (median 31 tokens)"


def test_prompts_that_are_one_once_cut_are_counted(small_settings: Path) -> None:
    """They differ in the middle, which goes: 16 tokens of the front stay and 8 of the end."""
    middle = [f"{words(16)} {'bcdfghjklmnpqrstvw'[i // 5]}{'aeiou'[i % 5]} {words(8)}" for i in range(40)]
    rows(small_settings, "colours", [f"{text},{('red', 'blue')[i % 2]}" for i, text in enumerate(middle)])
    report = reports(small_settings)["colours"]
    assert report.alike_when_cut == report.test == 12 and report.prompts_cut == 1.0
    assert "12 of 12 test prompts equal those of a training sample when cut to tokens" in report.notes
    assert reports(small_settings, "model.max_tokens=32")["colours"].alike_when_cut == 0


def test_classes_that_are_nowhere_are_told(small_settings: Path) -> None:
    """One class on no device and one in no test sample, whatever the shuffle; a test split of one class."""
    texts = [f"{a}{b} {c}" for a in "bcdfg" for b in "aeiou" for c in "ae"]
    rows(
        small_settings,
        "moods",
        [f"{text},{'it' if i == 7 else ('good', 'bad')[i % 2]}" for i, text in enumerate(texts)],
    )
    report = reports(small_settings, "tasks.moods.samples_per_device=2")["moods"]
    if report.classes["it"][0] == 0:
        assert "no device has a sample of class it" in report.notes
    if report.classes["it"][2] == 0:
        assert "no test sample is of class it" in report.notes
    assert 0 in report.classes["it"]
    rows(small_settings, "moods", [f"{text},{'it' if i < 2 else 'bad'}" for i, text in enumerate(texts)])
    one = reports(small_settings, "tasks.moods.test_samples=1", 'tasks.moods.labels={it=" it",bad=" bad",good=" good"}')
    assert any(note.startswith("the test split has only class ") for note in one["moods"].notes)
    assert any(note.startswith("no device has a sample of class ") and "good" in note for note in one["moods"].notes)


def test_answers_without_their_end_are_told(small_settings: Path) -> None:
    """24 tokens are read, half of them at most are the answer's, with the end."""
    rows(
        small_settings, "colours", [f"b{'aeiou'[i % 5]} {words(i // 5 + 1)},{words(4 + i % 2 * 11)}" for i in range(40)]
    )
    overrides = ["tasks.colours.kind=generate", "tasks.colours.labels={}", "tasks.colours.prompt={text} :"]
    report = reports(small_settings, *overrides)["colours"]
    assert report.classes == {} and 0.2 < report.answers_cut < 0.8 and report.answers_cut_tokens == 16
    assert data_lines({"colours": report})[-1].endswith(
        "of the answers (median 16 tokens): the model does not learn their end"
    )


def test_a_server_without_the_devices_data_tells_what_it_knows(small_settings: Path) -> None:
    pytest.importorskip("flwr")
    from airpfed.federation import build_federation

    settings = settings_file.read_settings(small_settings)
    tasks = build_federation.server_tasks(settings, deployed=True)
    report = report_data(settings, tasks, build_federation.server(settings, tasks)[0])["moods"]
    assert (report.devices, report.samples_most, report.test, report.notes) == (3, 0, 12, [])
    assert data_lines({"moods": report})[0].startswith(
        "task moods: 3 devices with their own samples, dev 6, test 12; classes (test) good "
    )


def test_a_run_tells_its_data_and_keeps_it(
    small_settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_file(small_settings, ["server.rounds=1"], tmp_path / "run", False, "airpfed run") == 0
    kept = json.loads((tmp_path / "run" / "environment.json").read_text())["data"]
    found = {name: DataReport.model_validate(report) for name, report in kept.items()}
    assert found == reports(small_settings)
    said = capsys.readouterr().out
    assert "task colours: 2 devices x 10 samples, dev 6, test 12; classes (train/test) red " in said
    assert said.index("task moods: ") < said.index("round 1")


def test_tasks_that_split_alike_by_way_of_others_share_a_shuffle(small_settings: Path) -> None:
    settings = settings_file.read_settings(small_settings)
    first = settings.tasks[0]

    def shares(**leads: str) -> list[str]:
        tasks = tuple(first.model_copy(update={"name": name, "split_as": lead}) for name, lead in leads.items())
        made: Settings = settings.model_copy(update={"tasks": tasks})
        return [one.split_as for one in build.all_shares(made)]

    assert shares(a="b", b="", c="b") == ["b", "", "b"]
    assert shares(a="b", b="c", c="") == ["c", "c", ""]
    assert shares(a="b", b="a", c="a") == ["a", "a", "a"] and shares(a="a") == ["a"]
