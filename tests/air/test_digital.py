"""The digital rival: what its rounding costs in error, what its bits cost in time."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import airpfed as ap
from airpfed.air import resources
from airpfed.air.digital import (
    SingleDeviceSnr,
    airtime,
    efficiency,
    group_airtime,
    ofdma_airtime,
    quantise_slot,
    rates_of,
    shared_band,
    sinr,
    with_fastest_pilots,
)
from airpfed.air.impairments import Impairments
from airpfed.air.network import estimate_channels
from airpfed.air.quantization import bits_of
from airpfed.air.quantizers import coded_bits
from airpfed.air.schedule import Updates, Uplink, schedule
from airpfed.core.rng import stream
from support.networks import flat
from support.uplinks import (
    as_scheme,
    drawn,
    everyone,
    excess,
    gradients,
    is_finite,
    large_air,
    make_air,
    means,
    send,
    slots,
    z_of,
)


def digital(link: Uplink, bits: int = 4, spatial: bool = False, **options) -> Uplink:
    options = {"access": "spatial" if spatial else "orthogonal", **options}
    return replace(link, **as_scheme("digital", bits=bits, **options))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_sums_are_unbiased_and_errors_as_claimed(bits):
    link = digital(large_air("uniform_forcing", d=600), bits)
    got = torch.stack(
        [send(replace(link, seed=n), 1, *drawn(link, 0), everyone(link)).shared for n in range(60)]
    ).double()
    shared, _ = drawn(link, 0)
    G = (link.samples / link.samples.sum()) @ shared.double()
    one = slots(send(link, 1, *drawn(link, 0), everyone(link)))
    z = (got.mean(0) - G) / (got.std(0) / 60**0.5).clamp_min(1e-12)
    assert z.abs().max() < 5.5
    assert one[0].bias == 0 and one[0].claimed == one[0].variance
    ratio = (got - G).square().sum(1) / one[0].scale / one[0].claimed - 1
    assert abs(z_of(ratio[:, None])) < 5


def test_more_bits_less_error():
    link = large_air("uniform_forcing", d=600)
    pis = [send(digital(link, bits), 1, *drawn(link, 0), everyone(link)).pi for bits in (1, 2, 4, 8)]
    assert all(a > 3 * b for a, b in pairwise(pis))


@pytest.mark.parametrize("absent", [[], [3], [0, 1], [0, 1, 2, 3, 4]])
def test_eight_bits_are_nearly_the_mean_of_the_devices_present(absent):
    link = digital(make_air(), 8)
    shared, personal = gradients(link)
    present = everyone(link)
    present[absent] = False
    G_s, G_p = means(link, shared, personal, present) if len(absent) < 5 else (torch.zeros(41), torch.zeros(2, 37))
    shared[absent], personal[absent] = torch.nan, torch.nan
    got = send(link, 1, shared, personal, present)
    assert is_finite(got)
    torch.testing.assert_close(got.shared.double(), G_s.double(), rtol=0, atol=0.03)
    torch.testing.assert_close(got.personal.double(), G_p.double(), rtol=0, atol=0.03)


def test_one_after_another_takes_the_sum_of_the_devices_times():
    """Bits over the mean of log2(1 + ||h||^2 P / (gap noise)) of the round's first blocks, device by device."""
    link = digital(make_air(), 4)
    got = send(link, 1, *gradients(link), everyone(link)).ledger
    h, _ = estimate_channels(link.network, 0.0, link.seed, 1, range(8))
    rate = torch.log2(1 + h.abs().square().sum(1) * link.power_limit / (2 * link.noise)).clamp(max=8).mean(0)
    bits = torch.tensor([41 * 4 + 16 + (37, 30)[n] * 4 + 16 for n in (0, 0, 1, 1, 1)])
    uses = bits / rate
    assert got.channel_uses == math.ceil(float(uses.sum()))
    assert got.joules_max == pytest.approx(float((link.power_limit * uses).max()) * (15 / 14) / 1e6)
    assert got.pilot_uses == sum(math.ceil(float(u) / link.coherence_symbols) for u in uses)
    assert got.side_bits == 5 * 2 * 32


def test_sinr_is_the_mmse_receiver_s():
    """Against the receiver itself: |m^H h_k|^2 P_k over what else it hears."""
    h = torch.randn(2, 6, 3, dtype=torch.complex128, generator=stream(1, "h"))
    power, noise = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), 0.3
    variance = torch.full((6, 3), 0.05, dtype=torch.float64)
    got = sinr(h, variance, power, noise)
    floor = noise + float((variance[0] * power).sum())
    for b in range(2):
        C = (h[b] * power) @ h[b].mH + floor * torch.eye(6)
        for k in range(3):
            m = torch.linalg.solve(C, h[b, :, k])
            heard = (m.conj() @ h[b]).abs().square() * power
            other = heard.sum() - heard[k] + floor * m.abs().square().sum()
            torch.testing.assert_close(got[b, k], heard[k] / other)


