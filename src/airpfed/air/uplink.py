"""One round's uplink: here a gradient becomes a radio signal.

normalise -> pack -> design per coherence block -> superpose in the channel -> unpack -> denormalise (`segments`), slot
after slot: first the s-slot (all devices, one receiver), then the p-slots (`tdma`: one a task; `concurrent`: one, a
receiver a task; `auto`: the best grouping), or s and p in one slot (`superposed`).
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from airpfed.air.correlation import Correlation, NormalEquations, estimate, remember
from airpfed.air.digital import quantised
from airpfed.air.grouping import best_grouping
from airpfed.air.impairments import audible, factors
from airpfed.air.network import csi_variance, estimated
from airpfed.air.problem import Transceiver
from airpfed.air.round_cost import round_ledger
from airpfed.air.row_chunks import chunks
from airpfed.air.schedule import (
    Grouping,
    SlotPlan,
    Uplink,
    correlation_rows,
    grouping_of,
    groups_of,
    plan,
    rows_of,
    slot_uses,
    unclaimed,
)
from airpfed.air.segments import Segment, antennas_of, block_ranges_of, designed, overlap, problem_of
from airpfed.air.symbols import common_sigma, normalise, uses_of
from airpfed.air.transmit import SegmentResult, transmitted
from airpfed.core.run_files import Ledger, MeanSquaredErrors, SlotError

ERRORS = ("claimed", "claimed_genie", "measured", "bias", "variance")
"""Error energies of a target, known block by block."""


@dataclass(frozen=True)
class Aggregate:
    """What the servers get from a round's uplink.

    shared: Ghat^s. personal: Ghat_n^p, one row a task. heard: tasks with any device present. correlation: believed
    before the round, within and across tasks, per normaliser group; correlation_statistics: the evidence for it after
    the round.
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
    correlation_statistics: Float[Tensor, "G 7"]
    turn: tuple[int, tuple[int, int]] | None = None


@dataclass(frozen=True)
class SlotSums:
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
    link: Uplink,
    t: int,
    shared: Float[Tensor, "K d_s"],
    personal: Float[Tensor, "K d_p"],
    present: Bool[Tensor, " K"],
    correlation_statistics: Float[Tensor, "G 7"],
) -> Aggregate:
    """Round t's uplink of the present devices' gradients; an absent device is in no sum and no weight.

    correlation_statistics: evidence of earlier rounds for the symbols' correlation, `initial_statistics` at first.
    Random: fading, CSI error, noise and scrambling, each from a stream of its own, fixed by seed and round.
    """
    slots = plan(link, shared, personal, present, grouping(link, t, present))
    beliefs = [assumed_correlation_of(link, row) for row in correlation_statistics]
    if link.digital is not None:
        done = [SlotSums(**quantised(link, slot, t)) for slot in slots]
    elif link.design is None:
        done = [exact(slot) for slot in slots]
    else:
        segments = prepare(link, slots, t, beliefs)
        each = through(link, segments, designed(link, [segment for problem in segments for segment in problem]), t)
        done = [together(slot, parts) for slot, parts in zip(slots, each, strict=True)]
        correlation_statistics = remembered(correlation_statistics, [rows_of(link, slot) for slot in slots], each)
    received = collect(link, slots, done, shared.shape[1], personal.shape[1], present)
    cost = round_ledger(link, slots, [sums.joules for sums in done], t, shared.shape[1])
    correlation = tuple((one.within, one.cross) for one in beliefs)
    return replace(received, ledger=cost, correlation=correlation, correlation_statistics=correlation_statistics)


def through(
    link: Uplink, segments: Sequence[Sequence[Segment]], made: Sequence[Transceiver], t: int
) -> list[list[SegmentResult]]:
    """Every slot's pieces through the channel, with their transceivers in the same order."""
    flat = [segment for problem in segments for segment in problem]
    outcome = iter([transmitted(link, one, how, t) for one, how in zip(flat, made, strict=True)])
    return [[next(outcome) for _ in problem] for problem in segments]


