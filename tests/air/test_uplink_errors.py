"""Claimed, measured, bias and variance of a round against each other: as averages, within their standard errors.

Fading stays as it is while noise, scrambling and CSI error are drawn again and again, so that a design is made once and
every statement is tested given the channels.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from airpfed.air import transmit
from airpfed.air.designs.power_sharing import share_energy
from airpfed.air.uplink import initial_statistics
from airpfed.core.rng import stream
from support.networks import flat
from support.uplinks import TASKS, alike, drawn, everyone, excess, large_air, make_air, rounds, send, slots, z_of

DESIGNS = [
    ("uniform_forcing", False),
    ("mmse", False),
    ("mmse", True),
    ("channel_inversion", False),
    ("naive_ao", False),
]
EVERY_WAY = list(product(("tdma", "concurrent"), ("iq", "real"), ("per_device", "common")))
SOME_WAYS = [
    ("tdma", "real", "common"),
    ("concurrent", "iq", "common"),
    ("concurrent", "real", "per_device"),
    ("superposed", "iq", "per_device"),
    ("superposed", "real", "common"),
]
CASES = [
    (name, debias, way) for name, debias in DESIGNS for way in (EVERY_WAY if name == "uniform_forcing" else SOME_WAYS)
]


@pytest.mark.parametrize(("design", "debias", "way"), CASES)
def test_measured_meets_claimed_and_its_parts(design, debias, way, monkeypatch):
    access, packing, normalizer = way
    link = large_air(design, debias, access=access, packing=packing, normalizer=normalizer)
    rows = list(rounds(link, 12, monkeypatch))
    assert abs(z_of(excess(rows, lambda e: e.claimed))) < 5
    assert abs(z_of(excess(rows, lambda e: e.bias + e.variance))) < 5


@pytest.mark.parametrize(("packing", "normalizer"), [("iq", "common"), ("real", "per_device")])
@pytest.mark.parametrize(("design", "debias"), DESIGNS)
def test_measured_meets_claimed_with_imperfect_estimates(design, debias, packing, normalizer, monkeypatch):
    access = "concurrent" if packing == "iq" else "tdma"
    link = large_air(design, debias, access=access, packing=packing, normalizer=normalizer, csi_error=0.05)
    rows = list(rounds(link, 24, monkeypatch))
    assert abs(z_of(excess(rows, lambda e: e.claimed))) < 5
    assert abs(z_of(excess(rows, lambda e: e.bias + e.variance))) < 5


@pytest.mark.parametrize("access", ["tdma", "concurrent"])
def test_measured_meets_claimed_where_slots_share_energy(access, monkeypatch):
    link = large_air("mmse", access=access, refine=share_energy)
    rows = list(rounds(link, 10, monkeypatch))
    assert abs(z_of(excess(rows, lambda e: e.claimed))) < 5
    assert abs(z_of(excess(rows, lambda e: e.bias + e.variance))) < 5


@pytest.mark.parametrize(("packing", "lengths"), [("iq", (400, 800)), ("real", (800, 400))])
def test_measured_meets_claimed_where_a_task_is_silent_in_the_tail(packing, lengths, monkeypatch):
    """Interference and noise count where a task has entries: a shorter task hears the first blocks only."""
    link = large_air("naive_ao", lengths=lengths, access="concurrent", packing=packing, antennas=4)
    rows = list(rounds(link, 60, monkeypatch))
    for problem in range(3):
        assert abs(z_of(excess(rows, lambda e: e.bias + e.variance)[:, problem])) < 5
        assert abs(z_of(excess(rows, lambda e: e.claimed)[:, problem])) < 5


@pytest.mark.parametrize(("noise", "seen"), [(1.0, False), (1.02, True)])
def test_a_slip_of_two_percent_in_the_noise_is_seen(noise, seen, monkeypatch):
    """The power of the checks above, at a size where 2 % is beyond five standard errors."""
    original = transmit.receiver_noise
    monkeypatch.setattr(transmit, "receiver_noise", lambda *given: noise**0.5 * original(*given))
    rows = list(rounds(large_air("uniform_forcing", d=20_000), 16, monkeypatch))
    assert (abs(z_of(excess(rows, lambda e: e.claimed))) > 5) == seen
    assert (abs(z_of(excess(rows, lambda e: e.bias + e.variance))) > 5) == seen


@pytest.mark.parametrize(("access", "packing"), [("concurrent", "iq"), ("concurrent", "real"), ("tdma", "iq")])
def test_bias_is_the_error_of_the_mean_and_variance_the_rest(access, packing, monkeypatch):
    """One round's gradients and channels, noise and scrambling drawn anew: of N draws, the sample variance per batch
    against `variance`, and the error of the mean against bias + variance / N."""
    draws, batch = 80, 8
    link = large_air("naive_ao", access=access, packing=packing, d=200)
    link = replace(link, noise=30 * link.noise)
    rows = list(rounds(link, draws, monkeypatch, fresh=False))
    shared, personal = drawn(link, 0)
    weights = torch.stack([link.samples, link.samples * (link.task_of == 0), link.samples * (link.task_of == 1)])
    weights = weights / weights.sum(1, keepdim=True)
    for problem, weight in enumerate(weights):
        G = weight @ (personal if problem else shared).double()
        got = torch.stack([r.personal[problem - 1] if problem else r.shared for r in rows]).double()
        error = slots(rows[0])[problem]
        spread = got.reshape(-1, batch, got.shape[1]).var(1).sum(1) / error.scale
        assert abs(z_of(spread / error.variance - 1)) < 5
        halves = got[: draws // 2].mean(0) - G, got[draws // 2 :].mean(0) - G
        products = (got[: draws // 2] - G) @ halves[1] / error.scale  # independent halves: no variance in the mean
        assert abs(z_of(products - error.bias)) < 5
        assert error.bias > 0.05 * error.variance


def test_uniform_forcing_is_unbiased():
    link = large_air("uniform_forcing", access="concurrent")
    for error in slots(send(link, 1, *drawn(link, 0), everyone(link))):
        assert error.bias < 1e-12 < error.variance


def test_bias_counts_the_error_of_the_channel_estimate():
    """Given the channels: CSI error is no noise of the round, so forcing with a wrong estimate is biased."""
    link = large_air("uniform_forcing", csi_error=0.05)
    for error in slots(send(link, 1, *drawn(link, 0), everyone(link))):
        assert error.bias > 0.01 * error.variance


def test_the_error_of_silence_is_the_energy_of_the_weights():
    """Independent entries: ||G||^2 / (sigma^2 d) of a slot that sends nothing, on average."""
    link = large_air("uniform_forcing", d=4000)
    ratio = []
    for draw in range(12):
        received = send(link, 1, *drawn(link, draw), everyone(link))
        shared, _ = drawn(link, draw)
        G = (link.samples / link.samples.sum()) @ shared.double()
        error = slots(received)[0]
        ratio.append(float(G.square().sum()) / error.scale / error.silence - 1)
    assert abs(z_of(torch.tensor(ratio))) < 5


@pytest.mark.parametrize("access", ["tdma", "concurrent"])
def test_correlation_is_learned_from_round_to_round_and_answered(access):
    """-10 dB: after some rounds the claim meets what is measured, and the gain pays; without either it is far off."""
    sums = {}
    for name, changes in {"learned": {"rescale": True, "correlation": None}, "ignored": {}}.items():
        link = large_air("mmse", access=access, **changes)
        link = replace(link, noise=100 * link.noise)
        correlation_statistics, found = initial_statistics(link), []
        for t in range(1, 17):
            received = send(link, t, *alike(link, t), everyone(link), correlation_statistics)
            correlation_statistics = received.correlation_statistics
            found += [(received.pi, received.pi_claimed, received.correlation)] if t > 6 else []
        sums[name] = [sum(row[i] for row in found) for i in (0, 1)]
        if name == "learned":
            assert all(abs(rho - 0.7) < 0.15 for _, _, rows in found for pair in rows[:1] for rho in pair)
    (learned, claimed), (ignored, blind) = sums["learned"], sums["ignored"]
    assert claimed / learned == pytest.approx(1, abs=0.1)
    assert blind / ignored < 0.8
    assert learned < 0.95 * ignored


def alike_across(t: int) -> tuple[Tensor, Tensor]:
    """Gradients of five devices that correlate by 0.7 within a task and by 0.4 across tasks."""
    rng = stream(13, "alike across", t)

    def rows() -> Tensor:
        own, common = torch.randn(5, 2000, generator=rng), torch.randn(1, 2000, generator=rng)
        return 0.3**0.5 * own + 0.4**0.5 * common + 0.3**0.5 * torch.randn(2, 2000, generator=rng)[TASKS]

    return rows(), rows()


@pytest.mark.parametrize("design", ["mmse", "channel_inversion", "uniform_forcing"])
@pytest.mark.parametrize(
    ("topology", "access"),
    [(one, access) for one in ("single_cell", "joint", "two_hop") for access in ("tdma", "concurrent", "superposed")],
)
def test_no_claim_stays_below_what_is_measured(design, topology, access):
    """Correlation of tasks that no receiver can hear: with an estimate a claim of 0.70 of the error stood for ever."""
    gain = torch.full((1 if topology == "single_cell" else 2, 5), 1e-10, dtype=torch.float64)
    one = ((0, 2000),)
    link = make_air(
        design, topology=topology, access=access, network=flat(gain, 8), noise=3e-11, correlation=None,
        lengths=(2000, 2000), rescale=design == "mmse",
        shared_groups=one, personal_groups=one, personal_rows=(0,), coherence_symbols=200,
        biased=design != "uniform_forcing",
    )  # fmt: skip
    correlation_statistics, rows = initial_statistics(link), []
    for t in range(12):
        got = send(link, t, *alike_across(t), everyone(link), correlation_statistics)
        correlation_statistics, rows = got.correlation_statistics, [*rows, got] if t >= 5 else []
    both = [[(e.claimed, e.measured) for e in slots(got)] for got in rows]
    hidden = access == "superposed" or (topology == "two_hop" and design != "uniform_forcing")
    assert (both[0][0][0] is None) == hidden
    assert all((got.pi_claimed is None) == hidden for got in rows)
    for problem in zip(*both, strict=True):
        ratios = torch.tensor([c / m for c, m in problem if c is not None], dtype=torch.float64)
        assert len(ratios) < 2 or ratios.mean() > 0.97 - 5 * ratios.std() / len(ratios) ** 0.5


@pytest.mark.parametrize(("belief", "told"), [(0.4, True), (None, False)])
def test_a_correlation_that_is_given_is_claimed_by(belief, told):
    link = large_air("mmse", access="superposed", correlation=belief)
    got = send(link, 1, *drawn(link, 0), everyone(link))
    assert got.mse.s is not None and (got.mse.s.claimed is not None) == told


@pytest.mark.parametrize("csi_error", [0.0, 0.05])
@pytest.mark.parametrize("access", ["concurrent", "superposed"])
def test_the_genie_knows_the_symbols(access, csi_error, monkeypatch):
    """Correlated gradients: the genie's claim is right on average where the i.i.d. one is not."""
    link = large_air("mmse", access=access, csi_error=csi_error)
    link = replace(link, noise=10 * link.noise)
    rows = list(rounds(link, 60, monkeypatch, of=alike))
    assert abs(z_of(excess(rows, lambda e: e.claimed_genie))) < 5
    assert z_of(excess(rows, lambda e: e.claimed)[:, :1]) > 5
