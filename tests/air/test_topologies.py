"""Edges: what each receiver hears, how edges' sums become one, and that claims know it."""

from dataclasses import replace

import pytest
import torch
from test_uplink import TASKS, everyone, gradients, is_finite, make_air, means, send
from test_uplink_errors import alike, drawn, excess, large_air, rounds, slots, z_of

from airpfed.air import transmit
from airpfed.air.designs.table import DESIGNS
from airpfed.air.pieces import antennas_of, asked_of
from airpfed.air.plan import Air, grouping_of, plan
from airpfed.air.slot import Slot, mse, objective
from airpfed.air.uplink import sounded
from airpfed.air.world import csi_variance
from worlds import flat

NEAR, FAR = 1e-10, 2e-12


def edges(air: Air, antennas: int = 8, far: float = FAR) -> Air:
    """Two edges, one a task, each device 17 dB nearer to its own."""
    own = torch.stack([TASKS == 0, TASKS == 1])
    gain = torch.where(own, NEAR, far).double()
    return replace(air, world=flat(gain, antennas))


@pytest.mark.parametrize("design", ["uniform_forcing", "mmse", "error_free"])
@pytest.mark.parametrize("absent", [[], [3]])
def test_two_hop_is_the_sum_of_the_edges_sums(design, absent):
    """sum_n (D_n/D) of what each edge gets alone: without noise and interference, the mean over all devices."""
    air = edges(make_air(design, topology="two_hop", noise=0.0, access="concurrent"), far=0.0)
    shared, personal = gradients(air)
    present = everyone(air)
    present[absent] = False
    G_s, G_p = means(air, shared, personal, present)
    shared[absent], personal[absent] = torch.nan, torch.nan
    got = send(air, 1, shared, personal, present)
    torch.testing.assert_close(got.shared, G_s.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.personal, G_p.float(), rtol=1e-5, atol=1e-6)


def test_two_hop_mixes_its_receivers_by_their_share_of_the_data():
    """With noise and interference too: sum_n (D_n/D) of the receivers' sums, and the measured error is that sum's."""
    air = edges(make_air("mmse", topology="two_hop"))
    shared, personal = gradients(air)
    jobs = plan(air, shared, personal, everyone(air), grouping_of(air, everyone(air)))
    torch.testing.assert_close(jobs[0].mix, torch.tensor([[8 / 20, 12 / 20]], dtype=torch.float64))
    assert jobs[0].stations == (0, 1) and jobs[0].targets == (None,)
    torch.testing.assert_close(jobs[0].importance[None, :], jobs[0].mix.square())  # independent errors add so
    got = send(air, 1, shared, personal, everyone(air))
    G_s, _ = means(air, shared, personal, everyone(air))
    error = slots(got)[0]
    assert error.measured * error.scale == pytest.approx(float((got.shared.double() - G_s).square().sum()), rel=1e-4)


@pytest.mark.parametrize("topology", ["joint", "two_hop"])
@pytest.mark.parametrize("access", ["tdma", "concurrent", "superposed"])
def test_one_edge_is_a_single_cell(topology, access):
    """One task, one edge: the same channels, sums and errors."""
    task_of = torch.zeros(5, dtype=torch.long)
    air = make_air(
        "uniform_forcing", access=access, task_of=task_of, task_names=("all",), lengths=(37,), personal_slots=1
    )
    shared, personal = gradients(air)
    one = send(air, 1, shared, personal, everyone(air))
    other = send(replace(air, topology=topology), 1, shared, personal, everyone(air))
    torch.testing.assert_close(one.shared, other.shared)
    torch.testing.assert_close(one.personal, other.personal)
    for a, b in zip(slots(one), slots(other), strict=True):
        assert a.measured == pytest.approx(b.measured) and a.claimed == pytest.approx(b.claimed)


def test_joint_hears_s_with_all_antennas_and_p_with_its_own():
    air = edges(make_air(topology="joint", access="tdma"))
    shared, personal = gradients(air)
    s, first, second = plan(air, shared, personal, everyone(air), ((0,), (1,)))
    assert antennas_of(air, s) == slice(None)
    assert (antennas_of(air, first), antennas_of(air, second)) == (slice(0, 8), slice(8, 16))


def asked(air: Air, which: int) -> Slot:
    """The design problem of one slot of the round, weights as they are."""
    shared, personal = gradients(air)
    job = plan(air, shared, personal, everyone(air), grouping_of(air, everyone(air)))[which]
    known, _ = sounded(air, 1, 2)
    return asked_of(air, job, job.weights, known, csi_variance(air.world, air.csi_error))


@pytest.mark.parametrize("name", sorted(DESIGNS))
@pytest.mark.parametrize(
    ("topology", "access", "which"), [("two_hop", "tdma", 0), ("joint", "concurrent", 1), ("joint", "superposed", 0)]
)
@pytest.mark.parametrize("packing", ["iq", "real"])
def test_a_receiver_uses_its_own_antennas_only(name, topology, access, which, packing):
    slot = asked(edges(make_air(topology=topology, access=access, packing=packing), antennas=4), which)
    assert slot.sees is not None
    made = DESIGNS[name](slot)
    assert (made.receiver.abs().amax(0).T[~slot.sees] == 0).all()
    assert made.receiver.abs().sum() > 0 or name == "channel_inversion"  # which may find silence better


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize(("topology", "access", "which"), [("two_hop", "tdma", 0), ("joint", "concurrent", 1)])
def test_mmse_is_never_worse_than_forcing_at_the_edges_and_stationary(topology, access, which, packing):
    """And neither loses to the other's receivers when these know more: all antennas can only help."""
    slot = asked(edges(make_air(topology=topology, access=access, packing=packing)), which)
    least, forced = DESIGNS["mmse"](slot), DESIGNS["uniform_forcing"](slot)
    assert (objective(slot, least) <= objective(slot, forced) * (1 + 1e-9)).all()
    everything = replace(slot, sees=None)
    assert float(objective(everything, DESIGNS["mmse"](everything)).mean()) <= float(objective(slot, least).mean())


