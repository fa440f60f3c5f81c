"""Rayleigh and Rician fading: flat or frequency-selective, independent or correlated in time.

A coherence block is a group of subcarriers during a coherence time. Block i of a round is group i mod G at time i // G.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Complex, Float
from pydantic import Field
from torch import Tensor

from airpfed.air import geometry
from airpfed.air.network import ChannelSite, Network
from airpfed.core.rng import complex_normals
from airpfed.core.units import SPEED_OF_LIGHT, from_db

FORGOTTEN = 1e-12
"""Correlation below which the past of a Gauss-Markov process is ignored."""

TAIL = 1e-4
"""Power relative to the first tap below which taps are left out."""


@dataclass(frozen=True)
class FadingParameters:
    """The statistics of fading for S stations of A antennas, stacked to M = S A, and K devices.

    gain: mean power gain of the scattered part, linear. los: line of sight at every antenna from every device, a fixed
    complex amplitude, 0 for Rayleigh fading. profile: powers of the delay taps, a sample of the bandwidth apart, of sum
    1. centres: frequencies of the G subcarrier groups, cycles a sample. time_correlation: correlation of a coherence
    time with the previous one in a round. round_correlation: correlation of a round's first coherence time with the
    first of the previous round. A correlation of 1 is a static channel. names: prefix of the names of the random
    streams.
    """

    gain: Float[Tensor, "S K"]
    antennas: int
    los: Complex[Tensor, "M K"]
    profile: Float[Tensor, " L"]
    centres: Float[Tensor, " G"]
    time_correlation: float
    round_correlation: float
    names: tuple[str | int, ...]


def rayleigh(gain: Float[Tensor, " K"], antennas: int, rng: torch.Generator) -> Complex[Tensor, "{antennas} K"]:
    """Draw one block of flat fading, h_k ~ CN(0, gain_k I_M).

    gain: mean power gain per device, linear. Returns h, constant over the block; E||h_k||^2 = M gain_k.
    """
    h = torch.randn(antennas, len(gain), dtype=torch.complex128, generator=rng)
    return h * gain.sqrt()


def exponential_profile(delay_spread_s: float, bandwidth_hz: float, max_taps: int) -> Float[Tensor, " L"]:
    """The powers of taps a sample apart with exponential decay, p_l ~ exp(-l / (delay_spread bandwidth)), of sum 1.

    delay_spread_s: root mean square delay of the continuous profile, seconds; 0 gives one tap. max_taps: length of the
    cyclic prefix.
    """
    samples = delay_spread_s * bandwidth_hz
    count = 1 if samples == 0 else 1 + int(-samples * math.log(TAIL))
    lags = torch.arange(min(count, max_taps), dtype=torch.float64)
    powers = torch.exp(-lags / samples) if samples > 0 else torch.ones(1, dtype=torch.float64)
    return powers / powers.sum()


def frequencies(groups: int, subcarriers: int) -> Float[Tensor, " G"]:
    """The mean frequencies of G equal groups of the subcarriers n/N - 1/2, n = 0..N-1, in cycles a sample."""
    middle = (subcarriers / groups - 1) / 2
    return (torch.arange(groups, dtype=torch.float64) * subcarriers / groups + middle) / subcarriers - 0.5


def response(taps: Complex[Tensor, "L M K"], frequency: Float[Tensor, " G"]) -> Complex[Tensor, "G M K"]:
    """The channel at some frequencies in cycles a sample, H(f) = sum_l taps_l exp(-2 pi j f l)."""
    lags = torch.arange(len(taps), dtype=torch.float64)
    phase = -2 * math.pi * frequency[:, None] * lags
    rotation = torch.polar(torch.ones(len(frequency), len(taps), dtype=torch.float64), phase)
    channel: Tensor = (rotation @ taps.flatten(1)).reshape(len(frequency), *taps.shape[1:])
    return channel


def scattered_taps(parameters: FadingParameters, seed: int, t: int, times: range) -> Complex[Tensor, "times L M K"]:
    """Draw the scattered taps at some coherence times of round t.

    Random: the stream (seed, names, "fading", t, time) of each time.
    """
    amplitude = parameters.gain.sqrt().repeat_interleave(parameters.antennas, 0)
    shape, correlation = (len(parameters.profile), *amplitude.shape), parameters.time_correlation

    def innovations(t: int, times: Sequence[int]) -> Complex[Tensor, "_n L M K"]:
        normal = complex_normals(seed, (*parameters.names, "fading", t), times, shape)
        return normal.mul_(amplitude).mul_(parameters.profile.sqrt()[:, None, None])

    def first_time() -> Complex[Tensor, "L M K"]:
        return gauss_markov(parameters.round_correlation, t, lambda past: innovations(past, [0])[0])

    if correlation == 1:
        return first_time().expand(len(times), *shape)
    if correlation == 0:
        taps = innovations(t, times)
        if 0 in times:
            taps[times.index(0)] = first_time()
        return taps
    chain = [first_time()]
    for innovation in innovations(t, range(1, times.stop)):
        chain.append(gauss_markov_step(correlation, chain[-1], innovation))
    return torch.stack(chain[times.start : times.stop])


def gauss_markov_step(correlation: float, previous: Tensor, innovation: Tensor) -> Tensor:
    """Compute r previous + sqrt(1 - r^2) innovation, which keeps the power."""
    return correlation * previous + math.sqrt(1 - correlation**2) * innovation


def gauss_markov(correlation: float, index: int, innovation: Callable[[int], Tensor]) -> Tensor:
    """The value `index` of a stationary Gauss-Markov process, a function of the index alone.

    The process starts at 0, or at the last index whose correlation with the value is below FORGOTTEN. Correlation 0
    gives the innovation of the index, and 1 always the first innovation.
    """
    if correlation in (0.0, 1.0):
        return innovation(index if correlation == 0.0 else 0)
    horizon = math.ceil(math.log(FORGOTTEN) / math.log(correlation))
    begin = max(0, index - horizon)
    value = innovation(begin)
    for past in range(begin + 1, index + 1):
        value = gauss_markov_step(correlation, value, innovation(past))
    return value


def fading_channels(
    parameters: FadingParameters, seed: int, t: int, blocks: range
) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:
    """Draw the channels of a round's coherence blocks; returns them and their line of sight, which needs no estimation.

    A block's channels of all devices are a function of seed, round and block, so that a device has the same channel in
    every slot of the block.
    """
    groups = len(parameters.centres)
    times = range(blocks.start // groups, -(-blocks.stop // groups))
    taps = scattered_taps(parameters, seed, t, times)
    if len(parameters.profile) == 1:
        scattered = taps[[block // groups - times.start for block in blocks], 0]
    else:
        by_group = torch.cat([response(tap, parameters.centres) for tap in taps])
        scattered = by_group[blocks.start - times.start * groups :][: len(blocks)]
    los = parameters.los.expand(len(blocks), -1, -1)
    return scattered + los, los


def steering(antennas: int, sine: Float[Tensor, " K"]) -> Complex[Tensor, "{antennas} K"]:
    """The response of a uniform linear array with half a wavelength's spacing, exp(j pi a sine_k), a = 0..antennas-1.

    sine: sine of the angle from broadside.
    """
    phase = math.pi * torch.arange(antennas, dtype=torch.float64)[:, None] * sine
    return torch.polar(torch.ones_like(phase), phase)


def line_of_sight(
    gain: Float[Tensor, "S K"], apart_m: Float[Tensor, "S K 2"], antennas: int, k_factor: float, carrier_hz: float
) -> Complex[Tensor, "M K"]:
    """The Rician line of sight, sqrt(gain K/(K+1)) a(theta) exp(-2 pi j d / wavelength), antennas stacked.

    gain: mean power gain of the channel with its line of sight. k_factor: K, linear. apart_m: distances from stations
    to devices; arrays lie along the y axis.
    """
    distance = apart_m.square().sum(-1).sqrt()
    sine = apart_m[..., 1] / distance.clamp_min(1e-9)
    phase = -2 * math.pi * distance * carrier_hz / SPEED_OF_LIGHT
    ray = torch.polar((gain * k_factor / (1 + k_factor)).sqrt(), phase)
    return torch.cat([amplitude * steering(antennas, s) for amplitude, s in zip(ray, sine, strict=True)])


DelaySpread = Annotated[
    float | None,
    Field(
        ge=0,
        le=1e-4,
        description="rms delay spread of an exponential profile, s; 0: flat fading. Default: 50 ns, or 0 where blocks "
        "are flat over the band",
    ),
]
TimeCorrelation = Annotated[
    float,
    Field(ge=0, le=1, description="correlation of a channel with that of the previous coherence time; 1: constant"),
]
RoundCorrelation = Annotated[
    float,
    Field(ge=0, le=1, description="correlation from the start of a round to the start of the next; 1: static channel"),
]


def rayleigh_fading(
    site: ChannelSite,
    *,
    delay_spread_s: DelaySpread = None,
    time_correlation: TimeCorrelation = 0.0,
    round_correlation: RoundCorrelation = 0.0,
) -> Network:
    """Rayleigh fading, independent from antenna to antenna and device to device."""
    return _fading(site, 0.0, delay_spread_s, time_correlation, round_correlation)


def rician_fading(
    site: ChannelSite,
    *,
    k_db: Annotated[
        float, Field(ge=-100, le=100, description="ratio of the line-of-sight power to the scattered power, dB")
    ] = 3.0,
    delay_spread_s: DelaySpread = None,
    time_correlation: TimeCorrelation = 0.0,
    round_correlation: RoundCorrelation = 0.0,
) -> Network:
    """Rician fading: a line of sight to a uniform linear array, known without estimation, and Rayleigh scattering."""
    return _fading(site, from_db(k_db), delay_spread_s, time_correlation, round_correlation)


def _fading(
    site: ChannelSite, k_factor: float, delay_spread_s: float | None, time_correlation: float, round_correlation: float
) -> Network:
    """A network with Rician fading of a linear K factor."""
    apart = geometry.offsets(site.stations, site.devices, site.wrap_m)
    parameters = FadingParameters(
        gain=site.gain / (1 + k_factor),
        antennas=site.antennas,
        los=line_of_sight(site.gain, apart, site.antennas, k_factor, site.carrier_hz),
        profile=exponential_profile(delay_spread_s or 0.0, site.bandwidth_hz, cyclic_prefix(site.subcarriers)),
        centres=frequencies(site.subcarrier_groups, site.subcarriers),
        time_correlation=time_correlation,
        round_correlation=round_correlation,
        names=site.names,
    )
    return site.network(partial(fading_channels, parameters), scattered=parameters.gain)


def cyclic_prefix(subcarriers: int) -> int:
    """The samples of a cyclic prefix, a fourteenth of the symbol: the most taps that a channel may have."""
    return max(1, subcarriers // 14)
