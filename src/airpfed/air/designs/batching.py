"""Slots that differ in nothing but numbers, designed in one go: a call costs more than its arithmetic."""

from collections.abc import Callable, Hashable, Sequence

import torch

from airpfed.air.problem import Transceiver, TransceiverProblem


def in_bundles(
    design: Callable[[TransceiverProblem], Transceiver], slots: Sequence[TransceiverProblem]
) -> list[Transceiver]:
    """A transceiver a slot, as `design` makes them; slots of one target, perfect CSI and the same shape go together.

    design: takes weights that differ from block to block, (B, 1, K). `iterations` is the most of a bundle.
    """
    bundles: dict[Hashable, list[int]] = {}
    for place, problem in enumerate(slots):
        bundles.setdefault(alike(problem) or place, []).append(place)
    found: dict[int, Transceiver] = {}
    for places in bundles.values():
        if len(places) == 1:
            found[places[0]] = design(slots[places[0]])
            continue
        chosen = [slots[place] for place in places]
        parts = design(bundled(chosen)).split([len(problem.h) for problem in chosen])
        for place, problem, part in zip(places, chosen, parts, strict=True):
            found[place] = Transceiver(part.receiver, part.transmit * problem.power.sqrt(), part.iterations)
    return [found[place] for place in range(len(slots))]


def alike(problem: TransceiverProblem) -> Hashable:
    """What slots of a bundle share; None where a slot is designed by itself."""
    if (
        len(problem.weights) != 1
        or problem.device_of_stream is not None
        or problem.antenna_mask is not None
        or bool(problem.csi_variance.any())
    ):
        return None
    return problem.h.shape[1:], problem.noise, problem.real


def bundled(slots: Sequence[TransceiverProblem]) -> TransceiverProblem:
    """Slots that are `alike` as one of all their blocks: limits of 1, which the channels make up for."""
    h = torch.cat([problem.h * problem.power.sqrt() for problem in slots])
    weights = torch.cat([problem.weights.expand(len(problem.h), -1, -1) for problem in slots])
    ones = torch.ones_like(slots[0].power)
    return TransceiverProblem(
        h, weights, torch.ones_like(slots[0].target_weight), ones, slots[0].noise, 0 * ones, real=slots[0].real
    )
