"""A lower bound that no receiver and no transmit factors can beat, for a slot of one target."""

import math
from dataclasses import replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.normalized import NormalizedProblem, normalise
from airpfed.air.problem import TransceiverProblem

ITERATIONS = 1500
RIDGES = (0.03, 0.1, 0.3)
"""Least noise of the relaxed problem, in natural units; the best bound counts. With less, mu is lost in rounding."""


def lower_bound(problem: TransceiverProblem) -> Float[Tensor, " B"]:
    """A bound below the MSE of every transceiver of a one-target slot, block by block; 0 where nothing better is found.

    For t >= 0 and mu >= 0, (w - t)_+^2 + mu t^2 >= w^2 mu / (1 + mu). So any mu >= 0 for which sigma2 I - sum_k P_k
    mu_k h_k h_k^H is positive semidefinite gives MSE >= sum_k w_k^2 mu_k / (1 + mu_k): weak duality, valid however mu
    was found. mu comes from the relaxed problem, in which m m^H may have a rank above 1 (Burer and Monteiro 2003), and
    is scaled until it is feasible. CSI error only adds to the MSE and is left out. ValueError for several targets.
    """
    if len(problem.weights) != 1:
        raise ValueError("no certificate is known for several targets in one slot")
    unit, noise = normalise(problem), problem.noise
    best = torch.zeros_like(unit.noise)
    for least in RIDGES:
        if least == RIDGES[0] or bool((unit.noise < least).any()):
            milder = replace(unit, noise=unit.noise.clamp_min(least))
            best = torch.maximum(best, certified(unit, noise / unit.scale, multipliers(milder, relaxed(milder))))
    return best * unit.norm[0] ** 2


def certified(unit: NormalizedProblem, noise: Float[Tensor, " B"], mu: Float[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """The bound of multipliers, scaled as far as they are feasible at this noise."""
    largest = torch.linalg.eigvalsh(unit.h[:, 0] * mu[:, None, :] @ unit.h[:, 0].mH)[:, -1]
    mu = mu * torch.where(largest > 0, noise / largest.clamp_min(1e-300), 0.0)[:, None]
    return (unit.weights[0].square() * mu / (1 + mu)).sum(-1)


def relaxed(unit: NormalizedProblem) -> Complex[Tensor, "B D R"]:
    """V of the relaxed problem min sum_k (w_k - ||V^H h_k||)_+^2 + sigma2 ||V||^2, by L-BFGS on all blocks at once.

    R = ceil(sqrt K) + 1 columns are enough for the relaxation to have no spurious minima in general.
    """
    _, _, antennas, devices = unit.h.shape
    columns = min(math.ceil(math.sqrt(devices)) + 1, antennas)
    w, noise = unit.weights[0], unit.noise
    strongest = torch.linalg.svd(unit.h[:, 0], full_matrices=False).U[:, :, :columns]
    reach = (strongest.mH @ unit.h[:, 0]).abs().square().sum(1).sqrt().mean(-1).clamp_min(1e-12)
    begin = strongest * (w.mean() / reach)[:, None, None]
    v = torch.view_as_real(begin.contiguous()).clone().requires_grad_()
    # One block's step must not wait for another's scale: losses are relative to what each block pays at least.
    floor = (noise[:, None] * w.square() / (1 + noise[:, None])).sum(-1).clamp_min(1e-12)
    optimiser = torch.optim.LBFGS([v], max_iter=ITERATIONS, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        receiver = torch.view_as_complex(v)
        short = (w - reaches(receiver, unit.h[:, 0])).clamp_min(0).square().sum(-1)
        loss: Tensor = ((short + noise * receiver.abs().square().sum((1, 2))) / floor).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return torch.view_as_complex(v.detach())


def reaches(v: Complex[Tensor, "B D R"], h: Complex[Tensor, "B D K"]) -> Float[Tensor, "B K"]:
    """||V^H h_k||, kept off zero so that its gradient exists."""
    return ((v.mH @ h).abs().square().sum(1) + 1e-24).sqrt()


def multipliers(unit: NormalizedProblem, v: Complex[Tensor, "B D R"]) -> Float[Tensor, "B K"]:
    """mu_k = (w_k - t_k)_+ / t_k with t_k = ||V^H h_k||: the dual variables at the relaxed optimum."""
    t = reaches(v, unit.h[:, 0])
    return (unit.weights[0] - t).clamp_min(0) / t
