"""Channel knowledge from pilots: its error, its age, what claims make of it, and what it costs."""

import math
from dataclasses import replace

import pytest
import torch

import airpfed as ap
from airpfed.air import resources
from airpfed.air.network import Estimation, aged_error, estimate_channels, pilot_error
from airpfed.core.rng import stream
from support.networks import flat
from support.uplinks import as_scheme, drawn, everyone, excess, gradients, large_air, make_air, send, z_of

GAIN = torch.tensor([[2e-10, 1e-10, 4e-11, 1e-11, 3e-10]], dtype=torch.float64)
EDGES = torch.cat([GAIN, GAIN.flip(1)])


def normals(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=stream(seed, "normals"))


def share_missed(h: torch.Tensor, estimate: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """The error's power of B blocks of antennas, over the gain: mean 1 / 1 with a deviation of 1 / sqrt(draws)."""
    return (h - estimate).abs().square().mean(0) / gain


@pytest.mark.parametrize("contamination", [0.0, 0.1])
@pytest.mark.parametrize("pilots", [1, 7])
def test_the_error_of_pilots_is_that_of_the_best_linear_estimate_of_them(pilots, contamination):
    """n noisy observations of channel plus foreign channel; the estimate of least error by regression on their mean."""
    gain, power, noise, draws = 2e-10, 0.1, 1.5e-11, 200_000
    h = gain**0.5 * normals(draws)
    foreign = (contamination * gain) ** 0.5 * normals(draws, seed=2)
    received = power**0.5 * (h + foreign) + (noise / pilots) ** 0.5 * normals(draws, seed=3)
    estimate = (received.conj() * h).mean() / received.abs().square().mean() * received
    found = float((h - estimate).abs().square().mean() / gain)
    expected = float(
        pilot_error(torch.tensor([[gain]]).double(), torch.tensor([power]).double(), noise, pilots, contamination)
    )
    assert abs(found / expected - 1) < 5 / draws**0.5 < 0.02
    if not contamination:
        assert expected == pytest.approx(1 / (1 + pilots * power * gain / noise))


def test_limits_of_the_error_of_pilots():
    """Nothing arrives: all is missed. No noise: nothing is, but for contamination, which more pilots do not mend."""
    gain, power = torch.tensor([[0.0, 1e-10]]).double(), torch.tensor([0.1, 0.1]).double()
    assert pilot_error(gain, power, 1e-12, 3).tolist()[0][0] == 1
    assert pilot_error(gain, power, 0.0, 3).tolist() == [[1.0, 0.0]]
    assert float(pilot_error(gain, power, 1e-12, 10**9, 0.25)[0, 1]) == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize("age", [1.0, 0.8])
@pytest.mark.parametrize("gain", [GAIN, EDGES], ids=["one station", "two"])
def test_estimates_have_each_device_s_error_at_each_station(gain, age):
    link = make_air(network=flat(gain, 3), noise=1e-11, estimation=Estimation(2, age=age))
    draws = 1500
    h_est, h = estimate_channels(link.network, link.csi_share, 3, 1, range(draws))
    c = pilot_error(gain, link.power_limit, link.noise, 2)
    expected = (1 - age**2 * (1 - c)).repeat_interleave(3, 0)
    wide = gain.repeat_interleave(3, 0)
    assert ((share_missed(h, h_est, wide) / expected - 1) * draws**0.5).abs().max() < 5
    assert expected.std() > 0.05, "devices should differ"
    cross = ((h - h_est) * h_est.conj()).mean(0).abs() / wide / (expected * (1 - expected)).sqrt()
    assert (cross * draws**0.5).max() < 5, "the error of an MMSE estimate is uncorrelated with it"
    torch.testing.assert_close(link.csi_variance.expand(wide.shape), expected * wide)


def test_an_old_estimate_is_csi_error_exactly():
    """Known channels of age r are `csi_error` = 1 - r^2: the same estimates, variances, claims and sums."""
    r = 0.9
    old = make_air(estimation=Estimation(age=r))
    wrong = make_air(csi_error=1 - r**2)
    for a, b in zip(old.channels(2, 4), wrong.channels(2, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    found, expected = (send(link, 2, *gradients(link), everyone(link)) for link in (old, wrong))
    torch.testing.assert_close(found.shared, expected.shared, rtol=1e-5, atol=1e-7)
    assert found.pi_claimed == pytest.approx(expected.pi_claimed, rel=1e-9)
    assert found.mse.s.claimed == pytest.approx(expected.mse.s.claimed, rel=1e-9)


def test_an_old_estimate_is_what_a_moving_channel_leaves():
    """A channel that is estimated, then moves: r h + sqrt(1 - r^2) w, of which r times the estimate is the mean."""
    r, c, draws = 0.7, 0.2, 200_000
    then, w, error = (normals(draws, seed=n) for n in (1, 2, 3))
    estimate = (1 - c) * (then + (c / (1 - c)) ** 0.5 * error)
    now = r * then + (1 - r**2) ** 0.5 * w
    slope = (estimate.conj() * now).mean() / estimate.abs().square().mean()
    assert abs(complex(slope) - r) < 5 / draws**0.5
    found = float((now - r * estimate).abs().square().mean())
    assert abs(found / aged_error(c, r) - 1) < 5 / draws**0.5


@pytest.mark.parametrize(("topology", "packing"), [("single_cell", "iq"), ("two_hop", "real")])
def test_claims_hold_with_each_device_s_own_error(topology, packing):
    """Measured over claimed, rounds of independent channels, estimates and gradients."""
    gain = GAIN if topology == "single_cell" else EDGES
    link = large_air("uniform_forcing", d=400, network=flat(gain, 8), topology=topology, packing=packing)
    link = replace(link, estimation=Estimation(4, 0.01, 0.97), coherence_symbols=5)
    rounds = [send(link, t, *drawn(link, t), everyone(link)) for t in range(1, 31)]
    assert abs(z_of(excess(rounds, lambda e: e.claimed))) < 5
    assert abs(z_of(excess(rounds, lambda e: 1.15 * e.claimed))) > 5, "15 per cent should be seen"
    perfect = send(replace(link, estimation=Estimation()), 1, *drawn(link, 1), everyone(link))
    assert rounds[0].pi_claimed > 1.5 * perfect.pi_claimed


TABLE = {(10, "uniform_forcing"): {100: 0.5, 16: 2.7, 1: 12.1}, (-10, "uniform_forcing"): {100: 1.2, 16: 4.9, 1: 15.9}}
TABLE |= {(-20, "uniform_forcing"): {100: 4.8, 16: 11.5}, (-10, "mmse"): {100: 0.7, 1: 5.4}}
"""NMSE of s with so many pilots over that with known channels, dB, of 16 devices and 16 antennas: an independent
computation on other drops."""


@pytest.mark.parametrize(("snr_db", "design"), TABLE)
def test_pilots_cost_what_an_independent_computation_found(snr_db, design):
    def error(**pilots):
        values = []
        for seed in range(3):
            network = ap.single_cell(devices=[16], antennas=16, snr_db=snr_db, seed=seed, **pilots)
            problem = network.problem(blocks=12)
            values.append(10 * math.log10(float(ap.mse(problem, getattr(ap.designs, design)(problem)).mean())))
        return sum(values) / len(values)

    known = error()
    for pilots, decibels in TABLE[snr_db, design].items():
        assert error(pilots=pilots) - known == pytest.approx(decibels, abs=0.5), pilots


def test_pilots_are_charged_in_uses_and_joules():
    """n uses of each sender in each block, at its power limit, in symbols of their own."""
    known = make_air(power_limit=torch.full((5,), 0.1, dtype=torch.float64))
    link = replace(known, estimation=Estimation(6))
    design = known.design
    assert design is not None
    # Without energy for data, what is radiated is the pilots'.
    silence = replace(link, design=lambda problem: replace(design(problem), transmit_factors=0 * problem.h[:, 0]))
    before, after, pilots = (send(each, 1, *gradients(each), everyone(each)).ledger for each in (known, link, silence))
    assert after.pilot_uses == 6 * before.pilot_uses > 0
    second = resources.use_seconds(link.bandwidth_hz)
    assert 5 * pilots.joules_mean == pytest.approx(0.1 * second * after.pilot_uses)
    assert 5 * (after.joules_mean - before.joules_mean) < 1.0001 * 5 * pilots.joules_mean
    symbols = before.ofdm_symbols - -(-before.pilot_uses // link.subcarriers) + -(-after.pilot_uses // link.subcarriers)
    assert after.ofdm_symbols == symbols
    digital = [
        send(replace(each, **as_scheme("digital")), 1, *gradients(each), everyone(each)).ledger
        for each in (replace(known, csi_error=0.0), replace(known, estimation=Estimation(10**6)))
    ]
    assert digital[1].pilot_uses == 10**6 * digital[0].pilot_uses > 0, "the rival pays for what it knows"
    extra = digital[1].joules_mean - digital[0].joules_mean
    assert 5 * extra == pytest.approx(0.1 * second * digital[1].pilot_uses, rel=1e-3)
