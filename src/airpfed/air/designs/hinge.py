"""Gauss-Newton on the hinge, the one-target problem after its devices are eliminated in closed form.

For one target, min over |b_k| <= 1 of |m^H h_k b_k - w_k|^2 is (w_k - |m^H h_k|)_+^2, so the receiver alone remains:
F(m) = sum_k (w_k - |m^H h_k|)_+^2 + ridge ||m||^2. Plain alternation keeps the phases of m^H h_k and all devices in
each step; a Gauss-Newton step frees the phases and drops the devices that are satisfied, and needs far fewer steps.

A receiver is known by what it hears: `at` of shape (B, N), N = K + M, holds m^H h_k for the K devices and then the
conjugate of m itself, as if every antenna were one more device. That makes a step one product, and a line search a
few sums. Arrays are numpy's, whose small operations cost a fraction of torch's.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float

from airpfed.air.designs.normalized import DEAD

Point = Complex[np.ndarray, "B _N"]

STEPS = (1.0, 1.6, 1.25, 0.8, 0.6, 0.4, 0.2, 0.08, 0.02, 0.0)
GRID = np.array(STEPS)[:, None]

MARGIN = 1.02
"""A device up to this much above its target still counts in a step, which holds it there: a step that ignores it would
take it below its target at once, and the line search would cut the step short."""

LARGE = 1 << 13
"""Channel entries from which a block counts as large."""


@dataclass(frozen=True)
class SingleTargetProblem:
    """The problem per block in its own units: channels of typical power 1 per coordinate, sum_k w_k^2 = 1.

    channels: h_k by row. floor: least ridge of a well-posed solve. unit, scale: a receiver of the original channels and
    weights is `scale / unit` times the one found.
    """

    channels: Complex[np.ndarray, "B K M"]
    targets: Float[np.ndarray, "B K"]
    floor: Float[np.ndarray, " B"]
    unit: Float[np.ndarray, " B"]
    scale: Float[np.ndarray, " B"]

    @property
    def large(self) -> bool:
        """Whether arithmetic outweighs the cost of array operations: the path is longer."""
        return int(self.channels[0].size) >= LARGE


def single_target_problem(h: Complex[np.ndarray, "B M K"], weights: Float[np.ndarray, "B K"]) -> SingleTargetProblem:
    """The hinge of channels and weights; a device that is not heard gets weight 0 and constrains nothing."""
    rows = np.ascontiguousarray(h.swapaxes(1, 2))
    parts = rows.view(np.float64)
    power = np.vecdot(parts, parts)
    heard = power > DEAD * power.max(1, keepdims=True)
    logs = np.log(np.maximum(power, 1e-300) / h.shape[1]) * heard
    square = np.exp(logs.sum(1) / np.maximum(heard.sum(1), 1))
    unit, w = np.sqrt(square), weights * heard
    norm = np.sqrt(np.vecdot(w, w))
    scale = np.where(norm > 0, norm, 1.0)
    return SingleTargetProblem(
        rows * (1 / unit)[:, None, None], w / scale[:, None], 2e-14 * power.sum(1) / square, unit, scale
    )


def enter(problem: SingleTargetProblem, m: Complex[np.ndarray, "B M"]) -> Point:
    """A receiver of the original channels as a point of the problem."""
    return listen(problem, m * (problem.unit / problem.scale)[:, None])


def leave(problem: SingleTargetProblem, at: Point) -> Complex[np.ndarray, "B M"]:
    """The receiver of a point, in the original units."""
    m: Complex[np.ndarray, "B M"] = at[:, problem.targets.shape[1] :].conj() * (problem.scale / problem.unit)[:, None]
    return m


def listen(problem: SingleTargetProblem, m: Complex[np.ndarray, "B M"]) -> Point:
    """The point of a receiver in the problem's units."""
    conjugate = m.conj()
    return np.concatenate([(problem.channels @ conjugate[:, :, None])[:, :, 0], conjugate], 1)


def loudness(problem: SingleTargetProblem, at: Point) -> tuple[Float[np.ndarray, "B K"], Float[np.ndarray, " B"]]:
    """|m^H h_k| and ||m||^2."""
    magnitude, devices = np.abs(at), problem.targets.shape[1]
    entries = magnitude[:, devices:]
    return magnitude[:, :devices], np.vecdot(entries, entries)


