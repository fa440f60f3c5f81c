"""Forcing by emphasis: alternation in which a target's error on its own devices counts kappa times, kappa growing."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.normalized import NormalizedProblem, gathered, hears, spread_over

LEVELS = (1.0, 3.0, 7.0, 20.0, 50.0, 140.0, 370.0, 1000.0)
LEVEL_STEPS = 15


def emphasise(unit: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> tuple[Complex[Tensor, "B D T"], int]:
    """Receivers of almost equal own gains that trade noise and interference, where nulls are out of reach.

    min sum_i alpha_i (kappa sum_own |m_i^H h_k b_k - w_ik|^2 + sum_other |m_i^H h_j b_j|^2 + sigma2 ||m_i||^2),
    followed from kappa = 1 (MMSE) towards forcing. Returns (receivers, steps).
    """
    own = (unit.weights > 0).to(torch.float64)
    for kappa in LEVELS:
        emphasis = 1 + (kappa - 1) * own
        for _ in range(LEVEL_STEPS):
            m = step(unit, emphasis, m)
    return m, len(LEVELS) * LEVEL_STEPS


def step(
    unit: NormalizedProblem, emphasis: Float[Tensor, "T K"], m: Complex[Tensor, "B D T"]
) -> Complex[Tensor, "B D T"]:
    """One alternation: closed-form devices, then each target's receiver from its own emphasised covariance."""
    a = hears(unit, m)
    alpha = unit.target_weight[:, None] * emphasis
    A = (alpha * a.abs().square()).sum(1)
    B = (alpha * unit.weights * a.conj()).sum(1)
    sent = unit.h * (B / torch.maximum(A, B.abs()).clamp_min(1e-300))[:, None, None, :]
    C = (sent * emphasis[:, None, :]) @ sent.mH
    C.diagonal(dim1=-2, dim2=-1).add_(unit.noise[:, None, None])
    right = gathered(sent @ spread_over(unit, emphasis * unit.weights).to(sent.dtype)).mT[..., None]
    solution: Tensor = torch.linalg.solve_ex(C, right).result
    return solution[..., 0].mT
