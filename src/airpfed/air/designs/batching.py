"""One design call for all slots of equal shape, because the overhead of a call exceeds its arithmetic."""

from collections.abc import Callable, Hashable, Sequence

import torch

from airpfed.air.problem import Transceiver, TransceiverProblem


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
        parts = design(concatenate_blocks(members)).split([len(problem.h) for problem in members])
        for index, problem, part in zip(indices, members, parts, strict=True):
            transceivers[index] = Transceiver(
                part.receiver, part.transmit_factors * problem.power_limit.sqrt(), part.iterations
            )
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


def concatenate_blocks(slots: Sequence[TransceiverProblem]) -> TransceiverProblem:
    """One slot of the blocks of all slots of a batch, with power limits of 1 and channels scaled by sqrt(P_k)."""
    h = torch.cat([problem.h * problem.power_limit.sqrt() for problem in slots])
    weights = torch.cat([problem.weights.expand(len(problem.h), -1, -1) for problem in slots])
    ones = torch.ones_like(slots[0].power_limit)
    return TransceiverProblem(
        h, weights, torch.ones_like(slots[0].target_weight), ones, slots[0].noise, 0 * ones, real=slots[0].real
    )
