"""LoRA dropout: its own streams, PEFT's rule, and the same draws wherever and with whomever a device computes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.core.rng import stream
from airpfed.devices.clients import Clients, draw_batches
from airpfed.devices.gradients import Dropout, gradients, without_company
from airpfed.model.layers import StackedLoRA, drop_entries
from airpfed.model.layout import Vectors
from airpfed.model.methods import SCOPES
from airpfed.training.setup import TrainingSetup
from support.experiments import experiment, random_vectors

RATE = 0.4


def made_of(file: Path, *overrides: str, rate: float = RATE) -> TrainingSetup:
    return experiment(file, "devices.batch_size=2", f"adapters.dropout={rate}", *overrides)


def found_of(made: TrainingSetup, values: Vectors, chunk: int, t: int = 1, steps: int = 1) -> tuple[Vectors, Tensor]:
    plan, _ = draw_batches(made.clients, torch.zeros(len(made.clients.shards), dtype=torch.long), 2, steps)
    return gradients(made.clients, values, plan, 0.1, chunk, (0, made.clients.layout.size("global")), t=t)


def test_each_entry_is_dropped_with_the_rate_and_the_mean_stays() -> None:
    x = torch.full((200, 100), 3.0)
    found = drop_entries(x, RATE, stream(0, "x"))
    kept = found != 0
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 3.0 / (1 - RATE)))
    assert abs(float(kept.float().mean()) - (1 - RATE)) < 5 * (RATE * (1 - RATE) / x.numel()) ** 0.5
    rows = kept.float().mean(1)
    assert rows.std() < 2 * (RATE * (1 - RATE) / 100) ** 0.5, "entries are dropped one by one, not by row"


def device_of(clients: Clients, k: int, values: Vectors, rows: Sequence[int]) -> tuple[Clients, Vectors]:
    """Device k by itself with some of its samples, as on a machine of its own, and its rows of all parameters."""
    task = int(clients.task_of[k])
    local = replace(
        clients, shards=(tuple(clients.shards[k][i] for i in rows),), task_of=torch.zeros(1, dtype=torch.long),
        classes=(clients.classes[task],), cache=clients.cache.fresh(), numbers=(k,),
    )  # fmt: skip
    index = {"task": task, "device": k}
    return local, {s: matrix[index[s] : index[s] + 1] if s in index else matrix for s, matrix in values.items()}


@pytest.mark.parametrize("kind", ["small", "bert"])
def test_gradients_are_those_of_the_masks_that_the_streams_draw(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks drawn by hand from each sample's stream, in the order of the layers; the mean over the samples."""
    made = made_of(request.getfixturevalue(f"{kind}_settings"), "adapters.layers=last-3", "run.threads=1")
    values, clients = random_vectors(made), made.clients
    found, loss = found_of(made, values, 100, t=7)
    plan, _ = draw_batches(clients, torch.zeros(len(clients.shards), dtype=torch.long), 2, 1)
    k, rows = 3, plan[3][0]
    gradient, losses = [], []
    for position, row in enumerate(rows):
        rng, masks = stream(clients.seed, "dropout", 7, k, 0, position), list[Tensor]()

        def draw(x: Tensor, rate: float, _: Any, rng: torch.Generator = rng, masks: list[Tensor] = masks) -> Tensor:
            masks.append(torch.rand(x.shape, generator=rng) >= rate)
            return x * masks[-1].float() / (1 - rate)

        with monkeypatch.context() as patch:
            patch.setattr("airpfed.model.layers.drop_entries", draw)
            local, mine = device_of(clients, k, values, [row])
            part, value = gradients(local, mine, [[[0]]], 0.1, 1, t=7)
        assert len(masks) == len(clients.backbone.target_layers)
        gradient.append(torch.cat([part[scope][0] for scope in SCOPES]))
        losses.append(float(value))
    mean = torch.stack(gradient).mean(0)
    ours = torch.cat([found[scope][k] for scope in SCOPES])
    assert float((ours - mean).norm()) <= 1e-5 * float(mean.norm())
    assert float(loss[k]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_draws_depend_on_round_step_device_and_sample_alone(small_settings: Path) -> None:
    made = made_of(small_settings, "adapters.layers=last-3", "run.threads=1")
    values, clients = random_vectors(made), made.clients
    together, _ = found_of(made, values, 100)
    alone, _ = found_of(made, values, 1)
    assert all(torch.equal(together[scope], alone[scope]) for scope in SCOPES), "the company changes no bit"
    again, _ = found_of(made, values, 100, t=2)
    assert not torch.equal(again["global"], together["global"]), "every round draws anew"
    plan, _ = draw_batches(clients, torch.zeros(len(clients.shards), dtype=torch.long), 2, 1)
    k = 3
    local, mine = device_of(clients, k, values, range(len(clients.shards[k])))
    there, _ = gradients(local, mine, [plan[k]], 0.1, 1, t=1)
    for scope in SCOPES:
        assert torch.equal(there[scope][0], together[scope][k]), (
            "a device of a federation draws what the simulator does"
        )
    side_by_side, _ = found_of(made_of(small_settings, "adapters.layers=last-3", "run.threads=2"), values, 100)
    for scope in SCOPES:
        torch.testing.assert_close(side_by_side[scope], together[scope], rtol=1e-4, atol=1e-6)


def test_local_steps_draw_anew(small_settings: Path) -> None:
    streams = [Dropout(0, 1, step).stream(device, position) for step, device, position in
               ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]  # fmt: skip
    assert len({float(torch.rand(1, generator=rng)) for rng in streams}) == 4
    made = made_of(small_settings, "adapters.layers=last-1", "devices.local_steps=2")
    found, _ = found_of(made, random_vectors(made), 100, steps=2)
    assert all(matrix.isfinite().all() for matrix in found.values())


def test_without_dropout_nothing_changes_and_evaluation_drops_nothing(small_settings: Path) -> None:
    plain, dropped = made_of(small_settings, rate=0.0), made_of(small_settings)
    values = random_vectors(plain)
    assert plain.clients.dropout == 0 and plain.clients.backbone.paths == dropped.clients.backbone.paths
    assert torch.equal(found_of(plain, values, 100, 1)[0]["task"], found_of(plain, values, 100, 2)[0]["task"])
    layers = [layer for layer in dropped.clients.backbone.layers.values() if isinstance(layer, StackedLoRA)]
    assert all(layer.rng is None and layer.dropout == RATE for layer in layers), "no stream is left in a layer"
    paths = without_company(dropped.clients.backbone).paths
    assert not (paths.stacking or paths.batching or paths.packing or paths.last_layer or paths.fused)


def test_the_theory_has_no_dropout(small_settings: Path) -> None:
    with pytest.raises(UserError, match="the theory's gradients drop nothing"):
        made_of(small_settings, "theory.meter_every=1")
