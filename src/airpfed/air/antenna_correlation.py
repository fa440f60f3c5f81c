"""The correlation of the symbols of each pair of devices or tasks, estimated from what a slot's antennas receive.

The power of a received sum tells the mean correlation of all pairs only. What amplifiers add to the error depends on
the cubes of the correlations, and higher powers: where the gradients of two tasks are opposite, the mean over all pairs
is small, but the distortions of each task's own devices still add up. The antennas' covariance tells the pairs apart.
"""

from dataclasses import replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air.blockwise import BlockRanges
from airpfed.air.correlation import MAX_CORRELATION, CellCorrelation, CorrelatedPairs, Correlation
from airpfed.air.impairments import Distortion
from airpfed.air.problem import Transceiver, antenna_disturbance
from airpfed.air.schedule import Uplink
from airpfed.air.segments import Segment, of_blocks
from airpfed.air.superposition import antenna_noise_of
from airpfed.air.symbols import entries_per_use
from airpfed.core.rng import stream

MAX_CELLS = 16
"""Devices up to which each pair has a correlation of its own; tasks up to which each pair of tasks has one."""

MAX_PAIRS = 1 << 20
"""Pairs of devices, or of antennas, over all blocks that are read: more blocks tell little more, and take memory."""

PRECISION, FINER_PRECISION = 1.0, 100.0
"""Of the R before, as an estimate of a level's correlations: deviations of 1, and of 0.1 for pairs of tasks or devices.

The noise of an estimate has a cube, too; a correlation that its level's data hardly tell must stay where it was.
"""

RIDGE = 1e-9
"""Of the mean power at an antenna: added to the noise, which may be 0."""


def has_pairs(segment: Segment) -> bool:
    """Whether any two devices' symbols correlate at the receivers."""
    return bool((torch.bincount(segment.pairs.sequence) > 1).any())


