"""The digital uplink: gradients as bits, sent by one device after another or in groups separated by the antennas.

Entries are rounded stochastically, so that the sums are unbiased, and no bit is lost: rates follow the estimated
channel block by block, at a gap to capacity. Pilots track the carrier phase; outages cost repetition; clipping bounds
the SINR; channel estimation errors count as noise. A device sends at its full power limit.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Complex, Float, Int
from pydantic import Field
from torch import Tensor

from airpfed.air import resources
from airpfed.air.impairments import clipped_statistics
from airpfed.air.interference import ReceivedChannels, covariance, whiten
from airpfed.air.quantization import round_stochastically
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import SlotPlan, Uplink
from airpfed.air.slot_errors import ReceivedSums, SlotErrors, slot_scales
from airpfed.air.transmit import pass_backhaul
from airpfed.core.rng import stream

BLOCKS = 8
"""Number of coherence blocks of a round over which rates are averaged."""


Bits = Annotated[Literal[1, 2, 4, 8], Field(description="bits per entry, stochastically rounded")]
DigitalAccess = Annotated[
    Literal["orthogonal", "spatial"],
    Field(description="orthogonal: devices one after another; spatial: groups of devices that the antennas separate"),
]


@dataclass(frozen=True)
class Airtime:
    """The channel uses of a round.

    device_uses: channel uses of each device. uses, pilots: data and pilot uses of all groups. blocks: number of
    coherence blocks in which each device gets a modulation and coding scheme.
    """

    device_uses: Float[Tensor, " K"]
    uses: float
    pilots: int
    blocks: Float[Tensor, " K"]


def send_quantised(
    link: Uplink, slot: SlotPlan, t: int, *, bits: Bits = 4, access: DigitalAccess = "orthogonal"
) -> ReceivedSums:
    """Gradients as bits, by stochastic rounding; the servers add up the rounded gradients.

    bits: bits an entry. access: see `DigitalAccess`; it decides the time on air, not the sums. The devices know the
    variance of rounding exactly and report it as one scalar each. Random: the rounding.
    """
    exact = torch.zeros(len(slot.weights), slot.vectors.shape[1], dtype=torch.float64)
    values, variance = torch.zeros_like(exact), torch.zeros_like(exact)
    rng = stream(link.seed, "rounding", t, slot.name)
    for rows in row_chunks(*slot.vectors.shape):
        gradients, weights = slot.vectors[rows], slot.weights[:, rows]
        rounded, rounding_variance = round_stochastically(gradients, bits, rng)
        exact += weights @ gradients
        values += weights @ rounded
        variance += weights.square() @ rounding_variance
    sums, backhaul_variance = pass_backhaul(link, slot, values, t, slot.name)
    total_variance = variance if backhaul_variance is None else variance + backhaul_variance
    error = (slot.combining_matrix.square() @ total_variance).sum(1)
    zero_estimate_error, scale = slot_scales(link, slot)
    return ReceivedSums(
        sums=(slot.combining_matrix @ sums).to(slot.vectors.dtype),
        errors=SlotErrors(
            claimed=error,
            claimed_genie=error,
            measured=(slot.combining_matrix @ (sums - exact)).square().sum(1),
            bias=torch.zeros_like(error),
            variance=error,
            zero_estimate_error=zero_estimate_error,
            scale=scale,
        ),
        joules=torch.zeros(len(slot.devices), dtype=torch.float64),
    )


def airtime(link: Uplink, t: int, bits: Float[Tensor, " K"], access: DigitalAccess) -> Airtime:
    """The channel uses of all devices' bits; spatial access takes groups of similar gain, of the fastest size."""
    order = link.network.gain.amax(0).argsort(descending=True)
    order = order[bits[order] > 0]
    largest = min(len(order), len(link.network.gain) * link.network.antennas if access == "spatial" else 1)
    sizes = [1 << power for power in range(largest.bit_length())] if largest else []
    candidates = [group_airtime(link, t, bits, list(torch.split(order, size))) for size in sizes]
    zero = torch.zeros_like(bits)
    return min(candidates, key=lambda airtime: airtime.uses + airtime.pilots, default=Airtime(zero, 0.0, 0, zero))


