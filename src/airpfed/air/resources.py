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
    it. downlink_bits, backhaul_bits: total bits of the round. downlink_seconds: of the broadcasts, one after another.
    """

    slot_uses: tuple[int, ...]
    pilot_uses: int
    side_bits: Float[Tensor, " K"]
    feedback_bits: Float[Tensor, " K"]
    downlink_bits: int
    backhaul_bits: int
    downlink_seconds: float = 0.0


@dataclass(frozen=True)
class RadioUse:
    """What a round asks of each device's radio, and the radio's losses.

    power: P_k, watts, at which a device sends side information. pilot_seconds: of each device's pilots. pilot_joules:
    what they radiate, as far as it is not among the energy of the gradients. sending_seconds: of the gradients.
    receiving_seconds: of the broadcasts that a device listens to. efficiency: share of the amplifier's supply that is
    radiated. circuit_watts: power of the circuits beside the amplifier while the device sends or receives; a radio that
    waits is off.
    """

    power: Float[Tensor, " K"]
    pilot_seconds: Float[Tensor, " K"]
    pilot_joules: Float[Tensor, " K"]
    sending_seconds: Float[Tensor, " K"]
    receiving_seconds: Float[Tensor, " K"]
    efficiency: float
    circuit_watts: float


def ledger_of(
    traffic: Traffic,
    joules: Float[Tensor, " K"],
    rate: Float[Tensor, " K"],
    bandwidth_hz: float,
    subcarriers: int,
    radio: RadioUse | None = None,
) -> Ledger:
    """The ledger of one round.

    Each slot is padded to whole OFDM symbols. Side information and feedback use the digital link at `rate` bits/s, one
    device after another. joules: energy that each device radiates for its gradients. radio: the devices' radios; None
    for ideal ones, which lose nothing and send pilots and side information without energy.

    With s_k and f_k the seconds of side information and feedback, a device radiates E_k = joules_k + pilot_joules_k +
    P_k s_k; its amplifier takes E_k / efficiency, and its circuits circuit_watts (sending_k + pilots_k + s_k + f_k +
    receiving_k). Feedback is radiated by the stations, whose energy is not counted.
    """
    symbols = sum(math.ceil(uses / subcarriers) for uses in [*traffic.slot_uses, traffic.pilot_uses])
    side_seconds = float(((traffic.side_bits + traffic.feedback_bits) / rate).sum())
    air_seconds = symbols * subcarriers * use_seconds(bandwidth_hz) + side_seconds
    radiated, amplifier, circuit = joules, torch.zeros_like(joules), torch.zeros_like(joules)
    if radio is not None:
        side = traffic.side_bits / rate
        radiated = joules + radio.pilot_joules + radio.power * side
        amplifier = radiated * (1 / radio.efficiency - 1)
        uplink = radio.sending_seconds + radio.pilot_seconds + side
        circuit = radio.circuit_watts * (uplink + traffic.feedback_bits / rate + radio.receiving_seconds)
    total = radiated + amplifier + circuit
    return Ledger(
        channel_uses=sum(traffic.slot_uses),
        pilot_uses=traffic.pilot_uses,
        ofdm_symbols=symbols,
        air_seconds=air_seconds,
        downlink_seconds=traffic.downlink_seconds,
        total_seconds=air_seconds + traffic.downlink_seconds,
        joules_mean=float(joules.mean()),
        joules_max=float(joules.max()),
        radiated_joules=float(radiated.mean()),
        amplifier_joules=float(amplifier.mean()),
        circuit_joules=float(circuit.mean()),
        total_joules_mean=float(total.mean()),
        total_joules_max=float(total.max()),
        side_bits=int(traffic.side_bits.sum()),
        feedback_bits=int(traffic.feedback_bits.sum()),
        downlink_bits=traffic.downlink_bits,
        backhaul_bits=traffic.backhaul_bits,
    )
