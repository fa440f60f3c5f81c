"""Which slots a round has, who sends in them, and what each receiver wants."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.air.impairments import NONE, Impairments
from airpfed.air.network import Network
from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.air.row_chunks import Rows
from airpfed.air.symbols import Packing, uses_of

DesignFunction = Callable[[TransceiverProblem], Transceiver]
RoundFunction = Callable[
    [
        Sequence[TransceiverProblem],
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
class Uplink:
    """What stays the same from round to round, linear SI units.

    design: None is the error-free link; bundles: it takes slots in bundles. refine: None if every slot keeps the power
    limit by itself. rescale: receivers are scaled to the correlation believed in, which is `correlation`, or estimated
    from round to round if None.
    digital: None unless gradients travel as bits. personal_slots: the most p-slots of access `auto`. topology: joint
    and two_hop have station n for task n; backhaul_bits: an entry of an edge's s-sum, None is error-free. world:
    places, gains, channels; csi_error: share of the channels' variance that estimates miss; impairments: impairments
    of the devices. power: P_k, watts; noise: sigma2, watts per antenna. samples: D_k. groups: columns of each
    normaliser group of the s- and p-vectors, personal_rows: the number of the s-group of the same kind as each
    p-group, or one of its own; lengths: entries of each task's p-vector. biased: the design shrinks the sum, also
    with perfect channel knowledge.
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
    network: Network
    power: Float[Tensor, " K"]
    noise: float
    csi_error: float
    impairments: Impairments
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
class SlotPlan:
    """One slot's work: one stream a row of `vectors`, one receiver a row of `weights`, one sum a row of
    `combining_matrix`.

    devices: of each stream; a superposed slot has two streams a device, s and p. lengths: entries of each stream's
    vector; rows: the place of each group in the memory; group_of: which receiver wants a stream; target_weight: what a
    receiver's error counts in the round's. stations:
    where each receiver is, None at all stations together. combining_matrix: the slot's sums from the receivers' ones,
    the identity but for two_hop, whose s-sum is sum_n (D_n/D) times that of edge n. targets: the task of each sum,
    None for s.
    """

    name: str
    devices: Int[Tensor, " K"]
    vectors: Rows
    lengths: Int[Tensor, " K"]
    groups: Groups
    rows: tuple[int, ...]
    weights: Float[Tensor, "T K"]
    group_of: Int[Tensor, " K"]
    target_weight: Float[Tensor, " T"]
    stations: tuple[int | None, ...]
    combining_matrix: Float[Tensor, "U T"]
    targets: tuple[int | None, ...]


def unclaimed(link: Uplink) -> str:
    """Why the error of no sum, or not that of the s-sum, can be foretold; empty where all can.

    Bussgang's gain of a clipping amplifier holds for Gaussian signals of one power over a slot, which gradients' are
    not. Where s-streams of different tasks are not heard together alone, in a superposed slot or at edges of their own,
    their correlation cannot be estimated, and the error of a sum with a bias depends on it.
    """
    if link.design is None or link.digital is not None:
        return ""
    if link.impairments.clipping is not None:
        return "what a clipping amplifier does to gradients cannot be foretold from their mean power"
    if link.correlation is not None or len(link.task_names) < 2 or not link.shared_groups:
        return ""
    if link.access == "superposed" and link.personal_groups:
        return "how devices of different tasks correlate is not heard where s and p share a slot"
    if link.topology == "two_hop" and (link.biased or link.impairments != NONE):
        return "how devices of different tasks correlate is not heard at edges of their own"
    return ""


def plan(
    link: Uplink,
    shared: Float[Tensor, "K d_s"],
    personal: Float[Tensor, "K d_p"],
    present: Bool[Tensor, " K"],
    grouping: Grouping,
) -> list[SlotPlan]:
    """The slots of a round, in the order of transmission, with weights that renormalise over the devices present.

    Slots without devices or without entries are left out.
    """
    here = present.nonzero().flatten()
    if not len(here):
        return []
    slots = [_shared(link, shared, here), *(_personal(link, personal, here, problem) for problem in grouping)]
    slots = [slot for slot in slots if slot.vectors.shape[1]]
    if link.access == "superposed" and len(slots) == 2:
        return [_superposed(*slots)]
    return slots


def _shared(link: Uplink, shared: Float[Tensor, "K d_s"], here: Int[Tensor, " present"]) -> SlotPlan:
    """The s-slot: one receiver that hears all stations, or (two_hop) one at every edge that has devices."""
    samples, task_of = link.samples[here], link.task_of[here]
    tasks: Tensor = torch.unique(task_of)
    two_hop = link.topology == "two_hop"
    own = task_of == tasks[:, None] if two_hop else torch.ones(1, len(here), dtype=torch.bool)
    parts = samples * own
    share = parts.sum(1) / samples.sum()
    return SlotPlan(
        "s", here, Rows(((shared, here),), shared.shape[1]), torch.full_like(here, shared.shape[1]), link.shared_groups,
        tuple(range(len(link.shared_groups))),
        parts / parts.sum(1, keepdim=True), own.double().argmax(0), share.square(),
        tuple(tasks.tolist()) if two_hop else (None,), share[None, :], (None,),
    )  # fmt: skip


