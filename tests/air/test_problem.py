"""The error formula against its terms, and the silent transceiver."""

from dataclasses import replace

import pytest
import torch

from airpfed.air.problem import (
    Transceiver,
    TransceiverProblem,
    check_power,
    divide_power,
    gains,
    keep_better,
    mse,
    objective,
    silent,
)
from airpfed.core.rng import stream


@pytest.fixture
def problem():
    rng = stream(0, "slot")
    return TransceiverProblem(
        h=1e-6 * torch.randn(3, 4, 5, dtype=torch.complex128, generator=rng),
        weights=torch.rand(2, 5, dtype=torch.float64, generator=rng),
        target_weight=torch.tensor([0.25, 0.75], dtype=torch.float64),
        power_limit=torch.ones(5, dtype=torch.float64),
        noise=1e-13,
        csi_variance=torch.full((5,), 1e-14, dtype=torch.float64),
    )


@pytest.fixture
def transceiver():
    rng = stream(1, "slot")
    return Transceiver(
        1e6 * torch.randn(3, 4, 2, dtype=torch.complex128, generator=rng),
        torch.randn(3, 5, dtype=torch.complex128, generator=rng),
        1,
    )


def test_the_error_is_the_sum_of_its_terms(problem, transceiver):
    """One entry, by loops: mismatch of every device, then noise and CSI error through the receiver's norm."""
    b, m = transceiver.transmit_factors[2], transceiver.receiver[2, :, 1]
    mismatch = sum(abs(torch.vdot(m, problem.h[2, :, k]) * b[k] - problem.weights[1, k]) ** 2 for k in range(5))
    disturbance = problem.noise + sum(problem.csi_variance[k] * abs(b[k]) ** 2 for k in range(5))
    expected = mismatch + disturbance * torch.vdot(m, m).real
    torch.testing.assert_close(mse(problem, transceiver)[2, 1], expected)


def test_the_objective_weighs_targets_by_importance(problem, transceiver):
    errors = mse(problem, transceiver)
    torch.testing.assert_close(objective(problem, transceiver), 0.25 * errors[:, 0] + 0.75 * errors[:, 1])


def test_silence_costs_the_square_of_the_weights(problem):
    assert (gains(problem.h, silent(problem)) == 0).all()
    torch.testing.assert_close(mse(problem, silent(problem)), problem.weights.square().sum(-1).expand(3, 2))


def test_keep_better_decides_block_by_block(problem, transceiver):
    first = replace(transceiver, receiver=transceiver.receiver * torch.tensor([1e3, 1e-3, 1.0])[:, None, None])
    check_power = keep_better(problem, first, transceiver)
    expected = torch.minimum(objective(problem, first), objective(problem, transceiver))
    torch.testing.assert_close(objective(problem, check_power), expected)
    assert check_power.iterations == 2


def test_shapes_are_checked(problem):
    with pytest.raises(Exception, match="weights"):
        replace(problem, weights=problem.weights[:, :3])


def test_a_design_beyond_its_limits_is_refused(problem, transceiver):
    within = replace(transceiver, transmit_factors=transceiver.transmit_factors / transceiver.transmit_factors.abs())
    assert check_power(problem, within) is within
    with pytest.raises(ValueError, match=r"1\.21 times its power limit"):
        check_power(problem, replace(within, transmit_factors=1.1 * within.transmit_factors))
    two = replace(problem, device_of_stream=torch.tensor([0, 0, 1, 2, 3]))
    with pytest.raises(ValueError, match="2 times its power limit"):
        check_power(two, within)
    check_power(divide_power(two), replace(within, transmit_factors=within.transmit_factors / 2**0.5))
