"""One round's uplink: here a gradient becomes a radio signal.

normalise -> pack -> design per coherence block -> superpose in the channel -> unpack -> denormalise, slot after slot:
first the s-slot (all devices, one receiver), then the p-slots (`tdma`: one a task; `concurrent`: one, a receiver a
task).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from airpfed.air import ledger
from airpfed.air.channel import estimated
from airpfed.air.plan import Air, DesignFunction, Job, groups_of, plan, slot_uses
from airpfed.air.slot import Slot, Transceiver, gains
from airpfed.air.superpose import collapsed, receiver_noise
from airpfed.air.symbols import Normalised, Packing, common_sigma, normalise, pack, unpack, uses_of
from airpfed.record import Ledger, MeanSquaredErrors, SlotError
from airpfed.streams import stream


@dataclass(frozen=True)
class Received:
    """What the servers get from a round's uplink.

    shared: Ghat^s. personal: Ghat_n^p, one row a task. heard: tasks with any device present.
    """

    shared: Float[Tensor, " d_s"]
    personal: Float[Tensor, "N d_p"]
    heard: Bool[Tensor, " N"]
    mse: MeanSquaredErrors
    pi: float | None
    pi_claimed: float | None
    ledger: Ledger


@dataclass(frozen=True)
class Sums:
    """A slot's outcome: the sums, the error of each target in parts (energies), and its cost.

    claimed, bias, variance, silence: of error energy, per target; scale: sum of sigma^2 d. joules: per device of the
    slot.
    """

    sums: Float[Tensor, "T d"]
    claimed: Float[Tensor, " T"]
    measured: Float[Tensor, " T"]
    bias: Float[Tensor, " T"]
    variance: Float[Tensor, " T"]
    silence: Float[Tensor, " T"]
    scale: Float[Tensor, " T"]
    joules: Float[Tensor, " K"]


def send(
    air: Air, t: int, shared: Float[Tensor, "K d_s"], personal: Float[Tensor, "K d_p"], present: Bool[Tensor, " K"]
) -> Received:
    """Round t's uplink of the present devices' gradients; an absent device is in no sum and no weight.

    Random: fading, CSI error, noise and scrambling, each from a stream of its own, fixed by seed and round.
    """
    jobs = [job for job in plan(air, shared, personal, present) if job.vectors.shape[1] and len(job.devices)]
    vectors, lengths = [job.vectors for job in jobs], [job.lengths for job in jobs]
    sigma = common_sigma(vectors, lengths) if air.normalizer == "common" else None
    done, start = [], 0
    for job in jobs:
        done.append(exact(job) if air.design is None else transmit(air, air.design, job, t, start, sigma))
        start += slot_uses(air, job)
    return collect(air, jobs, done, shared.shape[1], personal.shape[1], present)


def exact(job: Job) -> Sums:
    """The error-free link: Ghat = G, at no error and no energy."""
    zero = torch.zeros(len(job.weights), dtype=torch.float64)
    sums = (job.weights @ job.vectors.double()).to(job.vectors.dtype)
    scale = torch.ones_like(zero)
    return Sums(sums, zero, zero, zero, zero, zero, scale, torch.zeros(len(job.devices), dtype=torch.float64))


def transmit(air: Air, design: DesignFunction, job: Job, t: int, start: int, sigma: float | None) -> Sums:
    """One slot over the air, group by group; `start` is its place in the round's channel uses."""
    parts, place = [], start
    for first, last in groups_of(air, job):
        lengths = (job.lengths - first).clamp(0, last - first)
        group = normalise(job.vectors[:, first:last], lengths, job.weights, sigma)
        parts.append(_group(air, design, job, group, t, place, f"{job.name}/{first}"))
        place += uses_of(last - first, air.packing)
    total = {
        key: torch.stack([getattr(p, key) for p in parts]).sum(0)
        for key in ("claimed", "measured", "bias", "variance", "silence", "scale", "joules")
    }
    return Sums(torch.cat([p.sums for p in parts], 1).to(job.vectors.dtype), **total)


