"""Truncated inversion on a fixed beam: the best threshold is the best, a fixed one is obeyed."""

import pytest
import torch

from airpfed.air.designs.inversion import channel_inversion
from airpfed.air.problem import gains, objective


@pytest.mark.parametrize("csi", [0.0, 0.1])
@pytest.mark.parametrize("snr_db", [-10.0, 10.0, 30.0])
def test_no_threshold_beats_the_one_found(make_slot, snr_db, csi):
    problem = make_slot(6, 4, 12, 1, snr_db, csi=csi)
    best = objective(problem, channel_inversion(problem))
    for truncation in torch.logspace(-4, 0, 60).tolist():
        assert (best <= objective(problem, channel_inversion(problem, truncation=truncation)) * (1 + 1e-9)).all()


def test_threshold_zero_inverts_every_channel(make_slot):
    problem = make_slot(6, 4, 12)
    ratio = gains(problem.h, channel_inversion(problem, truncation=0.0))[:, 0] / problem.weights[0]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))


def test_threshold_one_leaves_the_best_device(make_slot):
    transmit = channel_inversion(make_slot(6, 4, 12), truncation=1.0).transmit_factors
    assert ((transmit != 0).sum(-1) == 1).all()


def test_unbiased_on_the_devices_kept(make_slot):
    problem = make_slot(6, 4, 12, 1, 10.0)
    transceiver = channel_inversion(problem)
    check_power = transceiver.transmit_factors != 0
    assert check_power.any()
    torch.testing.assert_close(
        gains(problem.h, transceiver)[:, 0][check_power],
        problem.weights[0].expand(6, -1)[check_power].to(torch.complex128),
    )
