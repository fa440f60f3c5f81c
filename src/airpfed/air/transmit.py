"""A segment on the air: here a gradient becomes a radio signal, and the received signal a sum with its errors.

pack -> amplify -> superpose in the channel -> receive -> unpack -> denormalise -> backhaul -> combine the targets ->
undo the mixing.

The entries of a segment are normalised and mixed already (`segments.split_slots`). Transmit factor b_k, channel h_k and
receiver m_i act as one scalar gain m_i^H h_k b_k per device and target. The sum of h_k b_k x_k at the antennas is
formed only where an ADC or the claims of amplifiers need it. `superposition.antenna_by_antenna` is the model with
antennas, and the tests hold this file to it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air import resources
from airpfed.air.antenna_correlation import antenna_covariance, blocks_read, cell_correlation, has_pairs
from airpfed.air.blockwise import BlockRanges, by_block, over_uses
from airpfed.air.correlation import (
    SampleCorrelation,
    SymbolCorrelation,
    coherent_power,
    correlated_distortion,
    expected_power,
    incoherent_noise,
    mismatch_error,
    normal_equations,
    power_terms,
)
from airpfed.air.distortion import BLOCK_MEAN, arriving_symbols, change_factors, distortion_of, relative_rotation
from airpfed.air.impairments import NONE, Distortion, adc_share, impulses
from airpfed.air.problem import Transceiver, gains
from airpfed.air.quantization import round_stochastically
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import SlotPlan, Uplink, over_backhaul, reason_without_any_claim
from airpfed.air.segments import Segment
from airpfed.air.slot_errors import (
    ReceivedSums,
    SlotErrors,
    block_sums,
    coherent_error,
    combine_targets,
    mean_signal_error,
    segment_entries,
    square_sums,
    sum_scale,
    zero_estimate_energy,
)
from airpfed.air.superposition import receive, receiver_noise, superpose, target_streams
from airpfed.air.symbols import entries_per_use, pack_symbols, zero_tail
from airpfed.core.rng import stream

MIN_SHARE = 0.3
"""The lower limit of mu in `measured_mismatch`: with smaller gains, ((1 - mu) / mu)^2 would magnify noise."""

SAMPLE, MIN_SAMPLE, MAX_SAMPLE = 1 << 21, 256, 1 << 14
"""Entries that `sample_correlation` reads: of all devices together, and at least and at most of each."""


def transmit(link: Uplink, segment: Segment, transceiver: Transceiver, t: int) -> ReceivedSums:
    """Send a segment with the transceivers of its blocks.

    Under impairments some errors grow with the power of the sum. Receivers claim these from the power that they
    measure, as gain control does, because the correlation that they assume may be wrong (`measured_mismatch`).
    Random: noise, scrambling, and rounding of the backhaul, with streams named by round and segment.
    """
    slot, group, problem = segment.slot, segment.group, segment.problem
    distortion = distortion_of(link, segment, transceiver)
    superposed = superpose_segment(link, segment, transceiver, distortion, t)
    noise = receivers_noise(link, segment, transceiver, superposed, t)
    signal = receive(superposed.parts, noise, superposed.signs)
    received, ideal = segment_entries(link, segment, signal.received), segment_entries(link, segment, superposed.ideal)
    incoherent = incoherent_noise(problem, transceiver, segment.symbol_power, distortion)
    terms = power_terms(problem, transceiver, segment.pairs, segment.symbol_power, distortion, incoherent)
    received = clip_received(link, segment, received, expected_power(terms, segment.assumed_correlation))
    offset = zero_tail(group.offset[:, None].repeat(1, received.shape[1]), group.num_entries)
    if segment.mixing is not None:
        offset = segment.mixing.apply(offset, group.num_entries)
    estimate, target = (torch.addcmul(offset, values, group.scale[:, None]) for values in (received, ideal))
    delivered, rounding = pass_backhaul(link, slot, estimate, t, segment.name)

    combining_matrix, entries = slot.combining_matrix, segment.entry_share * group.num_entries
    rounding_error = 0.0 if rounding is None else block_sums(link, segment, combining_matrix.square() @ rounding)

    def energies(mse: Float[Tensor, "B T"]) -> Float[Tensor, "B U"]:
        """Error energies of the sums for independent errors of the receivers, given per normalised entry."""
        return (entries * mse * group.scale.square()) @ combining_matrix.square().T

    bias, crosstalk = mean_signal_error(link, segment, signal, superposed.ideal)
    genie = bias + crosstalk
    if superposed.assumed_parts is not None:
        silence = torch.zeros_like(superposed.ideal)
        assumed_signal = receive(superposed.assumed_parts, silence, torch.ones_like(silence.real))
        assumed_bias, assumed_crosstalk = mean_signal_error(link, segment, assumed_signal, superposed.ideal)
        genie = assumed_bias + assumed_crosstalk
    noise_power = problem.noise * transceiver.receiver.abs().square().sum(1)
    converted: float | Float[Tensor, "B T"] = 0.0
    if superposed.antenna_power is not None:
        true_noise, independent = converter_powers(segment, transceiver, distortion, superposed.antenna_power)
        noise_power = noise_power + true_noise
        converted = true_noise - independent
        genie = genie + energies(converted)
    power = square_sums(link, segment, received) / torch.where(entries > 0, entries, 1.0)
    if distortion.by_order is not None and not reason_without_any_claim(link):
        true_R = sample_correlation(segment)
        of_true_R = correlated_distortion(problem, transceiver, true_R, segment.symbol_power, distortion)
        genie = genie + energies(of_true_R.sum(-1))
    if link.impairments != NONE or link.is_varying:
        distorted = measured_distortion(link, segment, transceiver, distortion, superposed, noise, t)
        power = power - distorted
        coherent = (power - incoherent - converted) / (1 + distortion.spread)
        mismatch = distorted + measured_mismatch(segment, transceiver, distortion, coherent, converted)
        mismatch = torch.maximum(mismatch, -incoherent)  # a power measured over few entries may be far too small
    else:
        mismatch = mismatch_error(problem, transceiver, segment.R, segment.symbol_power, distortion)
    unmixed = delivered if segment.mixing is None else segment.mixing.undo(delivered, group.num_entries)
    return ReceivedSums(
        sums=combine_targets(slot, unmixed),
        errors=SlotErrors(
            claimed=energies(mismatch + incoherent)
            + coherent_error(link, segment, transceiver, distortion)
            + rounding_error,
            claimed_genie=genie + energies(incoherent) + rounding_error,
            measured=square_sums(link, segment, combine_targets(slot, delivered - target)),
            bias=bias,
            variance=energies(noise_power) + crosstalk + rounding_error,
            zero_estimate_error=zero_estimate_energy(slot, group)[None],
            scale=sum_scale(slot, group)[None],
        ),
        joules=(transceiver.transmit_factors.abs().square() * superposed.energy).sum(0)
        * resources.use_seconds(link.bandwidth_hz),
        normal_equations=(normal_equations(terms, power, entries, segment.assumed_correlation),),
    )


def measured_mismatch(
    segment: Segment,
    transceiver: Transceiver,
    distortion: Distortion,
    coherent: Float[Tensor, "B T"],
    converted: float | Float[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """`mismatch_error` of the power that the receivers measured, which may be another than the correlation predicts.

    coherent: the measured v R v^H of the mean gains v. converted: the measured part of the ADC's noise that is due to
    correlated symbols. Gains that change in a block cost spread v R v^H. With mu w the projection of v on the weights,
    a mean gain other than 1 costs (1 - mu)^2 w R w^T, and mu^2 w R w^T is its share of the power; so the difference
    between measured and predicted power, ascribed to this part alone, enters with ((1 - mu) / mu)^2.
    """
    problem, p = segment.problem, segment.symbol_power
    v, w = distortion.mean_gains(gains(problem.h, transceiver)) * p.sqrt(), problem.weights * p.sqrt()
    mu = ((v.real * w).sum(-1) / w.square().sum(-1).clamp_min(1e-300)).clamp_min(MIN_SHARE)
    of_gains, predicted = (coherent_power(x, segment.R, problem.real) for x in (v - w, v))
    return of_gains + ((1 - mu) / mu).square() * (coherent - predicted) + distortion.spread * coherent + converted


def measured_distortion(
    link: Uplink,
    segment: Segment,
    transceiver: Transceiver,
    distortion: Distortion,
    superposed: "SuperposedSegment",
    received_noise: Complex[Tensor, "T uses"],
    t: int,
) -> float | Float[Tensor, "B T"]:
    """What receivers claim of `correlated_distortion`, 0 without amplifiers.

    They do not know how far symbols correlate, and estimate it from their antennas (`cell_correlation`), or take the
    assumed correlation where they claim nothing.
    """
    if distortion.by_order is None:
        return 0.0
    R: SymbolCorrelation = segment.R
    if superposed.at_antennas is not None:
        noise = antenna_noise_power(link, segment, superposed)
        covariance = antenna_covariance(link, segment, transceiver, superposed.at_antennas, noise, received_noise, t)
        R = cell_correlation(segment, transceiver, distortion, covariance)
    return correlated_distortion(segment.problem, transceiver, R, segment.symbol_power, distortion).sum(-1)


def sample_correlation(segment: Segment) -> SampleCorrelation:
    """The true correlation of a segment's symbols at its receivers, from the first of each device's mixed entries.

    Symbols that scrambling separates count as uncorrelated.
    """
    entries = segment.group.entries
    count = max(MIN_SAMPLE, min(MAX_SAMPLE, SAMPLE // max(1, entries.shape[0])))
    sample = torch.cat([entries[rows][:, :count].clone() for rows in row_chunks(*entries.shape)])
    sample = sample / torch.linalg.vector_norm(sample, dim=1, keepdim=True).clamp_min(1e-300)
    return SampleCorrelation(sample, segment.pairs.sequence)


@dataclass(frozen=True)
class SuperposedSegment:
    """The superposed streams of a segment, without noise.

    ideal: the targets, sum_k w_ik x_k. parts: [i, j] the streams of target j at receiver i. assumed_parts: the same
    with the mean gains that receivers assume; None if these are the true gains. energy: energy of each stream's symbols
    in each block after its amplifier, divided by |b_k|^2. signs: the targets' scrambling signs. antenna_power:
    mean power of all streams at each antenna, without noise; None if the receivers' ADC is ideal. at_antennas: all
    streams, scrambled, at each antenna in the blocks that `cell_correlation` reads; None if it reads none.
    """

    ideal: Complex[Tensor, "T uses"]
    parts: Complex[Tensor, "T T uses"]
    assumed_parts: Complex[Tensor, "T T uses"] | None
    energy: Float[Tensor, "B K"]
    signs: Float[Tensor, "T uses"]
    antenna_power: Float[Tensor, "B M"] | None = None
    at_antennas: Complex[Tensor, "M _uses"] | None = None


def superpose_segment(
    link: Uplink, segment: Segment, transceiver: Transceiver, distortion: Distortion, t: int
) -> SuperposedSegment:
    """Superpose the streams of a segment, some at a time, so that memory holds sums and not K x d symbols.

    Random: what the devices' offsets and amplifiers draw, and the scrambling signs, in round t.
    """
    targets, shape = len(segment.slot.weights), segment.group.entries.shape
    gain, assumed_gain = gains(segment.h, transceiver), None
    if not link.is_csi_exact or link.impairments != NONE:
        assumed_gain = distortion.mean_gains(gains(segment.problem.h, transceiver))
    assumed_rotation = relative_rotation(link, segment) if link.is_varying else 1.0
    signs = scrambling_signs(link, targets, segment.block_ranges[-1][1], t, segment.name)
    converted = link.impairments.adc_noise > 0
    read, at_antennas = segment.block_ranges if converted else blocks_read(segment), None
    estimated = distortion.by_order is not None and has_pairs(segment) and not reason_without_any_claim(link)
    if converted or estimated:
        at_antennas = torch.zeros(segment.h.shape[1], read[-1][1], dtype=torch.complex128)
    ideal = torch.zeros(targets, segment.block_ranges[-1][1], dtype=torch.complex128)
    streams_of_targets = ideal.new_zeros(targets, targets, ideal.shape[1])
    assumed_streams = None if assumed_gain is None else torch.zeros_like(streams_of_targets)
    norms = []
    for rows in row_chunks(*shape):
        x = pack_symbols(segment.group.entries[rows], link.packing)
        streams = target_streams(segment.slot.target_of[rows], targets)
        sent, arriving = arriving_symbols(link, segment, transceiver, rows, x, t)
        ideal += torch.view_as_complex((segment.group.weights[:, rows] @ real_view(x)).reshape(targets, -1, 2))
        streams_of_targets += superpose_blocks(gain[:, :, rows], arriving, segment.block_ranges, streams)
        if assumed_streams is not None and assumed_gain is not None:
            assumed_streams += superpose_blocks(assumed_gain[:, :, rows], x, segment.block_ranges, streams)
        if at_antennas is not None:
            scrambled = arriving * signs[segment.slot.target_of[rows]]
            factors = transceiver.transmit_factors[:, rows]
            at_antennas += superpose_at_antennas(segment.h[:, :, rows], factors, scrambled, read)
        norm = partial(torch.linalg.vector_norm, dim=-1)
        norms.append(by_block(norm, real_view(sent), segment.block_ranges, 2))
    if link.change is not None:
        change = change_factors(link, segment)
        streams_of_targets = streams_of_targets * change
        at_antennas = None if at_antennas is None else at_antennas * change[: at_antennas.shape[1]]
    return SuperposedSegment(
        ideal=ideal,
        parts=streams_of_targets,
        assumed_parts=None if assumed_streams is None else assumed_streams * assumed_rotation,
        energy=torch.cat(norms, 1).square(),
        signs=signs,
        antenna_power=by_block(BLOCK_MEAN, at_antennas.abs().square(), segment.block_ranges)
        if converted and at_antennas is not None
        else None,
        at_antennas=at_antennas if estimated else None,
    )


def converter_powers(
    segment: Segment, transceiver: Transceiver, distortion: Distortion, antenna_power: Float[Tensor, "B M"]
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """The noise of the receivers' ADC from the streams after each receiver: of the true power at the antennas, and of
    independent symbols over the estimated channels, which `incoherent_noise` contains.
    """
    problem = segment.problem
    share = 0.5 * distortion.adc if problem.real else distortion.adc
    squares = transceiver.receiver.abs().square()
    radiated = transceiver.transmit_factors.abs().square() * distortion.power
    arriving = problem.h.abs().square() * radiated[:, None, :]  # (B, M, K)
    independent = torch.einsum("bmk,btk,bmt->bt", arriving, segment.symbol_power, squares)
    return share * torch.einsum("bm,bmt->bt", antenna_power, squares), share * independent


def superpose_blocks(
    gain: Complex[Tensor, "B T K"],
    x: Complex[Tensor, "K uses"],
    block_ranges: BlockRanges,
    streams: Sequence[slice | Int[Tensor, " _k"]],
) -> Complex[Tensor, "T T uses"]:
    """`superpose` in each block, side by side."""
    symbols = torch.split(x, [last - first for first, last in block_ranges], 1)
    return torch.cat([superpose(*pair, streams) for pair in zip(gain.unbind(0), symbols, strict=True)], -1)


def superpose_at_antennas(
    h: Complex[Tensor, "_B M K"], factors: Complex[Tensor, "_blocks K"], x: Complex[Tensor, "K _all"],
    block_ranges: BlockRanges,
) -> Complex[Tensor, "M uses"]:  # fmt: skip
    """The streams at the antennas in the first blocks, sum_k h_k b_k x_k, side by side. factors: b_k, of each block."""
    pairs = zip(h, factors, block_ranges, strict=False)
    return torch.cat([(channel * b) @ x[:, first:last] for channel, b, (first, last) in pairs], 1)


def real_view(x: Complex[Tensor, "K uses"]) -> Float[Tensor, "K _d"]:
    """Real and imaginary parts in turn; a view if the symbols of a row are contiguous."""
    return torch.view_as_real(x).flatten(1)


def antenna_noise_power(link: Uplink, segment: Segment, superposed: SuperposedSegment) -> Float[Tensor, "B M"]:
    """The noise power at each antenna; the receivers' ADC adds a share of the power there, noise included."""
    blocks, antennas, _ = segment.h.shape
    noise = torch.full((blocks, antennas), link.noise, dtype=torch.float64)
    if segment.antenna_noise is not None:
        noise = segment.antenna_noise
    if superposed.antenna_power is not None:
        noise = noise + adc_share(link.impairments) * (noise + superposed.antenna_power)
    return noise


