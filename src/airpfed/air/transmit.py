"""A piece on its way: sent, superposed, received, and every part of its error told by its cause.

pack -> amplify -> superpose in the channel -> unpack -> denormalise -> backhaul -> the slot's sums.
"""

from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air import resources
from airpfed.air.correlation import NormalEquations, between, evidence, mismatched, own_noise, terms
from airpfed.air.impairments import NONE, clipped
from airpfed.air.problem import Transceiver, gains
from airpfed.air.quantization import rounded
from airpfed.air.row_chunks import chunks
from airpfed.air.schedule import SlotPlan, Uplink, over_backhaul
from airpfed.air.segments import Segment, entries_per_use
from airpfed.air.superposition import ReceivedSignal, heard, members, receiver_noise, superpose
from airpfed.air.symbols import NormalizedGroup, cut, pack, unpack
from airpfed.core.rng import stream


@dataclass(frozen=True)
class SegmentResult:
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
    learned: NormalEquations


def transmitted(link: Uplink, segment: Segment, made: Transceiver, t: int) -> SegmentResult:
    """Send a piece with its blocks' transceivers.

    Random: noise, scrambling and rounding, streams named by round and piece.
    """
    group, problem = segment.group, segment.problem
    total = superposed(link, segment, made)
    got, wanted = hear(link, segment, made, total.parts, t), total.wanted
    received, truth = entries_of(link, segment, got.received), entries_of(link, segment, wanted)
    offset = cut(group.offset[:, None].repeat(1, received.shape[1]), group.num_entries)
    estimate, truth = (torch.addcmul(offset, one, group.scale[:, None]) for one in (received, truth))
    passed, rounding = backhauled(link, segment.slot, estimate, t, segment.name)
    combining_matrix, entries = segment.slot.combining_matrix, segment.share * group.num_entries
    rounded_off = 0.0 if rounding is None else by_block(link, segment, combining_matrix.square() @ rounding)

    def added(mse: Float[Tensor, "B T"]) -> Float[Tensor, "B U"]:
        """Energies of the receivers' independent errors, given per normalised entry."""
        return (entries * mse * group.scale.square()) @ combining_matrix.square().T

    bias, crosstalk = energy(link, segment, got.own - wanted), crossed(link, segment, got)
    known = bias + crosstalk if total.known is None else genie(link, segment, total.known, wanted)
    noise = problem.noise * made.receiver.abs().square().sum(1)
    own = own_noise(problem, made, segment.power, link.impairments)
    missed = mismatched(problem, made, segment.expected, segment.power, link.impairments)
    expected = terms(problem, made, segment.pairs, segment.power, link.impairments, own)
    power = energies(link, segment, received)
    return SegmentResult(
        sums=summed(segment.slot, passed),
        claimed=added(missed + own) + shared_errors(link, segment, made) + rounded_off,
        measured=energies(link, segment, summed(segment.slot, passed - truth)),
        bias=bias,
        variance=added(noise) + crosstalk + rounded_off,
        claimed_genie=known + added(own) + rounded_off,
        scale=scale_of(segment.slot, group),
        silence=silence_of(segment.slot, group),
        joules=(made.transmit.abs().square() * total.powers).sum(0) * resources.use_seconds(link.bandwidth_hz),
        learned=evidence(expected, power / entries, entries, segment.assumed_correlation),
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


def superposed(link: Uplink, segment: Segment, made: Transceiver) -> Superposed:
    """Add the streams up, some at a time: memory holds the sums and a few streams, not K x d symbols."""
    targets, shape = len(segment.slot.weights), segment.group.entries.shape
    true, differs = gains(segment.true, made), bool(link.csi_error) or link.impairments != NONE
    assumed_correlation = link.impairments.mean * gains(segment.problem.h, made) if differs else None
    wanted = torch.zeros(targets, segment.block_ranges[-1][1], dtype=torch.complex128)
    parts = wanted.new_zeros(targets, targets, wanted.shape[1])
    known, powers = torch.zeros_like(parts) if differs else None, []
    for rows in chunks(*shape):
        x, of = pack(segment.group.entries[rows], link.packing), members(segment.slot.group_of[rows], targets)
        sent = amplified(link, segment, made.transmit[:, rows], x)
        wanted += torch.view_as_complex((segment.group.weights[:, rows] @ real(x)).reshape(targets, -1, 2))
        for block, (a, b) in enumerate(segment.block_ranges):
            parts[:, :, a:b] += superpose(true[block][:, rows], sent[:, a:b], of)
            if known is not None and assumed_correlation is not None:
                known[:, :, a:b] += superpose(assumed_correlation[block][:, rows], x[:, a:b], of)
        powers.append(
            torch.stack([torch.linalg.vector_norm(real(sent[:, a:b]), dim=1) for a, b in segment.block_ranges])
        )
    return Superposed(wanted, parts, known, torch.cat(powers, 1).square())


def real(x: Complex[Tensor, "K uses"]) -> Float[Tensor, "K _d"]:
    """Real and imaginary parts by turns; a view where symbols lie in a row."""
    return torch.view_as_real(x).flatten(1)


def entries_of(link: Uplink, segment: Segment, symbols: Complex[Tensor, "T uses"]) -> Float[Tensor, "T d"]:
    """Real entries of received symbols, each target's own."""
    return cut(unpack(symbols, link.packing, segment.group.entries.shape[1]), segment.group.num_entries)


def summed(slot: SlotPlan, values: Float[Tensor, "T d"]) -> Float[Tensor, "U d"]:
    """The slot's sums of what its receivers get; where each sum is one receiver's, there is nothing to add."""
    alone = slot.combining_matrix.shape[0] == slot.combining_matrix.shape[1] and bool(
        (slot.combining_matrix == torch.eye(len(slot.combining_matrix))).all()
    )
    return values if alone else slot.combining_matrix @ values


def energies(link: Uplink, segment: Segment, values: Float[Tensor, "U d"]) -> Float[Tensor, "B U"]:
    """Sums of squares over the entries of each coherence block."""
    per = entries_per_use(link.packing)
    return torch.stack(
        [torch.linalg.vector_norm(values[:, per * a : per * b], dim=1) for a, b in segment.block_ranges]
    ).square()


def by_block(link: Uplink, segment: Segment, values: Float[Tensor, "U d"]) -> Float[Tensor, "B U"]:
    """Sums over the entries of each coherence block."""
    per = entries_per_use(link.packing)
    return torch.stack([values[:, per * a : per * b].sum(1) for a, b in segment.block_ranges])


def energy(link: Uplink, segment: Segment, errors: Complex[Tensor, "T uses"]) -> Float[Tensor, "B U"]:
    """Energies of the slot's sums, by block, for errors of its receivers in symbols."""
    return energies(
        link, segment, summed(segment.slot, entries_of(link, segment, errors) * segment.group.scale[:, None])
    )


def crossed(link: Uplink, segment: Segment, heard: ReceivedSignal) -> Float[Tensor, "B U"]:
    """Energies that other targets' streams leave, over the scrambling signs.

    What i hears of j and j of i carries the same sign, so in a sum of receivers they add up coherently.
    """
    combining_matrix, found = (
        segment.slot.combining_matrix,
        torch.zeros(len(segment.block_ranges), len(segment.slot.combining_matrix), dtype=torch.float64),
    )
    values = entries_per_pair(link, segment, heard)
    for (i, j), (of_i, of_j) in values.items():
        touched = (combining_matrix[:, [i, j]] != 0).any(1)
        both = combining_matrix[touched, i, None] * of_i + combining_matrix[touched, j, None] * of_j
        found[:, touched] += energies(link, segment, both)
    return found


def entries_per_pair(
    link: Uplink, segment: Segment, heard: ReceivedSignal
) -> dict[tuple[int, int], tuple[Tensor, Tensor]]:
    """(i, j) -> what i hears of j's streams and j of i's, as scaled entries."""
    parts = [entries_of(link, segment, part) * segment.group.scale[:, None] for part in heard.crosstalk.unbind(1)]
    return {(i, j): (parts[j][i], parts[i][j]) for i, j in combinations(range(len(parts)), 2)}


def genie(
    link: Uplink, segment: Segment, known: Complex[Tensor, "T T uses"], wanted: Complex[Tensor, "T uses"]
) -> Float[Tensor, "B U"]:
    """What the receivers' gains, as they know them on average, leave of the true symbols."""
    assumed_correlation = heard_of(known)
    return energy(link, segment, assumed_correlation.own - wanted) + crossed(link, segment, assumed_correlation)


def heard_of(
    parts: Complex[Tensor, "T T uses"],
    noise: Complex[Tensor, "T uses"] | None = None,
    signs: Float[Tensor, "T uses"] | None = None,
) -> ReceivedSignal:
    """Superposed streams as received; without noise and scrambling where none are given."""
    noise = torch.zeros_like(parts[0]) if noise is None else noise
    return heard(parts, noise, torch.ones_like(noise.real) if signs is None else signs)


def shared_errors(link: Uplink, segment: Segment, made: Transceiver) -> Float[Tensor, "B U"]:
    """What correlated symbols add where receivers' errors do not add up independently: sums of several receivers."""
    combining_matrix, group = segment.slot.combining_matrix, segment.group
    if bool(((combining_matrix != 0).sum(1) <= 1).all()):
        return torch.zeros(len(segment.block_ranges), len(combining_matrix), dtype=torch.float64)
    q = combining_matrix * group.scale
    cross = between(
        segment.problem,
        made,
        segment.assumed_correlation.cross,
        segment.slot.group_of,
        (segment.power, link.impairments),
    )
    entries = segment.share * group.num_entries
    return torch.einsum("ui,bij,uj,bi->bu", q, cross, q, entries)


def scale_of(slot: SlotPlan, group: NormalizedGroup) -> Float[Tensor, " U"]:
    """sigma^2 of each sum times its entries: sigma_i^2 of its receivers, weighed by what each has in it.

    With sigma_i^2 the mean of the devices' variances weighed by w_ik^2, so is this, by the weights of the whole sum.
    """
    share = slot.combining_matrix.square() * slot.weights.square().sum(1)
    sigma = (share @ group.scale.square()) / share.sum(1)
    return sigma * torch.where(slot.combining_matrix != 0, group.num_entries, 0).amax(1)


def silence_of(slot: SlotPlan, group: NormalizedGroup) -> Float[Tensor, " U"]:
    """Error energy of each sum if nothing were sent, for i.i.d. symbols."""
    alone = group.scale.square() * group.num_entries * (group.weights.square() @ group.power)
    return alone @ slot.combining_matrix.square().T


def backhauled(
    link: Uplink, slot: SlotPlan, estimate: Float[Tensor, "T d"], t: int, name: str
) -> tuple[Float[Tensor, "T d"], Float[Tensor, "T d"] | None]:
    """(the receivers' sums after the backhaul, variance of its rounding, None: exact). Random: the rounding."""
    edges = over_backhaul(link, slot)
    if link.backhaul_bits is None or not bool(edges.any()):
        return estimate, None
    values, variance = rounded(estimate, link.backhaul_bits, stream(link.seed, "backhaul", t, name))
    return torch.where(edges[:, None], values, estimate), torch.where(edges[:, None], variance, 0.0)


def amplified(
    link: Uplink, segment: Segment, transmit: Complex[Tensor, "B K"], x: Complex[Tensor, "K uses"]
) -> Complex[Tensor, "K uses"]:
    """Symbols as the devices' amplifiers leave them, relative to their transmit factors."""
    if link.impairments.clipping is None:
        return x
    factor = torch.cat([transmit[i, :, None].expand(-1, b - a) for i, (a, b) in enumerate(segment.block_ranges)], 1)
    sent = clipped(factor * x, link.impairments.clipping, link.subcarriers)
    return torch.where(factor != 0, sent / torch.where(factor != 0, factor, 1.0), 0.0)


def hear(
    link: Uplink, segment: Segment, made: Transceiver, parts: Complex[Tensor, "T T uses"], t: int
) -> ReceivedSignal:
    """What the receivers get of a piece's superposed streams."""
    random = stream(link.seed, "noise", t, segment.name)
    signs = signs_of(link, len(segment.slot.weights), parts.shape[-1], t, segment.name)
    noise = [
        receiver_noise(made, index, link.noise, b - a, random) for index, (a, b) in enumerate(segment.block_ranges)
    ]
    return heard_of(parts, torch.cat(noise, 1), signs)


def signs_of(link: Uplink, targets: int, uses: int, t: int, name: str) -> Float[Tensor, "T uses"]:
    """Scrambling signs per target and use; none where a slot has one receiver."""
    if targets == 1:
        return torch.ones(1, uses, dtype=torch.float64)
    random = torch.randint(2, (targets, uses), generator=stream(link.seed, "scrambling", t, name))
    return 2.0 * random.double() - 1.0
