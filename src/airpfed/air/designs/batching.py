"""One design call for all slots of equal shape, because the overhead of a call exceeds its arithmetic."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import torch

from airpfed.air.problem import Transceiver, TransceiverProblem, csi_of_blocks


def in_batches(
    design: Callable[[TransceiverProblem], Transceiver], slots: Sequence[TransceiverProblem]
) -> list[Transceiver]:
    """Design every slot. Slots of equal shape with one target and perfect channel knowledge share a call.

    design: a design that accepts weights that differ between blocks, (B, 1, K). Returns one transceiver per slot; its
    `iterations` is the largest count in its batch.
    """
    batches: dict[Hashable, list[int]] = {}
    for index, problem in enumerate(slots):
        batches.setdefault(batch_key(problem) or index, []).append(index)
    transceivers: dict[int, Transceiver] = {}
    for indices in batches.values():
        if len(indices) == 1:
            transceivers[indices[0]] = design(slots[indices[0]])
            continue
        members = [slots[index] for index in indices]
        transceivers.update(zip(indices, design_jointly(design, members), strict=True))
    return [transceivers[index] for index in range(len(slots))]


def batch_key(problem: TransceiverProblem) -> Hashable:
    """The properties that slots of one batch have in common. Returns None for a slot that needs a call of its own."""
    if (
        len(problem.weights) != 1
        or problem.device_of_stream is not None
        or problem.antenna_mask is not None
        or bool(problem.csi_variance.any())
    ):
        return None
    return problem.h.shape[1:], problem.noise, problem.real


def design_jointly(
    design: Callable[[TransceiverProblem], Transceiver], problems: Sequence[TransceiverProblem]
) -> list[Transceiver]:
    """Design the blocks of all problems in one call, in units of their power limits."""
    parts = design(join_problems([in_unit_limits(problem) for problem in problems])).split(
        [len(problem.h) for problem in problems]
    )
    return [
        replace(part, transmit_factors=part.transmit_factors * problem.power_limit.sqrt())
        for part, problem in zip(parts, problems, strict=True)
    ]


def join_problems(problems: Sequence[TransceiverProblem]) -> TransceiverProblem:
    """One problem of the blocks of all problems, with the limits and the noise of the first.

    With one target the weights may differ, and its weight in the objective, which then is 1; with several targets,
    those of the first hold.
    """
    first = problems[0]
    weights, target_weight, csi = first.weights, first.target_weight, first.csi_variance
    if weights.shape[-2] == 1:
        if any(not torch.equal(problem.target_weight, target_weight) for problem in problems):
            target_weight = torch.ones_like(target_weight)
        if any(not torch.equal(problem.weights, weights) for problem in problems):
            weights = torch.cat([problem.weights.expand(len(problem.h), -1, -1) for problem in problems])
    if csi.dim() == 3 or any(not torch.equal(problem.csi_variance, csi) for problem in problems):
        csi = torch.cat([csi_of_blocks(problem) for problem in problems])
    h = torch.cat([problem.h for problem in problems])
    return replace(first, h=h, weights=weights, target_weight=target_weight, csi_variance=csi)


def in_unit_limits(problem: TransceiverProblem) -> TransceiverProblem:
    """The same problem with power limits of 1: channels times sqrt(P_k), variances of their errors times P_k."""
    limit = problem.power_limit
    return replace(
        problem,
        h=problem.h * limit.sqrt(),
        csi_variance=problem.csi_variance * limit,
        power_limit=torch.ones_like(limit),
    )
