"""What a round costs: what its slots, their pilots, side information and feedback come to, over the air or as bits."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air import ledger
from airpfed.air.digital import airtime
from airpfed.air.pieces import spans_of
from airpfed.air.plan import Air, Job, groups_of, over_backhaul, slot_uses
from airpfed.air.quantise import bits_of
from airpfed.air.symbols import uses_of
from airpfed.air.world import serving_gain
from airpfed.record import Ledger


def round_ledger(air: Air, jobs: Sequence[Job], joules_of: Sequence[Float[Tensor, " _K"]], t: int, d_s: int) -> Ledger:
    """A round's ledger; joules_of: of each slot's streams (over the air)."""
    return analog_ledger(air, jobs, joules_of, d_s) if air.digital is None else digital_ledger(air, jobs, t, d_s)


def side_scalars(air: Air, job: Job, factors: int) -> int:
    """Scalars a stream's device tells in a slot: its largest power, or mean and variance of every normaliser group.

    Where slots share energy, also the power of its symbols for each of its `factors`.
    """
    return (1 if air.normalizer == "common" else 2 * len(job.groups)) + (factors if air.refine is not None else 0)


def analog_ledger(air: Air, jobs: Sequence[Job], joules_of: Sequence[Float[Tensor, " _K"]], d_s: int) -> Ledger:
    """A round over the air; joules_of: of each slot's streams.

    The error-free link is charged for its channel uses, downlink and backhaul only.
    """
    devices = len(air.samples)
    joules, scalars, told = (torch.zeros(devices, dtype=torch.float64) for _ in range(3))
    uses = [slot_uses(air, job) for job in jobs]
    pilots, place, estimated_to = 0, 0, torch.full((devices,), -1)
    for job, spent, count in zip(jobs, joules_of, uses, strict=True):
        joules.index_add_(0, job.devices, spent)
        factors = designs_of(air, job, place)
        scalars.index_add_(0, job.devices, torch.full_like(spent, side_scalars(air, job, factors)))
        told.index_add_(0, job.devices, torch.full_like(spent, factors))
        first, last = place // air.coherence_symbols, (place + count - 1) // air.coherence_symbols
        sending = torch.unique(job.devices)
        pilots += int((last + 1 - (estimated_to[sending] + 1).clamp(min=first)).sum())
        estimated_to[sending] = last
        place += count
    if air.design is None:
        pilots, scalars, told = 0, torch.zeros_like(scalars), torch.zeros_like(told)
    traffic = ledger.Traffic(
        slot_uses=tuple(uses),
        pilot_uses=pilots,
        side_bits=ledger.BITS_PER_SCALAR * scalars,
        feedback_bits=ledger.FACTOR_BITS * told,
        downlink_bits=downlink_bits(air, d_s),
        backhaul_bits=backhaul_bits(air, jobs),
    )
    return ledger.entry(traffic, joules, rates(air), air.bandwidth_hz, air.subcarriers)


def digital_ledger(air: Air, jobs: Sequence[Job], t: int, d_s: int) -> Ledger:
    """A round of bits, in the best of the groupings tried."""
    assert air.digital is not None
    bits = torch.zeros(len(air.samples), dtype=torch.float64)
    scalars = torch.zeros_like(bits)
    for job in jobs:
        each = [float(bits_of(int(length), air.digital.bits)) for length in job.lengths]
        bits.index_add_(0, job.devices, torch.tensor(each, dtype=torch.float64))
        scalars.index_add_(0, job.devices, torch.ones(len(job.devices), dtype=torch.float64))
    time = airtime(air, t, bits)
    traffic = ledger.Traffic(
        slot_uses=(math.ceil(time.uses),),
        pilot_uses=time.pilots,
        side_bits=ledger.BITS_PER_SCALAR * scalars,
        feedback_bits=ledger.SCHEME_BITS * time.blocks,
        downlink_bits=downlink_bits(air, d_s),
        backhaul_bits=backhaul_bits(air, jobs),
    )
    joules = air.power * time.own * ledger.use_seconds(air.bandwidth_hz)
    return ledger.entry(traffic, joules, rates(air), air.bandwidth_hz, air.subcarriers)


def designs_of(air: Air, job: Job, place: int) -> int:
    """Transmit factors that a stream's device is told for a slot: one a normaliser group and coherence block."""
    count = 0
    for first, last in groups_of(air, job):
        uses = uses_of(last - first, air.packing)
        count += len(spans_of(place, uses, air.coherence_symbols)[0])
        place += uses
    return count


def downlink_bits(air: Air, d_s: int) -> int:
    """Adapters broadcast to the devices: s to all, each task's p to its own."""
    return ledger.BITS_PER_SCALAR * (d_s + sum(air.lengths))


def backhaul_bits(air: Air, jobs: Sequence[Job]) -> int:
    """Edges' s-sums on their way to the global server; an error-free backhaul is charged 32 bits an entry."""
    total = 0
    for job in jobs:
        edges = over_backhaul(air, job)
        if bool(edges.any()):
            entries, bits = int(job.lengths[edges[job.group_of]].max()), air.backhaul_bits
            total += int(edges.sum()) * (ledger.BITS_PER_SCALAR * entries if bits is None else bits_of(entries, bits))
    return total


def rates(air: Air) -> Float[Tensor, " K"]:
    """Bits per second of each device alone on the band, on average over fading."""
    served = serving_gain(air.world, air.topology == "two_hop", air.task_of)
    return ledger.digital_rate(served, air.power, air.noise, air.bandwidth_hz)
