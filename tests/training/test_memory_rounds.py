"""Error memory in a run: what the state holds between rounds, absent devices, resume, and what refuses it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.core.memory import is_spilled
from airpfed.training.checkpoint import tensors_of
from airpfed.training.loop import Outcome, play
from airpfed.training.round import carry_over, round_step
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import ServerStep
from support.experiments import experiment_of

pytestmark = pytest.mark.usefixtures("shared_bases")

TRUNCATED = ("devices.memory=true", "radio.design=channel_inversion(truncation=0.5)", "radio.normalizer=common")
TOP = ("devices.memory=true", "radio.scheme=digital(quantizer=top_k, share=0.1)")
ROUNDS = ("server.rounds=4", "run.eval_every=0", "radio.coherence_symbols=500")


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    return experiment_of(settings_file.read_settings(file, [*ROUNDS, *overrides]))


def ran(made: TrainingSetup, out: Path, resume: bool = False, until: int = 99) -> Outcome:
    out.mkdir(exist_ok=True)
    done: list[int] = []
    return play(made, out, resume, lambda row: done.append(row.round), lambda: len(done) >= until, lambda _: None)


@pytest.mark.parametrize("overrides", [TRUNCATED, TOP], ids=["linear", "digital"])
def test_a_run_with_memory_resumes_to_the_same_bits(overrides, small_settings: Path, tmp_path: Path) -> None:
    whole = ran(experiment(small_settings, *overrides), tmp_path / "whole").state
    out = tmp_path / "broken"
    ran(experiment(small_settings, *overrides), out, until=2)
    again = ran(experiment(small_settings, *overrides), out, resume=True).state
    left, right = tensors_of(whole), tensors_of(again)
    assert {"devices.error_memory.global", "devices.error_memory.task"} <= left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert bool(whole.devices.memory["global"].any())
    forgetful = ran(experiment(small_settings, *overrides[1:]), tmp_path / "without").state
    assert forgetful.devices.memory == {}
    assert not torch.equal(forgetful.server.shared.value, whole.server.shared.value)


def test_what_was_not_sent_is_in_the_next_gradient(small_settings: Path) -> None:
    made = experiment(small_settings, *TOP)
    found = made.collect(made, made.initial)
    state, received, _ = round_step(
        made.initial, found.gradients, found.cursors, made.aggregate, ServerStep("adam", 0.01)
    )
    assert torch.equal(state.devices.memory["global"], received.unsent["global"])
    assert 0 < float(state.devices.memory["global"].norm()) < float(found.gradients["global"].norm())
    empty = replace(state, devices=replace(state.devices, memory={}))
    with_memory, without = (made.collect(made, each).gradients for each in (state, empty))
    for scope in ("global", "task"):
        torch.testing.assert_close(with_memory[scope], without[scope] + state.devices.memory[scope])


def test_an_absent_device_keeps_all_that_it_had(small_settings: Path) -> None:
    """What it had before where its gradient is no number; the other devices keep what they did not send."""
    made = experiment(small_settings, *TOP)
    step = ServerStep("adam", 0.01)
    found = made.collect(made, made.initial)
    state, _, _ = round_step(made.initial, found.gradients, found.cursors, made.aggregate, step)
    before = {scope: value.clone() for scope, value in state.devices.memory.items()}
    found = made.collect(made, state)
    found.gradients["global"][2, 5] = torch.nan
    carried = found.gradients["task"][2].clone()
    after, _, present = round_step(state, found.gradients, found.cursors, made.aggregate, step)
    assert present.tolist() == [True, True, False, True, True]
    assert torch.equal(after.devices.memory["global"][2], before["global"][2])
    assert torch.equal(after.devices.memory["task"][2], carried), "its finite p-gradient waits, with the old memory"
    assert not torch.equal(after.devices.memory["global"][0], before["global"][0])
    assert all(torch.equal(before[scope], state.devices.memory[scope]) for scope in before), "a round changes no state"


def test_a_late_device_keeps_its_gradient(small_settings: Path) -> None:
    """It computed it, but too slowly; with the next round's it is sent."""
    made = experiment(small_settings, *TOP)
    start, late = made.initial, 3
    assert made.compute is not None
    hertz = made.compute.hertz.clone()
    hertz[late] = 1.0
    hurried = replace(made, compute=replace(made.compute, hertz=hertz, deadline=1e4))
    found, whole = (each.collect(each, start) for each in (hurried, made))
    assert found.late == (late,)
    after, _, present = round_step(start, found.gradients, found.cursors, made.aggregate, ServerStep("adam", 0.01))
    assert (~present).nonzero().flatten().tolist() == [late]
    for scope in ("global", "task"):
        assert torch.equal(after.devices.memory[scope][late], whole.gradients[scope][late])


def test_alternating_factors_leave_the_memory_of_resting_columns_alone(small_settings: Path) -> None:
    made = experiment(small_settings, *TOP, "adapters.method=rolora")
    state, memories = made.initial, []
    for _ in range(2):
        found = made.collect(made, state)
        state, received, _ = round_step(state, found.gradients, found.cursors, made.aggregate, ServerStep("adam", 0.01))
        memories.append((received.active_columns[1], state.devices.memory["global"]))
    (first, last), memory = memories[0]
    resting = torch.ones(memory.shape[1], dtype=torch.bool)
    resting[first:last] = False
    assert bool(memory[:, first:last].any()) and not bool(memory[:, resting].any())
    (again, end), later = memories[1]
    assert (again, end) != (first, last) and torch.equal(later[:, first:last], memory[:, first:last])


def test_memory_larger_than_gradients_gb_lies_in_a_file(small_settings: Path) -> None:
    made = experiment(small_settings, *TOP, "devices.gradients_gb=0")
    assert all(is_spilled(value) for value in made.initial.devices.memory.values())
    found = made.collect(made, made.initial)
    state, _, _ = round_step(made.initial, found.gradients, found.cursors, made.aggregate, ServerStep("adam", 0.01))
    assert all(is_spilled(value) for value in state.devices.memory.values())


def test_a_run_without_memory_has_none(small_settings: Path) -> None:
    made = experiment(small_settings)
    found = made.collect(made, made.initial)
    same = carry_over(found.gradients, made.initial.devices.memory)
    assert same is found.gradients and made.initial.devices.memory == {}
    assert not [key for key in tensors_of(made.initial) if "error_memory" in key]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("server.lr=theory", "server.optimizer=sgd"), "devices.memory = true: the theory has no bound"),
        (
            ("devices.memory=false", "server.lr=theory", "server.optimizer=sgd", *TOP[1:]),
            r'every sum; radio.scheme = "digital\(quantizer=top_k, share=0.1\)" claims none',
        ),
        (("radio.scheme=digital(quantizer=sign)",), r"scheme.bits = 4: sign sends one bit an entry; should be 1"),
        (("radio.scheme=digital(share=0.1)",), r'scheme.share = 0.1: is for quantizer = "top_k", not "uniform"'),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, words, small_settings: Path) -> None:
    with pytest.raises(UserError, match=words):
        experiment(small_settings, "devices.memory=true", *overrides)
