"""Impairments: carrier phase and offset, timing, amplifiers, outage, silence in a deep fade, and the receivers' ADC.

A transmitted symbol arrives multiplied by a random factor xi, the same at all antennas. Claims need its statistics over
the uses of a block, a `Distortion`; `air/distortion.py` has those of the amplifiers, which depend on the signal.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.core.rng import stream


@dataclass(frozen=True)
class Impairments:
    """The impairments of all devices, off by default.

    A design sees truncation, as a channel estimate of 0, and the ADC, as noise; no other impairment. Claims use the
    statistics of all.

    phase_rad: standard deviation of a device's carrier phase in a block. clipping: power at which an amplifier
    saturates, relative to the device's power limit; None for an ideal amplifier. smoothness: p of an amplifier of
    Rapp's model; infinite for one that clips. outage: probability that a device's signal is lost in a block.
    truncation: a device is silent in a block where its ||h_est||^2 is below this share of the mean of ||h||^2; None
    silences no device. carrier_offset_hz: standard deviation of a device's carrier offset, which turns its phase from
    the start of a block on. timing_drift: standard deviation of a device's timing since the pilots, samples at the
    bandwidth. adc_noise: rho of the receivers' ADC, the share of a sample's power that becomes quantisation noise.
    """

    phase_rad: float = 0.0
    clipping: float | None = None
    outage: float = 0.0
    truncation: float | None = None
    smoothness: float = math.inf
    carrier_offset_hz: float = 0.0
    timing_drift: float = 0.0
    adc_noise: float = 0.0

    @property
    def rotates(self) -> bool:
        """Whether the factor changes from use to use of a block."""
        return self.carrier_offset_hz > 0 or self.timing_drift > 0


NONE = Impairments()


@dataclass(frozen=True)
class Distortion:
    """The statistics of the factors xi_k by which streams arrive, for B blocks or one for all, and K streams or one.

    mean: E xi, the mean over a block's uses. power: E|xi|^2. pseudo: E xi^2, for real symbols. spread: the variance of
    E xi over a block's uses, relative to `mean` squared; the same for all streams. adc: see `adc_share`. by_order:
    amplitude of the amplifiers' distortion of order n = 1, 2, ... (`distortion_orders`) that is coherent between
    devices, over that of the stream as sent, times E xi of the other impairments; None for ideal amplifiers. Its
    square is part of `power`.
    """

    mean: Float[Tensor, "_b _k"]
    power: Float[Tensor, "_b _k"]
    pseudo: Float[Tensor, "_b _k"]
    spread: Float[Tensor, "_b 1"]
    adc: float = 0.0
    by_order: Float[Tensor, "B K orders"] | None = None

    def mean_gains(self, v: Complex[Tensor, "B T K"]) -> Complex[Tensor, "B T K"]:
        """The mean gains of streams whose gains are v."""
        return self.mean[:, None, :] * v

    def scattered_power(self, v: Complex[Tensor, "B T K"], real: bool) -> Float[Tensor, "B T K"]:
        """The error power E|xi v - v E xi|^2 of streams with gains v around their mean gain at each use.

        real: the power of the real part of xi v; clipped real symbols stay real.
        """
        mean, power, pseudo = (value[:, None, :] for value in (self.mean, self.power, self.pseudo))
        steady = mean.square() * (1 + self.spread[:, None, :])
        if not real:
            return (power - steady) * v.abs().square()
        return 0.5 * (power * v.abs().square() + pseudo * v.square().real) - steady * v.real.square()


def constant_distortion(mean: float, power: float, pseudo: float) -> Distortion:
    """The statistics of a factor that is the same for all blocks and streams."""
    first, second, third, spread = (
        torch.full((1, 1), value, dtype=torch.float64) for value in (mean, power, pseudo, 0.0)
    )
    return Distortion(first, second, third, spread)


UNDISTORTED = constant_distortion(1.0, 1.0, 1.0)


def steady_distortion(impairments: Impairments) -> Distortion:
    """The statistics of the factors that are constant in a block: phase and outage.

    E xi = exp(-phase^2 / 2) (1 - outage), E|xi|^2 = 1 - outage, E xi^2 = exp(-2 phase^2) (1 - outage).
    """
    received, phase = 1 - impairments.outage, impairments.phase_rad**2
    return constant_distortion(math.exp(-phase / 2) * received, received, math.exp(-2 * phase) * received)


@lru_cache(maxsize=16)
def clipped_statistics(level: float, smoothness: float = math.inf) -> tuple[float, float]:
    """The gain and the remaining power of a complex Gaussian signal of unit power that saturates at power `level`.

    Bussgang: f(x) = gain x + distortion, uncorrelated; for clipping gain = 1 - e^-c + sqrt(pi c)/2 erfc(sqrt c) and
    power 1 - e^-c (Ochiai and Imai 2002). smoothness: as in `amplifier_statistics`. The signal is sampled at its
    bandwidth, so that all distortion falls in band.
    """
    gain, power = amplifier_statistics(torch.tensor(level, dtype=torch.float64), smoothness)
    return float(gain), float(power)


def amplifier_statistics(
    level: Float[Tensor, "*S"], smoothness: float
) -> tuple[Float[Tensor, "*S"], Float[Tensor, "*S"]]:
    """The gain and the remaining power of a complex Gaussian signal of unit power after an amplifier (Bussgang).

    level: saturation power c. smoothness: p of Rapp's amplifier, r -> r / (1 + (r^2 / c)^p)^(1 / 2p); infinite for
    clipping. The power u = r^2 is exponential; E[u / (...)^(1/2p)] and E[u / (...)^(1/p)] are integrals over it.
    """
    if smoothness == math.inf:
        root = level.sqrt()
        lost = torch.exp(-level)
        return 1 - lost + math.sqrt(math.pi) / 2 * root * torch.erfc(root), 1 - lost
    u, weight = exponential_grid()
    distinct, place = torch.unique(level, return_inverse=True)  # most OFDM symbols of a block are alike
    amplified = amplified_power(u, distinct[:, None], smoothness)
    return ((u * amplified).sqrt() @ weight)[place], (amplified @ weight)[place]


def exponential_grid() -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Points of the power u of a complex Gaussian signal of unit power, and their probabilities."""
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 100
    weight = torch.exp(-u)
    return u, weight / weight.sum()


