"""Gauss-Newton solver of the one-target design problem, after the transmit factors are eliminated.

For one target in natural units the least of |m^H h_k b_k - w_k|^2 over |b_k| <= 1 is (w_k - |m^H h_k|)_+^2, where
(x)_+ = max(x, 0). The receiver m alone remains:

    minimise  F(m) = sum_k (w_k - |m^H h_k|)_+^2 + ridge ||m||^2.

With ridge = sigma2, F is the mean-squared error. A small ridge is a penalty form of uniform forcing,

    minimise  ||m||^2   subject to   |m^H h_k| >= w_k for every k,

which is single-group multicast beamforming (Sidiropoulos, Davidson and Luo, IEEE Trans. Signal Process. 54(6), 2006)
and NP-hard. Both problems are solved to a local optimum from one path on which the ridge falls: `continuation_path`
from a large ridge, where F is nearly an eigenproblem, to a small one; then `minimise_error` for the mean-squared error,
and `augmented_lagrangian` for forcing. Plain alternation keeps the phases of m^H h_k and all devices in each step. A
Gauss-Newton step frees the phases and drops satisfied devices (|m^H h_k| >= w_k), and needs far fewer steps.

Shapes: channels (B, K, M) for B independent blocks, K devices and M antennas. An iterate x of shape (B, K + M) holds
the gains m^H h_k of the K devices and then the conjugate of m, so that a step is one product and a line search a few
sums. The arrays are numpy's, whose small operations cost a fraction of torch's.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float

from airpfed.air.designs.normalized import NEGLIGIBLE_POWER

Iterate = Complex[np.ndarray, "B _N"]
"""Gains m^H h_k of the K devices, then conj(m)."""

STEP_SIZES = (1.0, 1.6, 1.25, 0.8, 0.6, 0.4, 0.2, 0.08, 0.02, 0.0)
STEP_GRID = np.array(STEP_SIZES)[:, None]

ACTIVE_MARGIN = 1.02
"""A device with a gain up to this much above its weight still counts in a step. A step without it would take it below
its weight at once, and the line search would cut the step short."""

LARGE_BLOCK = 1 << 13
"""Channel entries from which on a block is large: arithmetic outweighs the cost of array operations."""

PATH_END = 0.03
PATH_START, PATH_LEVELS, PATH_MOMENTUM = 3.0, 24, 0.8
LARGE_PATH_START, LARGE_PATH_LEVELS, LARGE_PATH_MOMENTUM = 30.0, 48, 0.8
MOMENTUM_END = 0.1
"""Least ridge with momentum: a step then begins beyond the last iterate, in the direction of the last move."""

MOMENTUM = 0.8
TOLERANCE = 1e-4
MAX_STEPS = 12
RIDGE_DECAY = 10**-0.5

MULTIPLIER_UPDATES = 6
WARM_MULTIPLIER_UPDATES = 4
STEPS_PER_UPDATE = 2


@dataclass(frozen=True)
class SingleTargetProblem:
    """The problem of B blocks in natural units: channels of typical power 1 per antenna, sum_k w_k^2 = 1.

    channels: h_k as rows. weights: w_k, 0 for a device without a channel. min_ridge: least ridge of a well-posed solve.
    channel_scale, weight_scale: a receiver of the original channels and weights is weight_scale / channel_scale times a
    receiver of this problem.
    """

    channels: Complex[np.ndarray, "B K M"]
    weights: Float[np.ndarray, "B K"]
    min_ridge: Float[np.ndarray, " B"]
    channel_scale: Float[np.ndarray, " B"]
    weight_scale: Float[np.ndarray, " B"]


def single_target_problem(h: Complex[np.ndarray, "B M K"], weights: Float[np.ndarray, "B K"]) -> SingleTargetProblem:
    """The problem of given channels and weights in natural units."""
    channels = np.ascontiguousarray(h.swapaxes(1, 2))
    parts = channels.view(np.float64)
    power = np.vecdot(parts, parts)
    has_channel = power > NEGLIGIBLE_POWER * power.max(1, keepdims=True)
    logs = np.log(np.maximum(power, 1e-300) / h.shape[1]) * has_channel
    square = np.exp(logs.sum(1) / np.maximum(has_channel.sum(1), 1))
    channel_scale, w = np.sqrt(square), weights * has_channel
    norm = np.sqrt(np.vecdot(w, w))
    weight_scale = np.where(norm > 0, norm, 1.0)
    return SingleTargetProblem(
        channels=channels * (1 / channel_scale)[:, None, None],
        weights=w / weight_scale[:, None],
        min_ridge=2e-14 * power.sum(1) / square,
        channel_scale=channel_scale,
        weight_scale=weight_scale,
    )


def iterate_of(problem: SingleTargetProblem, m: Complex[np.ndarray, "B M"]) -> Iterate:
    """The iterate of a receiver of the original channels."""
    return append_gains(problem, m * (problem.channel_scale / problem.weight_scale)[:, None])


def receiver_of(problem: SingleTargetProblem, x: Iterate) -> Complex[np.ndarray, "B M"]:
    """The receiver of an iterate, for the original channels."""
    scale = (problem.weight_scale / problem.channel_scale)[:, None]
    m: Complex[np.ndarray, "B M"] = x[:, problem.weights.shape[1] :].conj() * scale
    return m


def append_gains(problem: SingleTargetProblem, m: Complex[np.ndarray, "B M"]) -> Iterate:
    """The iterate of a receiver in natural units: its gains beside its conjugate."""
    conjugate = m.conj()
    return np.concatenate([(problem.channels @ conjugate[:, :, None])[:, :, 0], conjugate], 1)


def gains_and_norm(
    problem: SingleTargetProblem, x: Iterate
) -> tuple[Float[np.ndarray, "B K"], Float[np.ndarray, " B"]]:
    """|m^H h_k| and ||m||^2."""
    magnitude, devices = np.abs(x), problem.weights.shape[1]
    entries = magnitude[:, devices:]
    return magnitude[:, :devices], np.vecdot(entries, entries)


def penalised_error(
    problem: SingleTargetProblem, ridge: Float[np.ndarray, " B"], x: Iterate
) -> Float[np.ndarray, " B"]:
    """The penalised error F (module docstring) of each block's iterate."""
    magnitude, norm = gains_and_norm(problem, x)
    short = np.maximum(problem.weights - magnitude, 0.0)
    F: Float[np.ndarray, " B"] = np.vecdot(short, short) + ridge * norm
    return F


