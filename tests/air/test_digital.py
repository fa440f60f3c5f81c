"""The digital rival: what its rounding costs in error, what its bits cost in time."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from airpfed.air import resources
from airpfed.air.digital import airtime, group_airtime, rates_of, sinr
from airpfed.air.impairments import Impairments
from airpfed.air.network import estimate_channels
from airpfed.air.schedule import Uplink
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


def digital(link: Uplink, bits: int = 4, spatial: bool = False) -> Uplink:
    return replace(link, **as_scheme("digital", bits=bits, access="spatial" if spatial else "orthogonal"))


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
