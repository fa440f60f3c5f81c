"""Gauss-Newton on the hinge, the one-target problem after its devices are eliminated in closed form.

For one target, min over |b_k| <= 1 of |m^H h_k b_k - w_k|^2 is (w_k - |m^H h_k|)_+^2, so the receiver alone remains:
F(m) = sum_k (w_k - |m^H h_k|)_+^2 + ridge ||m||^2. Plain alternation keeps the phases of m^H h_k and all devices in
each step; a Gauss-Newton step frees the phases and drops the devices that are satisfied, and needs far fewer steps.

Everything is real here: r = [Re m; Im m] of D = 2M entries, and maps of shape (B, D, 2, K) with r^T maps = (Re, Im) of
m^H h_k. Small complex operations cost several times their arithmetic.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

STEPS = (1.0, 4.0, 2.5, 1.8, 1.4, 1.2, 1.1, 0.9, 0.8, 0.65, 0.5, 0.35, 0.25, 0.15, 0.08, 0.03, 0.01, 1e-3, 0.0)
LEVEL_STEPS = 8
TOLERANCE, LOOSE = 1e-4, 1e-3
ROUNDING = 1e-9
"""A device this close to its target counts as active, so that rounding does not decide which way a step goes."""


@dataclass(frozen=True)
class Point:
    """A receiver r and what it hears, a = r^T maps; kept together because a line search gives both."""

    r: Float[Tensor, "B D"]
    a: Float[Tensor, "B 2 K"]

    def magnitude(self) -> Float[Tensor, "B K"]:
        """|m^H h_k|."""
        return self.a.square().sum(1).sqrt()

    def scaled(self, factor: Float[Tensor, " B"]) -> "Point":
        """The receiver times one factor per block."""
        return Point(self.r * factor[:, None], self.a * factor[:, None, None])


def real_maps(h: Complex[Tensor, "B M K"]) -> Float[Tensor, "B D 2 K"]:
    """The real linear maps from [Re m; Im m] to (Re, Im) of m^H h_k."""
    return torch.stack([torch.cat([h.real, h.imag], 1), torch.cat([h.imag, -h.real], 1)], 2)


def point(maps: Float[Tensor, "B D 2 K"], m: Complex[Tensor, "B M"]) -> Point:
    """A complex receiver as a point."""
    r = torch.cat([m.real, m.imag], 1)
    return Point(r, listen(maps, r))


def listen(maps: Float[Tensor, "B D 2 K"], r: Float[Tensor, "B D"]) -> Float[Tensor, "B 2 K"]:
    """r^T maps."""
    return (r[:, None, :] @ maps.flatten(2)).view(len(r), 2, -1)


def receiver(at: Point) -> Complex[Tensor, "B M"]:
    """The complex receiver of a point."""
    return torch.complex(*at.r.chunk(2, -1))


def best_scale(
    magnitude: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], penalty: Float[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """The exact minimiser over c >= 0 of sum_k (w_k - c |a_k|)_+^2 + c^2 penalty, convex and piecewise quadratic.

    Devices leave the sum in the order of w_k/|a_k|. Each of the K pieces has its own stationary point; the minimiser is
    the one that lies on its own piece, found as the least of the K values.
    """
    order = (targets / magnitude.clamp_min(1e-300)).argsort(-1, descending=True)
    a, w = magnitude.gather(-1, order), targets.gather(-1, order)
    scale = (a * w).cumsum(-1) / (a.square().cumsum(-1) + penalty[:, None]).clamp_min(1e-300)
    short = (w[:, None, :] - scale[..., None] * a[:, None, :]).clamp_min(0.0)
    values = short.square().sum(-1) + scale.square() * penalty[:, None]
    return scale.gather(-1, values.argmin(-1, keepdim=True))[:, 0]


def linearised(
    maps: Float[Tensor, "B D 2 K"],
    at: Point,
    magnitude: Float[Tensor, "B K"],
    active: Bool[Tensor, "B K"],
    targets: Float[Tensor, "B K"],
    ridge: Float[Tensor, " B"],
) -> Float[Tensor, "B D"]:
    """The receiver that minimises the hinge linearised at a point over its active devices.

    |m^H h_k| ~ r^T J_k with J_k = maps_k a_k/|a_k|: a ridge regression in 2M unknowns or, if fewer, in its K dual ones.
    """
    direction = at.a * (active / magnitude.clamp_min(1e-300))[:, None, :]
    J = (maps * direction[:, None]).sum(2)
    w = (targets * active)[..., None]
    dual = J.shape[2] < J.shape[1]
    right = w if dual else J @ w
    solution = ridge_solve(J.mT @ J if dual else J @ J.mT, right, ridge)
    return (J @ solution if dual else solution)[..., 0]


def ridge_solve(
    gram: Float[Tensor, "B D D"], right: Float[Tensor, "B D 1"], ridge: Float[Tensor, " B"]
) -> Float[Tensor, "B D 1"]:
    """(gram + ridge I)^-1 right; the ridge is lifted to rounding level so that the solve never breaks down."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal += torch.maximum(ridge, 1e-14 * diagonal.sum(-1))[:, None]
    solution: Tensor = torch.linalg.solve_ex(gram, right).result
    return solution


