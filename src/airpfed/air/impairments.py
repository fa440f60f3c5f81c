"""What goes wrong at the devices: carrier phase, clipping amplifiers, outage; and devices that keep silent in a fade.

A transmitted symbol arrives times a random factor xi, the same for all antennas; claims need E xi and E|xi|^2 only.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.core.rng import stream


@dataclass(frozen=True)
class Impairments:
    """Each at its off value by default. Designs know of truncation only; claims know the statistics of all.

    phase_rad: standard deviation of a device's carrier phase in a block. clipping: power at which its amplifier clips,
    over its mean power; None: never. outage: probability that a device is not heard in a block. truncation: share of
    its mean power per antenna below which a device's channel keeps it silent; None: never.
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
    def power(self) -> float:
        """E|xi|^2; for clipping, the power that is left, distortion included."""
        _, left = (1.0, 1.0) if self.clipping is None else clipped_statistics(self.clipping)
        return (1 - self.outage) * left

    def scattered(self, v: Complex[Tensor, "*S K"], real: bool) -> Float[Tensor, "*S K"]:
        """Power that devices of gains v add to a receiver's error beyond their changed mean gain, E|xi v - v E xi|^2.

        real: of the real part of xi v, with E xi^2 = exp(-2 phase^2) (1 - outage) and what clipping leaves of real
        symbols, which stays real.
        """
        if not real:
            return (self.power - self.mean**2) * v.abs().square()
        pseudo = math.exp(-2 * self.phase_rad**2) * self.power
        return 0.5 * (self.power * v.abs().square() + pseudo * v.square().real) - self.mean**2 * v.real.square()


NONE = Impairments()


def clipped_statistics(level: float) -> tuple[float, float]:
    """(gain, power left) of a complex Gaussian signal of unit power whose power is limited to `level`, phases kept.

    Bussgang: clip(x) = gain x + distortion, uncorrelated; gain = 1 - e^-c + sqrt(pi c)/2 erfc(sqrt c), power 1 - e^-c
    (Ochiai and Imai 2002). Drawn at the bandwidth of the signal, so all distortion falls in band.
    """
    gain = 1 - math.exp(-level) + math.sqrt(math.pi * level) / 2 * math.erfc(math.sqrt(level))
    return gain, 1 - math.exp(-level)


def clipped(sent: Complex[Tensor, "K uses"], level: float, subcarriers: int) -> Complex[Tensor, "K uses"]:
    """Transmitted symbols after an amplifier that clips each device's OFDM signal at `level` times its mean power.

    Uses fill OFDM symbols of `subcarriers`, the last one padded; sampled at the bandwidth, without filtering.
    """
    uses = sent.shape[1]
    padded = torch.nn.functional.pad(sent, (0, -uses % subcarriers))
    signal = torch.fft.ifft(padded.reshape(len(sent), -1, subcarriers), norm="ortho")
    size = signal.abs()
    most = (level * size.square().mean((1, 2), keepdim=True)).sqrt()
    signal = torch.where(size > most, signal * (most / size.clamp_min(1e-300)), signal)
    left: Tensor = torch.fft.fft(signal, norm="ortho").flatten(1)
    return left[:, :uses]


def factors(impairments: Impairments, seed: int, t: int, blocks: range, devices: int) -> Complex[Tensor, "B K"]:
    """xi of phase and outage in a round's blocks: e^{j phi}, or 0 in an outage. Random: a stream a block and kind."""
    found = torch.ones(len(blocks), devices, dtype=torch.complex128)
    for row, block in enumerate(blocks):
        if impairments.phase_rad:
            phase = torch.randn(devices, dtype=torch.float64, generator=stream(seed, "phase", t, block))
            found[row] = torch.polar(torch.ones_like(phase), impairments.phase_rad * phase)
        if impairments.outage:
            heard = (
                torch.rand(devices, dtype=torch.float64, generator=stream(seed, "outage", t, block))
                >= impairments.outage
            )
            found[row] = found[row] * heard
    return found


def audible(
    known: Complex[Tensor, "B M K"], gain: Float[Tensor, "*B M K"], truncation: float | None
) -> Complex[Tensor, "B M K"]:
    """Channel estimates as designs see them: 0 for a device whose channel is too faint in a block, ||h||^2 below
    `truncation` times its mean, so that it is silent there."""
    if truncation is None:
        return known
    faint = known.abs().square().sum(-2) < truncation * gain.sum(-2)
    return torch.where(faint[..., None, :], 0.0, known)
