"""One path for both one-target designs: the ridge falls step by step, forcing lies at its end, the MMSE on its way."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.hinge import Hinge, best_scale, enter, error, gauss_newton

END = 0.03
START, LEVELS, MOMENTUM = 3.0, 24, 0.5
LARGE_START, LARGE_LEVELS, LARGE_MOMENTUM = 30.0, 48, 0.7
MOMENTUM_END = 0.1
TOLERANCE = 1e-4
SETTLE_STEPS = 12
DESCENT = 10**-0.5


def follow(
    problem: Hinge, beam: Complex[Tensor, "B M"], noise: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B 2 N"], Float[Tensor, "B 2 N"], int]:
    """One Gauss-Newton step a level while the ridge falls geometrically to END, the same for all blocks.

    A large ridge makes the problem nearly an eigenproblem, and following it down avoids most poor local minima. Down to
    MOMENTUM_END each step begins beyond the last point, where it was heading: as good as twice the levels. Returns (the
    path's end, its last point at or above each block's noise, steps taken).
    """
    large = LARGE_START, LARGE_LEVELS, LARGE_MOMENTUM
    start, levels, momentum = large if problem.large else (START, LEVELS, MOMENTUM)
    path = [start * (END / start) ** (level / (levels - 1)) for level in range(levels)]
    ridges = noise.new_tensor(path)[:, None].expand(-1, len(noise))
    last = (ridges >= noise).sum(0) - 1
    branches = set(last.tolist())
    at = passed = previous = best_scale(problem, ridges[0], enter(problem, beam))
    for level in range(levels):
        begin = torch.lerp(previous, at, 1 + momentum) if path[level] > MOMENTUM_END else at
        previous = at
        at, _ = gauss_newton(problem, problem.targets, ridges[level], begin)
        if level in branches:
            passed = torch.where((last == level)[:, None, None], at, passed)
    return at, passed, levels


def settle(
    problem: Hinge, noise: Float[Tensor, " B"], at: Float[Tensor, "B 2 N"]
) -> tuple[Float[Tensor, "B 2 N"], int]:
    """Gauss-Newton at the noise, reached from END by DESCENT a step, until a step gains less than TOLERANCE.

    With momentum where the noise is above MOMENTUM_END: there a step that gains nothing is not taken, the next one is
    plain, and two steps in a row must gain too little. A block that is done is frozen, so its result does not depend on
    what it is batched with. Returns (point, steps).
    """
    ridge = noise.clamp_min(END)
    at = previous = best_scale(problem, ridge, at)
    fast = noise > MOMENTUM_END
    momentum, patience = (MOMENTUM * fast)[:, None, None], 1 + fast.to(noise.dtype)
    value, count = error(problem, ridge, at), torch.zeros_like(noise)
    stale, steps = torch.zeros_like(noise), 0
    while bool(((stale < patience) & (count < SETTLE_STEPS)).any()):
        ridge = torch.maximum(ridge * DESCENT, noise)
        tried, values = gauss_newton(problem, problem.targets, ridge, at + momentum * (at - previous))
        reached, last = values.amin(1), ridge <= noise
        taken = (reached < value) & (stale < patience) & (count < SETTLE_STEPS)
        previous, at = at, torch.where(taken[:, None, None], tried, at)
        stale = torch.where(last & (value - reached <= TOLERANCE * value), stale + 1, stale * (stale >= patience))
        value, count, steps = torch.where(taken, reached, value), count + last, steps + 1
    return best_scale(problem, noise, at), steps
