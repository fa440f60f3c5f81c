"""Clipping of what a device sends: torch's clip_grad_norm_, for each device alone."""

from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from airpfed.devices.clipping import clip_gradients
from airpfed.model.layout import Vectors
from airpfed.training.loop import play_round
from support.experiments import experiment

pytestmark = pytest.mark.usefixtures("shared_bases")

SIZES = {"global": 30, "task": 12, "device": 5, "frozen": 4}


def rows(seed: int = 0) -> Vectors:
    """Gradients of six devices, of norms about 0.7, 1.4, ... times 6."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.arange(1.0, 7.0)[:, None] / 10
    return {scope: scale * torch.randn(6, size, generator=rng) for scope, size in SIZES.items()}


@pytest.mark.parametrize("max_norm", [0.1, 2.0, 100.0])
def test_it_is_torchs_clipping_of_every_device(max_norm: float) -> None:
    clipped, before = rows(), rows()
    long = clip_gradients(clipped, max_norm)
    for device in range(6):
        leaves = []
        for scope in ("global", "task", "device"):
            leaf = torch.nn.Parameter(torch.zeros(SIZES[scope]))
            leaf.grad = before[scope][device].clone()
            leaves.append(leaf)
        norm = clip_grad_norm_(leaves, max_norm)
        assert bool(long[device]) == bool(norm > max_norm)
        for scope, leaf in zip(("global", "task", "device"), leaves, strict=True):
            torch.testing.assert_close(clipped[scope][device], leaf.grad, rtol=1e-5, atol=0)
            assert bool(long[device]) or torch.equal(clipped[scope][device], before[scope][device])
    assert torch.equal(clipped["frozen"], before["frozen"])
    assert 0 < int(long.sum()) < 6 or max_norm != 2.0


def test_only_active_columns_count() -> None:
    """Where factors alternate, the others are not sent."""
    clipped, before = rows(), rows()
    clip_gradients(clipped, 0.5, (10, 20))
    parts = [clipped["global"][:, 10:20], clipped["task"], clipped["device"]]
    norms = torch.cat(parts, 1).norm(dim=1)
    assert norms.max() <= 0.5 * (1 + 1e-5) and norms[-1] == pytest.approx(0.5, rel=1e-5)
    assert torch.equal(clipped["frozen"], before["frozen"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stays_and_is_not_counted(bad: float) -> None:
    clipped = rows()
    clipped["task"][5, 3] = bad
    long = clip_gradients(clipped, 0.1)
    assert not long[5] and long[:5].all()
    assert not clipped["task"][5].isfinite().all() and clipped["global"][5].norm() > 0.1
    alone = {scope: matrix[:1] for scope, matrix in rows().items()}
    clip_gradients(alone, 0.1)
    assert all(torch.equal(alone[scope][0], clipped[scope][0]) for scope in SIZES), "a device alone has the same bits"


def test_a_round_sends_clipped_gradients_and_says_how_many(small_settings: Path) -> None:
    exact = ("radio.scheme=error_free", "server.optimizer=sgd", "server.lr=1.0", "adapters.method=fedit")
    free = experiment(small_settings, *exact)
    norms = torch.cat([m for s, m in free.collect(free, free.initial).gradients.items() if s != "frozen"], 1).norm(
        dim=1
    )
    middle = float(norms.sort().values[len(norms) // 2 - 1 : len(norms) // 2 + 1].mean())
    made = experiment(small_settings, *exact, f"devices.max_grad_norm={middle}")
    found = made.collect(made, made.initial)
    assert found.clipped == pytest.approx(float((norms > middle).double().mean())) and 0 < found.clipped < 1
    state, record = play_round(made, made.initial)
    assert record.clipped == found.clipped
    samples = found.samples / found.samples.sum()
    torch.testing.assert_close(
        made.initial.server.shared.value[0] - state.server.shared.value[0],
        samples @ found.gradients["global"],
        rtol=1e-4,
        atol=1e-6,
    )
    assert play_round(free, free.initial)[1].clipped is None
