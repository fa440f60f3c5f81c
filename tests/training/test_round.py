"""One round from gradients to state: the weighted mean without an error, and a NaN that stays where it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from airpfed.air.schedule import Updates
from airpfed.config import settings_file
from airpfed.model.layout import Vectors
from airpfed.model.methods import SCOPES
from airpfed.training import round as training_round
from airpfed.training.checkpoint import tensors_of
from airpfed.training.loop import play_round
from airpfed.training.round import finite, round_step
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import ServerStep, State, vectors
from support.experiments import experiment_of
from support.settings import link_of

UNEQUAL = ("tasks.*.sizes=lognormal", "tasks.*.sizes_sigma=0.8", "tasks.*.samples_per_device=8")
EXACT = "radio.scheme=error_free"


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    return experiment_of(settings_file.read_settings(file, [*UNEQUAL, *overrides]))


def random_gradients(made: TrainingSetup) -> Vectors:
    """A row a device; the tail that a task does not have is zero."""
    rng = torch.Generator().manual_seed(0)
    rows = {s: torch.randn(5, made.clients.layout.size(s), generator=rng) for s in SCOPES}
    for k, n in enumerate(made.clients.task_of):
        rows["task"][k, made.clients.layout.task_lengths[int(n)] :] = 0.0
    return rows


def weights(made: TrainingSetup, present: Tensor) -> tuple[Tensor, Tensor]:
    """D_k/D (K) and D_k/D_n (N, K) over the devices present."""
    samples = torch.tensor([float(len(shard)) for shard in made.clients.shards]).double() * present
    own = torch.stack([samples * (made.clients.task_of == n) for n in range(len(made.tasks))])
    return samples / samples.sum(), own / own.sum(1, keepdim=True).clamp(min=1)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted.float(), rtol=1e-6, atol=1e-6)


ABSENT = [(), (1,), (0, 4), (0, 1), (0, 1, 2, 3, 4)]


@pytest.mark.parametrize("access", ["tdma", "concurrent"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_without_an_error_the_sum_is_the_mean_weighted_by_samples(
    kind: str, access: str, request: pytest.FixtureRequest
) -> None:
    made = experiment(request.getfixturevalue(f"{kind}_settings"), EXACT, f"radio.access={access}")
    assert len({len(shard) for shard in made.clients.shards}) > 2, "plain means would differ"
    rows = random_gradients(made)
    for absent in ABSENT:
        present = torch.tensor([k not in absent for k in range(5)])
        received = made.aggregate(
            1, Updates(rows["global"], rows["task"], present), made.initial.server.correlation_statistics
        )
        shared, own = weights(made, present)
        close(received.shared, shared.nan_to_num() @ rows["global"].double())
        close(received.personal, own @ rows["task"].double())
        assert received.active_tasks.tolist() == [bool(present[:2].any()), bool(present[2:].any())]


def spoiled(rows: Vectors, devices: tuple[int, ...], scope: str, value: float) -> Vectors:
    """One entry of each of these devices' gradients is not a number."""
    bad = {s: v.clone() for s, v in rows.items()}
    for k in devices:
        bad[scope][k, 3] = value
    return bad


def all_finite(state: State) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_of(state).values())


@pytest.mark.parametrize("design", ["error_free", "uniform_forcing", "mmse"])
def test_a_device_without_a_finite_gradient_is_absent(design: str, llama_settings: Path) -> None:
    """feddpa has parameters that never leave the device: the absent device's stay as they are, the others' move."""
    made = experiment(llama_settings, *link_of(design), "adapters.method=feddpa")
    rows, cursors = random_gradients(made), torch.arange(5)
    for scope, value in (("global", float("nan")), ("global", float("-inf")), ("device", float("nan"))):
        bad = spoiled(rows, (2,), scope, value)
        after, received, present = round_step(made.initial, bad, cursors, made.aggregate, ServerStep("adam", 0.1))
        assert present.tolist() == [True, True, False, True, True] == finite(bad).tolist()
        assert all_finite(after) and after.round == 1 and torch.equal(after.devices.cursors, cursors)
        own, before = after.devices.own, made.initial.devices.own
        assert [torch.equal(own.value[k], before.value[k]) for k in range(5)] == [False, False, True, False, False]
        assert own.updates.tolist() == [1, 1, 0, 1, 1]
        if design == "error_free":
            close(received.shared, weights(made, present)[0] @ rows["global"].double())
        zeroed = spoiled(rows, (2,), scope, 0.0)
        again = made.aggregate(
            1, Updates(zeroed["global"], zeroed["task"], present), made.initial.server.correlation_statistics
        )
        assert torch.equal(received.shared, again.shared), "what an absent device holds changes nothing"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("design", ["error_free", "uniform_forcing"])
