"""One round's uplink over several channels at once, its gradients kept: for expectations over the channel."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air.problem import Transceiver, TransceiverProblem, kept
from airpfed.air.round_cost import round_ledger
from airpfed.air.schedule import Uplink, grouping_of, plan
from airpfed.air.segments import Segment, rescaled
from airpfed.air.uplink import Aggregate, assumed_correlation_of, collect, prepare, send, through, together


def uplink_over_seeds(
    link: Uplink,
    seeds: Sequence[int],
    t: int,
    shared: Float[Tensor, "K d_s"],
    personal: Float[Tensor, "K d_p"],
    present: Bool[Tensor, " K"],
    correlation_statistics: Float[Tensor, "G 7"],
) -> list[Aggregate]:
    """What `send` gives with each of these seeds; transceivers of all draws are designed together where they can be.

    A design of a coherence block does not depend, rounding aside, on what it is batched with: only time differs.
    Groupings chosen by the channel, energy shared by slots and the error-free link go one draw after another.
    """
    links = [replace(link, seed=seed) for seed in seeds]
    if link.design is None or link.refine is not None or link.access == "auto":
        return [send(one, t, shared, personal, present, correlation_statistics) for one in links]
    slots = plan(link, shared, personal, present, grouping_of(link, present))
    beliefs = [assumed_correlation_of(link, row) for row in correlation_statistics]
    slot_parts = [prepare(one, slots, t, beliefs) for one in links]
    flat = [[segment for problem in each for segment in problem] for each in slot_parts]
    made = (
        zip(*(designed_together(link, segments) for segments in zip(*flat, strict=True)), strict=True) if slots else []
    )
    out = []
    for one, segments, how in zip(links, slot_parts, made or [()] * len(links), strict=True):
        each = through(one, segments, how, t)
        done = [together(slot, parts) for slot, parts in zip(slots, each, strict=True)]
        found = collect(one, slots, done, shared.shape[1], personal.shape[1], present)
        cost = round_ledger(one, slots, [sums.joules for sums in done], t, shared.shape[1])
        told = tuple((b.within, b.cross) for b in beliefs)
        out.append(replace(found, ledger=cost, correlation=told, correlation_statistics=correlation_statistics))
    return out


def designed_together(link: Uplink, segments: Sequence[Segment]) -> list[Transceiver]:
    """The transceivers of one piece in every draw: its channels one after another as the blocks of one slot."""
    assert link.design is not None
    problems = [segment.problem for segment in segments]
    problem = replace(problems[0], h=torch.cat([one.h for one in problems]), csi_variance=joined_csi(problems))
    every = kept(problem, link.design(problem))
    return rescaled(link, segments, every.split([len(one.h) for one in problems]))


def joined_csi(problem: Sequence[TransceiverProblem]) -> Float[Tensor, "*#B m K"]:
    """Variances of the draws' estimates: one for all blocks, or each its own."""
    if problem[0].csi_variance.dim() < 3:
        return problem[0].csi_variance
    return torch.cat([one.csi_variance.expand(len(one.h), -1, -1) for one in problem])
