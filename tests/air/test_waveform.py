"""OFDM against the block model: equal to rounding where each subcarrier is a block, as foretold where a group is."""

import math

import pytest
import torch
from torch import Tensor

from airpfed.air.channels.fading import exponential_profile, frequencies, response
from airpfed.air.designs.forcing import uniform_forcing
from airpfed.air.impairments import ADC_NOISE, Impairments, adc_share
from airpfed.air.problem import Transceiver, TransceiverProblem, gains
from airpfed.air.symbols import pack_symbols, unpack_symbols
from airpfed.air.waveform import demodulate, mismatch, modulate, off_grid, onto_grid, over_the_waveform
from airpfed.core.rng import stream
from support.uplinks import z_of

DEVICES, ANTENNAS, N, PREFIX = 5, 4, 64, 16


def taps_of(delay_samples: float, seed: int = 0) -> Tensor:
    profile = exponential_profile(delay_samples, 1.0, PREFIX)
    shape = (len(profile), ANTENNAS, DEVICES)
    return profile.sqrt()[:, None, None] * torch.randn(shape, dtype=torch.complex128, generator=stream(seed, "taps"))


def designed(taps: Tensor, groups: int, noise: float = 0.01) -> Transceiver:
    h = response(taps, frequencies(groups, N))
    one = torch.ones(DEVICES, dtype=torch.float64)
    return uniform_forcing(TransceiverProblem(h, one[None] / DEVICES, one[:1], one, noise, 0 * one))


def block_model(x: Tensor, made: Transceiver, taps: Tensor, z: Tensor) -> Tensor:
    """What the simulator computes: one channel a group, and the same noise after demodulation."""
    groups = len(made.transmit_factors)
    gain = gains(response(taps, frequencies(groups, N)), made)
    heard = gain @ x.reshape(DEVICES, groups, -1).transpose(0, 1)
    noise = off_grid(demodulate(z, PREFIX, N), groups).reshape(ANTENNAS, groups, -1).transpose(0, 1)
    return (heard + made.receiver.mH @ noise).transpose(0, 1).flatten(1)


def symbols(count: int, seed: int = 1) -> Tensor:
    return torch.randn(DEVICES, count * N, dtype=torch.complex128, generator=stream(seed, "symbols"))


def noise(count: int, power: float) -> Tensor:
    z = torch.randn(ANTENNAS, count * (N + PREFIX), dtype=torch.complex128, generator=stream(2, "noise"))
    return power**0.5 * z


def test_the_grid_and_the_modulation_are_undone():
    x = symbols(3)
    for groups in (1, 4, N):
        grid = onto_grid(x, groups, N)
        torch.testing.assert_close(off_grid(grid, groups), x, rtol=0, atol=0)
        torch.testing.assert_close(demodulate(modulate(grid, PREFIX), PREFIX, N), grid)


def test_a_block_s_uses_lie_on_its_group_s_subcarriers():
    x = torch.arange(2 * N, dtype=torch.float64).to(torch.complex128)[None]
    grid = onto_grid(x, 4, N)
    torch.testing.assert_close(grid[0, 1, 16:32].real, torch.arange(32 + 16, 32 + 32, dtype=torch.float64))


@pytest.mark.parametrize(("delay", "groups"), [(0.0, 1), (0.0, 4), (1.5, N)])
def test_the_waveform_gives_the_block_model_s_gradient(delay, groups):
    """Flat, or every subcarrier a block of its own: the same received entries to rounding, noise and all."""
    taps, x, z = taps_of(delay), symbols(3), noise(3, 0.01)
    made = designed(taps, groups)
    got, expected = over_the_waveform(x, made, taps, z, N), block_model(x, made, taps, z)
    torch.testing.assert_close(
        unpack_symbols(got, "iq", 6 * N), unpack_symbols(expected, "iq", 6 * N), rtol=1e-10, atol=1e-10
    )


def test_a_gradient_sent_over_the_waveform_is_received():
    """Entries in, entries out, without noise: the weighted mean."""
    u = torch.randn(DEVICES, 2 * 3 * N, dtype=torch.float64, generator=stream(3, "entries"))
    taps = taps_of(1.0)
    got = over_the_waveform(pack_symbols(u, "iq"), designed(taps, N), taps, noise(3, 0.0), N)
    torch.testing.assert_close(unpack_symbols(got, "iq", 6 * N)[0], u.mean(0))


@pytest.mark.parametrize("groups", [4, 16])
def test_within_a_group_the_difference_is_as_foretold(groups):
    taps = taps_of(1.5)
    made = designed(taps, groups)
    ratios = []
    for draw in range(30):
        x = symbols(2, 10 + draw)
        apart = over_the_waveform(x, made, taps, noise(2, 0.0), N) - block_model(x, made, taps, noise(2, 0.0))
        each = apart[0].reshape(groups, -1).abs().square().mean(1)
        ratios.append(float(each.sum() / mismatch(made, taps, N).sum()))
    values = torch.tensor(ratios)
    assert abs(float(values.mean()) - 1) < 5 * float(values.std()) / 30**0.5
    assert float(values.std()) / 30**0.5 < 0.05


def test_finer_groups_leave_less():
    taps = taps_of(1.5)
    left = [float(mismatch(designed(taps, groups), taps, N).mean()) for groups in (1, 4, 16, N)]
    assert left[0] > left[1] > left[2] > left[3] == pytest.approx(0, abs=1e-20)


