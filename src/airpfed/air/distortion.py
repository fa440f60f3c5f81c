"""What a segment's symbols meet on their way, amplifiers, carrier offset and timing, and the statistics.

`arriving_symbols` applies them, and `distortion_of` has their statistics for claims. An amplifier acts on the time
samples of whole OFDM symbols, an offset on each use of a block; the statistics are for Gaussian signals, as full
mixing makes them.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air import resources
from airpfed.air.blockwise import by_block, over_uses
from airpfed.air.channels.fading import frequencies
from airpfed.air.impairments import (
    Distortion,
    adc_share,
    amplifier_statistics,
    amplify,
    distortion_orders,
    steady_distortion,
)
from airpfed.air.problem import Transceiver
from airpfed.air.schedule import Uplink
from airpfed.air.segments import Segment
from airpfed.core.rng import stream

EQUALISING_STEPS, EQUALISED = 50, 1e-9
"""The iteration of `equalise_amplifiers`: its largest number of steps, and the change of a factor at which it ends."""

SYMBOLS_AT_ONCE = 64
"""The OFDM symbols that are amplified at once, which fit into a processor's cache."""

BLOCKS_AT_ONCE = 256
"""The blocks of an OFDM symbol that `coherent_share` transforms at once."""

BLOCK_MEAN = partial(torch.mean, dim=-1)
"""For `by_block`: the mean over a block."""


def distortion_of(link: Uplink, segment: Segment, transceiver: Transceiver) -> Distortion:
    """The statistics of the factors by which a segment's streams arrive in each block."""
    impairments = link.impairments
    distortion = replace(steady_distortion(impairments), adc=adc_share(impairments))
    if link.is_varying:
        first, power, second, spread = rotation_statistics(link, segment)
        distortion = replace(
            distortion,
            mean=distortion.mean * first,
            power=distortion.power * power,
            pseudo=distortion.pseudo * second,
            spread=spread,
        )
    if impairments.clipping is not None:
        gain, power, by_order = segment_amplifiers(link, segment, transceiver)
        shares = coherent_share(link, segment)[:, None, None] ** (0.5 * torch.arange(1, by_order.shape[-1] + 1))
        distortion = replace(
            distortion,
            mean=distortion.mean * gain,
            power=distortion.power * power,
            pseudo=distortion.pseudo * power,
            by_order=distortion.mean[..., None] * by_order * shares,
        )
    return distortion


def arriving_symbols(
    link: Uplink, segment: Segment, transceiver: Transceiver, rows: slice, x: Complex[Tensor, "k uses"], t: int
) -> tuple[Complex[Tensor, "k uses"], Complex[Tensor, "k uses"]]:
    """The symbols x of some streams after their amplifiers, and after the rotation of carrier offset and timing.

    A factor that all streams share, the channels' change within a block, is not part of them (`change_factors`).
    Random: see `amplify_segment` and `rotation_factors`.
    """
    impairments = link.impairments
    sent = x if impairments.clipping is None else amplify_segment(link, segment, transceiver, rows, x, t)
    return sent, sent * rotation_factors(link, segment, t, rows) if impairments.rotates else sent


# Carrier offset and timing: a phase that changes from use to use


def offset_angles(link: Uplink, segment: Segment) -> tuple[Float[Tensor, " uses"], Float[Tensor, " uses"]]:
    """The angle of each use per hertz of carrier offset and per sample of timing error, radians.

    An offset turns the phase from the start of the coherence block, where the pilots are, to the middle of the use's
    OFDM symbol. Within a symbol it also makes subcarriers interfere; that is less by the factor (2 n)^2 than the phase
    at the end of a block of n symbols, and left out.
    """
    positions = segment.positions
    start = over_uses(positions.first_symbol, segment.block_ranges)
    seconds = (positions.symbol - start + 0.5) * (link.subcarriers * resources.use_seconds(link.bandwidth_hz))
    frequency = frequencies(link.subcarriers, link.subcarriers)[positions.subcarrier]
    return 2 * math.pi * seconds, -2 * math.pi * frequency


