"""A normaliser group of a slot on its way through the air: what is asked of a design, what is sent, what is heard.

normalise -> pack -> design per coherence block -> superpose in the channel -> unpack -> denormalise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from airpfed.air.correlation import Correlation, Pairs, Related, pairs, scaled
from airpfed.air.designs.batching import in_batches
from airpfed.air.problem import Transceiver, TransceiverProblem, joined, kept
from airpfed.air.row_chunks import chunks
from airpfed.air.schedule import SlotPlan, Uplink, streams_of
from airpfed.air.symbols import NormalizedGroup, Packing

BlockRanges = tuple[tuple[int, int], ...]
"""Uses [first, last) of a piece that fall into each of its coherence blocks."""


@dataclass(frozen=True)
class Segment:
    """One normaliser group of one slot over B coherence blocks.

    problem: the design problem, with channel estimates; true: the channels. share: of each target's entries that lie
    in a block; power: mean power of each stream's symbols there, as each target hears it. assumed_correlation: the
    correlation that receivers expect. task_of: each stream's task. name: of its random streams.
    """

    slot: SlotPlan
    group: NormalizedGroup
    block_ranges: BlockRanges
    problem: TransceiverProblem
    true: Complex[Tensor, "B M K"]
    share: Float[Tensor, "B T"]
    power: Float[Tensor, "B T K"]
    assumed_correlation: Correlation
    task_of: Int[Tensor, " K"]
    name: str

    @cached_property
    def pairs(self) -> Pairs:
        """Which symbols correlate; targets are scrambled against each other where there are several."""
        return pairs(self.task_of, self.slot.group_of, len(self.slot.weights) > 1)

    @property
    def expected(self) -> Related:
        """R, the correlation of the symbols as the receivers believe it to be."""
        return Related(self.assumed_correlation, self.pairs)


def problem_of(
    link: Uplink, slot: SlotPlan, weights: Float[Tensor, "T K"], known: Tensor, csi_variance: Tensor
) -> TransceiverProblem:
    """The design problem of a slot's streams, for the channel estimates and their variances at all antennas.

    Under real packing the imaginary half of noise and CSI error is thrown away.
    """
    half = 0.5 if link.packing == "real" else 1.0
    devices, rows = slot.devices, antennas_of(link, slot)
    uniform = csi_variance.shape[-2] == 1
    return TransceiverProblem(
        known[..., rows, :][..., devices], weights, slot.target_weight, link.power[devices], half * link.noise,
        half * (csi_variance if uniform else csi_variance[..., rows, :])[..., devices], streams_of(devices),
        link.packing == "real", antenna_mask_of(link, slot),
    )  # fmt: skip


def antennas_of(link: Uplink, slot: SlotPlan) -> slice:
    """The antennas that a slot's receivers have: those of their station, or all stacked where stations differ."""
    stations, each = set(slot.stations), link.network.antennas
    if len(stations) > 1 or stations == {None}:
        return slice(None)
    (station,) = stations
    assert station is not None
    return slice(station * each, (station + 1) * each)


def antenna_mask_of(link: Uplink, slot: SlotPlan) -> Bool[Tensor, "T M"] | None:
    """Which of all antennas each receiver has, where receivers of one slot are at different stations."""
    if len(set(slot.stations)) == 1:
        return None
    of = torch.arange(len(link.network.gain)).repeat_interleave(link.network.antennas)
    every = torch.ones_like(of, dtype=torch.bool)
    return torch.stack([every if station is None else of == station for station in slot.stations])


def entries_per_use(packing: Packing) -> int:
    """Real entries that a channel use carries."""
    return 1 if packing == "real" else 2