def keep_smaller(value: Callable[[Iterate], Float[np.ndarray, " B"]], first: Iterate, second: Iterate) -> Iterate:
    """Keep in every block the iterate of smaller value, the first on a tie."""
    swap = value(second) < value(first)
    return np.where(swap[:, None], second, first)


def best_scale(problem: SingleTargetProblem, ridge: Float[np.ndarray, " B"], x: Iterate) -> Iterate:
    """Scale an iterate by the c >= 0 that minimises F(c m), which is convex and piecewise quadratic in c.

    Devices leave the sum in the order of w_k / |m^H h_k|. The slope at the scale where device k leaves shows on which
    side of it the minimum lies.
    """
    magnitude, norm = gains_and_norm(problem, x)
    ratio = problem.weights / np.maximum(magnitude, 1e-300)
    rows = np.arange(len(x))
    order = (-ratio).argsort(1)
    ratio, a, w = (values[rows[:, None], order] for values in (ratio, magnitude, problem.weights))
    linear, quadratic = (a * w).cumsum(1), (a * a).cumsum(1) + (ridge * norm)[:, None]
    last = np.maximum((ratio * quadratic > linear).sum(1) - 1, 0)
    best: Iterate = x * (linear[rows, last] / np.maximum(quadratic[rows, last], 1e-300))[:, None]
    return best


def gauss_newton_step(
    problem: SingleTargetProblem, weights: Float[np.ndarray, "B K"], ridge: Float[np.ndarray, " B"], x: Iterate
) -> tuple[Iterate, Float[np.ndarray, "B G"]]:
    """One Gauss-Newton step on F with a line search; F never rises.

    weights: w_k, or the weights shifted by an augmented Lagrangian. Returns (next iterate, F at the G step sizes, of
    which the last is 0).
    """
    goal = solve_linearised(problem, weights, ridge, x[:, : weights.shape[1]])
    return grid_line_search(weights, ridge, x, append_gains(problem, goal) - x)


