"""Length buckets: the same gradients, however samples are put together."""

from pathlib import Path

import pytest
import torch

from airpfed.config import settings_file
from airpfed.devices import gradients as fleets
from airpfed.devices.clients import draw_batches
from airpfed.devices.gradients import gradients
from airpfed.training.state import vectors
from support.experiments import computed, experiment_of


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_gradients_do_not_depend_on_the_buckets(kind, request, monkeypatch):
    file: Path = request.getfixturevalue(f"{kind}_settings")
    read = settings_file.read_settings(file, ["devices.batch_size=6"])
    made = experiment_of(read)
    clients = computed(made.clients, packing=False)  # else samples lie end to end
    rng = torch.Generator().manual_seed(0)
    values = {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}
    plan, _ = draw_batches(clients, made.initial.devices.cursors, 6, 1)
    found, counts = [], []
    for once in (10**9, 16, 0):
        monkeypatch.setitem(fleets.PASS_TOKENS, "cpu", once)
        seen = []
        original = fleets.stacked_losses
        with monkeypatch.context() as patch:
            patch.setattr(fleets, "stacked_losses", lambda *given, o=original, s=seen: s.append(1) or o(*given))
            found.append(gradients(clients, values, plan, 0.0, 4))
        counts.append(len(seen))
    assert counts[0] < counts[2], "there was something to cut"
    for other, loss in found[1:]:
        torch.testing.assert_close(loss, found[0][1], rtol=1e-5, atol=1e-6)
        for scope, rows in other.items():
            if rows.numel():
                assert (rows - found[0][0][scope]).norm() <= 1e-5 * found[0][0][scope].norm()
