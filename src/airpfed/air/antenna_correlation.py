"""How far the symbols of each pair of tasks correlate, estimated from what a slot's antennas receive.

The power of a received sum tells the mean correlation of its devices only. What amplifiers add to the error grows with
its powers: where tasks push a matrix in opposite directions, correlations of 0.9 and -0.9 have the mean 0, and so do
their cubes, but the devices of a task still agree. The antennas' covariance tells the pairs apart.
"""

from dataclasses import replace

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air.correlation import MAX_CORRELATION, CellCorrelation, CorrelatedPairs, Correlation
from airpfed.air.impairments import Distortion
from airpfed.air.problem import Transceiver
from airpfed.air.schedule import Uplink
from airpfed.air.segments import Segment
from airpfed.core.rng import stream

MAX_CELLS = 16
"""Devices up to which each pair has a correlation of its own; tasks up to which each pair of tasks has one."""

MAX_PAIRS = 1 << 20
"""Pairs of devices over all blocks that are read: more blocks tell little more, and must not fill the memory."""

RIDGE = 1e-9
"""Of the mean power at an antenna: added to the noise, which may be 0."""


def antenna_covariance(
    link: Uplink,
    segment: Segment,
    transceiver: Transceiver,
    streams: Complex[Tensor, "M uses"],
    noise: Float[Tensor, "B M"],
    received_noise: Complex[Tensor, "T uses"],
    t: int,
) -> Complex[Tensor, "B M M"]:
    """The mean of y y^H over each block's uses, y the streams at the antennas and their noise, of the first blocks.

    noise: its power, watts. received_noise: m_i^H z of the receivers; the antennas' noise z is drawn given it.
    Random: stream (seed, "antenna noise", t, segment).
    """
    rng = stream(link.seed, "antenna noise", t, segment.name)
    blocks = []
    count = max(1, MAX_PAIRS // len(segment.task_of) ** 2)
    for block, (first, last) in enumerate(segment.block_ranges[:count]):
        m, power = transceiver.receiver[block], noise[block]
        z = power.sqrt()[:, None] * torch.randn(len(streams), last - first, dtype=torch.complex128, generator=rng)
        weighted = power[:, None] * m
        known = torch.linalg.pinv(m.mH @ weighted, hermitian=True)
        z = z + weighted @ (known @ (received_noise[:, first:last] - m.mH @ z))
        y = streams[:, first:last] + z
        blocks.append(y @ y.mH / (last - first))
    return torch.stack(blocks)


def cell_correlation(
    segment: Segment, transceiver: Transceiver, distortion: Distortion, covariance: Complex[Tensor, "B M M"]
) -> CellCorrelation:
    """Estimate the correlation of each pair of cells, from the assumed one, level by level (`correlation_levels`).

    With arriving gains g_k, the covariance is W + sum over pairs of R_jk g_j g_k^H, W that of independent symbols, plus
    what amplifiers' distortions add, sum over n of R_jk^(2n+1) d_nj d_nk^H. Each level corrects the R before by least
    squares over the blocks of `covariance`, weighted by W^-1 on both sides as for Gaussian signals. That R counts as an
    estimate of standard deviation 1, so that it stays where antennas are too few, or too noisy, to tell pairs apart.
    """
    R, levels = correlation_levels(segment.pairs, segment.assumed_correlation)
    segment, transceiver, distortion = first_blocks(len(covariance), segment, transceiver, distortion)
    assert distortion.by_order is not None, "amplifiers distort"
    spread = (1 + distortion.spread).sqrt()
    sent = transceiver.transmit_factors * mean_power(segment).sqrt()
    arriving = segment.problem.h * sent[:, None, :]
    gain = arriving * (distortion.mean * spread)[:, None, :]
    independent = independent_covariance(segment, arriving, sent.abs().square(), distortion)
    uses = torch.tensor([last - first for first, last in segment.block_ranges], dtype=torch.float64)
    matched = torch.linalg.solve(independent, gain).mH  # (B, K, M): g_k^H W^-1
    # Of the signal and of each order of distortion: (1 + orders, B, K, K), g_j^H W^-1 times their gains.
    amplitudes = torch.stack([distortion.mean.expand_as(sent.real), *distortion.by_order.unbind(-1)])
    rows = matched @ (arriving * (amplitudes * spread)[:, :, None, :])
    powers = 2 * torch.arange(len(rows)) + 1
    observed = pooled(matched[None] @ (covariance - independent), matched[None], uses, R)[0]
    for kinds in [*levels[:1], *levels[:1], *levels]:  # the first one again: distortions are those of the R before
        expected = pair_sums(R.value ** powers[:, None, None], rows, uses, R).sum(0)
        units = (kinds == torch.arange(int(kinds.max()) + 1)[:, None, None]).double()
        parts = torch.split(units, max(1, MAX_PAIRS // rows[0].numel()))
        information = torch.cat([by_kind(pair_sums(part, rows[:1], uses, R), kinds) for part in parts])
        residual = by_kind((observed - expected)[None], kinds)[0]
        change = torch.linalg.solve(information.T + torch.eye(len(units)).double(), residual)
        value = R.value + torch.where(kinds >= 0, change[kinds.clamp(min=0)], 0.0)
        R = replace(R, value=value.clamp(-MAX_CORRELATION, MAX_CORRELATION))
    return R


def pooled(
    rows: Complex[Tensor, "Q B K n"], others: Complex[Tensor, "_Q B K n"], uses: Float[Tensor, " B"], R: CellCorrelation
) -> Float[Tensor, "Q C C"]:
    """The sum of rows_j others_k^H over the pairs (j, k) of devices of each two cells, and over all uses."""
    cells, weighted = len(R.value), rows * uses[:, None, None]
    one, other = (
        each.new_zeros(*each.shape[:-2], cells, each.shape[-1]).index_add(-2, R.cell, each)
        for each in (weighted, others)
    )
    alone = (weighted * others.conj()).real.sum((1, 3))
    own = alone.new_zeros(len(alone), cells).index_add(1, R.cell, alone)
    return (one @ other.mH).real.sum(1) - torch.diag_embed(own)


def pair_sums(
    value: Float[Tensor, "Q C C"], rows: Complex[Tensor, "_Q B K K"], uses: Float[Tensor, " B"], R: CellCorrelation
) -> Float[Tensor, "Q C C"]:
    """`pooled` of rows V and rows, V with these correlations of the pairs of cells and a diagonal of 0."""
    by_cell = rows.new_zeros(*rows.shape[:-1], value.shape[-1]).index_add(-1, R.cell, rows)
    diagonal = value.diagonal(dim1=1, dim2=2)[:, R.cell]
    times = (by_cell @ value[:, None].to(rows.dtype))[..., R.cell] - rows * diagonal[:, None, None, :]
    return pooled(times, rows, uses, R)


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
    problem = segment.problem
    csi = problem.csi_variance[:count] if problem.csi_variance.dim() == 3 else problem.csi_variance
    part = replace(
        segment,
        block_ranges=segment.block_ranges[:count],
        entry_share=segment.entry_share[:count],
        problem=replace(problem, h=problem.h[:count], csi_variance=csi),
    )
    sent = Transceiver(transceiver.receiver[:count], transceiver.transmit_factors[:count])
    statistics = replace(
        distortion,
        mean=distortion.mean[:count],
        power=distortion.power[:count],
        spread=distortion.spread[:count],
        by_order=None if distortion.by_order is None else distortion.by_order[:count],
    )
    return part, sent, statistics


def independent_covariance(
    segment: Segment, arriving: Complex[Tensor, "B M K"], radiated: Float[Tensor, "B K"], distortion: Distortion
) -> Complex[Tensor, "B M M"]:
    """The covariance at the antennas that receivers expect of independent symbols."""
    problem, power = segment.problem, distortion.power[:, None, :]
    csi = problem.csi_variance if problem.csi_variance.dim() > 1 else problem.csi_variance[None]
    noise = problem.noise + ((radiated * distortion.power)[:, None, :] @ csi.mT)[:, 0]
    covariance = (arriving * power) @ arriving.mH
    level = noise + RIDGE * covariance.diagonal(dim1=1, dim2=2).real.mean(1, keepdim=True)
    return covariance + torch.diag_embed(level.expand(covariance.shape[:2])).to(covariance.dtype)


def mean_power(segment: Segment) -> Float[Tensor, "B K"]:
    """The mean power of each stream's symbols over a block's uses; its target may have entries on a part of them."""
    per_use = 1 if segment.problem.real else 2
    uses = torch.tensor([last - first for first, last in segment.block_ranges], dtype=torch.float64)
    share = segment.entry_share * segment.group.num_entries / (per_use * uses[:, None])
    return share[:, segment.slot.target_of] * segment.group.symbol_power


def by_kind(values: Float[Tensor, "Q C C"], kinds: Int[Tensor, "C C"]) -> Float[Tensor, "Q _kinds"]:
    """The sum of the values of the pairs of each kind."""
    total = values.new_zeros(len(values), int(kinds.max()) + 1)
    return total.index_add(1, kinds[kinds >= 0], values[:, kinds >= 0])
