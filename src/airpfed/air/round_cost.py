"""The cost of a round: slots, pilots, side information, feedback, downlink and backhaul, over the air or as bits."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air import resources
from airpfed.air.digital import Bits, DigitalAccess, airtime
from airpfed.air.network import serving_gain
from airpfed.air.quantization import bits_of
from airpfed.air.schedule import SlotPlan, Uplink, normalizer_groups, over_backhaul, slot_uses
from airpfed.air.segments import block_ranges_of
from airpfed.air.symbols import uses_of
from airpfed.core.run_files import Ledger


def round_ledger(
    link: Uplink, slots: Sequence[SlotPlan], joules_of: Sequence[Float[Tensor, " _K"]], t: int, d_s: int
) -> Ledger:
    """The ledger of a round. joules_of: radiated energy of each slot's streams; a scheme may compute its own."""
    return analog_ledger(link, slots, joules_of, d_s) if link.cost is None else link.cost(link, slots, t, d_s)


def analog_ledger(
    link: Uplink, slots: Sequence[SlotPlan], joules_of: Sequence[Float[Tensor, " _K"]], d_s: int
) -> Ledger:
    """The ledger of a round over the air. joules_of: radiated energy of each slot's streams.

    The error-free link is charged for its channel uses, downlink and backhaul only.
    """
    devices = len(link.samples)
    joules, scalars, feedback = (torch.zeros(devices, dtype=torch.float64) for _ in range(3))
    uses = [slot_uses(link, slot) for slot in slots]
    estimated_blocks, first_use, last_estimated = torch.zeros_like(joules), 0, torch.full((devices,), -1)
    for slot, slot_joules, count in zip(slots, joules_of, uses, strict=True):
        joules.index_add_(0, slot.devices, slot_joules)
        factors = num_transmit_factors(link, slot, first_use)
        scalars.index_add_(0, slot.devices, torch.full_like(slot_joules, num_side_scalars(link, slot, factors)))
        feedback.index_add_(0, slot.devices, torch.full_like(slot_joules, factors))
        first, last = first_use // link.coherence_symbols, (first_use + count - 1) // link.coherence_symbols
        senders = torch.unique(slot.devices)
        estimated_blocks[senders] += last + 1 - (last_estimated[senders] + 1).clamp(min=first)
        last_estimated[senders] = last
        first_use += count
    if link.design is None:
        estimated_blocks, scalars, feedback = (torch.zeros_like(scalars) for _ in range(3))
    traffic = resources.Traffic(
        slot_uses=tuple(uses),
        pilot_uses=link.estimation.uses * int(estimated_blocks.sum()),
        side_bits=resources.BITS_PER_SCALAR * scalars,
        feedback_bits=(link.feedback_bits or resources.FACTOR_BITS) * feedback,
        downlink_bits=downlink_bits(link, d_s),
        backhaul_bits=backhaul_bits(link, slots),
    )
    joules = joules + pilot_joules(link, estimated_blocks)
    return resources.ledger_of(traffic, joules, rates(link), link.bandwidth_hz, link.subcarriers)


def pilot_joules(link: Uplink, blocks: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """The energy of each device's pilots at its power limit; none if channels are known. blocks: their number."""
    uses = (link.estimation.pilots or 0) * blocks
    return link.power_limit * uses * resources.use_seconds(link.bandwidth_hz)


def digital_ledger(
    link: Uplink, slots: Sequence[SlotPlan], t: int, d_s: int, *, bits: Bits = 4, access: DigitalAccess = "orthogonal"
) -> Ledger:
    """The ledger of a round of bits, in the best of the compared groups of devices. bits, access: the scheme's."""
    device_bits = torch.zeros(len(link.samples), dtype=torch.float64)
    scalars = torch.zeros_like(device_bits)
    for slot in slots:
        slot_bits = [float(bits_of(int(length), bits)) for length in slot.lengths]
        device_bits.index_add_(0, slot.devices, torch.tensor(slot_bits, dtype=torch.float64))
        scalars.index_add_(0, slot.devices, torch.ones(len(slot.devices), dtype=torch.float64))
    time = airtime(link, t, device_bits, access)
    traffic = resources.Traffic(
        slot_uses=(math.ceil(time.uses),),
        pilot_uses=time.pilots,
        side_bits=resources.BITS_PER_SCALAR * scalars,
        feedback_bits=resources.SCHEME_BITS * time.blocks,
        downlink_bits=downlink_bits(link, d_s),
        backhaul_bits=backhaul_bits(link, slots),
    )
    joules = link.power_limit * time.device_uses * resources.use_seconds(link.bandwidth_hz)
    joules = joules + pilot_joules(link, time.blocks)
    return resources.ledger_of(traffic, joules, rates(link), link.bandwidth_hz, link.subcarriers)


def num_side_scalars(link: Uplink, slot: SlotPlan, factors: int) -> int:
    """The scalars that a stream's device reports in a slot: its largest power, or mean and variance of each group.

    Where slots share energy, the device also reports the power of its symbols for each of its transmit factors; where
    the power limit holds for every OFDM symbol, the power of each group's largest symbol.
    """
    statistics = 1 if link.normalizer == "common" else 2 * len(slot.groups)
    largest = len(normalizer_groups(link, slot)) if link.power_over == "symbol" else 0
    return statistics + largest + (factors if link.refine is not None else 0)


def num_transmit_factors(link: Uplink, slot: SlotPlan, first_use: int) -> int:
    """The transmit factors that a stream's device receives for a slot: one a normaliser group and coherence block."""
    count = 0
    for first, last in normalizer_groups(link, slot):
        uses = uses_of(last - first, link.packing)
        count += len(block_ranges_of(first_use, uses, link.coherence_symbols)[0])
        first_use += uses
    return count


def downlink_bits(link: Uplink, d_s: int) -> int:
    """The bits of the adapters that are broadcast: s to all devices, each task's p to its own devices."""
    return resources.BITS_PER_SCALAR * (d_s + sum(link.lengths))


def backhaul_bits(link: Uplink, slots: Sequence[SlotPlan]) -> int:
    """The bits of the edges' s-sums to the global server; an error-free backhaul is charged 32 bits an entry."""
    total = 0
    for slot in slots:
        edges = over_backhaul(link, slot)
        if bool(edges.any()):
            entries, bits = int(slot.lengths[edges[slot.target_of]].max()), link.backhaul_bits
            total += int(edges.sum()) * (
                resources.BITS_PER_SCALAR * entries if bits is None else bits_of(entries, bits)
            )
    return total


def rates(link: Uplink) -> Float[Tensor, " K"]:
    """The bits per second of each device alone on the band, for its mean gain over fading."""
    gain = serving_gain(link.network, link.topology == "two_hop", link.task_of)
    return resources.digital_rate(gain, link.power_limit, link.noise, link.bandwidth_hz)
