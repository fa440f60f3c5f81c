"""Layers that are computed again in the backward pass: the same gradients, however samples lie in a pass."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from airpfed.devices.clients import draw_batches
from airpfed.devices.gradients import gradients, row_losses
from airpfed.devices.hessian import curvature
from airpfed.model.layers import RecomputedLayer
from airpfed.model.layout import gather
from airpfed.model.methods import SCOPES
from airpfed.training.setup import TrainingSetup
from support.experiments import computed, experiment, in_double, random_vectors

PATHS = {
    "packing": {"packing": True, "last_layer": False},
    "batching": {"packing": False, "last_layer": False},
    "one at a time": {"packing": False, "last_layer": False, "batching": False, "stacking": False},
    "as PEFT": {"packing": False, "last_layer": False, "fused": False, "prefix": False},
}


def made_of(file: Path, recomputed: bool, *overrides: str) -> TrainingSetup:
    return experiment(file, "devices.batch_size=4", f"model.checkpointing={str(recomputed).lower()}", *overrides)


def recomputed_layers(made: TrainingSetup) -> list[RecomputedLayer]:
    return [m for m in made.clients.backbone.model.modules() if isinstance(m, RecomputedLayer)]


@pytest.mark.parametrize(("kind", "paths"), [*(("small", paths) for paths in PATHS), ("bert", "batching")])
def test_gradients_are_the_same_bits(kind: str, paths: str, request: pytest.FixtureRequest) -> None:
    found, file = [], request.getfixturevalue(f"{kind}_settings")
    for recomputed in (False, True):
        made = made_of(file, recomputed, "adapters.layers=last-3", "run.threads=1", "adapters.dropout=0.2")
        clients = replace(computed(made.clients, **PATHS[paths]), dropout=0.2 if paths == "one at a time" else 0.0)
        plan, _ = draw_batches(clients, torch.zeros(len(clients.shards), dtype=torch.long), 4, 1)
        values, _ = gradients(clients, random_vectors(made), plan, 1.0, 1 if paths == "one at a time" else 4, t=3)
        found.append(torch.cat([values[scope] for scope in SCOPES], 1))
        assert len(recomputed_layers(made)) == (3 if recomputed else 0)
        assert made.clients.backbone.paths.last_layer != recomputed
    assert torch.equal(*found)


def test_second_derivatives_are_the_same(small_settings: Path) -> None:
    betas = []
    for recomputed in (False, True):
        made = made_of(small_settings, recomputed, "adapters.layers=last-1", "run.threads=1")
        in_double(made.clients)
        values = {scope: value.double() for scope, value in random_vectors(made).items()}
        betas.append(curvature(made.clients, values, 4, 4, 3, 5).beta)
    assert betas[0] > 0 and betas[1] == pytest.approx(betas[0], rel=1e-9)


def test_a_pass_keeps_few_values(small_settings: Path) -> None:
    sizes = []
    for recomputed in (False, True):
        made = made_of(small_settings, recomputed, "adapters.layers=last-3", "run.threads=1")
        clients = computed(made.clients, **PATHS["batching"])
        values, devices = random_vectors(made), list(range(len(clients.shards)))
        factors = gather(values, clients.layout, clients.task_of, torch.tensor(devices))
        leaves = {key: value.requires_grad_() for key, value in factors.items()}
        kept: list[int] = []

        def keep(x: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            row_losses(clients, leaves, devices, [[0, 1, 2]] * len(devices))
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 4