def grouping_of(link: Uplink, present: Bool[Tensor, " K"]) -> Grouping:
    """The p-slots of a fixed access: all tasks present at once, or one after another."""
    tasks = tuple(sorted(set(link.task_of[present].tolist())))
    return tuple((n,) for n in tasks) if link.access == "tdma" else (tasks,) if tasks else ()


def _personal(
    link: Uplink, personal: Float[Tensor, "K d_p"], here: Int[Tensor, " present"], tasks: Sequence[int]
) -> SlotPlan:
    devices = here[torch.isin(link.task_of[here], torch.tensor(tasks))]
    own = link.task_of[devices][None, :] == torch.tensor(tasks)[:, None]
    parts = link.samples[devices] * own
    lengths = torch.tensor(link.lengths)[link.task_of[devices]]
    longest = int(lengths.max())
    rows = Rows(((personal, devices),), min(longest, personal.shape[1]))
    groups = tuple((a, min(b, longest)) for a, b in link.personal_groups if a < longest)
    return SlotPlan(
        "p" + ",".join(str(n) for n in tasks), devices, rows, lengths, groups, link.personal_rows[: len(groups)],
        parts / parts.sum(1, keepdim=True), own.double().argmax(0), parts.sum(1) / link.samples[here].sum(),
        tuple(None if link.topology == "single_cell" else n for n in tasks),
        torch.eye(len(tasks), dtype=torch.float64), tuple(tasks),
    )  # fmt: skip


def _superposed(s: SlotPlan, p: SlotPlan) -> SlotPlan:
    """Both in one slot: every device sends two streams at once, and each receiver hears the other's as interference.

    The shorter vectors are silent in the tail; groups are cut wherever either has a border. alpha: by entries, as in
    Pi.
    """
    width = max(s.vectors.shape[1], p.vectors.shape[1])
    cuts = sorted({edge for slot in (s, p) for group in slot.groups for edge in group})
    entries = torch.stack([p.lengths[row > 0].amax() for row in p.weights]).double()
    alpha = torch.cat([s.target_weight * s.vectors.shape[1], p.target_weight * entries])
    return SlotPlan(
        "s+" + p.name, torch.cat([s.devices, p.devices]), Rows(s.vectors.parts + p.vectors.parts, width),
        torch.cat([s.lengths, p.lengths]),
        tuple(pairwise(cuts)), tuple(range(len(cuts) - 1)), _diagonal(s.weights, p.weights),
        torch.cat([s.group_of, len(s.weights) + p.group_of]), alpha / alpha.sum(), (*s.stations, *p.stations),
        _diagonal(s.combining_matrix, p.combining_matrix), (*s.targets, *p.targets),
    )  # fmt: skip


def _diagonal(a: Float[Tensor, "S K"], b: Float[Tensor, "T L"]) -> Float[Tensor, "U J"]:
    """Two matrices as the blocks of one."""
    pad = torch.nn.functional.pad
    return torch.cat([pad(a, (0, b.shape[1])), pad(b, (a.shape[1], 0))])


def over_backhaul(link: Uplink, slot: SlotPlan) -> Bool[Tensor, " T"]:
    """Receivers whose sums travel on to the global server: the edges' s-sums of two_hop."""
    if link.topology != "two_hop":
        return torch.zeros(len(slot.weights), dtype=torch.bool)
    of_s = torch.tensor([task is None for task in slot.targets])
    return (slot.combining_matrix[of_s] != 0).any(0)


def slot_uses(link: Uplink, slot: SlotPlan) -> int:
    """Channel uses of a slot: its groups, each filled up to a whole symbol."""
    return sum(uses_of(stop - start, link.packing) for start, stop in groups_of(link, slot))


def groups_of(link: Uplink, slot: SlotPlan) -> Groups:
    """Normaliser groups of a slot: with one common sigma, the whole vector."""
    return ((0, slot.vectors.shape[1]),) if link.normalizer == "common" else slot.groups


def rows_of(link: Uplink, slot: SlotPlan) -> tuple[int, ...]:
    """The places in the memory of a slot's normaliser groups."""
    return (0,) if link.normalizer == "common" else slot.rows


def correlation_rows(link: Uplink) -> int:
    """Kinds of normaliser groups, or pieces of superposed ones: each has a correlation of its own."""
    if link.normalizer == "common":
        return 1
    if link.access == "superposed":
        return max(1, len(link.shared_groups) + len(link.personal_groups))
    return max([1, len(link.shared_groups), *(row + 1 for row in link.personal_rows)])


def streams_of(devices: Int[Tensor, " K"]) -> Int[Tensor, " K"] | None:
    """`Slot.owner` for streams of these devices: None where each has one."""
    unique, device_of_stream = torch.unique(devices, return_inverse=True)
    return device_of_stream if len(unique) < len(devices) else None
