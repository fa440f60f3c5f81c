"""One target alone: uniform forcing and the least error from one continuation."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.continuation import follow, settle
from airpfed.air.designs.forcing import ROUNDS, augmented_lagrangian
from airpfed.air.designs.hinge import Hinge, best_scale, enter, error, hinge, leave, loudness
from airpfed.air.designs.own import gather_own, own_devices
from airpfed.air.designs.starts import beams
from airpfed.air.designs.unit import Unit


def lone(unit: Unit) -> tuple[Hinge, Complex[Tensor, "B D K"], Float[Tensor, "B K"]]:
    """The hinge of the only target's own devices, with their channels and weights."""
    index, w = own_devices(unit.weights)
    h = gather_own(unit.h, index)[:, 0]
    weights = w.expand(len(h), -1)
    return hinge(h, weights), h, weights


def noise_of(unit: Unit, problem: Hinge) -> Float[Tensor, " B"]:
    """The ridge that the slot's noise, and its CSI error at full power, is in the hinge's units."""
    return (unit.noise + unit.csi.sum((1, 2))) / problem.unit.square()


def least_norm_alone(unit: Unit, starts: int) -> tuple[Complex[Tensor, "B D 1"], int]:
    """The forcing receiver of least norm over `starts` paths. Returns (receiver, steps)."""
    problem, h, weights = lone(unit)
    best, steps = None, 0
    for beam in beams(h, weights, starts):
        end, _, taken = follow(problem, beam, torch.zeros_like(problem.unit))
        at, more = augmented_lagrangian(problem, end, ROUNDS)
        best, steps = at if best is None else shorter(problem, best, at), steps + taken + more
    assert best is not None
    return leave(problem, best)[..., None], steps


def least_error_alone(unit: Unit, starts: int) -> tuple[Complex[Tensor, "B D 1"], Complex[Tensor, "B D 1"], int]:
    """The receivers of least norm and of least error over `starts` paths, the error for optimal devices.

    The first is that of `least_norm_alone`. Returns (forcing, least error, steps).
    """
    problem, h, weights = lone(unit)
    noise, found, steps = noise_of(unit, problem), None, 0
    for beam in beams(h, weights, starts):
        end, passed, taken = follow(problem, beam, noise)
        forced, more = augmented_lagrangian(problem, end, ROUNDS)
        begin = lesser(problem, noise, best_scale(problem, noise, passed), best_scale(problem, noise, forced))
        least, polish = settle(problem, noise, begin)
        steps += taken + more + polish
        if found is not None:
            forced, least = shorter(problem, found[0], forced), lesser(problem, noise, found[1], least)
        found = forced, least
    assert found is not None
    return leave(problem, found[0])[..., None], leave(problem, found[1])[..., None], steps


def least_error_from(unit: Unit, m: Complex[Tensor, "B D 1"]) -> tuple[Complex[Tensor, "B D 1"], int]:
    """The receiver of least error near a given one. Returns (receiver, steps)."""
    problem, _, _ = lone(unit)
    at, steps = settle(problem, noise_of(unit, problem), enter(problem, m[..., 0]))
    return leave(problem, at)[..., None], steps


def shorter(problem: Hinge, first: Float[Tensor, "B 2 N"], second: Float[Tensor, "B 2 N"]) -> Float[Tensor, "B 2 N"]:
    """Block by block the point of smaller ||m||^2."""
    swap = loudness(problem, second)[1] < loudness(problem, first)[1]
    return torch.where(swap[:, None, None], second, first)


def lesser(
    problem: Hinge, noise: Float[Tensor, " B"], first: Float[Tensor, "B 2 N"], second: Float[Tensor, "B 2 N"]
) -> Float[Tensor, "B 2 N"]:
    """Block by block the point of smaller F."""
    swap = error(problem, noise, second) < error(problem, noise, first)
    return torch.where(swap[:, None, None], second, first)