def change_factors(link: Uplink, segment: Segment) -> Float[Tensor, " uses"]:
    """The factor r(u) / E r(u) on all gains at each use, by the channels' change within a block; 1 if there is none."""
    positions = segment.positions
    if link.change is None:
        return torch.ones(len(positions.symbol), dtype=torch.float64)
    symbol = positions.symbol - over_uses(positions.first_symbol, segment.block_ranges)
    span = int(symbol.max()) + 1 if len(symbol) else 0
    return link.change.correlation(symbol, positions.subcarrier, span) / link.change.mean


def rotation_moments(
    link: Uplink, segment: Segment
) -> tuple[Float[Tensor, " uses"], Float[Tensor, " uses"], Float[Tensor, " uses"]]:
    """E xi, E|xi|^2 and E xi^2 of each use for xi = c e^{j phi}, c of `change_factors` and phi Gaussian.

    They are c exp(-var phi / 2), c^2 and c^2 exp(-2 var phi).
    """
    by_hertz, by_sample = offset_angles(link, segment)
    variance = (by_hertz * link.impairments.carrier_offset_hz).square()
    variance = variance + (by_sample * link.impairments.timing_drift).square()
    change = change_factors(link, segment)
    return change * torch.exp(-variance / 2), change.square(), change.square() * torch.exp(-2 * variance)


def rotation_statistics(
    link: Uplink, segment: Segment
) -> tuple[Float[Tensor, "B 1"], Float[Tensor, "B 1"], Float[Tensor, "B 1"], Float[Tensor, "B 1"]]:
    """The means of `rotation_moments` over each block's uses, and the relative variance of E xi."""
    first, power, second = rotation_moments(link, segment)
    means = by_block(BLOCK_MEAN, torch.stack([first, first.square(), second, power]), segment.block_ranges)
    mean, square, pseudo, power = means.T[:, :, None]
    return mean, power, pseudo, (square / mean.square().clamp_min(1e-300) - 1).clamp_min(0.0)


def relative_rotation(link: Uplink, segment: Segment) -> Float[Tensor, " uses"]:
    """E xi of each use over its mean in the block, which the assumed gains contain."""
    first, _, _ = rotation_moments(link, segment)
    means = by_block(BLOCK_MEAN, first, segment.block_ranges)
    return first / over_uses(means, segment.block_ranges).clamp_min(1e-300)


def rotation_factors(link: Uplink, segment: Segment, t: int, rows: slice) -> Complex[Tensor, "k uses"]:
    """Draw the factor e^{j phi} of some streams at each use.

    A device's offsets are new in every coherence time. Random: streams (seed, names, "carrier offset", t, time) and
    (seed, names, "timing", t, time) with the names of the drop.
    """
    devices, impairments = segment.slot.devices[rows], link.impairments
    by_hertz, by_sample = offset_angles(link, segment)
    angle = torch.zeros(len(devices), len(by_hertz), dtype=torch.float64)
    for time, (a, b) in zip(segment.positions.time.tolist(), segment.block_ranges, strict=True):
        for name, deviation, by_unit in (
            ("carrier offset", impairments.carrier_offset_hz, by_hertz),
            ("timing", impairments.timing_drift, by_sample),
        ):
            if deviation:
                rng = stream(link.seed, *link.network.names, name, t, time)
                normal = torch.randn(len(link.samples), dtype=torch.float64, generator=rng)
                angle[:, a:b] += deviation * normal[devices, None] * by_unit[a:b]
    return torch.polar(torch.ones_like(angle), angle)


# Amplifiers: whole OFDM symbols in time


def symbol_powers(segment: Segment, transceiver: Transceiver) -> Float[Tensor, "S K"]:
    """The mean power of each stream in each OFDM symbol, before its amplifier."""
    per_symbol, _ = segment.symbol_fractions
    return per_symbol @ (transceiver.transmit_factors.abs().square() * segment.group.symbol_power)


def saturation_powers(link: Uplink, segment: Segment) -> Float[Tensor, " K"]:
    """The power at which each stream's amplifier saturates, watts: fixed, a multiple of the device's power limit."""
    assert link.impairments.clipping is not None
    return link.impairments.clipping * link.power_limit[segment.slot.devices]


