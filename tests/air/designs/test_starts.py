"""Several starts, and a start of one's own."""

import math
from dataclasses import replace

import pytest
import torch

from airpfed.air.designs.forcing import uniform_forcing
from airpfed.air.designs.least_error import mmse
from airpfed.air.problem import mse, objective
from airpfed.core.rng import stream

both = pytest.mark.parametrize("design", [mmse, uniform_forcing])


@both
@pytest.mark.parametrize(("antennas", "devices"), [(4, 30), (8, 40)])
def test_more_starts_are_never_worse_and_help_somewhere(make_slot, design, antennas, devices):
    problem = make_slot(12, antennas, devices)
    one, four = (objective(problem, design(problem, starts=starts)) for starts in (1, 4))
    assert (four <= one * (1 + 1e-12)).all()
    assert (four < one * (1 - 1e-3)).any()


@pytest.mark.parametrize("snr_db", [0.0, 30.0])
def test_more_starts_are_never_worse_with_csi_error(make_slot, snr_db):
    problem = make_slot(24, 4, 20, 1, snr_db, csi=0.3)
    assert (objective(problem, mmse(problem, starts=3)) <= objective(problem, mmse(problem)) * (1 + 1e-12)).all()


@both
def test_starts_are_the_same_every_time_and_in_every_batch(make_slot, design):
    problem = make_slot(5, 4, 20)
    first, second = design(problem, starts=3), design(problem, starts=3)
    torch.testing.assert_close(first.receiver, second.receiver, rtol=0, atol=0)
    alone = replace(problem, h=problem.h[:1])
    torch.testing.assert_close(
        objective(problem, first)[:1], objective(alone, design(alone, starts=3)), rtol=1e-3, atol=0
    )


def test_mmse_of_several_starts_is_not_above_forcing_of_as_many(make_slot):
    problem = make_slot(12, 4, 30, 1, 30.0)
    assert (
        objective(problem, mmse(problem, starts=3))
        <= objective(problem, uniform_forcing(problem, starts=3)) * (1 + 1e-12)
    ).all()


@both
def test_no_start_is_an_error(make_slot, design):
    with pytest.raises(ValueError, match="at least 1"):
        design(make_slot(1, 4, 4), starts=0)


@both
def test_several_targets_have_starts_of_their_own(make_slot, design):
    problem = make_slot(1, 4, 4, 2)
    torch.testing.assert_close(design(problem, starts=2).receiver, design(problem).receiver, rtol=0, atol=0)


def test_a_given_start_is_for_one_target(make_slot):
    problem = make_slot(1, 4, 4, 2)
    with pytest.raises(ValueError, match="one target"):
        mmse(problem, start=mmse(problem).receiver)


@pytest.mark.parametrize(("antennas", "devices"), [(8, 30), (16, 6)])
def test_a_warm_start_improves_on_it_in_few_steps(make_slot, antennas, devices):
    """Gauss-Markov, r = 0.999: a quarter of the steps, and little lost."""
    problem = make_slot(12, antennas, devices)
    rng = stream(2, "innovation", antennas)
    e = (
        torch.randn(problem.h.shape, dtype=problem.h.dtype, generator=rng)
        * problem.h.abs().square().mean(1, True).sqrt()
    )
    after = replace(problem, h=0.999 * problem.h + math.sqrt(1 - 0.999**2) * e)
    old, cold = mmse(problem), mmse(after)
    warm = mmse(after, start=old.receiver)
    assert (objective(after, warm) < objective(after, old)).all()
    assert (objective(after, warm) / objective(after, cold)).mean() < 1.06
    assert warm.iterations < 0.5 * cold.iterations


def test_a_start_at_the_optimum_stays_there(make_slot):
    problem = make_slot(6, 4, 12)
    found = mmse(problem)
    again = objective(problem, mmse(problem, start=found.receiver))
    assert (again <= objective(problem, found) * (1 + 1e-9)).all()


@both
def test_a_result_can_be_differentiated_through(make_slot, design):
    """Designs run in inference mode; what they return does not."""
    problem = make_slot(1, 4, 6)
    found = design(problem)
    h = problem.h.clone().requires_grad_()
    mse(replace(problem, h=h), found).sum().backward()
    assert h.grad is not None and torch.isfinite(h.grad).all()
    found.receiver.mul_(1.0)
