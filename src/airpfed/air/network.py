"""One drop: where everything is, the mean power that arrives, and channels as functions of round and block."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.core.rng import stream

ChannelModel = Callable[[int, int, range], tuple[Tensor, Tensor]]
"""(seed, t, blocks) -> channels (B, M, K), and the part of them that needs no estimation (a line of sight, or 0)."""


@dataclass(frozen=True)
class Network:
    """S stations of A antennas, stacked to M = S A, and K devices.

    stations, devices: places in the plane, metres. gain: mean power gain per antenna of a station, linear; scattered:
    that of the part which must be estimated. antennas: A. names: of the random streams.
    """

    stations: Float[Tensor, "S 2"]
    devices: Float[Tensor, "K 2"]
    gain: Float[Tensor, "S K"]
    scattered: Float[Tensor, "S K"]
    antennas: int
    fade: ChannelModel
    names: tuple[str | int, ...] = ()


def csi_variance(network: Network, csi_error: float) -> Float[Tensor, "m K"]:
    """Variance of the channel estimates' errors, of every antenna, or one row where all antennas have the same."""
    variance = csi_error * network.scattered
    return variance if len(variance) == 1 else variance.repeat_interleave(network.antennas, 0)


def estimated(
    network: Network, csi_error: float, seed: int, t: int, blocks: range
) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:
    """Channel estimates and true channels of a round's coherence blocks, h = estimate + error.

    The linear MMSE estimate from a noisy look at the scattered part: (1 - c)(h + v), v ~ CN(0, c/(1 - c) gain), which
    leaves an error of variance c gain, c = csi_error; for Gaussian fading it is independent of the estimate. Random:
    fading and CSI error, each block of each round from streams of its own.
    """
    true, los = network.fade(seed, t, blocks)
    if csi_error == 0:
        return true, true
    spread = (csi_error / (1 - csi_error) * network.scattered).sqrt().repeat_interleave(network.antennas, 0)
    looks = [
        torch.randn(spread.shape, dtype=torch.complex128, generator=stream(seed, *network.names, "csi error", t, block))
        for block in blocks
    ]
    return los + (1 - csi_error) * (true - los + torch.stack(looks) * spread), true


def serving_gain(network: Network, own: bool, station_of: Tensor) -> Float[Tensor, " K"]:
    """Mean power gain of each device summed over the antennas that serve it.

    own: those of the device's own station, station_of (K), alone; else all.
    """
    total = network.gain.sum(0) if not own else network.gain.gather(0, station_of[None])[0]
    return network.antennas * total
