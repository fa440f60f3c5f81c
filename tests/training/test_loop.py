"""The loop: what is interrupted or repeated ends in the same bits; another seed does not. Kills: fuzz/test_kills.py."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airpfed.config import settings_file
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.training.checkpoint import tensors_of
from airpfed.training.loop import Outcome, play, play_round, task_losses
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import State
from support.experiments import experiment_of

pytestmark = pytest.mark.usefixtures("shared_bases")

ROUNDS = ("server.rounds=6", "adapters.method=feddpa", "devices.local_steps=2")
CHEAP = ("radio.design=channel_inversion", "radio.coherence_symbols=1000")
"""Cursors, moments, parameters of the server and of the devices, fading and noise must all come back."""


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    return experiment_of(settings_file.read_settings(file, [*ROUNDS, *CHEAP, *overrides]))


def ran(made: TrainingSetup, out: Path, resume: bool = False, until: int = 99) -> Outcome:
    """Play up to `until` rounds more."""
    out.mkdir(exist_ok=True)
    rows: list[int] = []
    return play(made, out, resume, lambda row: rows.append(row.round), lambda: len(rows) >= until, lambda _: None)


def same(a: State, b: State) -> bool:
    x, y = tensors_of(a), tensors_of(b)
    return x.keys() == y.keys() and a.round == b.round and all(torch.equal(x[key], y[key]) for key in x)


def rows(out: Path) -> list[dict]:
    return [row.model_dump(exclude={"seconds"}) for row in run_files.load_records(out / "records.jsonl")]


def test_a_round_without_its_step_size_is_refused(small_settings: Path) -> None:
    """A learning rate of NaN would be written into every adapter."""
    made = experiment(small_settings, "server.lr=theory", "server.optimizer=sgd", "devices.local_steps=1")
    with pytest.raises(ValueError, match="the probe decides the step size"):
        play_round(replace(made, monitor=None), made.initial)


def test_a_base_that_gives_no_numbers_is_not_blamed_on_the_step_size(small_settings: Path) -> None:
    made = experiment(small_settings, "devices.local_steps=1", "adapters.method=airpfed")
    with torch.no_grad():
        next(iter(made.clients.backbone.model.parameters())).fill_(float("nan"))
    with pytest.raises(UserError, match=r"model\.base: no device has a finite gradient in round 1") as caught:
        play_round(made, made.initial)
    assert "_lr" not in str(caught.value)


def test_a_loss_that_is_no_number_is_in_no_mean(small_settings: Path) -> None:
    made = experiment(small_settings)
    found = made.collect(made, made.initial)
    present = torch.ones(len(found.loss), dtype=torch.bool)
    plain = task_losses(made, found, present)
    for wrong in (float("nan"), float("inf")):
        loss = found.loss.clone()
        loss[0] = wrong
        losses = task_losses(made, replace(found, loss=loss), present)
        assert losses["colours"] == pytest.approx(float(found.loss[1])) and losses["moods"] == plain["moods"]


@pytest.fixture
def whole(small_settings: Path, tmp_path: Path) -> tuple[Outcome, list[dict]]:
    """Six rounds without a break."""
    outcome = ran(experiment(small_settings), tmp_path / "whole")
    return outcome, rows(tmp_path / "whole")


def test_an_interrupted_run_resumes_to_the_same_bits_and_records(
    whole: tuple[Outcome, list[dict]], small_settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "broken"
    first = ran(experiment(small_settings), out, until=2)
    assert not first.completed and first.summary.exit == "interrupted" and first.state.round == 2
    assert all(task.final is None for task in first.summary.tasks.values()), "no score of half a run"
    with (out / "records.jsonl").open("a") as file:
        file.write('{"round": 3, "loss"')  # a line cut short by a crash
    second = ran(experiment(small_settings), out, resume=True, until=1)
    assert second.state.round == 3
    last = ran(experiment(small_settings), out, resume=True)
    assert last.completed and same(last.state, whole[0].state)
    assert rows(out) == whole[1] and [row["round"] for row in whole[1]] == [1, 2, 3, 4, 5, 6]
    left, right = (outcome.summary.model_dump(exclude={"seconds"}) for outcome in (last, whole[0]))
    assert left == right and left["exit"] == "completed"


def test_the_seed_alone_fixes_the_bits(whole: tuple[Outcome, list[dict]], small_settings: Path, tmp_path: Path) -> None:
    """Neither how often is evaluated nor a finished shorter run that goes on changes any; another seed does."""
    out, never = tmp_path / "again", "run.eval_every=0"
    short = ran(experiment(small_settings, "server.rounds=2", never), out)
    again = ran(experiment(small_settings, "server.rounds=2", never), out, resume=True)
    assert short.completed and again.completed and same(short.state, again.state)
    assert same(ran(experiment(small_settings, never), out, resume=True).state, whole[0].state)
    assert [sorted(row["accuracy"]) for row in whole[1]] == [[], ["colours", "moods"]] * 3
    assert rows(out) == [{**row, "accuracy": {}} for row in whole[1]]
    other = ran(experiment(small_settings, "run.seed=1", never), tmp_path / "other", until=1)
    assert not torch.equal(other.state.server.shared.value, whole[0].state.server.shared.value)
    assert rows(tmp_path / "other")[0]["loss"] != whole[1][0]["loss"]