def solve_linearised(
    problem: SingleTargetProblem,
    weights: Float[np.ndarray, "B K"],
    ridge: Float[np.ndarray, " B"],
    a: Complex[np.ndarray, "B K"],
) -> Complex[np.ndarray, "B M"]:
    """The receiver that minimises F linearised at gains a over its active devices.

    |m^H h_k| ~ Re(m^H h_k conj(a_k) / |a_k|), and 0 for a satisfied device. This is a ridge regression in the 2M real
    and imaginary parts of m or, if that is smaller, in the dual unknowns of the devices.
    """
    magnitude = np.abs(a)
    active = magnitude < ACTIVE_MARGIN * weights
    channels, w = problem.channels, np.maximum(weights, magnitude)
    phase = a.conj() * (active / np.maximum(magnitude, 1e-300))
    if len(active) == 1:
        (index,) = active[0].nonzero()
        channels, phase, w = channels.take(index, 1), phase.take(index, 1), w.take(index, 1)
    J = (channels * phase[:, :, None]).view(np.float64)
    blocks, rows, unknowns = J.shape
    transposed, right, order = J.swapaxes(1, 2), w[:, :, None], min(rows, unknowns)
    gram = J @ transposed if rows < unknowns else transposed @ J
    gram.reshape(blocks, order * order)[:, :: order + 1] += np.maximum(ridge, problem.min_ridge)[:, None]
    solution: Float[np.ndarray, "B _D 1"] = (
        transposed @ np.linalg.solve(gram, right) if rows < unknowns else np.linalg.solve(gram, transposed @ right)
    )
    return solution.reshape(blocks, unknowns).view(np.complex128)


def grid_line_search(
    weights: Float[np.ndarray, "B K"], ridge: Float[np.ndarray, " B"], x: Iterate, step: Iterate
) -> tuple[Iterate, Float[np.ndarray, "B G"]]:
    """The iterate of least F among x + size * step, size in STEP_SIZES. Returns (iterate, F at all step sizes)."""
    devices = weights.shape[1]
    candidates = x[:, None] + STEP_GRID * step[:, None]
    magnitude = np.abs(candidates)
    short = np.maximum(weights[:, None] - magnitude[:, :, :devices], 0.0)
    entries = magnitude[:, :, devices:]
    values = np.vecdot(short, short) + ridge[:, None] * np.vecdot(entries, entries)
    best = values.argmin(1)
    return candidates[np.arange(len(x)), best], values


def continuation_path(
    problem: SingleTargetProblem, beam: Complex[np.ndarray, "B M"], noise: Float[np.ndarray, " B"]
) -> tuple[Iterate, Iterate, int]:
    """Start at a beam and take one Gauss-Newton step per ridge, while the ridge falls geometrically to PATH_END.

    A large ridge makes the problem nearly an eigenproblem, and following it down avoids most poor local minima. With
    momentum down to MOMENTUM_END the path is as good as with twice the levels. The ridges are the same in all blocks.
    Returns (the last iterate, the last iterate with a ridge at or above each block's noise, steps taken).
    """
    large = int(problem.channels[0].size) >= LARGE_BLOCK
    start, levels, momentum = (
        (LARGE_PATH_START, LARGE_PATH_LEVELS, LARGE_PATH_MOMENTUM)
        if large
        else (PATH_START, PATH_LEVELS, PATH_MOMENTUM)
    )
    path = start * (PATH_END / start) ** (np.arange(levels) / (levels - 1))
    last = (path[:, None] >= noise).sum(0) - 1
    ridges, branches = path[:, None] + np.zeros_like(noise), set(last.tolist())
    x = at_noise = previous = best_scale(problem, ridges[0], iterate_of(problem, beam))
    for level, ridge in enumerate(ridges):
        begin = x + momentum * (x - previous) if path[level] > MOMENTUM_END else x
        previous = x
        x, _ = gauss_newton_step(problem, problem.weights, ridge, begin)
        if level in branches:
            at_noise = np.where((last == level)[:, None], x, at_noise)
    return x, at_noise, levels


