"""Small-scale fading by its statistics: Rayleigh or Rician, flat or over subcarrier groups, block by block or in time.

A coherence block is a group of subcarriers over a coherence time: block i of a round is group i mod G at time i // G.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.core.rng import stream
from airpfed.core.units import SPEED_OF_LIGHT

FORGOTTEN = 1e-12
"""Correlation below which the past of a Gauss-Markov process is not followed."""

TAIL = 1e-4
"""Taps weaker than this share of the first are left out."""


@dataclass(frozen=True)
class FadingParameters:
    """What decides a world's fading, for S stations of A antennas stacked to M = S A, and K devices.

    gain: mean power gain of the scattered part, linear. los: the line of sight of every antenna and device, a fixed
    complex amplitude (0 for Rayleigh). profile: powers of the delay taps, one a sample of the bandwidth, of sum 1.
    centres: frequencies of the G subcarrier groups, cycles a sample. follow: correlation from one coherence time to the
    next within a round; renew: from a round's first to the next round's first; 1 stands still. names: of the streams.
    """

    gain: Float[Tensor, "S K"]
    antennas: int
    los: Complex[Tensor, "M K"]
    profile: Float[Tensor, " L"]
    centres: Float[Tensor, " G"]
    follow: float
    renew: float
    names: tuple[str | int, ...]


def rayleigh(gain: Float[Tensor, " K"], antennas: int, rng: torch.Generator) -> Complex[Tensor, "{antennas} K"]:
    """Draw one block of flat fading, h_k ~ CN(0, gain_k I_M).

    gain: mean power gain per device, linear. Returns h, constant over the block; E||h_k||^2 = M gain_k.
    """
    h = torch.randn(antennas, len(gain), dtype=torch.complex128, generator=rng)
    return h * gain.sqrt()


def exponential_profile(delay_spread_s: float, bandwidth_hz: float, most: int) -> Float[Tensor, " L"]:
    """Powers of taps a sample apart that fall exponentially: p_l ~ exp(-l / (delay_spread bandwidth)), of sum 1.

    delay_spread_s: root mean square delay of the continuous profile, seconds; 0 is one tap. At most `most` taps (the
    cyclic prefix).
    """
    samples = delay_spread_s * bandwidth_hz
    count = 1 if samples == 0 else 1 + int(-samples * math.log(TAIL))
    lags = torch.arange(min(count, most), dtype=torch.float64)
    powers = torch.exp(-lags / samples) if samples > 0 else torch.ones(1, dtype=torch.float64)
    return powers / powers.sum()


def frequencies(groups: int, subcarriers: int) -> Float[Tensor, " G"]:
    """Mean frequencies of G equal groups of the subcarriers n/N - 1/2, n = 0..N-1, in cycles a sample."""
    middle = (subcarriers / groups - 1) / 2
    return (torch.arange(groups, dtype=torch.float64) * subcarriers / groups + middle) / subcarriers - 0.5


def response(taps: Complex[Tensor, "L M K"], at: Float[Tensor, " G"]) -> Complex[Tensor, "G M K"]:
    """The channel at frequencies `at` (cycles a sample): H(f) = sum_l taps_l exp(-2 pi j f l)."""
    lags = torch.arange(len(taps), dtype=torch.float64)
    turn = torch.polar(torch.ones(len(at), len(taps), dtype=torch.float64), -2 * math.pi * at[:, None] * lags)
    found: Tensor = (turn @ taps.flatten(1)).reshape(len(at), *taps.shape[1:])
    return found


def taps_of(parameters: FadingParameters, seed: int, t: int, times: range) -> list[Complex[Tensor, "L M K"]]:
    """Scattered taps at some coherence times of round t. Random: stream (seed, names, "fading", t, time)."""
    rows = parameters.gain.sqrt().repeat_interleave(parameters.antennas, 0)

    def fresh(t: int, time: int) -> Complex[Tensor, "L M K"]:
        rng = stream(seed, *parameters.names, "fading", t, time)
        drawn = torch.randn(len(parameters.profile), *rows.shape, dtype=torch.complex128, generator=rng)
        return drawn * rows * parameters.profile.sqrt()[:, None, None]

    def first(t: int) -> Complex[Tensor, "L M K"]:
        return markov(parameters.renew, t, lambda past: fresh(past, 0))

    def at(time: int) -> Complex[Tensor, "L M K"]:
        return markov(parameters.follow, time, lambda past: fresh(t, past) if past else first(t))

    if parameters.follow in (0.0, 1.0):
        return [at(time) for time in times]
    found = [first(t)]
    for time in range(1, times.stop):
        found.append(step(parameters.follow, found[-1], fresh(t, time)))
    return found[times.start :]


def step(correlation: float, before: Tensor, innovation: Tensor) -> Tensor:
    """Gauss-Markov: r before + sqrt(1 - r^2) innovation, which keeps the power."""
    return correlation * before + math.sqrt(1 - correlation**2) * innovation


def markov(correlation: float, index: int, draw: Callable[[int], Tensor]) -> Tensor:
    """Value `index` of a stationary Gauss-Markov process whose innovations are `draw`: a function of the index alone.

    The process starts at 0, or where its past is forgotten. Correlation 0: the draw itself; 1: always the first.
    """
    if correlation in (0.0, 1.0):
        return draw(index if correlation == 0.0 else 0)
    horizon = math.ceil(math.log(FORGOTTEN) / math.log(correlation))
    begin = max(0, index - horizon)
    value = draw(begin)
    for past in range(begin + 1, index + 1):
        value = step(correlation, value, draw(past))
    return value


def fade(
    parameters: FadingParameters, seed: int, t: int, blocks: range
) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:
    """Channels of a round's coherence blocks, and the part of them that needs no estimation (the line of sight).

    A block's channel is a function of seed, round and block: ask for all devices, so that each has the same channel in
    every slot that sees the block.
    """
    groups = len(parameters.centres)
    times = range(blocks.start // groups, -(-blocks.stop // groups))
    taps = taps_of(parameters, seed, t, times)
    if len(parameters.profile) == 1:
        scattered = torch.stack([taps[block // groups - times.start][0] for block in blocks])
    else:
        bands = torch.cat([response(one, parameters.centres) for one in taps])
        scattered = bands[blocks.start - times.start * groups :][: len(blocks)]
    los = parameters.los.expand(len(blocks), -1, -1)
    return scattered + los, los


def steering(antennas: int, sine: Float[Tensor, " K"]) -> Complex[Tensor, "{antennas} K"]:
    """Response of a uniform linear array of half a wavelength's spacing: exp(j pi a sine_k), a = 0..antennas-1.

    sine: of the angle from broadside.
    """
    phase = math.pi * torch.arange(antennas, dtype=torch.float64)[:, None] * sine
    return torch.polar(torch.ones_like(phase), phase)


def line_of_sight(
    gain: Float[Tensor, "S K"], apart_m: Float[Tensor, "S K 2"], antennas: int, k_factor: float, carrier_hz: float
) -> Complex[Tensor, "M K"]:
    """The Rician line of sight, sqrt(gain K/(K+1)) a(theta) exp(-2 pi j d / wavelength), antennas stacked.

    gain: mean power gain of the whole channel. k_factor: K, linear. apart_m: from stations to devices; arrays lie along
    the y axis, broadside to the x axis.
    """
    distance = apart_m.square().sum(-1).sqrt()
    sine = apart_m[..., 1] / distance.clamp_min(1e-9)
    phase = -2 * math.pi * distance * carrier_hz / SPEED_OF_LIGHT
    ray = torch.polar((gain * k_factor / (1 + k_factor)).sqrt(), phase)
    return torch.cat([one * steering(antennas, s) for one, s in zip(ray, sine, strict=True)])
