"""One round's uplink: here a gradient becomes a radio signal.

normalise -> pack -> design per coherence block -> superpose in the channel -> unpack -> denormalise (`pieces`), slot
after slot: first the s-slot (all devices, one receiver), then the p-slots (`tdma`: one a task; `concurrent`: one, a
receiver a task; `auto`: the best grouping), or s and p in one slot (`superposed`).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from airpfed.air.correlation import Correlation, Evidence, estimate, remember
from airpfed.air.cost import round_ledger
from airpfed.air.digital import quantised
from airpfed.air.grouping import best_grouping
from airpfed.air.impairments import audible, factors
from airpfed.air.pieces import Piece, antennas_of, asked_of, designed, overlap, spans_of
from airpfed.air.plan import (
    Air,
    Grouping,
    Job,
    grouping_of,
    groups_of,
    memory_rows,
    plan,
    rows_of,
    slot_uses,
    unclaimed,
)
from airpfed.air.rows import chunks
from airpfed.air.slot import Transceiver
from airpfed.air.symbols import common_sigma, normalise, uses_of
from airpfed.air.transmit import Outcome, transmitted
from airpfed.air.world import csi_variance, estimated
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

    sums: Float[Tensor, "U d"]
    claimed: Float[Tensor, " U"]
    measured: Float[Tensor, " U"]
    bias: Float[Tensor, " U"]
    variance: Float[Tensor, " U"]
    claimed_genie: Float[Tensor, " U"]
    silence: Float[Tensor, " U"]
    scale: Float[Tensor, " U"]
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
    if air.digital is not None:
        done = [Sums(**quantised(air, job, t)) for job in jobs]
    elif air.design is None:
        done = [exact(job) for job in jobs]
    else:
        pieces = prepare(air, jobs, t, beliefs)
        each = through(air, pieces, designed(air, [piece for slot in pieces for piece in slot]), t)
        done = [together(job, parts) for job, parts in zip(jobs, each, strict=True)]
        memory = remembered(memory, [rows_of(air, job) for job in jobs], each)
    received = collect(air, jobs, done, shared.shape[1], personal.shape[1], present)
    cost = round_ledger(air, jobs, [sums.joules for sums in done], t, shared.shape[1])
    correlation = tuple((one.within, one.cross) for one in beliefs)
    return replace(received, ledger=cost, correlation=correlation, memory=memory)


def through(air: Air, pieces: Sequence[Sequence[Piece]], made: Sequence[Transceiver], t: int) -> list[list[Outcome]]:
    """Every slot's pieces through the channel, with their transceivers in the same order."""
    flat = [piece for slot in pieces for piece in slot]
    outcome = iter([transmitted(air, one, how, t) for one, how in zip(flat, made, strict=True)])
    return [[next(outcome) for _ in slot] for slot in pieces]


def fresh_memory(air: Air) -> Float[Tensor, "G 7"]:
    """No evidence yet: one row a kind of normaliser group, which the s- and the p-slots share."""
    return torch.zeros(memory_rows(air), len(astuple(Evidence())), dtype=torch.float64)


def believed(air: Air, row: Float[Tensor, " 7"]) -> Correlation:
    """The correlation that receivers expect of a normaliser group: as set, or as heard in earlier rounds."""
    if air.correlation is not None:
        return Correlation(air.correlation, air.correlation)
    return estimate(Evidence(*row.tolist()))


def remembered(
    memory: Float[Tensor, "G 7"], places: Sequence[Sequence[int]], slots: Sequence[Sequence[Outcome]]
) -> Float[Tensor, "G 7"]:
    """The memory after a round: what its slots taught about each kind of group, on top of what was known.

    places: of each slot's groups in the memory.
    """
    learned = [Evidence()] * len(memory)
    for own, parts in zip(places, slots, strict=True):
        for place, one in zip(own, parts, strict=True):
            learned[place] = learned[place] + one.learned
    rows = [remember(Evidence(*row.tolist()), new) for row, new in zip(memory, learned, strict=True)]
    return torch.tensor([astuple(row) for row in rows], dtype=torch.float64)


def grouping(air: Air, t: int, present: Bool[Tensor, " K"]) -> Grouping:
    """The round's p-slots; `auto` decides on the channel estimates of its first block."""
    if air.access != "auto" or air.design is None:
        return grouping_of(air, present)
    known, _ = sounded(air, t, 1)
    return best_grouping(air, known, csi_variance(air.world, air.csi_error), present)


