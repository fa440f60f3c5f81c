"""A piece on its way: sent, superposed, received, and every part of its error told by its cause.

pack -> amplify -> superpose in the channel -> unpack -> denormalise -> backhaul -> the slot's sums.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air import ledger
from airpfed.air.correlation import Evidence, between, evidence, mismatched, own_noise, terms
from airpfed.air.impairments import NONE, clipped
from airpfed.air.pieces import Piece, entries_per_use
from airpfed.air.plan import Air, Job, over_backhaul
from airpfed.air.quantise import rounded
from airpfed.air.rows import chunks
from airpfed.air.slot import Transceiver, gains
from airpfed.air.superpose import Heard, heard, members, receiver_noise, superpose
from airpfed.air.symbols import Normalised, cut, pack, unpack
from airpfed.streams import stream


@dataclass(frozen=True)
class Outcome:
    """A piece's sums and, per block and sum, error energies: squared errors added up over entries.

    claimed_genie: with the true Gram matrix of the symbols. scale: sigma^2 times entries, of the whole piece. joules:
    per stream. learned: what the received power says about correlation.
    """

    sums: Float[Tensor, "U d"]
    claimed: Float[Tensor, "B U"]
    measured: Float[Tensor, "B U"]
    bias: Float[Tensor, "B U"]
    variance: Float[Tensor, "B U"]
    claimed_genie: Float[Tensor, "B U"]
    scale: Float[Tensor, " U"]
    silence: Float[Tensor, " U"]
    joules: Float[Tensor, " K"]
    learned: Evidence


def transmitted(air: Air, piece: Piece, made: Transceiver, t: int) -> Outcome:
    """Send a piece with its blocks' transceivers.

    Random: noise, scrambling and rounding, streams named by round and piece.
    """
    group, asked = piece.group, piece.asked
    total = superposed(air, piece, made)
    got, wanted = hear(air, piece, made, total.parts, t), total.wanted
    received, truth = entries_of(air, piece, got.received), entries_of(air, piece, wanted)
    offset = cut(group.offset[:, None].repeat(1, received.shape[1]), group.reach)
    estimate, truth = (torch.addcmul(offset, one, group.scale[:, None]) for one in (received, truth))
    passed, rounding = backhauled(air, piece.job, estimate, t, piece.name)
    mix, entries = piece.job.mix, piece.share * group.reach
    rounded_off = 0.0 if rounding is None else by_block(air, piece, mix.square() @ rounding)

    def added(mse: Float[Tensor, "B T"]) -> Float[Tensor, "B U"]:
        """Energies of the receivers' independent errors, given per normalised entry."""
        return (entries * mse * group.scale.square()) @ mix.square().T

    bias, crosstalk = energy(air, piece, got.own - wanted), crossed(air, piece, got)
    known = bias + crosstalk if total.known is None else genie(air, piece, total.known, wanted)
    noise = asked.noise * made.receiver.abs().square().sum(1)
    own = own_noise(asked, made, piece.power, air.harm)
    missed = mismatched(asked, made, piece.expected, piece.power, air.harm)
    expected = terms(asked, made, piece.pairs, piece.power, air.harm, own)
    power = energies(air, piece, received)
    return Outcome(
        sums=summed(piece.job, passed),
        claimed=added(missed + own) + shared_errors(air, piece, made) + rounded_off,
        measured=energies(air, piece, summed(piece.job, passed - truth)),
        bias=bias,
        variance=added(noise) + crosstalk + rounded_off,
        claimed_genie=known + added(own) + rounded_off,
        scale=scale_of(piece.job, group),
        silence=silence_of(piece.job, group),
        joules=(made.transmit.abs().square() * total.powers).sum(0) * ledger.use_seconds(air.bandwidth_hz),
        learned=evidence(expected, power / entries, entries, piece.believed),
    )  # fmt: skip


@dataclass(frozen=True)
class Superposed:
    """All streams of a piece added up. parts[i, j]: what receiver i hears of target j's streams, without noise.

    known: the same through the gains that receivers know on average, where these are not the true ones. powers: energy
    of each stream's symbols in each block, as its amplifier leaves them.
    """

    wanted: Complex[Tensor, "T uses"]
    parts: Complex[Tensor, "T T uses"]
    known: Complex[Tensor, "T T uses"] | None
    powers: Float[Tensor, "B K"]


