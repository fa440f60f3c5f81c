"""A normaliser group of a slot on its way through the air: what is asked of a design, what is sent, what is heard.

normalise -> pack -> design per coherence block -> superpose in the channel -> unpack -> denormalise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air import ledger
from airpfed.air.correlation import (
    Correlation,
    Evidence,
    claimed,
    disturbance,
    evidence,
    matrix,
    pairs,
    scaled,
    terms,
)
from airpfed.air.plan import Air, Job, RoundFunction, streams_of
from airpfed.air.slot import Slot, Transceiver, gains, joined, kept
from airpfed.air.superpose import Heard, collapsed, receiver_noise
from airpfed.air.symbols import Normalised, Packing, pack, unpack
from airpfed.streams import stream

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

    @property
    def expected(self) -> Float[Tensor, "K K"]:
        """R, the correlation of the symbols as the receivers believe it to be."""
        return matrix(self.believed, *self.relations)

    @property
    def relations(self) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"], bool]:
        """Task and target of each stream, and whether targets are scrambled against each other."""
        return self.task_of, self.job.group_of, len(self.job.weights) > 1


@dataclass(frozen=True)
class Outcome:
    """A piece's sums and, per block and target, error energies: squared errors summed over entries.

    claimed_genie: with the true Gram matrix of the symbols. scale: sigma_i^2 times entries, of the whole piece.
    joules: per stream. learned: what the received power says about correlation.
    """

    sums: Float[Tensor, "T d"]
    claimed: Float[Tensor, "B T"]
    measured: Float[Tensor, "B T"]
    bias: Float[Tensor, "B T"]
    variance: Float[Tensor, "B T"]
    claimed_genie: Float[Tensor, "B T"]
    scale: Float[Tensor, " T"]
    silence: Float[Tensor, " T"]
    joules: Float[Tensor, " K"]
    learned: Evidence


def asked_of(air: Air, job: Job, weights: Float[Tensor, "T K"], known: Tensor, csi_variance: Tensor) -> Slot:
    """The design problem of a slot's streams, for the channel estimates of all devices.

    Under real packing the imaginary half of noise and CSI error is thrown away.
    """
    half = 0.5 if air.packing == "real" else 1.0
    devices = job.devices
    return Slot(
        known[..., devices], weights, job.importance, air.power[devices], half * air.noise,
        half * csi_variance[..., devices], streams_of(devices), air.packing == "real",
    )  # fmt: skip


def transmitted(air: Air, piece: Piece, made: Transceiver, t: int) -> Outcome:
    """Send a piece with its blocks' transceivers. Random: noise and scrambling, streams named by round and piece."""
    x, group = pack(piece.group.entries, air.packing), piece.group
    heard = hear(air, piece, made, x, t)
    width, per = group.entries.shape[1], entries_per_use(air.packing)
    wanted = group.weights.to(x.dtype) @ x

    def energy_of(error: Complex[Tensor, "T uses"]) -> Float[Tensor, "B T"]:
        squares = (unpack(error, air.packing, width) * group.valid).square()
        return torch.stack([squares[:, per * a : per * b].sum(1) for a, b in piece.spans])

    asked, energy = piece.asked, group.scale.square()
    entries = piece.share * group.valid.sum(1)
    crosstalk = sum(energy_of(part) for part in heard.crosstalk.unbind(1))
    bias = energy_of(heard.own - wanted)
    noise = asked.noise * made.receiver.abs().square().sum(1)
    known = bias + crosstalk
    if air.csi_error:
        believed = propagated(piece, gains(asked.h, made), x)
        known = energy_of(believed.own - wanted) + sum(energy_of(part) for part in believed.crosstalk.unbind(1))
    estimate = unpack(heard.received, air.packing, width) * group.scale[:, None] + group.offset[:, None]
    squares = torch.stack([x[:, a:b].abs().square().sum(1) for a, b in piece.spans])
    expected = terms(asked, made, pairs(*piece.relations), piece.power)
    return Outcome(
        sums=estimate * group.valid,
        claimed=energy * entries * claimed(asked, made, piece.expected, piece.power),
        measured=energy * energy_of(heard.received - wanted),
        bias=energy * bias,
        variance=energy * (entries * noise + crosstalk),
        claimed_genie=energy * (known + entries * disturbance(asked, made, piece.power)),
        scale=energy * group.valid.sum(1),
        silence=energy * group.valid.sum(1) * (group.weights.square() @ group.power),
        joules=(made.transmit.abs().square() * squares).sum(0) * ledger.use_seconds(air.bandwidth_hz),
        learned=evidence(expected, energy_of(heard.received) / entries, entries, piece.believed),
    )