def test_groups_told_apart_by_antennas_take_less_time_where_antennas_are_many():
    link = digital(make_air(antennas=32))
    bits = torch.full((5,), 1e6, dtype=torch.float64)
    alone, together = (airtime(link, 1, bits, access) for access in ("orthogonal", "spatial"))
    assert together.uses < 0.5 * alone.uses
    single = replace(link, network=flat(link.network.gain, 1))
    alone, together = (airtime(single, 1, bits, access) for access in ("orthogonal", "spatial"))
    assert together.uses <= alone.uses  # groups of one are among those tried


def test_a_group_lasts_as_long_as_its_slowest_device():
    link = digital(make_air("uniform_forcing", impairments=Impairments()), spatial=True)
    bits = torch.tensor([4e3, 1e3, 2e3, 1e3, 5e2])
    group = torch.arange(5)
    found = group_airtime(link, 1, bits, [group])
    assert found.uses == pytest.approx(float((bits / rates_of(link, 1, [group])).max()))
    apart = group_airtime(link, 1, bits, [group[:2], group[2:]])
    assert apart.uses == pytest.approx(sum(float(apart.device_uses[part].max()) for part in (group[:2], group[2:])))


def test_what_channels_lack_costs_rate():
    link = digital(make_air())
    each = [one[None] for one in torch.arange(5)]
    best = rates_of(link, 1, each)
    worse = {
        "csi": replace(link, csi_error=0.2),
        "outage": replace(link, impairments=Impairments(outage=0.3)),
        "clipping": replace(link, impairments=Impairments(clipping=0.5)),
    }
    for name, changed in worse.items():
        assert (rates_of(changed, 1, each) < best).all(), name
    torch.testing.assert_close(rates_of(worse["outage"], 1, each), 0.7 * best)
    smooth = replace(link, impairments=Impairments(clipping=0.5, smoothness=0.5))
    assert (rates_of(smooth, 1, each) / rates_of(worse["clipping"], 1, each) - 1 > 0.1).all()  # deep in saturation


def test_two_hop_serves_devices_by_their_own_edge():
    gain = torch.where(torch.stack([make_air().task_of == 0, make_air().task_of == 1]), 1e-10, 1e-10).double()
    link = digital(make_air(topology="two_hop"))
    link = replace(link, network=flat(gain, 8))
    each = [one[None] for one in torch.arange(5)]
    joint = replace(link, topology="joint")
    assert (rates_of(link, 1, each) < rates_of(joint, 1, each)).all()
    got = send(link, 1, *gradients(link), everyone(link)).ledger
    assert got.backhaul_bits == 2 * 41 * 32


def test_without_noise_rates_are_capped():
    link = digital(make_air(noise=0.0))
    assert (rates_of(link, 1, [one[None] for one in torch.arange(5)]) == resources.MAX_BITS_PER_USE).all()


def test_rounds_differ_and_repeat():
    link = digital(make_air(), 1)
    one, again, next_ = (send(link, t, *gradients(link), everyone(link)).shared for t in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, next_)


def test_measured_meets_claimed_over_rounds():
    link = digital(large_air("uniform_forcing", d=600, topology="two_hop", backhaul_bits=3), 2)
    link = replace(link, network=flat(torch.full((2, 5), 1e-10, dtype=torch.float64), 4))
    found = [send(link, t, *drawn(link, t), everyone(link)) for t in range(1, 31)]
    assert abs(z_of(excess(found, lambda e: e.claimed))) < 5


# Quantisers, entropy coding


@pytest.mark.parametrize("bits", [1, 3])
def test_rotated_codes_are_claimed_as_they_are(bits):
    """Exactly for a p-sum's single device; in the mean where the errors of several devices add up."""
    link = digital(large_air("uniform_forcing", d=600), bits, quantizer="eden")
    found = [send(replace(link, seed=n), 1, *drawn(link, n), everyone(link)) for n in range(40)]
    assert abs(z_of(excess(found, lambda e: e.claimed))) < 5
    assert all(e.bias == 0 and e.claimed == e.variance for e in slots(found[0]))
    alone = torch.tensor([True, False, True, False, False])
    for error in send(link, 1, *drawn(link, 0), alone).mse.p.values():
        assert error.measured == pytest.approx(error.claimed)


@pytest.mark.parametrize("quantizer", ["top_k", "sign"])
def test_what_is_biased_claims_nothing(quantizer):
    link = digital(large_air("uniform_forcing", d=600), 1, quantizer=quantizer)
    got = send(link, 1, *drawn(link, 0), everyone(link))
    for error in slots(got):
        assert error.claimed is None and error.variance == 0
        assert error.bias == error.measured == error.claimed_genie > 0
    assert got.pi_claimed is None and got.ledger.side_bits == 0


