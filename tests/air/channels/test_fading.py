"""Fading: its power, the split into estimate and error, and a stream for every block."""

import math
from dataclasses import replace

import pytest
import torch

from airpfed.air.channels.fading import (
    FadingParameters,
    exponential_profile,
    fading_channels,
    frequencies,
    line_of_sight,
    rayleigh,
)
from airpfed.air.network import estimate_channels
from airpfed.core.rng import stream
from support.networks import flat

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
    known, true = estimate_channels(flat(GAIN, 4), csi_error, 3, 1, range(3000))
    for part, share in ((known, 1 - csi_error), (true - known, csi_error), (true, 1.0)):
        power = part.abs().square().mean(1) / GAIN / share
        assert ((power.mean(0) - 1) / (1 / 4 / 3000) ** 0.5).abs().max() < 5
    correlation = (known * (true - known).conj()).mean((0, 1)).abs() / GAIN / (csi_error * (1 - csi_error)) ** 0.5
    assert (correlation * (4 * 3000) ** 0.5).max() < 5


def test_without_csi_error_the_estimate_is_the_channel():
    known, true = estimate_channels(flat(GAIN, 4), 0.0, 3, 1, range(3))
    torch.testing.assert_close(known, true, rtol=0, atol=0)


def test_a_block_is_the_same_whichever_slot_asks():
    first = estimate_channels(flat(GAIN, 4), 0.1, 3, 7, range(0, 5))
    second = estimate_channels(flat(GAIN, 4), 0.1, 3, 7, range(3, 8))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a[3:], b[:2], rtol=0, atol=0)


@pytest.mark.parametrize(("seed", "t", "block"), [(4, 7, 0), (3, 8, 0), (3, 7, 1)])
def test_seed_round_and_block_each_change_the_channel(seed, t, block):
    one, _ = estimate_channels(flat(GAIN, 4), 0.0, 3, 7, range(1))
    other, _ = estimate_channels(flat(GAIN, 4), 0.0, seed, t, range(block, block + 1))
    assert (one != other).all()


def parameters(stations: int = 1, antennas: int = 4, **changes) -> FadingParameters:
    return replace(flat(GAIN.expand(stations, -1), antennas).channel_model.args[0], **changes)


@pytest.mark.parametrize("k_db", [-10.0, 3.0, 20.0])
def test_rician_has_its_k_factor_and_its_power(k_db):
    """The mean over blocks is the line of sight, K times the rest, and E||h||^2 = M gain."""
    k, draws = 10 ** (k_db / 10), 4000
    apart = torch.tensor([[[30.0, 40.0], [-100.0, 10.0]]], dtype=torch.float64)
    los = line_of_sight(GAIN[None], apart, 4, k, 3.5e9)
    h, known = fading_channels(parameters(gain=GAIN[None] / (1 + k), los=los), 2, 1, range(draws))
    torch.testing.assert_close(known[0], los)
    rest = (h - los).abs().square().mean(1) / GAIN * (1 + k)
    assert ((rest.mean(0) - 1) / (1 / 4 / draws) ** 0.5).abs().max() < 5
    torch.testing.assert_close(los.abs().square().mean(0) / GAIN, torch.full((2,), k / (1 + k)).double())
    phase = (h.mean(0) - los).abs() / (GAIN / (1 + k) / draws).sqrt()
    assert phase.max() < 5


def test_a_line_of_sight_comes_from_where_the_device_is():
    """Broadside: all antennas alike; 30 degrees off it: half a turn from one antenna to the next but one."""
    apart = torch.tensor([[[50.0, 0.0], [50.0 * 3**0.5, 50.0]]], dtype=torch.float64)
    h = line_of_sight(torch.ones(1, 2, dtype=torch.float64), apart, 4, 1e9, 3.5e9)
    torch.testing.assert_close(h[:, 0], h[:1, 0].expand(4))
    torch.testing.assert_close(h[2, 1] / h[0, 1], torch.tensor(-1.0, dtype=torch.complex128))


@pytest.mark.parametrize("delay", [0.0, 30e-9, 300e-9])
def test_an_exponential_profile_has_its_delay_spread(delay):
    p = exponential_profile(delay, 20e6, 73)
    lags = torch.arange(len(p), dtype=torch.float64) / 20e6
    spread = float((p @ lags.square() - (p @ lags) ** 2).sqrt())
    assert float(p.sum()) == pytest.approx(1)
    assert spread == pytest.approx(delay, rel=0.12, abs=1e-12)  # 30 ns are less than a sample


def test_taps_beyond_the_cyclic_prefix_are_cut():
    assert len(exponential_profile(3e-6, 20e6, 73)) == 73


