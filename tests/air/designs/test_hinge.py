"""The hinge: its parts against plain formulas, and what a step promises."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from airpfed.air.designs import single_target, single_target_solver
from airpfed.air.designs.single_target import least_norm
from airpfed.air.designs.single_target_solver import (
    ACTIVE_MARGIN,
    STEP_SIZES,
    best_scale,
    gauss_newton_step,
    grid_line_search,
    iterate_of,
    minimise_error,
    penalised_error,
    receiver_of,
    single_target_problem,
)
from airpfed.core.rng import stream


def problem_of(blocks, antennas, devices):
    rng = stream(3, "hinge", blocks, antennas, devices)
    h = 1e-5 * torch.randn(blocks, antennas, devices, dtype=torch.complex128, generator=rng).numpy()
    weights = 0.5 + torch.rand(blocks, devices, dtype=torch.float64, generator=rng).numpy()
    m = 3e4 * torch.randn(blocks, antennas, dtype=torch.complex128, generator=rng).numpy()
    return single_target_problem(h, weights), h, weights, m


def heard_by(m, h):
    return (m.conj()[:, None] @ h)[:, 0]


def plain_error(problem, h, weights, m, ridge):
    """F from the original channels, told in the problem's units."""
    short = np.maximum(weights - np.abs(heard_by(m, h)), 0)
    penalty = ridge * problem.channel_scale**2 * np.square(np.abs(m)).sum(1)
    return (np.square(short).sum(1) + penalty) / problem.weight_scale**2


def test_a_point_holds_what_the_receiver_hears_and_its_entries():
    problem, h, weights, m = problem_of(3, 4, 7)
    at, ridge = iterate_of(problem, m), np.array([0.1, 1.0, 10.0])
    assert_allclose(receiver_of(problem, at), m)
    assert_allclose(penalised_error(problem, ridge, at), plain_error(problem, h, weights, m, ridge))


def test_the_scale_is_the_best_of_a_fine_grid():
    problem, _, _, m = problem_of(5, 4, 9)
    at, ridge = iterate_of(problem, m), np.full(5, 0.3)
    found = penalised_error(problem, ridge, best_scale(problem, ridge, at))
    tried = np.min([penalised_error(problem, ridge, c * at) for c in np.logspace(-3, 2, 3000)], 0)
    assert (found <= tried * (1 + 1e-12)).all()
    assert_allclose(found, tried, rtol=1e-4)


def test_the_line_search_values_are_those_of_the_points():
    problem, _, _, m = problem_of(2, 3, 6)
    at, step, ridge = iterate_of(problem, m), iterate_of(problem, np.roll(m, 1, 1)), np.ones(2)
    found, values = grid_line_search(problem.weights, ridge, at, step)
    expected = np.stack([penalised_error(problem, ridge, at + c * step) for c in STEP_SIZES], 1)
    assert_allclose(values, expected)
    assert_allclose(penalised_error(problem, ridge, found), expected.min(1))


@pytest.mark.parametrize(
    ("blocks", "antennas", "devices"), [(4, 3, 12), (1, 3, 12), (1, 6, 12), (4, 12, 5), (1, 64, 200)]
)
def test_a_step_minimises_its_linearisation_and_never_rises(blocks, antennas, devices):
    """A block alone picks its active devices, few of them leave the dual: all are the same ridge regression."""
    problem, h, weights, m = problem_of(blocks, antennas, devices)
    ridge = np.full(blocks, 0.2)
    at = best_scale(problem, ridge, iterate_of(problem, m))
    after, values = gauss_newton_step(problem, problem.weights, ridge, at)
    assert_allclose(penalised_error(problem, ridge, after), values.min(1))
    assert (values.min(1) < values[:, -1]).all()

    m = receiver_of(problem, at)
    a = heard_by(m, h)
    size = np.abs(a)
    v = h * np.where(size < ACTIVE_MARGIN * weights, a.conj() / size, 0)[:, None]
    J = np.concatenate([v.real, v.imag], 1)
    gram = J @ J.swapaxes(1, 2) + (ridge * problem.channel_scale**2)[:, None, None] * np.eye(2 * antennas)
    goal = np.linalg.solve(gram, J @ np.maximum(weights, size)[..., None])[..., 0]
    step = goal[:, :antennas] + 1j * goal[:, antennas:] - m
    taken = receiver_of(problem, after) - m
    t = (step.conj() * taken).real.sum(1) / np.square(np.abs(step)).sum(1)
    assert_allclose(taken, t[:, None] * step, rtol=1e-7, atol=1e-7 * np.abs(step).max())


def test_settling_never_rises_from_any_point():
    problem, _, _, m = problem_of(6, 4, 20)
    noise = np.array([1e-6, 1e-3, 0.1, 1.0, 10.0, 100.0])
    at = iterate_of(problem, m)
    found, _ = minimise_error(problem, noise, at)
    assert (
        penalised_error(problem, noise, found)
        <= penalised_error(problem, noise, best_scale(problem, noise, at)) * (1 + 1e-12)
    ).all()


def test_momentum_never_undoes_a_step(monkeypatch):
    """A step that overshoots is not taken, so one more step allowed is never worse."""
    problem, _, _, m = problem_of(40, 4, 30)
    noise, at = np.full(40, 0.2), iterate_of(problem, m)
    monkeypatch.setattr(single_target_solver, "MOMENTUM", 3.0)
    monkeypatch.setattr(single_target_solver, "best_scale", lambda problem, ridge, at: at)
    errors = []
    for steps in range(1, 12):
        monkeypatch.setattr(single_target_solver, "MAX_STEPS", steps)
        errors.append(penalised_error(problem, noise, minimise_error(problem, noise, at)[0]))
    assert (np.diff(errors, axis=0) <= 1e-9).all()


def test_blocks_designed_apart_are_as_good_as_together(monkeypatch):
    _, h, weights, _ = problem_of(7, 4, 12)
    h, weights = torch.from_numpy(h), torch.from_numpy(weights)
    together, steps = least_norm(h, weights)
    monkeypatch.setattr(single_target, "BATCH_ENTRIES", 3 * 4 * 12)
    apart, same = least_norm(h, weights)
    torch.testing.assert_close(apart, together, rtol=1e-6, atol=1e-6 * float(together.abs().max()))
    assert steps == same