def minimise_error(problem: SingleTargetProblem, noise: Float[np.ndarray, " B"], x: Iterate) -> tuple[Iterate, int]:
    """Take Gauss-Newton steps from x until F with ridge = noise has converged to TOLERANCE.

    If the noise is below PATH_END, the ridge falls from there to the noise, by a factor RIDGE_DECAY per step. If it is
    above MOMENTUM_END, steps have momentum: then a step without gain is not taken and the next one is plain,
    convergence takes two steps in a row of too little gain, and twice MAX_STEPS are allowed. A converged block is
    frozen, so that its result does not depend on its batch. Returns (iterate, steps).
    """
    ridge, fast, previous = np.maximum(noise, PATH_END), noise > MOMENTUM_END, x
    momentum, patience = MOMENTUM * fast[:, None], 1 + fast
    limit = MAX_STEPS * patience + np.log(noise / ridge) / math.log(RIDGE_DECAY)
    value, stale, steps, busy = penalised_error(problem, ridge, x), 0 * patience, 0, patience > 0
    while busy.any():
        ridge = np.maximum(ridge * RIDGE_DECAY, noise)
        candidate, values = gauss_newton_step(problem, problem.weights, ridge, x + momentum * (x - previous))
        reached = values.min(1)
        accept = busy & (reached < value)
        stale = (stale + 1) * ((value - reached <= TOLERANCE * value) & (ridge <= noise))
        previous, x, value, steps = x, np.where(accept[:, None], candidate, x), np.minimum(value, reached), steps + 1
        busy &= (stale < patience) & (steps < limit)
    return best_scale(problem, noise, x), steps


def augmented_lagrangian(problem: SingleTargetProblem, x: Iterate, updates: int) -> tuple[Iterate, int]:
    """Update the shifted weights v <- w + (v - |m^H h|)_+ `updates` times.

    Returns the least-norm iterate after scaling each to feasibility, |m^H h_k| >= w_k, and the steps taken.
    """
    w, ridge = problem.weights, np.full_like(problem.channel_scale, PATH_END)
    best, norm, magnitude = scale_to_feasible(problem, x)
    shifted, constrained = w, w > 0
    for _ in range(updates):
        shifted = (w + np.maximum(shifted - magnitude, 0.0)) * constrained
        for _ in range(STEPS_PER_UPDATE):
            x, _ = gauss_newton_step(problem, shifted, ridge, x)
        candidate, candidate_norm, magnitude = scale_to_feasible(problem, x)
        best = np.where((candidate_norm < norm)[:, None], candidate, best)
        norm = np.minimum(norm, candidate_norm)
    return best, STEPS_PER_UPDATE * updates


def scale_to_feasible(
    problem: SingleTargetProblem, x: Iterate
) -> tuple[Iterate, Float[np.ndarray, " B"], Float[np.ndarray, "B K"]]:
    """Scale an iterate such that the tightest device meets its constraint, i.e. transmits at exactly its limit.

    Returns (the scaled iterate, its ||m||^2, the |m^H h_k| before scaling).
    """
    magnitude, norm = gains_and_norm(problem, x)
    ratio = (problem.weights / np.maximum(magnitude, 1e-300)).max(1)
    return x * ratio[:, None], norm * ratio**2, magnitude


def starting_beams(problem: SingleTargetProblem, starts: int) -> Iterator[Complex[np.ndarray, "B M"]]:
    """`starts` beams per block: the dominant beam, then random combinations of the weighted channels.

    The coefficients of a combination are CN(0, 1) from a fixed seed and the same in every block, so that the starts of
    a block do not depend on its batch. Raises ValueError if starts < 1.
    """
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    yield dominant_beam(problem)
    rng = torch.Generator().manual_seed(0)
    channels = weighted_channels(problem)
    for _ in range(starts - 1):
        coefficients = torch.randn(channels.shape[1], dtype=torch.complex128, generator=rng).numpy()
        yield coefficients @ channels


def dominant_beam(problem: SingleTargetProblem) -> Complex[np.ndarray, "B M"]:
    """The unit dominant eigenvector of sum_k (w_k / ||h_k||^2)^2 h_k h_k^H."""
    channels = weighted_channels(problem)
    vectors: Complex[np.ndarray, "B M M"] = np.linalg.eigh(channels.swapaxes(1, 2) @ channels.conj()).eigenvectors
    return vectors[:, :, -1]


def weighted_channels(problem: SingleTargetProblem) -> Complex[np.ndarray, "B K M"]:
    """(w_k / ||h_k||^2) h_k, over the block's largest factor: weak devices count more than strong ones."""
    parts = problem.channels.view(np.float64)
    ratio = problem.weights / np.maximum(np.vecdot(parts, parts), 1e-300)
    scaled = ratio / np.maximum(ratio.max(1, keepdims=True), 1e-300)
    channels: Complex[np.ndarray, "B K M"] = problem.channels * scaled[:, :, None]
    return channels