def initial_statistics(link: Uplink) -> Float[Tensor, "G 7"]:
    """No evidence yet: one row a kind of normaliser group, which the s- and the p-slots share."""
    return torch.zeros(correlation_rows(link), len(astuple(NormalEquations())), dtype=torch.float64)


def assumed_correlation_of(link: Uplink, row: Float[Tensor, " 7"]) -> Correlation:
    """The correlation that receivers expect of a normaliser group: as set, or as heard in earlier rounds."""
    if link.correlation is not None:
        return Correlation(link.correlation, link.correlation)
    return estimate(NormalEquations(*row.tolist()))


def remembered(
    correlation_statistics: Float[Tensor, "G 7"],
    places: Sequence[Sequence[int]],
    slot_parts: Sequence[Sequence[SegmentResult]],
) -> Float[Tensor, "G 7"]:
    """The memory after a round: what its slots taught about each kind of group, on top of what was known.

    places: of each slot's groups in the memory.
    """
    learned = [NormalEquations()] * len(correlation_statistics)
    for own, parts in zip(places, slot_parts, strict=True):
        for place, one in zip(own, parts, strict=True):
            learned[place] = learned[place] + one.learned
    rows = [
        remember(NormalEquations(*row.tolist()), new) for row, new in zip(correlation_statistics, learned, strict=True)
    ]
    return torch.tensor([astuple(row) for row in rows], dtype=torch.float64)


def grouping(link: Uplink, t: int, present: Bool[Tensor, " K"]) -> Grouping:
    """The round's p-slots; `auto` decides on the channel estimates of its first block."""
    if link.access != "auto" or link.design is None:
        return grouping_of(link, present)
    known, _ = estimate_channels(link, t, 1)
    return best_grouping(link, known, csi_variance(link.network, link.csi_error), present)


def estimate_channels(link: Uplink, t: int, blocks: int) -> tuple[Complex[Tensor, "B M K"], Complex[Tensor, "B M K"]]:
    """A round's channels as designs see them, 0 where a fade silences a device, and as they are, with impairments."""
    known, true = estimated(link.network, link.csi_error, link.seed, t, range(blocks))
    gain = link.network.gain.repeat_interleave(link.network.antennas, 0)
    known = audible(known, gain, link.impairments.truncation)
    if link.impairments.phase_rad or link.impairments.outage:
        true = true * factors(link.impairments, link.seed, t, range(blocks), len(link.samples))[:, None, :]
    return known, true


def exact(slot: SlotPlan) -> SlotSums:
    """The error-free link: Ghat = G, at no error and no energy."""
    zero = torch.zeros(len(slot.combining_matrix), dtype=torch.float64)
    weights = slot.combining_matrix @ slot.weights
    parts = (weights[:, rows] @ slot.vectors[rows] for rows in chunks(*slot.vectors.shape))
    sums = sum(parts, torch.zeros(len(zero), slot.vectors.shape[1], dtype=torch.float64)).to(slot.vectors.dtype)
    scale = torch.ones_like(zero)
    return SlotSums(
        sums, zero, zero, zero, zero, zero, zero, scale, torch.zeros(len(slot.devices), dtype=torch.float64)
    )


