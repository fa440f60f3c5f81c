"""Receivers for a slot of one target: least norm (uniform forcing) and least mean-squared error.

In natural units (`normalized.py`), with K devices of channels h_k and weights w_k, the receivers are local optima of

    least norm:   minimise ||m||^2   subject to   |m^H h_k| >= w_k for every device with a channel,
    least error:  minimise sum_k (w_k - |m^H h_k|)_+^2 + ridge ||m||^2,

where ridge = sigma2 + sum_k c_k counts the channel estimation error (variance c_k) as noise at full power. The transmit
factors are eliminated: b_k has the phase of conj(m^H h_k) and the magnitude min(w_k / |m^H h_k|, 1).
`single_target_solver.py` solves both problems on numpy arrays. Here tensors of shape (B, M, K), for B blocks, become
arrays, and large blocks are solved one by one.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.normalized import NormalizedProblem
from airpfed.air.designs.single_target_solver import (
    LARGE_BLOCK,
    MOMENTUM_END,
    MULTIPLIER_UPDATES,
    WARM_MULTIPLIER_UPDATES,
    Iterate,
    SingleTargetProblem,
    augmented_lagrangian,
    best_scale,
    continuation_path,
    dominant_beam,
    gains_and_norm,
    iterate_of,
    keep_smaller,
    minimise_error,
    penalised_error,
    receiver_of,
    single_target_problem,
    starting_beams,
)

BATCH_ENTRIES = 1 << 16
"""Channel entries of small blocks that are designed together."""

Solution = tuple[list[Complex[np.ndarray, "B _M"]], int]
"""Receivers for the original channels, and the steps taken."""


def least_norm(
    h: Complex[Tensor, "B M K"],
    weights: Float[Tensor, "B K"],
    starts: int = 1,
    near: Complex[Tensor, "B M"] | None = None,
) -> tuple[Complex[Tensor, "B M"], int]:
    """A receiver of locally least norm with |m^H h_k| >= w_k for every device that has a channel and a weight.

    starts: how many beams to begin from; the shortest result is kept. near: start from this receiver and skip the
    continuation; `starts` is then ignored. Returns (receiver, steps).
    """
    solve: Callable[..., Solution] = partial(solve_from_beams, starts) if near is None else solve_norm_near
    (receiver,), steps = solve_blocks(solve, h, weights, *(() if near is None else (near,)))
    return receiver, steps


def least_norm_and_error(
    problem: NormalizedProblem, starts: int
) -> tuple[Complex[Tensor, "B D 1"], Complex[Tensor, "B D 1"], int]:
    """The receivers of least norm and of least error from the same `starts` beams.

    The first is that of `least_norm`. Returns (least norm, least error, steps).
    """
    solve = partial(solve_from_beams, starts)
    (short, least), steps = solve_blocks(solve, *target_channels(problem), error_ridge(problem))
    return short[..., None], least[..., None], steps


def least_error_near(problem: NormalizedProblem, m: Complex[Tensor, "B D 1"]) -> tuple[Complex[Tensor, "B D 1"], int]:
    """The receiver of least error near a given one. Returns (receiver, steps)."""
    (receiver,), steps = solve_blocks(solve_error_near, *target_channels(problem), error_ridge(problem), m[..., 0])
    return receiver[..., None], steps


def dominant_beams(h: Complex[Tensor, "B M K"], weights: Float[Tensor, "B K"]) -> Complex[Tensor, "B M"]:
    """The unit dominant eigenvector of sum_k (w_k / ||h_k||^2)^2 h_k h_k^H, per block."""
    (beam,), _ = solve_blocks(lambda problem: ([dominant_beam(problem)], 0), h, weights)
    return beam


def target_channels(problem: NormalizedProblem) -> tuple[Complex[Tensor, "B D L"], Float[Tensor, "B L"]]:
    """Channels and weights of the only target's devices; of all devices if no device has a weight."""
    h, w = problem.h[:, 0], problem.weights[..., 0, :]
    weighted = (w > 0).reshape(-1, w.shape[-1]).any(0)
    if 0 < int(weighted.sum()) < len(weighted):
        h, w = h[:, :, weighted], w[..., weighted]
    return h, w.expand(len(h), -1)


