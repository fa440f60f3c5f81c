"""What a round costs on the air: channel uses, OFDM symbols, seconds, joules, bits."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.core.run_files import Ledger

BITS_PER_SCALAR = 32
CYCLIC_PREFIX = 1 / 14
"""Overhead of the cyclic prefix: 4.76 us on 66.67 us, as in LTE and NR."""
RATE_GAP = 2.0
"""Coded digital links lose 3 dB against Shannon."""
FACTOR_BITS = 32
"""A transmit factor told to a device: two real numbers of 16 bits."""
SCHEME_BITS = 5
"""Index of a modulation and coding scheme, as in NR."""
MAX_BITS_PER_USE = 8.0
"""256-QAM: no link is faster, however good its channel."""


def bits_per_use(sinr: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """Bits a channel use of a coded digital link: Shannon at a gap, log2(1 + SINR / gap), capped.

    Above 0 for any SINR above 0: where 1 + x rounds to 1, log2(1 + x) is x / ln 2.
    """
    ratio = sinr / RATE_GAP
    bits = torch.where(ratio < 1e-9, ratio / math.log(2), torch.log2(1 + ratio))
    return bits.clamp(max=MAX_BITS_PER_USE)


def digital_rate(
    gain: Float[Tensor, " K"], power: Float[Tensor, " K"], noise: float, bandwidth_hz: float
) -> Float[Tensor, " K"]:
    """Bits per second of each device alone on the band, maximum-ratio receiver. gain: mean, summed over antennas."""
    snr = power * gain / noise if noise > 0 else torch.full_like(gain, math.inf)
    return bandwidth_hz * bits_per_use(snr)


def use_seconds(bandwidth_hz: float) -> float:
    """Seconds of one channel use with its share of the cyclic prefix."""
    return (1 + CYCLIC_PREFIX) / bandwidth_hz


@dataclass(frozen=True)
class Traffic:
    """What a round moves.

    slot_uses: channel uses of each slot. Bits of side information (from the devices) and of feedback (to them) by
    device; of the downlink and the backhaul in all.
    """

    slot_uses: tuple[int, ...]
    pilot_uses: int
    side_bits: Float[Tensor, " K"]
    feedback_bits: Float[Tensor, " K"]
    downlink_bits: int
    backhaul_bits: int


def entry(
    traffic: Traffic, joules: Float[Tensor, " K"], rate: Float[Tensor, " K"], bandwidth_hz: float, subcarriers: int
) -> Ledger:
    """One round's ledger.

    Each slot is filled up to whole OFDM symbols. Side information and feedback go on the digital link at `rate` bits/s,
    one device after another. joules: energy radiated per device.
    """
    symbols = sum(math.ceil(uses / subcarriers) for uses in [*traffic.slot_uses, traffic.pilot_uses])
    told = float(((traffic.side_bits + traffic.feedback_bits) / rate).sum())
    return Ledger(
        channel_uses=sum(traffic.slot_uses),
        pilot_uses=traffic.pilot_uses,
        ofdm_symbols=symbols,
        air_seconds=symbols * subcarriers * use_seconds(bandwidth_hz) + told,
        joules_mean=float(joules.mean()),
        joules_max=float(joules.max()),
        side_bits=int(traffic.side_bits.sum()),
        feedback_bits=int(traffic.feedback_bits.sum()),
        downlink_bits=traffic.downlink_bits,
        backhaul_bits=traffic.backhaul_bits,
    )