def test_subcarrier_groups_fade_with_the_profile_s_correlation():
    """E h(f) conj h(f') = sum_l p_l exp(-2 pi j (f - f') l); each group keeps the mean power."""
    profile, centres, draws = exponential_profile(100e-9, 20e6, 73), frequencies(8, 1024), 3000
    h, _ = fading_channels(parameters(profile=profile, centres=centres), 1, 1, range(8 * draws))
    h = (h / GAIN.sqrt()).reshape(draws, 8, -1)
    for other in (0, 1, 4):
        found = (h[:, 0] * h[:, other].conj()).mean(0)
        lags = torch.arange(len(profile), dtype=torch.float64)
        turn = torch.polar(torch.ones_like(lags), -2 * math.pi * (centres[0] - centres[other]) * lags)
        assert ((found - (profile * turn).sum()).abs() * draws**0.5).max() < 5.5


def test_groups_and_times_are_blocks_in_order():
    """Block i is group i mod G at time i // G, whichever range is asked for."""
    one = parameters(profile=exponential_profile(100e-9, 20e6, 73), centres=frequencies(4, 64), time_correlation=0.9)
    every, _ = fading_channels(one, 1, 5, range(20))
    for blocks in (range(3, 9), range(8, 12), range(19, 20)):
        torch.testing.assert_close(
            fading_channels(one, 1, 5, blocks)[0], every[blocks.start : blocks.stop], rtol=0, atol=0
        )


@pytest.mark.parametrize("r", [0.0, 0.5, 0.99])
def test_gauss_markov_correlates_neighbours_and_keeps_the_power(r):
    h, _ = fading_channels(parameters(antennas=40, time_correlation=r), 1, 1, range(400))
    h = h / GAIN.sqrt()
    for lag in (1, 3):
        products = (h[lag:] * h[:-lag].conj()).real.mean(0).flatten()
        assert abs(float(products.mean()) - r**lag) < 5 * float(products.std()) / len(products) ** 0.5
    powers = h.abs().square().mean(0).flatten()
    assert abs(float(powers.mean()) - 1) < 5 * float(powers.std()) / len(powers) ** 0.5


@pytest.mark.parametrize("r", [0.0, 0.8, 1.0])
def test_rounds_correlate_at_their_starts(r):
    one = parameters(antennas=64, round_correlation=r)
    first = torch.stack([fading_channels(one, 1, t, range(1))[0][0] for t in range(40, 100)]) / GAIN.sqrt()
    products = (first[1:] * first[:-1].conj()).real.mean(0).flatten()
    assert abs(float(products.mean()) - r) < 5 * float(products.std()) / len(products) ** 0.5 + 1e-12
    later = fading_channels(one, 1, 40, range(3))[0][2] / GAIN.sqrt()
    assert float((first[0] - later).abs().mean()) > 0.5  # blocks of a round are independent all the same


def test_a_static_channel_stands_still():
    one = parameters(time_correlation=1.0, round_correlation=1.0)
    torch.testing.assert_close(
        fading_channels(one, 1, 7, range(5))[0], fading_channels(one, 1, 1, range(1))[0].expand(5, -1, -1)
    )


def test_a_round_is_the_same_whatever_was_asked_before():
    """A resumed run starts in the middle: the process is a function of the round alone."""
    one = parameters(time_correlation=0.9, round_correlation=0.95)
    direct = fading_channels(one, 1, 600, range(3))[0]
    for t in (598, 599):
        fading_channels(one, 1, t, range(4))
    torch.testing.assert_close(fading_channels(one, 1, 600, range(3))[0], direct, rtol=0, atol=0)


def test_stations_are_independent_and_have_their_own_gains():
    gain = torch.stack([GAIN, 10 * GAIN.flip(0)])
    h, _ = flat(gain, 3).channel_model(1, 1, range(4000))
    power = h.reshape(4000, 2, 3, 2).abs().square().mean(2) / gain
    assert ((power.mean(0) - 1) * (3 * 4000) ** 0.5).abs().max() < 5
    cross = (h[:, 0] * h[:, 3].conj()).mean(0).abs() / (gain[0] * gain[1]).sqrt()
    assert (cross * 4000**0.5).max() < 5


def test_the_line_of_sight_needs_no_estimation():
    """CSI error is a share of the scattered part only."""
    los = torch.full((4, 2), 1e-4, dtype=torch.complex128)
    network = flat(GAIN, 4, los=los)
    known, true = estimate_channels(network, 0.3, 3, 1, range(3000))
    error = (true - known).abs().square().mean(1) / GAIN
    assert ((error.mean(0) - 0.3) / (0.3**2 / 4 / 3000) ** 0.5).abs().max() < 5
    assert ((known.mean(0) - los).abs() / (0.7 * GAIN / 3000).sqrt()).max() < 5
