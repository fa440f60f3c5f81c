"""The certificate: a bound that holds for every design, is exact where the optimum is known, and is not vacuous."""

from dataclasses import replace

import pytest
import torch

from airpfed.air.designs import DESIGNS
from airpfed.air.designs.error_bound import lower_bound
from airpfed.air.designs.least_error import mmse
from airpfed.air.problem import mse


@pytest.mark.parametrize("snr_db", [-10.0, 10.0])
@pytest.mark.parametrize("design", DESIGNS)
def test_no_design_is_below_the_bound(make_slot, design, snr_db):
    problem = make_slot(4, 4, 10, 1, snr_db)
    assert (mse(problem, DESIGNS[design](problem))[:, 0] >= lower_bound(problem) * (1 - 1e-9)).all()


def test_the_bound_is_within_two_percent_of_mmse_for_ten_devices(make_slot):
    problem = make_slot(8, 16, 10, 1, 0.0)
    gap = mse(problem, mmse(problem))[:, 0] / lower_bound(problem) - 1
    assert gap.mean() < 0.02


def test_one_device_is_exact(make_slot):
    """K = 1 at high SNR: full power would overshoot, so MSE = min over |a| of (w - a)^2 + a^2 sigma2 / (P ||h||^2)."""
    problem = make_slot(4, 4, 1, 1, 10.0)
    ratio = problem.noise / (problem.power_limit[0] * problem.h.abs().square().sum((1, 2)))
    exact = problem.weights[0, 0] ** 2 * ratio / (1 + ratio)
    torch.testing.assert_close(lower_bound(problem), exact, rtol=1e-4, atol=0.0)


def test_several_targets_have_no_certificate(make_slot):
    with pytest.raises(ValueError, match="several targets"):
        lower_bound(make_slot(1, 4, 4, 2))


def test_little_noise_does_not_undo_the_bound(make_slot):
    """Multipliers feasible at some noise are feasible at a tenth of it, scaled: the bound falls by a tenth at most."""
    problem = make_slot(2, 24, 12, snr_db=20.0)
    bound = lower_bound(problem)
    for tenths in (2, 6):
        quieter = replace(problem, noise=problem.noise * 10.0**-tenths)
        assert (lower_bound(quieter) >= 0.97 * 10.0**-tenths * bound).all()
