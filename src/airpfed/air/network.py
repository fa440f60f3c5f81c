"""A drop: the positions of stations and devices, their mean gains, and channels as a function of round and block."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.core.rng import complex_normals, stream

ChannelModel = Callable[[int, int, range], tuple[Tensor, Tensor]]
"""(seed, t, blocks) -> channels (B, M, K), and their part that needs no estimation: the line of sight, or 0."""


@dataclass(frozen=True)
class Deployment:
    """S stations of A antennas, stacked to M = S A antennas, and K devices.

    stations, devices: positions in the plane, metres. gain: mean power gain per antenna of a station, linear.
    antennas: A. names: prefix of the names of the drop's random streams.
    """

    stations: Float[Tensor, "S 2"]
    devices: Float[Tensor, "K 2"]
    gain: Float[Tensor, "S K"]
    antennas: int
    names: tuple[str | int, ...] = ()

    @property
    def antenna_gain(self) -> Float[Tensor, "M K"]:
        """The mean power gain from each device to each antenna, linear; the antennas of a station are neighbours."""
        return self.gain.repeat_interleave(self.antennas, 0)


@dataclass(frozen=True, kw_only=True)
class ChannelSite(Deployment):
    """A deployment as a channel model reads it.

    seed: of the drop. carrier_hz: carrier frequency. bandwidth_hz: bandwidth of the OFDM signal. subcarriers: their
    number. subcarrier_groups: G, groups of subcarriers with different channels; coherence block i of a round is group
    i mod G at time i // G. coherence_s: seconds of a coherence time. wrap_m: side of a square with wrap-around, metres,
    None for a plane.

    >>> import torch, airpfed as ap
    >>> def static(site, t, blocks):  # the same channels in every round and block
    ...     gain = site.antenna_gain
    ...     h = torch.randn(gain.shape, dtype=torch.complex128, generator=site.rng("static"))
    ...     return (gain.sqrt() * h).expand(len(blocks), -1, -1)
    >>> h = ap.single_cell(devices=[2, 2], antennas=4, channel=static).channels(t=1, blocks=2)
    >>> h.shape, bool((h[0] == h[1]).all())
    (torch.Size([2, 4, 4]), True)
    """

    seed: int
    carrier_hz: float
    bandwidth_hz: float
    subcarriers: int
    subcarrier_groups: int
    coherence_s: float
    wrap_m: float | None = None

    def rng(self, *names: str | int) -> torch.Generator:
        """The random generator of a name, such as ("fading", t, block): a function of seed, drop and name alone."""
        return stream(self.seed, *self.names, *names)

    def network(
        self, channel_model: ChannelModel, gain: Tensor | None = None, scattered: Tensor | None = None
    ) -> "Network":
        """The site with a channel model. gain, scattered: in place of the site's mean gains, (S, K)."""
        gain = self.gain if gain is None else gain
        return Network(
            stations=self.stations,
            devices=self.devices,
            gain=gain,
            antennas=self.antennas,
            names=self.names,
            scattered=gain if scattered is None else scattered,
            channel_model=channel_model,
        )


@dataclass(frozen=True, kw_only=True)
class Network(Deployment):
    """A deployment with its small-scale fading.

    scattered: mean power gain of the channel's part that must be estimated, linear.
    """

    scattered: Float[Tensor, "S K"]
    channel_model: ChannelModel


CsiError = float | Float[Tensor, "S K"]
"""c: the share of the scattered variance that channel estimates lack, for all channels or by station and device."""


