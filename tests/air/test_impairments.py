"""Each impairment against its theory, through the whole uplink, and its off value."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from airpfed.air.correlation import INDEPENDENT, SampleCorrelation, correlated_distortion
from airpfed.air.distortion import amplifier_gains, coherent_share, equalise_amplifiers
from airpfed.air.grid import ResourceGrid
from airpfed.air.grouping import round_grouping
from airpfed.air.impairments import (
    ADC_NOISE,
    NONE,
    Impairments,
    amplifier_statistics,
    amplify,
    clipped_statistics,
    distortion_orders,
    impairment_factors,
    silence_faint_devices,
    steady_distortion,
)
from airpfed.air.problem import Transceiver, TransceiverProblem, gains
from airpfed.air.schedule import Updates, Uplink, reason_without_any_claim, reason_without_claim, schedule
from airpfed.air.segments import block_ranges_of, split_slots
from airpfed.air.transceivers import design_separately
from airpfed.air.uplink import initial_statistics
from airpfed.core.rng import stream
from airpfed.core.run_files import SlotError
from support.networks import flat
from support.uplinks import alike, as_scheme, drawn, everyone, excess, large_air, make_air, rounds, send, slots, z_of

KEYS = ("measured", "claimed")


def quiet_air(design: str = "uniform_forcing", **changes) -> Uplink:
    """One target a slot, almost no noise, common normaliser: what is left of forcing's error is the impairment's."""
    link = large_air(design, **{"normalizer": "common", **changes})
    return replace(link, noise=1e-9 * link.noise)


def own_signal(link: Uplink) -> Tensor:
    """sum_k w_k^2 p_k of the s-slot and of both p-slots, p_k the symbols' power under the common normaliser."""
    shared, personal = drawn(link, 0)
    powers = [rows.double().square().mean(1) for rows in (shared, personal)]
    most = torch.cat(powers).max()
    weights = [link.samples, link.samples * (link.task_of == 0), link.samples * (link.task_of == 1)]
    each = [(w / w.sum()).square() @ (powers[min(i, 1)] / most) for i, w in enumerate(weights)]
    return torch.stack(each)