def superposed(air: Air, piece: Piece, made: Transceiver) -> Superposed:
    """Add the streams up, some at a time: memory holds the sums and a few streams, not K x d symbols."""
    targets, shape = len(piece.job.weights), piece.group.entries.shape
    true, differs = gains(piece.true, made), bool(air.csi_error) or air.harm != NONE
    believed = air.harm.mean * gains(piece.asked.h, made) if differs else None
    wanted = torch.zeros(targets, piece.spans[-1][1], dtype=torch.complex128)
    parts = wanted.new_zeros(targets, targets, wanted.shape[1])
    known, powers = torch.zeros_like(parts) if differs else None, []
    for rows in chunks(*shape):
        x, of = pack(piece.group.entries[rows], air.packing), members(piece.job.group_of[rows], targets)
        sent = amplified(air, piece, made.transmit[:, rows], x)
        wanted += torch.view_as_complex((piece.group.weights[:, rows] @ real(x)).reshape(targets, -1, 2))
        for block, (a, b) in enumerate(piece.spans):
            parts[:, :, a:b] += superpose(true[block][:, rows], sent[:, a:b], of)
            if known is not None and believed is not None:
                known[:, :, a:b] += superpose(believed[block][:, rows], x[:, a:b], of)
        powers.append(torch.stack([torch.linalg.vector_norm(real(sent[:, a:b]), dim=1) for a, b in piece.spans]))
    return Superposed(wanted, parts, known, torch.cat(powers, 1).square())


def real(x: Complex[Tensor, "K uses"]) -> Float[Tensor, "K _d"]:
    """Real and imaginary parts by turns; a view where symbols lie in a row."""
    return torch.view_as_real(x).flatten(1)


def entries_of(air: Air, piece: Piece, symbols: Complex[Tensor, "T uses"]) -> Float[Tensor, "T d"]:
    """Real entries of received symbols, each target's own."""
    return cut(unpack(symbols, air.packing, piece.group.entries.shape[1]), piece.group.reach)


def summed(job: Job, values: Float[Tensor, "T d"]) -> Float[Tensor, "U d"]:
    """The slot's sums of what its receivers get; where each sum is one receiver's, there is nothing to add."""
    alone = job.mix.shape[0] == job.mix.shape[1] and bool((job.mix == torch.eye(len(job.mix))).all())
    return values if alone else job.mix @ values


def energies(air: Air, piece: Piece, values: Float[Tensor, "U d"]) -> Float[Tensor, "B U"]:
    """Sums of squares over the entries of each coherence block."""
    per = entries_per_use(air.packing)
    return torch.stack([torch.linalg.vector_norm(values[:, per * a : per * b], dim=1) for a, b in piece.spans]).square()


def by_block(air: Air, piece: Piece, values: Float[Tensor, "U d"]) -> Float[Tensor, "B U"]:
    """Sums over the entries of each coherence block."""
    per = entries_per_use(air.packing)
    return torch.stack([values[:, per * a : per * b].sum(1) for a, b in piece.spans])


def energy(air: Air, piece: Piece, errors: Complex[Tensor, "T uses"]) -> Float[Tensor, "B U"]:
    """Energies of the slot's sums, by block, for errors of its receivers in symbols."""
    return energies(air, piece, summed(piece.job, entries_of(air, piece, errors) * piece.group.scale[:, None]))


def crossed(air: Air, piece: Piece, heard: Heard) -> Float[Tensor, "B U"]:
    """Energies that other targets' streams leave, over the scrambling signs.

    What i hears of j and j of i carries the same sign, so in a sum of receivers they add up coherently.
    """
    mix, found = piece.job.mix, torch.zeros(len(piece.spans), len(piece.job.mix), dtype=torch.float64)
    values = entries_per_pair(air, piece, heard)
    for (i, j), (of_i, of_j) in values.items():
        touched = (mix[:, [i, j]] != 0).any(1)
        both = mix[touched, i, None] * of_i + mix[touched, j, None] * of_j
        found[:, touched] += energies(air, piece, both)
    return found


def entries_per_pair(air: Air, piece: Piece, heard: Heard) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """(i, j) -> what i hears of j's streams and j of i's, as scaled entries."""
    parts = [entries_of(air, piece, part) * piece.group.scale[:, None] for part in heard.crosstalk.unbind(1)]
    return {(i, j): (parts[j][i], parts[i][j]) for i, j in combinations(range(len(parts)), 2)}