def test_delays_beyond_the_prefix_would_be_seen():
    """The power of the equality above: an echo later than the cyclic prefix breaks it."""
    taps = torch.cat([taps_of(0.0), torch.zeros(PREFIX + 4, ANTENNAS, DEVICES, dtype=torch.complex128)])
    late = replace_last(taps, 0.3 * taps[0])
    made, x, z = designed(late, N), symbols(3), noise(3, 0.0)
    apart = over_the_waveform(x, made, late, z, N) - block_model(x, made, late, z)
    assert float(apart.abs().max()) > 1e-3


def replace_last(taps: Tensor, last: Tensor) -> Tensor:
    return torch.cat([taps[:-1], last[None]])


def turned(x: Tensor, made: Transceiver, taps: Tensor, hertz: Tensor, delay: Tensor) -> Tensor:
    """The sum of symbols over the waveform, each device's signal turned by its offset and delayed by part of a sample.

    hertz: offset of each device, cycles a sample. delay: samples.
    """
    grid = onto_grid(x * made.transmit_factors.T, 1, N)
    signal = modulate(grid, PREFIX)
    spectrum = torch.fft.fft(signal)
    frequency = torch.fft.fftfreq(signal.shape[1], dtype=torch.float64)
    signal = torch.fft.ifft(spectrum * torch.exp(-2j * math.pi * frequency * delay[:, None]))
    samples = torch.arange(signal.shape[1]) - PREFIX
    signal = signal * torch.exp(2j * math.pi * hertz[:, None] * samples)
    received = off_grid(demodulate(taps[0] @ signal, PREFIX, N), 1)
    return (made.receiver[0].mH @ received)[0]


def test_a_carrier_offset_s_error_is_its_closed_form() -> None:
    """2 (1 - g) of each device's share, g = sqrt(pi/2) / (aT) erf(aT / sqrt 2), a = 2 pi std: block of 20 symbols."""
    taps, count, deviation = taps_of(0.0), 20, 2e-5
    made, x, errors = designed(taps, 1, 1e-9), symbols(20), []
    for draw in range(120):
        hertz = deviation * torch.randn(DEVICES, dtype=torch.float64, generator=stream(draw, "offsets"))
        error = turned(x, made, taps, hertz, torch.zeros(DEVICES)) - x.mean(0)
        errors.append(float(error.abs().square().mean()))
    angle = 2 * math.pi * deviation * count * (N + PREFIX)
    gain = math.sqrt(math.pi / 2) / angle * math.erf(angle / math.sqrt(2))
    ratio = torch.tensor(errors) / (2 * (1 - gain) / DEVICES) - 1
    assert abs(z_of(ratio[:, None])) < 5 and float(ratio.std()) / len(ratio) ** 0.5 < 0.1


def test_a_timing_drift_s_error_is_its_closed_form() -> None:
    """About (pi^2 / 3) std^2 of each share over the band, exactly 2 (1 - mean exp(-(2 pi f std)^2 / 2))."""
    taps, deviation = taps_of(0.0), 0.1
    made, x, errors = designed(taps, 1, 1e-9), symbols(4), []
    for draw in range(120):
        delay = deviation * torch.randn(DEVICES, dtype=torch.float64, generator=stream(draw, "delays"))
        error = turned(x, made, taps, torch.zeros(DEVICES), delay) - x.mean(0)
        errors.append(float(error.abs().square().mean()))
    mean = torch.exp(-((2 * math.pi * frequencies(N, N) * deviation).square()) / 2).mean()
    expected = 2 * (1 - float(mean)) / DEVICES
    assert expected == pytest.approx(math.pi**2 / 3 * deviation**2 / DEVICES, rel=0.05)
    ratio = torch.tensor(errors) / expected - 1
    assert abs(z_of(ratio[:, None])) < 5 and float(ratio.std()) / len(ratio) ** 0.5 < 0.1


@pytest.mark.parametrize(("bits", "step"), [(2, 0.9957), (3, 0.5860), (4, 0.3352)])
def test_a_quantised_waveform_has_the_noise_of_aqnm(bits: int, step: float) -> None:
    """A uniform converter of the best step at every antenna: its noise after the receiver, per antenna's own power."""
    taps, z = taps_of(0.0), noise(40, 0.05)
    made, x = designed(taps, 1, 0.05), symbols(40)
    signal = modulate(onto_grid(x * made.transmit_factors.T, 1, N), PREFIX)
    samples = taps[0] @ signal + z
    power = samples.abs().square().mean(1, keepdim=True)
    parts = torch.view_as_real(samples) / (power / 2).sqrt()[..., None]
    levels = ((parts / step).floor() + 0.5).clamp(-(2 ** (bits - 1)) + 0.5, 2 ** (bits - 1) - 0.5) * step
    rho = ADC_NOISE[bits]
    quantised = torch.view_as_complex(levels * (power / 2).sqrt()[..., None]) / (1 - rho)
    difference = off_grid(demodulate(quantised - samples, PREFIX, N), 1)
    measured = (made.receiver[0].mH @ difference).abs().square().mean()
    share = adc_share(Impairments(adc_noise=rho))
    claimed = share * (power * made.receiver[0].abs().square()).sum()
    assert float(measured / claimed) == pytest.approx(1, abs=0.08)