def hear(air: Air, piece: Piece, made: Transceiver, x: Complex[Tensor, "K uses"], t: int) -> Heard:
    """What the receivers get of a piece, block after block."""
    random = stream(air.seed, "noise", t, piece.name)
    signs = signs_of(air, len(piece.job.weights), x.shape[1], t, piece.name)
    noise = [receiver_noise(made, index, air.noise, b - a, random) for index, (a, b) in enumerate(piece.spans)]
    return propagated(piece, gains(piece.true, made), x, torch.cat(noise, 1), signs)


def propagated(
    piece: Piece,
    gain: Complex[Tensor, "B T K"],
    x: Complex[Tensor, "K uses"],
    noise: Complex[Tensor, "T uses"] | None = None,
    signs: Float[Tensor, "T uses"] | None = None,
) -> Heard:
    """A piece through gains of its blocks; without noise and scrambling where none are given."""
    targets, uses = gain.shape[1], x.shape[1]
    noise = torch.zeros(targets, uses, dtype=x.dtype) if noise is None else noise
    signs = torch.ones(targets, uses, dtype=torch.float64) if signs is None else signs
    parts = [
        collapsed(gain[index], x[:, a:b], noise[:, a:b], piece.job.group_of, signs[:, a:b])
        for index, (a, b) in enumerate(piece.spans)
    ]
    return Heard(*(torch.cat([getattr(one, part) for one in parts], -1) for part in ("received", "own", "crosstalk")))


def signs_of(air: Air, targets: int, uses: int, t: int, name: str) -> Float[Tensor, "T uses"]:
    """Scrambling signs per target and use; none where a slot has one receiver."""
    if targets == 1:
        return torch.ones(1, uses, dtype=torch.float64)
    random = torch.randint(2, (targets, uses), generator=stream(air.seed, "scrambling", t, name))
    return 2.0 * random.double() - 1.0


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
    parts = [group.valid[:, per * a : per * b].double() for a, b in spans]
    both = torch.stack([part @ part.T for part in parts])
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
    csi = slot.csi_variance if slot.csi_variance.dim() == 1 else slot.csi_variance[block : block + 1]
    return replace(slot, h=slot.h[block : block + 1], csi_variance=csi)


def designed(air: Air, pieces: Sequence[Piece]) -> list[Transceiver]:
    """One transceiver a piece and block: slot by slot, then, where energy is shared, for the whole round at once.

    Receivers of a design that shrinks are scaled at last to the correlation believed in.
    """
    assert air.design is not None
    made = [kept(piece.asked, air.design(piece.asked)) for piece in pieces]
    if air.refine is not None and pieces:
        made = refined(air.refine, pieces, made)
    return rescaled(air, pieces, made)


def rescaled(air: Air, pieces: Sequence[Piece], made: Sequence[Transceiver]) -> list[Transceiver]:
    """Each receiver times its best scalar under the correlation believed in, for designs that shrink."""
    if not air.rescale:
        return list(made)
    return [scaled(piece.asked, one, piece.expected, piece.power) for piece, one in zip(pieces, made, strict=True)]


def refined(refine: RoundFunction, pieces: Sequence[Piece], made: Sequence[Transceiver]) -> list[Transceiver]:
    """All blocks of a round's pieces share energy: each becomes a slot of its own."""
    places = [(piece, one, block) for piece, one in zip(pieces, made, strict=True) for block in range(len(piece.spans))]
    uses = [float(piece.spans[block][1] - piece.spans[block][0]) for piece, _, block in places]
    slots = [one_block(piece.asked, block) for piece, _, block in places]
    starts = [one.block(block) for _, one, block in places]
    found = iter(refine(slots, [piece.job.devices for piece, _, _ in places], uses, starts))
    return [joined([next(found) for _ in piece.spans]) for piece in pieces]