def blocks_read(segment: Segment) -> BlockRanges:
    """The first blocks of a segment, from which correlations are estimated."""
    _, antennas, devices = segment.h.shape
    return segment.block_ranges[: max(1, MAX_PAIRS // max(antennas, devices) ** 2)]


def antenna_covariance(
    link: Uplink,
    segment: Segment,
    transceiver: Transceiver,
    streams: Complex[Tensor, "M _uses"],
    noise: Float[Tensor, "B M"],
    received_noise: Complex[Tensor, "T uses"],
    t: int,
) -> Complex[Tensor, "B M M"]:
    """The mean of y y^H over each block's uses, y the streams at the antennas and their noise.

    noise: its power, watts. received_noise: m_i^H z of the receivers; the antennas' noise z is drawn given it.
    Random: stream (seed, "antenna noise", t, segment).
    """
    rng = stream(link.seed, "antenna noise", t, segment.name)
    blocks = []
    for block, (first, last) in enumerate(blocks_read(segment)):
        z = antenna_noise_of(transceiver.receiver[block], received_noise[:, first:last], noise[block], rng)
        y = streams[:, first:last] + z
        blocks.append(y @ y.mH / (last - first))
    return torch.stack(blocks)


def cell_correlation(
    segment: Segment, transceiver: Transceiver, distortion: Distortion, covariance: Complex[Tensor, "B M M"]
) -> CellCorrelation:
    """Estimate the correlation of each pair of cells, from the assumed one, level by level (`correlation_levels`).

    With arriving gains g_k, the covariance is W + sum over pairs of R_jk g_j g_k^H, W that of independent symbols, plus
    what amplifiers' distortions add, sum over n of R_jk^(2n+1) d_nj d_nk^H, plus the ADC's noise of these sums. Each
    level corrects the R before by least squares over the blocks of `covariance`, weighted by W^-1 on both sides as for
    Gaussian signals, with that R as its prior: it stays where antennas are too few, or too noisy, to tell pairs apart.
    """
    R, levels = correlation_levels(segment.pairs, segment.assumed_correlation)
    segment, transceiver, distortion = first_blocks(len(covariance), segment, transceiver, distortion)
    assert distortion.by_order is not None, "amplifiers distort"
    spread = (1 + distortion.spread).sqrt()
    sent = transceiver.transmit_factors * mean_power(segment).sqrt()
    arriving = segment.problem.h * sent[:, None, :]
    independent = independent_covariance(segment, arriving, sent.abs().square(), distortion)
    uses = torch.tensor([last - first for first, last in segment.block_ranges], dtype=torch.float64)
    amplitudes = torch.stack([distortion.mean.expand_as(sent.real), *distortion.by_order.unbind(-1)])
    gain = arriving * (amplitudes * spread)[:, :, None, :]  # of the signal and of each order, (1 + orders, B, M, K)
    matched = torch.linalg.solve(independent, gain[0]).mH  # (B, K, M): g_k^H W^-1

    def sums(at_antennas: Complex[Tensor, "Q B M M"]) -> Float[Tensor, "Q C C"]:
        """The sum of g_j^H W^-1 X W^-1 g_k over the devices (j, k) of each two cells, over blocks and uses."""
        return cell_products(matched @ at_antennas, matched, uses, R)

    observed = sums((covariance - independent)[None])[0]
    powers = 2 * torch.arange(len(gain)) + 1
    # The first level three times, because the distortions that it subtracts are those of the R before.
    steps = [*((kinds, PRECISION) for kinds in 3 * levels[:1]), *((kinds, FINER_PRECISION) for kinds in levels[1:])]
    for kinds, precision in steps:
        expected = sums(pair_covariance(R.value ** powers[:, None, None], gain, R.cell, distortion.adc)).sum(0)
        units = (kinds == torch.arange(int(kinds.max()) + 1)[:, None, None]).double()
        parts = torch.split(units, max(1, MAX_PAIRS // gain[0].numel()))
        information = [by_kind(sums(pair_covariance(part, gain[:1], R.cell, distortion.adc)), kinds) for part in parts]
        prior = precision * torch.eye(len(units), dtype=torch.float64)
        residual = by_kind((observed - expected)[None], kinds)[0]
        change = torch.linalg.solve(torch.cat(information).T + prior, residual)
        value = R.value + torch.where(kinds >= 0, change[kinds.clamp(min=0)], 0.0)
        R = replace(R, value=value.clamp(-MAX_CORRELATION, MAX_CORRELATION))
    return R


def cell_products(
    left: Complex[Tensor, "Q B K M"], right: Complex[Tensor, "B K M"], uses: Float[Tensor, " B"], R: CellCorrelation
) -> Float[Tensor, "Q C C"]:
    """The sum of left_j right_k^H over the pairs (j, k) of devices of each two cells, and over all uses."""
    cells, weighted = len(R.value), left * uses[:, None, None]
    first, second = (
        each.new_zeros(*each.shape[:-2], cells, each.shape[-1]).index_add(-2, R.cell, each)
        for each in (weighted, right)
    )
    alone = (weighted * right.conj()).real.sum((1, 3))
    own = alone.new_zeros(len(alone), cells).index_add(1, R.cell, alone)
    return (first @ second.mH).real.sum(1) - torch.diag_embed(own)


def pair_covariance(
    value: Float[Tensor, "Q C C"], gain: Complex[Tensor, "_Q B M K"], cell: Int[Tensor, " K"], adc: float
) -> Complex[Tensor, "Q B M M"]:
    """What pairs of devices add to the covariance at the antennas, and the ADC's noise of that.

    value: correlation of each pair of cells. gain: amplitudes at the antennas. adc: see `impairments.adc_share`.
    """
    by_cell = gain.new_zeros(*gain.shape[:-1], value.shape[-1]).index_add(-1, cell, gain)
    diagonal = value.diagonal(dim1=1, dim2=2)[:, cell]
    times = (by_cell @ value[:, None].to(gain.dtype))[..., cell] - gain * diagonal[:, None, None, :]
    covariance = times @ gain.mH
    if adc:
        covariance = covariance + adc * torch.diag_embed(covariance.diagonal(dim1=2, dim2=3))
    return covariance


def correlation_levels(
    pairs: CorrelatedPairs, assumed: Correlation
) -> tuple[CellCorrelation, list[Int[Tensor, "C C"]]]:
    """The assumed correlation, and which pairs of cells share one: coarse, then finer.

    First all pairs within tasks share one and all others another, then each pair of tasks has one, then each pair of
    devices, as far as there are at most `MAX_CELLS` of them. A level has the number of each pair's correlation, -1 for
    pairs that are none, or that scrambling separates.
    """
    devices = len(pairs.cell)
    cell = torch.arange(devices) if devices <= MAX_CELLS else pairs.cell
    cells = int(cell.max()) + 1
    task, sequence = (
        torch.zeros(cells, dtype=torch.int64).index_copy(0, cell, label.long())
        for label in (pairs.cell, pairs.sequence)
    )
    together, same = sequence[:, None] == sequence, task[:, None] == task
    if devices <= MAX_CELLS:
        together = together & ~torch.eye(cells, dtype=torch.bool)
    value = torch.where(same, assumed.within_task, assumed.between_tasks) * together
    labels = [label for label in (task, torch.arange(cells)) if int(label.max()) < MAX_CELLS]
    numbers = [(~same).long(), *(pair_numbers(label) for label in labels)]
    levels: list[Int[Tensor, "C C"]] = []
    for number in numbers:
        kinds = torch.full((cells, cells), -1)
        kinds[together] = torch.unique(number[together], return_inverse=True)[1]
        if bool(together.any()) and not (levels and bool((kinds == levels[-1]).all())):
            levels.append(kinds)
    return CellCorrelation(value.double(), cell), levels


def pair_numbers(label: Int[Tensor, " C"]) -> Int[Tensor, "C C"]:
    """A number for each pair of labels, the same in both orders."""
    lower, upper = torch.minimum(label[:, None], label), torch.maximum(label[:, None], label)
    return lower * (int(label.max()) + 1) + upper


def first_blocks(
    count: int, segment: Segment, transceiver: Transceiver, distortion: Distortion
) -> tuple[Segment, Transceiver, Distortion]:
    """The first coherence blocks of a segment, with their transceivers and statistics."""
    problem, first = segment.problem, slice(count)
    part = replace(
        segment,
        block_ranges=segment.block_ranges[first],
        entry_share=segment.entry_share[first],
        problem=replace(problem, h=problem.h[first], csi_variance=of_blocks(problem.csi_variance, first)),
    )
    sent = Transceiver(transceiver.receiver[first], transceiver.transmit_factors[first])
    statistics = replace(
        distortion,
        mean=distortion.mean[first],
        power=distortion.power[first],
        spread=distortion.spread[first],
        by_order=None if distortion.by_order is None else distortion.by_order[first],
    )
    return part, sent, statistics


def independent_covariance(
    segment: Segment, arriving: Complex[Tensor, "B M K"], radiated: Float[Tensor, "B K"], distortion: Distortion
) -> Complex[Tensor, "B M M"]:
    """The covariance at the antennas that receivers expect of independent symbols."""
    noise = antenna_disturbance(segment.problem, (radiated * distortion.power)[:, None, :])[:, :, 0]
    covariance = (arriving * distortion.power[:, None, :]) @ arriving.mH
    level = noise + RIDGE * covariance.diagonal(dim1=1, dim2=2).real.mean(1, keepdim=True)
    level = torch.where(level > 0, level, 1.0)  # nothing arrives
    return covariance + torch.diag_embed(level.expand(covariance.shape[:2])).to(covariance.dtype)


def mean_power(segment: Segment) -> Float[Tensor, "B K"]:
    """The mean power of each stream's symbols over a block's uses; its target may have entries on a part of them."""
    per_use = entries_per_use("real" if segment.problem.real else "iq")
    uses = torch.tensor([last - first for first, last in segment.block_ranges], dtype=torch.float64)
    share = segment.entry_share * segment.group.num_entries / (per_use * uses[:, None])
    return share[:, segment.slot.target_of] * segment.group.symbol_power


def by_kind(values: Float[Tensor, "Q C C"], kinds: Int[Tensor, "C C"]) -> Float[Tensor, "Q _kinds"]:
    """The sum of the values of the pairs of each kind."""
    total = values.new_zeros(len(values), int(kinds.max()) + 1)
    return total.index_add(1, kinds[kinds >= 0], values[:, kinds >= 0])