def sounded(air: Air, t: int, blocks: int) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:
    """A round's channels as designs see them, 0 where a fade silences a device, and as they are, with impairments."""
    known, true = estimated(air.world, air.csi_error, air.seed, t, range(blocks))
    gain = air.world.gain.repeat_interleave(air.world.antennas, 0)
    known = audible(known, gain, air.harm.truncation)
    if air.harm.phase_rad or air.harm.outage:
        true = true * factors(air.harm, air.seed, t, range(blocks), len(air.samples))[:, None, :]
    return known, true


def exact(job: Job) -> Sums:
    """The error-free link: Ghat = G, at no error and no energy."""
    zero = torch.zeros(len(job.mix), dtype=torch.float64)
    weights = job.mix @ job.weights
    parts = (weights[:, rows] @ job.vectors[rows] for rows in chunks(*job.vectors.shape))
    sums = sum(parts, torch.zeros(len(zero), job.vectors.shape[1], dtype=torch.float64)).to(job.vectors.dtype)
    scale = torch.ones_like(zero)
    return Sums(sums, zero, zero, zero, zero, zero, zero, scale, torch.zeros(len(job.devices), dtype=torch.float64))


def prepare(air: Air, jobs: Sequence[Job], t: int, beliefs: Sequence[Correlation]) -> list[list[Piece]]:
    """The normaliser groups of every slot with their places in the round's channel uses, ready to be designed for."""
    if not jobs:
        return []
    vectors, lengths = [job.vectors for job in jobs], [job.lengths for job in jobs]
    sigma = common_sigma(vectors, lengths) if air.normalizer == "common" else None
    known, true = sounded(air, t, -(-sum(slot_uses(air, job) for job in jobs) // air.coherence_symbols))
    variance, slots, place = csi_variance(air.world, air.csi_error), [], 0
    for job in jobs:
        pieces = []
        for row, (first, last) in zip(rows_of(air, job), groups_of(air, job), strict=True):
            uses = uses_of(last - first, air.packing)
            blocks, spans = spans_of(place, uses, air.coherence_symbols)
            within = slice(blocks.start, blocks.stop)
            group = normalise(job.vectors, job.lengths, job.weights, sigma, (first, last))
            share, power = overlap(group, job.group_of, spans, air.packing)
            pieces.append(
                Piece(
                    job=job,
                    group=group,
                    spans=spans,
                    asked=asked_of(air, job, group.weights, known[within], variance),
                    true=true[within, antennas_of(air, job)][..., job.devices],
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
    unheard = bool(unclaimed(air))
    clips = unheard and air.harm.clipping is not None
    for job, sums in zip(jobs, done, strict=True):
        for row, task in enumerate(job.targets):
            if task is None:
                errors[""] = _error(sums, row, told=not unheard, genie=not clips)
                shared = sums.sums[row, :d_s].float()
            else:
                nothing = clips or (unheard and len(job.targets) > 1 and not bool(sums.joules.any()))
                errors[air.task_names[task]] = _error(sums, row, told=not nothing, genie=not clips)
                width = min(d_p, sums.sums.shape[1])
                personal[task, :width] = sums.sums[row, :width].float()
    heard = torch.tensor([bool((present & (air.task_of == n)).any()) for n in range(len(air.task_names))])
    mse = MeanSquaredErrors(s=errors.pop("", None), p=errors)
    pi, pi_claimed = (combined(air, mse, d_s, present, key) for key in ("measured", "claimed"))
    return Received(shared, personal, heard, mse, pi, pi_claimed, Ledger(), (), torch.zeros(0, 7, dtype=torch.float64))


def _error(sums: Sums, row: int, told: bool, genie: bool) -> SlotError:
    scale = float(sums.scale[row])
    parts = {key: float(getattr(sums, key)[row]) for key in (*ERRORS, "silence")}
    values = {key: value / scale if scale > 0 else 0.0 for key, value in parts.items()}
    hidden = ([] if told else ["claimed"]) + ([] if genie else ["claimed_genie"])
    return SlotError(scale=scale, **values | dict.fromkeys(hidden))


def combined(air: Air, mse: MeanSquaredErrors, d_s: int, present: Bool[Tensor, " K"], key: str) -> float | None:
    """Pi: MSEs weighted by the shares of d, tasks by D_n/D of the present (shares of R where there is no head).

    None if nothing was sent, or a claim is not made.
    """
    here = air.samples * present
    share = {n: float(here[air.task_of == n].sum() / here.sum().clamp_min(1e-300)) for n in range(len(air.lengths))}
    terms: list[tuple[float, float | None]] = [(d_s, getattr(mse.s, key))] if mse.s else []
    for n, name in enumerate(air.task_names):
        if name in mse.p:
            terms.append((share[n] * air.lengths[n], getattr(mse.p[name], key)))
    total = sum(weight for weight, _ in terms)
    known = [weight * value for weight, value in terms if value is not None]
    return sum(known) / total if total and len(known) == len(terms) else None
