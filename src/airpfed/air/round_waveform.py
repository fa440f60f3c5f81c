"""The waveform of a round: what every antenna samples while the slots of `uplink` are on the air.

Uses lie on OFDM symbols and subcarriers as `ResourceGrid.positions` says. As in the block model, the channel of a
coherence block acts on each of the block's subcarriers. Noise is that of `transmit`: its part that the receivers
combine is theirs, and the remaining directions are drawn here, so that the noise of an antenna is white.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air.alternating_factors import alternating_phases
from airpfed.air.blockwise import BlockRanges
from airpfed.air.channels.fading import cyclic_prefix
from airpfed.air.distortion import arriving_symbols, change_factors
from airpfed.air.grid import ResourceGrid
from airpfed.air.grouping import round_grouping
from airpfed.air.mixing import GroupMixing
from airpfed.air.problem import Transceiver
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import SlotPlan, Updates, Uplink, schedule
from airpfed.air.segments import Segment, antennas_of, block_ranges_of, split_slots
from airpfed.air.superposition import antenna_noise_of, receiver_noise
from airpfed.air.symbols import Packing, pack_symbols, unpack_symbols, zero_tail
from airpfed.air.transceivers import design
from airpfed.air.transmit import scrambling_signs, superpose_at_antennas
from airpfed.air.uplink import assumed_correlation
from airpfed.air.waveform import demodulate, modulate, place_uses, take_uses
from airpfed.core.errors import UserError
from airpfed.core.memory import check_memory
from airpfed.core.rng import stream


@dataclass(frozen=True)
class SegmentReceivers:
    """What the T receivers of a segment apply to the samples of all M antennas.

    slot, columns: the slot, and the columns of its vectors that the segment carries. targets: of each sum, "s" or its
    task. first_use: of the round. block_ranges: uses of each coherence block, counted from `first_use`. signs:
    scrambling signs. scale, offset, num_entries, combining_matrix: those of the normaliser group and of the slot.
    mixing: of the entries, None without it.
    """

    slot: str
    columns: tuple[int, int]
    targets: tuple[str, ...]
    first_use: int
    block_ranges: BlockRanges
    receiver: Complex[Tensor, "B M T"]
    signs: Float[Tensor, "T uses"]
    scale: Float[Tensor, " T"]
    offset: Float[Tensor, " T"]
    num_entries: Int[Tensor, " T"]
    combining_matrix: Float[Tensor, "U T"]
    packing: Packing
    mixing: GroupMixing | None = None


@dataclass(frozen=True)
class RoundWaveform:
    """The signal of a round at the antennas.

    received: the devices' signals at each use of the round, without noise. noise: the noise at each use. pilots: the
    pilots at each use of `pilot_grid`, which come first: one use for each device in each coherence block, empty for a
    device that does not send in the block. noise_power: watts a sample. prefix: samples of the cyclic prefix. slots:
    first use, and last + 1, of each slot of the round.
    """

    seed: int
    t: int
    grid: ResourceGrid
    pilot_grid: ResourceGrid
    prefix: int
    noise_power: float
    received: Complex[Tensor, "M uses"]
    noise: Complex[Tensor, "M uses"]
    pilots: Complex[Tensor, "M pilot_uses"]
    slots: Mapping[str, tuple[int, int]]
    receivers: tuple[SegmentReceivers, ...]

    @property
    def pilot_symbols(self) -> int:
        """The OFDM symbols of pilots, before those of the slots."""
        return self.pilot_grid.num_symbols(self.pilots.shape[1])


def round_waveform(link: Uplink, t: int, updates: Updates, statistics: Float[Tensor, "G 7"]) -> RoundWaveform:
    """The waveform of a round of `uplink`, with the same arguments.

    A pilot has the device's full power. Its noise is drawn here: the estimates of `uplink` are not made of these
    pilots. Random: as in `uplink`, and the noise that no receiver combines, from the stream (seed, "waveform", t,
    ...). Raises UserError if nothing is superposed in the round.
    """
    if link.alternating:
        phases = alternating_phases(link)
        phase = phases[(t - 1) % len(phases)]
        return round_waveform(phase.link, t, phase.updates(updates), statistics[phase.statistics])
    slots = schedule(link, updates, round_grouping(link, t, updates.present))
    for key, unmodelled in (
        ("interferers", link.interference is not None),
        ("adc_bits", link.impairments.adc_noise > 0),
        ("noise_alpha", link.noise_alpha < 2),
        ("receive_clipping", link.receive_clipping < inf),
    ):
        if unmodelled:
            raise UserError(f"radio.{key}: a waveform has no model of it; leave it out")
    if link.design is None or not slots:
        raise UserError(f"round {t}: no gradients are superposed, so that there is no waveform")
    segments = split_slots(link, slots, t, [assumed_correlation(link, row) for row in statistics])
    transceivers = design(link, [segments])[0]
    uses = sum(segment.block_ranges[-1][1] for segment in segments)
    blocks, antennas = -(-uses // link.coherence_symbols), len(link.network.gain) * link.network.antennas
    check_memory(f"round {t}: the waveform at {antennas} antennas", 100.0 * antennas * uses, "fewer antennas")
    h = link.channels(t, blocks)[1]
    received = torch.zeros(antennas, uses, dtype=torch.complex128)
    noise, senders = torch.zeros_like(received), torch.zeros(blocks, len(link.samples))
    first_use, receivers, slot_uses = 0, list[SegmentReceivers](), dict[str, tuple[int, int]]()
    for segment, transceiver in zip(segments, transceivers, strict=True):
        count = segment.block_ranges[-1][1]
        of_blocks, _ = block_ranges_of(first_use, count, link.coherence_symbols)
        uses_of_segment = slice(first_use, first_use + count)
        receiver = at_all_antennas(link, segment.slot, transceiver, antennas)
        signs = scrambling_signs(link, len(segment.slot.weights), count, t, segment.name)
        received[:, uses_of_segment] = antenna_signals(link, segment, transceiver, h[of_blocks.start :], signs, t)
        noise[:, uses_of_segment] = antenna_noise(link, segment, transceiver, receiver, t)
        senders[of_blocks.start : of_blocks.stop, segment.slot.devices] = 1.0
        receivers.append(receivers_of(link, segment, receiver, signs, first_use))
        slot_uses[segment.slot.name] = (slot_uses.get(segment.slot.name, (first_use, 0))[0], first_use + count)
        first_use += count
    pilots = (h * link.power_limit.sqrt() * senders[:, None, :]).movedim(1, 0).flatten(1)
    return RoundWaveform(
        seed=link.seed,
        t=t,
        grid=link.grid,
        pilot_grid=ResourceGrid(len(link.samples), link.subcarrier_groups, link.subcarriers),
        prefix=cyclic_prefix(link.subcarriers),
        noise_power=link.noise,
        received=received,
        noise=noise,
        pilots=pilots,
        slots=slot_uses,
        receivers=tuple(receivers),
    )


def at_all_antennas(
    link: Uplink, slot: SlotPlan, transceiver: Transceiver, antennas: int
) -> Complex[Tensor, "B {antennas} T"]:
    """The receiver vectors of a slot with zeros at the antennas that it does not use."""
    part = transceiver.receiver
    full = torch.zeros(len(part), antennas, part.shape[2], dtype=part.dtype)
    full[:, antennas_of(link, slot)] = part
    return full


def antenna_signals(
    link: Uplink,
    segment: Segment,
    transceiver: Transceiver,
    h: Complex[Tensor, "B M K"],
    signs: Float[Tensor, "T uses"],
    t: int,
) -> Complex[Tensor, "M uses"]:
    """The sum of a segment's streams at the antennas, sum_k h_k b_k s_k x_k. h: of the segment's blocks and later."""
    slot, shape = segment.slot, segment.group.entries.shape
    received = torch.zeros(h.shape[1], segment.block_ranges[-1][1], dtype=torch.complex128)
    for rows in row_chunks(*shape):
        factors = transceiver.transmit_factors[:, rows]
        x = pack_symbols(segment.group.entries[rows], link.packing)
        _, arriving = arriving_symbols(link, segment, transceiver, rows, x, t)
        x = arriving * signs[slot.target_of[rows]]
        received += superpose_at_antennas(h[: len(factors), :, slot.devices[rows]], factors, x, segment.block_ranges)
    return received if link.change is None else received * change_factors(link, segment)


def antenna_noise(
    link: Uplink, segment: Segment, transceiver: Transceiver, receiver: Complex[Tensor, "B M T"], t: int
) -> Complex[Tensor, "M uses"]:
    """White noise z at the antennas whose combinations m_i^H z are the noise that `transmit` draws."""
    rng, other = stream(link.seed, "noise", t, segment.name), stream(link.seed, "waveform", t, segment.name)
    parts, power = [], torch.full((receiver.shape[1],), link.noise, dtype=torch.float64)
    for block, (a, b) in enumerate(segment.block_ranges):
        combined = receiver_noise(transceiver, block, link.noise, b - a, rng)
        parts.append(antenna_noise_of(receiver[block], combined, power, other))
    return torch.cat(parts, 1)


def receivers_of(
    link: Uplink, segment: Segment, receiver: Complex[Tensor, "B M T"], signs: Float[Tensor, "T uses"], first_use: int
) -> SegmentReceivers:
    """The receivers of a segment. receiver: their vectors at all antennas. first_use: of the round."""
    slot, group = segment.slot, segment.group
    first = int(segment.name.rpartition("/")[2])
    return SegmentReceivers(
        slot=slot.name,
        columns=(first, first + group.entries.shape[1]),
        targets=tuple("s" if task is None else link.task_names[task] for task in slot.targets),
        first_use=first_use,
        block_ranges=segment.block_ranges,
        receiver=receiver,
        signs=signs,
        scale=group.scale,
        offset=group.offset,
        num_entries=group.num_entries,
        combining_matrix=slot.combining_matrix,
        packing=link.packing,
        mixing=segment.mixing,
    )


def antenna_samples(waveform: RoundWaveform, antenna: int) -> Complex[Tensor, " samples"]:
    """The samples of an antenna at the bandwidth: pilots, then slots, each OFDM symbol after its cyclic prefix.

    sqrt(watts): the mean of |.|^2 is the received power. Random: noise where no receiver listens.
    """
    one, grid = slice(antenna, antenna + 1), waveform.grid
    symbols = [
        place_uses(waveform.pilots[one], waveform.pilot_grid),
        place_uses(waveform.received[one], grid),
    ]
    signal = modulate(torch.cat(symbols, 1), waveform.prefix)[0]
    rng = stream(waveform.seed, "waveform", waveform.t, antenna)
    count, length = sum(part.shape[1] for part in symbols), grid.subcarriers + waveform.prefix
    white = sqrt(waveform.noise_power) * torch.randn(count, length, dtype=torch.complex128, generator=rng)
    symbol, subcarrier = grid.positions(0, waveform.noise.shape[1])
    white[waveform.pilot_symbols + symbol, waveform.prefix + subcarrier] = waveform.noise[antenna]
    # The last `subcarriers` columns are the noise of the subcarriers, and the first ones that of the prefix's samples.
    body = modulate(white[None, :, waveform.prefix :], 0).reshape(count, -1)
    return signal + torch.cat([white[:, : waveform.prefix], body], 1).flatten()


def decode_round(
    samples: Complex[Tensor, "M samples"], grid: ResourceGrid, prefix: int, pilot_symbols: int,
    receivers: Sequence[SegmentReceivers],
) -> dict[str, Float[Tensor, " _d"]]:  # fmt: skip
    """Demodulate the antennas' samples of a round, and compute its sums: "s" or task -> sum.

    The estimates of a two-hop network are added up as they are, without the rounding of its backhaul.
    """
    symbols = demodulate(samples, prefix, grid.subcarriers)[:, pilot_symbols:]
    parts: dict[str, list[Tensor]] = {}
    for segment in receivers:
        received = take_uses(symbols, grid, segment.first_use, segment.block_ranges[-1][1])
        blocks = zip(segment.receiver, segment.block_ranges, strict=True)
        combined = segment.signs * torch.cat([m.mH @ received[:, a:b] for m, (a, b) in blocks], 1)
        entries = unpack_symbols(combined, segment.packing, segment.columns[1] - segment.columns[0])
        estimate = zero_tail(segment.scale[:, None] * entries, segment.num_entries)
        if segment.mixing is not None:
            estimate = segment.mixing.undo(estimate, segment.num_entries)
        estimate = zero_tail(estimate + segment.offset[:, None], segment.num_entries)
        for target, total in zip(segment.targets, segment.combining_matrix @ estimate, strict=True):
            parts.setdefault(target, []).append(total)
    return {target: torch.cat(columns) for target, columns in parts.items()}
