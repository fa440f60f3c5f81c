"""Samples end to end: gradients are those of padded samples, and devices share a pass by their tokens."""

from itertools import chain
from pathlib import Path

import pytest
import torch

from airpfed.config import settings_file
from airpfed.devices import gradients as fleets
from airpfed.devices.clients import draw_batches, group_devices
from airpfed.devices.gradients import gradients
from airpfed.devices.parallel import worker_count
from airpfed.training.state import vectors
from support.experiments import computed, experiment_of


@pytest.mark.parametrize("layers", ["all", "last-2"])
@pytest.mark.parametrize("method", ["airpfed", "feddpa", "ffa"])
@pytest.mark.parametrize(("kind", "tokens"), [("classify", 48), ("classify", 4), ("generate", 48)])
def test_gradients_are_those_of_padded_samples(
    llama_settings: Path, kind: str, tokens: int, method: str, layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 tokens: all samples are of one length."""
    changes = [f"adapters.layers={layers}", f"adapters.method={method}", "devices.batch_size=10"]
    changes.append(f"model.max_tokens={tokens}")
    if kind == "generate":
        changes += ["tasks.colours.labels={}", "tasks.colours.kind=generate", "tasks.colours.label=text"]
    read = settings_file.read_settings(llama_settings, changes)
    made = experiment_of(read)
    rng = torch.Generator().manual_seed(0)
    values = {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}
    plan, _ = draw_batches(made.clients, made.initial.devices.cursors, 10, 1)
    assert len({len(rows[0]) for rows in plan}) == 2, "devices of unequally many samples"
    passes: list[int] = []
    real = fleets.packed_losses
    monkeypatch.setattr(fleets, "packed_losses", lambda *given: passes.append(1) or real(*given))
    found, loss = gradients(made.clients, values, plan, 0.0, 3)
    assert len(passes) == len(group_devices(made.clients, plan, 3, worker_count(made.clients.backbone, 3))) == 2
    padded, wanted = gradients(computed(made.clients, packing=False), values, plan, 0.0, 3)
    assert len(passes) == 2, "padded this time"
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for scope, rows in padded.items():
        assert not rows.numel() or (found[scope] - rows).norm() <= 1e-5 * rows.norm()


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_chunks_have_like_many_tokens_and_no_more_than_the_largest_devices_would(
    llama_settings: Path, at_once: int
) -> None:
    read = settings_file.read_settings(llama_settings, [])
    made = experiment_of(read)
    plan, _ = draw_batches(made.clients, made.initial.devices.cursors, 3, 1)
    tokens = [sum(len(made.clients.shards[k][i].ids) for i in rows[0]) for k, rows in enumerate(plan)]
    for size in range(at_once, 6):
        found = group_devices(made.clients, plan, size, at_once)
        held = [sum(tokens[k] for k in part) for part in found]
        assert sorted(chain(*found)) == list(range(5)) and held == sorted(held, reverse=True)
        assert len(found) % at_once == 0 or len(found) == 5
        assert sum(held[:at_once]) <= size * max(tokens) and max(held) - min(held) <= max(tokens)
        assert sum(sorted(map(len, found))[-at_once:]) <= 2 * size
    assert group_devices(made.clients, plan, 1) == [[k] for k in sorted(range(5), key=lambda k: -tokens[k])]
