"""The loop: what is interrupted, killed or repeated ends in the same bits; another seed does not."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airpfed import build, job, reading, record
from airpfed.errors import UserError
from airpfed.rounds.checkpoint import tensors_of
from airpfed.rounds.run import Experiment, Outcome, play, play_round, task_losses
from airpfed.rounds.state import State

ROUNDS = ("server.rounds=6", "adapters.method=feddpa", "devices.local_steps=2")
CHEAP = ("radio.design=channel_inversion", "radio.coherence_symbols=1000")
"""Cursors, moments, parameters of the server and of the devices, fading and noise must all come back."""


def experiment(file: Path, *overrides: str) -> Experiment:
    settings = reading.read(file, [*ROUNDS, *CHEAP, *overrides])
    return build.experiment(settings, build.load_tasks(settings))


def ran(made: Experiment, out: Path, resume: bool = False, until: int = 99) -> Outcome:
    """Play up to `until` rounds more."""
    out.mkdir(exist_ok=True)
    rows: list[int] = []
    return play(made, out, resume, lambda row: rows.append(row.round), lambda: len(rows) >= until, lambda _: None)


def same(a: State, b: State) -> bool:
    x, y = tensors_of(a), tensors_of(b)
    return x.keys() == y.keys() and a.round == b.round and all(torch.equal(x[key], y[key]) for key in x)


def rows(out: Path) -> list[dict]:
    return [row.model_dump(exclude={"seconds"}) for row in record.load(out / "records.jsonl")]


def test_a_round_without_its_step_size_is_refused(llama_settings: Path) -> None:
    """A learning rate of NaN would be written into every adapter."""
    made = experiment(llama_settings, "server.lr=theory", "server.optimizer=sgd", "devices.local_steps=1")
    with pytest.raises(ValueError, match="the probe decides the step size"):
        play_round(replace(made, meter=None), made.initial)


def test_a_base_that_gives_no_numbers_is_not_blamed_on_the_step_size(llama_settings: Path) -> None:
    made = experiment(llama_settings, "devices.local_steps=1", "adapters.method=airpfed")
    with torch.no_grad():
        next(iter(made.fleet.backbone.model.parameters())).fill_(float("nan"))
    with pytest.raises(UserError, match=r"model\.base: no device has a finite gradient in round 1") as caught:
        play_round(made, made.initial)
    assert "_lr" not in str(caught.value)


def test_a_loss_that_is_no_number_is_in_no_mean(llama_settings: Path) -> None:
    made = experiment(llama_settings)
    found = made.collect(made, made.initial)
    present = torch.ones(len(found.loss), dtype=torch.bool)
    plain = task_losses(made, found, present)
    for wrong in (float("nan"), float("inf")):
        loss = found.loss.clone()
        loss[0] = wrong
        losses = task_losses(made, replace(found, loss=loss), present)
        assert losses["colours"] == pytest.approx(float(found.loss[1])) and losses["moods"] == plain["moods"]


@pytest.fixture
def whole(llama_settings: Path, tmp_path: Path) -> tuple[Outcome, list[dict]]:
    """Six rounds without a break."""
    outcome = ran(experiment(llama_settings), tmp_path / "whole")
    return outcome, rows(tmp_path / "whole")


def test_an_interrupted_run_resumes_to_the_same_bits_and_records(
    whole: tuple[Outcome, list[dict]], llama_settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "broken"
    first = ran(experiment(llama_settings), out, until=2)
    assert not first.completed and first.summary.exit == "interrupted" and first.state.round == 2
    assert all(task.final is None for task in first.summary.tasks.values()), "no score of half a run"
    with (out / "records.jsonl").open("a") as file:
        file.write('{"round": 3, "loss"')  # a line cut short by a crash
    second = ran(experiment(llama_settings), out, resume=True, until=1)
    assert second.state.round == 3
    last = ran(experiment(llama_settings), out, resume=True)
    assert last.completed and same(last.state, whole[0].state)
    assert rows(out) == whole[1] and [row["round"] for row in whole[1]] == [1, 2, 3, 4, 5, 6]
    left, right = (outcome.summary.model_dump(exclude={"seconds"}) for outcome in (last, whole[0]))
    assert left == right and left["exit"] == "completed"


def test_the_seed_alone_fixes_the_bits(whole: tuple[Outcome, list[dict]], llama_settings: Path, tmp_path: Path) -> None:
    """Neither how often is evaluated nor a finished shorter run that goes on changes any; another seed does."""
    out, never = tmp_path / "again", "run.eval_every=0"
    short = ran(experiment(llama_settings, "server.rounds=2", never), out)
    again = ran(experiment(llama_settings, "server.rounds=2", never), out, resume=True)
    assert short.completed and again.completed and same(short.state, again.state)
    assert same(ran(experiment(llama_settings, never), out, resume=True).state, whole[0].state)
    assert [sorted(row["accuracy"]) for row in whole[1]] == [[], ["colours", "moods"]] * 3
    assert rows(out) == [{**row, "accuracy": {}} for row in whole[1]]
    other = ran(experiment(llama_settings, "run.seed=1", never), tmp_path / "other", until=1)
    assert not torch.equal(other.state.server.shared.value, whole[0].state.server.shared.value)
    assert rows(tmp_path / "other")[0]["loss"] != whole[1][0]["loss"]


DRIVER = """
import os, signal, sys
from pathlib import Path

from airpfed import job
from airpfed.rounds import checkpoint, run

place, file, out = sys.argv[1:]
calls = 0


def dies_at_third(module, name):
    real = getattr(module, name)

    def fake(*args, **kwargs):
        global calls
        calls += 1
        if calls == 3:
            if name == "write_atomic":
                path, data = args
                path.write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(module, name, fake)


dies_at_third({"run": run, "checkpoint": checkpoint}[place.split(".")[0]], place.split(".")[1])
job.run_job(Path(file), [], Path(out), False, "x")
"""


def exported(out: Path) -> dict[str, bytes]:
    """Everything below adapters/ and the checkpoint's tensors, byte by byte."""
    files = [p for p in (out / "adapters").rglob("*") if p.is_file()] + sorted(
        (out / "checkpoint").glob("*.safetensors")
    )
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_killed_anywhere_a_run_resumes_to_the_same_bytes(llama_settings: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a round, of a checkpoint's file, and between that file and the pointer to it."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    text = llama_settings.read_text().replace("[radio]", '[radio]\ndesign = "channel_inversion"')
    text = text.replace("rounds = 4", "rounds = 3").replace("coherence_symbols = 100", "coherence_symbols = 1000")
    llama_settings.write_text(text)
    assert job.run_job(llama_settings, [], tmp_path / "whole", False, "x") == 0
    wanted = exported(tmp_path / "whole")
    assert len(wanted) >= 5
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    # call 3 of step is in round 3; the checkpoint's own functions are called for round 0 first
    places = {"run.step": 2, "checkpoint.write_atomic": 1, "checkpoint.write_json": 1}
    started = {
        place: subprocess.Popen(
            [sys.executable, str(driver), place, str(llama_settings), str(tmp_path / place)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
        )
        for place in places
    }  # fmt: skip
    for place, done in places.items():
        out = tmp_path / place
        _, errors = started[place].communicate()
        assert started[place].returncode == -signal.SIGKILL, errors.decode()[-2000:]
        assert not (out / "summary.json").exists()
        assert f"round-{done:06d}" in (out / "checkpoint" / "latest.json").read_text()
        assert job.run_job(llama_settings, [], out, True, "x") == 0
        assert exported(out) == wanted, place
        assert rows(out) == rows(tmp_path / "whole"), place