def measured(link: Uplink, count: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """MSE of every slot, a row a round."""
    return torch.tensor(
        [[e.measured for e in slots(row)] for row in rounds(link, count, monkeypatch)], dtype=torch.float64
    )


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("phase", [0.2, 0.9])
def test_what_scatters_is_the_variance_of_the_random_gain(real, phase):
    """E|xi v - v E xi|^2 of gains of any angle, or of its real part."""
    impairments, v = (
        Impairments(phase_rad=phase, outage=0.2),
        torch.polar(torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([0.0, 0.8, 2.5]).double()),
    )
    moved = torch.cat([impairment_factors(impairments, seed, (), 1, range(200), 3) for seed in range(200)]) * v
    distortion = steady_distortion(impairments)
    off = moved - distortion.mean * v
    square = off.real.square() if real else off.abs().square()
    error = square.mean(0) - distortion.scattered_power(v[None, None], real)[0, 0]
    assert bool((error.abs() < 5 * square.std(0) / len(square) ** 0.5).all())


@pytest.mark.parametrize(
    ("impairments", "factor"),
    [
        (Impairments(phase_rad=0.2), 2 * (1 - math.exp(-(0.2**2) / 2))),
        (Impairments(phase_rad=0.8), 2 * (1 - math.exp(-(0.8**2) / 2))),
        (Impairments(outage=0.1), 0.1),
        (Impairments(outage=0.5), 0.5),
        (Impairments(phase_rad=0.3, outage=0.2), 1 - 2 * 0.8 * math.exp(-(0.3**2) / 2) + 0.8),
    ],
    ids=["phase", "much phase", "outage", "much outage", "both"],
)
def test_the_own_signal_s_error_is_its_theory(impairments, factor, monkeypatch):
    """E|xi - 1|^2 w_k^2 of every device: 2 (1 - exp(-sigma^2/2)) for the phase, p for an outage."""
    link = replace(quiet_air(impairments=impairments, d=400), coherence_symbols=8)
    ratio = measured(link, 8, monkeypatch) / (factor * own_signal(link)) - 1
    assert abs(z_of(ratio)) < 5
    assert float(ratio.mean(1).std()) / len(ratio) ** 0.5 < 0.15  # a factor of two would be seen


@pytest.mark.parametrize(("level", "smoothness"), [(2.0, math.inf), (0.7, math.inf), (1.5, 2.0)])
def test_an_amplified_signal_s_error_is_bussgang_s(level, smoothness, monkeypatch):
    """The distortion's power over alpha^2, alpha and power of a signal of each device's own share of its limit."""
    harm = Impairments(clipping=level, smoothness=smoothness)
    link = quiet_air(impairments=harm, subcarriers=50, mixing="full", normalizer="per_device")
    link = replace(link, coherence_symbols=400)
    for error in slots(send(link, 1, *drawn(link, 0), everyone(link))):
        assert error.claimed is not None
    rows = list(rounds(link, 20, monkeypatch))
    measured, claimed = (torch.tensor([[getattr(e, key) for e in slots(row)] for row in rows]) for key in KEYS)
    ratio = measured.sum(1, keepdim=True) / claimed.sum(1, keepdim=True) - 1
    assert abs(z_of(ratio)) < 5 and float(ratio.std()) / len(ratio) ** 0.5 < 0.05


def test_a_forced_signal_s_amplifier_error_by_hand(monkeypatch):
    """One device, which sends at its limit: the receivers divide by alpha, and (power - alpha^2) / alpha^2 is left."""
    link = quiet_air(impairments=Impairments(clipping=1.2), subcarriers=50, mixing="full", antennas=1)
    link = replace(link, coherence_symbols=400, normalizer="per_device", noise=0.0)
    only = torch.tensor([True, False, False, False, False])
    gain, power = clipped_statistics(1.2)
    values = []
    for t in range(1, 30):
        shared, personal = drawn(link, t)
        error = send(link, t, shared, personal, only).mse.s
        assert error is not None and error.claimed == pytest.approx(power / gain**2 - 1, rel=1e-9)
        values.append(error.measured)
    ratio = torch.tensor(values) / error.claimed - 1
    assert abs(z_of(ratio[:, None])) < 5 and float(ratio.std()) / len(ratio) ** 0.5 < 0.02


@pytest.mark.parametrize(
    ("impairments", "rho"),
    [
        (Impairments(carrier_offset_hz=500.0), 0.9),
        (Impairments(carrier_offset_hz=1000.0), 0.9),
        (Impairments(timing_drift=0.3), 0.9),
        (Impairments(adc_noise=ADC_NOISE[2]), 0.9),
        (Impairments(clipping=1.2), 0.9),
    ],
    ids=["carrier", "much carrier", "timing", "adc", "amplifier"],
)
def test_the_first_round_s_claims_need_no_correlation(impairments, rho):
    """Symbols that nearly agree, which nobody knows before round 1; claims take what adds up from received power."""
    link = large_air("uniform_forcing", impairments=impairments, d=400, subcarriers=80, mixing="full")
    link = replace(link, coherence_symbols=40, bandwidth_hz=3e5)
    rows = [slots(send(link, t, *alike(link, t, rho), everyone(link))) for t in range(1, 41)]
    keys = ("claimed", "measured", "claimed_genie")
    claimed, measured, genie = (torch.tensor([[getattr(e, key) for e in row] for row in rows]).sum(1) for key in keys)
    for truth, slack, most in ((measured, 0.03, 0.06), (genie, 0.01, 0.01)):
        ratio = float(claimed.mean() / truth.mean())
        deviation = float((claimed - ratio * truth).std() / len(rows) ** 0.5 / truth.mean())
        assert abs(ratio - 1) < slack + 3 * deviation and deviation < most


@pytest.mark.parametrize("block", [60, 120, 240], ids=["half a symbol", "a symbol", "two symbols"])
@pytest.mark.parametrize("rho", [0.5, 0.95])
def test_amplifiers_of_correlated_symbols_distort_alike(block, rho):
    """Distortions of two devices correlate by rho^3, rho^5, ..., as far as the block fills its OFDM symbols."""
    harm = Impairments(clipping=0.8)
    link = large_air(
        "uniform_forcing", impairments=harm, d=960, subcarriers=120, mixing="full", normalizer="per_device"
    )
    link = replace(link, coherence_symbols=block, noise=1e-6 * link.noise)
    received = [send(link, t, *alike(link, t, rho), everyone(link)).mse.s for t in range(1, 31)]
    for key, slack in (("claimed_genie", 0.02), ("claimed", 0.05)):
        claimed, measured = (torch.tensor([getattr(error, name) for error in received]) for name in (key, "measured"))
        ratio = float(claimed.mean() / measured.mean())
        deviation = float((claimed - ratio * measured).std() / len(received) ** 0.5 / measured.mean())
        assert abs(ratio - 1) < slack + 3 * deviation and deviation < 0.02, (key, ratio, deviation)


@pytest.mark.parametrize("levels", [(0.8, 0.8), (0.8, 3.0)], ids=["alike", "unlike"])
def test_two_distortions_correlate_by_their_orders(levels):
    """The mean product of two clipped signals' distortions, from signals; orders have signs, which depend on levels."""
    rng, rho, count = stream(3, "signals"), 0.9, 1_000_000
    own = [torch.randn(count, generator=rng, dtype=torch.complex128) for _ in range(3)]
    signals = [rho**0.5 * own[0] + (1 - rho) ** 0.5 * one for one in own[1:]]
    distortions, orders = [], []
    for signal, level in zip(signals, levels, strict=True):
        gain, _ = clipped_statistics(level)
        distortions.append(amplify(signal, torch.tensor(level), math.inf) - gain * signal)
        orders.append(distortion_orders(torch.tensor([level], dtype=torch.float64), math.inf)[0])
    product = (distortions[0].conj() * distortions[1]).real
    problem = TransceiverProblem.from_channels(torch.ones(1, 1, 2, dtype=torch.complex128), power_limit=1.0)
    one = torch.ones(1, 1, dtype=torch.complex128)
    transceiver = Transceiver(torch.tensor([[[0.5 + 0j]]]).to(one), torch.ones(1, 2, dtype=torch.complex128))
    spread, mean = 0.25, 0.8
    distortion = replace(
        steady_distortion(NONE), spread=torch.full((1, 1), spread), by_order=mean * torch.stack(orders)[None]
    )
    R = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    found = correlated_distortion(problem, transceiver, R, torch.ones(1, 1, 2), distortion).sum(-1).double()
    # 2 for both orders of the pair; 0.5^2 for the receiver.
    expected = (1 + spread) * mean**2 * 2 * 0.25 * float(product.mean())
    assert float(found) == pytest.approx(expected, rel=0.03)


def test_the_correlation_is_learned_from_power_without_the_distortion():
    """Amplifiers in saturation: their distortions add to the power of symbols that agree, and are no part of it."""
    link = large_air("uniform_forcing", impairments=Impairments(clipping=0.5), d=960, subcarriers=120, mixing="full")
    link = replace(link, coherence_symbols=120, noise=1e-6 * link.noise, correlation=None)
    statistics = initial_statistics(link)
    for t in range(1, 11):
        received = send(link, t, *alike(link, t, 0.7), everyone(link), statistics)
        statistics = received.correlation_statistics
    within, _ = received.correlation[0]  # of the kind of entries that both slots have
    assert within == pytest.approx(0.7, abs=0.02)


def test_symbols_under_different_signs_count_as_uncorrelated():
    """Every device sends the same; scrambling separates the tasks."""
    sample, sequence = torch.ones(4, 9) / 3, torch.tensor([0, 0, 1, 1])
    v = torch.tensor([1.0, 2.0, 4.0, 8.0])
    for R in (SampleCorrelation(sample, sequence), SampleCorrelation(sample, sequence).raised(3)):
        torch.testing.assert_close(R.times(v), torch.tensor([3.0, 3.0, 12.0, 12.0]))


@pytest.mark.parametrize(
    ("subcarriers", "groups", "block", "first", "uses"),
    [(8, 1, 8, 0, 24), (7, 1, 5, 3, 40), (12, 3, 10, 4, 100), (15, 3, 13, 0, 77), (1, 1, 3, 0, 9), (16, 1, 16, 4, 1996),
     (120, 1, 120, 60, 9000), (64, 64, 8, 0, 512), (300, 300, 2, 0, 600)],
)  # fmt: skip
def test_the_coherent_share_is_the_transform_of_each_symbol(subcarriers, groups, block, first, uses):
    blocks, ranges = block_ranges_of(first, uses, block)
    positions = ResourceGrid(block, groups, subcarriers).grid_positions(first, uses, blocks)
    of_use = torch.tensor([number for number, (a, b) in enumerate(ranges) for _ in range(b - a)])
    expected = torch.zeros(uses, dtype=torch.float64)
    for symbol in positions.symbol.unique():
        inside = positions.symbol == symbol
        occupied = {
            int(g): torch.zeros(subcarriers).index_fill_(0, positions.subcarrier[inside & (of_use == g)], 1.0)
            for g in of_use[inside].unique()
        }
        c = {g: torch.fft.ifft(one.double()) for g, one in occupied.items()}
        power = sum(one.abs().square() for one in c.values())
        for g, one in c.items():
            caused = torch.fft.fft(one * (2 * power - one.abs().square())).real
            expected[inside & (of_use == g)] = caused[positions.subcarrier[inside & (of_use == g)]]
    segment = SimpleNamespace(positions=positions, block_ranges=ranges)
    found = coherent_share(SimpleNamespace(subcarriers=subcarriers), segment)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.stack([expected[a:b].mean() for a, b in ranges]))