def error(problem: SingleTargetProblem, ridge: Float[np.ndarray, " B"], at: Point) -> Float[np.ndarray, " B"]:
    """F(m) of a point."""
    magnitude, norm = loudness(problem, at)
    short = np.maximum(problem.targets - magnitude, 0.0)
    F: Float[np.ndarray, " B"] = np.vecdot(short, short) + ridge * norm
    return F


def best_scale(problem: SingleTargetProblem, ridge: Float[np.ndarray, " B"], at: Point) -> Point:
    """The point c at, c >= 0 the exact minimiser of F(c m), which is convex and piecewise quadratic in c.

    Devices leave the sum in the order of w_k/|a_k|. The slope at the scale where device k leaves tells on which side of
    it the minimum lies.
    """
    magnitude, norm = loudness(problem, at)
    ratio = problem.targets / np.maximum(magnitude, 1e-300)
    rows = np.arange(len(at))
    order = (-ratio).argsort(1)
    ratio, a, w = (values[rows[:, None], order] for values in (ratio, magnitude, problem.targets))
    pull, stiffness = (a * w).cumsum(1), (a * a).cumsum(1) + (ridge * norm)[:, None]
    last = np.maximum((ratio * stiffness > pull).sum(1) - 1, 0)
    best: Point = at * (pull[rows, last] / np.maximum(stiffness[rows, last], 1e-300))[:, None]
    return best


def linearised(
    problem: SingleTargetProblem,
    targets: Float[np.ndarray, "B K"],
    ridge: Float[np.ndarray, " B"],
    a: Complex[np.ndarray, "B K"],
) -> Complex[np.ndarray, "B M"]:
    """The receiver that minimises the hinge linearised at a point over its active devices.

    |m^H h_k| ~ Re(m^H h_k a_k*/|a_k|), and 0 for a satisfied device: a ridge regression in the 2M real and imaginary
    parts of m or, if fewer, in the devices' dual unknowns.
    """
    magnitude = np.abs(a)
    active = magnitude < MARGIN * targets
    channels, w = problem.channels, np.maximum(targets, magnitude)
    pull = a.conj() * (active / np.maximum(magnitude, 1e-300))
    if len(active) == 1:
        (index,) = active[0].nonzero()
        channels, pull, w = channels.take(index, 1), pull.take(index, 1), w.take(index, 1)
    J = (channels * pull[:, :, None]).view(np.float64)
    blocks, rows, unknowns = J.shape
    transposed, right, order = J.swapaxes(1, 2), w[:, :, None], min(rows, unknowns)
    gram = J @ transposed if rows < unknowns else transposed @ J
    gram.reshape(blocks, order * order)[:, :: order + 1] += np.maximum(ridge, problem.floor)[:, None]
    solution: Float[np.ndarray, "B _D 1"] = (
        transposed @ np.linalg.solve(gram, right) if rows < unknowns else np.linalg.solve(gram, transposed @ right)
    )
    return solution.reshape(blocks, unknowns).view(np.complex128)


def line_search(
    targets: Float[np.ndarray, "B K"],
    ridge: Float[np.ndarray, " B"],
    at: Point,
    step: Point,
) -> tuple[Point, Float[np.ndarray, "B G"]]:
    """The point of least F among `at + t step`, t on the grid. Returns (point, F on the grid, whose last t is 0)."""
    devices = targets.shape[1]
    points = at[:, None] + GRID * step[:, None]
    size = np.abs(points)
    short = np.maximum(targets[:, None] - size[:, :, :devices], 0.0)
    entries = size[:, :, devices:]
    values = np.vecdot(short, short) + ridge[:, None] * np.vecdot(entries, entries)
    best = values.argmin(1)
    return points[np.arange(len(at)), best], values


def gauss_newton(
    problem: SingleTargetProblem, targets: Float[np.ndarray, "B K"], ridge: Float[np.ndarray, " B"], at: Point
) -> tuple[Point, Float[np.ndarray, "B G"]]:
    """One Gauss-Newton step with line search; F never rises. Returns (next point, F on the grid of `line_search`)."""
    goal = linearised(problem, targets, ridge, at[:, : targets.shape[1]])
    return line_search(targets, ridge, at, listen(problem, goal) - at)
