"""What a hinge is designed for: receivers of least norm and of least error, from one or several beams.

Each returns (receivers, steps) in the original units, as `blockwise` expects.
"""

import numpy as np
from jaxtyping import Complex, Float

from airpfed.air.designs.continuation import MOMENTUM_END, follow, settle
from airpfed.air.designs.forcing import ROUNDS, WARM_ROUNDS, augmented_lagrangian
from airpfed.air.designs.hinge import Point, SingleTargetProblem, best_scale, enter, error, leave, loudness
from airpfed.air.designs.starts import beams, dominant

Found = tuple[list[Complex[np.ndarray, "B _M"]], int]


def forced_from(problem: SingleTargetProblem, m: Complex[np.ndarray, "B M"]) -> Found:
    """The forcing receiver of least norm near a given one."""
    at, steps = augmented_lagrangian(problem, enter(problem, m), WARM_ROUNDS)
    return [leave(problem, at)], steps


def forced(starts: int, problem: SingleTargetProblem) -> Found:
    """The forcing receiver of least norm over `starts` paths."""
    best, steps = None, 0
    for beam in beams(problem, starts):
        end, _, taken = follow(problem, beam, np.zeros_like(problem.unit))
        at, more = augmented_lagrangian(problem, end, ROUNDS)
        best, steps = at if best is None else shorter(problem, best, at), steps + taken + more
    assert best is not None
    return [leave(problem, best)], steps


def forced_and_least(starts: int, problem: SingleTargetProblem, ridge: Float[np.ndarray, " B"]) -> Found:
    """The receivers of least norm and of least error over `starts` paths; the first is that of `forced`.

    ridge: what ||m||^2 costs in the original units.
    """
    noise, found, steps = ridge / problem.unit**2, None, 0
    for beam in beams(problem, starts):
        end, passed, taken = follow(problem, beam, noise)
        short, more = augmented_lagrangian(problem, end, ROUNDS)
        least, polish = settle(problem, noise, best_scale(problem, noise, short))
        steps += taken + more + polish
        noisy = noise > MOMENTUM_END
        if noisy.any():
            begin = np.where(noisy[:, None], passed, short)
            other, polish = settle(problem, noise, best_scale(problem, noise, begin))
            least, steps = lesser(problem, noise, least, other), steps + polish
        if found is not None:
            short, least = shorter(problem, found[0], short), lesser(problem, noise, found[1], least)
        found = short, least
    assert found is not None
    return [leave(problem, at) for at in found], steps


def least_from(problem: SingleTargetProblem, ridge: Float[np.ndarray, " B"], m: Complex[np.ndarray, "B M"]) -> Found:
    """The receiver of least error near a given one; ridge as in `forced_and_least`."""
    noise = ridge / problem.unit**2
    at, steps = settle(problem, noise, best_scale(problem, noise, enter(problem, m)))
    return [leave(problem, at)], steps


def first_beam(problem: SingleTargetProblem) -> Found:
    """The weighted dominant eigenvector."""
    return [dominant(problem)], 0


def shorter(problem: SingleTargetProblem, first: Point, second: Point) -> Point:
    """Block by block the point of smaller ||m||^2."""
    swap = loudness(problem, second)[1] < loudness(problem, first)[1]
    return np.where(swap[:, None], second, first)


def lesser(problem: SingleTargetProblem, noise: Float[np.ndarray, " B"], first: Point, second: Point) -> Point:
    """Block by block the point of smaller F."""
    swap = error(problem, noise, second) < error(problem, noise, first)
    return np.where(swap[:, None], second, first)
