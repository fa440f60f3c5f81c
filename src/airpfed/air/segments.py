"""Segments of a round: one normaliser group of one slot over its coherence blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from airpfed.air.blockwise import BlockRanges
from airpfed.air.correlation import (
    CorrelatedPairs,
    Correlation,
    CorrelationOperator,
    correlated_pairs,
)
from airpfed.air.grid import GridPositions
from airpfed.air.impairments import adc_share
from airpfed.air.mixing import GroupMixing
from airpfed.air.problem import TransceiverProblem
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import (
    SlotPlan,
    Uplink,
    device_of_stream,
    normalizer_groups,
    slot_uses,
    statistics_rows,
)
from airpfed.air.symbols import (
    Entries,
    NormalizedGroup,
    Packing,
    common_sigma,
    entries_per_use,
    normalise_group,
    pack_symbols,
    uses_of,
)
from airpfed.core.rng import stream


@dataclass(frozen=True)
class Segment:
    """One normaliser group of one slot over B coherence blocks.

    problem: the design problem, with channel estimates. h: the true channels; `problem.h` holds their
    estimates. entry_share: share of each target's entries in
    each block. symbol_power: mean power of each stream's symbols over the entries of a target in a block.
    assumed_correlation: the correlation that receivers assume. task_of: task of each stream. name: the
    name of the segment's random generators. positions: of its uses on the grid. antenna_noise: true
    noise power at each antenna, where it is not the same for all.
    """

    slot: SlotPlan
    group: NormalizedGroup
    block_ranges: BlockRanges
    problem: TransceiverProblem
    h: Complex[Tensor, "B M K"]
    entry_share: Float[Tensor, "B T"]
    symbol_power: Float[Tensor, "B T K"]
    assumed_correlation: Correlation
    task_of: Int[Tensor, " K"]
    name: str
    positions: GridPositions
    antenna_noise: Float[Tensor, "B M"] | None = None

    @property
    def mixing(self) -> GroupMixing | None:
        """The maps that have mixed the entries, to be undone after the backhaul; None without mixing."""
        return self.group.entries.mixing if isinstance(self.group.entries, Entries) else None

    @cached_property
    def pairs(self) -> CorrelatedPairs:
        """The pairs of streams that correlate; the targets of a slot are scrambled against one another."""
        return correlated_pairs(self.task_of, self.slot.target_of, len(self.slot.weights) > 1)

    @cached_property
    def symbol_fractions(self) -> tuple[Float[Tensor, "S B"], Float[Tensor, "B S"]]:
        """Of each OFDM symbol's uses in the segment, the fraction in each block; of each block's, on each symbol."""
        index = self.positions.symbol_index
        count = torch.zeros(len(self.block_ranges), int(index.max()) + 1, dtype=torch.float64)
        for block, (a, b) in enumerate(self.block_ranges):
            count[block] = torch.bincount(index[a:b], minlength=count.shape[1])
        return (count / count.sum(0).clamp(min=1)).T, count / count.sum(1, keepdim=True).clamp(min=1)

    @property
    def R(self) -> CorrelationOperator:  # noqa: N802
        """The correlation of the symbols that receivers assume."""
        return CorrelationOperator(self.assumed_correlation, self.pairs)


def split_slots(link: Uplink, slots: Sequence[SlotPlan], t: int, assumed: Sequence[Correlation]) -> list[Segment]:
    """Split the slots of round t into segments, with the channels of their coherence blocks.

    assumed: the assumed correlation for every row of the statistics. A link that superposes nothing has no segments.
    Random: channels and channel estimates.
    """
    if link.design is None or not slots:
        return []
    vectors, lengths = [slot.vectors for slot in slots], [slot.lengths for slot in slots]
    sigma = common_sigma(vectors, lengths) if link.normalizer == "common" else None
    channels = link.received_channels(t, -(-sum(slot_uses(link, slot) for slot in slots) // link.coherence_symbols))
    segments, first_use = list[Segment](), 0
    for slot in slots:
        for row, columns in zip(statistics_rows(link, slot), normalizer_groups(link, slot), strict=True):
            uses = uses_of(columns[1] - columns[0], link.packing)
            blocks, block_ranges = block_ranges_of(first_use, uses, link.coherence_symbols)
            group = normalise_group(slot.vectors, slot.lengths, slot.weights, sigma, columns)
            name = f"{slot.name}/{columns[0]}"
            group = mix_group(link, slot, group, columns[0], t)
            positions = link.grid.grid_positions(first_use, uses, blocks)
            largest, inside = largest_symbols(link, slot, group, positions), slice(blocks.start, blocks.stop)
            entry_share, symbol_power = block_statistics(group, slot.target_of, block_ranges, link.packing)
            segments.append(
                Segment(
                    slot=slot,
                    group=group,
                    block_ranges=block_ranges,
                    problem=problem_of(
                        link,
                        slot,
                        group.weights,
                        channels.h_est[inside],
                        of_blocks(channels.csi_variance, inside),
                        largest,
                    ),
                    h=channels.h[inside, antennas_of(link, slot)][..., slot.devices],
                    entry_share=entry_share,
                    symbol_power=symbol_power,
                    assumed_correlation=assumed[row],
                    task_of=link.task_of[slot.devices],
                    name=name,
                    positions=positions,
                    antenna_noise=None if channels.antenna_noise is None else channels.antenna_noise[inside],
                )
            )
            first_use += uses
    return segments


def of_blocks(variance: Float[Tensor, "... K"], blocks: slice) -> Float[Tensor, "... K"]:
    """The variances of some blocks; all of them if blocks do not differ."""
    return variance[blocks] if variance.dim() == 3 else variance


def mix_group(link: Uplink, slot: SlotPlan, group: NormalizedGroup, first_column: int, t: int) -> NormalizedGroup:
    """Mix the entries of a group as `link.mixing` says. Random: stream (seed, "mixing", t, slot, first column)."""
    assert isinstance(group.entries, Entries)
    rng = mixing_stream(link.seed, t, slot.name, first_column)
    mixing = GroupMixing.draw(group.entries.lengths, link.mixing, rng)
    return replace(group, entries=replace(group.entries, mixing=mixing))


def mixing_stream(seed: int, t: int, slot: str, first_column: int) -> torch.Generator:
    """The random stream of a group's mixing, which devices draw as the servers do."""
    return stream(seed, "mixing", t, slot, first_column)


