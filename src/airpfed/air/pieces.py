"""A normaliser group of a slot on its way through the air: what is asked of a design, what is sent, what is heard.

normalise -> pack -> design per coherence block -> superpose in the channel -> unpack -> denormalise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air import ledger
from airpfed.air.plan import Air, Job, streams_of
from airpfed.air.slot import Slot, Transceiver, gains, joined, squared
from airpfed.air.superpose import Heard, collapsed, receiver_noise
from airpfed.air.symbols import Normalised, Packing, pack, unpack
from airpfed.streams import stream

Spans = tuple[tuple[int, int], ...]
"""Uses [first, last) of a piece that fall into each of its coherence blocks."""


@dataclass(frozen=True)
class Piece:
    """One normaliser group of one slot over B coherence blocks.

    asked: the design problem, with channel estimates; true: the channels. name: of its random streams.
    """

    job: Job
    group: Normalised
    spans: Spans
    asked: Slot
    true: Complex[Tensor, "B M K"]
    name: str


@dataclass(frozen=True)
class Outcome:
    """A piece's sums and, per block and target, error energies: squared errors summed over entries.

    share: of each target's entries that lie in a block. energy: sigma_i^2 times entries, of the whole piece.
    joules: per stream.
    """

    sums: Float[Tensor, "T d"]
    claimed: Float[Tensor, "B T"]
    measured: Float[Tensor, "B T"]
    bias: Float[Tensor, "B T"]
    variance: Float[Tensor, "B T"]
    share: Float[Tensor, "B T"]
    energy: Float[Tensor, " T"]
    silence: Float[Tensor, " T"]
    joules: Float[Tensor, " K"]


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
    share, power = overlap(piece, air.packing)
    width = group.entries.shape[1]
    wanted = group.weights.to(x.dtype) @ x

    def energy_of(error: Complex[Tensor, "T uses"]) -> Float[Tensor, "B T"]:
        squares = (unpack(error, air.packing, width) * group.valid).square() * group.scale.square()[:, None]
        per = entries_per_use(air.packing)
        return torch.stack([squares[:, per * a : per * b].sum(1) for a, b in piece.spans])

    energy = group.scale.square() * group.valid.sum(1)
    asked = piece.asked
    half = 0.5 if air.packing == "real" else 1.0
    rest = half * air.noise * made.receiver.abs().square().sum(1)
    estimate = unpack(heard.received, air.packing, width) * group.scale[:, None] + group.offset[:, None]
    squares = torch.stack([x[:, a:b].abs().square().sum(1) for a, b in piece.spans])
    return Outcome(
        sums=estimate * group.valid,
        claimed=energy * share * claim(asked, made, power),
        measured=energy_of(heard.received - wanted),
        bias=energy_of(heard.own - wanted),
        variance=energy * share * rest + sum(energy_of(part) for part in heard.crosstalk.unbind(1)),
        share=share,
        energy=energy,
        silence=energy * (group.weights.square() @ group.power),
        joules=(made.transmit.abs().square() * squares).sum(0) * ledger.use_seconds(air.bandwidth_hz),
    )


def hear(air: Air, piece: Piece, made: Transceiver, x: Complex[Tensor, "K uses"], t: int) -> Heard:
    """What the receivers get of a piece, block after block."""
    random = stream(air.seed, "noise", t, piece.name)
    signs = signs_of(air, len(piece.job.weights), x.shape[1], t, piece.name)
    gain, parts = gains(piece.true, made), []
    for index, (a, b) in enumerate(piece.spans):
        noise = receiver_noise(made, index, air.noise, b - a, random)
        parts.append(collapsed(gain[index], x[:, a:b], noise, piece.job.group_of, signs[:, a:b]))
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


def overlap(piece: Piece, packing: Packing) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T K"]]:
    """Share of each target's entries that lies in each block, and the mean power it hears there from each stream.

    A target with a shorter vector hears the first blocks only, and its streams are silent in the tail of the others.
    """
    per, group = entries_per_use(packing), piece.group
    parts = [group.valid[:, per * a : per * b].double() for a, b in piece.spans]
    both = torch.stack([part @ part.T for part in parts])
    own = both.diagonal(dim1=1, dim2=2)
    share = own / own.sum(0).clamp(min=1)
    return share, (both / own.clamp(min=1)[:, :, None])[:, :, piece.job.group_of] * group.power


def claim(slot: Slot, transceiver: Transceiver, symbol_power: Float[Tensor, "... K"]) -> Float[Tensor, "B T"]:
    """MSE per real entry that the receiver expects: its estimates, the actual symbol powers, i.i.d. symbols.

    symbol_power: p_ik, mean over target i's entries in the block, or p_k alone.
    sum_k p_ik |gain_ik - w_ik|^2 + (sigma2 + sum_j csi_j p_ij |b_j|^2) ||m_i||^2; of real symbols the real part.
    """
    mismatch = squared(slot, gains(slot.h, transceiver) - slot.weights)
    radiated = (transceiver.transmit.abs().square() * slot.csi_variance)[:, None, :] * symbol_power
    disturbance = slot.noise + radiated.sum(-1)
    return (mismatch * symbol_power).sum(-1) + disturbance * transceiver.receiver.abs().square().sum(1)


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
    """One transceiver a piece and block: slot by slot, then, where energy is shared, for the whole round at once."""
    assert air.design is not None
    made = [air.design(piece.asked) for piece in pieces]
    if air.refine is None:
        return made
    places = [(piece, one, block) for piece, one in zip(pieces, made, strict=True) for block in range(len(piece.spans))]
    uses = [float(piece.spans[block][1] - piece.spans[block][0]) for piece, _, block in places]
    slots = [one_block(piece.asked, block) for piece, _, block in places]
    starts = [one.block(block) for _, one, block in places]
    refined = iter(air.refine(slots, [piece.job.devices for piece, _, _ in places], uses, starts))
    return [joined([next(refined) for _ in piece.spans]) for piece in pieces]
