"""Interference from outside: other cells or a jammer, as coloured noise at the receiver's antennas.

y = sum_k h_k b_k x_k + sum_j g_j sqrt(Q_j) x_j + z has noise of the covariance R = sigma2 I + sum_j Q_j g_j g_j^H. In
the eigenvectors of R, scaled to white noise, the problem of a design is one of white noise again, with other channels:
no design needs to know of interference. CSI errors then have a variance of their own at every transformed antenna.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from airpfed.core.rng import stream


@dataclass(frozen=True)
class Interference:
    """The interferers of a single cell, with Rayleigh fading that is new in every coherence block.

    power: Q_j, mean power at an antenna while interferer j sends, watts. load: probability that it sends in a block.
    has_covariance: whether the receiver knows R of each block, or only its mean (sigma2 + sum_j load_j Q_j) I.
    """

    power: Float[Tensor, " J"]
    load: Float[Tensor, " J"]
    has_covariance: bool = True

    @property
    def mean_power(self) -> float:
        """The mean power of all interferers at an antenna, watts."""
        return float(self.load @ self.power)


@dataclass(frozen=True)
class ReceivedChannels:
    """The channels of B coherence blocks as receivers meet them, at antennas or at combinations of them.

    h_est, h: estimates and true channels. csi_variance: variance of the estimates' errors, with a leading axis for
    blocks that differ. antenna_noise: true noise power at each antenna where it is not `Uplink.noise` for all.
    """

    h_est: Complex[Tensor, "B M K"]
    h: Complex[Tensor, "B M K"]
    csi_variance: Float[Tensor, "... K"]
    antenna_noise: Float[Tensor, "B M"] | None = None


def least_snr_share(interference: Interference, noise: float, antennas: int) -> float:
    """The share of the mean SNR of all antennas together that is left under interference, at least.

    Receivers that know R have tr(sigma2 R^-1) / M of it. Where n interferers send, all but n of R's eigenvalues are
    sigma2, so that this is at least 1 - sum_j load_j / M in the mean. And the mean of R^-1 is at least the inverse of
    the mean of R, so that it is at least sigma2 / (sigma2 + sum_j load_j Q_j), which is what receivers have that know
    the mean only.
    """
    as_noise = noise / (noise + interference.mean_power)
    return max(as_noise, 1 - float(interference.load.sum()) / antennas) if interference.has_covariance else as_noise


def covariance(
    interference: Interference, noise: float, antennas: int, seed: int, names: tuple[str | int, ...], blocks: range
) -> Complex[Tensor, "B M M"]:
    """Draw R of a round's coherence blocks. Random: stream (seed, names, block)."""
    rows = []
    for block in blocks:
        rng = stream(seed, *names, block)
        g = torch.randn(antennas, len(interference.power), dtype=torch.complex128, generator=rng)
        active: Bool[Tensor, " J"] = torch.rand(len(interference.load), generator=rng).double() < interference.load
        g = g * (interference.power * active).sqrt()
        rows.append(g @ g.mH)
    total: Tensor = torch.stack(rows) + noise * torch.eye(antennas, dtype=torch.complex128)
    return total


def whiten(
    interference: Interference, noise: float, R: Complex[Tensor, "B M M"], channels: ReceivedChannels
) -> ReceivedChannels:
    """Change the antennas of each block to the eigenvectors of R, and scale them to the noise power if R is known.

    With U the eigenvectors and lambda_a the eigenvalues, row a of a channel becomes sqrt(noise / lambda_a) u_a^H h and
    the variance of its error, equal at all antennas before, becomes noise / lambda_a times that. If only the mean of R
    is known the antennas are only rotated, which nobody sees, and the true noise at antenna a is lambda_a.
    """
    values, vectors = torch.linalg.eigh(R)
    values = values.clamp_min(noise)  # no eigenvalue of R is smaller, but for rounding
    h_est, h = vectors.mH @ channels.h_est, vectors.mH @ channels.h
    if not interference.has_covariance:
        return ReceivedChannels(h_est, h, channels.csi_variance, values)
    scale = noise / values
    variance = channels.csi_variance.reshape(-1, channels.csi_variance.shape[-1])[:1] * scale[..., None]
    return ReceivedChannels(scale.sqrt()[..., None] * h_est, scale.sqrt()[..., None] * h, variance)
