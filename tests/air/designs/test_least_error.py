"""MMSE: never worse than forcing, better than plain alternation, its noise and CSI limits."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from airpfed.air.designs.alternating import continued_ao, naive_ao
from airpfed.air.designs.error_bound import lower_bound
from airpfed.air.designs.forcing import uniform_forcing
from airpfed.air.designs.inversion import channel_inversion
from airpfed.air.designs.least_error import debias, mmse
from airpfed.air.problem import TransceiverProblem, gains, mse, objective, silent


@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 20.0, 40.0])
@pytest.mark.parametrize(("antennas", "devices", "targets"), [(1, 5, 1), (4, 30, 1), (16, 8, 1), (8, 9, 3), (4, 9, 3)])
def test_never_worse_than_uniform_forcing_or_silence(make_slot, antennas, devices, targets, snr_db):
    problem = make_slot(8, antennas, devices, targets, snr_db)
    found = objective(problem, mmse(problem))
    assert (found <= objective(problem, uniform_forcing(problem)) * (1 + 1e-12)).all()
    assert (found < objective(problem, silent(problem))).all()


@pytest.mark.parametrize("snr_db", [20.0, 30.0])
def test_three_decibels_below_plain_alternation(make_slot, snr_db):
    problem = make_slot(12, 16, 50, 1, snr_db)
    ratio = objective(problem, naive_ao(problem)) / objective(problem, mmse(problem))
    assert 10 * ratio.log10().mean() > 3


@pytest.mark.parametrize("targets", [1, 3])
def test_without_noise_and_with_antennas_the_error_vanishes(make_slot, targets):
    problem = replace(make_slot(4, 16, 9, targets), noise=0.0)
    assert (mse(problem, mmse(problem)) < 1e-12).all()


@pytest.mark.parametrize("targets", [1, 3])
def test_csi_error_is_regularised(make_slot, targets):
    """A design that ignores the estimation error pays for it."""
    problem = make_slot(8, 6, 9, targets, 30.0, csi=0.3)
    ignorant = mmse(replace(problem, csi_variance=torch.zeros(9, dtype=torch.float64)))
    assert (objective(problem, mmse(problem)) < objective(problem, ignorant)).all()


@pytest.mark.parametrize("targets", [1, 3])
def test_debias_makes_the_weighted_mean_gain_one(make_slot, targets):
    problem = make_slot(4, 6, 9, targets, 0.0)
    heard = gains(problem.h, debias(problem, mmse(problem)))
    mean = (heard * problem.weights).sum(-1) / problem.weights.square().sum(-1)
    torch.testing.assert_close(mean, torch.ones_like(mean), rtol=1e-9, atol=1e-9)


def test_debias_leaves_a_silent_receiver_alone(make_slot):
    problem = make_slot(2, 4, 6)
    assert (debias(problem, silent(problem)).receiver == 0).all()


@pytest.mark.parametrize("snr_db", [-10.0, 10.0])
def test_it_beats_the_fixed_beam(make_slot, snr_db):
    problem = make_slot(8, 8, 20, 1, snr_db)
    assert (objective(problem, mmse(problem)) < objective(problem, channel_inversion(problem))).all()


@pytest.mark.parametrize("targets", [1, 2])
def test_alternation_with_continuation_ends_below_plain_alternation(make_slot, targets):
    problem = make_slot(8, 16, 30, targets, 30.0)
    ratio = objective(problem, naive_ao(problem)) / objective(problem, continued_ao(problem))
    assert 10 * ratio.log10().mean() > (3 if targets == 1 else 0)


def test_alternation_with_continuation_ends_within_half_a_decibel(make_slot):
    problem = make_slot(12, 16, 50, 1, 20.0)
    ratio = objective(problem, continued_ao(problem)) / objective(problem, mmse(problem))
    assert abs(10 * ratio.log10().mean()) < 0.5


def test_sixty_four_antennas_are_within_a_quarter_of_the_optimum(make_slot):
    problem = make_slot(4, 64, 200, 1, 10.0)
    assert (mse(problem, mmse(problem))[:, 0] / lower_bound(problem) - 1).mean() < 0.25


def test_a_start_with_weights_of_each_block_is_scaled_block_by_block(make_slot):
    """As many blocks as antennas: a scale along the wrong axis would fit in shape."""
    problem = make_slot(4, 4, 6)
    receiver = mmse(problem).receiver
    scale = torch.linspace(0.5, 2.0, 4, dtype=torch.float64)[:, None, None]
    problem = replace(problem, weights=problem.weights * scale)
    each = [
        mmse(replace(problem, h=problem.h[[b]], weights=problem.weights[[b]]), start=receiver[[b]]) for b in range(4)
    ]
    together = mmse(problem, start=receiver)
    torch.testing.assert_close(together.receiver, torch.cat([one.receiver for one in each]), rtol=1e-9, atol=1e-12)


def closed_form(q: Tensor, w: Tensor, noise: float) -> Tensor:
    """The least error at one antenna (Cao et al. 2020): some send at their limit, the others invert the channel.

    q = sqrt(P) |h|. With the j devices of the largest w / q at their limit, mu_j = sum w q / (noise + sum q^2) over
    them; the error of mu is sum_k (min(w_k, mu q_k) - w_k)^2 + mu^2 noise, and the best of K candidates is the least.
    """
    order = (w / q).argsort(dim=-1, descending=True)
    w, q = w.gather(-1, order), q.gather(-1, order)
    mu = (w * q).cumsum(-1) / (noise + q.square().cumsum(-1))
    errors = (torch.minimum(w[:, None], mu[..., None] * q[:, None]) - w[:, None]).square().sum(-1) + mu.square() * noise
    return errors.amin(-1)


@pytest.mark.parametrize("noise", [1e-3, 0.1, 3.0])
def test_at_one_antenna_it_is_the_closed_form(noise: float) -> None:
    rng = torch.Generator().manual_seed(8)
    h = torch.randn(300, 1, 7, dtype=torch.complex128, generator=rng)
    w = torch.rand(7, dtype=torch.float64, generator=rng) + 0.1
    power = torch.rand(7, dtype=torch.float64, generator=rng) + 0.2
    problem = TransceiverProblem.from_channels(h, w, noise=noise, power_limit=power)
    q = power.sqrt() * h[:, 0].abs()
    torch.testing.assert_close(
        mse(problem, mmse(problem))[:, 0], closed_form(q, w.expand_as(q), noise), rtol=1e-6, atol=0
    )
