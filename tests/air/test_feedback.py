"""Rounded transmit factors: the error's law, the power limit, and claims that know them."""

import math
from dataclasses import replace

import pytest
import torch

from airpfed.air.feedback import HEADROOM_DB, RANGE_DB, round_factors
from airpfed.core.rng import stream
from support.uplinks import drawn, everyone, excess, gradients, large_air, make_air, send, z_of

LIMIT = torch.tensor([0.1, 0.02], dtype=torch.float64)


def factors(draws: int = 40_000) -> torch.Tensor:
    """Factors of uniform phase, and of a power of all levels."""
    uniform = torch.rand(2, draws, 2, dtype=torch.float64, generator=stream(1, "factors"))
    return torch.polar((LIMIT * 10 ** (-RANGE_DB / 10 * uniform[0])).sqrt(), 2 * math.pi * uniform[1])


@pytest.mark.parametrize("bits", [8, 11, 32])
def test_phases_are_rounded_to_the_nearest_and_magnitudes_down(bits):
    """E e^{j error} = sin(a)/a with a = pi / 2^p for uniform phases; a magnitude loses less than a step."""
    b = factors()
    rounded = round_factors(b, LIMIT, bits)
    p, m = bits - bits // 2, bits // 2
    error = (rounded / b).angle()
    a = math.pi / 2**p
    assert error.abs().max() <= a * (1 + 1e-9)
    law = math.sin(a) / a
    spread = math.sqrt(max((1 - law**2) / b.numel(), 1e-24))
    assert abs(float(error.cos().mean()) - law) < 5 * spread
    if bits == 8:
        assert abs(float(error.cos().mean()) - math.sin(a / 2) / (a / 2)) > 5 * spread, "a bit more should be seen"
    step = 10 ** (-RANGE_DB / (2**m - 2) / 20)
    ratio = rounded.abs() / b.abs()
    assert ratio.max() <= 1 + 1e-12 and ratio.min() >= step * (1 - 1e-9)
    assert ratio.min() < step**0.99 and ratio.max() > step**0.01, "the whole step is used"
    expected = (1 - step) / -math.log(step)  # the mean of a factor that is uniform in decibels
    assert abs(float(ratio.mean()) - expected) < 5 * max(float(ratio.std()), 1e-9) / b.numel() ** 0.5
    assert len(torch.unique((rounded.abs() / LIMIT.sqrt()).mul(1e9).round())) <= 2**m - 1


def test_a_code_stays_what_it_is_and_what_is_too_weak_is_silent():
    once = round_factors(factors(500), LIMIT, 8)
    torch.testing.assert_close(round_factors(once, LIMIT, 8), once)
    full = round_factors(LIMIT.sqrt().to(torch.complex128)[None], LIMIT, 16)
    torch.testing.assert_close(full.abs()[0], LIMIT.sqrt())
    weak = torch.tensor([[0.0, 10 ** (-RANGE_DB / 20 - 0.01) * 0.02**0.5]], dtype=torch.complex128)
    assert (round_factors(weak, LIMIT, 16) == 0).all()


def test_a_device_that_saved_energy_may_exceed_the_limit_of_a_slot():
    b = 2 * LIMIT.sqrt().to(torch.complex128)[None]
    rounded = round_factors(b, LIMIT, 16, HEADROOM_DB)
    assert (rounded.abs() <= b.abs()).all() and (rounded.abs() > 0.95 * b.abs()).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("design", ["uniform_forcing", "mmse"])
def test_claims_know_the_rounded_factors(design, bits):
    """Measured over claimed at so little noise that rounding is most of the error."""
    link = large_air(design, d=400, feedback_bits=bits, coherence_symbols=40)
    link = replace(link, noise=link.noise / 300)
    rounds = [send(link, t, *drawn(link, t), everyone(link)) for t in range(1, 31)]
    assert abs(z_of(excess(rounds, lambda e: e.claimed))) < 5
    exact = send(replace(link, feedback_bits=None), 1, *drawn(link, 1), everyone(link))
    assert rounds[0].pi > (20 if bits == 8 else 1.05) * exact.pi


def test_many_bits_are_exact_factors_and_are_charged():
    link = make_air("uniform_forcing")
    exact, fine, few = (
        send(replace(link, feedback_bits=bits), 1, *gradients(link), everyone(link)) for bits in (None, 64, 8)
    )
    torch.testing.assert_close(fine.shared, exact.shared, rtol=1e-5, atol=1e-6)
    assert exact.ledger.feedback_bits == fine.ledger.feedback_bits / 2 == few.ledger.feedback_bits * 4 > 0
