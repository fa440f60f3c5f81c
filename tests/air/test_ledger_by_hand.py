"""The ledger of one round of each kind, computed by hand: seconds of both links, and joules by cause.

The small uplink: five devices of two tasks, 41 entries of s, 37 and 30 of p, 8 antennas of gain 1e-10, 15 dB at one of
them for 0.1 W, 1 MHz on 16 subcarriers. A channel use with its prefix takes 15/14 us. Energies of gradients are given.
"""

import math
from dataclasses import replace

import pytest
import torch

from airpfed.air import round_cost
from airpfed.air.network import Estimation
from airpfed.air.round_cost import broadcast_rates, listening_seconds, round_ledger
from airpfed.air.schedule import Updates, Uplink, schedule
from airpfed.core.run_files import Ledger
from support.networks import flat
from support.uplinks import everyone, gradients, make_air

USE = 15 / 14 / 1e6
POWER = (0.1, 0.12, 0.08, 0.1, 0.11)
EFFICIENCY, WATTS = 0.25, 0.2


def rate(power: float, gain: float = 8e-10, noise: float = 1e-11 / 10**1.5) -> float:
    """Bits a second of a device alone: 3 dB from capacity, 8 bits a use at most."""
    return 1e6 * min(8.0, math.log2(1 + power * gain / noise / 2))


def ledger(link: Uplink, joules: list[list[float]]) -> Ledger:
    """The ledger of round 1 with all devices, whose gradients radiate so much in each slot."""
    link = replace(link, amplifier_efficiency=EFFICIENCY, circuit_watts=WATTS)
    slots = schedule(link, Updates(*gradients(link), everyone(link)), ((0, 1),) if len(joules) == 2 else ((0,), (1,)))
    return round_ledger(link, slots, [torch.tensor(row, dtype=torch.float64) for row in joules], 1, 41)


def check(got: Ledger, air: float, down: float, radiated: list[float], seconds: list[float]) -> None:
    """Compare with seconds of both links, joules that each device radiates, and seconds that its radio is on."""
    heat = [energy * 3 for energy in radiated]  # a quarter is radiated
    circuit = [0.2 * on for on in seconds]
    total = [sum(parts) for parts in zip(radiated, heat, circuit, strict=True)]
    assert got.air_seconds == pytest.approx(air, rel=1e-12)
    assert got.downlink_seconds == pytest.approx(down, rel=1e-12)
    assert got.total_seconds == pytest.approx(air + down, rel=1e-12) and got.compute_seconds == got.compute_joules == 0
    assert got.radiated_joules == pytest.approx(sum(radiated) / 5, rel=1e-12)
    assert got.amplifier_joules == pytest.approx(sum(heat) / 5, rel=1e-12)
    assert got.circuit_joules == pytest.approx(sum(circuit) / 5, rel=1e-12)
    assert got.total_joules_mean == pytest.approx(sum(total) / 5, rel=1e-12)
    assert got.total_joules_max == pytest.approx(max(total), rel=1e-12)


def downlink(s: float, colours: float, moods: float) -> list[float]:
    """Seconds of the three broadcasts at these rates, 32 bits an entry."""
    return [15 / 14 * 32 * entries / rate for entries, rate in ((41, s), (37, colours), (30, moods))]


def test_linear_slots_one_after_another():
    """Uses 21, 19, 15 make 2 + 2 + 1 symbols, five pilots one more; 8 scalars and 4 factors of 32 bits a device."""
    got = ledger(make_air(coherence_symbols=1000), [[1e-6, 2e-6, 3e-6, 4e-6, 5e-6], [1e-6, 1e-6], [2e-6, 2e-6, 2e-6]])
    s, colours, moods = downlink(rate(0.08), rate(0.1), rate(0.08))
    side, feedback = [256 / rate(p) for p in POWER], [128 / rate(p) for p in POWER]
    air = 6 * 16 * USE + sum(side) + sum(feedback)
    energy = [2e-6, 3e-6, 5e-6, 6e-6, 7e-6]
    radiated = [e + p * (USE + told) for e, p, told in zip(energy, POWER, side, strict=True)]
    symbols, listening = [4, 4, 3, 3, 3], [s + colours] * 2 + [s + moods] * 3
    on = [n * 16 * USE + USE + a + b + down for n, a, b, down in zip(symbols, side, feedback, listening, strict=True)]
    assert (got.ofdm_symbols, got.pilot_uses, got.side_bits, got.feedback_bits) == (6, 5, 5 * 256, 5 * 128)
    assert got.joules_mean == pytest.approx(23e-6 / 5) and got.joules_max == pytest.approx(7e-6)
    check(got, air, s + colours + moods, radiated, on)