def test_rotations_beat_uniform_levels_at_half_the_bits():
    """In error and in time: two bits of EDEN against four of the uniform quantiser, on entries with heavy tails."""
    link = make_air()
    link = replace(link, shared_groups=((0, 5000),), personal_groups=(), lengths=(0, 0), coherence_symbols=20_000)
    shared = torch.randn(5, 5000, generator=stream(1, "g")) * torch.randn(5, 5000, generator=stream(2, "g")).exp()
    personal = torch.zeros(5, 0)
    uniform, eden = (
        send(digital(link, bits, quantizer=name), 1, shared, personal, everyone(link))
        for bits, name in ((4, "uniform"), (2, "eden"))
    )
    assert eden.pi < 0.7 * uniform.pi and eden.ledger.channel_uses < 0.55 * uniform.ledger.channel_uses
    coded = send(digital(link, 4, entropy=True), 1, shared, personal, everyone(link))
    assert torch.equal(coded.shared, uniform.shared), "a lossless code"
    assert coded.ledger.channel_uses < 0.7 * uniform.ledger.channel_uses
    assert coded.ledger.joules_max < 0.7 * uniform.ledger.joules_max


def test_the_ledger_charges_the_codes_that_were_sent():
    link = digital(make_air(coherence_symbols=10_000), 2, quantizer="uniform", entropy=True)
    updates = Updates(*gradients(link), everyone(link))
    bits = torch.zeros(5, dtype=torch.float64)
    for slot in schedule(link, updates, ((0,), (1,))):
        for rows, _, sent in quantise_slot(link, slot, 1, 2, "uniform", None):
            fixed = torch.tensor([float(bits_of(int(n), 2)) for n in slot.lengths[rows]], dtype=torch.float64)
            bits.index_add_(0, slot.devices[rows], coded_bits(sent, fixed))
    got = send(link, 1, updates.shared, updates.personal, updates.present).ledger
    assert got.channel_uses == math.ceil(airtime(link, 1, bits, "orthogonal").uses)


# OFDMA


def equal_air(snr: float, devices: int = 5) -> Uplink:
    """Devices of one gain on an unfading channel of one antenna, with this SNR on the whole band."""
    gain = torch.full((1, devices), 1e-10, dtype=torch.float64)
    limit = torch.full((devices,), 0.1, dtype=torch.float64)
    network = replace(
        flat(gain, 1), channel_model=lambda seed, t, blocks: (gain.sqrt() + torch.zeros(len(blocks), 1, 1),) * 2
    )
    link = make_air(power_limit=limit, noise=0.1 * 1e-10 / snr, coherence_symbols=10**9, samples=torch.ones(devices))
    return replace(digital(link), network=network, task_of=torch.zeros(devices, dtype=torch.long))