def test_p_sums_of_different_lengths_are_claimed_at_once():
    """A block that holds no entry of the shorter vector has no power, and is no reason to claim nothing."""
    link = large_air("uniform_forcing", lengths=(800, 100), access="concurrent", impairments=Impairments(phase_rad=0.2))
    personal = send(link, 1, *drawn(link, 0), everyone(link)).mse.p
    assert len(personal) == 2 and all(error.claimed is not None and error.claimed > 0 for error in personal.values())


@pytest.mark.parametrize("smoothness", [math.inf, 2.0])
def test_amplifiers_leave_the_gains_of_a_design_as_they_are(smoothness):
    """The mean gains, amplifiers included, are the design's, and no device sends more than before."""
    link = large_air(
        "uniform_forcing",
        impairments=Impairments(clipping=1.0, smoothness=smoothness),
        d=400,
        subcarriers=80,
        mixing="full",
    )
    link = replace(link, coherence_symbols=40, bandwidth_hz=3e5)
    updates = Updates(*drawn(link, 0), everyone(link))
    plan = schedule(link, updates, round_grouping(link, 1, everyone(link)))
    for segment in split_slots(link, plan, 1, [INDEPENDENT] * len(initial_statistics(link))):
        wanted = design_separately(link, [segment])[0]
        found = equalise_amplifiers(link, segment, wanted)
        effective = amplifier_gains(link, segment, found)[:, None, :] * gains(segment.problem.h, found)
        torch.testing.assert_close(effective, gains(segment.problem.h, wanted), rtol=1e-6, atol=1e-9)
        assert (found.transmit_factors.abs() <= wanted.transmit_factors.abs()).all()
        assert (amplifier_gains(link, segment, wanted).amin(1) < 0.95).all(), "amplifiers that matter"