def largest_symbols(
    link: Uplink, slot: SlotPlan, group: NormalizedGroup, positions: GridPositions
) -> Float[Tensor, " K"] | None:
    """The power of each stream's largest OFDM symbol, at least 1; None if the power limit is one of a slot's mean.

    The power of a symbol is the mean over the uses that the group has on it. The streams of one device are added in
    amplitude: the largest power of any sum of them with factors of total power 1 is the largest eigenvalue of their
    Gram matrix on the symbol. This is data of the device, which reports it.
    """
    if link.power_over == "slot":
        return None
    index = positions.symbol_index
    count = torch.bincount(index).clamp(min=1).double()
    device = device_of_stream(slot.devices)
    largest, entries = torch.ones(len(slot.devices), dtype=torch.float64), group.entries
    if device is None:
        for rows in row_chunks(*entries.shape):
            power = pack_symbols(entries[rows], link.packing).abs().square()
            by_symbol = power.new_zeros(len(power), len(count)).index_add_(1, index, power) / count
            largest[rows] = by_symbol.amax(1).clamp(min=1.0)
        return largest
    for number in range(int(device.max()) + 1):
        streams = (device == number).nonzero().flatten()
        x = torch.cat([pack_symbols(entries[slice(k, k + 1)], link.packing) for k in streams.tolist()])
        products = (x[:, None] * x[None].conj()).flatten(0, 1)
        gram = products.new_zeros(len(products), len(count)).index_add_(1, index, products) / count
        gram = gram.reshape(len(streams), len(streams), -1).permute(2, 0, 1)
        largest[streams] = torch.linalg.eigvalsh(gram)[:, -1].max().clamp(min=1.0)
    return largest


