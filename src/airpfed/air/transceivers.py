"""The transceivers of a round: a design for each segment, then shared energy, then the gain for correlated symbols."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air.blockwise import by_block
from airpfed.air.correlation import scale_receivers
from airpfed.air.designs.batching import design_jointly, in_batches, join_problems
from airpfed.air.distortion import distortion_of, equalise_amplifiers
from airpfed.air.feedback import HEADROOM_DB, round_factors
from airpfed.air.problem import Transceiver, TransceiverProblem, check_power, join_blocks, silent
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import DesignFunction, Uplink
from airpfed.air.segments import Segment
from airpfed.air.symbols import entries_per_use


def design(link: Uplink, rounds: Sequence[Sequence[Segment]]) -> list[list[Transceiver]]:
    """Design the transceivers of each round's segments, with one transceiver a coherence block.

    rounds: the segments of one round, or of the same round with several seeds. With several seeds, a segment's channels
    of all seeds are designed in one call; the design of a coherence block does not depend, but for rounding, on the
    blocks of the same call. (Where receivers of a slot depend on each other, as superposed ones can, rounding may flip
    the sign of a part of the noise.) Where slots depend on the channels or share energy, rounds are designed alone.
    Transmit factors are then rounded for the feedback, and receivers of a design that shrinks are finally scaled to the
    assumed correlation.
    """
    if link.design is None:
        return [[] for _ in rounds]
    if len(rounds) > 1 and link.refine is None and link.access != "auto":
        by_segment = [_design_seeds(link, segments) for segments in zip(*rounds, strict=True)]
        transceivers = [[seeds[index] for seeds in by_segment] for index in range(len(rounds))]
    else:
        transceivers = [_design_round(link, segments) for segments in rounds]
    return [round_and_rescale(link, *pair) for pair in zip(rounds, transceivers, strict=True)]


def _design_seeds(link: Uplink, segments: Sequence[Segment]) -> list[Transceiver]:
    """Design one segment for several seeds: their channels one after another as the blocks of one problem.

    Mixing, and with it the largest symbol and the power limits, differs from seed to seed. A batched design is then
    asked in units of the limits, and any other one seed by seed.
    """
    assert link.design is not None
    problems = [segment.problem for segment in segments]
    if any(not torch.equal(problem.power_limit, problems[0].power_limit) for problem in problems):
        if not link.batched:
            return design_separately(link, segments)
        return [check_power(*pair) for pair in zip(problems, design_jointly(link.design, problems), strict=True)]
    joint = join_problems(problems)
    transceiver = link.design(joint) if link.batched else design_or_stay_silent(link.design, joint)
    return check_power(joint, transceiver).split([len(problem.h) for problem in problems])


def design_or_stay_silent(design: DesignFunction, problem: TransceiverProblem) -> Transceiver:
    """Design a problem, or stay silent where no stream has a weight, so that a design never meets an empty sum.

    That is a gradient of zeros: that of A in round 1, because the factors B of LoRA begin at 0.
    """
    return design(problem) if bool(problem.weights.any()) else silent(problem)


def _design_round(link: Uplink, segments: Sequence[Segment]) -> list[Transceiver]:
    """Design each segment by itself; then let the blocks share energy, if slots do.

    Shared energy has a limit over the round, sum_j u_j p_jk |b_jk|^2 <= P_k sum_j u_j for device k over its blocks j of
    u_j uses. One block may exceed P_k, so that `check_power`, a check of every block, does not apply to the result: the
    `PowerConstraint` of `designs/power_sharing.py` holds the limit.
    """
    transceivers = design_separately(link, segments)
    if link.refine is None or not segments:
        return transceivers
    blocks = [(segment, block) for segment in segments for block in range(len(segment.block_ranges))]
    uses = [float(segment.block_ranges[block][1] - segment.block_ranges[block][0]) for segment, block in blocks]
    refined = iter(
        link.refine(
            [one_block(segment.problem, block) for segment, block in blocks],
            [segment.slot.devices for segment, _ in blocks],
            uses,
            [power for segment in segments for power in block_powers(link, segment)],
            [
                block
                for transceiver in transceivers
                for block in transceiver.split([1] * len(transceiver.transmit_factors))
            ],
        )
    )
    return [join_blocks([next(refined) for _ in segment.block_ranges]) for segment in segments]


def design_separately(link: Uplink, segments: Sequence[Segment]) -> list[Transceiver]:
    """Design one transceiver a segment, each with the full power limit."""
    assert link.design is not None
    problems = [segment.problem for segment in segments]
    transceivers = (
        in_batches(link.design, problems) if link.batched else [design_or_stay_silent(link.design, p) for p in problems]
    )
    return [check_power(*pair) for pair in zip(problems, transceivers, strict=True)]


def round_and_rescale(
    link: Uplink, segments: Sequence[Segment], transceivers: Sequence[Transceiver]
) -> list[Transceiver]:
    """Round the transmit factors if feedback has few bits; undo the amplifiers' gains; then scale the receivers.

    Receivers know the rounded factors, and the devices their own amplifiers.
    """
    if link.feedback_bits is not None:
        headroom_db = 0.0 if link.refine is None else HEADROOM_DB
        transceivers = [
            replace(
                transceiver,
                transmit_factors=round_factors(
                    transceiver.transmit_factors, segment.problem.power_limit, link.feedback_bits, headroom_db
                ),
            )
            for segment, transceiver in zip(segments, transceivers, strict=True)
        ]
    driven = [equalise_amplifiers(link, *pair) for pair in zip(segments, transceivers, strict=True)]
    return rescale(link, segments, driven)


def rescale(link: Uplink, segments: Sequence[Segment], transceivers: Sequence[Transceiver]) -> list[Transceiver]:
    """If `link.rescale`, multiply each receiver by the best scalar for the assumed correlation (`scale_receivers`)."""
    if not link.rescale:
        return list(transceivers)
    return [
        scale_receivers(
            segment.problem,
            transceiver,
            segment.R,
            segment.symbol_power,
            distortion_of(link, segment, transceiver),
        )
        for segment, transceiver in zip(segments, transceivers, strict=True)
    ]


def one_block(problem: TransceiverProblem, block: int) -> TransceiverProblem:
    """The problem of one coherence block."""
    csi = problem.csi_variance if problem.csi_variance.dim() < 3 else problem.csi_variance[block : block + 1]
    return replace(problem, h=problem.h[block : block + 1], csi_variance=csi)


def block_powers(link: Uplink, segment: Segment) -> Float[Tensor, "B K"]:
    """The mean power of each stream's symbols in each block; it is 1 over a segment, but not over each of its blocks.

    Where slots share energy, the devices report it.
    """
    per_use, entries, ranges = entries_per_use(link.packing), segment.group.entries, segment.block_ranges
    squares = [
        by_block(partial(torch.sum, dim=-1), entries[rows].square(), ranges, per_use)
        for rows in row_chunks(*entries.shape)
    ]
    return torch.cat(squares, 1) / torch.tensor([[per_use * (b - a)] for a, b in ranges])
