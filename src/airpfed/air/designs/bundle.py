"""Slots that differ in nothing but numbers, designed in one go: a call costs more than its arithmetic."""

from collections.abc import Callable, Hashable, Sequence

import torch

from airpfed.air.slot import Slot, Transceiver


def in_bundles(design: Callable[[Slot], Transceiver], slots: Sequence[Slot]) -> list[Transceiver]:
    """A transceiver a slot, as `design` makes them; slots of one target, perfect CSI and the same shape go together.

    design: takes weights that differ from block to block, (B, 1, K). `iterations` is the most of a bundle.
    """
    bundles: dict[Hashable, list[int]] = {}
    for place, slot in enumerate(slots):
        bundles.setdefault(alike(slot) or place, []).append(place)
    found: dict[int, Transceiver] = {}
    for places in bundles.values():
        if len(places) == 1:
            found[places[0]] = design(slots[places[0]])
            continue
        chosen = [slots[place] for place in places]
        parts = design(bundled(chosen)).split([len(slot.h) for slot in chosen])
        for place, slot, part in zip(places, chosen, parts, strict=True):
            found[place] = Transceiver(part.receiver, part.transmit * slot.power.sqrt(), part.iterations)
    return [found[place] for place in range(len(slots))]


def alike(slot: Slot) -> Hashable:
    """What slots of a bundle share; None where a slot is designed by itself."""
    if len(slot.weights) != 1 or slot.owner is not None or slot.sees is not None or bool(slot.csi_variance.any()):
        return None
    return slot.h.shape[1:], slot.noise, slot.real


def bundled(slots: Sequence[Slot]) -> Slot:
    """Slots that are `alike` as one of all their blocks: limits of 1, which the channels make up for."""
    h = torch.cat([slot.h * slot.power.sqrt() for slot in slots])
    weights = torch.cat([slot.weights.expand(len(slot.h), -1, -1) for slot in slots])
    ones = torch.ones_like(slots[0].power)
    return Slot(h, weights, torch.ones_like(slots[0].importance), ones, slots[0].noise, 0 * ones, real=slots[0].real)
