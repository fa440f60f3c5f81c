"""Which slots a round has, who sends in them, and what each receiver wants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.air.impairments import NONE, Impairments
from airpfed.air.rows import Rows
from airpfed.air.slot import Slot, Transceiver
from airpfed.air.symbols import Packing, uses_of
from airpfed.air.world import World

DesignFunction = Callable[[Slot], Transceiver]
RoundFunction = Callable[
    [
        Sequence[Slot],
        Sequence[Int[Tensor, " _K"]],
        Sequence[float],
        Sequence[Float[Tensor, " _K"]],
        Sequence[Transceiver],
    ],
    list[Transceiver],
]
"""(slots of a round, their devices, their uses, powers of their streams' symbols, transceivers made slot by slot) ->
transceivers that share energy.
"""
Groups = tuple[tuple[int, int], ...]
Grouping = tuple[tuple[int, ...], ...]
"""Tasks of each p-slot, in the order of transmission."""
Access = Literal["concurrent", "tdma", "auto", "superposed"]
Topology = Literal["single_cell", "joint", "two_hop"]


@dataclass(frozen=True)
class Digital:
    """Bits an entry, and whether devices send in groups that the antennas tell apart, or one after another."""

    bits: int
    spatial: bool


@dataclass(frozen=True)
class Air:
    """What stays the same from round to round, linear SI units.

    design: None is the error-free link; bundles: it takes slots in bundles. refine: None if every slot keeps the power
    limit by itself. rescale: receivers are scaled to the correlation believed in, which is `correlation`, or estimated
    from round to round if None.
    digital: None unless gradients travel as bits. personal_slots: the most p-slots of access `auto`. topology: joint
    and two_hop have station n for task n; backhaul_bits: an entry of an edge's s-sum, None is error-free. world:
    places, gains, channels; csi_error: share of the channels' variance that estimates miss; harm: impairments of the
    devices. power: P_k, watts; noise: sigma2, watts per antenna. samples: D_k. groups: columns of each normaliser group
    of the s- and p-vectors, personal_rows: the number of the s-group of the same kind as each p-group, or one of its
    own; lengths: entries of each task's p-vector. biased: the design shrinks the sum, also with perfect channel
    knowledge.
    """

    design: DesignFunction | None
    bundles: bool
    refine: RoundFunction | None
    rescale: bool
    digital: Digital | None
    correlation: float | None
    topology: Topology
    backhaul_bits: int | None
    access: Access
    personal_slots: int
    packing: Packing
    normalizer: Literal["common", "per_device"]
    task_names: tuple[str, ...]
    task_of: Int[Tensor, " K"]
    samples: Float[Tensor, " K"]
    world: World
    power: Float[Tensor, " K"]
    noise: float
    csi_error: float
    harm: Impairments
    coherence_symbols: int
    bandwidth_hz: float
    subcarriers: int
    shared_groups: Groups
    personal_groups: Groups
    personal_rows: tuple[int, ...]
    lengths: tuple[int, ...]
    seed: int
    biased: bool = False


@dataclass(frozen=True)
class Job:
    """One slot's work: one stream a row of `vectors`, one receiver a row of `weights`, one sum a row of `mix`.

    devices: of each stream; a superposed slot has two streams a device, s and p. lengths: entries of each stream's
    vector; rows: the place of each group in the memory; group_of: which receiver wants a stream; importance: what a
    receiver's error counts in the round's. stations:
    where each receiver is, None at all stations together. mix: the slot's sums from the receivers' ones, the identity
    but for two_hop, whose s-sum is sum_n (D_n/D) times that of edge n. targets: the task of each sum, None for s.
    """

    name: str
    devices: Int[Tensor, " K"]
    vectors: Rows
    lengths: Int[Tensor, " K"]
    groups: Groups
    rows: tuple[int, ...]
    weights: Float[Tensor, "T K"]
    group_of: Int[Tensor, " K"]
    importance: Float[Tensor, " T"]
    stations: tuple[int | None, ...]
    mix: Float[Tensor, "U T"]
    targets: tuple[int | None, ...]


def unclaimed(air: Air) -> str:
    """Why the error of no sum, or not that of the s-sum, can be foretold; empty where all can.

    Bussgang's gain of a clipping amplifier holds for Gaussian signals of one power over a slot, which gradients' are
    not. Where s-streams of different tasks are not heard together alone, in a superposed slot or at edges of their own,
    their correlation cannot be estimated, and the error of a sum with a bias depends on it.
    """
    if air.design is None or air.digital is not None:
        return ""
    if air.harm.clipping is not None:
        return "what a clipping amplifier does to gradients cannot be foretold from their mean power"
    if air.correlation is not None or len(air.task_names) < 2 or not air.shared_groups:
        return ""
    if air.access == "superposed" and air.personal_groups:
        return "how devices of different tasks correlate is not heard where s and p share a slot"
    if air.topology == "two_hop" and (air.biased or air.harm != NONE):
        return "how devices of different tasks correlate is not heard at edges of their own"
    return ""


def plan(
    air: Air,
    shared: Float[Tensor, "K d_s"],
    personal: Float[Tensor, "K d_p"],
    present: Bool[Tensor, " K"],
    grouping: Grouping,
) -> list[Job]:
    """The slots of a round, in the order of transmission, with weights that renormalise over the devices present.

    Slots without devices or without entries are left out.
    """
    here = present.nonzero().flatten()
    if not len(here):
        return []
    jobs = [_shared(air, shared, here), *(_personal(air, personal, here, slot) for slot in grouping)]
    jobs = [job for job in jobs if job.vectors.shape[1]]
    if air.access == "superposed" and len(jobs) == 2:
        return [_superposed(*jobs)]
    return jobs


def _shared(air: Air, shared: Float[Tensor, "K d_s"], here: Int[Tensor, " present"]) -> Job:
    """The s-slot: one receiver that hears all stations, or (two_hop) one at every edge that has devices."""
    samples, task_of = air.samples[here], air.task_of[here]
    tasks: Tensor = torch.unique(task_of)
    two_hop = air.topology == "two_hop"
    own = task_of == tasks[:, None] if two_hop else torch.ones(1, len(here), dtype=torch.bool)
    parts = samples * own
    share = parts.sum(1) / samples.sum()
    return Job(
        "s", here, Rows(((shared, here),), shared.shape[1]), torch.full_like(here, shared.shape[1]), air.shared_groups,
        tuple(range(len(air.shared_groups))),
        parts / parts.sum(1, keepdim=True), own.double().argmax(0), share.square(),
        tuple(tasks.tolist()) if two_hop else (None,), share[None, :], (None,),
    )  # fmt: skip


def grouping_of(air: Air, present: Bool[Tensor, " K"]) -> Grouping:
    """The p-slots of a fixed access: all tasks present at once, or one after another."""
    tasks = tuple(sorted(set(air.task_of[present].tolist())))
    return tuple((n,) for n in tasks) if air.access == "tdma" else (tasks,) if tasks else ()


def _personal(air: Air, personal: Float[Tensor, "K d_p"], here: Int[Tensor, " present"], tasks: Sequence[int]) -> Job:
    devices = here[torch.isin(air.task_of[here], torch.tensor(tasks))]
    own = air.task_of[devices][None, :] == torch.tensor(tasks)[:, None]
    parts = air.samples[devices] * own
    lengths = torch.tensor(air.lengths)[air.task_of[devices]]
    longest = int(lengths.max())
    rows = Rows(((personal, devices),), min(longest, personal.shape[1]))
    groups = tuple((a, min(b, longest)) for a, b in air.personal_groups if a < longest)
    return Job(
        "p" + ",".join(str(n) for n in tasks), devices, rows, lengths, groups, air.personal_rows[: len(groups)],
        parts / parts.sum(1, keepdim=True), own.double().argmax(0), parts.sum(1) / air.samples[here].sum(),
        tuple(None if air.topology == "single_cell" else n for n in tasks),
        torch.eye(len(tasks), dtype=torch.float64), tuple(tasks),
    )  # fmt: skip


def _superposed(s: Job, p: Job) -> Job:
    """Both in one slot: every device sends two streams at once, and each receiver hears the other's as interference.

    The shorter vectors are silent in the tail; groups are cut wherever either has a border. alpha: by entries, as in
    Pi.
    """
    width = max(s.vectors.shape[1], p.vectors.shape[1])
    cuts = sorted({edge for job in (s, p) for group in job.groups for edge in group})
    entries = torch.stack([p.lengths[row > 0].amax() for row in p.weights]).double()
    alpha = torch.cat([s.importance * s.vectors.shape[1], p.importance * entries])
    return Job(
        "s+" + p.name, torch.cat([s.devices, p.devices]), Rows(s.vectors.parts + p.vectors.parts, width),
        torch.cat([s.lengths, p.lengths]),
        tuple(pairwise(cuts)), tuple(range(len(cuts) - 1)), _diagonal(s.weights, p.weights),
        torch.cat([s.group_of, len(s.weights) + p.group_of]), alpha / alpha.sum(), (*s.stations, *p.stations),
        _diagonal(s.mix, p.mix), (*s.targets, *p.targets),
    )  # fmt: skip


def _diagonal(a: Float[Tensor, "S K"], b: Float[Tensor, "T L"]) -> Float[Tensor, "U J"]:
    """Two matrices as the blocks of one."""
    pad = torch.nn.functional.pad
    return torch.cat([pad(a, (0, b.shape[1])), pad(b, (a.shape[1], 0))])


def over_backhaul(air: Air, job: Job) -> Bool[Tensor, " T"]:
    """Receivers whose sums travel on to the global server: the edges' s-sums of two_hop."""
    if air.topology != "two_hop":
        return torch.zeros(len(job.weights), dtype=torch.bool)
    of_s = torch.tensor([task is None for task in job.targets])
    return (job.mix[of_s] != 0).any(0)


def slot_uses(air: Air, job: Job) -> int:
    """Channel uses of a slot: its groups, each filled up to a whole symbol."""
    return sum(uses_of(stop - start, air.packing) for start, stop in groups_of(air, job))


def groups_of(air: Air, job: Job) -> Groups:
    """Normaliser groups of a slot: with one common sigma, the whole vector."""
    return ((0, job.vectors.shape[1]),) if air.normalizer == "common" else job.groups


def rows_of(air: Air, job: Job) -> tuple[int, ...]:
    """The places in the memory of a slot's normaliser groups."""
    return (0,) if air.normalizer == "common" else job.rows


def memory_rows(air: Air) -> int:
    """Kinds of normaliser groups, or pieces of superposed ones: each has a correlation of its own."""
    if air.normalizer == "common":
        return 1
    if air.access == "superposed":
        return max(1, len(air.shared_groups) + len(air.personal_groups))
    return max([1, len(air.shared_groups), *(row + 1 for row in air.personal_rows)])


def streams_of(devices: Int[Tensor, " K"]) -> Int[Tensor, " K"] | None:
    """`Slot.owner` for streams of these devices: None where each has one."""
    unique, owner = torch.unique(devices, return_inverse=True)
    return owner if len(unique) < len(devices) else None
