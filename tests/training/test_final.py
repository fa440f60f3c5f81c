"""What is scored when: test or dev, other tasks' data, the untouched model once; rounds that end with the air time."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airpfed.config import settings_file
from airpfed.core import run_files
from airpfed.core.run_files import Ledger, RoundRecord
from airpfed.experiment import run
from airpfed.tasks.metrics import accuracy
from airpfed.training import evaluate, loop, summary
from airpfed.training.evaluate import model_of, score
from airpfed.training.loop import has_round_left, play, play_round
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import vectors
from support.experiments import experiment_of

pytestmark = pytest.mark.usefixtures("shared_bases")

FEW = ("adapters.layers=last-2", "radio.scheme=error_free", "server.rounds=2", "server.lr=0.05", "run.eval_every=0")


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    return experiment_of(settings_file.read_settings(file, [*FEW, *overrides]))


def played(made: TrainingSetup, out: Path, resume: bool = False) -> loop.Outcome:
    out.mkdir(exist_ok=True)
    return play(made, out, resume, lambda _: None, lambda: False, lambda _: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(task, split) of every score of a trained model."""
    found: list[tuple[str, str]] = []
    real = evaluate.score

    def spied(clients, factors, task, which):
        found.append((task.name, which))
        return real(clients, factors, task, which)

    monkeypatch.setattr(evaluate, "score", spied)
    return found


def test_dev_leaves_the_test_split_untouched_and_test_can_follow(
    small_settings: Path, tmp_path: Path, asked: list[tuple[str, str]]
) -> None:
    """Training is not repeated, and what the models then score on test is what a run in one go gives."""
    on_dev = played(experiment(small_settings, "run.score=dev"), tmp_path / "a")
    assert on_dev.completed and on_dev.summary.exit == "completed" and on_dev.summary.average is None
    assert asked == [("colours", "dev"), ("moods", "dev")]
    assert all(task.final is None and task.dev is not None for task in on_dev.summary.tasks.values())
    both = played(experiment(small_settings, "run.score=both"), tmp_path / "a", resume=True)
    whole = played(experiment(small_settings), tmp_path / "b")
    assert {n: t.final for n, t in both.summary.tasks.items()} == {n: t.final for n, t in whole.summary.tasks.items()}
    assert {n: t.dev for n, t in both.summary.tasks.items()} == {n: t.dev for n, t in on_dev.summary.tasks.items()}
    assert all(task.dev is None for task in whole.summary.tasks.values()), "not asked for"


def test_a_dev_metric_of_the_last_round_is_not_computed_again(
    small_settings: Path, tmp_path: Path, asked: list[tuple[str, str]]
) -> None:
    outcome = played(experiment(small_settings, "run.eval_every=2"), tmp_path / "a")
    assert [which for _, which in asked] == ["dev", "dev", "test", "test"]
    last = run_files.load_records(tmp_path / "a" / "records.jsonl")[-1].accuracy
    assert {name: task.dev for name, task in outcome.summary.tasks.items()} == last


def test_each_tasks_model_answers_the_others_test_data(small_settings: Path, tmp_path: Path) -> None:
    """A causal LM answers with the other task's words; a device's own models count by their samples."""
    made = experiment(small_settings, "run.cross_eval=true", "adapters.method=feddpa", "tasks.*.test_samples=30")
    outcome = played(made, tmp_path / "a")
    values = vectors(outcome.state)
    for n, (name, other) in enumerate((("colours", "moods"), ("moods", "colours"))):
        devices = [k for k in range(5) if made.clients.task_of[k] == n]
        each = [
            score(made.clients, model_of(made.clients, values, n, k), made.tasks[1 - n], "test").value for k in devices
        ]
        share = torch.tensor([float(len(made.clients.shards[k])) for k in devices])
        wanted = float((share / share.sum() * torch.tensor(each)).sum())
        assert outcome.summary.tasks[name].others == {other: pytest.approx(wanted)}
    assert played(experiment(small_settings), tmp_path / "b").summary.tasks["moods"].others == {}


