"""Least-norm receivers that force every device: min ||m||^2 subject to |m^H h_k| >= w_k.

This is single-group multicast beamforming (NP-hard in general); solved to a local optimum by a Gauss-Newton penalty
followed by an augmented Lagrangian, batched over blocks.
"""

import numpy as np
from jaxtyping import Float

from airpfed.air.designs.continuation import END
from airpfed.air.designs.hinge import Point, SingleTargetProblem, gauss_newton, loudness

ROUNDS = 6
WARM_ROUNDS = 4
INNER = 2


def augmented_lagrangian(problem: SingleTargetProblem, at: Point, rounds: int) -> tuple[Point, int]:
    """The best feasible point met while the targets are shifted by the multipliers, c <- w + (c - |m^H h|)_+."""
    w, ridge = problem.targets, np.full_like(problem.unit, END)
    best, norm, magnitude = feasible(problem, at)
    c, wanted = w, w > 0
    for _ in range(rounds):
        c = (w + np.maximum(c - magnitude, 0.0)) * wanted
        for _ in range(INNER):
            at, _ = gauss_newton(problem, c, ridge, at)
        tried, shorter, magnitude = feasible(problem, at)
        best = np.where((shorter < norm)[:, None], tried, best)
        norm = np.minimum(norm, shorter)
    return best, INNER * rounds


def feasible(
    problem: SingleTargetProblem, at: Point
) -> tuple[Point, Float[np.ndarray, " B"], Float[np.ndarray, "B K"]]:
    """The point on the same ray whose tightest device meets its constraint, i.e. transmits at exactly its limit.

    Returns (the point, its ||m||^2, the |m^H h_k| before).
    """
    magnitude, norm = loudness(problem, at)
    ratio = (problem.targets / np.maximum(magnitude, 1e-300)).max(1)
    return at * ratio[:, None], norm * ratio**2, magnitude