def amplifier_gains(link: Uplink, segment: Segment, transceiver: Transceiver) -> Float[Tensor, "B K"]:
    """The amplifiers' mean gain in each block."""
    level = saturation_levels(link, segment, symbol_powers(segment, transceiver))
    gain, _ = amplifier_statistics(level, link.impairments.smoothness)
    return segment.symbol_fractions[1] @ gain


def saturation_levels(link: Uplink, segment: Segment, power: Float[Tensor, "S K"]) -> Float[Tensor, "S K"]:
    """The saturation power of each stream's amplifier over its mean power in each OFDM symbol (`symbol_powers`)."""
    return (saturation_powers(link, segment) / power.clamp_min(1e-300)).clamp(max=1e6)


def equalise_amplifiers(link: Uplink, segment: Segment, transceiver: Transceiver) -> Transceiver:
    """Choose drives and receivers under which the streams' mean gains, amplifiers included, are those of the design.

    An amplifier near saturation has a smaller gain. With s the smallest one in a block, every other device backs off by
    a factor f_k, so that f_k gain_k(f_k b_k) = s, and the receivers divide by s. f_k = s / gain_k(f_k b_k) is iterated
    from f_k = 1. In deep saturation, where more drive gives no more signal, the last step leaves gains off by up to
    2 %.
    """
    if link.impairments.clipping is None:
        return transceiver
    factors = transceiver.transmit_factors
    lowest = torch.where(factors != 0, amplifier_gains(link, segment, transceiver), 1.0).amin(1, keepdim=True)
    drive = torch.ones_like(factors.real)
    for _ in range(EQUALISING_STEPS):
        driven = replace(transceiver, transmit_factors=drive * factors)
        before, drive = drive, lowest / amplifier_gains(link, segment, driven)
        if float((before - drive).abs().max()) < EQUALISED:
            break
    return replace(
        transceiver, receiver=transceiver.receiver / lowest[:, :, None], transmit_factors=drive.clamp(max=1.0) * factors
    )