def _group(air: Air, design: DesignFunction, job: Job, group: Normalised, t: int, place: int, name: str) -> Sums:
    """One normaliser group: its own design in every coherence block that it touches."""
    x = pack(group.entries, air.packing)
    blocks = range(place // air.coherence_symbols, (place + x.shape[1] - 1) // air.coherence_symbols + 1)
    everyone = estimated(air.gain, air.antennas, air.csi_error, air.seed, t, blocks)
    known, true = (h[:, :, job.devices] for h in everyone)
    half = 0.5 if air.packing == "real" else 1.0  # the imaginary half of the noise is thrown away
    csi = air.csi_error * air.gain[job.devices]
    asked = Slot(known, group.weights, job.importance, air.power[job.devices], half * air.noise, half * csi)
    made = design(asked)
    spans = [_span(air, place, x.shape[1], block) for block in blocks]
    random = stream(air.seed, "noise", t, name)
    signs = _signs(air, len(job.weights), x.shape[1], t, name)
    heard, gain = [], gains(true, made)
    for index, (a, b) in enumerate(spans):
        noise = receiver_noise(made, index, air.noise, b - a, random)
        heard.append(collapsed(gain[index], x[:, a:b], noise, job.group_of, signs[:, a:b]))
    share, power = _overlap(group, job.group_of, spans, air.packing)
    count = group.valid.sum(1)
    energy = group.scale.square() * count
    wanted = group.weights.to(x.dtype) @ x
    own, received = torch.cat([p.own for p in heard], 1), torch.cat([p.received for p in heard], 1)
    crosstalk = torch.cat([p.crosstalk for p in heard], 2)
    width = group.entries.shape[1]

    def energy_of(error: Complex[Tensor, "T uses"]) -> Float[Tensor, " T"]:
        return (unpack(error, air.packing, width) * group.valid).square().sum(1) * group.scale.square()

    rest = half * air.noise * (share * made.receiver.abs().square().sum(1)).sum(0)
    estimate = unpack(received, air.packing, width) * group.scale[:, None] + group.offset[:, None]
    return Sums(
        sums=estimate * group.valid,
        claimed=energy * (share * claim(asked, made, power, air.packing)).sum(0),
        measured=energy_of(received - wanted),
        bias=energy_of(own - wanted),
        variance=energy * rest + sum(energy_of(crosstalk[:, j]) for j in range(crosstalk.shape[1])),
        silence=energy * (group.weights.square() @ group.power),
        scale=energy,
        joules=_joules(air, made, x, spans),
    )


def _span(air: Air, place: int, uses: int, block: int) -> tuple[int, int]:
    """Uses of a group, counted from its first, that fall into one coherence block."""
    first = block * air.coherence_symbols - place
    return max(first, 0), min(first + air.coherence_symbols, uses)


def _overlap(
    group: Normalised, group_of: Int[Tensor, " K"], spans: Sequence[tuple[int, int]], packing: Packing
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T K"]]:
    """Share of each target's entries that lies in each block, and the mean power it hears there from each device.

    A task with a shorter vector hears the first blocks only, and is silent in the tail of the others.
    """
    per = 1 if packing == "real" else 2
    parts = [group.valid[:, per * a : per * b].double() for a, b in spans]
    both = torch.stack([part @ part.T for part in parts])
    own = both.diagonal(dim1=1, dim2=2)
    share = own / own.sum(0).clamp(min=1)
    return share, (both / own.clamp(min=1)[:, :, None])[:, :, group_of] * group.power


def _signs(air: Air, targets: int, uses: int, t: int, name: str) -> Float[Tensor, "T uses"]:
    """Scrambling signs per task and use; none where a slot has one receiver."""
    if targets == 1:
        return torch.ones(1, uses, dtype=torch.float64)
    random = torch.randint(2, (targets, uses), generator=stream(air.seed, "scrambling", t, name))
    return 2.0 * random.double() - 1.0


def claim(
    slot: Slot, transceiver: Transceiver, symbol_power: Float[Tensor, "... K"], packing: Packing
) -> Float[Tensor, "B T"]:
    """MSE per real entry that the receiver expects: its estimates, the actual symbol powers, i.i.d. symbols.

    symbol_power: p_ik, mean over target i's entries in the block, or p_k alone.
    sum_k p_ik |gain_ik - w_ik|^2 + (sigma2 + sum_j csi_j p_ij |b_j|^2) ||m_i||^2; under real packing only the real
    part of the first term counts, and noise and CSI error come halved in `slot`.
    """
    mismatch = gains(slot.h, transceiver) - slot.weights
    squared = mismatch.real.square() if packing == "real" else mismatch.abs().square()
    radiated = transceiver.transmit.abs().square()[:, None, :] * symbol_power
    disturbance = slot.noise + radiated @ slot.csi_variance
    return (squared * symbol_power).sum(-1) + disturbance * transceiver.receiver.abs().square().sum(1)


def _joules(
    air: Air, made: Transceiver, x: Complex[Tensor, "K uses"], spans: Sequence[tuple[int, int]]
) -> Float[Tensor, " K"]:
    """Energy each device radiates: sum over uses of |b_k x_k|^2 times a use's seconds."""
    squares = torch.stack([x[:, a:b].abs().square().sum(1) for a, b in spans])
    energy: Tensor = (made.transmit.abs().square() * squares).sum(0) * ledger.use_seconds(air.bandwidth_hz)
    return energy


def collect(air: Air, jobs: list[Job], done: list[Sums], d_s: int, d_p: int, present: Bool[Tensor, " K"]) -> Received:
    """The slots' outcomes put together."""
    shared, personal = torch.zeros(d_s), torch.zeros(len(air.task_names), d_p)
    errors: dict[str, SlotError] = {}
    for job, sums in zip(jobs, done, strict=True):
        for row in range(len(job.weights)):
            errors[air.task_names[job.tasks[row]] if job.tasks else ""] = _error(sums, row)
            if job.tasks:
                personal[job.tasks[row], : sums.sums.shape[1]] = sums.sums[row].float()
            else:
                shared = sums.sums[row].float()
    heard = torch.tensor([bool((present & (air.task_of == n)).any()) for n in range(len(air.task_names))])
    mse = MeanSquaredErrors(s=errors.pop("", None), p=errors)
    pi, pi_claimed = (combined(air, mse, d_s, key) for key in ("measured", "claimed"))
    return Received(shared, personal, heard, mse, pi, pi_claimed, _ledger(air, jobs, done, d_s))


def _error(sums: Sums, row: int) -> SlotError:
    scale = float(sums.scale[row])
    parts = {key: float(getattr(sums, key)[row]) for key in ("claimed", "measured", "bias", "variance", "silence")}
    return SlotError(scale=scale, **{key: value / scale if scale > 0 else 0.0 for key, value in parts.items()})


def combined(air: Air, mse: MeanSquaredErrors, d_s: int, key: str) -> float | None:
    """Pi: MSEs weighted by the shares of d, tasks by D_n/D (shares of R where there is no head).

    None if nothing was sent.
    """
    share = {n: float(air.samples[air.task_of == n].sum() / air.samples.sum()) for n in range(len(air.lengths))}
    terms: list[tuple[float, float]] = [(d_s, getattr(mse.s, key))] if mse.s else []
    for n, name in enumerate(air.task_names):
        if name in mse.p:
            terms.append((share[n] * air.lengths[n], getattr(mse.p[name], key)))
    total = sum(weight for weight, _ in terms)
    return sum(weight * value for weight, value in terms) / total if total else None


def _ledger(air: Air, jobs: list[Job], done: list[Sums], d_s: int) -> Ledger:
    """The round's cost; the error-free link is charged for its channel uses and downlink only."""
    devices = len(air.samples)
    joules, scalars = torch.zeros(devices, dtype=torch.float64), torch.zeros(devices, dtype=torch.float64)
    uses = [slot_uses(air, job) for job in jobs]
    pilots, place, estimated_to = 0, 0, torch.full((devices,), -1)
    for job, sums, count in zip(jobs, done, uses, strict=True):
        joules[job.devices] += sums.joules
        scalars[job.devices] += 1 if air.normalizer == "common" else 2 * len(job.groups)
        first, last = place // air.coherence_symbols, (place + count - 1) // air.coherence_symbols
        pilots += int((last + 1 - (estimated_to[job.devices] + 1).clamp(min=first)).sum())
        estimated_to[job.devices] = last
        place += count
    if air.design is None:
        pilots, scalars = 0, torch.zeros_like(scalars)
    rate = ledger.digital_rate(air.gain, air.power, air.noise, air.antennas, air.bandwidth_hz)
    downlink = d_s + sum(air.lengths)
    return ledger.entry(uses, pilots, joules, scalars, rate, downlink, air.bandwidth_hz, air.subcarriers)