@pytest.mark.parametrize(("access", "senders"), [("orthogonal", 1), ("ofdma", 1), ("spatial", 4)])
def test_derived_pilots_are_those_of_the_shortest_round(access, senders):
    """Sixteen devices at -10 dB, of which few send in a block: not the few pilots for which all would have room."""
    cell = ap.single_cell(devices=[16], antennas=4, snr_db=-10, csi_error=None, coherence_symbols="derived").link
    link, bits = digital(cell, access=access), torch.full((16,), 8e4, dtype=torch.float64)
    fast = with_fastest_pilots(link, 1, bits, access)
    time = airtime(fast, 1, bits, access)
    assert fast.estimation.uses > link.estimation.uses
    for pilots in (1, link.estimation.uses, 4 * fast.estimation.uses, fast.estimation.uses // 4):
        given = replace(link.estimation, pilots=pilots, derived=False)
        fixed = replace(link, estimation=given, coherence_symbols=3936 - senders * pilots)
        other = airtime(fixed, 1, bits, access)
        assert time.uses + time.pilots <= other.uses + other.pilots
        assert with_fastest_pilots(fixed, 1, bits, access) is fixed
    given = replace(link, estimation=replace(link.estimation, derived=False))
    ledgers = [send(each, 1, *gradients(each), everyone(each)).ledger for each in (link, given)]
    assert ledgers[0].channel_uses + ledgers[0].pilot_uses < ledgers[1].channel_uses + ledgers[1].pilot_uses


@pytest.mark.parametrize("snr_db", [-10, 0, 10, 30])
def test_equal_devices_share_the_band_evenly(snr_db):
    """log2(1 + SNR / 2) / log2(1 + K SNR / 2) of the time of turns, at most 8 bits a use, and K times the energy."""
    snr = 10 ** (snr_db / 10)
    link, bits = equal_air(snr), torch.full((5,), 1e6, dtype=torch.float64)
    turns, shared = airtime(link, 1, bits, "orthogonal"), airtime(link, 1, bits, "ofdma")
    ratio = min(8, math.log2(1 + snr / 2)) / min(8, math.log2(1 + 5 * snr / 2))
    assert shared.uses / turns.uses == pytest.approx(ratio, rel=1e-5)
    if ratio < 1:
        torch.testing.assert_close(shared.device_uses, torch.full_like(bits, shared.uses))
        assert float(shared.device_uses.sum() / turns.device_uses.sum()) == pytest.approx(5 * ratio, rel=1e-5)


def test_the_gain_of_sharing_is_that_of_an_independent_computation():
    """16 devices of 16 antennas: at -10, 0, 10 dB about 0.24, 0.48, 0.81 of the time of turns."""
    found = []
    for snr_db in (-10, 0, 10):
        snr = 16 * 10 ** (snr_db / 10)  # of a maximum-ratio receiver
        link, bits = equal_air(snr, 16), torch.full((16,), 1e6, dtype=torch.float64)
        found.append(airtime(link, 1, bits, "ofdma").uses / airtime(link, 1, bits, "orthogonal").uses)
    assert found == pytest.approx([0.24, 0.48, 0.81], abs=0.04)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"csi_error": 0.2, "impairments": Impairments(clipping=0.5, outage=0.1)},
        {"coherence_symbols": 50},
        {"coherence_symbols": 50, "subcarrier_groups": 4},
        {"topology": "two_hop"},
        {"noise": 0.0},
    ],
    ids=str,
)
def test_sharing_the_band_is_never_slower_than_turns_and_ends_at_once(changes):
    link = digital(make_air(**changes))
    if link.topology == "two_hop":
        link = replace(link, network=flat(torch.tensor([[1e-10] * 5, [3e-11] * 5], dtype=torch.float64), 8))
    bits = torch.tensor([4e3, 1e3, 2e3, 0.0, 5e4], dtype=torch.float64)
    turns, shared = airtime(link, 1, bits, "orthogonal"), airtime(link, 1, bits, "ofdma")
    assert shared.uses + shared.pilots <= (turns.uses + turns.pilots) * (1 + 1e-12)
    everyone_at_once = ofdma_airtime(link, 1, bits, [(bits > 0).nonzero().flatten()])
    assert everyone_at_once.uses <= turns.uses * (1 + 1e-12)
    assert everyone_at_once.device_uses[3] == 0 == everyone_at_once.blocks[3]
    snr = SingleDeviceSnr.estimate(link, 1)
    sending = bits > 0
    uses, shares = shared_band(link, snr, bits, [sending.nonzero().flatten()])
    assert float(shares[sending].sum()) == pytest.approx(1, abs=1e-5)
    rate = shares * efficiency(link, snr.ratio(shares))
    torch.testing.assert_close((bits / rate)[sending], uses.expand(4), rtol=1e-5, atol=0)


def test_a_device_alone_has_the_whole_band():
    link = digital(make_air(subcarrier_groups=4, coherence_symbols=50, csi_error=0.1))
    bits = torch.tensor([0.0, 7e3, 0.0, 0.0, 0.0], dtype=torch.float64)
    turns, shared = airtime(link, 1, bits, "orthogonal"), airtime(link, 1, bits, "ofdma")
    assert shared.uses == pytest.approx(turns.uses, rel=1e-6) and shared.pilots == turns.pilots
    torch.testing.assert_close(shared.device_uses, turns.device_uses)


def test_every_device_sends_a_pilot_in_the_blocks_that_its_part_meets():
    """Two equal devices on two groups of subcarriers have one each; on one group both send pilots in every block."""
    bits = torch.tensor([1e4, 1e4, 0.0, 0.0, 0.0], dtype=torch.float64)
    group = [torch.arange(2)]
    link = replace(equal_air(1.0), coherence_symbols=100)
    one, two = (ofdma_airtime(replace(link, subcarrier_groups=g), 1, bits, group) for g in (1, 2))
    assert one.blocks.tolist() == [math.ceil(one.uses / 100)] * 2 + [0] * 3
    assert two.blocks.tolist() == [math.ceil(two.uses / 200)] * 2 + [0] * 3
    assert one.pilots == 2 * math.ceil(one.uses / 100) and two.pilots == 2 * math.ceil(two.uses / 200)


def test_the_ledger_of_shared_bands_has_every_device_radiate_all_the_time():
    link = make_air(coherence_symbols=10_000)
    got = send(digital(link, access="ofdma"), 1, *gradients(link), everyone(link)).ledger
    turns = send(digital(link), 1, *gradients(link), everyone(link)).ledger
    assert got.air_seconds < turns.air_seconds and got.joules_mean > turns.joules_mean
