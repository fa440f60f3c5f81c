"""Segments of a round: one normaliser group of one slot over its coherence blocks, and the design for each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from airpfed.air.correlation import (
    CorrelatedPairs,
    Correlation,
    CorrelationOperator,
    correlated_pairs,
    scale_receivers,
)
from airpfed.air.designs.batching import in_batches
from airpfed.air.network import csi_variance
from airpfed.air.problem import Transceiver, TransceiverProblem, check_power, join_blocks, silent
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import (
    DesignFunction,
    SlotPlan,
    Uplink,
    device_of_stream,
    normalizer_groups,
    slot_uses,
    statistics_rows,
)
from airpfed.air.symbols import NormalizedGroup, Packing, common_sigma, entries_per_use, normalise_group, uses_of

BlockRanges = tuple[tuple[int, int], ...]
"""Uses [first, last) of a segment in each of its coherence blocks."""


@dataclass(frozen=True)
class Segment:
    """One normaliser group of one slot over B coherence blocks.

    problem: the design problem, with channel estimates. h: the true channels; `problem.h` holds their
    estimates. entry_share: share of each target's entries in
    each block. symbol_power: mean power of each stream's symbols over the entries of a target in a block.
    assumed_correlation: the correlation that receivers assume. task_of: task of each stream. name: the
    name of the segment's random generators.
    """

    slot: SlotPlan
    group: NormalizedGroup
    block_ranges: BlockRanges
    problem: TransceiverProblem
    h: Complex[Tensor, "B M K"]
    entry_share: Float[Tensor, "B T"]
    symbol_power: Float[Tensor, "B T K"]
    assumed_correlation: Correlation
    task_of: Int[Tensor, " K"]
    name: str

    @cached_property
    def pairs(self) -> CorrelatedPairs:
        """The pairs of streams that correlate; the targets of a slot are scrambled against one another."""
        return correlated_pairs(self.task_of, self.slot.target_of, len(self.slot.weights) > 1)

    @property
    def R(self) -> CorrelationOperator:  # noqa: N802
        """The correlation of the symbols that receivers assume."""
        return CorrelationOperator(self.assumed_correlation, self.pairs)


def split_slots(link: Uplink, slots: Sequence[SlotPlan], t: int, assumed: Sequence[Correlation]) -> list[Segment]:
    """Split the slots of round t into segments, with the channels of their coherence blocks.

    assumed: the assumed correlation for every row of the statistics. A link that superposes nothing has no segments.
    Random: channels and channel estimates.
    """
    if link.design is None or not slots:
        return []
    vectors, lengths = [slot.vectors for slot in slots], [slot.lengths for slot in slots]
    sigma = common_sigma(vectors, lengths) if link.normalizer == "common" else None
    h_est, h = link.channels(t, -(-sum(slot_uses(link, slot) for slot in slots) // link.coherence_symbols))
    variance, segments, first_use = csi_variance(link.network, link.csi_error), list[Segment](), 0
    for slot in slots:
        for row, columns in zip(statistics_rows(link, slot), normalizer_groups(link, slot), strict=True):
            uses = uses_of(columns[1] - columns[0], link.packing)
            blocks, block_ranges = block_ranges_of(first_use, uses, link.coherence_symbols)
            group = normalise_group(slot.vectors, slot.lengths, slot.weights, sigma, columns)
            entry_share, symbol_power = block_statistics(group, slot.target_of, block_ranges, link.packing)
            segments.append(
                Segment(
                    slot=slot,
                    group=group,
                    block_ranges=block_ranges,
                    problem=problem_of(link, slot, group.weights, h_est[blocks.start : blocks.stop], variance),
                    h=h[blocks.start : blocks.stop, antennas_of(link, slot)][..., slot.devices],
                    entry_share=entry_share,
                    symbol_power=symbol_power,
                    assumed_correlation=assumed[row],
                    task_of=link.task_of[slot.devices],
                    name=f"{slot.name}/{columns[0]}",
                )
            )
            first_use += uses
    return segments


def problem_of(
    link: Uplink, slot: SlotPlan, weights: Float[Tensor, "T K"], h_est: Tensor, csi_variance: Tensor
) -> TransceiverProblem:
    """The design problem of a slot's streams.

    h_est, csi_variance: channel estimates of all devices at all antennas, and the variances of their errors. Real
    packing drops the imaginary half of noise and CSI error.
    """
    half = 0.5 if link.packing == "real" else 1.0
    devices, antennas = slot.devices, antennas_of(link, slot)
    uniform = csi_variance.shape[-2] == 1
    return TransceiverProblem(
        h=h_est[..., antennas, :][..., devices],
        weights=weights,
        target_weight=slot.target_weight,
        power_limit=link.power_limit[devices],
        noise=half * link.noise,
        csi_variance=half * (csi_variance if uniform else csi_variance[..., antennas, :])[..., devices],
        device_of_stream=device_of_stream(devices),
        real=link.packing == "real",
        antenna_mask=antenna_mask_of(link, slot),
    )


def antennas_of(link: Uplink, slot: SlotPlan) -> slice:
    """The antennas of a slot's receivers: those of their station, or all antennas if the stations differ."""
    stations, per_station = set(slot.stations), link.network.antennas
    if len(stations) > 1 or stations == {None}:
        return slice(None)
    (station,) = stations
    assert station is not None
    return slice(station * per_station, (station + 1) * per_station)


