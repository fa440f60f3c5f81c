"""The link without learning: random symbols through random channels, with claimed and measured errors of a design."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float, Int
from scipy.optimize import brentq
from scipy.stats import gamma
from torch import Tensor

from airpfed.air.correlation import Correlation
from airpfed.air.designs.error_bound import lower_bound
from airpfed.air.grid import GridPositions, ResourceGrid
from airpfed.air.problem import Transceiver, mse
from airpfed.air.schedule import SlotPlan, Uplink, slot_uses
from airpfed.air.segments import Segment, antennas_of, block_statistics, problem_of
from airpfed.air.slot_errors import SlotErrors
from airpfed.air.symbols import NormalizedGroup, entries_per_use, uses_of
from airpfed.air.transceivers import design_separately, round_and_rescale
from airpfed.air.transmit import transmit
from airpfed.core.rng import stream

SYMBOLS, LEAST_SYMBOLS = 32, 4
"""The OFDM symbols that stand for a block within which channels or phases change, and the fewest that can."""
GOLDEN = (5**0.5 - 1) / 2
"""The golden ratio's fraction, whose multiples are spread evenly over [0, 1)."""


@dataclass(frozen=True)
class Drops:
    """B channel draws of K devices at M antennas of S stations.

    h_est, h: estimated and true channels, linear amplitude. csi_variance: variance of the estimation errors, m = M or 1
    if equal at all antennas. gain: mean power gain per antenna of a station, linear.
    """

    h_est: Complex[Tensor, "B M K"]
    h: Complex[Tensor, "B M K"]
    csi_variance: Float[Tensor, "B m K"]
    gain: Float[Tensor, "B S K"]
    antenna_noise: Float[Tensor, "B M"] | None = None


def draw_segment(link: Uplink, slot: SlotPlan, drops: Drops, entries: int, rho: float) -> Segment:
    """Draw `entries` random real entries of a slot for each of B channels, each channel a drop of its own.

    Where the channel or the phase changes within a block, a drop has no more entries than a block holds.
    rho: correlation of the devices' symbols. Receivers assume it, unless `link.correlation` is another number. A limit
    on the power of every OFDM symbol costs what it costs in the median for Gaussian symbols (`median_largest_symbol`).
    Random: symbols, fixed by seed, slot and drop.
    """
    if link.is_varying:
        entries = min(entries, link.coherence_symbols * entries_per_use(link.packing))
    blocks, uses = len(drops.h_est), uses_of(entries, link.packing)
    symbols = [draw_symbols(slot, entries, rho, stream(link.seed, "link", slot.name, block)) for block in range(blocks)]
    ones = torch.ones(len(slot.weights), dtype=torch.float64)
    group = NormalizedGroup(
        entries=torch.cat(symbols, 1),
        weights=slot.weights,
        scale=ones,
        offset=torch.zeros_like(ones),
        symbol_power=torch.ones(len(slot.devices), dtype=torch.float64),
        num_entries=torch.full((len(slot.weights),), blocks * entries),
    )
    block_ranges = tuple((block * uses, (block + 1) * uses) for block in range(blocks))
    entry_share, symbol_power = block_statistics(group, slot.target_of, block_ranges, link.packing)
    assumed = rho if link.correlation is None else link.correlation
    largest = None
    if link.power_over == "symbol":
        ratio = median_largest_symbol(link.grid, slot_uses(link, slot))
        largest = torch.full((len(slot.devices),), ratio, dtype=torch.float64)
    return Segment(
        slot=slot,
        group=group,
        block_ranges=block_ranges,
        problem=problem_of(link, slot, slot.weights, drops.h_est, drops.csi_variance, largest),
        h=drops.h[:, antennas_of(link, slot)][:, :, slot.devices],
        entry_share=entry_share,
        symbol_power=symbol_power,
        assumed_correlation=Correlation(assumed, assumed),
        task_of=link.task_of[slot.devices],
        name=slot.name,
        positions=drop_positions(link, blocks, uses),
        antenna_noise=drops.antenna_noise,
    )


def drop_positions(link: Uplink, drops: int, uses: int) -> GridPositions:
    """The places of `uses` uses of each drop in a coherence block of its own.

    They are the block's first uses, or spread over it where the channel or the phase changes inside (`spread_uses`).
    Drops lie in different groups of subcarriers, by multiples of the golden ratio, which cover the band for any number
    of drops.
    """
    block, width = max(uses, link.coherence_symbols), link.grid.width
    use = spread_uses(uses, block, width) if link.is_varying else torch.arange(uses)
    symbol, subcarrier = use // width, use % width
    drop = torch.arange(drops)
    first = drop * (int(symbol.max()) + 1)
    group = ((drop + 0.5) * GOLDEN % 1 * link.grid.groups).long()
    return GridPositions(
        (first[:, None] + symbol).flatten(), (group[:, None] * width + subcarrier).flatten(), drop, first
    )