def problem_of(
    link: Uplink,
    slot: SlotPlan,
    weights: Float[Tensor, "T K"],
    h_est: Tensor,
    csi_variance: Tensor,
    largest_symbol: Tensor | None = None,
) -> TransceiverProblem:
    """The design problem of a slot's streams.

    h_est, csi_variance: channel estimates of all devices at all antennas, and the variances of their errors. Real
    packing drops the imaginary half of noise and CSI error. largest_symbol: of each stream, by which its power limit is
    divided. The noise of the receivers' ADC (AQNM) is rho / (1 - rho) of the power at each antenna: a part of the noise
    and, stream by stream, a part of the variance of the CSI error.
    """
    half = 0.5 if link.packing == "real" else 1.0
    devices, antennas = slot.devices, antennas_of(link, slot)
    uniform = csi_variance.shape[-2] == 1
    h = h_est[..., antennas, :][..., devices]
    variance = (csi_variance if uniform else csi_variance[..., antennas, :])[..., devices]
    limit, noise = link.power_limit[devices], link.assumed_noise
    if adc := adc_share(link.impairments):
        variance, noise = variance + adc * (h.abs().square() + variance), noise * (1 + adc)
    return TransceiverProblem(
        h=h,
        weights=weights,
        target_weight=slot.target_weight,
        power_limit=limit if largest_symbol is None else limit / largest_symbol,
        noise=half * noise,
        csi_variance=half * variance,
        device_of_stream=device_of_stream(devices),
        real=link.packing == "real",
        antenna_mask=antenna_mask_of(link, slot),
    )


def antennas_of(link: Uplink, slot: SlotPlan) -> slice:
    """The antennas of a slot's receivers: those of their station, or all antennas if the stations differ."""
    stations, per_station = set(slot.stations), link.network.antennas
    if len(stations) > 1 or stations == {None}:
        return slice(None)
    (station,) = stations
    assert station is not None
    return slice(station * per_station, (station + 1) * per_station)


def antenna_mask_of(link: Uplink, slot: SlotPlan) -> Bool[Tensor, "T M"] | None:
    """The antennas of each receiver among all antennas; None if all receivers have the same."""
    if len(set(slot.stations)) == 1:
        return None
    station_of = torch.arange(len(link.network.gain)).repeat_interleave(link.network.antennas)
    everywhere = torch.ones_like(station_of, dtype=torch.bool)
    return torch.stack([everywhere if station is None else station_of == station for station in slot.stations])


def block_statistics(
    group: NormalizedGroup, target_of: Int[Tensor, " K"], block_ranges: BlockRanges, packing: Packing
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T K"]]:
    """`Segment.entry_share` and `Segment.symbol_power`.

    A target with a shorter vector has entries in the first blocks only, and its streams are silent in the tail.
    """
    per_use = entries_per_use(packing)
    ends = torch.tensor([0, *(b for _, b in block_ranges)])
    common = torch.minimum(group.num_entries[:, None], group.num_entries)
    overlap = torch.minimum(common, per_use * ends[:, None, None]).diff(dim=0).double()
    entries = overlap.diagonal(dim1=1, dim2=2)
    share = entries / entries.sum(0).clamp(min=1)
    return share, (overlap / entries.clamp(min=1)[:, :, None])[:, :, target_of] * group.symbol_power


def block_ranges_of(first_use: int, uses: int, coherence_symbols: int) -> tuple[range, BlockRanges]:
    """The coherence blocks of `uses` channel uses of a round from `first_use` on.

    Returns the numbers of the blocks in the round, and for each block the range [first, last) of these uses in it,
    counted from `first_use`.
    """
    blocks = range(first_use // coherence_symbols, (first_use + uses - 1) // coherence_symbols + 1)
    starts = [block * coherence_symbols - first_use for block in blocks]
    return blocks, tuple((max(start, 0), min(start + coherence_symbols, uses)) for start in starts)