def antenna_mask_of(link: Uplink, slot: SlotPlan) -> Bool[Tensor, "T M"] | None:
    """The antennas of each receiver among all antennas; None if all receivers have the same."""
    if len(set(slot.stations)) == 1:
        return None
    station_of = torch.arange(len(link.network.gain)).repeat_interleave(link.network.antennas)
    everywhere = torch.ones_like(station_of, dtype=torch.bool)
    return torch.stack([everywhere if station is None else station_of == station for station in slot.stations])


def block_statistics(
    group: NormalizedGroup, target_of: Int[Tensor, " K"], block_ranges: BlockRanges, packing: Packing
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T K"]]:
    """`Segment.entry_share` and `Segment.symbol_power`.

    A target with a shorter vector has entries in the first blocks only, and its streams are silent in the tail.
    """
    per_use = entries_per_use(packing)
    ends = torch.tensor([0, *(b for _, b in block_ranges)])
    common = torch.minimum(group.num_entries[:, None], group.num_entries)
    overlap = torch.minimum(common, per_use * ends[:, None, None]).diff(dim=0).double()
    entries = overlap.diagonal(dim1=1, dim2=2)
    share = entries / entries.sum(0).clamp(min=1)
    return share, (overlap / entries.clamp(min=1)[:, :, None])[:, :, target_of] * group.symbol_power


def block_ranges_of(first_use: int, uses: int, coherence_symbols: int) -> tuple[range, BlockRanges]:
    """The coherence blocks of `uses` channel uses of a round from `first_use` on.

    Returns the numbers of the blocks in the round, and for each block the range [first, last) of these uses in it,
    counted from `first_use`.
    """
    blocks = range(first_use // coherence_symbols, (first_use + uses - 1) // coherence_symbols + 1)
    starts = [block * coherence_symbols - first_use for block in blocks]
    return blocks, tuple((max(start, 0), min(start + coherence_symbols, uses)) for start in starts)


def design(link: Uplink, rounds: Sequence[Sequence[Segment]]) -> list[list[Transceiver]]:
    """Design the transceivers of each round's segments, with one transceiver a coherence block.

    rounds: the segments of one round, or of the same round with several seeds. With several seeds, a segment's channels
    of all seeds are designed in one call; the design of a coherence block does not depend, but for rounding, on the
    blocks of the same call. Where slots depend on the channels or share energy, the rounds are designed one by one.
    Receivers of a design that shrinks are finally scaled to the assumed correlation.
    """
    if link.design is None:
        return [[] for _ in rounds]
    if len(rounds) > 1 and link.refine is None and link.access != "auto":
        by_segment = [_design_seeds(link, segments) for segments in zip(*rounds, strict=True)]
        transceivers = [[seeds[index] for seeds in by_segment] for index in range(len(rounds))]
    else:
        transceivers = [_design_round(link, segments) for segments in rounds]
    return [rescale(link, *pair) for pair in zip(rounds, transceivers, strict=True)]


def _design_seeds(link: Uplink, segments: Sequence[Segment]) -> list[Transceiver]:
    """Design one segment for several seeds: their channels one after another as the blocks of one problem."""
    assert link.design is not None
    problems = [segment.problem for segment in segments]
    csi = problems[0].csi_variance
    if csi.dim() == 3:
        csi = torch.cat([problem.csi_variance.expand(len(problem.h), -1, -1) for problem in problems])
    problem = replace(problems[0], h=torch.cat([problem.h for problem in problems]), csi_variance=csi)
    transceiver = link.design(problem) if link.batched else design_or_stay_silent(link.design, problem)
    return check_power(problem, transceiver).split([len(problem.h) for problem in problems])


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


def rescale(link: Uplink, segments: Sequence[Segment], transceivers: Sequence[Transceiver]) -> list[Transceiver]:
    """If `link.rescale`, multiply each receiver by the best scalar for the assumed correlation (`scale_receivers`)."""
    if not link.rescale:
        return list(transceivers)
    return [
        scale_receivers(segment.problem, transceiver, segment.R, segment.symbol_power, link.impairments)
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
    per_use, entries = entries_per_use(link.packing), segment.group.entries
    squares = [
        torch.stack(
            [
                entries[rows][:, per_use * a : per_use * b].square().sum(1) / (per_use * (b - a))
                for a, b in segment.block_ranges
            ]
        )
        for rows in row_chunks(*entries.shape)
    ]
    return torch.cat(squares, 1)
