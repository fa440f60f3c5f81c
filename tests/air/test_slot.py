"""The error formula against its terms, and the silent transceiver."""

from dataclasses import replace

import pytest
import torch

from airpfed.air.slot import Slot, Transceiver, divided, gains, keep_better, kept, mse, objective, silent
from airpfed.streams import stream


@pytest.fixture
def slot():
    rng = stream(0, "slot")
    return Slot(
        h=1e-6 * torch.randn(3, 4, 5, dtype=torch.complex128, generator=rng),
        weights=torch.rand(2, 5, dtype=torch.float64, generator=rng),
        importance=torch.tensor([0.25, 0.75], dtype=torch.float64),
        power=torch.ones(5, dtype=torch.float64),
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


def test_the_error_is_the_sum_of_its_terms(slot, transceiver):
    """One entry, by loops: mismatch of every device, then noise and CSI error through the receiver's norm."""
    b, m = transceiver.transmit[2], transceiver.receiver[2, :, 1]
    mismatch = sum(abs(torch.vdot(m, slot.h[2, :, k]) * b[k] - slot.weights[1, k]) ** 2 for k in range(5))
    disturbance = slot.noise + sum(slot.csi_variance[k] * abs(b[k]) ** 2 for k in range(5))
    expected = mismatch + disturbance * torch.vdot(m, m).real
    torch.testing.assert_close(mse(slot, transceiver)[2, 1], expected)


def test_the_objective_weighs_targets_by_importance(slot, transceiver):
    errors = mse(slot, transceiver)
    torch.testing.assert_close(objective(slot, transceiver), 0.25 * errors[:, 0] + 0.75 * errors[:, 1])


def test_silence_costs_the_square_of_the_weights(slot):
    assert (gains(slot.h, silent(slot)) == 0).all()
    torch.testing.assert_close(mse(slot, silent(slot)), slot.weights.square().sum(-1).expand(3, 2))


def test_keep_better_decides_block_by_block(slot, transceiver):
    first = replace(transceiver, receiver=transceiver.receiver * torch.tensor([1e3, 1e-3, 1.0])[:, None, None])
    kept = keep_better(slot, first, transceiver)
    expected = torch.minimum(objective(slot, first), objective(slot, transceiver))
    torch.testing.assert_close(objective(slot, kept), expected)
    assert kept.iterations == 2


def test_shapes_are_checked(slot):
    with pytest.raises(Exception, match="weights"):
        replace(slot, weights=slot.weights[:, :3])


def test_a_design_beyond_its_limits_is_refused(slot, transceiver):
    within = replace(transceiver, transmit=transceiver.transmit / transceiver.transmit.abs())
    assert kept(slot, within) is within
    with pytest.raises(ValueError, match=r"1\.21 times its power limit"):
        kept(slot, replace(within, transmit=1.1 * within.transmit))
    two = replace(slot, owner=torch.tensor([0, 0, 1, 2, 3]))
    with pytest.raises(ValueError, match="2 times its power limit"):
        kept(two, within)
    kept(divided(two), replace(within, transmit=within.transmit / 2**0.5))