def line_search(
    at: Point,
    step: Point,
    targets: Float[Tensor, "B K"],
    ridge: Float[Tensor, " B"],
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """The best t of a grid for F(m + t d), all t at once: |a + t step|^2 and ||m + t d||^2 are quadratics in t.

    Returns (t, F(m + t d), F(m)); t = 0 where nothing improves.
    """
    grid = ridge.new_tensor(STEPS)
    heard, norms = quadratic(at.a, step.a), quadratic(at.r[..., None], step.r[..., None])
    t = grid[:, None]
    square = heard[0][:, None] + t * (heard[1][:, None] + t * heard[2][:, None])
    short = (targets[:, None, :] - square.clamp_min(0.0).sqrt()).clamp_min(0.0)
    penalty = norms[0] + grid * (norms[1] + grid * norms[2])
    values = short.square().sum(-1) + ridge[:, None] * penalty
    value, index = values.min(1)
    return grid[index], value, values[:, -1]


def quadratic(
    a: Float[Tensor, "B N K"], step: Float[Tensor, "B N K"]
) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"], Float[Tensor, "B K"]]:
    """The coefficients in t of ||a + t step||^2 over the middle axis."""
    return a.square().sum(1), 2 * (a * step).sum(1), step.square().sum(1)


def gauss_newton(
    maps: Float[Tensor, "B D 2 K"],
    targets: Float[Tensor, "B K"],
    ridge: Float[Tensor, " B"],
    at: Point,
    frozen: Bool[Tensor, " B"] | None = None,
) -> tuple[Point, Float[Tensor, " B"], Float[Tensor, " B"]]:
    """One Gauss-Newton step with line search, blocks marked `frozen` staying. Returns (next point, F, F before)."""
    magnitude = at.magnitude()
    active = targets > magnitude * (1 - ROUNDING)
    goal = linearised(maps, at, magnitude, active, targets, ridge)
    idle = ~active.any(-1)
    if bool(idle.any()):  # the linearised problem is empty: only the scale is left to improve
        scale = best_scale(magnitude, targets, ridge * at.r.square().sum(-1))
        goal = torch.where(idle[:, None], scale[:, None] * at.r, goal)
    d = goal - at.r
    step = Point(d, listen(maps, d))
    t, value, before = line_search(at, step, targets, ridge)
    t = t if frozen is None else torch.where(frozen, 0.0, t)
    return Point(at.r + t[:, None] * d, at.a + t[:, None, None] * step.a), value, before


def continuation(
    maps: Float[Tensor, "B D 2 K"],
    targets: Float[Tensor, "B K"],
    final: Float[Tensor, " B"],
    at: Point,
    start: float,
) -> tuple[Point, int]:
    """Gauss-Newton while the ridge falls from `start` to `final` by tens, each block at its own pace.

    A large ridge makes the problem nearly an eigenproblem, and following it down avoids most poor local minima. A block
    that is done is frozen, so its result does not depend on what it is batched with. Returns (point, steps taken).
    """
    ridge = final.clamp_min(start)
    at = at.scaled(best_scale(at.magnitude(), targets, ridge * at.r.square().sum(-1)))
    count, steps = torch.zeros_like(final), 0
    done = torch.zeros_like(final, dtype=torch.bool)
    while not bool(done.all()):
        at, value, before = gauss_newton(maps, targets, ridge, at, done)
        count, steps = count + 1, steps + 1
        last = ridge <= final
        settled = (before - value <= torch.where(last, TOLERANCE, LOOSE) * before) | (count >= LEVEL_STEPS)
        done = done | (settled & last)
        ridge = torch.where(settled, torch.maximum(ridge / 10, final), ridge)
        count = torch.where(settled, 0.0, count)
    return at, steps
