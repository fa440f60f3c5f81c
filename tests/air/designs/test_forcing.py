"""Uniform forcing: exact weights, the power of the weakest device, and the known least norms."""

from dataclasses import replace

import pytest
import torch

from airpfed.air.designs.forcing import uniform_forcing
from airpfed.air.problem import TransceiverProblem, gains, mse, objective, silent
from airpfed.core.rng import stream


@pytest.mark.parametrize(("antennas", "devices", "targets"), [(4, 10, 1), (32, 6, 1), (13, 16, 4), (20, 16, 4)])
def test_without_noise_every_gain_is_its_weight(make_slot, antennas, devices, targets):
    problem = replace(make_slot(6, antennas, devices, targets), noise=0.0)
    error = gains(problem.h, uniform_forcing(problem)) - problem.weights
    assert error.abs().max() < 1e-6


@pytest.mark.parametrize("snr_db", [-10.0, 30.0])
@pytest.mark.parametrize("antennas", [3, 16])
def test_own_gains_are_exact_at_any_noise(make_slot, antennas, snr_db):
    problem = make_slot(6, antennas, 12, 3, snr_db)
    own = (gains(problem.h, uniform_forcing(problem)) * (problem.weights > 0)).sum(1)
    torch.testing.assert_close(own, problem.weights.sum(0).expand_as(own).to(own.dtype), rtol=1e-9, atol=0)


def test_interference_is_weighed_where_nulls_are_out_of_reach(make_slot):
    """16 antennas, 36 interferers: receivers blind to interference lie far above, at or beyond the silent error."""
    problem = make_slot(6, 16, 48, 4, 10.0)
    ratio = objective(problem, uniform_forcing(problem)) / objective(problem, silent(problem))
    assert 10 * ratio.log10().mean() < -3


def test_the_weakest_device_sends_all_its_power(make_slot):
    problem = make_slot(8, 4, 20)
    used = (uniform_forcing(problem).transmit_factors.abs().square() / problem.power_limit).amax(-1)
    torch.testing.assert_close(used, torch.ones_like(used), rtol=1e-9, atol=0)


def test_a_device_without_a_channel_is_dropped_and_the_others_are_forced(make_slot):
    problem = make_slot(2, 4, 6)
    problem.h[0, :, 2] = 0
    heard = gains(problem.h, uniform_forcing(problem))[0, 0]
    expected = problem.weights[0].clone()
    expected[2] = 0
    torch.testing.assert_close(heard, expected.to(heard.dtype), rtol=1e-9, atol=1e-12)


def least_norm_db(devices, antennas, draws=120):
    """10 log10 min ||m||^2 s.t. |m^H h_k| >= 1 in i.i.d. Rayleigh fading: the error at unit noise."""
    rng = stream(5, "oracle", devices, antennas)
    h = torch.randn(draws, antennas, devices, dtype=torch.complex128, generator=rng)
    one = torch.ones(devices, dtype=torch.float64)
    problem = TransceiverProblem(h, one[None], one[:1], one, 1.0, 0 * one)
    values = 10 * mse(problem, uniform_forcing(problem))[:, 0].log10()
    return values.mean(), values.std() / draws**0.5


def test_one_antenna_has_a_closed_form():
    """The least of K exponentials: E 10 log10(1/min) = 10 (0.5772 + ln K)/ln 10."""
    mean, deviation = least_norm_db(20, 1, draws=1000)
    assert abs(mean - 15.52) < 3 * deviation


@pytest.mark.parametrize(
    ("devices", "antennas", "known"),
    [(20, 2, 7.67), (20, 4, 3.02), (20, 6, 0.93), (20, 10, -1.22), (10, 4, 0.70), (50, 4, 6.45), (100, 4, 9.40)],
)
def test_least_norms_reach_those_of_convex_approximation(devices, antennas, known):
    """Known: best of 4 starts of successive convex approximation, an upper bound on the optimum."""
    mean, deviation = least_norm_db(devices, antennas)
    assert mean < known + 3 * deviation
