"""Length buckets: a partition of the columns at no more cost than one, and the same gradients."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airpfed import build, reading
from airpfed.devices import fleet as fleets
from airpfed.devices.buckets import buckets
from airpfed.devices.fleet import batches, gradients
from airpfed.rounds.state import vectors


def cost(lengths: list[list[int]], cuts: list[tuple[int, int]], once: int) -> int:
    return sum(len(lengths) * (b - a) * max(row[b - 1] for row in lengths) + once for a, b in cuts)


@settings(deadline=None)
@given(data=st.data(), devices=st.integers(1, 4), width=st.integers(1, 6), once=st.integers(0, 60))
def test_the_cheapest_cuts(data, devices, width, once):
    row = st.lists(st.integers(1, 40), min_size=width, max_size=width).map(sorted)
    lengths = data.draw(st.lists(row, min_size=devices, max_size=devices))
    found = buckets(lengths, once)
    assert found[0][0] == 0 and found[-1][1] == width
    assert all(a[1] == b[0] for a, b in pairwise(found)) and all(a < b for a, b in found)
    ways = []
    for mask in range(1 << (width - 1)):
        edges = [0, *[j + 1 for j in range(width - 1) if mask >> j & 1], width]
        ways.append(cost(lengths, list(pairwise(edges)), once))
    assert cost(lengths, found, once) == min(ways)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_gradients_do_not_depend_on_the_buckets(kind, request, monkeypatch):
    file: Path = request.getfixturevalue(f"{kind}_settings")
    read = reading.read(file, ["devices.batch_size=6"])
    made = build.experiment(read, build.load_tasks(read))
    rng = torch.Generator().manual_seed(0)
    values = {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}
    plan, _ = batches(made.fleet, made.initial.devices.cursors, 6, 1)
    found, counts = [], []
    for once in (10**9, 16, 0):
        monkeypatch.setitem(fleets.PASS_TOKENS, "cpu", once)
        seen = []
        original = fleets.stacked_loss
        with monkeypatch.context() as patch:
            patch.setattr(fleets, "stacked_loss", lambda *given, o=original, s=seen: s.append(1) or o(*given))
            found.append(gradients(made.fleet, values, plan, 0.0, 4))
        counts.append(len(seen))
    assert counts[0] < counts[2], "there was something to cut"
    for other, loss in found[1:]:
        torch.testing.assert_close(loss, found[0][1], rtol=1e-5, atol=1e-6)
        for scope, rows in other.items():
            if rows.numel():
                assert (rows - found[0][0][scope]).norm() <= 1e-5 * found[0][0][scope].norm()