def error_ridge(problem: NormalizedProblem) -> Float[Tensor, " B"]:
    """The ridge of the least error: noise, and channel estimation error at full power."""
    return problem.noise + problem.csi_variance.sum((1, 2))


def solve_blocks(
    solve: Callable[..., Solution], h: Complex[Tensor, "B M K"], weights: Float[Tensor, "B K"], *per_block: Tensor
) -> tuple[list[Complex[Tensor, "B M"]], int]:
    """Run a solver on the blocks of a slot. Returns (its receivers on the device of h, the most steps of any block).

    solve: a function of a `SingleTargetProblem` and of the tensors of `per_block`, which have one entry per block. The
    arithmetic runs on the CPU without warnings, because norms of receivers without any gain are infinite. Small blocks
    are batched, because a call costs more than its arithmetic. A large block runs alone, so that its satisfied devices
    cost nothing.
    """
    arrays = [values.detach().cpu().numpy() for values in (h, weights, *per_block)]
    entries = h.shape[1] * h.shape[2]
    size = 1 if entries >= LARGE_BLOCK else BATCH_ENTRIES // max(1, entries)
    results, steps = [], 0
    with np.errstate(all="ignore"):
        for first in range(0, len(h), size):
            channels, w, *arguments = (values[first : first + size] for values in arrays)
            receivers, batch_steps = solve(single_target_problem(channels, w), *arguments)
            results.append(receivers)
            steps = max(steps, batch_steps)
    return [torch.from_numpy(np.concatenate(parts)).to(h.device) for parts in zip(*results, strict=True)], steps


def solve_from_beams(
    starts: int, problem: SingleTargetProblem, ridge: Float[np.ndarray, " B"] | None = None
) -> Solution:
    """The receiver of least norm and, given a ridge, that of least error, the best over `starts` beams.

    ridge: cost of ||m||^2 for the original channels.
    """

    def norm(x: Iterate) -> Float[np.ndarray, " B"]:
        return gains_and_norm(problem, x)[1]

    def error(x: Iterate) -> Float[np.ndarray, " B"]:
        return penalised_error(problem, noise, x)

    noise = np.zeros_like(problem.channel_scale) if ridge is None else ridge / problem.channel_scale**2
    best: list[Iterate] = []
    steps = 0
    for beam in starting_beams(problem, starts):
        end, at_noise, path_steps = continuation_path(problem, beam, noise)
        short, forcing_steps = augmented_lagrangian(problem, end, MULTIPLIER_UPDATES)
        solutions, steps = [short], steps + path_steps + forcing_steps
        if ridge is not None:
            least, error_steps = minimise_error(problem, noise, best_scale(problem, noise, short))
            steps += error_steps
            noisy = noise > MOMENTUM_END
            if noisy.any():
                begin = np.where(noisy[:, None], at_noise, short)
                other, error_steps = minimise_error(problem, noise, best_scale(problem, noise, begin))
                least, steps = keep_smaller(error, least, other), steps + error_steps
            solutions.append(least)
        values = (norm, error)[: len(solutions)]
        best = [keep_smaller(*pair) for pair in zip(values, best, solutions, strict=True)] if best else solutions
    return [receiver_of(problem, x) for x in best], steps


def solve_norm_near(problem: SingleTargetProblem, m: Complex[np.ndarray, "B M"]) -> Solution:
    """A local minimum-norm receiver, found from the start m."""
    x, steps = augmented_lagrangian(problem, iterate_of(problem, m), WARM_MULTIPLIER_UPDATES)
    return [receiver_of(problem, x)], steps


def solve_error_near(
    problem: SingleTargetProblem, ridge: Float[np.ndarray, " B"], m: Complex[np.ndarray, "B M"]
) -> Solution:
    """A local minimum-error receiver, found from the start m. ridge: see `solve_from_beams`."""
    noise = ridge / problem.channel_scale**2
    x, steps = minimise_error(problem, noise, best_scale(problem, noise, iterate_of(problem, m)))
    return [receiver_of(problem, x)], steps
