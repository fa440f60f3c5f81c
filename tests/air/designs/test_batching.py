"""Bundles of slots: the same transceivers as one by one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from airpfed.air.designs import DESIGNS
from airpfed.air.designs.batching import batch_key, in_batches
from airpfed.air.problem import TransceiverProblem, objective


def mixed(make_slot: Callable[..., TransceiverProblem]) -> list[TransceiverProblem]:
    """Slots of two shapes in turn, with limits of their own, a device that is not wanted, and one of two targets."""
    slots = [make_slot(blocks, 6, devices, 1, 10.0, seed=n) for n, (blocks, devices) in enumerate(4 * [(3, 5), (2, 9)])]
    weights = slots[0].weights.clone()
    weights[:, 2] = 0.0
    slots[0] = replace(slots[0], weights=weights, power_limit=torch.linspace(0.5, 2.0, 5, dtype=torch.float64))
    return [*slots, make_slot(2, 6, 6, 2, 10.0)]


@pytest.mark.parametrize("name", [name for name, row in DESIGNS.items() if row.batched])
@pytest.mark.parametrize("options", [{}, {"starts": 3}])
def test_a_bundle_gives_what_each_slot_gets_alone(make_slot, name, options):
    slots, design = mixed(make_slot), partial(DESIGNS[name], **options)
    assert design is not None
    for problem, one in zip(slots, in_batches(design, slots), strict=True):
        alone = design(problem)
        torch.testing.assert_close(objective(problem, one), objective(problem, alone), rtol=1e-6, atol=0)
        torch.testing.assert_close(one.transmit_factors.abs(), alone.transmit_factors.abs(), rtol=1e-3, atol=1e-5)
        assert one.receiver.shape == alone.receiver.shape


def test_only_slots_that_are_alike_go_together(make_slot):
    calls: list[int] = []

    def design(problem: TransceiverProblem) -> object:
        calls.append(len(problem.h))
        return made(problem)

    made, slots = partial(DESIGNS["uniform_forcing"]), mixed(make_slot)
    in_batches(design, [*slots, replace(slots[1], csi_variance=torch.full((9,), 0.1, dtype=torch.float64))])
    assert sorted(calls) == [2, 2, 4 * 2, 4 * 3]


def test_what_a_slot_must_share(make_slot):
    problem = make_slot(2, 6, 5, 1, 10.0)
    assert batch_key(problem) == batch_key(make_slot(3, 6, 5, 1, 10.0, seed=1))
    for other in (make_slot(2, 6, 6, 1, 10.0), make_slot(2, 5, 5, 1, 10.0), replace(problem, real=True)):
        assert batch_key(other) not in (None, batch_key(problem))
    assert batch_key(replace(problem, device_of_stream=torch.zeros(5, dtype=torch.long))) is None
