"""Which slots a round has, who sends in them, and what each receiver wants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.air.slot import Slot, Transceiver
from airpfed.air.symbols import Packing, uses_of

DesignFunction = Callable[[Slot], Transceiver]
RoundFunction = Callable[
    [Sequence[Slot], Sequence[Int[Tensor, " _K"]], Sequence[float], Sequence[Transceiver]], list[Transceiver]
]
"""(slots of a round, their devices, their uses, transceivers made slot by slot) -> transceivers that share energy."""
Groups = tuple[tuple[int, int], ...]
Grouping = tuple[tuple[int, ...], ...]
"""Tasks of each p-slot, in the order of transmission."""
Access = Literal["concurrent", "tdma", "auto", "superposed"]


@dataclass(frozen=True)
class Air:
    """What stays the same from round to round, linear SI units.

    design: None is the error-free link. refine: None if every slot keeps the power limit by itself. rescale: receivers
    are scaled to the correlation believed in, which is `correlation`, or estimated from round to round if None.
    personal_slots: the most p-slots of access `auto`. gain: mean power gain per device; power: P_k, watts; noise:
    sigma2, watts per antenna. samples: D_k. groups: columns of each normaliser group of the s- and p-vectors; lengths:
    entries of each task's p-vector.
    """

    design: DesignFunction | None
    refine: RoundFunction | None
    rescale: bool
    correlation: float | None
    access: Access
    personal_slots: int
    packing: Packing
    normalizer: Literal["common", "per_device"]
    task_names: tuple[str, ...]
    task_of: Int[Tensor, " K"]
    samples: Float[Tensor, " K"]
    gain: Float[Tensor, " K"]
    power: Float[Tensor, " K"]
    noise: float
    antennas: int
    csi_error: float
    coherence_symbols: int
    bandwidth_hz: float
    subcarriers: int
    shared_groups: Groups
    personal_groups: Groups
    lengths: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Job:
    """One slot's work: one stream a row of `vectors`, one target a row of `weights`.

    devices: of each stream; a superposed slot has two streams a device, s and p. lengths: entries of each stream's
    vector; group_of: which target wants it; importance: 1 for s, D_n/D for a task. targets: the
    task of each, None for s.
    """

    name: str
    devices: Int[Tensor, " K"]
    vectors: Float[Tensor, "K d"]
    lengths: Int[Tensor, " K"]
    groups: Groups
    weights: Float[Tensor, "T K"]
    group_of: Int[Tensor, " K"]
    importance: Float[Tensor, " T"]
    targets: tuple[int | None, ...]


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
    samples = air.samples[here]
    every = Job(
        "s", here, shared[here], torch.full_like(here, shared.shape[1]), air.shared_groups,
        (samples / samples.sum())[None, :], torch.zeros_like(here), torch.ones(1, dtype=torch.float64), (None,),
    )  # fmt: skip
    jobs = [every, *(_personal(air, personal, here, slot) for slot in grouping)]
    jobs = [job for job in jobs if len(job.devices) and job.vectors.shape[1]]
    if air.access == "superposed" and len(jobs) == 2:
        return [_superposed(*jobs)]
    return jobs


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
    groups = tuple((a, min(b, longest)) for a, b in air.personal_groups if a < longest)
    return Job(
        "p" + ",".join(str(n) for n in tasks), devices, personal[devices, :longest], lengths, groups,
        parts / parts.sum(1, keepdim=True), own.double().argmax(0),
        parts.sum(1) / air.samples[here].sum(), tuple(tasks),
    )  # fmt: skip


def _superposed(s: Job, p: Job) -> Job:
    """Both in one slot: every device sends two streams at once, and each receiver hears the other's as interference.

    The shorter vectors are silent in the tail; groups are cut wherever either has a border. alpha: by entries, as in
    Pi.
    """
    width = max(s.vectors.shape[1], p.vectors.shape[1])
    vectors = [torch.nn.functional.pad(job.vectors, (0, width - job.vectors.shape[1])) for job in (s, p)]
    cuts = sorted({edge for job in (s, p) for group in job.groups for edge in group})
    entries = torch.stack([p.lengths[row > 0].amax() for row in p.weights]).double()
    alpha = torch.cat([s.importance * s.vectors.shape[1], p.importance * entries])
    return Job(
        "s+" + p.name, torch.cat([s.devices, p.devices]), torch.cat(vectors), torch.cat([s.lengths, p.lengths]),
        tuple(pairwise(cuts)), _diagonal(s.weights, p.weights),
        torch.cat([s.group_of, 1 + p.group_of]), alpha / alpha.sum(), (*s.targets, *p.targets),
    )  # fmt: skip


def _diagonal(a: Float[Tensor, "S K"], b: Float[Tensor, "T L"]) -> Float[Tensor, "U J"]:
    """Two matrices as the blocks of one."""
    pad = torch.nn.functional.pad
    return torch.cat([pad(a, (0, b.shape[1])), pad(b, (a.shape[1], 0))])


def slot_uses(air: Air, job: Job) -> int:
    """Channel uses of a slot: its groups, each filled up to a whole symbol."""
    return sum(uses_of(stop - start, air.packing) for start, stop in groups_of(air, job))


def groups_of(air: Air, job: Job) -> Groups:
    """Normaliser groups of a slot: with one common sigma, the whole vector."""
    return ((0, job.vectors.shape[1]),) if air.normalizer == "common" else job.groups


def memory_rows(air: Air) -> int:
    """Normaliser groups that a slot can have at most: each has a correlation of its own."""
    counts = len(air.shared_groups), len(air.personal_groups)
    if air.normalizer == "common":
        return 1
    return max(1, sum(counts) if air.access == "superposed" else max(counts))


def streams_of(devices: Int[Tensor, " K"]) -> Int[Tensor, " K"] | None:
    """`Slot.owner` for streams of these devices: None where each has one."""
    unique, owner = torch.unique(devices, return_inverse=True)
    return owner if len(unique) < len(devices) else None