def test_a_task_without_devices_keeps_its_state_bit_for_bit(design: str, optimizer: str, llama_settings: Path) -> None:
    made = experiment(llama_settings, *link_of(design), f"server.optimizer={optimizer}")
    first, _, _ = round_step(
        made.initial, random_gradients(made), torch.arange(5), made.aggregate, ServerStep(optimizer, 0.1)
    )
    bad = spoiled(random_gradients(made), (0, 1), "task", float("nan"))
    after, received, _ = round_step(first, bad, torch.arange(5), made.aggregate, ServerStep(optimizer, 0.1))
    assert received.active_tasks.tolist() == [False, True] and all_finite(after)
    old = tensors_of(first.server.personal)
    for key, tensor in tensors_of(after.server.personal).items():
        assert torch.equal(tensor[0], old[key][0]), key
    assert not torch.equal(after.server.personal.value[1], first.server.personal.value[1])
    assert not torch.equal(after.server.shared.value, first.server.shared.value)


@pytest.mark.parametrize("design", ["error_free", "uniform_forcing"])
def test_a_round_without_any_device_changes_only_the_round(design: str, llama_settings: Path) -> None:
    made = experiment(llama_settings, *link_of(design))
    rows = spoiled(random_gradients(made), (0, 1, 2, 3, 4), "global", float("nan"))
    after, received, present = round_step(made.initial, rows, torch.arange(5), made.aggregate, ServerStep("adam", 0.1))
    assert not present.any() and received.pi is None and received.ledger.channel_uses == 0
    kept = replace(after, round=0, devices=replace(after.devices, cursors=made.initial.devices.cursors))
    before = tensors_of(made.initial)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(kept).items())


def with_nan(devices: tuple[int, ...]) -> Callable[..., tuple[Vectors, Tensor]]:
    """`gradients` as it is, but for devices whose loss and gradient are not numbers."""
    real = training_round.gradients

    def fake(*args: object) -> tuple[Vectors, Tensor]:
        found, loss = real(*args)
        loss[list(devices)] = torch.nan
        for rows in found.values():
            rows[list(devices)] = torch.nan
        return found, loss

    return fake


def test_absent_devices_are_logged_and_left_out_of_the_loss(
    llama_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = experiment(llama_settings, EXACT)
    plain, row = play_round(made, made.initial)
    assert row.absent == []
    plan, _ = training_round.draw_batches(made.clients, made.initial.devices.cursors, made.local_training.batch_size, 1)
    _, loss = training_round.gradients(made.clients, vectors(made.initial), plan, 1.0, 5)
    monkeypatch.setattr(training_round, "gradients", with_nan((0, 1, 3)))
    state, row = play_round(made, made.initial)
    _, own = weights(made, torch.tensor([False, False, True, False, True]))
    assert row.absent == [0, 1, 3] and all_finite(state)
    assert row.loss == {"moods": pytest.approx(float(own[1] @ loss.double()), rel=1e-6)}
    assert torch.equal(state.devices.cursors, plain.devices.cursors), "an absent device's data goes on"


def test_the_loss_of_a_task_is_weighted_by_samples(llama_settings: Path) -> None:
    made = experiment(llama_settings)
    _, row = play_round(made, made.initial)
    plan, _ = training_round.draw_batches(made.clients, made.initial.devices.cursors, made.local_training.batch_size, 1)
    _, loss = training_round.gradients(made.clients, vectors(made.initial), plan, 1.0, 5)
    _, own = weights(made, torch.ones(5))
    for n, task in enumerate(made.tasks):
        assert row.loss[task.name] == pytest.approx(float(own[n] @ loss.double()), rel=1e-6)
        assert row.loss[task.name] != pytest.approx(float(loss[made.clients.task_of == n].mean()), rel=1e-6)


def test_a_row_is_finite_if_all_its_entries_are_though_their_sum_is_not() -> None:
    """Large entries overflow a sum without being infinite; one that is, or a NaN, makes its device absent."""
    large = torch.full((4, 100), 3e38)
    large[1, 7], large[2, 99] = torch.inf, torch.nan
    opposed = torch.zeros(4, 100)
    opposed[3, :2] = torch.tensor([torch.inf, -torch.inf])
    empty = torch.zeros(4, 0)
    assert finite({"global": large, "task": torch.zeros(4, 3), "device": empty}).tolist() == [True, False, False, True]
    assert finite({"global": opposed}).tolist() == [True, True, True, False]
