"""Change within a block: its laws against drawn channels and the waveform, the largest blocks, and the claims."""

import math
from dataclasses import replace

import pytest
import torch

from airpfed.air.channels.fading import FadingParameters, exponential_profile, frequencies, response, scattered_taps
from airpfed.air.coherence import (
    BlockChange,
    Scattering,
    doppler_hz,
    frequency_correlation,
    largest_block,
    scattering,
    time_correlation,
)
from airpfed.air.correlation import claimed_mse
from airpfed.air.designs import DESIGNS
from airpfed.air.impairments import Impairments, constant_distortion
from airpfed.air.network import Estimation
from airpfed.air.problem import TransceiverProblem
from airpfed.air.waveform import mismatch
from airpfed.core.rng import stream
from support.networks import flat
from support.uplinks import alike, drawn, everyone, excess, large_air, send, z_of

PROFILE = exponential_profile(50e-9, 20e6, 73)
"""Taps of 50 ns rms at 20 MHz."""


def test_the_correlation_over_time_is_the_mean_over_the_directions_of_arrival():
    """J0(2 pi f_D t) = the mean of cos(2 pi f_D t cos theta), theta uniform; 3 km/h at 3.5 GHz are 9.73 Hz."""
    doppler = doppler_hz(3 / 3.6, 3.5e9)
    assert doppler == pytest.approx(9.729, abs=1e-3)
    times = torch.tensor([0.0, 1e-3, 5e-3, 0.1], dtype=torch.float64)
    theta = (torch.arange(4096, dtype=torch.float64) + 0.5) * math.pi / 4096
    expected = (2 * math.pi * doppler * times[:, None] * theta.cos()).cos().mean(1)
    torch.testing.assert_close(time_correlation(doppler, times), expected, rtol=0, atol=1e-6)
    assert float(time_correlation(doppler, torch.tensor(5e-3))) == pytest.approx(0.97679, abs=1e-4)


def test_a_long_exponential_profile_has_the_closed_form():
    """|1 / (1 + 2 pi j f tau)|; 300 ns of taps 1 ns apart are a continuous profile."""
    profile, tau = exponential_profile(300e-9, 1e9, 10_000), 300.0
    f = torch.tensor([0.0, 1e-4, 5e-4, 2e-3], dtype=torch.float64)
    expected = 1 / (1 + (2 * math.pi * f * tau).square()).sqrt()
    torch.testing.assert_close(frequency_correlation(profile, f), expected, rtol=3e-3, atol=0)


def moving_block(draws: int, doppler: float, width: int, symbols: int, subcarriers: int) -> torch.Tensor:
    """Channels of unit power over a block and its centre, (draws, symbols, width + 1), drawn from the taps' statistics.

    Each tap is a Gaussian process with Clarke's correlation over the symbols and the centre.
    """
    times = torch.cat([torch.arange(symbols) - (symbols - 1) / 2, torch.zeros(1)]).double()
    covariance = time_correlation(doppler, times[:, None] - times)
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()).to(torch.complex128)
    normal = torch.randn(len(PROFILE), len(times), draws, dtype=torch.complex128, generator=stream(2, "taps"))
    taps = (root @ normal) * PROFILE.sqrt()[:, None, None]
    offset = torch.cat([torch.arange(width) - (width - 1) / 2, torch.zeros(1)]).double() / subcarriers
    return response(taps, offset).permute(2, 1, 0)


