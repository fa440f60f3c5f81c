"""The hinge: its parts against plain formulas, and what a step promises."""

import pytest
import torch

from airpfed.air.designs import continuation
from airpfed.air.designs.continuation import settle
from airpfed.air.designs.hinge import STEPS, best_scale, enter, error, gauss_newton, hinge, leave, line_search
from airpfed.streams import stream


def problem_of(blocks, antennas, devices):
    rng = stream(3, "hinge", blocks, antennas, devices)
    h = 1e-5 * torch.randn(blocks, antennas, devices, dtype=torch.complex128, generator=rng)
    weights = 0.5 + torch.rand(blocks, devices, dtype=torch.float64, generator=rng)
    m = torch.randn(blocks, antennas, dtype=torch.complex128, generator=rng) * 3e4
    return hinge(h, weights), h, weights, m


def plain_error(problem, h, weights, m, ridge):
    """F from complex arithmetic in the original units, told in the problem's."""
    heard = (m.conj()[:, None] @ h)[:, 0].abs()
    penalty = ridge * problem.unit.square() * m.abs().square().sum(1)
    return ((weights - heard).clamp_min(0).square().sum(1) + penalty) / problem.scale.square()


def test_a_point_holds_what_the_receiver_hears_and_its_entries():
    problem, h, weights, m = problem_of(3, 4, 7)
    at, ridge = enter(problem, m), torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(leave(problem, at), m)
    torch.testing.assert_close(error(problem, ridge, at), plain_error(problem, h, weights, m, ridge))


def test_the_scale_is_the_best_of_a_fine_grid():
    problem, _, _, m = problem_of(5, 4, 9)
    at, ridge = enter(problem, m), torch.full((5,), 0.3, dtype=torch.float64)
    found = error(problem, ridge, best_scale(problem, ridge, at))
    tried = torch.stack([error(problem, ridge, c * at) for c in torch.logspace(-3, 2, 3000).tolist()]).amin(0)
    assert (found <= tried * (1 + 1e-12)).all()
    torch.testing.assert_close(found, tried, rtol=1e-4, atol=0)


def test_the_line_search_values_are_those_of_the_points():
    problem, _, _, m = problem_of(2, 3, 6)
    at, step, ridge = enter(problem, m), enter(problem, m.roll(1, 1)), torch.ones(2, dtype=torch.float64)
    t, values = line_search(problem, problem.targets, ridge, at.square().sum(1), at, step)
    expected = torch.stack([error(problem, ridge, at + c * step) for c in STEPS], 1)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(error(problem, ridge, at + t[:, None, None] * step), expected.amin(1))


@pytest.mark.parametrize(("antennas", "devices"), [(3, 12), (12, 5), (64, 200)])
def test_a_step_minimises_its_linearisation_and_never_rises(antennas, devices):
    """(64, 200) picks the active devices, (12, 5) solves the dual: both are the same ridge regression."""
    problem, h, weights, m = problem_of(4, antennas, devices)
    ridge = torch.full((4,), 0.2, dtype=torch.float64)
    at = best_scale(problem, ridge, enter(problem, m))
    after, values = gauss_newton(problem, problem.targets, ridge, at)
    torch.testing.assert_close(error(problem, ridge, after), values.amin(1))
    assert (values.amin(1) < values[:, -1]).all()

    m = leave(problem, at)
    a = (m.conj()[:, None] @ h)[:, 0]
    v = h * ((weights > a.abs()) * (a / a.abs()).conj())[:, None]
    J = torch.cat([v.real, v.imag], 1)
    gram = J @ J.mT + (ridge * problem.unit.square())[:, None, None] * torch.eye(2 * antennas, dtype=torch.float64)
    goal = torch.linalg.solve(gram, (J @ weights[..., None])[..., 0])
    step = torch.complex(*goal.chunk(2, 1)) - m
    taken = leave(problem, after) - m
    t = (step.conj() * taken).real.sum(1) / step.abs().square().sum(1)
    torch.testing.assert_close(taken, t[:, None] * step, rtol=1e-7, atol=1e-7 * float(step.abs().max()))


def test_settling_never_rises_from_any_point():
    problem, _, _, m = problem_of(6, 4, 20)
    noise = torch.tensor([1e-6, 1e-3, 0.1, 1.0, 10.0, 100.0], dtype=torch.float64)
    at = enter(problem, m)
    found, _ = settle(problem, noise, at)
    assert (error(problem, noise, found) <= error(problem, noise, best_scale(problem, noise, at)) * (1 + 1e-12)).all()


def test_momentum_never_undoes_a_step(monkeypatch):
    """A step that overshoots is not taken, so one more step allowed is never worse."""
    problem, _, _, m = problem_of(40, 4, 30)
    noise, at = torch.full((40,), 0.2, dtype=torch.float64), enter(problem, m)
    monkeypatch.setattr(continuation, "MOMENTUM", 3.0)
    monkeypatch.setattr(continuation, "best_scale", lambda problem, ridge, at: at)
    errors = []
    for steps in range(1, 12):
        monkeypatch.setattr(continuation, "SETTLE_STEPS", steps)
        errors.append(error(problem, noise, settle(problem, noise, at)[0]))
    assert (torch.stack(errors).diff(dim=0) <= 1e-9).all()
