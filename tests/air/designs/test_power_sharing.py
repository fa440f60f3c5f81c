"""Slots that share energy, and streams that share a slot: limits, gains, floors, and a general solver as referee."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from airpfed.air.designs import DESIGNS, alternating
from airpfed.air.designs.alternating import JointProblem, accelerated_alternation, joint_transmit_factors
from airpfed.air.designs.least_error import mmse
from airpfed.air.designs.normalized import normalise_problem, normalise_receiver
from airpfed.air.designs.power_sharing import energy_constraint, share_energy
from airpfed.air.problem import Transceiver, TransceiverProblem, objective, power_share, silent
from support.designs import solved


def pair(
    make_slot, blocks: int, antennas: int, devices: int, tasks: int, snr_db: float = 10.0
) -> tuple[TransceiverProblem, TransceiverProblem]:
    """The s-slot and the concurrent p-slot of the same devices, channels and shares, weighed half and half."""
    p = make_slot(blocks, antennas, devices, tasks, snr_db)
    p = replace(p, target_weight=0.5 * p.target_weight)
    share = (2 * p.weights * p.target_weight[:, None]).sum(0)
    return replace(p, weights=share[None, :], target_weight=torch.full((1,), 0.5, dtype=torch.float64)), p


def superposed(s: TransceiverProblem, p: TransceiverProblem) -> TransceiverProblem:
    """Both in one slot: two streams a device, one receiver for s and one a task."""
    devices = s.h.shape[2]
    streams = [torch.nn.functional.pad(s.weights, (0, devices)), torch.nn.functional.pad(p.weights, (devices, 0))]
    return TransceiverProblem(
        torch.cat([s.h, p.h], 2), torch.cat(streams), torch.cat([s.target_weight, p.target_weight]),
        s.power_limit.repeat(2), s.noise, s.csi_variance.repeat(2), torch.arange(devices).repeat(2),
    )  # fmt: skip


def floor(s: TransceiverProblem, p: TransceiverProblem) -> float:
    """sum_k min(alpha_0 w_sk^2, alpha_n w_pk^2): streams of one channel cannot be told apart by any receiver."""
    price = [(problem.target_weight[:, None] * problem.weights.square()).sum(0) for problem in (s, p)]
    return float(torch.minimum(*price).sum())


def total(slots: list[TransceiverProblem] | tuple[TransceiverProblem, ...], made: list[Transceiver]) -> Tensor:
    return torch.stack([objective(problem, one) for problem, one in zip(slots, made, strict=True)]).sum(0)


def shared(
    slots: tuple[TransceiverProblem, TransceiverProblem], uses: tuple[float, float] = (1.0, 1.0)
) -> tuple[list[Transceiver], list[Transceiver]]:
    alone = [mmse(problem) for problem in slots]
    devices = [torch.arange(slots[0].h.shape[2])] * 2
    return alone, share_energy(slots, devices, uses, [torch.ones(len(one)).double() for one in devices], alone)


@pytest.mark.parametrize(("antennas", "devices", "tasks"), [(16, 12, 3), (4, 12, 3), (3, 2, 1), (1, 4, 2)])
@pytest.mark.parametrize("uses", [(1.0, 1.0), (3.0, 1.0)])
def test_shared_energy_keeps_the_round_s_limit_and_never_costs(make_slot, antennas, devices, tasks, uses):
    slots = pair(make_slot, 4, antennas, devices, tasks)
    alone, made = shared(slots, uses)
    used = (
        sum(u * one.transmit_factors.abs().square() for u, one in zip(uses, made, strict=True)) / slots[0].power_limit
    )
    assert (used <= sum(uses) * (1 + 1e-9)).all()
    before, after = (sum(u * objective(s, m) for u, s, m in zip(uses, slots, x, strict=True)) for x in (alone, made))
    assert (after <= before * (1 + 1e-9)).all()


def test_shared_energy_gains_where_nothing_else_limits(make_slot):
    """A quarter of the error at 10 dB and enough antennas; far less than that could be luck."""
    slots = pair(make_slot, 4, 32, 24, 3)
    alone, made = shared(slots)
    assert (total(slots, made) < 0.9 * total(slots, alone)).all()
    assert max(float((one.transmit_factors.abs().square() / slots[0].power_limit).max()) for one in made) > 1.01


@pytest.mark.parametrize("seed", range(3))
def test_a_general_solver_finds_nothing_better_nearby(make_slot, seed, monkeypatch):
    """Receivers eliminated too: SLSQP over transmit factors, from our answer, two slots of one energy."""
    slots = pair(lambda *given: make_slot(*given, seed=seed), 1, 2, 3, 1)
    _, made = shared(slots)
    units = tuple(normalise_problem(problem) for problem in slots)
    weight = (0.5, 0.5)
    joint = JointProblem(
        units, weight, energy_constraint([torch.arange(3)] * 2, (1.0, 1.0), [torch.ones(3).double()] * 2)
    )
    m = tuple(normalise_receiver(unit, one.receiver) for unit, one in zip(units, made, strict=True))
    monkeypatch.setattr(alternating, "PATIENCE", 1000)
    monkeypatch.setattr(alternating, "TOLERANCE", 1e-12)
    m, _ = accelerated_alternation(joint, m, 400)
    b = [one[0].numpy() for one in joint_transmit_factors(joint, m)]

    def error_of(x: np.ndarray) -> float:
        parts = (x[:6] + 1j * x[6:]).reshape(2, 3)
        total = 0.0
        for unit, sent in zip(units, parts, strict=True):
            H, w = unit.h[0, 0].numpy() * sent, unit.weights[0].numpy()
            C = H @ H.conj().T + float(unit.noise[0]) * np.eye(len(H))
            total += 0.5 * float((w @ w - (H @ w).conj() @ np.linalg.solve(C, H @ w)).real)
        return total

    def left(x: np.ndarray) -> np.ndarray:
        return 2 - (x[:6] ** 2 + x[6:] ** 2).reshape(2, 3).sum(0)

    start = np.concatenate([np.concatenate(b).real, np.concatenate(b).imag])
    found = minimize(
        error_of, start, method="SLSQP", constraints=[{"type": "ineq", "fun": left}],
        options={"ftol": 1e-14, "maxiter": 300},
    )  # fmt: skip
    assert (left(start) > -1e-9).all()
    assert error_of(start) <= found.fun * (1 + 1e-7) or not found.success
    assert error_of(start) >= found.fun * (1 - 1e-9)


def test_superposed_streams_reach_their_exact_floor_and_never_pass_it(make_slot):
    s, p = pair(make_slot, 3, 64, 48, 4, 30.0)
    problem = superposed(s, p)
    ratio = objective(problem, mmse(problem)) / floor(s, p)
    assert (ratio > 1).all() and (ratio < 1.01).all()


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize(("antennas", "devices", "tasks"), [(16, 9, 3), (3, 4, 2), (1, 1, 1)])
@pytest.mark.parametrize("snr_db", [-10.0, 30.0])
def test_superposed_streams_share_their_limit(make_slot, name, antennas, devices, tasks, snr_db):
    s, p = pair(make_slot, 3, antennas, devices, tasks, snr_db)
    problem = superposed(s, p)
    made = DESIGNS[name](problem)
    assert (power_share(problem, made) <= 1 + 1e-9).all()
    assert (objective(problem, made) >= floor(s, p)).all()
    if name == "mmse":
        assert (objective(problem, made) <= objective(problem, silent(problem))).all()
        assert (objective(problem, made) <= objective(problem, solved("uniform_forcing", problem))).all()
        assert (objective(problem, made) <= objective(problem, solved("naive_ao", problem)) * 1.02).all()


def test_two_streams_of_one_device_alone_are_a_choice(make_slot):
    """K = M = N = 1 and no noise: the dearer stream is exact, the other lost, whatever the power."""
    s, p = pair(make_slot, 2, 1, 1, 1)
    s = replace(s, noise=0.0, target_weight=torch.full((1,), 0.2, dtype=torch.float64))
    problem = superposed(s, replace(p, noise=0.0))
    torch.testing.assert_close(
        objective(problem, mmse(problem)), torch.full((2,), 0.2, dtype=torch.float64), rtol=1e-3, atol=0
    )