def group_airtime(link: Uplink, t: int, bits: Float[Tensor, " K"], groups: list[Int[Tensor, " _G"]]) -> Airtime:
    """The airtime of groups that send one after another: uses, pilots, blocks.

    A group lasts as long as its slowest device; the others wait in silence. Every device of a group sends a pilot in
    every coherence block of the group.
    """
    rate = rates_of(link, t, groups)
    device_uses = torch.where(bits > 0, bits / rate.clamp_min(1e-12), 0.0)
    uses, pilots, blocks = 0.0, 0, torch.zeros_like(bits)
    for group in groups:
        group_uses = float(device_uses[group].max())
        group_blocks = math.ceil(group_uses / link.coherence_symbols)
        uses, pilots = uses + group_uses, pilots + group_blocks * len(group) * link.estimation.uses
        blocks[group] = group_blocks
    return Airtime(device_uses, uses, pilots, blocks)


def rates_of(link: Uplink, t: int, groups: list[Int[Tensor, " _G"]]) -> Float[Tensor, " K"]:
    """Bits a channel use of each device while its group sends, the mean over blocks, with linear MMSE receivers.

    In two_hop a device is received by its task's edge, otherwise by all antennas together.
    """
    h_est, variance = rate_channels(link, t)
    per_station = link.network.antennas
    rates = torch.zeros(len(link.samples), dtype=torch.float64)
    for group in groups:
        stations = torch.unique(link.task_of[group]).tolist() if link.topology == "two_hop" else [None]
        for station in stations:
            antennas = slice(None) if station is None else slice(station * per_station, (station + 1) * per_station)
            ratio = sinr(
                h_est[:, antennas][..., group],
                variance[..., antennas, :][..., group],
                link.power_limit[group],
                link.assumed_noise,
            )
            served = torch.ones(len(group), dtype=torch.bool) if station is None else link.task_of[group] == station
            rates[group[served]] = efficiency(link, ratio)[served]
    return rates


def rate_channels(link: Uplink, t: int) -> tuple[Complex[Tensor, "B M K"], Float[Tensor, "*B M K"]]:
    """Estimates of the channels of BLOCKS blocks, and the variances of their errors, with interference whitened."""
    h_est, h = link.estimates(t, range(BLOCKS))
    variance = link.csi_variance.expand(h_est.shape[1], -1)
    if link.interference is None:
        return h_est, variance
    R = covariance(link.interference, link.noise, h.shape[1], link.seed, t, range(BLOCKS))
    received = whiten(link.interference, link.noise, R, ReceivedChannels(h_est, h, variance))
    return received.h_est, received.csi_variance


def efficiency(link: Uplink, ratio: Float[Tensor, "B G"]) -> Float[Tensor, " G"]:
    """Bits a use, the mean over blocks, with the distortion of clipping as noise and repetition after an outage."""
    if link.impairments.clipping is not None:
        gain, left = clipped_statistics(link.impairments.clipping)
        ratio = 1 / (1 / ratio.clamp_min(1e-12) + (left - gain**2) / gain**2)
    return (1 - link.impairments.outage) * resources.bits_per_use(ratio).mean(0)


def sinr(
    h: Complex[Tensor, "B M G"], variance: Float[Tensor, "*B M G"], power: Float[Tensor, " G"], noise: float
) -> Float[Tensor, "B G"]:
    """The SINR of linear MMSE receivers for channel estimates h, whose errors count as noise of the same power.

    x = P_k h_k^H C^-1 h_k with C the covariance of the received signal; SINR = x / (1 - x).
    """
    scaled = h * power.sqrt()
    C = scaled @ scaled.mH
    floor = noise + variance @ power
    C.diagonal(dim1=-2, dim2=-1).add_(floor.clamp_min(1e-15 * float(scaled.abs().square().amax())))
    x = (scaled.conj() * torch.linalg.solve(C, scaled)).real.sum(1).clamp(0.0, 1 - 1e-12)
    ratio: Tensor = x / (1 - x)
    return ratio