def test_a_head_answers_only_where_it_has_the_classes(bert_settings: Path) -> None:
    """The words decide, in whatever order each task has them; a head that lacks one says nothing."""
    made = experiment(bert_settings)
    state, _ = play_round(made, made.initial)
    clients, values, (two, three) = made.clients, vectors(state), made.tasks
    assert evaluate.score_other_tasks(clients, values, 0, made.tasks) == {"moods": None}
    turned = replace(three, labels=(two.labels[1], "x", two.labels[0]), name="turned")
    found = evaluate.score_other_tasks(clients, values, 1, (two, turned))
    answers = evaluate.classify(clients, model_of(clients, values, 1, 2), "test colours", two.test.prompts, (2, 0))
    assert found == {"colours": accuracy(answers, two.test.classes)}


def test_the_untouched_model_is_scored_once_for_the_same_splits(
    small_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is trusted by what the scores depend on, whether the run is resumed or not."""
    said: list[str] = []
    one = experiment(small_settings)
    known = summary.base_scores(one, tmp_path / "base.json", said.append)
    assert summary.base_scores(experiment(small_settings, "server.lr=1"), tmp_path / "base.json", said.append) == known
    assert len(said) == 1
    for other in ("run.seed=1", "model.max_tokens=6", "tasks.*.test_samples=11"):
        made = experiment(small_settings, other)
        assert made.base_key != one.base_key, other
    summary.base_scores(made, tmp_path / "base.json", said.append)
    assert len(said) == 2
    (tmp_path / "base.json").write_text("{")
    assert summary.base_scores(one, tmp_path / "base.json", said.append) == known and len(said) == 4
    assert "base.json: damaged" in said[2] and said[2].endswith("made again")


def rows(*seconds: float) -> list[RoundRecord]:
    return [
        RoundRecord(round=t, loss={}, mse={}, pi=None, pi_claimed=None, ledger=Ledger(air_seconds=s), seconds={})
        for t, s in enumerate(seconds, 1)
    ]


def test_rounds_end_before_the_air_time_would_be_exceeded(small_settings: Path, tmp_path: Path) -> None:
    made = replace(experiment(small_settings), rounds=5)
    assert has_round_left(made, rows()) and has_round_left(made, rows(9, 9, 9, 9))
    assert not has_round_left(made, rows(1, 1, 1, 1, 1))
    short = replace(made, air_seconds=3.0)
    assert has_round_left(short, rows()) and has_round_left(short, rows(1, 1))
    assert not has_round_left(short, rows(1, 1, 1))
    assert not has_round_left(short, rows(0.5, 1.3)), "another like the longest would be too long"
    one = played(experiment(small_settings), tmp_path / "a").summary.ledger.air_seconds / 2
    budget = played(experiment(small_settings, "server.rounds=9", f"server.air_seconds={3.5 * one}"), tmp_path / "b")
    assert budget.completed and budget.summary.rounds == 3 and budget.summary.average is not None
    nothing = experiment(small_settings, "adapters.method=local", "server.air_seconds=1e-9")
    assert played(nothing, tmp_path / "c").summary.rounds == 2, "what sends nothing plays all rounds"


def test_a_run_can_be_scored_later(small_settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command: dev first, then both with --resume, which plays no round."""
    out = tmp_path / "run"
    assert run.run_file(small_settings, [*FEW, "run.score=dev"], out, False, "x") == 0
    assert json.loads((out / "summary.json").read_text())["average"] is None
    before = (out / "records.jsonl").read_bytes()
    assert run.run_file(small_settings, [*FEW, "run.score=both", "run.cross_eval=true"], out, True, "x") == 0
    after = json.loads((out / "summary.json").read_text())
    assert after["average"] is not None and set(after["tasks"]["moods"]["others"]) == {"colours"}
    assert (out / "records.jsonl").read_bytes() == before