def test_truncation_silences_as_many_as_the_gamma_law_says():
    """||h||^2 / gain of M antennas is Gamma(M): P(< M c) is its distribution function."""
    gain = torch.tensor([[1e-9, 3e-11]], dtype=torch.float64)
    for antennas, share in ((1, 0.3), (4, 0.5)):
        network = flat(gain, antennas)
        h, _ = network.channel_model(3, 1, range(4000))
        seen = silence_faint_devices(h, gain.expand(antennas, -1), share)
        silent = (seen == 0).all(1).double().mean(0)
        expected = float(torch.special.gammainc(torch.tensor(float(antennas)), torch.tensor(antennas * share)))
        assert ((silent - expected) / (expected * (1 - expected) / 4000) ** 0.5).abs().max() < 5


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("design", ["uniform_forcing", "mmse"])
def test_what_truncation_silences_is_missing_from_the_sum(design, packing):
    """A silent device is in G: its w_k^2 is error, the designs know, and the rest is as good as ever."""
    link = quiet_air(design, impairments=Impairments(truncation=0.8), packing=packing)
    for error in slots(send(link, 1, *drawn(link, 0), everyone(link))):
        assert error.measured == pytest.approx(error.claimed_genie, rel=1e-3, abs=1e-12)
    whole = slots(send(replace(link, impairments=NONE), 1, *drawn(link, 0), everyone(link)))
    assert sum(e.measured for e in whole) < 1e-3


