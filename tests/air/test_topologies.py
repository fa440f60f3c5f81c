"""Edges: what each receiver hears, how edges' sums become one, and that claims know it."""

from dataclasses import replace

import pytest
import torch

from airpfed.air import slot_errors
from airpfed.air.designs import DESIGNS
from airpfed.air.grouping import fixed_grouping
from airpfed.air.network import csi_variance
from airpfed.air.problem import TransceiverProblem, mse, objective
from airpfed.air.schedule import Updates, Uplink, schedule
from airpfed.air.segments import antennas_of, problem_of
from support.networks import flat
from support.uplinks import (
    TASKS,
    alike,
    drawn,
    everyone,
    excess,
    gradients,
    is_finite,
    large_air,
    make_air,
    means,
    rounds,
    send,
    slots,
    z_of,
)

NEAR, FAR = 1e-10, 2e-12


def edges(link: Uplink, antennas: int = 8, far: float = FAR) -> Uplink:
    """Two edges, one a task, each device 17 dB nearer to its own."""
    own = torch.stack([TASKS == 0, TASKS == 1])
    gain = torch.where(own, NEAR, far).double()
    return replace(link, network=flat(gain, antennas))


@pytest.mark.parametrize("design", ["uniform_forcing", "mmse", "error_free"])
@pytest.mark.parametrize("absent", [[], [3]])
def test_two_hop_is_the_sum_of_the_edges_sums(design, absent):
    """sum_n (D_n/D) of what each edge gets alone: without noise and interference, the mean over all devices."""
    link = edges(make_air(design, topology="two_hop", noise=0.0, access="concurrent"), far=0.0)
    shared, personal = gradients(link)
    present = everyone(link)
    present[absent] = False
    G_s, G_p = means(link, shared, personal, present)
    shared[absent], personal[absent] = torch.nan, torch.nan
    got = send(link, 1, shared, personal, present)
    torch.testing.assert_close(got.shared, G_s.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.personal, G_p.float(), rtol=1e-5, atol=1e-6)


def test_two_hop_mixes_its_receivers_by_their_share_of_the_data():
    """With noise and interference too: sum_n (D_n/D) of the receivers' sums, and the measured error is that sum's."""
    link = edges(make_air("mmse", topology="two_hop"))
    shared, personal = gradients(link)
    slot = schedule(link, Updates(shared, personal, everyone(link)), fixed_grouping(link, everyone(link)))[0]
    torch.testing.assert_close(slot.combining_matrix, torch.tensor([[8 / 20, 12 / 20]], dtype=torch.float64))
    assert slot.stations == (0, 1) and slot.targets == (None,)
    # Errors of the edges are independent, so their powers add.
    torch.testing.assert_close(slot.target_weight[None, :], slot.combining_matrix.square())
    got = send(link, 1, shared, personal, everyone(link))
    G_s, _ = means(link, shared, personal, everyone(link))
    error = slots(got)[0]
    assert error.measured * error.scale == pytest.approx(float((got.shared.double() - G_s).square().sum()), rel=1e-4)


@pytest.mark.parametrize("topology", ["joint", "two_hop"])
@pytest.mark.parametrize("access", ["tdma", "concurrent", "superposed"])
def test_one_edge_is_a_single_cell(topology, access):
    """One task, one edge: the same channels, sums and errors."""
    task_of = torch.zeros(5, dtype=torch.long)
    link = make_air(
        "uniform_forcing", access=access, task_of=task_of, task_names=("all",), lengths=(37,), personal_slots=1
    )
    shared, personal = gradients(link)
    one = send(link, 1, shared, personal, everyone(link))
    other = send(replace(link, topology=topology), 1, shared, personal, everyone(link))
    torch.testing.assert_close(one.shared, other.shared)
    torch.testing.assert_close(one.personal, other.personal)
    for a, b in zip(slots(one), slots(other), strict=True):
        assert a.measured == pytest.approx(b.measured) and a.claimed == pytest.approx(b.claimed)


def test_joint_hears_s_with_all_antennas_and_p_with_its_own():
    link = edges(make_air(topology="joint", access="tdma"))
    shared, personal = gradients(link)
    s, first, second = schedule(link, Updates(shared, personal, everyone(link)), ((0,), (1,)))
    assert antennas_of(link, s) == slice(None)
    assert (antennas_of(link, first), antennas_of(link, second)) == (slice(0, 8), slice(8, 16))


def problem_of_slot(link: Uplink, which: int) -> TransceiverProblem:
    """The design problem of one slot of the round, weights as they are."""
    shared, personal = gradients(link)
    slot = schedule(link, Updates(shared, personal, everyone(link)), fixed_grouping(link, everyone(link)))[which]
    known, _ = link.channels(1, 2)
    return problem_of(link, slot, slot.weights, known, csi_variance(link.network, link.csi_error))


@pytest.mark.parametrize("name", sorted(DESIGNS))
@pytest.mark.parametrize(
    ("topology", "access", "which"), [("two_hop", "tdma", 0), ("joint", "concurrent", 1), ("joint", "superposed", 0)]
)
@pytest.mark.parametrize("packing", ["iq", "real"])
def test_a_receiver_uses_its_own_antennas_only(name, topology, access, which, packing):
    problem = problem_of_slot(edges(make_air(topology=topology, access=access, packing=packing), antennas=4), which)
    assert problem.antenna_mask is not None
    made = DESIGNS[name](problem)
    assert (made.receiver.abs().amax(0).T[~problem.antenna_mask] == 0).all()
    assert made.receiver.abs().sum() > 0 or name == "channel_inversion"  # which may find silence better


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize(("topology", "access", "which"), [("two_hop", "tdma", 0), ("joint", "concurrent", 1)])
def test_mmse_is_never_worse_than_forcing_at_the_edges_and_stationary(topology, access, which, packing):
    """And neither loses to the other's receivers when these know more: all antennas can only help."""
    problem = problem_of_slot(edges(make_air(topology=topology, access=access, packing=packing)), which)
    least, forced = DESIGNS["mmse"](problem), DESIGNS["uniform_forcing"](problem)
    assert (objective(problem, least) <= objective(problem, forced) * (1 + 1e-9)).all()
    everything = replace(problem, antenna_mask=None)
    assert float(objective(everything, DESIGNS["mmse"](everything)).mean()) <= float(objective(problem, least).mean())


