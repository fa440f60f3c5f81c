"""What a round costs on the air: channel uses, OFDM symbols, seconds, joules, bits."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.record import Ledger

BITS_PER_SCALAR = 32
CYCLIC_PREFIX = 1 / 14
"""Overhead of the cyclic prefix: 4.76 us on 66.67 us, as in LTE and NR."""
RATE_GAP = 2.0
"""Coded digital links lose 3 dB against Shannon."""
MAX_BITS_PER_USE = 8.0
"""256-QAM: no link is faster, however good its channel."""


def digital_rate(
    gain: Float[Tensor, " K"], power: Float[Tensor, " K"], noise: float, antennas: int, bandwidth_hz: float
) -> Float[Tensor, " K"]:
    """Bits per second of each device alone on the band, maximum-ratio receiver.

    B log2(1 + M P g / (gap sigma2)), capped.
    """
    snr = antennas * power * gain / (RATE_GAP * noise) if noise > 0 else torch.full_like(gain, math.inf)
    return bandwidth_hz * torch.log2(1 + snr).clamp(max=MAX_BITS_PER_USE)


def use_seconds(bandwidth_hz: float) -> float:
    """Seconds of one channel use with its share of the cyclic prefix."""
    return (1 + CYCLIC_PREFIX) / bandwidth_hz


def entry(
    slot_uses: list[int],
    pilot_uses: int,
    joules: Float[Tensor, " K"],
    side_scalars: Float[Tensor, " K"],
    rate: Float[Tensor, " K"],
    downlink_scalars: int,
    bandwidth_hz: float,
    subcarriers: int,
) -> Ledger:
    """One round's ledger.

    slot_uses: channel uses of each slot, each filled up to whole OFDM symbols. side_scalars: scalars each device
    sends on the digital link at `rate` bits/s, one device after another. joules: energy radiated per device.
    """
    symbols = sum(math.ceil(uses / subcarriers) for uses in [*slot_uses, pilot_uses])
    side_seconds = float((side_scalars * BITS_PER_SCALAR / rate).sum())
    return Ledger(
        channel_uses=sum(slot_uses),
        pilot_uses=pilot_uses,
        ofdm_symbols=symbols,
        air_seconds=symbols * subcarriers * use_seconds(bandwidth_hz) + side_seconds,
        joules_mean=float(joules.mean()),
        joules_max=float(joules.max()),
        side_bits=int(side_scalars.sum()) * BITS_PER_SCALAR,
        downlink_bits=downlink_scalars * BITS_PER_SCALAR,
    )