def amplified_power(u: Float[Tensor, "*S"], level: Float[Tensor, "*R"], smoothness: float) -> Tensor:
    """The power u after an amplifier that saturates at power `level`."""
    if smoothness == math.inf:
        return torch.minimum(u, level)
    return level * smooth_minimum(u / level, smoothness)


def distortion_orders(level: Float[Tensor, "*S"], smoothness: float, orders: int = 6) -> Float[Tensor, "*S {orders}"]:
    """The amplitude b_n of a Gaussian signal's distortion by order n = 1..orders, for a signal of unit power.

    The amplified signal has the autocorrelation sum_n b_n^2 rho |rho|^2n with b_n = E[f(sqrt u) sqrt u L_n^(1)(u)] /
    sqrt(n + 1), L_n^(1) the associated Laguerre polynomials and f the amplifier: b_0 is its gain (Blachman 1968). The
    sign of b_n depends on the level. The last order is the root of the power of all higher ones.
    """
    u, weight = exponential_grid()
    distinct, place = torch.unique(level, return_inverse=True)
    amplitude = (u * amplified_power(u, distinct[:, None], smoothness)).sqrt() * weight
    gain, power = amplifier_statistics(distinct, smoothness)
    before, polynomial = torch.ones_like(u), 2 - u  # L_0 and L_1
    amplitudes = []
    for n in range(1, orders):
        amplitudes.append((amplitude @ polynomial) / math.sqrt(n + 1))
        before, polynomial = polynomial, ((2 * n + 2 - u) * polynomial - (n + 1) * before) / (n + 1)
    remaining = (power - gain.square() - sum((b.square() for b in amplitudes), torch.zeros_like(gain))).clamp_min(0.0)
    by_level: Tensor = torch.stack([*amplitudes, remaining.sqrt()], -1)
    return by_level[place]


