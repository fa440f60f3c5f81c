"""Fading: its power, the split into estimate and error, and a stream for every block."""

import pytest
import torch

from airpfed.air.channel import estimated, rayleigh
from airpfed.streams import stream

GAIN = torch.tensor([1e-9, 4e-11], dtype=torch.float64)


def test_rayleigh_has_the_mean_power_of_all_antennas():
    """E||h_k||^2 = M gain_k; ||h_k||^2 / gain_k is Gamma(M, 1), so its mean over n draws has variance M / n."""
    antennas, draws = 6, 4000
    rng = stream(0, "fading")
    power = torch.stack([rayleigh(GAIN, antennas, rng).abs().square().sum(0) for _ in range(draws)]) / GAIN
    z = (power.mean(0) - antennas) / (antennas / draws) ** 0.5
    assert z.abs().max() < 5
    assert 0.02 * antennas / (antennas / draws) ** 0.5 > 3


def test_rayleigh_is_circular_and_antennas_are_independent():
    h = torch.stack([rayleigh(GAIN, 4, stream(1, "fading", i)) for i in range(4000)]) / GAIN.sqrt()
    pseudo = h.square().mean(0).abs() * (4000 / 2) ** 0.5
    pairs = (h[:, 0] * h[:, 1].conj()).mean(0).abs() * 4000**0.5
    assert pseudo.max() < 5 and pairs.max() < 5


@pytest.mark.parametrize("csi_error", [0.05, 0.4])
def test_the_estimate_misses_its_share_of_the_variance(csi_error):
    known, true = estimated(GAIN, 4, csi_error, 3, 1, range(3000))
    for part, share in ((known, 1 - csi_error), (true - known, csi_error), (true, 1.0)):
        power = part.abs().square().mean(1) / GAIN / share
        assert ((power.mean(0) - 1) / (1 / 4 / 3000) ** 0.5).abs().max() < 5
    correlation = (known * (true - known).conj()).mean((0, 1)).abs() / GAIN / (csi_error * (1 - csi_error)) ** 0.5
    assert (correlation * (4 * 3000) ** 0.5).max() < 5


def test_without_csi_error_the_estimate_is_the_channel():
    known, true = estimated(GAIN, 4, 0.0, 3, 1, range(3))
    torch.testing.assert_close(known, true, rtol=0, atol=0)


def test_a_block_is_the_same_whichever_slot_asks():
    first = estimated(GAIN, 4, 0.1, 3, 7, range(0, 5))
    second = estimated(GAIN, 4, 0.1, 3, 7, range(3, 8))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a[3:], b[:2], rtol=0, atol=0)


@pytest.mark.parametrize(("seed", "t", "block"), [(4, 7, 0), (3, 8, 0), (3, 7, 1)])
def test_seed_round_and_block_each_change_the_channel(seed, t, block):
    one, _ = estimated(GAIN, 4, 0.0, 3, 7, range(1))
    other, _ = estimated(GAIN, 4, 0.0, seed, t, range(block, block + 1))
    assert (one != other).all()