def test_a_block_changes_by_its_cost():
    """E|h(u) - h|^2 of drawn channels, turned back by the known phase; the error apart from r h is uncorrelated."""
    width, symbols, draws, doppler = 40, 30, 3000, 0.01
    scattered = Scattering(PROFILE, doppler, 1024)
    h = moving_block(draws, doppler, width, symbols, 1024)
    inside, centre = h[:, :symbols, :width], h[:, symbols, width, None, None]
    offset = (torch.arange(width) - (width - 1) / 2).double() / 1024
    lags = torch.arange(len(PROFILE), dtype=torch.float64)
    phase = (PROFILE * torch.polar(torch.ones(()).double(), -2 * math.pi * offset[:, None] * lags)).sum(1).angle()
    turned = inside * torch.polar(torch.ones(()).double(), -phase)
    each = (turned - centre).abs().square().mean((1, 2))
    cost = scattered.cost(width, symbols)
    assert 0.01 < cost < 0.2
    assert abs(float(each.mean()) - cost) < 5 * float(each.std()) / draws**0.5 < 0.15 * cost
    change = BlockChange(scattered, width, width * symbols, width * symbols)
    use = torch.arange(width * symbols)
    r = change.correlation(use // width, use % width).reshape(symbols, width)
    error = turned - r * centre
    power = (1 - r.square()).mean()
    found = error.abs().square().mean((1, 2))
    assert abs(float(found.mean() / power) - 1) < 5 * float(found.std() / power) / draws**0.5
    cross = (error * centre.conj()).mean((1, 2))
    assert abs(complex(cross.mean())) < 5 * float(cross.abs().std()) / draws**0.5
    assert change.mean == pytest.approx(float(r.mean())) and change.innovation == pytest.approx(
        float(power / r.square().mean()), rel=1e-6
    )


def test_the_waveform_confirms_the_claim():
    """A group of subcarriers on the waveform's channels: `mismatch` and the error against the weights, within 2 %."""
    subcarriers, groups, devices, antennas, draws = 64, 8, 3, 4, 1200
    profile = exponential_profile(60e-9, 20e6, 5)
    gain = torch.tensor([[1.0, 0.5, 2.0]], dtype=torch.float64)
    parameters: FadingParameters = replace(
        flat(gain, antennas).channel_model.args[0], profile=profile, centres=frequencies(groups, subcarriers)
    )
    width = subcarriers // groups
    change = BlockChange(Scattering(profile, 0.0, subcarriers), width, width, width)
    offset = (torch.arange(width) - (width - 1) / 2).double() / subcarriers
    lags = torch.arange(len(profile), dtype=torch.float64)
    rho = (profile * torch.polar(torch.ones(()).double(), -2 * math.pi * offset[:, None] * lags)).sum(1)
    r = change.correlation(torch.zeros(width), torch.arange(width))
    torch.testing.assert_close(r, rho.abs())
    taps = scattered_taps(parameters, 3, 1, range(draws))
    coarse = torch.cat([response(each, frequencies(groups, subcarriers)) for each in taps])
    fine = torch.cat([response(each, frequencies(subcarriers, subcarriers)) for each in taps])
    fine = fine.reshape(draws * groups, width, antennas, devices)
    problem = TransceiverProblem.from_channels(change.mean * coarse, noise=0.1)
    made = DESIGNS["uniform_forcing"].solve(problem)
    m, b = made.receiver, made.transmit_factors

    def summed(h: torch.Tensor) -> torch.Tensor:
        """The gains of each device at each subcarrier of a block, (B, width, K)."""
        return (m.mH[:, None] @ h * b[:, None, None])[:, :, 0]

    neglected = (summed(fine) - summed(coarse[:, None])).abs().square().sum(-1).mean(1)
    first = mismatch(made.split([groups] * draws)[0], taps[0], subcarriers)
    torch.testing.assert_close(neglected[:groups, None], first)
    a = summed(coarse[:, None])[:, 0].abs().square().sum(-1)
    innovation = (gain[0] * b.abs().square()).sum(-1) * m.abs().square().sum(1)[:, 0]
    expected_neglected = (rho - 1).abs().square().mean() * a + (1 - r.square()).mean() * innovation

    turned = fine * torch.polar(torch.ones(()).double(), -rho.angle())[:, None, None]
    error = (summed(turned) - problem.weights).abs().square().sum(-1).mean(1)
    square = float(r.square().mean()) / change.mean**2
    distortion = replace(constant_distortion(1.0, square, square), spread=torch.full((1, 1), square - 1).double())
    noiseless = replace(problem, noise=0.0, csi_variance=change.mean**2 * change.innovation * gain[0])
    claim = claimed_mse(noiseless, made, torch.eye(devices).double(), torch.ones(devices).double(), distortion)[:, 0]
    for found, expected in ((neglected, expected_neglected), (error, claim)):
        spread = float((found - expected).reshape(draws, groups).mean(1).std()) / draws**0.5 / float(expected.mean())
        assert abs(float(found.mean() / expected.mean()) - 1) < 0.02 and spread < 0.01, (found.mean(), spread)


@pytest.mark.parametrize("doppler", [0.0, 0.003, 0.05])
@pytest.mark.parametrize("error", [0.003, 0.05])
def test_the_derived_block_is_the_largest_that_costs_little_enough(doppler, error):
    scattered = Scattering(exponential_profile(100e-9, 20e6, 4), doppler, 48)
    groups, symbols = largest_block(scattered, error)
    uses = 48 // groups * symbols
    assert scattered.cost(48 // groups, symbols) <= error * (1 + 1e-9)
    if doppler:
        for g in (n for n in range(1, 49) if 48 % n == 0):
            longer = uses // (48 // g) + 1  # the fewest symbols of this grouping that make a larger block
            assert scattered.cost(48 // g, longer) > error


def test_the_honest_default_is_a_group_of_32_subcarriers_for_6_milliseconds():
    """3 km/h, 50 ns, 3.5 GHz, 20 MHz: the block within 1 %; a fast device has short blocks, not narrow ones."""
    symbol_s = 1024 * (15 / 14) / 20e6
    slow, fast = (scattering(50e-9, v / 3.6, 3.5e9, 20e6, 1024, symbol_s) for v in (3, 30))
    groups, symbols = largest_block(slow, 0.01)
    assert (groups, symbols) == (32, 123) and slow.cost(32, 123) <= 0.01 < slow.cost(32, 124)
    assert largest_block(fast, 0.01)[0] == 32 and 11 <= largest_block(fast, 0.01)[1] <= 13


def changing(design: str, packing: str, pilots: int | None = 2, **changes):
    """Blocks of four symbols on eight subcarriers that change by 7 per cent; little noise."""
    length = 32
    link = large_air(design, d=512, subcarriers=64, subcarrier_groups=8, packing=packing, **changes)
    data = length - 5 * (pilots or 0)
    change = BlockChange(Scattering(exponential_profile(300e-9, 20e6, 4), 0.02, 64), 8, length, data)
    assert 0.02 < change.scattered.cost(8, 4) < 0.1
    return replace(link, noise=link.noise / 30, coherence_symbols=data, change=change, estimation=Estimation(pilots))


@pytest.mark.parametrize(
    ("design", "packing", "impairments", "of"),
    [
        ("uniform_forcing", "iq", Impairments(), alike),
        ("uniform_forcing", "real", Impairments(), alike),
        ("mmse", "iq", Impairments(phase_rad=0.05, carrier_offset_hz=300.0, timing_drift=0.05), drawn),
    ],
)
def test_claims_hold_where_channels_change_within_a_block(design, packing, impairments, of):
    link = changing(design, packing, impairments=impairments, correlation=0.7 if of is alike else 0.0)
    count = 24 if design == "uniform_forcing" else 8
    rounds = [send(link, t, *of(link, t), everyone(link)) for t in range(1, count + 1)]
    for expected in (lambda e: e.claimed, lambda e: e.claimed_genie):
        assert abs(z_of(excess(rounds, expected))) < 5
    constant = replace(link, change=None)
    blind = [send(constant, t, *of(link, t), everyone(link)) for t in range(1, 3)]
    assert rounds[0].pi_claimed > 1.15 * blind[0].pi_claimed, "the change should matter"


def test_the_change_of_a_common_gain_is_claimed_coherently():
    """Without innovation and noise: r(u) alone turns w into w r / E r, a share Var(r) of the power of the sum."""
    link = replace(changing("uniform_forcing", "iq", None, correlation=0.7), noise=0.0)
    assert link.change is not None
    still = replace(link, network=replace(link.network, scattered=torch.zeros_like(link.network.scattered)))
    rounds = [send(still, t, *alike(link, t), everyone(link)) for t in range(1, 13)]
    assert abs(z_of(excess(rounds, lambda e: e.claimed_genie))) < 5
    assert abs(z_of(excess(rounds, lambda e: e.claimed))) < 5
    assert rounds[0].pi > 1e-6
