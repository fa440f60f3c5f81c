"""Coherence from physics: how much a channel changes within a block, and the largest blocks that change little.

Scattering is wide-sense stationary and uncorrelated: a channel's correlation over a frequency f and a time t apart is
the product of sum_l p_l exp(-2 pi j f l), with the powers p_l of the delay taps, and of J0(2 pi f_D t) (Clarke and
Jakes), with the Doppler frequency f_D. Receivers know the profile and turn every use back by the phase of its
correlation with the centre of its block, as a receiver does whose timing follows the mean delay. What is left is

    h(u) = r(u) h + e(u),    e(u) ~ CN(0, (1 - r(u)^2) g),    0 <= r(u) <= 1,

at use u of a block whose centre has the channel h of mean power g: a gain that all devices share, and an error that is
each device's own, as that of a channel estimate. The mean of E|h(u) - h|^2 / g = 2 (1 - r(u)) is what a block costs.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.air.channels.fading import cyclic_prefix, exponential_profile
from airpfed.core.units import SPEED_OF_LIGHT

MAX_SYMBOLS = 100_000
"""The most OFDM symbols of a derived block, 5 seconds at 20 MHz and 1,024 subcarriers."""


def doppler_hz(speed_mps: float, carrier_hz: float) -> float:
    """The largest Doppler frequency f_D of a device, hertz."""
    return speed_mps * carrier_hz / SPEED_OF_LIGHT


def time_correlation(doppler: float, seconds: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The correlation of a channel with itself some time later, J0(2 pi f_D t) (Clarke and Jakes). doppler: f_D, Hz."""
    correlation: Tensor = torch.special.bessel_j0(2 * math.pi * doppler * seconds.double())
    return correlation


def frequency_correlation(profile: Float[Tensor, " L"], frequency: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The magnitude of a channel's correlation with itself some frequency apart, |sum_l p_l exp(-2 pi j f l)|.

    profile: powers p_l of taps a sample apart, of sum 1. frequency: cycles a sample. An exponential profile of the rms
    delay tau that is long against a sample has 1 / sqrt(1 + (2 pi f tau)^2).
    """
    lags = torch.arange(len(profile), dtype=torch.float64)
    phase = 2 * math.pi * frequency.double()[..., None] * lags
    return torch.hypot((profile * phase.cos()).sum(-1), (profile * phase.sin()).sum(-1))


@dataclass(frozen=True, eq=False)
class Scattering:
    """What determines how a channel changes over the OFDM grid.

    profile: powers of the delay taps, a sample apart, of sum 1. doppler: f_D times the time of an OFDM symbol.
    subcarriers: their number N.
    """

    profile: Float[Tensor, " L"]
    doppler: float
    subcarriers: int

    def over_subcarriers(self, width: int) -> Float[Tensor, " width"]:
        """The correlation of each of `width` neighbouring subcarriers with their centre."""
        offset = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
        return frequency_correlation(self.profile, offset / self.subcarriers)

    def over_symbols(self, offset: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """The magnitude of the correlation with a symbol so many symbols away."""
        return time_correlation(self.doppler, offset).abs()

    def cost(self, width: int, symbols: int) -> float:
        """The mean of E|h(u) - h|^2 / g = 2 (1 - r(u)) over a block of `width` subcarriers and `symbols` symbols."""
        return 2 * (1 - float(self.over_subcarriers(width).mean()) * self._mean_over_time(symbols))

    def longest(self, width: int, error: float) -> int:
        """The most OFDM symbols of a block of `width` subcarriers that costs at most `error`; 0 if one costs more."""
        least = (1 - error / 2) / float(self.over_subcarriers(width).mean())
        if least > 1:
            return 0
        if self.doppler == 0:
            return MAX_SYMBOLS
        low, high = 1, 2
        while high < MAX_SYMBOLS and self._mean_over_time(high) >= least:
            low, high = high, min(2 * high, MAX_SYMBOLS)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._mean_over_time(middle) >= least else (low, middle)
        return high if self._mean_over_time(high) >= least else low

    def _mean_over_time(self, symbols: int) -> float:
        """The mean correlation of a block's symbols with their centre."""
        return float(self.over_symbols(torch.arange(symbols, dtype=torch.float64) - (symbols - 1) / 2).mean())


def scattering(
    delay_spread_s: float, speed_mps: float, carrier_hz: float, bandwidth_hz: float, subcarriers: int, symbol_s: float
) -> Scattering:
    """The scattering of an exponential profile, as `channels.fading` draws it. symbol_s: seconds of an OFDM symbol."""
    profile = exponential_profile(delay_spread_s, bandwidth_hz, cyclic_prefix(subcarriers))
    return Scattering(profile, doppler_hz(speed_mps, carrier_hz) * symbol_s, subcarriers)


def divisors(number: int) -> list[int]:
    """The divisors of a number, ascending."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def largest_block(scattered: Scattering, error: float) -> tuple[int, int]:
    """The block of most channel uses that costs at most `error`: (groups of subcarriers, OFDM symbols).

    The groups divide the subcarriers. Of two blocks of equal size the one of fewer groups is taken. A block of one
    use costs nothing, so that there always is one.
    """
    subcarriers = scattered.subcarriers
    blocks = [(groups, scattered.longest(subcarriers // groups, error)) for groups in divisors(subcarriers)]
    return max(blocks, key=lambda block: (subcarriers // block[0] * block[1], -block[0]))


@dataclass(frozen=True)
class BlockChange:
    """The change of channels within the coherence blocks of an uplink.

    width: subcarriers of a group. length, data_uses: uses of a block, and those that carry data; the others carry
    pilots, which lie evenly between them.
    """

    scattered: Scattering
    width: int
    length: int
    data_uses: int

    def correlation(
        self, symbol: Float[Tensor, " uses"] | Int[Tensor, " uses"], subcarrier: Int[Tensor, " uses"], span: int = 0
    ) -> Float[Tensor, " uses"]:
        """r(u) of uses: the correlation with the centre of their block.

        symbol: OFDM symbol of each use, counted over the data of its block from 0. subcarrier: of each use. span: the
        symbols of the block's data, if these uses stand for a block on a longer grid.
        """
        symbols = self.length / self.width
        position = (symbol + 0.5) / max(-(-self.data_uses // self.width), span) * symbols
        in_time = self.scattered.over_symbols(position - symbols / 2)
        return self.scattered.over_subcarriers(self.width)[subcarrier % self.width] * in_time

    @cached_property
    def _moments(self) -> tuple[float, float]:
        """E r(u) and E r(u)^2 over a block's data."""
        symbols = -(-self.data_uses // self.width)
        in_frequency = self.scattered.over_subcarriers(self.width)
        in_time = self.correlation(torch.arange(symbols), torch.zeros(symbols, dtype=torch.long)) / in_frequency[0]
        mean, square = (float(in_frequency.pow(n).mean()) * float(in_time.pow(n).mean()) for n in (1, 2))
        return mean, square

    @property
    def mean(self) -> float:
        """E r(u), the mean over a block's uses: the share of a block's channel that reaches its mean use."""
        return self._moments[0]

    @property
    def innovation(self) -> float:
        """The power of e(u) / r(u), relative to g: (1 - E r^2) / E r^2, with means over a block's uses."""
        return (1 - self._moments[1]) / self._moments[1]