@dataclass(frozen=True)
class Estimation:
    """How receivers come to know the channels of a block: from pilots, some time before the block's symbols.

    pilots: n, channel uses that every device sends pilots on in a block, at its power limit, while the other devices
    are silent; None for channels that are known but for `Uplink.csi_error`. contamination: power of foreign pilots on
    the same uses, for instance of a cell that reuses the sequences, relative to the mean power of the device's own
    pilots at the antenna. age: r, correlation of the channel that the pilots saw with the one that is used. derived:
    whether pilots follow from the size of a block, so that a scheme in which fewer devices send at once may take
    another number.
    """

    pilots: int | None = None
    contamination: float = 0.0
    age: float = 1.0
    derived: bool = False

    @property
    def uses(self) -> int:
        """The pilot uses of a device in a block that are charged."""
        return 1 if self.pilots is None else self.pilots


NO_PILOTS = Estimation()
"""Channels that are known, but for `Uplink.csi_error`."""


def pilot_error(
    gain: Float[Tensor, "S K"], power: Float[Tensor, " K"], noise: float, pilots: int, contamination: float = 0.0
) -> Float[Tensor, "S K"]:
    """The share of the variance that the MMSE estimate from n pilots lacks.

    n pilot uses of power P_k give sqrt(n P_k) (h_k + f_k) + z with f_k ~ CN(0, kappa g_k) from foreign pilots of the
    same sequence, so that c_k = (kappa n P_k g_k + sigma2) / ((1 + kappa) n P_k g_k + sigma2): 1/(1 + n P_k g_k /
    sigma2) without them, and never below kappa/(1 + kappa) with them. gain: mean power gain of the part that is
    estimated, linear. power, noise: watts. contamination: kappa. 1 where nothing arrives.
    """
    received = pilots * power * gain
    total = (1 + contamination) * received + noise
    return torch.where(total > 0, (contamination * received + noise) / total.clamp_min(1e-300), 1.0)


def aged_error(csi_error: CsiError, age: float) -> CsiError:
    """The share that r times an older estimate lacks of the channel that is used, c r^2 + 1 - r^2.

    age: r, the correlation of both channels. The channel is r times the older one plus an independent part of the
    variance (1 - r^2) g, so that its linear MMSE estimate is r times that of the older one.
    """
    return csi_error if age == 1 else csi_error * age**2 + (1 - age**2)


def csi_variance(network: Network, csi_error: CsiError) -> Float[Tensor, "m K"]:
    """The variance of the channel estimates' errors: one row per antenna, or one row if all antennas have the same."""
    variance = csi_error * network.scattered
    return variance if len(variance) == 1 else variance.repeat_interleave(network.antennas, 0)


def estimate_channels(
    network: Network, csi_error: CsiError, seed: int, t: int, blocks: range
) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:
    """Draw the channels h of a round's coherence blocks and their estimates; returns (h_est, h).

    h_est is the linear MMSE estimate from a noisy observation of the scattered part: (1 - c)(h + v) with
    v ~ CN(0, c/(1 - c) gain) and c = csi_error. The error has the variance c gain; with Gaussian fading it is
    independent of h_est. Random: fading and channel estimation, each with its own stream for every block of a round.
    """
    h, los = network.channel_model(seed, t, blocks)
    share: float | Tensor
    ratio: float | Tensor
    if isinstance(csi_error, Tensor):
        share = csi_error.repeat_interleave(network.antennas, 0)
        # A channel of which nothing is known, c = 1, has an estimate of 0.
        ratio = csi_error / (1 - csi_error).clamp_min(1e-30)
    elif csi_error == 0:
        return h, h
    else:
        share, ratio = csi_error, csi_error / (1 - csi_error)
    spread = (ratio * network.scattered).sqrt().repeat_interleave(network.antennas, 0)
    noise = complex_normals(seed, (*network.names, "csi error", t), blocks, spread.shape)
    return los + (1 - share) * (h - los + noise * spread), h


def serving_gain(network: Network, local_station: bool, station_of: Tensor) -> Float[Tensor, " K"]:
    """The mean power gain of each device, summed over the antennas that serve it.

    local_station: whether a device is served by its task's station alone, station_of (K), or by all stations.
    """
    total = network.gain.gather(0, station_of[None])[0] if local_station else network.gain.sum(0)
    return network.antennas * total
