"""The ledger of a small round, computed by hand."""

import math

import pytest
import torch

from airpfed.air import resources
from support.networks import flat
from support.uplinks import everyone, gradients, make_air, send


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_an_entry_by_hand():
    """Slots of 100 and 30 uses and 20 pilots on 64 carriers: 2 + 1 + 1 symbols of 64 uses with 1/14 of prefix."""
    traffic = resources.Traffic((100, 30), 20, doubles(128, 128), doubles(64, 32), 16_000, 700)
    got = resources.ledger_of(traffic, doubles(1e-6, 3e-6), doubles(1e6, 2e6), 1e6, 64)
    assert (got.channel_uses, got.pilot_uses, got.ofdm_symbols) == (130, 20, 4)
    assert got.air_seconds == pytest.approx(4 * 64 * (15 / 14) / 1e6 + 192 / 1e6 + 160 / 2e6)
    assert got.joules_mean == pytest.approx(2e-6) and got.joules_max == pytest.approx(3e-6)
    assert (got.side_bits, got.feedback_bits, got.downlink_bits, got.backhaul_bits) == (256, 96, 16_000, 700)


def test_the_digital_rate_is_shannon_with_a_gap_and_a_cap():
    rate = resources.digital_rate(doubles(4e-10, 4.0), doubles(0.1, 0.1), 1e-12, 1e6)
    assert float(rate[0]) == pytest.approx(1e6 * math.log2(1 + 4 * 10 / 2))
    assert float(rate[1]) == pytest.approx(8e6)
    assert (resources.digital_rate(doubles(1e-10), doubles(0.1), 0.0, 1e6) == 8e6).all()


@pytest.mark.parametrize(
    ("access", "packing", "normalizer", "slots", "scalars"),
    [
        # s: groups of 20 and 21 entries; p of colours: 16 and 21; of moods: 16 and 14
        ("tdma", "iq", "per_device", [10 + 11, 8 + 11, 8 + 7], 4 + 4),
        ("tdma", "real", "per_device", [41, 37, 30], 4 + 4),
        ("tdma", "iq", "common", [21, 19, 15], 1 + 1),
        ("concurrent", "iq", "per_device", [10 + 11, 8 + 11], 4 + 4),
    ],
)
def test_a_round_by_hand(access, packing, normalizer, slots, scalars):
    """One coherence block a slot's start at most; side information: a mean and a deviation a group, or one sigma."""
    link = make_air(access=access, packing=packing, normalizer=normalizer, coherence_symbols=1000)
    got = send(link, 1, *gradients(link), everyone(link)).ledger
    assert got.channel_uses == sum(slots)
    assert got.side_bits == 5 * scalars * 32
    assert got.downlink_bits == (41 + 37 + 30) * 32
    symbols = sum(math.ceil(uses / 16) for uses in [*slots, got.pilot_uses])
    rate = resources.digital_rate(8 * link.network.gain[0], link.power_limit, link.noise, link.bandwidth_hz)
    factors = len(slots) if access == "concurrent" else 2
    factors *= 1 if normalizer == "common" else 2  # a group and slot that the device sends in
    side = float(((scalars + factors) * 32 / rate).sum())
    assert got.feedback_bits == 5 * factors * 32
    assert got.ofdm_symbols == symbols
    assert got.air_seconds == pytest.approx(symbols * 16 * (15 / 14) / 1e6 + side)


def test_pilots_are_one_per_device_and_coherence_block():
    """21 + 19 + 15 uses in blocks of 20: s sees blocks 0-1, colours 1, moods 2; block 1 is estimated once."""
    link = make_air(coherence_symbols=20)
    got = send(link, 1, *gradients(link), everyone(link)).ledger
    assert got.pilot_uses == 5 * 2 + 0 + 3


def test_an_absent_device_costs_nothing():
    link = make_air(coherence_symbols=1000)
    present = everyone(link)
    present[4] = False
    got = send(link, 1, *gradients(link), present).ledger
    assert got.side_bits == 4 * 8 * 32
    assert got.joules_mean > 0


def test_energy_is_power_times_time_where_every_symbol_is_sent_at_the_limit():
    """One device alone under uniform forcing sends at P throughout: 21 + 19 uses, the odd half symbols half empty."""
    link = make_air(task_of=torch.tensor([0]), samples=doubles(4), network=flat(doubles(1e-10), 8),
                   power_limit=doubles(0.1), task_names=("only",), lengths=(37,), coherence_symbols=1000)  # fmt: skip
    got = send(link, 1, *gradients(link), everyone(link)).ledger
    assert got.joules_max == pytest.approx(0.1 * (41 + 37) / 2 * (15 / 14) / 1e6, rel=1e-6)


def test_the_error_free_link_is_charged_for_uses_and_downlink_only():
    link = make_air("error_free")
    got = send(link, 1, *gradients(link), everyone(link)).ledger
    assert (got.channel_uses, got.pilot_uses, got.side_bits, got.joules_max) == (21 + 19 + 15, 0, 0, 0)
    assert got.downlink_bits == (41 + 37 + 30) * 32
