"""One round's uplink: here a gradient becomes a radio signal.

normalise -> pack -> design per coherence block -> superpose in the channel -> unpack -> denormalise (`pieces`), slot
after slot: first the s-slot (all devices, one receiver), then the p-slots (`tdma`: one a task; `concurrent`: one, a
receiver a task; `auto`: the best grouping), or s and p in one slot (`superposed`).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air import ledger
from airpfed.air.channel import estimated
from airpfed.air.correlation import Correlation, Evidence, estimate, remember
from airpfed.air.grouping import best_grouping
from airpfed.air.pieces import Outcome, Piece, asked_of, designed, overlap, spans_of, transmitted
from airpfed.air.plan import Air, Grouping, Job, grouping_of, groups_of, memory_rows, plan, slot_uses
from airpfed.air.symbols import common_sigma, normalise, uses_of
from airpfed.record import Ledger, MeanSquaredErrors, SlotError

ERRORS = ("claimed", "claimed_genie", "measured", "bias", "variance")
"""Error energies of a target, known block by block."""


@dataclass(frozen=True)
class Received:
    """What the servers get from a round's uplink.

    shared: Ghat^s. personal: Ghat_n^p, one row a task. heard: tasks with any device present. correlation: believed
    before the round, within and across tasks, per normaliser group; memory: the evidence for it after the round.
    turn: which part of `shared` was sent, number and columns, where parts are sent in turn (`turns`); None: all of it.
    """

    shared: Float[Tensor, " d_s"]
    personal: Float[Tensor, "N d_p"]
    heard: Bool[Tensor, " N"]
    mse: MeanSquaredErrors
    pi: float | None
    pi_claimed: float | None
    ledger: Ledger
    correlation: tuple[tuple[float, float], ...]
    memory: Float[Tensor, "G 7"]
    turn: tuple[int, tuple[int, int]] | None = None


@dataclass(frozen=True)
class Sums:
    """A slot's outcome: the sums, the error of each target in parts (energies), and its cost.

    claimed, claimed_genie, bias, variance, silence: of error energy, per target; scale: sum of sigma^2 d. joules: per
    stream.
    """

    sums: Float[Tensor, "T d"]
    claimed: Float[Tensor, " T"]
    measured: Float[Tensor, " T"]
    bias: Float[Tensor, " T"]
    variance: Float[Tensor, " T"]
    claimed_genie: Float[Tensor, " T"]
    silence: Float[Tensor, " T"]
    scale: Float[Tensor, " T"]
    joules: Float[Tensor, " K"]


def send(
    air: Air,
    t: int,
    shared: Float[Tensor, "K d_s"],
    personal: Float[Tensor, "K d_p"],
    present: Bool[Tensor, " K"],
    memory: Float[Tensor, "G 7"],
) -> Received:
    """Round t's uplink of the present devices' gradients; an absent device is in no sum and no weight.

    memory: evidence of earlier rounds for the symbols' correlation, `fresh_memory` at first. Random: fading, CSI error,
    noise and scrambling, each from a stream of its own, fixed by seed and round.
    """
    jobs = plan(air, shared, personal, present, grouping(air, t, present))
    beliefs = [believed(air, row) for row in memory]
    if air.design is None:
        done = [exact(job) for job in jobs]
    else:
        pieces = prepare(air, jobs, t, beliefs)
        flat = [piece for slot in pieces for piece in slot]
        outcome = iter([transmitted(air, one, made, t) for one, made in zip(flat, designed(air, flat), strict=True)])
        each = [[next(outcome) for _ in slot] for slot in pieces]
        done = [together(job, parts) for job, parts in zip(jobs, each, strict=True)]
        memory = remembered(memory, each)
    received = collect(air, jobs, done, shared.shape[1], personal.shape[1], present)
    return replace(received, correlation=tuple((one.within, one.cross) for one in beliefs), memory=memory)


def fresh_memory(air: Air) -> Float[Tensor, "G 7"]:
    """No evidence yet: one row a normaliser group, which the s- and the p-slots share."""
    return torch.zeros(memory_rows(air), len(astuple(Evidence())), dtype=torch.float64)


def believed(air: Air, row: Float[Tensor, " 7"]) -> Correlation:
    """The correlation that receivers expect of a normaliser group: as set, or as heard in earlier rounds."""
    if air.correlation is not None:
        return Correlation(air.correlation, air.correlation)
    return estimate(Evidence(*row.tolist()))


def remembered(memory: Float[Tensor, "G 7"], slots: Sequence[Sequence[Outcome]]) -> Float[Tensor, "G 7"]:
    """The memory after a round: what its slots taught about each normaliser group, on top of what was known."""
    rows = []
    for index, row in enumerate(memory):
        learned = [parts[index].learned for parts in slots if index < len(parts)]
        rows.append(torch.tensor(astuple(remember(Evidence(*row.tolist()), sum(learned, Evidence())))))
    return torch.stack(rows).double()


def grouping(air: Air, t: int, present: Bool[Tensor, " K"]) -> Grouping:
    """The round's p-slots; `auto` decides on the channel estimates of its first block."""
    if air.access != "auto" or air.design is None:
        return grouping_of(air, present)
    known, _ = estimated(air.gain, air.antennas, air.csi_error, air.seed, t, range(1))
    return best_grouping(air, known, air.csi_error * air.gain, present)