def test_linear_tasks_at_once_in_two_coherence_blocks():
    """21 and 19 uses in blocks of 20: s sees blocks 0 and 1, the p-slot (uses 21 to 39) block 1, known by then.

    The groups of s have 10 and 11 uses, the second in blocks 0 and 1: 1 + 2 factors; those of p 1 + 1.
    """
    got = ledger(make_air(access="concurrent", coherence_symbols=20), [[1e-6] * 5, [2e-6] * 5])
    s, colours, moods = downlink(rate(0.08), rate(0.1), rate(0.08))
    side, feedback = [256 / rate(p) for p in POWER], [5 * 32 / rate(p) for p in POWER]
    air = (2 + 2 + 1) * 16 * USE + sum(side) + sum(feedback)
    radiated = [3e-6 + p * (2 * USE + told) for p, told in zip(POWER, side, strict=True)]
    listening = [s + colours] * 2 + [s + moods] * 3
    on = [4 * 16 * USE + 2 * USE + a + b + down for a, b, down in zip(side, feedback, listening, strict=True)]
    assert got.pilot_uses == 10
    check(got, air, s + colours + moods, radiated, on)


def test_pilots_that_are_paid_for_radiate_once():
    """Four uses a device and block at the power limit: 20 make two symbols, among the energy of the gradients."""
    link = make_air(coherence_symbols=1000, estimation=Estimation(pilots=4))
    got = ledger(link, [[1e-6] * 5, [1e-6] * 2, [1e-6] * 3])
    s, colours, moods = downlink(rate(0.08), rate(0.1), rate(0.08))
    side, feedback = [256 / rate(p) for p in POWER], [128 / rate(p) for p in POWER]
    radiated = [2e-6 + p * (4 * USE + told) for p, told in zip(POWER, side, strict=True)]
    listening = [s + colours] * 2 + [s + moods] * 3
    on = [
        n * 16 * USE + 4 * USE + a + b + down
        for n, a, b, down in zip([4, 4, 3, 3, 3], side, feedback, listening, strict=True)
    ]
    assert got.pilot_uses == 20 and got.joules_max == pytest.approx(2e-6 + 0.12 * 4 * USE)
    check(got, 7 * 16 * USE + sum(side) + sum(feedback), s + colours + moods, radiated, on)


def test_bits_by_one_device_after_another():
    """Without noise every link has 8 bits a use. 4 bits an entry and 16 a vector: 344 bits of colours, 316 of moods.

    43 and 39.5 uses, 204.5 in all, make 13 symbols; 3 and 2 blocks of 20 uses make 12 pilots, one symbol more.
    """
    link = make_air("digital", noise=0.0, coherence_symbols=20)
    got = ledger(link, [[0.0] * 5, [0.0] * 2, [0.0] * 3])
    s, colours, moods = downlink(8e6, 8e6, 8e6)
    uses, blocks = [43, 43, 39.5, 39.5, 39.5], [3, 3, 2, 2, 2]
    side, feedback = 64 / 8e6, [5 * count / 8e6 for count in blocks]
    air = 14 * 16 * USE + 5 * side + sum(feedback)
    radiated = [p * ((n + pilots) * USE + side) for p, n, pilots in zip(POWER, uses, blocks, strict=True)]
    listening = [s + colours] * 2 + [s + moods] * 3
    on = [
        (n + pilots) * USE + side + told + down
        for n, pilots, told, down in zip(uses, blocks, feedback, listening, strict=True)
    ]
    assert (got.channel_uses, got.pilot_uses, got.ofdm_symbols) == (205, 12, 14)
    assert got.joules_max == pytest.approx(0.12 * 43 * USE)
    check(got, air, s + colours + moods, radiated, on)


def test_the_error_free_link():
    """Slots and downlink are charged, and the circuits for both; nothing is radiated."""
    got = ledger(make_air("error_free"), [[0.0] * 5, [0.0] * 2, [0.0] * 3])
    s, colours, moods = downlink(rate(0.08), rate(0.1), rate(0.08))
    listening = [s + colours] * 2 + [s + moods] * 3
    on = [n * 16 * USE + down for n, down in zip([4, 4, 3, 3, 3], listening, strict=True)]
    check(got, 5 * 16 * USE, s + colours + moods, [0.0] * 5, on)


