"""Claimed, measured, bias and variance of a round against each other: as averages, within their standard errors."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from test_uplink import everyone, make_air
from torch import Tensor

from airpfed.air import uplink
from airpfed.air.plan import Air
from airpfed.air.uplink import send
from airpfed.record import SlotError
from airpfed.streams import stream

DESIGNS = [("uniform_forcing", False), ("mmse", False), ("mmse", True), ("channel_inversion", False), ("naive_ao", False)]
WAYS = list(product(("tdma", "concurrent"), ("iq", "real"), ("per_device", "common")))
LONG = 600
"""Entries of every vector: even, and the same for all tasks."""


def errors(air: Air, rounds: int, d: int = LONG) -> list[list[SlotError]]:
    """Slot errors of rounds with gradients that are independent normal, slot by slot."""
    groups = ((0, d // 2), (d // 2, d))
    lengths = air.lengths if max(air.lengths) == d else (d, d)
    air = replace(air, shared_groups=groups, personal_groups=groups, lengths=lengths)
    size = torch.linspace(0.5, 2.0, 5)[:, None]
    own = torch.arange(d) < torch.tensor(lengths)[air.task_of][:, None]
    found = []
    for t in range(1, rounds + 1):
        rng = stream(5, "gradients", t)
        shared, personal = (size * torch.randn(5, d, generator=rng) for _ in range(2))
        got = send(air, t, shared, personal * own, everyone(air))
        assert got.mse.s is not None
        found.append([got.mse.s, *got.mse.p.values()])
    return [list(slot) for slot in zip(*found, strict=True)]


def z_of(values: Tensor) -> float:
    """A mean in units of its standard error."""
    return float(values.mean() / (values.std() / len(values) ** 0.5).clamp_min(1e-300))


def excess(slot: list[SlotError], expected: Callable[[SlotError], float]) -> Tensor:
    """measured / expected - 1, round by round: mean 0 if `expected` is what it says."""
    return torch.tensor([error.measured / expected(error) - 1 for error in slot], dtype=torch.float64)


def noisy(air: Air, snr_db: float) -> Air:
    return replace(air, noise=0.1 * float(air.gain[0]) / 10 ** (snr_db / 10), coherence_symbols=75)


@pytest.mark.parametrize(("access", "packing", "normalizer"), WAYS)
@pytest.mark.parametrize(("design", "debias"), DESIGNS)
@pytest.mark.parametrize("csi_error", [0.0, 0.05])
def test_measured_meets_claimed_for_independent_symbols(design, debias, access, packing, normalizer, csi_error):
    air = noisy(make_air(design, debias, access=access, packing=packing, normalizer=normalizer, csi_error=csi_error), 10)
    for slot in errors(air, 12):
        assert abs(z_of(excess(slot, lambda error: error.claimed))) < 5
        assert abs(z_of(excess(slot, lambda error: error.bias + error.variance))) < 5
