"""The cost of a round: slots, pilots, side information, feedback, downlink and backhaul, over the air or as bits."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air import resources
from airpfed.air.digital import (
    Bits,
    DigitalAccess,
    Entropy,
    QuantizerName,
    TopShare,
    airtime,
    slot_bits,
    with_fastest_pilots,
)
from airpfed.air.interference import least_snr_share
from airpfed.air.network import serving_gain
from airpfed.air.quantization import bits_of
from airpfed.air.quantizers import QUANTIZERS
from airpfed.air.resources import use_seconds
from airpfed.air.schedule import SlotPlan, Uplink, normalizer_groups, over_backhaul, slot_uses
from airpfed.air.segments import block_ranges_of
from airpfed.air.symbols import uses_of
from airpfed.core.run_files import Ledger


def round_ledger(
    link: Uplink, slots: Sequence[SlotPlan], joules_of: Sequence[Float[Tensor, " _K"]], t: int, d_s: int
) -> Ledger:
    """The ledger of a round. joules_of: radiated energy of each slot's streams; a scheme may compute its own."""
    if link.cost is None:
        return analog_ledger(link, slots, joules_of, d_s)
    return complete_ledger(link, link.cost(link, slots, t, d_s), d_s)


def complete_ledger(link: Uplink, ledger: Ledger, d_s: int) -> Ledger:
    """A scheme's own ledger with its totals, and with seconds of the downlink and heat where it leaves them out."""
    downlink, radiated, amplifier = ledger.downlink_seconds, ledger.radiated_joules, ledger.amplifier_joules
    if ledger.downlink_bits and not downlink:
        downlink = sum(listening_seconds(link, d_s))
    if radiated < ledger.joules_mean:
        radiated = ledger.joules_mean
        amplifier = radiated * (1 / link.amplifier_efficiency - 1)
    total = radiated + amplifier + ledger.circuit_joules
    return ledger.model_copy(
        update={
            "downlink_seconds": downlink,
            "total_seconds": ledger.air_seconds + downlink,
            "radiated_joules": radiated,
            "amplifier_joules": amplifier,
            "total_joules_mean": total,
            "total_joules_max": max(ledger.total_joules_max, ledger.joules_max / link.amplifier_efficiency, total),
        }
    )


def analog_ledger(
    link: Uplink, slots: Sequence[SlotPlan], joules_of: Sequence[Float[Tensor, " _K"]], d_s: int
) -> Ledger:
    """The ledger of a round over the air. joules_of: radiated energy of each slot's streams.

    The error-free link is charged for its channel uses, downlink, backhaul and circuits only.
    """
    devices = len(link.samples)
    joules, scalars, feedback, sending = (torch.zeros(devices, dtype=torch.float64) for _ in range(4))
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
        sending[senders] += math.ceil(count / link.subcarriers) * link.subcarriers * use_seconds(link.bandwidth_hz)
        last_estimated[senders] = last
        first_use += count
    if link.design is None:
        estimated_blocks, scalars, feedback = (torch.zeros_like(scalars) for _ in range(3))
    listening = listening_seconds(link, d_s)
    traffic = resources.Traffic(
        slot_uses=tuple(uses),
        pilot_uses=link.estimation.uses * int(estimated_blocks.sum()),
        side_bits=resources.BITS_PER_SCALAR * scalars,
        feedback_bits=(link.feedback_bits or resources.FACTOR_BITS) * feedback,
        downlink_bits=downlink_bits(link, d_s),
        backhaul_bits=backhaul_bits(link, slots),
        downlink_seconds=sum(listening),
    )
    joules = joules + pilot_joules(link, estimated_blocks)
    radio = radio_use(link, estimated_blocks, sending, listening)
    return resources.ledger_of(traffic, joules, rates(link), link.bandwidth_hz, link.subcarriers, radio)


