"""Resources of a round on the air: channel uses, OFDM symbols, seconds, joules and bits."""

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
"""The gap of a coded digital link to the Shannon rate: 3 dB."""
FACTOR_BITS = 32
"""Bits of a transmit factor in the feedback to a device: two real numbers of 16 bits."""
SCHEME_BITS = 5
"""Bits of the index of a modulation and coding scheme, as in NR."""
MAX_BITS_PER_USE = 8.0
"""Rate of 256-QAM, the limit of every digital link."""


def bits_per_use(sinr: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The bits per channel use of a coded digital link: log2(1 + SINR / RATE_GAP), at most MAX_BITS_PER_USE.

    sinr: linear. For small x, log2(1 + x) is computed as x / ln 2, so that every positive SINR has a positive rate.
    """
    ratio = sinr / RATE_GAP
    bits = torch.where(ratio < 1e-9, ratio / math.log(2), torch.log2(1 + ratio))
    return bits.clamp(max=MAX_BITS_PER_USE)


def digital_rate(
    gain: Float[Tensor, " K"], power: Float[Tensor, " K"], noise: float, bandwidth_hz: float
) -> Float[Tensor, " K"]:
    """The bits per second of each device alone on the band with a maximum-ratio receiver.

    gain: mean power gain, summed over antennas.
    """
    snr = power * gain / noise if noise > 0 else torch.full_like(gain, math.inf)
    return bandwidth_hz * bits_per_use(snr)


def use_seconds(bandwidth_hz: float) -> float:
    """The seconds of one channel use with its share of the cyclic prefix."""
    return (1 + CYCLIC_PREFIX) / bandwidth_hz


@dataclass(frozen=True)
class Traffic:
    """The channel uses and bits of a round.

    slot_uses: channel uses of each slot. side_bits, feedback_bits: side information from each device and feedback to
    it. downlink_bits, backhaul_bits: total bits of the round.
    """

    slot_uses: tuple[int, ...]
    pilot_uses: int
    side_bits: Float[Tensor, " K"]
    feedback_bits: Float[Tensor, " K"]
    downlink_bits: int
    backhaul_bits: int


def ledger_of(
    traffic: Traffic, joules: Float[Tensor, " K"], rate: Float[Tensor, " K"], bandwidth_hz: float, subcarriers: int
) -> Ledger:
    """The ledger of one round.

    Each slot is padded to whole OFDM symbols. Side information and feedback use the digital link at `rate` bits/s, one
    device after another. joules: radiated energy of each device.
    """
    symbols = sum(math.ceil(uses / subcarriers) for uses in [*traffic.slot_uses, traffic.pilot_uses])
    side_seconds = float(((traffic.side_bits + traffic.feedback_bits) / rate).sum())
    return Ledger(
        channel_uses=sum(traffic.slot_uses),
        pilot_uses=traffic.pilot_uses,
        ofdm_symbols=symbols,
        air_seconds=symbols * subcarriers * use_seconds(bandwidth_hz) + side_seconds,
        joules_mean=float(joules.mean()),
        joules_max=float(joules.max()),
        side_bits=int(traffic.side_bits.sum()),
        feedback_bits=int(traffic.feedback_bits.sum()),
        downlink_bits=traffic.downlink_bits,
        backhaul_bits=traffic.backhaul_bits,
    )
