"""A lower bound on the mean-squared error of every transceiver, for a slot of one target.

With channels h_k, weights w_k, power limits P_k and the problem's (assumed) noise sigma2, for every receiver m and all
transmit factors within the limits

    MSE >= sum_k w_k^2 mu_k / (1 + mu_k)   for any mu >= 0 with   sum_k P_k mu_k h_k h_k^H <= sigma2 I,

because (w - t)_+^2 + mu t^2 >= w^2 mu / (1 + mu) for t >= 0, which is summed over the devices with
t_k = sqrt(P_k) |m^H h_k|. This is weak duality: the bound is valid for any mu. A good mu comes from the relaxation in
which m m^H may have any rank, in natural units

    minimise  sum_k (w_k - ||V^H h_k||)_+^2 + sigma2 ||V||^2   over V (D, R),

solved in the factor V (Burer and Monteiro, Math. Program. 95, 2003). mu is then scaled until it is feasible, so that no
convex solver is needed. Channel estimation error only adds to the MSE and is left out.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.normalized import NormalizedProblem, normalise_problem
from airpfed.air.problem import TransceiverProblem

ITERATIONS = 1500
RIDGES = (0.03, 0.1, 0.3)
"""Least noise of the relaxed problem, in natural units; the best bound counts. With less, mu is lost in rounding."""


def lower_bound(problem: TransceiverProblem) -> Float[Tensor, " B"]:
    """A bound below the MSE of every transceiver of a slot, per block.

    problem: h (B, M, K), one target; the bound holds for its assumed noise. The bound is 0 if nothing better was found.
    Raises ValueError for several targets.

    >>> import airpfed as ap
    >>> problem = ap.single_cell(devices=[4, 4], antennas=8, snr_db=10).problem(blocks=5)
    >>> bool((ap.lower_bound(problem) <= ap.mse(problem, ap.designs.mmse(problem))[:, 0]).all())
    True
    """
    if len(problem.weights) != 1:
        raise ValueError("no certificate is known for several targets in one slot")
    normalized = normalise_problem(problem)
    noise = problem.noise / normalized.block_power
    best = torch.zeros_like(normalized.noise)
    for ridge in RIDGES:
        if ridge == RIDGES[0] or bool((normalized.noise < ridge).any()):
            t = relaxed_gains(normalized, normalized.noise.clamp_min(ridge))
            best = torch.maximum(best, dual_bound(normalized, noise, (normalized.weights[0] - t).clamp_min(0) / t))
    return best * normalized.weight_norm[0] ** 2


def dual_bound(problem: NormalizedProblem, noise: Float[Tensor, " B"], mu: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """The bound of multipliers mu, scaled as far as they are feasible at this noise."""
    eigenvalue = torch.linalg.eigvalsh(problem.h[:, 0] * mu[:, None, :] @ problem.h[:, 0].mH)[:, -1]
    mu = mu * torch.where(eigenvalue > 0, noise / eigenvalue.clamp_min(1e-300), 0.0)[:, None]
    return (problem.weights[0].square() * mu / (1 + mu)).sum(-1)


def relaxed_gains(problem: NormalizedProblem, noise: Float[Tensor, " B"]) -> Float[Tensor, "B K"]:
    """||V^H h_k|| at the optimum of the relaxation, by L-BFGS on all blocks at once.

    R = ceil(sqrt K) + 1 columns are enough for the relaxation to have no spurious minima in general.
    """
    h, w = problem.h[:, 0], problem.weights[0]
    columns = min(math.ceil(math.sqrt(h.shape[2])) + 1, h.shape[1])
    strongest = torch.linalg.svd(h, full_matrices=False).U[:, :, :columns]
    mean_gain = (strongest.mH @ h).abs().square().sum(1).sqrt().mean(-1).clamp_min(1e-12)
    begin = strongest * (w.mean() / mean_gain)[:, None, None]
    v = torch.view_as_real(begin.contiguous()).clone().requires_grad_()
    # Losses are relative to a lower estimate of each block's, so that the step of a block does not depend on the scale
    # of another.
    scale = (noise[:, None] * w.square() / (1 + noise[:, None])).sum(-1).clamp_min(1e-12)
    optimiser = torch.optim.LBFGS([v], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        V = torch.view_as_complex(v)
        short = (w - gain_norms(V, h)).clamp_min(0).square().sum(-1)
        loss: Tensor = ((short + noise * V.abs().square().sum((1, 2))) / scale).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return gain_norms(torch.view_as_complex(v.detach()), h)


def gain_norms(V: Complex[Tensor, "B D R"], h: Complex[Tensor, "B D K"]) -> Float[Tensor, "B K"]:
    """||V^H h_k||, kept off zero so that its gradient exists."""
    return ((V.mH @ h).abs().square().sum(1) + 1e-24).sqrt()