@pytest.mark.parametrize("csi_error", [0.0, 0.02])
def test_the_edge_s_error_is_that_of_the_antennas(csi_error):
    """mse() of the stacked slot against a loop over receivers with their own channels only."""
    link = edges(make_air(topology="joint", access="concurrent", csi_error=csi_error), antennas=4)
    problem = problem_of_slot(link, 1)
    made = DESIGNS["naive_ao"](problem)
    variance = csi_error * link.network.gain
    for n in range(2):
        rows = slice(4 * n, 4 * n + 4)
        for b in range(len(problem.h)):
            m, h, f = made.receiver[b, rows, n], problem.h[b, rows], made.transmit_factors[b]
            error = (m.conj() @ h * f - problem.weights[n]).abs().square().sum()
            noise = (problem.noise + (variance[n] * f.abs().square()).sum()) * m.abs().square().sum()
            torch.testing.assert_close(mse(problem, made)[b, n], error + noise)


CASES = [
    ("uniform_forcing", "two_hop", "tdma", "iq", "per_device"),
    ("naive_ao", "two_hop", "concurrent", "real", "common"),
    ("naive_ao", "joint", "concurrent", "iq", "common"),
    ("naive_ao", "two_hop", "superposed", "iq", "per_device"),
]


@pytest.mark.parametrize(("design", "topology", "access", "packing", "normalizer"), CASES)
def test_claims_hold_at_the_edges(design, topology, access, packing, normalizer, monkeypatch):
    link = large_air(design, d=400, topology=topology, access=access, packing=packing, normalizer=normalizer)
    rows = list(rounds(edges(link, antennas=3, far=NEAR / 8), 14, monkeypatch))
    for expected in (lambda e: e.claimed, lambda e: e.claimed_genie, lambda e: e.bias + e.variance):
        assert abs(z_of(excess(rows, expected))) < 5


def test_edges_errors_of_correlated_symbols_add_up_as_claimed(monkeypatch):
    """Given the true correlation; without the edges' shared part the claim would miss by far."""
    link = large_air("naive_ao", d=400, topology="two_hop", access="tdma", correlation=0.7)
    link = edges(replace(link, noise=30 * link.noise), antennas=3, far=NEAR / 8)
    rows = list(rounds(link, 20, monkeypatch, of=alike))
    claim = excess(rows, lambda e: e.claimed)[:, :1]
    assert abs(float(claim.mean())) < 0.05
    genie = excess(rows, lambda e: e.claimed_genie)
    assert abs(z_of(genie)) < 5 and abs(z_of(genie[:, :1])) < 5 and abs(float(genie[:, :1].mean())) < 0.05
    monkeypatch.setattr(
        slot_errors, "error_products", lambda problem, made, *rest: torch.zeros(len(problem.h), 2, 2).double()
    )
    blind = excess(list(rounds(link, 6, monkeypatch, of=alike)), lambda e: e.claimed)[:, :1]
    assert float(blind.mean()) > 0.2


@pytest.mark.parametrize("bits", [2, 6])
@pytest.mark.parametrize("mixing", ["none", "full"])
def test_the_backhaul_s_rounding_is_part_of_claim_and_variance(mixing, bits, monkeypatch):
    link = edges(large_air("uniform_forcing", d=400, topology="two_hop", backhaul_bits=bits, mixing=mixing))
    rows = list(rounds(replace(link, noise=1e-6 * link.noise), 14, monkeypatch))
    for expected in (lambda e: e.claimed, lambda e: e.claimed_genie, lambda e: e.bias + e.variance):
        assert abs(z_of(excess(rows, expected)[:, :1])) < 5
    free = slots(send(replace(link, noise=1e-6 * link.noise, backhaul_bits=None), 1, *drawn(link, 0), everyone(link)))[
        0
    ]
    assert rows[0].mse.s is not None and rows[0].mse.s.variance > 10 * free.variance


def test_the_ledger_charges_the_backhaul():
    link = edges(make_air(topology="two_hop"))
    shared, personal = gradients(link)
    free = send(link, 1, shared, personal, everyone(link)).ledger
    coarse = send(replace(link, backhaul_bits=4), 1, shared, personal, everyone(link)).ledger
    assert free.backhaul_bits == 2 * 41 * 32
    assert coarse.backhaul_bits == 2 * (41 * 4 + 16)
    assert send(edges(make_air(topology="joint")), 1, shared, personal, everyone(link)).ledger.backhaul_bits == 0


@pytest.mark.parametrize("topology", ["joint", "two_hop"])
@pytest.mark.parametrize("absent", [[0, 1], [0, 1, 2, 3, 4], [2]])
def test_absent_tasks_and_devices_leave_defined_rounds(topology, absent):
    link = edges(make_air("mmse", topology=topology, access="concurrent"))
    shared, personal = gradients(link)
    present = everyone(link)
    present[absent] = False
    got = send(link, 1, shared, personal, present)
    assert is_finite(got)
    if len(absent) == 5:
        assert got.pi is None and not got.shared.any()
