"""One round's uplink over several channels at once, its gradients kept: for expectations over the channel."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air.cost import round_ledger
from airpfed.air.pieces import Piece, rescaled
from airpfed.air.plan import Air, grouping_of, plan
from airpfed.air.slot import Slot, Transceiver, kept
from airpfed.air.uplink import Received, believed, collect, prepare, send, through, together


def send_draws(
    air: Air,
    seeds: Sequence[int],
    t: int,
    shared: Float[Tensor, "K d_s"],
    personal: Float[Tensor, "K d_p"],
    present: Bool[Tensor, " K"],
    memory: Float[Tensor, "G 7"],
) -> list[Received]:
    """What `send` gives with each of these seeds; transceivers of all draws are designed together where they can be.

    A design of a coherence block does not depend, rounding aside, on what it is batched with: only time differs.
    Groupings chosen by the channel, energy shared by slots and the error-free link go one draw after another.
    """
    airs = [replace(air, seed=seed) for seed in seeds]
    if air.design is None or air.refine is not None or air.access == "auto":
        return [send(one, t, shared, personal, present, memory) for one in airs]
    jobs = plan(air, shared, personal, present, grouping_of(air, present))
    beliefs = [believed(air, row) for row in memory]
    slots = [prepare(one, jobs, t, beliefs) for one in airs]
    flat = [[piece for slot in each for piece in slot] for each in slots]
    made = zip(*(designed_together(air, pieces) for pieces in zip(*flat, strict=True)), strict=True) if jobs else []
    out = []
    for one, pieces, how in zip(airs, slots, made or [()] * len(airs), strict=True):
        each = through(one, pieces, how, t)
        done = [together(job, parts) for job, parts in zip(jobs, each, strict=True)]
        found = collect(one, jobs, done, shared.shape[1], personal.shape[1], present)
        cost = round_ledger(one, jobs, [sums.joules for sums in done], t, shared.shape[1])
        told = tuple((b.within, b.cross) for b in beliefs)
        out.append(replace(found, ledger=cost, correlation=told, memory=memory))
    return out


def designed_together(air: Air, pieces: Sequence[Piece]) -> list[Transceiver]:
    """The transceivers of one piece in every draw: its channels one after another as the blocks of one slot."""
    assert air.design is not None
    asked = [piece.asked for piece in pieces]
    slot = replace(asked[0], h=torch.cat([one.h for one in asked]), csi_variance=joined_csi(asked))
    every = kept(slot, air.design(slot))
    return rescaled(air, pieces, every.split([len(one.h) for one in asked]))


def joined_csi(asked: Sequence[Slot]) -> Float[Tensor, "*#B m K"]:
    """Variances of the draws' estimates: one for all blocks, or each its own."""
    if asked[0].csi_variance.dim() < 3:
        return asked[0].csi_variance
    return torch.cat([one.csi_variance.expand(len(one.h), -1, -1) for one in asked])