EVERY = Impairments(phase_rad=0.3, outage=0.05, truncation=0.2)


@pytest.mark.parametrize(
    ("design", "access", "packing"),
    [
        ("uniform_forcing", "tdma", "iq"),
        ("naive_ao", "tdma", "real"),
        ("naive_ao", "concurrent", "iq"),
        ("uniform_forcing", "concurrent", "real"),
    ],
)
def test_claims_know_the_statistics_of_all_impairments(design, access, packing, monkeypatch):
    link = large_air(design, access=access, packing=packing, impairments=EVERY, d=400, subcarriers=80)
    rows = list(rounds(replace(link, coherence_symbols=40), 10, monkeypatch))
    for expected in (lambda e: e.claimed, lambda e: e.claimed_genie):
        assert abs(z_of(excess(rows, expected))) < 5


@pytest.mark.parametrize("access", ["tdma", "concurrent"])
@pytest.mark.parametrize(
    "impairments",
    [
        Impairments(carrier_offset_hz=300.0),
        Impairments(timing_drift=0.3),
        Impairments(adc_noise=ADC_NOISE[2]),
        Impairments(clipping=1.0),
        Impairments(carrier_offset_hz=300.0, clipping=1.0, phase_rad=0.2),
        Impairments(timing_drift=0.2, outage=0.05, adc_noise=ADC_NOISE[3]),
    ],
    ids=["carrier", "timing", "adc", "amplifier", "carrier, amplifier, phase", "timing, outage, adc"],
)
@pytest.mark.parametrize(("design", "packing"), [("uniform_forcing", "iq"), ("naive_ao", "real")])
def test_claims_know_offsets_converters_and_amplifiers(design, packing, access, impairments, monkeypatch):
    """Each alone and some together; a block is 40 uses, half of an OFDM symbol of 0.3 ms."""
    packing = "iq" if impairments.clipping is not None else packing
    link = large_air(
        design, access=access, packing=packing, impairments=impairments, d=400, subcarriers=80, mixing="full"
    )
    rows = list(rounds(replace(link, coherence_symbols=40, bandwidth_hz=3e5), 10, monkeypatch))
    for expected in (lambda e: e.claimed, lambda e: e.claimed_genie):
        assert abs(z_of(excess(rows, expected))) < 5
    blind = slots(send(replace(link, impairments=NONE), 1, *drawn(link, 0), everyone(link)))
    harm = slots(rows[0])
    assert all(one.claimed != other.claimed for one, other in zip(harm, blind, strict=True))