def test_a_scheme_whose_ledger_leaves_out_what_follows():
    """A row of the user's own that knows nothing of downlink seconds and losses: totals are of what it says."""
    own = Ledger(air_seconds=2.0, joules_mean=0.1, joules_max=0.3, downlink_bits=108 * 32)
    link = make_air("digital", cost=lambda *_: own)
    got = ledger(link, [[0.0] * 5, [0.0] * 2, [0.0] * 3])
    down = sum(downlink(rate(0.08), rate(0.1), rate(0.08)))
    assert got.downlink_seconds == pytest.approx(down) and got.total_seconds == pytest.approx(2 + down)
    assert (got.radiated_joules, got.amplifier_joules) == (0.1, pytest.approx(0.3))
    assert got.total_joules_mean == pytest.approx(0.4) and got.total_joules_max == pytest.approx(1.2)
    assert got.air_seconds == 2.0 and got.joules_max == 0.3


EDGES = ([4e-10, 1e-10, 1e-11, 1e-11, 1e-11], [1e-11, 1e-11, 3e-10, 2e-10, 1e-10])
"""Gains of an antenna of edge 0 (colours) and edge 1 (moods)."""


def at_edges(topology: str) -> Uplink:
    network = flat(torch.tensor(EDGES, dtype=torch.float64), 8)
    return make_air(topology=topology, network=network, coherence_symbols=1000)


def test_two_hop_has_the_edges_in_both_links():
    """A device's links are with its own edge; both edges receive s, and 32 bits an entry go over the backhaul."""
    got = ledger(at_edges("two_hop"), [[1e-6] * 5, [1e-6] * 2, [1e-6] * 3])
    own = [8 * EDGES[0][k] for k in (0, 1)] + [8 * EDGES[1][k] for k in (2, 3, 4)]
    rates = [rate(p, gain) for p, gain in zip(POWER, own, strict=True)]
    s, colours, moods = downlink(min(rates), min(rates[:2]), min(rates[2:]))
    side, feedback = [256 / r for r in rates], [128 / r for r in rates]
    radiated = [2e-6 + p * (USE + told) for p, told in zip(POWER, side, strict=True)]
    listening = [s + colours] * 2 + [s + moods] * 3
    on = [
        n * 16 * USE + USE + a + b + down
        for n, a, b, down in zip([4, 4, 3, 3, 3], side, feedback, listening, strict=True)
    ]
    assert got.backhaul_bits == 2 * 41 * 32
    check(got, 6 * 16 * USE + sum(side) + sum(feedback), s + colours + moods, radiated, on)


def test_joint_edges_broadcast_s_together_and_p_by_themselves():
    both = [8 * (EDGES[0][k] + EDGES[1][k]) for k in range(5)]
    s = min(rate(p, gain) for p, gain in zip(POWER, both, strict=True))
    colours = min(rate(POWER[k], 8 * EDGES[0][k]) for k in (0, 1))
    moods = min(rate(POWER[k], 8 * EDGES[1][k]) for k in (2, 3, 4))
    assert broadcast_rates(at_edges("joint")) == pytest.approx([s, colours, moods], rel=1e-12)


def test_a_station_of_given_power_has_no_array_gain():
    link = replace(at_edges("joint"), station_power=2.0)
    s = min(rate(2.0, EDGES[0][k] + EDGES[1][k]) for k in range(5))
    expected = [s, rate(2.0, EDGES[0][1]), rate(2.0, EDGES[1][4])]
    assert broadcast_rates(link) == pytest.approx(expected, rel=1e-12)


def test_the_bits_of_a_rounded_broadcast_with_the_scales():
    link = replace(make_air(), downlink_bits=4)
    bits = [41 * 4 + 16, 37 * 4 + 16, 30 * 4 + 16]
    assert round_cost.downlink_bits(link, 41) == sum(bits)
    rates = rate(0.08), rate(0.1), rate(0.08)
    assert listening_seconds(link, 41) == pytest.approx([15 / 14 * b / r for b, r in zip(bits, rates, strict=True)])
    assert listening_seconds(replace(link, lengths=(0, 0)), 0) == [0.0, 0.0, 0.0], "nothing is sent"
