"""The digital rival: gradients as bits, one device after another or in groups that the antennas tell apart.

Entries are stochastically rounded, so sums are unbiased, and no bit is lost: rates follow the estimated channel block
by block at a gap from capacity. Carrier phase is tracked by the pilots; outages cost repetition; clipping bounds the
SINR; channel errors count as noise. A device sends at its full power limit while it sends.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air import resources
from airpfed.air.impairments import clipped_statistics
from airpfed.air.network import csi_variance, estimated
from airpfed.air.quantization import rounded
from airpfed.air.row_chunks import chunks
from airpfed.air.schedule import SlotPlan, Uplink, groups_of
from airpfed.air.symbols import normalise
from airpfed.air.transmit import backhauled, scale_of, silence_of
from airpfed.core.rng import stream

BLOCKS = 8
"""Coherence blocks of a round over which rates are averaged."""


@dataclass(frozen=True)
class Airtime:
    """Uses of the channel by each device, and what the groups took: uses and pilot uses in all.

    blocks: coherence blocks that each device was told a scheme for.
    """

    own: Float[Tensor, " K"]
    uses: float
    pilots: int
    blocks: Float[Tensor, " K"]


def quantised(link: Uplink, slot: SlotPlan, t: int) -> dict[str, Tensor]:
    """A slot's sums of rounded gradients, and energies of their errors: (claimed, measured, ...) as in `uplink.Sums`.

    The error's variance is known exactly to the devices, which tell it as one scalar each. Random: the rounding.
    """
    assert link.digital is not None
    exact = torch.zeros(len(slot.weights), slot.vectors.shape[1], dtype=torch.float64)
    values, variance = torch.zeros_like(exact), torch.zeros_like(exact)
    random = stream(link.seed, "rounding", t, slot.name)
    for rows in chunks(*slot.vectors.shape):
        own, weights = slot.vectors[rows], slot.weights[:, rows]
        found, spare = rounded(own, link.digital.bits, random)
        exact += weights @ own
        values += weights @ found
        variance += weights.square() @ spare
    sums, hop = backhauled(link, slot, values, t, slot.name)
    spread = (slot.combining_matrix.square() @ (variance if hop is None else variance + hop)).sum(1)
    groups = [normalise(slot.vectors, slot.lengths, slot.weights, None, (a, b)) for a, b in groups_of(link, slot)]
    zero = torch.zeros_like(spread)
    return {
        "sums": (slot.combining_matrix @ sums).to(slot.vectors.dtype),
        "claimed": spread,
        "claimed_genie": spread,
        "measured": (slot.combining_matrix @ (sums - exact)).square().sum(1),
        "bias": zero,
        "variance": spread,
        "silence": sum((silence_of(slot, group) for group in groups), zero),
        "scale": sum((scale_of(slot, group) for group in groups), zero),
        "joules": torch.zeros(len(slot.devices), dtype=torch.float64),
    }


def airtime(link: Uplink, t: int, bits: Float[Tensor, " K"]) -> Airtime:
    """Channel uses of every device's bits; spatial: in groups of like strength, of the size that takes least time."""
    assert link.digital is not None
    order = link.network.gain.amax(0).argsort(descending=True)
    order = order[bits[order] > 0]
    largest = min(len(order), len(link.network.gain) * link.network.antennas if link.digital.spatial else 1)
    sizes = [1 << power for power in range(largest.bit_length())] if largest else []
    tried = [scheduled(link, t, bits, list(torch.split(order, size))) for size in sizes]
    zero = torch.zeros_like(bits)
    return min(tried, key=lambda one: one.uses + one.pilots, default=Airtime(zero, 0.0, 0, zero))


def scheduled(link: Uplink, t: int, bits: Float[Tensor, " K"], groups: list[Int[Tensor, " _G"]]) -> Airtime:
    """Groups one after another; a group lasts as long as its slowest device, which others wait for in silence.

    Every device of a group sends a pilot of its own in every coherence block that the group sees.
    """
    rate = rates_of(link, t, groups)
    own = torch.where(bits > 0, bits / rate.clamp_min(1e-12), 0.0)
    uses, pilots, blocks = 0.0, 0, torch.zeros_like(bits)
    for group in groups:
        lasting = float(own[group].max())
        seen = math.ceil(lasting / link.coherence_symbols)
        uses, pilots = uses + lasting, pilots + seen * len(group)
        blocks[group] = seen
    return Airtime(own, uses, pilots, blocks)


def rates_of(link: Uplink, t: int, groups: list[Int[Tensor, " _G"]]) -> Float[Tensor, " K"]:
    """Bits a channel use of each device, its group sending at once: a mean over blocks; linear MMSE receivers.

    two_hop: each device is heard by its own edge; else by all antennas together.
    """
    known, _ = estimated(link.network, link.csi_error, link.seed, t, range(BLOCKS))
    variance = csi_variance(link.network, link.csi_error).expand(known.shape[1], -1)
    each = link.network.antennas
    found = torch.zeros(len(link.samples), dtype=torch.float64)
    for group in groups:
        stations = torch.unique(link.task_of[group]).tolist() if link.topology == "two_hop" else [None]
        for station in stations:
            rows = slice(None) if station is None else slice(station * each, (station + 1) * each)
            ratio = sinr(known[:, rows][..., group], variance[rows][:, group], link.power[group], link.noise)
            own = torch.ones(len(group), dtype=torch.bool) if station is None else link.task_of[group] == station
            found[group[own]] = efficiency(link, ratio)[own]
    return found


def efficiency(link: Uplink, ratio: Float[Tensor, "B G"]) -> Float[Tensor, " G"]:
    """Bits a use, mean over blocks, with what clipping adds to the noise and what outages repeat."""
    if link.impairments.clipping is not None:
        gain, left = clipped_statistics(link.impairments.clipping)
        ratio = 1 / (1 / ratio.clamp_min(1e-12) + (left - gain**2) / gain**2)
    return (1 - link.impairments.outage) * resources.bits_per_use(ratio).mean(0)


def sinr(
    h: Complex[Tensor, "B M G"], variance: Float[Tensor, "M G"], power: Float[Tensor, " G"], noise: float
) -> Float[Tensor, "B G"]:
    """SINR of linear MMSE receivers that know the estimates h; their errors count as noise of the same power.

    x = P_k h_k^H C^-1 h_k with C the covariance of all that is heard; SINR = x / (1 - x).
    """
    sent = h * power.sqrt()
    C = sent @ sent.mH
    floor = noise + variance @ power
    C.diagonal(dim1=-2, dim2=-1).add_(floor.clamp_min(1e-15 * float(sent.abs().square().amax())))
    x = (sent.conj() * torch.linalg.solve(C, sent)).real.sum(1).clamp(0.0, 1 - 1e-12)
    ratio: Tensor = x / (1 - x)
    return ratio
