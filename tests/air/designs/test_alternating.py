"""Alternation, plain and accelerated: the objective never rises."""

import pytest
import torch

from airpfed.air.designs.alternating import (
    accelerated_alternation,
    alternate,
    one_slot,
    singular_start,
    transmit_factors,
    weighted_mse,
)
from airpfed.air.designs.normalized import normalise_problem


@pytest.mark.parametrize("csi", [0.0, 0.1])
@pytest.mark.parametrize(("antennas", "devices_", "targets"), [(4, 10, 1), (3, 9, 3), (16, 12, 3)])
@pytest.mark.parametrize("way", ["plain", "accelerated"])
def test_no_step_raises_the_objective(make_slot, way, antennas, devices_, targets, csi):
    unit = normalise_problem(make_slot(4, antennas, devices_, targets, 20.0, csi=csi))
    start, values = singular_start(unit), []
    for steps in range(1, 26):
        if way == "plain":
            m = alternate(unit, start, steps)
        else:
            (m,), _ = accelerated_alternation(one_slot(unit), (start,), steps)
        values.append(weighted_mse(unit, m, transmit_factors(unit, m)))
    rises = torch.stack(values).diff(dim=0) / values[0]
    assert (rises <= 1e-9).all()
    assert (rises.sum(0) < -1e-3).all()
