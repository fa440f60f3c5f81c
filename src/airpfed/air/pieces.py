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
from airpfed.air.designs.bundle import in_bundles
from airpfed.air.plan import Air, Job, streams_of
from airpfed.air.rows import chunks
from airpfed.air.slot import Slot, Transceiver, joined, kept
from airpfed.air.symbols import Normalised, Packing

Spans = tuple[tuple[int, int], ...]
"""Uses [first, last) of a piece that fall into each of its coherence blocks."""


@dataclass(frozen=True)
class Piece:
    """One normaliser group of one slot over B coherence blocks.

    asked: the design problem, with channel estimates; true: the channels. share: of each target's entries that lie in a
    block; power: mean power of each stream's symbols there, as each target hears it. believed: the correlation that
    receivers expect. task_of: each stream's task. name: of its random streams.
    """

    job: Job
    group: Normalised
    spans: Spans
    asked: Slot
    true: Complex[Tensor, "B M K"]
    share: Float[Tensor, "B T"]
    power: Float[Tensor, "B T K"]
    believed: Correlation
    task_of: Int[Tensor, " K"]
    name: str

    @cached_property
    def pairs(self) -> Pairs:
        """Which symbols correlate; targets are scrambled against each other where there are several."""
        return pairs(self.task_of, self.job.group_of, len(self.job.weights) > 1)

    @property
    def expected(self) -> Related:
        """R, the correlation of the symbols as the receivers believe it to be."""
        return Related(self.believed, self.pairs)


def asked_of(air: Air, job: Job, weights: Float[Tensor, "T K"], known: Tensor, csi_variance: Tensor) -> Slot:
    """The design problem of a slot's streams, for the channel estimates and their variances at all antennas.

    Under real packing the imaginary half of noise and CSI error is thrown away.
    """
    half = 0.5 if air.packing == "real" else 1.0
    devices, rows = job.devices, antennas_of(air, job)
    uniform = csi_variance.shape[-2] == 1
    return Slot(
        known[..., rows, :][..., devices], weights, job.importance, air.power[devices], half * air.noise,
        half * (csi_variance if uniform else csi_variance[..., rows, :])[..., devices], streams_of(devices),
        air.packing == "real", sees_of(air, job),
    )  # fmt: skip


def antennas_of(air: Air, job: Job) -> slice:
    """The antennas that a slot's receivers have: those of their station, or all stacked where stations differ."""
    stations, each = set(job.stations), air.world.antennas
    if len(stations) > 1 or stations == {None}:
        return slice(None)
    (station,) = stations
    assert station is not None
    return slice(station * each, (station + 1) * each)


def sees_of(air: Air, job: Job) -> Bool[Tensor, "T M"] | None:
    """Which of all antennas each receiver has, where receivers of one slot are at different stations."""
    if len(set(job.stations)) == 1:
        return None
    of = torch.arange(len(air.world.gain)).repeat_interleave(air.world.antennas)
    every = torch.ones_like(of, dtype=torch.bool)
    return torch.stack([every if station is None else of == station for station in job.stations])


def entries_per_use(packing: Packing) -> int:
    """Real entries that a channel use carries."""
    return 1 if packing == "real" else 2


def overlap(
    group: Normalised, target_of: Int[Tensor, " K"], spans: Spans, packing: Packing
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T K"]]:
    """Share of each target's entries that lies in each block, and the mean power it hears there from each stream.

    A target with a shorter vector hears the first blocks only, and its streams are silent in the tail of the others.
    """
    per = entries_per_use(packing)
    ends = torch.tensor([0, *(b for _, b in spans)])
    common = torch.minimum(group.reach[:, None], group.reach)
    both = torch.minimum(common, per * ends[:, None, None]).diff(dim=0).double()
    own = both.diagonal(dim1=1, dim2=2)
    share = own / own.sum(0).clamp(min=1)
    return share, (both / own.clamp(min=1)[:, :, None])[:, :, target_of] * group.power


def spans_of(place: int, uses: int, coherence: int) -> tuple[range, Spans]:
    """The coherence blocks that `uses` channel uses from `place` on touch, and the uses that fall into each."""
    blocks = range(place // coherence, (place + uses - 1) // coherence + 1)
    first = [block * coherence - place for block in blocks]
    return blocks, tuple((max(a, 0), min(a + coherence, uses)) for a in first)


def one_block(slot: Slot, block: int) -> Slot:
    """A slot of one of its blocks alone."""
    csi = slot.csi_variance if slot.csi_variance.dim() < 3 else slot.csi_variance[block : block + 1]
    return replace(slot, h=slot.h[block : block + 1], csi_variance=csi)


def designed(air: Air, pieces: Sequence[Piece]) -> list[Transceiver]:
    """One transceiver a piece and block: slot by slot, then, where energy is shared, for the whole round at once.

    Receivers of a design that shrinks are scaled at last to the correlation believed in.
    """
    made = one_by_one(air, pieces)
    if air.refine is not None and pieces:
        made = refined(air, pieces, made)
    return rescaled(air, pieces, made)


def one_by_one(air: Air, pieces: Sequence[Piece]) -> list[Transceiver]:
    """One transceiver a piece, each with all the power there is."""
    assert air.design is not None
    slots = [piece.asked for piece in pieces]
    made = in_bundles(air.design, slots) if air.bundles else [air.design(slot) for slot in slots]
    return [kept(slot, one) for slot, one in zip(slots, made, strict=True)]


def rescaled(air: Air, pieces: Sequence[Piece], made: Sequence[Transceiver]) -> list[Transceiver]:
    """Each receiver times its best scalar under the correlation believed in, for designs that shrink."""
    if not air.rescale:
        return list(made)
    return [
        scaled(piece.asked, one, piece.expected, piece.power, air.harm) for piece, one in zip(pieces, made, strict=True)
    ]


def refined(air: Air, pieces: Sequence[Piece], made: Sequence[Transceiver]) -> list[Transceiver]:
    """All blocks of a round's pieces share energy: each becomes a slot of its own.

    Symbols have unit power over a piece, not in every block of it: devices tell what theirs have.
    """
    assert air.refine is not None
    places = [(piece, block) for piece in pieces for block in range(len(piece.spans))]
    uses = [float(piece.spans[block][1] - piece.spans[block][0]) for piece, block in places]
    slots = [one_block(piece.asked, block) for piece, block in places]
    starts = [block for one in made for block in one.split([1] * len(one.transmit))]
    powers = [power for piece in pieces for power in sent_power(air, piece)]
    found = iter(air.refine(slots, [piece.job.devices for piece, _ in places], uses, powers, starts))
    return [joined([next(found) for _ in piece.spans]) for piece in pieces]


def sent_power(air: Air, piece: Piece) -> Float[Tensor, "B K"]:
    """Mean power of each stream's symbols in each block, relative to its transmit factor's square."""
    per, entries = entries_per_use(air.packing), piece.group.entries
    squares = [
        torch.stack([entries[rows][:, per * a : per * b].square().sum(1) / (per * (b - a)) for a, b in piece.spans])
        for rows in chunks(*entries.shape)
    ]
    return torch.cat(squares, 1)
