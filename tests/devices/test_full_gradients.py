"""The full-data pass: the gradients of one device at a time, noise of mini-batches, losses at several points."""

from itertools import combinations
from pathlib import Path

import pytest
import torch

from airpfed.devices.full_gradients import full_gradients, full_losses, group_samples, mean_loss
from airpfed.devices.gradients import gradients
from airpfed.model.layout import Vectors
from support.experiments import experiment, random_vectors

BATCH = "devices.batch_size=4"

UNEQUAL = ("tasks.*.sizes=lognormal", "tasks.*.sizes_sigma=0.8", "tasks.*.samples_per_device=6")


def together(values: Vectors) -> torch.Tensor:
    return torch.cat([values[scope] for scope in ("global", "task", "device")], 1).double()


@pytest.mark.parametrize(("kind", "method"), [("llama", "airpfed"), ("bert", "airpfed"), ("llama", "feddpa")])
def test_a_sweep_gives_losses_and_gradients_of_all_samples(
    kind: str, method: str, request: pytest.FixtureRequest
) -> None:
    made = experiment(request.getfixturevalue(f"{kind}_settings"), BATCH, f"adapters.method={method}", *UNEQUAL)
    clients, values = made.clients, random_vectors(made)
    whole = [[list(range(len(shard)))] for shard in clients.shards]
    wanted, loss = gradients(clients, values, whole, 1.0, 2)
    assert len({len(shard) for shard in clients.shards}) > 2
    for batch, chunk in ((2, 3), (100, 2)):
        found = full_gradients(clients, values, batch, chunk)
        row = torch.cat([found.gradient.shared, found.gradient.personal, found.gradient.local], 1)
        torch.testing.assert_close(row, together(wanted), rtol=2e-5, atol=1e-6)
        for k, own in enumerate(found.losses):
            assert len(own) == len(clients.shards[k])
            assert float(own.mean()) == pytest.approx(float(loss[k]), rel=1e-5)


def test_noise_of_a_mini_batch_is_that_of_all_mini_batches(small_settings: Path) -> None:
    """Groups of one sample make it exact: counted out over every batch of 2 of a device, kind by kind too."""
    made = experiment(small_settings, BATCH, *UNEQUAL)
    clients, values = made.clients, random_vectors(made)
    found = full_gradients(clients, values, 1, 8)
    for k, shard in enumerate(clients.shards[:2]):
        plan = [[list(range(len(s)))] for s in clients.shards]
        rows = []
        for i in range(len(shard)):
            plan[k] = [[i]]
            rows.append(together(gradients(clients, values, plan, 1.0, 5)[0])[k])
        each = torch.stack(rows)
        if len(each) < 2:
            assert found.sgd[k] == 0
            continue
        alone = float((each - each.mean(0)).square().sum(1).mean())  # batch of 1: the mean over all of them
        assert float(found.sgd[k]) == pytest.approx(alone, rel=1e-4)
        pairs = [(each[i] + each[j]) / 2 for i, j in combinations(range(len(each)), 2)]
        two = float(torch.stack([(pair - each.mean(0)).square().sum() for pair in pairs]).mean())
        scaled = float(found.sgd[k]) * (1 / 2 - 1 / len(each)) / (1 - 1 / len(each))
        assert scaled == pytest.approx(two, rel=1e-4)
        total = sum(float(energy[k]) for energy in found.energy.values())
        assert total == pytest.approx(float(each.square().sum(1).mean()), rel=1e-4)
    assert set(found.energy) == {(scope, kind) for scope in ("global", "task") for kind in ("A", "B")}


def test_losses_at_several_points_are_dealt_evenly(bert_settings: Path) -> None:
    made = experiment(bert_settings, BATCH)
    clients = made.clients
    points = [random_vectors(made, seed) for seed in range(3)]
    alone = [full_losses(clients, [point], 3, 4) for point in points]
    seen = full_gradients(clients, points[0], 3, 4).losses
    dealt, counts = full_losses(clients, points, 3, 4), torch.zeros(3, dtype=torch.long)
    for k, own in enumerate(dealt):
        torch.testing.assert_close(alone[0][k], seen[k], rtol=1e-5, atol=1e-6)
        near = torch.stack([(own - one[k]).abs() < 1e-5 for one in alone])
        assert (near.sum(0) >= 1).all(), "every sample is at one of the points"
        counts += near.sum(1)
    samples = sum(len(shard) for shard in clients.shards)
    assert int(counts.sum()) == samples and int(counts.max() - counts.min()) <= 1
    weight = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert mean_loss(alone[1], weight) == pytest.approx(float((alone[1][0].mean() + alone[1][1].mean()) / 2))


def test_groups_hold_every_sample_once(small_settings: Path) -> None:
    clients = experiment(small_settings, BATCH).clients
    for size in (1, 3, 4, 50):
        groups = group_samples(clients, 0, size)
        assert sorted(row for rows in groups for row in rows) == list(range(len(clients.shards[0])))
        assert len(groups) >= 2
    assert sum(map(len, group_samples(clients, 0, 3, max_samples=5))) == 5
