"""What a round costs: what its slots, their pilots, side information and feedback come to, over the air or as bits."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air import resources
from airpfed.air.digital import airtime
from airpfed.air.network import serving_gain
from airpfed.air.quantization import bits_of
from airpfed.air.schedule import SlotPlan, Uplink, groups_of, over_backhaul, slot_uses
from airpfed.air.segments import block_ranges_of
from airpfed.air.symbols import uses_of
from airpfed.core.run_files import Ledger


def round_ledger(
    link: Uplink, slots: Sequence[SlotPlan], joules_of: Sequence[Float[Tensor, " _K"]], t: int, d_s: int
) -> Ledger:
    """A round's ledger; joules_of: of each slot's streams (over the air)."""
    return analog_ledger(link, slots, joules_of, d_s) if link.digital is None else digital_ledger(link, slots, t, d_s)


def side_scalars(link: Uplink, slot: SlotPlan, factors: int) -> int:
    """Scalars a stream's device tells in a slot: its largest power, or mean and variance of every normaliser group.

    Where slots share energy, also the power of its symbols for each of its `factors`.
    """
    return (1 if link.normalizer == "common" else 2 * len(slot.groups)) + (factors if link.refine is not None else 0)


def analog_ledger(
    link: Uplink, slots: Sequence[SlotPlan], joules_of: Sequence[Float[Tensor, " _K"]], d_s: int
) -> Ledger:
    """A round over the air; joules_of: of each slot's streams.

    The error-free link is charged for its channel uses, downlink and backhaul only.
    """
    devices = len(link.samples)
    joules, scalars, told = (torch.zeros(devices, dtype=torch.float64) for _ in range(3))
    uses = [slot_uses(link, slot) for slot in slots]
    pilots, place, estimated_to = 0, 0, torch.full((devices,), -1)
    for slot, spent, count in zip(slots, joules_of, uses, strict=True):
        joules.index_add_(0, slot.devices, spent)
        factors = designs_of(link, slot, place)
        scalars.index_add_(0, slot.devices, torch.full_like(spent, side_scalars(link, slot, factors)))
        told.index_add_(0, slot.devices, torch.full_like(spent, factors))
        first, last = place // link.coherence_symbols, (place + count - 1) // link.coherence_symbols
        sending = torch.unique(slot.devices)
        pilots += int((last + 1 - (estimated_to[sending] + 1).clamp(min=first)).sum())
        estimated_to[sending] = last
        place += count
    if link.design is None:
        pilots, scalars, told = 0, torch.zeros_like(scalars), torch.zeros_like(told)
    traffic = resources.Traffic(
        slot_uses=tuple(uses),
        pilot_uses=pilots,
        side_bits=resources.BITS_PER_SCALAR * scalars,
        feedback_bits=resources.FACTOR_BITS * told,
        downlink_bits=downlink_bits(link, d_s),
        backhaul_bits=backhaul_bits(link, slots),
    )
    return resources.entry(traffic, joules, rates(link), link.bandwidth_hz, link.subcarriers)


def digital_ledger(link: Uplink, slots: Sequence[SlotPlan], t: int, d_s: int) -> Ledger:
    """A round of bits, in the best of the groupings tried."""
    assert link.digital is not None
    bits = torch.zeros(len(link.samples), dtype=torch.float64)
    scalars = torch.zeros_like(bits)
    for slot in slots:
        each = [float(bits_of(int(length), link.digital.bits)) for length in slot.lengths]
        bits.index_add_(0, slot.devices, torch.tensor(each, dtype=torch.float64))
        scalars.index_add_(0, slot.devices, torch.ones(len(slot.devices), dtype=torch.float64))
    time = airtime(link, t, bits)
    traffic = resources.Traffic(
        slot_uses=(math.ceil(time.uses),),
        pilot_uses=time.pilots,
        side_bits=resources.BITS_PER_SCALAR * scalars,
        feedback_bits=resources.SCHEME_BITS * time.blocks,
        downlink_bits=downlink_bits(link, d_s),
        backhaul_bits=backhaul_bits(link, slots),
    )
    joules = link.power * time.own * resources.use_seconds(link.bandwidth_hz)
    return resources.entry(traffic, joules, rates(link), link.bandwidth_hz, link.subcarriers)


def designs_of(link: Uplink, slot: SlotPlan, place: int) -> int:
    """Transmit factors that a stream's device is told for a slot: one a normaliser group and coherence block."""
    count = 0
    for first, last in groups_of(link, slot):
        uses = uses_of(last - first, link.packing)
        count += len(block_ranges_of(place, uses, link.coherence_symbols)[0])
        place += uses
    return count


def downlink_bits(link: Uplink, d_s: int) -> int:
    """Adapters broadcast to the devices: s to all, each task's p to its own."""
    return resources.BITS_PER_SCALAR * (d_s + sum(link.lengths))


def backhaul_bits(link: Uplink, slots: Sequence[SlotPlan]) -> int:
    """Edges' s-sums on their way to the global server; an error-free backhaul is charged 32 bits an entry."""
    total = 0
    for slot in slots:
        edges = over_backhaul(link, slot)
        if bool(edges.any()):
            entries, bits = int(slot.lengths[edges[slot.group_of]].max()), link.backhaul_bits
            total += int(edges.sum()) * (
                resources.BITS_PER_SCALAR * entries if bits is None else bits_of(entries, bits)
            )
    return total


def rates(link: Uplink) -> Float[Tensor, " K"]:
    """Bits per second of each device alone on the band, on average over fading."""
    served = serving_gain(link.network, link.topology == "two_hop", link.task_of)
    return resources.digital_rate(served, link.power, link.noise, link.bandwidth_hz)
