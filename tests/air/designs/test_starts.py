"""Several starts, and a start of one's own."""

import math
from dataclasses import replace

import pytest
import torch

from airpfed.air.designs.mmse import mmse
from airpfed.air.designs.uniform_forcing import uniform_forcing
from airpfed.air.slot import mse, objective
from airpfed.streams import stream

both = pytest.mark.parametrize("design", [mmse, uniform_forcing])


@both
@pytest.mark.parametrize(("antennas", "devices"), [(4, 30), (8, 40)])
def test_more_starts_are_never_worse_and_help_somewhere(make_slot, design, antennas, devices):
    slot = make_slot(12, antennas, devices)
    one, four = (objective(slot, design(slot, starts)) for starts in (1, 4))
    assert (four <= one * (1 + 1e-12)).all()
    assert (four < one * (1 - 1e-3)).any()


@pytest.mark.parametrize("snr_db", [0.0, 30.0])
def test_more_starts_are_never_worse_with_csi_error(make_slot, snr_db):
    slot = make_slot(24, 4, 20, 1, snr_db, csi=0.3)
    assert (objective(slot, mmse(slot, 3)) <= objective(slot, mmse(slot)) * (1 + 1e-12)).all()


@both
def test_starts_are_the_same_every_time_and_in_every_batch(make_slot, design):
    slot = make_slot(5, 4, 20)
    first, second = design(slot, 3), design(slot, 3)
    torch.testing.assert_close(first.receiver, second.receiver, rtol=0, atol=0)
    alone = replace(slot, h=slot.h[:1])
    torch.testing.assert_close(objective(slot, first)[:1], objective(alone, design(alone, 3)), rtol=1e-3, atol=0)


def test_mmse_of_several_starts_is_not_above_forcing_of_as_many(make_slot):
    slot = make_slot(12, 4, 30, 1, 30.0)
    assert (objective(slot, mmse(slot, 3)) <= objective(slot, uniform_forcing(slot, 3)) * (1 + 1e-12)).all()


@both
def test_no_start_is_an_error(make_slot, design):
    with pytest.raises(ValueError, match="at least 1"):
        design(make_slot(1, 4, 4), 0)


@both
def test_starts_are_for_one_target(make_slot, design):
    with pytest.raises(ValueError, match="one target"):
        design(make_slot(1, 4, 4, 2), 2)


def test_a_given_start_is_for_one_target(make_slot):
    slot = make_slot(1, 4, 4, 2)
    with pytest.raises(ValueError, match="one target"):
        mmse(slot, start=mmse(slot).receiver)


@pytest.mark.parametrize(("antennas", "devices"), [(8, 30), (16, 6)])
def test_a_warm_start_improves_on_it_in_few_steps(make_slot, antennas, devices):
    """Gauss-Markov, r = 0.999: a quarter of the steps, and little lost."""
    slot = make_slot(12, antennas, devices)
    rng = stream(2, "innovation", antennas)
    e = torch.randn(slot.h.shape, dtype=slot.h.dtype, generator=rng) * slot.h.abs().square().mean(1, True).sqrt()
    after = replace(slot, h=0.999 * slot.h + math.sqrt(1 - 0.999**2) * e)
    old, cold = mmse(slot), mmse(after)
    warm = mmse(after, start=old.receiver)
    assert (objective(after, warm) < objective(after, old)).all()
    assert (objective(after, warm) / objective(after, cold)).mean() < 1.06
    assert warm.iterations < 0.5 * cold.iterations


def test_a_start_at_the_optimum_stays_there(make_slot):
    slot = make_slot(6, 4, 12)
    found = mmse(slot)
    again = objective(slot, mmse(slot, start=found.receiver))
    assert (again <= objective(slot, found) * (1 + 1e-9)).all()


@both
def test_a_result_can_be_differentiated_through(make_slot, design):
    """Designs run in inference mode; what they return does not."""
    slot = make_slot(1, 4, 6)
    found = design(slot)
    h = slot.h.clone().requires_grad_()
    mse(replace(slot, h=h), found).sum().backward()
    assert h.grad is not None and torch.isfinite(h.grad).all()
    found.receiver.mul_(1.0)
