"""Gauss-Newton on the hinge, the one-target problem after its devices are eliminated in closed form.

For one target, min over |b_k| <= 1 of |m^H h_k b_k - w_k|^2 is (w_k - |m^H h_k|)_+^2, so the receiver alone remains:
F(m) = sum_k (w_k - |m^H h_k|)_+^2 + ridge ||m||^2. Plain alternation keeps the phases of m^H h_k and all devices in
each step; a Gauss-Newton step frees the phases and drops the devices that are satisfied, and needs far fewer steps.

Everything is real here, because small complex operations cost several times their arithmetic, and a receiver is known
by what it hears: `at` of shape (B, 2, N), N = K + M, holds (Re, Im) of m^H h_k for the K devices and then of the M
entries of m itself, as if every antenna were one more device. That makes a step one product, and a line search one
polynomial.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.unit import heard, typical_power

STEPS = (1.0, 2.5, 1.6, 1.25, 0.8, 0.6, 0.4, 0.2, 0.08, 0.02, 1e-3, 0.0)
ROUNDING = 1e-9
"""A device this close to its target counts as active, so that rounding does not decide which way a step goes."""

LARGE = 1 << 14
"""Devices times unknowns from which a block counts as large."""


@dataclass(frozen=True)
class Hinge:
    """The problem per block in its own units: channels of typical power 1 per coordinate, sum_k w_k^2 = 1.

    maps: what each device, then each antenna hears of [Re m; Im m], D = 2M. floor: least ridge of a well-posed solve.
    grid: STEPS.     unit, scale: a receiver of the original channels and weights is `scale / unit` times the one found.
    """

    maps: Float[Tensor, "B 2 N D"]
    targets: Float[Tensor, "B K"]
    floor: Float[Tensor, " B"]
    grid: Float[Tensor, " G"]
    unit: Float[Tensor, " B"]
    scale: Float[Tensor, " B"]

    @property
    def large(self) -> bool:
        """Whether arithmetic outweighs the cost of tensor operations: devices are picked, and the path is longer."""
        return self.targets.shape[1] * self.maps.shape[3] >= LARGE


def hinge(h: Complex[Tensor, "B M K"], weights: Float[Tensor, "B K"]) -> Hinge:
    """The hinge of channels and weights; a device that is not heard gets weight 0 and constrains nothing."""
    unit = typical_power(h, torch.ones(h.shape[-1], dtype=torch.bool, device=h.device)).sqrt()
    w = torch.where(heard(h), weights, 0.0)
    norm = w.square().sum(-1).sqrt()
    scale = torch.where(norm > 0, norm, 1.0)
    h = h.mT / unit[:, None, None]
    eye = torch.eye(h.shape[2], dtype=w.dtype, device=h.device).expand(len(h), -1, -1)
    rows = torch.stack([torch.cat([h.real, h.imag], 2), torch.cat([h.imag, -h.real], 2)], 1)
    own = torch.stack([torch.cat([eye, 0 * eye], 2), torch.cat([0 * eye, eye], 2)], 1)
    floor = 1e-14 * rows.square().sum((1, 2, 3))
    return Hinge(torch.cat([rows, own], 2), w / scale[:, None], floor, w.new_tensor(STEPS), unit, scale)


def enter(problem: Hinge, m: Complex[Tensor, "B M"]) -> Float[Tensor, "B 2 N"]:
    """A receiver of the original channels as a point of the problem."""
    r = torch.cat([m.real, m.imag], 1) * (problem.unit / problem.scale)[:, None]
    return listen(problem, r)


def leave(problem: Hinge, at: Float[Tensor, "B 2 N"]) -> Complex[Tensor, "B M"]:
    """The receiver of a point, in the original units."""
    entries = at[:, :, problem.targets.shape[1] :] * (problem.scale / problem.unit)[:, None, None]
    return torch.complex(entries[:, 0], entries[:, 1])


def listen(problem: Hinge, r: Float[Tensor, "B D"]) -> Float[Tensor, "B 2 N"]:
    """What the receiver r hears of every device and antenna."""
    return torch.bmm(problem.maps.flatten(1, 2), r.unsqueeze(2)).view(len(r), 2, -1)


def loudness(problem: Hinge, at: Float[Tensor, "B 2 N"]) -> tuple[Float[Tensor, "B K"], Float[Tensor, " B"]]:
    """|m^H h_k| and ||m||^2."""
    square = at.square().sum(1)
    devices = problem.targets.shape[1]
    return square[:, :devices].sqrt(), square[:, devices:].sum(-1)


def error(problem: Hinge, ridge: Float[Tensor, " B"], at: Float[Tensor, "B 2 N"]) -> Float[Tensor, " B"]:
    """F(m) of a point."""
    magnitude, norm = loudness(problem, at)
    return (problem.targets - magnitude).clamp_min(0.0).square().sum(-1) + ridge * norm


def best_scale(problem: Hinge, ridge: Float[Tensor, " B"], at: Float[Tensor, "B 2 N"]) -> Float[Tensor, "B 2 N"]:
    """The point c at, c >= 0 the exact minimiser of F(c m), which is convex and piecewise quadratic in c.

    Devices leave the sum in the order of w_k/|a_k|. The slope at the scale where device k leaves tells on which side of
    it the minimum lies.
    """
    magnitude, norm = loudness(problem, at)
    ratio, order = (problem.targets / magnitude.clamp_min(1e-300)).sort(-1, descending=True)
    a, w = magnitude.gather(-1, order), problem.targets.gather(-1, order)
    pull, stiffness = (a * w).cumsum(-1), a.square().cumsum(-1) + (ridge * norm)[:, None]
    last = ((ratio * stiffness > pull).sum(-1, keepdim=True) - 1).clamp_min(0)
    scale = pull.gather(-1, last) / stiffness.gather(-1, last).clamp_min(1e-300)
    return at * scale[..., None]


def linearised(
    problem: Hinge,
    targets: Float[Tensor, "B K"],
    ridge: Float[Tensor, " B"],
    a: Float[Tensor, "B 2 K"],
    magnitude: Float[Tensor, "B K"],
) -> Float[Tensor, "B D"]:
    """The receiver that minimises the hinge linearised at a point over its active devices.

    |m^H h_k| ~ J_k r with J_k = maps_k a_k/|a_k|, and 0 for a satisfied device: a ridge regression in 2M unknowns or,
    if fewer, in the devices' dual ones.
    """
    short = torch.sub(targets, magnitude, alpha=1 - ROUNDING)
    pull = a / magnitude.masked_fill(short <= 0, torch.inf).unsqueeze(1)
    maps, w = problem.maps, targets
    if problem.large:
        maps, pull, w = pick(problem, short, pull, w)
    real, imaginary = maps.narrow(2, 0, w.shape[1]).unbind(1)
    cosine, sine = pull.unsqueeze(3).unbind(1)
    J = torch.addcmul(real * cosine, imaginary, sine)
    dual = J.shape[1] < J.shape[2]
    gram = torch.bmm(J, J.mT) if dual else torch.bmm(J.mT, J)
    gram.diagonal(dim1=1, dim2=2).add_(torch.maximum(ridge, problem.floor).unsqueeze(1))
    right = w.unsqueeze(2) if dual else torch.bmm(J.mT, w.unsqueeze(2))
    solution = torch.linalg.solve_ex(gram, right).result
    return (torch.bmm(J.mT, solution) if dual else solution).squeeze(2)


def pick(
    problem: Hinge, short: Float[Tensor, "B K"], pull: Float[Tensor, "B 2 K"], w: Float[Tensor, "B K"]
) -> tuple[Float[Tensor, "B 2 n D"], Float[Tensor, "B 2 n"], Float[Tensor, "B n"]]:
    """Maps, phases and targets of as many devices as any block has active; what pads the others has a pull of 0."""
    blocks, _, rows, unknowns = problem.maps.shape
    most = max(1, int((short > 0).sum(-1).max()))
    index = short.topk(most, sorted=False).indices
    first = torch.arange(2 * blocks, device=short.device).view(blocks, 2, 1) * rows
    maps = problem.maps.view(-1, unknowns).index_select(0, (index[:, None] + first).flatten())
    return (
        maps.view(blocks, 2, most, unknowns),
        pull.gather(2, index[:, None].expand(-1, 2, -1)),
        w.gather(1, index),
    )


def line_search(
    problem: Hinge,
    targets: Float[Tensor, "B K"],
    ridge: Float[Tensor, " B"],
    square: Float[Tensor, "B N"],
    at: Float[Tensor, "B 2 N"],
    step: Float[Tensor, "B 2 N"],
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B G"]]:
    """The best t of a grid for F at `at + t step`, all t at once: |a_k|^2 and |m_j|^2 are quadratics in t.

    square: |at|^2. Returns (t, F on the grid, whose last t is 0).
    """
    linear, curved, grid = (at * step).sum(1), step.square().sum(1), problem.grid.unsqueeze(1)
    slope = torch.addcmul(linear.unsqueeze(1), grid, curved.unsqueeze(1), value=0.5)
    squares = torch.addcmul(square.unsqueeze(1), grid, slope, value=2.0)
    devices = targets.shape[1]
    short = (targets.unsqueeze(1) - squares.narrow(2, 0, devices).clamp_min(0.0).sqrt_()).relu_()
    values = torch.linalg.vector_norm(short, dim=-1).square_()
    entries = squares.narrow(2, devices, squares.shape[2] - devices)
    values.addcmul_(ridge.unsqueeze(1), entries.sum(-1))
    return problem.grid.take(values.argmin(1)), values


def gauss_newton(
    problem: Hinge, targets: Float[Tensor, "B K"], ridge: Float[Tensor, " B"], at: Float[Tensor, "B 2 N"]
) -> tuple[Float[Tensor, "B 2 N"], Float[Tensor, "B G"]]:
    """One Gauss-Newton step with line search; F never rises. Returns (next point, F on the grid of `line_search`)."""
    devices = targets.shape[1]
    square = at.square().sum(1)
    magnitude = square.narrow(1, 0, devices).sqrt().clamp_min_(1e-300)
    goal = linearised(problem, targets, ridge, at.narrow(2, 0, devices), magnitude)
    step = listen(problem, goal) - at
    t, values = line_search(problem, targets, ridge, square, at, step)
    return torch.addcmul(at, t.view(-1, 1, 1), step), values