def overlap(
    group: NormalizedGroup, target_of: Int[Tensor, " K"], block_ranges: BlockRanges, packing: Packing
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T K"]]:
    """Share of each target's entries that lies in each block, and the mean power it hears there from each stream.

    A target with a shorter vector hears the first blocks only, and its streams are silent in the tail of the others.
    """
    per = entries_per_use(packing)
    ends = torch.tensor([0, *(b for _, b in block_ranges)])
    common = torch.minimum(group.num_entries[:, None], group.num_entries)
    both = torch.minimum(common, per * ends[:, None, None]).diff(dim=0).double()
    own = both.diagonal(dim1=1, dim2=2)
    share = own / own.sum(0).clamp(min=1)
    return share, (both / own.clamp(min=1)[:, :, None])[:, :, target_of] * group.power


def block_ranges_of(place: int, uses: int, coherence: int) -> tuple[range, BlockRanges]:
    """The coherence blocks that `uses` channel uses from `place` on touch, and the uses that fall into each."""
    blocks = range(place // coherence, (place + uses - 1) // coherence + 1)
    first = [block * coherence - place for block in blocks]
    return blocks, tuple((max(a, 0), min(a + coherence, uses)) for a in first)


def one_block(problem: TransceiverProblem, block: int) -> TransceiverProblem:
    """A slot of one of its blocks alone."""
    csi = problem.csi_variance if problem.csi_variance.dim() < 3 else problem.csi_variance[block : block + 1]
    return replace(problem, h=problem.h[block : block + 1], csi_variance=csi)


def designed(link: Uplink, segments: Sequence[Segment]) -> list[Transceiver]:
    """One transceiver a piece and block: slot by slot, then, where energy is shared, for the whole round at once.

    Receivers of a design that shrinks are scaled at last to the correlation believed in.
    """
    made = one_by_one(link, segments)
    if link.refine is not None and segments:
        made = refined(link, segments, made)
    return rescaled(link, segments, made)


def one_by_one(link: Uplink, segments: Sequence[Segment]) -> list[Transceiver]:
    """One transceiver a piece, each with all the power there is."""
    assert link.design is not None
    slots = [segment.problem for segment in segments]
    made = in_batches(link.design, slots) if link.bundles else [link.design(problem) for problem in slots]
    return [kept(problem, one) for problem, one in zip(slots, made, strict=True)]


def rescaled(link: Uplink, segments: Sequence[Segment], made: Sequence[Transceiver]) -> list[Transceiver]:
    """Each receiver times its best scalar under the correlation believed in, for designs that shrink."""
    if not link.rescale:
        return list(made)
    return [
        scaled(segment.problem, one, segment.expected, segment.power, link.impairments)
        for segment, one in zip(segments, made, strict=True)
    ]


def refined(link: Uplink, segments: Sequence[Segment], made: Sequence[Transceiver]) -> list[Transceiver]:
    """All blocks of a round's pieces share energy: each becomes a slot of its own.

    Symbols have unit power over a piece, not in every block of it: devices tell what theirs have.
    """
    assert link.refine is not None
    places = [(segment, block) for segment in segments for block in range(len(segment.block_ranges))]
    uses = [float(segment.block_ranges[block][1] - segment.block_ranges[block][0]) for segment, block in places]
    slots = [one_block(segment.problem, block) for segment, block in places]
    starts = [block for one in made for block in one.split([1] * len(one.transmit))]
    powers = [power for segment in segments for power in sent_power(link, segment)]
    found = iter(link.refine(slots, [segment.slot.devices for segment, _ in places], uses, powers, starts))
    return [joined([next(found) for _ in segment.block_ranges]) for segment in segments]


def sent_power(link: Uplink, segment: Segment) -> Float[Tensor, "B K"]:
    """Mean power of each stream's symbols in each block, relative to its transmit factor's square."""
    per, entries = entries_per_use(link.packing), segment.group.entries
    squares = [
        torch.stack(
            [entries[rows][:, per * a : per * b].square().sum(1) / (per * (b - a)) for a, b in segment.block_ranges]
        )
        for rows in chunks(*entries.shape)
    ]
    return torch.cat(squares, 1)