def segment_amplifiers(
    link: Uplink, segment: Segment, transceiver: Transceiver
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"], Float[Tensor, "B K orders"]]:
    """The amplifiers' mean gain in each block, the power that is left, and the amplitude of their distortion by order.

    Both are relative to what was sent. The gain is that of the OFDM symbol. Its distortion falls on the
    subcarriers as the spectrum of the signal, which differs between the blocks of a symbol, spreads by the orders of
    the amplifier (`distortion_orders`); over the orders it is shared out as over the whole symbol.
    """
    _, per_block = segment.symbol_fractions
    power, smoothness = symbol_powers(segment, transceiver), link.impairments.smoothness
    level = saturation_levels(link, segment, power)
    gain, _ = amplifier_statistics(level, smoothness)
    orders = distortion_orders(level, smoothness)
    powers = orders.square()
    sent = transceiver.transmit_factors.abs().square() * segment.group.symbol_power
    positions, index = segment.positions, segment.positions.symbol_index
    by_use = over_uses(sent, segment.block_ranges)
    distortion = torch.zeros_like(sent)
    for k in range(sent.shape[1]):
        if not bool(sent[:, k].any()):
            continue
        spectrum = power[:, k, None].repeat(1, link.subcarriers)
        spectrum[index, positions.subcarrier] = by_use[k]
        correlation = torch.fft.ihfft(spectrum / spectrum.mean(1, keepdim=True).clamp_min(1e-300))
        square = correlation.abs().square()
        factor = torch.zeros_like(square)
        for n in reversed(range(orders.shape[-1])):
            factor = square * (powers[:, k, n, None] + factor)
        spread = torch.fft.hfft(correlation * factor, link.subcarriers)
        of_use = (power[:, k, None] * spread)[index, positions.subcarrier]
        distortion[:, k] = by_block(BLOCK_MEAN, of_use, segment.block_ranges)
    relative = torch.where(sent > 0, distortion / torch.where(sent > 0, sent, 1.0), 0.0)
    share = torch.einsum("bs,skn->bkn", per_block, powers / powers.sum(-1, keepdim=True).clamp_min(1e-300))
    sign = torch.einsum("bs,skn->bkn", per_block, orders).sign()
    return per_block @ gain, per_block @ gain.square() + relative, sign * (relative[..., None] * share).sqrt()


def coherent_share(link: Uplink, segment: Segment) -> Float[Tensor, " B"]:
    """The share of the first-order distortion on a block's uses that is coherent between devices.

    It is 1 where the block fills its OFDM symbols, and less where other blocks share them, at whose transmit factors
    the devices' phases are unrelated to this block's, or Gaussian filling. With c_g the inverse transform of block g's
    subcarriers, 1 on each, it is the mean over the block's uses of the transform of c_g (|c_g|^2 + 2 sum over the other
    blocks of |c|^2). Order n has about this share to the power n.
    """
    positions, index = segment.positions, segment.positions.symbol_index
    counts = torch.tensor([last - first for first, last in segment.block_ranges])
    block = torch.arange(len(counts), dtype=torch.int32).repeat_interleave(counts)
    most = torch.iinfo(torch.int32).max
    grid = torch.full((int(index.max()) + 1, link.subcarriers), most, dtype=torch.int32)
    grid[index, positions.subcarrier] = block
    free = grid == most
    grid = torch.where(free, -1, grid - grid.amin(1, keepdim=True))  # alike in symbols that are divided alike
    layouts, layout = torch.unique(grid, dim=0, return_inverse=True)
    share = torch.stack([_coherent_in_symbol(one) for one in layouts])
    return by_block(BLOCK_MEAN, share[layout[index], positions.subcarrier], segment.block_ranges)


def _coherent_in_symbol(block: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The share that is coherent on each subcarrier of a symbol. block: number of its block, -1 if it is filled."""
    numbers, group = torch.unique(block, return_inverse=True)
    groups = torch.split(torch.arange(len(numbers))[numbers >= 0], BLOCKS_AT_ONCE)

    def inverse(members: Int[Tensor, " g"]) -> Complex[Tensor, "g _half"]:
        transformed: Tensor = torch.fft.ihfft((group == members[:, None]).double())
        return transformed

    everything = sum(inverse(members).abs().square().sum(0) for members in groups)
    share = torch.zeros(len(block), dtype=torch.float64)
    for members in groups:
        c = inverse(members)
        caused = torch.fft.hfft(c * (2 * everything - c.abs().square()), len(block))
        share += torch.where(group == members[:, None], caused, 0.0).sum(0)
    return share


def amplify_segment(
    link: Uplink, segment: Segment, transceiver: Transceiver, rows: slice, x: Complex[Tensor, "k uses"], t: int
) -> Complex[Tensor, "k uses"]:
    """Send the signals b_k x_k of some streams through their amplifiers; returns them divided by b_k.

    The division undoes b_k, because a stream's gain m_i^H h_k b_k already contains it. What a segment leaves free of an
    OFDM symbol is filled with Gaussian symbols of its own power, for other segments of the device. Random: the filling,
    stream (seed, "amplifier", t, segment, row).
    """
    positions, factors = segment.positions, transceiver.transmit_factors[:, rows]
    factor = over_uses(factors, segment.block_ranges)
    index = positions.symbol_index
    power = symbol_powers(segment, transceiver)[:, rows].T
    dtype = torch.float64 if link.packing == "real" else torch.complex128
    first, last, _ = rows.indices(transceiver.transmit_factors.shape[1])
    saturation = saturation_powers(link, segment)
    received = torch.empty_like(x)
    for row, device in enumerate(range(first, last)):
        rng = stream(link.seed, "amplifier", t, segment.name, device)
        filling = torch.randn(power.shape[1], link.subcarriers, dtype=dtype, generator=rng)
        grid = filling * power[row, :, None].sqrt().to(torch.complex128)
        grid[index, positions.subcarrier] = factor[row] * x[row]
        for symbols in torch.split(grid, SYMBOLS_AT_ONCE):
            signal = torch.fft.ifft(symbols, norm="ortho")
            amplified = amplify(signal, saturation[device], link.impairments.smoothness)
            symbols.copy_(torch.fft.fft(amplified, norm="ortho"))
        received[row] = grid[index, positions.subcarrier]
    return torch.where(factor != 0, received / torch.where(factor != 0, factor, 1.0), 0.0)