def receivers_noise(
    link: Uplink, segment: Segment, transceiver: Transceiver, superposed: SuperposedSegment, t: int
) -> Complex[Tensor, "T uses"]:
    """Draw the noise m_i^H z after a segment's receivers, streams (seed, "noise" and "impulses", t, segment)."""
    rng = stream(link.seed, "noise", t, segment.name)
    alike = segment.antenna_noise is None and superposed.antenna_power is None
    noise = [link.noise] * len(segment.h) if alike else antenna_noise_power(link, segment, superposed).unbind(0)
    blocks = [
        receiver_noise(transceiver, block, noise[block], last - first, rng)
        for block, (first, last) in enumerate(segment.block_ranges)
    ]
    samples = torch.cat(blocks, 1)
    if link.noise_alpha < 2:
        rng = stream(link.seed, *link.network.names, "impulses", t, segment.name)
        samples = samples * impulses(link.noise_alpha, samples.shape[1], rng)
    return samples


def clip_received(
    link: Uplink, segment: Segment, received: Float[Tensor, "T d"], level: Float[Tensor, "B T"]
) -> Float[Tensor, "T d"]:
    """Clip received entries at `receive_clipping` times their expected deviation. level: their expected mean square."""
    if math.isinf(link.receive_clipping):
        return received
    per_use, width = entries_per_use(link.packing), received.shape[1]
    limit = link.receive_clipping * over_uses(level, segment.block_ranges, per_use)[:, :width].sqrt()
    return torch.minimum(torch.maximum(received, -limit), limit)


def scrambling_signs(link: Uplink, targets: int, uses: int, t: int, name: str) -> Float[Tensor, "T uses"]:
    """Draw scrambling signs +-1 per target and use; all 1 in a slot with one receiver.

    Random: stream (seed, "scrambling", t, name).
    """
    if targets == 1:
        return torch.ones(1, uses, dtype=torch.float64)
    bits = torch.randint(2, (targets, uses), generator=stream(link.seed, "scrambling", t, name))
    return 2.0 * bits.double() - 1.0


def pass_backhaul(
    link: Uplink, slot: SlotPlan, estimate: Float[Tensor, "T d"], t: int, name: str
) -> tuple[Float[Tensor, "T d"], Float[Tensor, "T d"] | None]:
    """Round the estimates that travel over the backhaul; returns them and the variance of rounding, None if exact.

    Random: stream (seed, "backhaul", t, name).
    """
    edges = over_backhaul(link, slot)
    if link.backhaul_bits is None or not bool(edges.any()):
        return estimate, None
    values, variance = round_stochastically(estimate, link.backhaul_bits, stream(link.seed, "backhaul", t, name))
    return torch.where(edges[:, None], values, estimate), torch.where(edges[:, None], variance, 0.0)
