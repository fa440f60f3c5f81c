"""Real symbols: interference may hide in the imaginary part, so M antennas null as many devices as 2M - 1 real ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from airpfed.air.designs.alternating import naive_ao
from airpfed.air.designs.forcing import uniform_forcing
from airpfed.air.designs.least_error import mmse
from airpfed.air.designs.normalized import normalise_problem
from airpfed.air.designs.widely_linear import optimal_transmit_factors, real_mmse_receivers, widely_linear
from airpfed.air.problem import TransceiverProblem, objective, silent


def heard_as_real(problem: TransceiverProblem) -> TransceiverProblem:
    """The same slot of which only the real part is kept, with its half of noise and CSI error."""
    return replace(problem, real=True, noise=problem.noise / 2, csi_variance=problem.csi_variance / 2)


@pytest.mark.parametrize("csi", [0.0, 0.1])
@pytest.mark.parametrize("block", range(2))
def test_the_devices_agree_with_a_general_solver(make_slot, csi, block):
    """Given receivers the devices' problem is convex: SLSQP over real and imaginary parts finds the same value."""
    unit = normalise_problem(heard_as_real(make_slot(2, 3, 5, 2, csi=csi)))
    rng = torch.Generator().manual_seed(0)
    m = torch.randn(2, 3, 2, dtype=torch.complex128, generator=rng)
    value, b = optimal_transmit_factors(unit, m)
    a, w = (m.mH @ unit.h[:, 0])[block].numpy(), unit.weights.numpy()
    alpha, extra = unit.target_weight.numpy(), float(unit.noise[block])
    square, spread = m[block].abs().square().sum(0).numpy(), unit.csi_variance[block, 0].numpy()

    def cost(x: np.ndarray) -> float:
        sent = x[:5] + 1j * x[5:]
        error = ((a * sent).real - w) ** 2
        return float(alpha @ (error.sum(1) + (extra + spread @ abs(sent) ** 2) * square))

    limit = {"type": "ineq", "fun": lambda x: 1 - x[:5] ** 2 - x[5:] ** 2}
    found = minimize(
        cost, np.zeros(10) + 0.1, method="SLSQP", constraints=[limit], options={"ftol": 1e-15, "maxiter": 900}
    )
    assert float(value[block]) == pytest.approx(found.fun, rel=1e-6)
    assert cost(np.concatenate([b[block].real.numpy(), b[block].imag.numpy()])) == pytest.approx(float(value[block]))
    assert (b.abs() <= 1 + 1e-12).all()


def test_the_receivers_are_stationary(make_slot):
    """No small change of a receiver lowers the error at fixed devices."""
    problem = heard_as_real(make_slot(3, 4, 6, 2))
    unit = normalise_problem(problem)
    b = optimal_transmit_factors(
        unit, torch.randn(3, 4, 2, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    )[1]

    def cost(m):
        error = ((m.mH @ unit.h[:, 0] * b[:, None, :]).real - unit.weights).square().sum(-1)
        return (error + unit.noise[:, None] * m.abs().square().sum(1)) @ unit.target_weight

    m = real_mmse_receivers(unit, b).requires_grad_()
    (slope,) = torch.autograd.grad(cost(m).sum(), m)
    assert slope.abs().max() < 1e-9 * cost(m).max()


def test_twice_as_many_interferers_are_nulled(make_slot):
    """2 antennas, 2 tasks of 2 devices: complex receivers cannot null 2 others and keep 1 degree, real ones can."""
    problem = replace(make_slot(6, 2, 4, 2, 60.0, near_far=False))
    complex_error = objective(problem, mmse(problem)) / objective(problem, silent(problem))
    real = heard_as_real(problem)
    real_error = objective(real, mmse(real)) / objective(real, silent(real))
    assert (complex_error > 0.02).all()
    assert real_error.median() < 1e-3


@pytest.mark.parametrize(("antennas", "devices", "targets"), [(8, 12, 3), (3, 9, 3), (1, 4, 2), (16, 8, 2)])
@pytest.mark.parametrize("csi", [0.0, 0.1])
def test_never_worse_than_the_complex_design_heard_as_real(make_slot, antennas, devices, targets, csi):
    problem = make_slot(4, antennas, devices, targets, csi=csi)
    real = heard_as_real(problem)
    ours = objective(real, mmse(real))
    for other in (mmse(problem), naive_ao(problem), uniform_forcing(real)):
        assert (ours <= objective(real, other) * (1 + 1e-9)).all()
    assert (mmse(real).transmit_factors.abs().square() <= real.power_limit * (1 + 1e-9)).all()


def test_every_step_lowers_the_objective(make_slot, monkeypatch):
    unit = normalise_problem(heard_as_real(make_slot(3, 4, 9, 3)))
    m = torch.randn(3, 4, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(2))
    values = [optimal_transmit_factors(unit, m)[0]]
    monkeypatch.setattr("airpfed.air.designs.widely_linear.STEPS", 1)
    for _ in range(30):
        m, _ = widely_linear(unit, m)
        values.append(optimal_transmit_factors(unit, m)[0])
    falls = torch.stack(values).diff(dim=0)
    assert (falls <= 1e-12).all() and (falls[0] < 0).all()


def test_two_real_streams_of_one_device_share_a_complex_channel(make_slot):
    """Superposed s and p need not disturb each other: one goes into the real, the other into the imaginary part."""
    p = make_slot(4, 8, 3, 1, 30.0)
    stack = torch.cat([torch.nn.functional.pad(p.weights, (0, 3)), torch.nn.functional.pad(p.weights, (3, 0))])
    problem = TransceiverProblem(
        torch.cat([p.h, p.h], 2), stack, torch.ones(2, dtype=torch.float64), p.power_limit.repeat(2), p.noise,
        p.csi_variance.repeat(2), torch.arange(3).repeat(2),
    )  # fmt: skip
    real = heard_as_real(problem)
    assert (objective(problem, mmse(problem)) / objective(problem, silent(problem)) > 0.49).all()
    assert (objective(real, mmse(real)) / objective(real, silent(real)) < 0.05).all()