def exact(job: Job) -> Sums:
    """The error-free link: Ghat = G, at no error and no energy."""
    zero = torch.zeros(len(job.weights), dtype=torch.float64)
    sums = (job.weights @ job.vectors.double()).to(job.vectors.dtype)
    scale = torch.ones_like(zero)
    return Sums(sums, zero, zero, zero, zero, zero, zero, scale, torch.zeros(len(job.devices), dtype=torch.float64))


def prepare(air: Air, jobs: Sequence[Job], t: int, beliefs: Sequence[Correlation]) -> list[list[Piece]]:
    """The normaliser groups of every slot with their places in the round's channel uses, ready to be designed for."""
    vectors, lengths = [job.vectors for job in jobs], [job.lengths for job in jobs]
    sigma = common_sigma(vectors, lengths) if air.normalizer == "common" else None
    slots, place = [], 0
    for job in jobs:
        pieces = []
        for row, (first, last) in enumerate(groups_of(air, job)):
            uses = uses_of(last - first, air.packing)
            blocks, spans = spans_of(place, uses, air.coherence_symbols)
            known, true = estimated(air.gain, air.antennas, air.csi_error, air.seed, t, blocks)
            group = normalise(
                job.vectors[:, first:last], (job.lengths - first).clamp(0, last - first), job.weights, sigma
            )
            asked = asked_of(air, job, group.weights, known, air.csi_error * air.gain)
            share, power = overlap(group, job.group_of, spans, air.packing)
            pieces.append(
                Piece(
                    job=job,
                    group=group,
                    spans=spans,
                    asked=asked,
                    true=true[:, :, job.devices],
                    share=share,
                    power=power,
                    believed=beliefs[row],
                    task_of=air.task_of[job.devices],
                    name=f"{job.name}/{first}",
                )
            )
            place += uses
        slots.append(pieces)
    return slots


def together(job: Job, outcomes: Sequence[Outcome]) -> Sums:
    """A slot's groups put together: sums side by side, energies added over groups and blocks."""
    parts = {key: torch.cat([getattr(one, key) for one in outcomes]).sum(0) for key in ERRORS}
    whole = {key: torch.stack([getattr(one, key) for one in outcomes]).sum(0) for key in ("silence", "scale", "joules")}
    return Sums(torch.cat([one.sums for one in outcomes], 1).to(job.vectors.dtype), **parts, **whole)


def collect(air: Air, jobs: list[Job], done: list[Sums], d_s: int, d_p: int, present: Bool[Tensor, " K"]) -> Received:
    """The slots' outcomes put together."""
    shared, personal = torch.zeros(d_s), torch.zeros(len(air.task_names), d_p)
    errors: dict[str, SlotError] = {}
    for job, sums in zip(jobs, done, strict=True):
        for row, task in enumerate(job.targets):
            if task is None:
                errors[""] = _error(sums, row)
                shared = sums.sums[row, :d_s].float()
            else:
                errors[air.task_names[task]] = _error(sums, row)
                width = min(d_p, sums.sums.shape[1])
                personal[task, :width] = sums.sums[row, :width].float()
    heard = torch.tensor([bool((present & (air.task_of == n)).any()) for n in range(len(air.task_names))])
    mse = MeanSquaredErrors(s=errors.pop("", None), p=errors)
    pi, pi_claimed = (combined(air, mse, d_s, key) for key in ("measured", "claimed"))
    cost = _ledger(air, jobs, done, d_s)
    return Received(shared, personal, heard, mse, pi, pi_claimed, cost, (), torch.zeros(0, 7, dtype=torch.float64))


def _error(sums: Sums, row: int) -> SlotError:
    scale = float(sums.scale[row])
    parts = {key: float(getattr(sums, key)[row]) for key in (*ERRORS, "silence")}
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


def side_scalars(air: Air, job: Job) -> int:
    """Scalars a stream's device tells in a slot: its largest power, or mean and variance of every normaliser group."""
    return 1 if air.normalizer == "common" else 2 * len(job.groups)


def _ledger(air: Air, jobs: list[Job], done: list[Sums], d_s: int) -> Ledger:
    """The round's cost; the error-free link is charged for its channel uses and downlink only."""
    devices = len(air.samples)
    joules, scalars = torch.zeros(devices, dtype=torch.float64), torch.zeros(devices, dtype=torch.float64)
    uses = [slot_uses(air, job) for job in jobs]
    pilots, place, estimated_to = 0, 0, torch.full((devices,), -1)
    for job, sums, count in zip(jobs, done, uses, strict=True):
        joules.index_add_(0, job.devices, sums.joules)
        scalars.index_add_(0, job.devices, torch.full_like(sums.joules, side_scalars(air, job)))
        first, last = place // air.coherence_symbols, (place + count - 1) // air.coherence_symbols
        sending = torch.unique(job.devices)
        pilots += int((last + 1 - (estimated_to[sending] + 1).clamp(min=first)).sum())
        estimated_to[sending] = last
        place += count
    if air.design is None:
        pilots, scalars = 0, torch.zeros_like(scalars)
    rate = ledger.digital_rate(air.gain, air.power, air.noise, air.antennas, air.bandwidth_hz)
    downlink = d_s + sum(air.lengths)
    return ledger.entry(uses, pilots, joules, scalars, rate, downlink, air.bandwidth_hz, air.subcarriers)
