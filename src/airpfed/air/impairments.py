"""Impairments of the devices: carrier phase, clipping amplifiers, outage, and silence in a deep fade.

A transmitted symbol arrives multiplied by a random factor xi, the same at all antennas. Claims need E xi and E|xi|^2.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.core.rng import stream


@dataclass(frozen=True)
class Impairments:
    """The impairments of all devices, off by default.

    A design sees truncation, as a channel estimate of 0, and no other impairment. Claims use the statistics of all.

    phase_rad: standard deviation of a device's carrier phase in a block. clipping: power at which an amplifier clips,
    relative to its mean power; None for an ideal amplifier. outage: probability that a device's signal is lost in a
    block. truncation: a device is silent in a block where its ||h_est||^2 is below this share of the mean of ||h||^2;
    None silences no device.
    """

    phase_rad: float = 0.0
    clipping: float | None = None
    outage: float = 0.0
    truncation: float | None = None

    @property
    def mean(self) -> float:
        """E xi = exp(-phase^2 / 2) (1 - outage) times the gain of a clipping amplifier."""
        gain, _ = (1.0, 1.0) if self.clipping is None else clipped_statistics(self.clipping)
        return math.exp(-(self.phase_rad**2) / 2) * (1 - self.outage) * gain

    @property
    def mean_power(self) -> float:
        """E|xi|^2; for clipping, the power that is left, distortion included."""
        _, left = (1.0, 1.0) if self.clipping is None else clipped_statistics(self.clipping)
        return (1 - self.outage) * left

    def scattered_power(self, v: Complex[Tensor, "*S K"], real: bool) -> Float[Tensor, "*S K"]:
        """The error power E|xi v - v E xi|^2 of devices with gains v around their mean gain.

        real: the power of the real part of xi v, with E xi^2 = exp(-2 phase^2) (1 - outage); clipped real symbols stay
        real.
        """
        if not real:
            return (self.mean_power - self.mean**2) * v.abs().square()
        pseudo = math.exp(-2 * self.phase_rad**2) * self.mean_power
        return 0.5 * (self.mean_power * v.abs().square() + pseudo * v.square().real) - self.mean**2 * v.real.square()


NONE = Impairments()


def clipped_statistics(level: float) -> tuple[float, float]:
    """The gain and the remaining power of a complex Gaussian signal of unit power that is clipped at power `level`.

    Bussgang: clip(x) = gain x + distortion, uncorrelated, with gain = 1 - e^-c + sqrt(pi c)/2 erfc(sqrt c) and power
    1 - e^-c (Ochiai and Imai 2002). The signal is sampled at its bandwidth, so that all distortion falls in band.
    """
    gain = 1 - math.exp(-level) + math.sqrt(math.pi * level) / 2 * math.erfc(math.sqrt(level))
    return gain, 1 - math.exp(-level)


def clip(symbols: Complex[Tensor, "K uses"], level: float, subcarriers: int) -> Complex[Tensor, "K uses"]:
    """Clip each device's OFDM signal at `level` times its mean power; returns the symbols after the amplifiers.

    Uses fill OFDM symbols of `subcarriers`, the last one padded; sampled at the bandwidth, without filtering.
    """
    uses = symbols.shape[1]
    padded = torch.nn.functional.pad(symbols, (0, -uses % subcarriers))
    signal = torch.fft.ifft(padded.reshape(len(symbols), -1, subcarriers), norm="ortho")
    magnitude = signal.abs()
    limit = (level * magnitude.square().mean((1, 2), keepdim=True)).sqrt()
    signal = torch.where(magnitude > limit, signal * (limit / magnitude.clamp_min(1e-300)), signal)
    clipped: Tensor = torch.fft.fft(signal, norm="ortho").flatten(1)
    return clipped[:, :uses]


def impairment_factors(
    impairments: Impairments, seed: int, t: int, blocks: range, devices: int
) -> Complex[Tensor, "B K"]:
    """Draw the factor xi of each device in a round's blocks: e^{j phi}, or 0 in an outage. Clipping is not included.

    Random: streams (seed, "phase", t, block) and (seed, "outage", t, block).
    """
    factors = torch.ones(len(blocks), devices, dtype=torch.complex128)
    for row, block in enumerate(blocks):
        if impairments.phase_rad:
            phase = torch.randn(devices, dtype=torch.float64, generator=stream(seed, "phase", t, block))
            factors[row] = torch.polar(torch.ones_like(phase), impairments.phase_rad * phase)
        if impairments.outage:
            uniform = torch.rand(devices, dtype=torch.float64, generator=stream(seed, "outage", t, block))
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