def prepare(link: Uplink, slots: Sequence[SlotPlan], t: int, beliefs: Sequence[Correlation]) -> list[list[Segment]]:
    """The normaliser groups of every slot with their places in the round's channel uses, ready to be designed for."""
    if not slots:
        return []
    vectors, lengths = [slot.vectors for slot in slots], [slot.lengths for slot in slots]
    sigma = common_sigma(vectors, lengths) if link.normalizer == "common" else None
    known, true = estimate_channels(link, t, -(-sum(slot_uses(link, slot) for slot in slots) // link.coherence_symbols))
    variance, slot_parts, place = csi_variance(link.network, link.csi_error), [], 0
    for slot in slots:
        segments = []
        for row, (first, last) in zip(rows_of(link, slot), groups_of(link, slot), strict=True):
            uses = uses_of(last - first, link.packing)
            blocks, block_ranges = block_ranges_of(place, uses, link.coherence_symbols)
            within = slice(blocks.start, blocks.stop)
            group = normalise(slot.vectors, slot.lengths, slot.weights, sigma, (first, last))
            share, power = overlap(group, slot.group_of, block_ranges, link.packing)
            segments.append(
                Segment(
                    slot=slot,
                    group=group,
                    block_ranges=block_ranges,
                    problem=problem_of(link, slot, group.weights, known[within], variance),
                    true=true[within, antennas_of(link, slot)][..., slot.devices],
                    share=share,
                    power=power,
                    assumed_correlation=beliefs[row],
                    task_of=link.task_of[slot.devices],
                    name=f"{slot.name}/{first}",
                )
            )
            place += uses
        slot_parts.append(segments)
    return slot_parts


def together(slot: SlotPlan, outcomes: Sequence[SegmentResult]) -> SlotSums:
    """A slot's groups put together: sums side by side, energies added over groups and blocks."""
    parts = {key: torch.cat([getattr(one, key) for one in outcomes]).sum(0) for key in ERRORS}
    whole = {key: torch.stack([getattr(one, key) for one in outcomes]).sum(0) for key in ("silence", "scale", "joules")}
    return SlotSums(torch.cat([one.sums for one in outcomes], 1).to(slot.vectors.dtype), **parts, **whole)


def collect(
    link: Uplink, slots: list[SlotPlan], done: list[SlotSums], d_s: int, d_p: int, present: Bool[Tensor, " K"]
) -> Aggregate:
    """The slots' outcomes put together."""
    shared, personal = torch.zeros(d_s), torch.zeros(len(link.task_names), d_p)
    errors: dict[str, SlotError] = {}
    unheard = bool(unclaimed(link))
    clips = unheard and link.impairments.clipping is not None
    for slot, sums in zip(slots, done, strict=True):
        for row, task in enumerate(slot.targets):
            if task is None:
                errors[""] = _error(sums, row, told=not unheard, genie=not clips)
                shared = sums.sums[row, :d_s].float()
            else:
                nothing = clips or (unheard and len(slot.targets) > 1 and not bool(sums.joules.any()))
                errors[link.task_names[task]] = _error(sums, row, told=not nothing, genie=not clips)
                width = min(d_p, sums.sums.shape[1])
                personal[task, :width] = sums.sums[row, :width].float()
    heard = torch.tensor([bool((present & (link.task_of == n)).any()) for n in range(len(link.task_names))])
    mse = MeanSquaredErrors(s=errors.pop("", None), p=errors)
    pi, pi_claimed = (combined(link, mse, d_s, present, key) for key in ("measured", "claimed"))
    return Aggregate(shared, personal, heard, mse, pi, pi_claimed, Ledger(), (), torch.zeros(0, 7, dtype=torch.float64))


def _error(sums: SlotSums, row: int, told: bool, genie: bool) -> SlotError:
    scale = float(sums.scale[row])
    parts = {key: float(getattr(sums, key)[row]) for key in (*ERRORS, "silence")}
    values = {key: value / scale if scale > 0 else 0.0 for key, value in parts.items()}
    hidden = ([] if told else ["claimed"]) + ([] if genie else ["claimed_genie"])
    return SlotError(scale=scale, **values | dict.fromkeys(hidden))


def combined(link: Uplink, mse: MeanSquaredErrors, d_s: int, present: Bool[Tensor, " K"], key: str) -> float | None:
    """Pi: MSEs weighted by the shares of d, tasks by D_n/D of the present (shares of R where there is no head).

    None if nothing was sent, or a claim is not made.
    """
    here = link.samples * present
    share = {n: float(here[link.task_of == n].sum() / here.sum().clamp_min(1e-300)) for n in range(len(link.lengths))}
    terms: list[tuple[float, float | None]] = [(d_s, getattr(mse.s, key))] if mse.s else []
    for n, name in enumerate(link.task_names):
        if name in mse.p:
            terms.append((share[n] * link.lengths[n], getattr(mse.p[name], key)))
    total = sum(weight for weight, _ in terms)
    known = [weight * value for weight, value in terms if value is not None]
    return sum(known) / total if total and len(known) == len(terms) else None