def pilot_joules(link: Uplink, blocks: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """The energy of each device's pilots at its power limit; none if channels are known. blocks: their number."""
    uses = (link.estimation.pilots or 0) * blocks
    return link.power_limit * uses * resources.use_seconds(link.bandwidth_hz)


def digital_ledger(
    link: Uplink,
    slots: Sequence[SlotPlan],
    t: int,
    d_s: int,
    *,
    bits: Bits = 4,
    access: DigitalAccess = "orthogonal",
    quantizer: QuantizerName = "uniform",
    share: TopShare = None,
    entropy: Entropy = False,
) -> Ledger:
    """The ledger of a round of bits, in the best of the compared groups of devices. Options: the scheme's."""
    device_bits = torch.zeros(len(link.samples), dtype=torch.float64)
    scalars = torch.zeros_like(device_bits)
    for slot in slots:
        device_bits.index_add_(0, slot.devices, slot_bits(link, slot, t, bits, quantizer, share, entropy))
        if QUANTIZERS[quantizer].unbiased:  # the variance of rounding, of which the others claim none
            scalars.index_add_(0, slot.devices, torch.ones(len(slot.devices), dtype=torch.float64))
    link = with_fastest_pilots(link, t, device_bits, access)
    time, listening = airtime(link, t, device_bits, access), listening_seconds(link, d_s)
    traffic = resources.Traffic(
        slot_uses=(math.ceil(time.uses),),
        pilot_uses=time.pilots,
        side_bits=resources.BITS_PER_SCALAR * scalars,
        feedback_bits=resources.SCHEME_BITS * time.blocks,
        downlink_bits=downlink_bits(link, d_s),
        backhaul_bits=backhaul_bits(link, slots),
        downlink_seconds=sum(listening),
    )
    sending = time.device_uses * use_seconds(link.bandwidth_hz)
    radio = radio_use(link, time.blocks, sending, listening)
    joules = link.power_limit * time.device_uses * use_seconds(link.bandwidth_hz)
    joules = joules + pilot_joules(link, time.blocks)
    return resources.ledger_of(traffic, joules, rates(link), link.bandwidth_hz, link.subcarriers, radio)


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


def radio_use(
    link: Uplink, blocks: Float[Tensor, " K"], sending: Float[Tensor, " K"], listening: Sequence[float]
) -> resources.RadioUse:
    """What a round asks of the devices' radios.

    blocks: coherence blocks in which each device sends pilots; one use in each where channels are known, whose energy
    `pilot_joules` does not have. sending: seconds of each device's gradients. listening: seconds of the broadcasts, as
    `listening_seconds` gives them; every device receives s and its own task's p.
    """
    shared, *personal = listening
    use = use_seconds(link.bandwidth_hz)
    return resources.RadioUse(
        power=link.power_limit,
        pilot_seconds=link.estimation.uses * blocks * use,
        pilot_joules=link.power_limit * blocks * use if link.estimation.pilots is None else torch.zeros_like(blocks),
        sending_seconds=sending,
        receiving_seconds=shared + torch.tensor(personal, dtype=torch.float64)[link.task_of],
        efficiency=link.amplifier_efficiency,
        circuit_watts=link.circuit_watts,
    )


def downlink_bits(link: Uplink, d_s: int) -> int:
    """The bits of the adapters that are broadcast: s to all devices, each task's p to its own devices."""
    return sum(broadcast_bits(link, d_s))


def broadcast_bits(link: Uplink, d_s: int) -> list[int]:
    """The bits of each broadcast, s and then the tasks' p: 32 an entry, or those of the quantised change."""
    bits = link.downlink_bits
    return [
        resources.BITS_PER_SCALAR * entries if bits is None else bits_of(entries, bits)
        for entries in (d_s, *link.lengths)
    ]


def listening_seconds(link: Uplink, d_s: int) -> list[float]:
    """The seconds of each broadcast, s and then the tasks' p, which are sent one after another.

    A broadcast lasts as long as its weakest listener needs, whether or not it is present in the round: all devices for
    s, a task's devices for its p. In two_hop the edges broadcast s together and each device receives its own edge.
    """
    seconds = []
    for bits, rate in zip(broadcast_bits(link, d_s), broadcast_rates(link), strict=True):
        seconds.append((1 + resources.CYCLIC_PREFIX) * bits / rate if bits else 0.0)
    return seconds


def broadcast_rates(link: Uplink) -> list[float]:
    """The bits per second, without cyclic prefix, of each broadcast: that of the weakest device that listens.

    By default the downlink is like the digital link of side information and feedback: a device's own power limit, and
    the gain of all antennas that serve it. A broadcast to several devices has less array gain and a station has more
    power; both are left out. With `station_power` each station broadcasts at that power and without array gain, so that
    device k of mean gain g_k at the stations it hears has the SNR P g_k / sigma2. All antennas serve s, except in
    two_hop; a task's p comes from its own station wherever tasks have one.
    """
    rates = []
    for local in (link.topology == "two_hop", link.topology != "single_cell"):
        gain, power = serving_gain(link.network, local, link.task_of), link.power_limit
        if link.station_power is not None:
            gain, power = gain / link.network.antennas, torch.full_like(power, link.station_power)
        rates.append(resources.digital_rate(gain, power, link.noise, link.bandwidth_hz))
    shared, personal = rates
    tasks = (personal[link.task_of == n] for n in range(len(link.lengths)))
    return [float(shared.min()), *(float(rate.min()) if len(rate) else math.inf for rate in tasks)]


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
    """The bits per second of each device alone on the band, for its mean gain over fading, under interference."""
    gain = serving_gain(link.network, link.topology == "two_hop", link.task_of)
    if link.interference is not None:
        gain = gain * least_snr_share(link.interference, link.noise, link.network.antennas)
    return resources.digital_rate(gain, link.power_limit, link.noise, link.bandwidth_hz)