@pytest.mark.parametrize("csi_error", [0.0, 0.02])
def test_the_edge_s_error_is_that_of_the_antennas(csi_error):
    """mse() of the stacked slot against a loop over receivers with their own channels only."""
    air = edges(make_air(topology="joint", access="concurrent", csi_error=csi_error), antennas=4)
    slot = asked(air, 1)
    made = DESIGNS["naive_ao"](slot)
    variance = csi_error * air.world.gain
    for n in range(2):
        rows = slice(4 * n, 4 * n + 4)
        for b in range(len(slot.h)):
            m, h, f = made.receiver[b, rows, n], slot.h[b, rows], made.transmit[b]
            error = (m.conj() @ h * f - slot.weights[n]).abs().square().sum()
            noise = (slot.noise + (variance[n] * f.abs().square()).sum()) * m.abs().square().sum()
            torch.testing.assert_close(mse(slot, made)[b, n], error + noise)


CASES = [
    ("uniform_forcing", "two_hop", "tdma", "iq", "per_device"),
    ("naive_ao", "two_hop", "concurrent", "real", "common"),
    ("naive_ao", "joint", "concurrent", "iq", "common"),
    ("naive_ao", "two_hop", "superposed", "iq", "per_device"),
]


@pytest.mark.parametrize(("design", "topology", "access", "packing", "normalizer"), CASES)
def test_claims_hold_at_the_edges(design, topology, access, packing, normalizer, monkeypatch):
    air = large_air(design, d=400, topology=topology, access=access, packing=packing, normalizer=normalizer)
    rows = list(rounds(edges(air, antennas=3, far=NEAR / 8), 14, monkeypatch))
    for expected in (lambda e: e.claimed, lambda e: e.claimed_genie, lambda e: e.bias + e.variance):
        assert abs(z_of(excess(rows, expected))) < 5


def test_edges_errors_of_correlated_symbols_add_up_as_claimed(monkeypatch):
    """Given the true correlation; without the edges' shared part the claim would miss by far."""
    air = large_air("naive_ao", d=400, topology="two_hop", access="tdma", correlation=0.7)
    air = edges(replace(air, noise=30 * air.noise), antennas=3, far=NEAR / 8)
    rows = list(rounds(air, 20, monkeypatch, of=alike))
    claim = excess(rows, lambda e: e.claimed)[:, :1]
    assert abs(float(claim.mean())) < 0.05
    assert abs(z_of(excess(rows, lambda e: e.claimed_genie))) < 5
    monkeypatch.setattr(transmit, "between", lambda slot, made, *rest: torch.zeros(len(slot.h), 2, 2).double())
    blind = excess(list(rounds(air, 6, monkeypatch, of=alike)), lambda e: e.claimed)[:, :1]
    assert float(blind.mean()) > 0.2


@pytest.mark.parametrize("bits", [2, 6])
def test_the_backhaul_s_rounding_is_part_of_claim_and_variance(bits, monkeypatch):
    air = edges(large_air("uniform_forcing", d=400, topology="two_hop", backhaul_bits=bits))
    rows = list(rounds(replace(air, noise=1e-6 * air.noise), 14, monkeypatch))
    for expected in (lambda e: e.claimed, lambda e: e.claimed_genie, lambda e: e.bias + e.variance):
        assert abs(z_of(excess(rows, expected)[:, :1])) < 5
    free = slots(send(replace(air, noise=1e-6 * air.noise, backhaul_bits=None), 1, *drawn(air, 0), everyone(air)))[0]
    assert rows[0].mse.s is not None and rows[0].mse.s.variance > 10 * free.variance


def test_the_ledger_charges_the_backhaul():
    air = edges(make_air(topology="two_hop"))
    shared, personal = gradients(air)
    free = send(air, 1, shared, personal, everyone(air)).ledger
    coarse = send(replace(air, backhaul_bits=4), 1, shared, personal, everyone(air)).ledger
    assert free.backhaul_bits == 2 * 41 * 32
    assert coarse.backhaul_bits == 2 * (41 * 4 + 16)
    assert send(edges(make_air(topology="joint")), 1, shared, personal, everyone(air)).ledger.backhaul_bits == 0


@pytest.mark.parametrize("topology", ["joint", "two_hop"])
@pytest.mark.parametrize("absent", [[0, 1], [0, 1, 2, 3, 4], [2]])
def test_absent_tasks_and_devices_leave_defined_rounds(topology, absent):
    air = edges(make_air("mmse", topology=topology, access="concurrent"))
    shared, personal = gradients(air)
    present = everyone(air)
    present[absent] = False
    got = send(air, 1, shared, personal, present)
    assert is_finite(got)
    if len(absent) == 5:
        assert got.pi is None and not got.shared.any()