@pytest.mark.parametrize(
    ("access", "mixing", "packing"),
    [("tdma", "none", "iq"), ("tdma", "permutation", "iq"), ("superposed", "full", "iq"), ("tdma", "full", "real")],
)
@pytest.mark.parametrize("design", ["uniform_forcing", "mmse"])
def test_nothing_is_claimed_of_amplified_signals_without_a_law(design, access, mixing, packing):
    """Bussgang's gain is that of a Gaussian signal: unmixed gradients' errors were up to 550 times the claim."""
    link = large_air(
        design,
        access=access,
        mixing=mixing,
        packing=packing,
        d=400,
        subcarriers=80,
        impairments=Impairments(clipping=2.0),
    )
    got = send(link, 1, *drawn(link, 0), everyone(link))
    assert reason_without_claim(link) and got.pi is not None and got.pi_claimed is None
    assert all(e.claimed is None and e.claimed_genie is None and e.measured > 0 for e in slots(got))


def test_nothing_is_claimed_of_amplified_signals_at_several_edges():
    """Claims were half of the error there, for symbols that agree: distortions add up over the edges, too."""
    link = large_air("uniform_forcing", mixing="full", impairments=Impairments(clipping=2.0))
    edges = replace(link, topology="two_hop")
    assert reason_without_any_claim(edges) and reason_without_claim(edges)
    assert not reason_without_any_claim(link)
    assert not reason_without_any_claim(replace(edges, impairments=NONE))


@pytest.mark.parametrize("exact", [as_scheme("error_free"), as_scheme("digital")])
def test_a_clipping_amplifier_takes_no_claim_from_a_link_without_amplitudes(exact):
    """Error-free sums and rounded bits have the error that they say."""
    link = replace(large_air("uniform_forcing", d=400, subcarriers=80, impairments=Impairments(clipping=2.0)), **exact)
    assert reason_without_claim(link) == "" and send(link, 1, *drawn(link, 0), everyone(link)).pi_claimed is not None


def test_a_claim_blind_to_the_phase_would_be_seen(monkeypatch):
    """The power of the check above: claims at the off value miss by far."""
    link = large_air("uniform_forcing", impairments=Impairments(phase_rad=0.3), d=400)
    rows = list(rounds(replace(link, coherence_symbols=40), 12, monkeypatch))
    blind = slots(send(replace(link, impairments=NONE), 1, *drawn(link, 0), everyone(link)))[0].claimed
    assert abs(z_of(excess(rows, lambda e: blind)[:, :1])) > 5


def test_off_values_change_nothing():
    link = make_air("mmse")
    one = send(link, 1, *drawn_small(link), everyone(link))
    other = send(replace(link, impairments=Impairments(0.0, None, 0.0, None)), 1, *drawn_small(link), everyone(link))
    assert torch.equal(one.shared, other.shared) and one.mse == other.mse


def drawn_small(link: Uplink) -> tuple[Tensor, Tensor]:
    rng = stream(2, "small")
    own = torch.arange(max(link.lengths)) < torch.tensor(link.lengths)[link.task_of][:, None]
    return torch.randn(5, 41, generator=rng), torch.randn(5, max(link.lengths), generator=rng) * own


@given(level_db=st.floats(-10, 20))
def test_clipping_statistics_hold_for_a_gaussian_signal(level_db):
    """Gain and power left of a circular Gaussian signal, within five standard errors of 4000 samples."""
    level = 10 ** (level_db / 10)
    x = torch.randn(1, 4000, dtype=torch.complex128, generator=stream(5, "signal"))
    size = x.abs()
    limited = torch.where(size > level**0.5, x * level**0.5 / size, x)
    gain, left = clipped_statistics(level)
    for values, expected in (((limited * x.conj()).real, gain), (limited.abs().square(), left)):
        assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / 4000**0.5 + 1e-12


@pytest.mark.parametrize("smoothness", [1.0, 2.0, 3.0])
def test_rapp_statistics_hold_for_a_gaussian_signal(smoothness):
    x = torch.randn(40, 1000, dtype=torch.complex128, generator=stream(5, "signal"))
    for level in (0.3, 1.0, 4.0):
        y = amplify(x, torch.full((40, 1), level, dtype=torch.float64), smoothness)
        gain, power = amplifier_statistics(torch.tensor(level, dtype=torch.float64), smoothness)
        for values, expected in (((y * x.conj()).real, gain), (y.abs().square(), power)):
            assert abs(float(values.mean() - expected)) < 5 * float(values.std()) / 200