def genie(
    air: Air, piece: Piece, known: Complex[Tensor, "T T uses"], wanted: Complex[Tensor, "T uses"]
) -> Float[Tensor, "B U"]:
    """What the receivers' gains, as they know them on average, leave of the true symbols."""
    believed = heard_of(known)
    return energy(air, piece, believed.own - wanted) + crossed(air, piece, believed)


def heard_of(
    parts: Complex[Tensor, "T T uses"],
    noise: Complex[Tensor, "T uses"] | None = None,
    signs: Float[Tensor, "T uses"] | None = None,
) -> Heard:
    """Superposed streams as received; without noise and scrambling where none are given."""
    noise = torch.zeros_like(parts[0]) if noise is None else noise
    return heard(parts, noise, torch.ones_like(noise.real) if signs is None else signs)


def shared_errors(air: Air, piece: Piece, made: Transceiver) -> Float[Tensor, "B U"]:
    """What correlated symbols add where receivers' errors do not add up independently: sums of several receivers."""
    mix, group = piece.job.mix, piece.group
    if bool(((mix != 0).sum(1) <= 1).all()):
        return torch.zeros(len(piece.spans), len(mix), dtype=torch.float64)
    q = mix * group.scale
    cross = between(piece.asked, made, piece.believed.cross, piece.job.group_of, (piece.power, air.harm))
    entries = piece.share * group.reach
    return torch.einsum("ui,bij,uj,bi->bu", q, cross, q, entries)


def scale_of(job: Job, group: Normalised) -> Float[Tensor, " U"]:
    """sigma^2 of each sum times its entries: sigma_i^2 of its receivers, weighed by what each has in it.

    With sigma_i^2 the mean of the devices' variances weighed by w_ik^2, so is this, by the weights of the whole sum.
    """
    share = job.mix.square() * job.weights.square().sum(1)
    sigma = (share @ group.scale.square()) / share.sum(1)
    return sigma * torch.where(job.mix != 0, group.reach, 0).amax(1)


def silence_of(job: Job, group: Normalised) -> Float[Tensor, " U"]:
    """Error energy of each sum if nothing were sent, for i.i.d. symbols."""
    alone = group.scale.square() * group.reach * (group.weights.square() @ group.power)
    return alone @ job.mix.square().T


def backhauled(
    air: Air, job: Job, estimate: Float[Tensor, "T d"], t: int, name: str
) -> tuple[Float[Tensor, "T d"], Float[Tensor, "T d"] | None]:
    """(the receivers' sums after the backhaul, variance of its rounding, None: exact). Random: the rounding."""
    edges = over_backhaul(air, job)
    if air.backhaul_bits is None or not bool(edges.any()):
        return estimate, None
    values, variance = rounded(estimate, air.backhaul_bits, stream(air.seed, "backhaul", t, name))
    return torch.where(edges[:, None], values, estimate), torch.where(edges[:, None], variance, 0.0)


def amplified(
    air: Air, piece: Piece, transmit: Complex[Tensor, "B K"], x: Complex[Tensor, "K uses"]
) -> Complex[Tensor, "K uses"]:
    """Symbols as the devices' amplifiers leave them, relative to their transmit factors."""
    if air.harm.clipping is None:
        return x
    factor = torch.cat([transmit[i, :, None].expand(-1, b - a) for i, (a, b) in enumerate(piece.spans)], 1)
    sent = clipped(factor * x, air.harm.clipping, air.subcarriers)
    return torch.where(factor != 0, sent / torch.where(factor != 0, factor, 1.0), 0.0)


def hear(air: Air, piece: Piece, made: Transceiver, parts: Complex[Tensor, "T T uses"], t: int) -> Heard:
    """What the receivers get of a piece's superposed streams."""
    random = stream(air.seed, "noise", t, piece.name)
    signs = signs_of(air, len(piece.job.weights), parts.shape[-1], t, piece.name)
    noise = [receiver_noise(made, index, air.noise, b - a, random) for index, (a, b) in enumerate(piece.spans)]
    return heard_of(parts, torch.cat(noise, 1), signs)


def signs_of(air: Air, targets: int, uses: int, t: int, name: str) -> Float[Tensor, "T uses"]:
    """Scrambling signs per target and use; none where a slot has one receiver."""
    if targets == 1:
        return torch.ones(1, uses, dtype=torch.float64)
    random = torch.randint(2, (targets, uses), generator=stream(air.seed, "scrambling", t, name))
    return 2.0 * random.double() - 1.0
