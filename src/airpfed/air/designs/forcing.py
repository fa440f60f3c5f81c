"""Least-norm receivers that force every device: min ||m||^2 subject to |m^H h_k| >= w_k.

This is single-group multicast beamforming (NP-hard in general); solved to a local optimum by a Gauss-Newton penalty
followed by an augmented Lagrangian, batched over blocks.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.continuation import END, follow
from airpfed.air.designs.hinge import Hinge, enter, gauss_newton, hinge, leave, loudness
from airpfed.air.designs.unit import dominant_beam

ROUNDS = 6
WARM_ROUNDS = 4
INNER = 2


def least_norm(
    h: Complex[Tensor, "B M K"], weights: Float[Tensor, "B K"], m: Complex[Tensor, "B M"] | None = None
) -> tuple[Complex[Tensor, "B M"], int]:
    """A receiver of locally least norm with |m^H h_k| >= w_k for every device that is heard.

    A device of weight 0 constrains nothing. m: a start; without one, the weighted dominant eigenvector and a
    continuation in the penalty. Returns (m, steps).
    """
    problem = hinge(h, weights)
    if m is None:
        begin, _, steps = follow(problem, dominant_beam(h, weights), torch.zeros_like(problem.unit))
    else:
        begin, steps = enter(problem, m), 0
    at, more = augmented_lagrangian(problem, begin, WARM_ROUNDS if steps == 0 else ROUNDS)
    return leave(problem, at), steps + more


def augmented_lagrangian(problem: Hinge, at: Float[Tensor, "B 2 N"], rounds: int) -> tuple[Float[Tensor, "B 2 N"], int]:
    """The best feasible point met while the targets are shifted by the multipliers, c <- w + (c - |m^H h|)_+."""
    w, ridge = problem.targets, torch.full_like(problem.unit, END)
    best, norm, magnitude = feasible(problem, at)
    c = w
    for _ in range(rounds):
        c = torch.where(w > 0, w + (c - magnitude).clamp_min(0.0), 0.0)
        for _ in range(INNER):
            at, _ = gauss_newton(problem, c, ridge, at)
        tried, shorter, magnitude = feasible(problem, at)
        best = torch.where((shorter < norm)[:, None, None], tried, best)
        norm = torch.minimum(norm, shorter)
    return best, INNER * rounds


def feasible(
    problem: Hinge, at: Float[Tensor, "B 2 N"]
) -> tuple[Float[Tensor, "B 2 N"], Float[Tensor, " B"], Float[Tensor, "B K"]]:
    """The point on the same ray whose tightest device meets its constraint, i.e. transmits at exactly its limit.

    Returns (the point, its ||m||^2, the |m^H h_k| before).
    """
    magnitude, norm = loudness(problem, at)
    ratio = torch.where(problem.targets > 0, problem.targets / magnitude.clamp_min(1e-300), 0.0).amax(-1)
    return at * ratio[:, None, None], norm * ratio.square(), magnitude
