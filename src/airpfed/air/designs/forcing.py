"""Least-norm receivers that force every device: min ||m||^2 subject to |m^H h_k| >= w_k.

This is single-group multicast beamforming (NP-hard in general); solved to a local optimum by a Gauss-Newton penalty
followed by an augmented Lagrangian, batched over blocks.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.hinge import Point, continuation, gauss_newton, point, real_maps, receiver
from airpfed.air.designs.unit import dominant_beam, heard, typical_power

PENALTY = (1.0, 3e-2)
ROUNDS = 6
WARM_ROUNDS = 4


def least_norm(
    h: Complex[Tensor, "B M K"], weights: Float[Tensor, "B K"], m: Complex[Tensor, "B M"] | None = None
) -> tuple[Complex[Tensor, "B M"], int]:
    """A receiver of locally least norm with |m^H h_k| >= w_k for every device that is heard.

    A device of weight 0 constrains nothing. m: a start; without one, the weighted dominant eigenvector and a
    continuation in the penalty. Returns (m, steps).
    """
    unit = typical_power(h, torch.ones(h.shape[-1], dtype=torch.bool, device=h.device)).sqrt()[:, None]
    h = h / unit[..., None]
    w = torch.where(heard(h), weights, 0.0)
    scale = w.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-300)
    w = w / scale
    maps, ridge = real_maps(h), torch.full_like(unit[:, 0], PENALTY[1])
    if m is None:
        at, steps = continuation(maps, w, ridge, point(maps, dominant_beam(h, w)), PENALTY[0])
        at, more = augmented_lagrangian(maps, w, ridge, at, ROUNDS)
    else:
        at, more = augmented_lagrangian(maps, w, ridge, point(maps, m * unit / scale), WARM_ROUNDS)
        steps = 0
    return receiver(at) * scale / unit, steps + more


def augmented_lagrangian(
    maps: Float[Tensor, "B D 2 K"], w: Float[Tensor, "B K"], ridge: Float[Tensor, " B"], at: Point, rounds: int
) -> tuple[Point, int]:
    """The best feasible point met while the targets are shifted by the multipliers, c <- w + (c - |m^H h|)_+."""
    best, c = feasible(at, w), w
    for step in range(2 * rounds):
        if step % 2 == 0:
            c = torch.where(w > 0, w + (c - at.magnitude()).clamp_min(0.0), 0.0)
        at, _, _ = gauss_newton(maps, c, ridge, at)
        tried = feasible(at, w)
        shorter = tried.r.square().sum(-1) < best.r.square().sum(-1)
        best = Point(
            torch.where(shorter[:, None], tried.r, best.r), torch.where(shorter[:, None, None], tried.a, best.a)
        )
    return best, 2 * rounds


def feasible(at: Point, w: Float[Tensor, "B K"]) -> Point:
    """The point on the same ray whose tightest device meets its constraint, i.e. transmits at exactly its limit."""
    ratio = torch.where(w > 0, w / at.magnitude().clamp_min(1e-300), 0.0)
    return at.scaled(ratio.amax(-1))
