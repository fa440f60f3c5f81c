"""One path for both one-target designs: the ridge falls step by step, forcing lies at its end, the MMSE on its way."""

import math

import numpy as np
from jaxtyping import Complex, Float

from airpfed.air.designs.hinge import Point, SingleTargetProblem, best_scale, enter, error, gauss_newton

END = 0.03
START, LEVELS = 3.0, 24
LARGE_START, LARGE_LEVELS, LARGE_MOMENTUM = 30.0, 48, 0.8
MOMENTUM = 0.8
MOMENTUM_END = 0.1
TOLERANCE = 1e-4
SETTLE_STEPS = 12
DESCENT = 10**-0.5


def follow(
    problem: SingleTargetProblem, beam: Complex[np.ndarray, "B M"], noise: Float[np.ndarray, " B"]
) -> tuple[Point, Point, int]:
    """One Gauss-Newton step a level while the ridge falls geometrically to END, the same for all blocks.

    A large ridge makes the problem nearly an eigenproblem, and following it down avoids most poor local minima. Down to
    MOMENTUM_END each step begins beyond the last point, where it was heading: as good as twice the levels. Returns (the
    path's end, its last point at or above each block's noise, steps taken).
    """
    large = LARGE_START, LARGE_LEVELS, LARGE_MOMENTUM
    start, levels, momentum = large if problem.large else (START, LEVELS, MOMENTUM)
    path = start * (END / start) ** (np.arange(levels) / (levels - 1))
    last = (path[:, None] >= noise).sum(0) - 1
    ridges, branches = path[:, None] + np.zeros_like(noise), set(last.tolist())
    at = passed = previous = best_scale(problem, ridges[0], enter(problem, beam))
    for level, ridge in enumerate(ridges):
        begin = at + momentum * (at - previous) if path[level] > MOMENTUM_END else at
        previous = at
        at, _ = gauss_newton(problem, problem.targets, ridge, begin)
        if level in branches:
            passed = np.where((last == level)[:, None], at, passed)
    return at, passed, levels


def settle(problem: SingleTargetProblem, noise: Float[np.ndarray, " B"], at: Point) -> tuple[Point, int]:
    """Gauss-Newton at the noise, reached from END by DESCENT a step, until a step gains less than TOLERANCE.

    With momentum where the noise is above MOMENTUM_END: there a step that gains nothing is not taken, the next one is
    plain, two steps in a row must gain too little, and twice SETTLE_STEPS are allowed. A block that is done is frozen,
    so its result does not depend on what it is batched with. Returns (point, steps).
    """
    ridge, fast, previous = np.maximum(noise, END), noise > MOMENTUM_END, at
    momentum, patience = MOMENTUM * fast[:, None], 1 + fast
    most = SETTLE_STEPS * patience + np.log(noise / ridge) / math.log(DESCENT)
    value, stale, steps, busy = error(problem, ridge, at), 0 * patience, 0, patience > 0
    while busy.any():
        ridge = np.maximum(ridge * DESCENT, noise)
        tried, values = gauss_newton(problem, problem.targets, ridge, at + momentum * (at - previous))
        reached = values.min(1)
        taken = busy & (reached < value)
        stale = (stale + 1) * ((value - reached <= TOLERANCE * value) & (ridge <= noise))
        previous, at, value, steps = at, np.where(taken[:, None], tried, at), np.minimum(value, reached), steps + 1
        busy &= (stale < patience) & (steps < most)
    return best_scale(problem, noise, at), steps