def test_a_very_hard_rapp_amplifier_clips():
    x = torch.randn(3, 500, dtype=torch.complex128, generator=stream(6, "signal"))
    level = torch.tensor([[0.5], [1.0], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(amplify(x, level, 400.0), amplify(x, level, math.inf), rtol=2e-3, atol=0)
    hard, soft = (torch.stack(amplifier_statistics(level, p)) for p in (math.inf, 400.0))
    torch.testing.assert_close(soft, hard, rtol=1e-3, atol=0)


def test_an_amplifier_keeps_every_sample_below_its_level_and_its_phase():
    x = torch.randn(3, 128, dtype=torch.complex128, generator=stream(6, "signal"))
    y = amplify(x, torch.tensor([[1.5], [0.2], [9.0]], dtype=torch.float64), math.inf)
    assert (y.abs().square() <= torch.tensor([[1.5], [0.2], [9.0]], dtype=torch.float64) * (1 + 1e-9)).all()
    torch.testing.assert_close(y / y.abs(), x / x.abs())
    torch.testing.assert_close(y[2][x[2].abs() < 3], x[2][x[2].abs() < 3])


def test_factors_of_a_block_do_not_depend_on_which_blocks_are_asked_for():
    impairments = Impairments(phase_rad=0.4, outage=0.3)
    every = impairment_factors(impairments, 1, (), 2, range(6), 5)
    torch.testing.assert_close(impairment_factors(impairments, 1, (), 2, range(2, 4), 5), every[2:4], rtol=0, atol=0)
    assert ((every == 0) | ((every.abs() - 1).abs() < 1e-12)).all()


def test_an_outage_of_all_devices_is_silence():
    """Every device unheard: the sum is noise, its error is that of silence plus noise, and nothing is NaN."""
    link = quiet_air(impairments=Impairments(outage=1 - 1e-12))
    errors: list[SlotError] = slots(send(link, 1, *drawn(link, 0), everyone(link)))
    for error in errors:
        assert error.measured > 0.1 * error.silence and math.isfinite(error.claimed)


@pytest.mark.parametrize("packing", ["iq", "real"])
def test_correlated_symbols_add_up_at_the_converters(packing, monkeypatch):
    """With the true Gram matrix the claim knows the power at the antennas; the variance contains it, too."""
    link = large_air("uniform_forcing", packing=packing, impairments=Impairments(adc_noise=ADC_NOISE[2]), d=400)
    link = replace(link, noise=1e-3 * link.noise, mixing="full", coherence_symbols=40)
    rows = list(rounds(link, 12, monkeypatch, of=alike))
    assert abs(z_of(excess(rows, lambda e: e.claimed_genie))) < 5
    assert abs(z_of(excess(rows, lambda e: e.bias + e.variance))) < 5


@pytest.mark.parametrize("name", ["carrier offset", "timing", "phase", "outage", "impulses"])
def test_every_drop_has_draws_of_its_own(name, monkeypatch):
    """Streams of a drop begin with its names, those of drop 0 as they are."""
    every = Impairments(carrier_offset_hz=10.0, timing_drift=0.01, phase_rad=0.1, outage=0.1)
    link = quiet_air(impairments=every, noise_alpha=1.8)
    drawn_names: list[tuple[object, ...]] = []

    def watched(seed, *names):  # type: ignore[no-untyped-def]
        drawn_names.append(names)
        return stream(seed, *names)

    for module in ("impairments", "distortion", "transmit"):
        monkeypatch.setattr(f"airpfed.air.{module}.stream", watched)
    for names in ((), ("drop", 3)):
        drawn_names.clear()
        send(replace(link, network=replace(link.network, names=names)), 1, *drawn(link, 0), everyone(link))
        found = [each for each in drawn_names if name in each]
        assert found and all(each[: len(names) + 1] == (*names, name) for each in found)