def amplify(signal: Complex[Tensor, "*S"], saturation: Float[Tensor, "*R"], smoothness: float) -> Complex[Tensor, "*S"]:
    """Amplify time samples. saturation: saturation powers, watts. smoothness: see `amplifier_statistics`."""
    magnitude, limit = signal.abs(), saturation.sqrt()
    if smoothness == math.inf:
        return signal * (limit / torch.maximum(magnitude, limit).clamp_min(1e-300))
    power = magnitude.square().clamp_min(1e-300)
    return signal * (amplified_power(power, saturation, smoothness) / power).sqrt()


def smooth_minimum(ratio: Float[Tensor, "*S"], smoothness: float) -> Float[Tensor, "*S"]:
    """Compute x / (1 + x^p)^(1/p), which is about min(x, 1), without overflow for large x."""
    small: Tensor = torch.minimum(ratio, 1 / ratio)
    return ratio.clamp(max=1.0) * (1 + small.pow(smoothness)).pow(-1 / smoothness)


def impulses(alpha: float, uses: int, rng: torch.Generator) -> Float[Tensor, " uses"]:
    """Draw the factors sqrt(A) that make Gaussian noise isotropic alpha-stable noise, one for each use.

    A is positive alpha/2-stable (Kanter 1975): with a = alpha/2, U uniform on (0, pi) and E exponential,
    A = sin(aU) / sin(U)^(1/a) (sin((1-a)U) / E)^((1-a)/a). For G ~ CN(0, 4 gamma^2), z = sqrt(A) G has
    E exp(j w Re z) = exp(-(gamma |w|)^alpha).
    """
    a, u = alpha / 2, math.pi * torch.rand(uses, dtype=torch.float64, generator=rng).clamp(1e-12, 1 - 1e-12)
    e = torch.empty(uses, dtype=torch.float64).exponential_(generator=rng).clamp_min(1e-300)
    stable: Tensor = (a * u).sin() / u.sin().pow(1 / a) * (((1 - a) * u).sin() / e).pow((1 - a) / a)
    return stable.sqrt()


def adc_share(impairments: Impairments) -> float:
    """The noise of the receivers' ADC over the power at the antenna, after its gain 1 - rho: rho / (1 - rho)."""
    return impairments.adc_noise / (1 - impairments.adc_noise)


ADC_NOISE = {1: 0.3634, 2: 0.1188, 3: 0.0374, 4: 0.01154, 5: 0.003495, 6: 0.001041, 7: 0.0003035, 8: 0.0000869}
"""Bits of a uniform quantiser with the best step -> its noise for a Gaussian signal of unit power (Max 1960)."""


def impairment_factors(
    impairments: Impairments, seed: int, names: tuple[str | int, ...], t: int, blocks: range, devices: int
) -> Complex[Tensor, "B K"]:
    """Draw the part of xi that is constant in a block, of each device and block: e^{j phi}, or 0 in an outage.

    names: `Network.names`, so that every drop has draws of its own. Random: streams (seed, names, "phase", t, block)
    and (seed, names, "outage", t, block).
    """
    factors = torch.ones(len(blocks), devices, dtype=torch.complex128)
    for row, block in enumerate(blocks):
        if impairments.phase_rad:
            phase = torch.randn(devices, dtype=torch.float64, generator=stream(seed, *names, "phase", t, block))
            factors[row] = torch.polar(torch.ones_like(phase), impairments.phase_rad * phase)
        if impairments.outage:
            uniform = torch.rand(devices, dtype=torch.float64, generator=stream(seed, *names, "outage", t, block))
            factors[row] = factors[row] * (uniform >= impairments.outage)
    return factors


def silence_faint_devices(
    h_est: Complex[Tensor, "B M K"], gain: Float[Tensor, "*B M K"], truncation: float | None
) -> Complex[Tensor, "B M K"]:
    """Set a device's channel estimate to 0, so that it is silent, where the estimate is weak.

    It is weak where ||h_est||^2 < truncation times the sum of `gain` over antennas. gain: mean power gain at every
    antenna. truncation: None silences no device.
    """
    if truncation is None:
        return h_est
    faint = h_est.abs().square().sum(-2) < truncation * gain.sum(-2)
    return torch.where(faint[..., None, :], 0.0, h_est)
