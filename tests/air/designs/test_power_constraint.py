"""Limits that streams share: the closed form against a general solver, and its limiting cases."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from airpfed.air.designs.power_constraint import PowerConstraint, transmit_magnitudes
from airpfed.core.rng import stream

OWNER = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def joint(seed: int) -> tuple[Tensor, Tensor, PowerConstraint]:
    """Seven streams of three devices; curvatures over four decades."""
    rng = stream(seed, "budget")

    def uniform(count: int) -> Tensor:
        return torch.rand(count, dtype=torch.float64, generator=rng)

    return 10 ** (4 * uniform(7) - 3), uniform(7), PowerConstraint(OWNER, 0.1 + uniform(7), 0.1 + uniform(3))


def value(A: Tensor, pull: Tensor, b: np.ndarray) -> float:
    return float((A.numpy() * b**2 - 2 * pull.numpy() * b).sum())


@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_a_general_solver(seed):
    A, pull, budget = joint(seed)
    left = {
        "type": "ineq",
        "fun": lambda b: (budget.limit - budget.sum_per_device(budget.cost * torch.from_numpy(b).square())).numpy(),
    }
    found = minimize(
        lambda b: value(A, pull, b), np.full(7, 0.01), jac=lambda b: 2 * (A.numpy() * b - pull.numpy()),
        method="SLSQP", constraints=[left], options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    ours = value(A, pull, transmit_magnitudes(A, pull, budget).numpy())
    assert ours == pytest.approx(found.fun, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_a_budget_is_kept_and_used_up_where_it_binds(seed):
    A, pull, budget = joint(seed)
    b = transmit_magnitudes(A, pull, budget)
    used = budget.sum_per_device(budget.cost * b.square()) / budget.limit
    wished = budget.sum_per_device(budget.cost * (pull / A).square()) / budget.limit
    assert (used <= 1 + 1e-12).all()
    assert ((used > 1 - 1e-9) | (wished < 1)).all()


def test_a_device_of_one_stream_has_a_limit_of_its_own():
    A, pull, _ = joint(0)
    ones = torch.ones(7, dtype=torch.float64)
    single = transmit_magnitudes(A, pull, PowerConstraint(torch.arange(7), ones, ones))
    torch.testing.assert_close(single, transmit_magnitudes(A, pull, None), rtol=1e-12, atol=0)


def test_streams_without_pull_are_silent():
    A, pull, budget = joint(1)
    A, pull = A.clone(), pull.clone()
    A[3] = pull[3] = pull[1] = pull[4] = 0
    b = transmit_magnitudes(A, pull, budget)
    assert b.isfinite().all() and (b[[1, 3, 4]] == 0).all() and (b[[0, 2, 5, 6]] > 0).all()