def spread_uses(uses: int, block: int, width: int) -> Int[Tensor, " uses"]:
    """The numbers of `uses` uses that stand for all `block` uses of a block, of which an OFDM symbol holds `width`.

    They lie in few OFDM symbols, because amplifiers are computed by whole symbols: in `SYMBOLS` of them, or as many as
    the uses fill, with at least 8 in each, in the middles of equal parts of the time and the band. In blocks of few
    symbols, and in nearly full ones, they are equally spaced.
    """
    use = torch.arange(uses)
    symbols = min(block // width, max(min(SYMBOLS, uses // 8), -(-uses // width)))
    if symbols >= LEAST_SYMBOLS:
        part = use * symbols // uses
        first, after = (-(-each * uses // symbols) for each in (part, part + 1))
        start = (2 * part + 1) * block // (2 * symbols) // width * width
        room = (block - start).clamp(max=width)
        if bool((after - first <= room).all()):
            return start + (2 * (use - first) + 1) * room // (2 * (after - first))
    return use * block // uses


def median_largest_symbol(grid: ResourceGrid, uses: int) -> float:
    """The median over Gaussian signals of the largest OFDM symbol's power over the mean, in a slot of so many uses.

    The power of a symbol with n uses is the mean of n exponential variables; the largest of all is at most x with the
    product of their probabilities. A short slot over many groups of subcarriers fills a part of many symbols.
    """
    counts, times = torch.unique(torch.bincount(grid.positions(0, uses)[0]), return_counts=True)
    filled, times = counts[counts > 0].numpy(), times[counts > 0].numpy()

    def excess(x: float) -> float:
        return float((times * gamma.logcdf(filled * x, filled)).sum()) + math.log(2)

    return float(brentq(excess, 1.0, 200.0)) if excess(1.0) < 0 else 1.0


def draw_symbols(slot: SlotPlan, entries: int, rho: float, rng: torch.Generator) -> Float[Tensor, "K d"]:
    """Draw unit-power symbols of a slot's streams with E[u_j u_k] = rho, 0 <= rho <= 1, and 0 between s and p.

    A symbol is sqrt(1 - rho) times a part of the stream and sqrt(rho) times a common part.
    """
    individual = torch.randn(len(slot.devices), entries, dtype=torch.float64, generator=rng)
    common = torch.randn(2, entries, dtype=torch.float64, generator=rng)
    is_shared = torch.tensor([task is None for task in slot.targets])
    kind = (slot.combining_matrix[is_shared] == 0).all(0).long()[slot.target_of]
    symbols: Tensor = (1 - rho) ** 0.5 * individual + rho**0.5 * common[kind]
    return symbols


def segment_bound(segment: Segment) -> Float[Tensor, " B"] | None:
    """The lower bound of any transceiver's error for i.i.d. symbols in each channel; None if no bound is known.

    The bound uses the problem's (assumed) noise.
    """
    return lower_bound(segment.problem) if len(segment.slot.weights) == 1 else None


def study(link: Uplink, segments: Sequence[Segment]) -> tuple[list[SlotErrors], list[Transceiver], float]:
    """Design all slots over B independent channel draws and transmit through them; each draw counts as one round.

    Returns errors, transceivers, and seconds of the design. Random: noise and scrambling, fixed by seed and slot, the
    same for all designs.
    """
    begin = time.perf_counter()
    transceivers = design_slots(link, segments)
    seconds = time.perf_counter() - begin
    errors = [measure(link, segment, tx) for segment, tx in zip(segments, transceivers, strict=True)]
    return errors, transceivers, seconds


def design_slots(link: Uplink, segments: Sequence[Segment]) -> list[Transceiver]:
    """Design all slots over B channel draws; each block is a draw and counts as one round."""
    transceivers = design_separately(link, segments)
    if link.refine is not None:
        uses = [float(segment.slot.vectors.shape[1]) for segment in segments]
        devices = [segment.slot.devices for segment in segments]
        powers = [torch.ones(len(streams), dtype=torch.float64) for streams in devices]
        transceivers = link.refine([segment.problem for segment in segments], devices, uses, powers, transceivers)
    return round_and_rescale(link, segments, transceivers)


def measure(link: Uplink, segment: Segment, transceiver: Transceiver) -> SlotErrors:
    """Transmit through a slot once; returns its errors per normalised entry, (B, U)."""
    errors = transmit(link, segment, transceiver, 0).errors
    blocks = len(segment.block_ranges)
    zero_estimate_error = (errors / errors.scale).zero_estimate_error.expand(blocks, -1)
    return replace(errors / (errors.scale / blocks), zero_estimate_error=zero_estimate_error)


def iid_error(segment: Segment, transceiver: Transceiver) -> Float[Tensor, "B U"]:
    """The error of a transceiver for i.i.d. symbols, as `segment_bound` bounds it."""
    return mse(segment.problem, transceiver) @ segment.slot.combining_matrix.square().T


def mean_db(values: Float[Tensor, " B"]) -> tuple[float, float]:
    """The mean of decibels over drops and its standard error, which is nan for one drop."""
    db = 10 * values.clamp_min(1e-300).log10()
    return float(db.mean()), float(db.std() / len(db) ** 0.5) if len(db) > 1 else float("nan")
