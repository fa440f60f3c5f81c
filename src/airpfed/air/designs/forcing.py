"""Uniform forcing: every device arrives with exactly its weight, at the least noise.

The problem of one slot, for perfect channel knowledge:

    minimise  sum_i alpha_i MSE_i   subject to   m_i^H h_k b_k = w_ik for every device k of target i,  |b_k|^2 <= P_k.

h_k: channel estimate of device k at M antennas, linear amplitude. w_ik: weight of device k in the sum of target i, 0
for devices of other targets. alpha_i: weight of the error of target i. P_k: power limit, watts. sigma2: noise power per
antenna and symbol, watts. Under the constraint MSE_i = sigma2 ||m_i||^2 + sum_(j of other targets) |m_i^H h_j b_j|^2,
and with b_k = w_ik / (m_i^H h_k) the receivers m_i remain.

One target: min ||m||^2 subject to sqrt(P_k) |m^H h_k| >= w_k. This is single-group multicast beamforming (Sidiropoulos,
Davidson and Luo, IEEE Trans. Signal Process. 54(6), 2006; as uniform forcing: Chen, Qin and Wei, IEEE Wireless Commun.
Lett. 7(6), 2018). It is NP-hard and solved to a local optimum by `single_target.py`. Several targets: where the
antennas allow, receivers null the interference or weigh it against the noise; elsewhere a penalised alternation trades
one for the other.

The estimate of every target is unbiased for perfect channel knowledge. Estimation errors enter the MSE, not the design.
A device without a channel, or without a weight, constrains nothing and is silent. Shapes: h (B, M, K), weights (T, K)
or (B, 1, K), receivers (B, M, T), transmit factors (B, K), for B coherence blocks, K devices and T targets.
"""

from typing import Annotated

import torch
from jaxtyping import Complex, Float
from pydantic import Field
from torch import Tensor

from airpfed.air.designs.alternating import weighted_mse
from airpfed.air.designs.normalized import (
    NormalizedProblem,
    channel_power,
    denormalise,
    devices_per_target,
    gather_per_target,
    has_channel,
    inference_mode,
    normalise_problem,
    receive_gains,
    receivers_from_columns,
    target_columns,
)
from airpfed.air.designs.single_target import least_norm, target_channels
from airpfed.air.problem import Transceiver, TransceiverProblem, divide_power

JACOBI_ROUNDS = 3
RANK_TOLERANCE = 1e-10

PENALTIES = (1.0, 3.0, 7.0, 20.0, 50.0, 140.0, 370.0, 1000.0)
PENALTY_STEPS = 15


Starts = Annotated[
    int, Field(ge=1, le=1000, description="starting beams of a slot with one target; the best solution is used")
]
"""The option of designs that solve a one-target problem from several starting points."""


@inference_mode
def uniform_forcing(problem: TransceiverProblem, *, starts: Starts = 1) -> Transceiver:
    """Every device arrives with exactly its weight, at the least noise (a local optimum).

    One target: the weakest device sends at exactly P_k. Several targets: the candidate of least error is kept in each
    block. Candidates are receivers that ignore interference, receivers that null it exactly, and improvements of these
    by Jacobi rounds; if the antennas are too few for exact nulls, penalised alternation replaces the last two. The
    streams of a device get equal shares of its limit.

    starts: how many beams a slot of one target begins from; the best result is kept. A slot of several targets has its
    own starts.
    """
    normalized = normalise_problem(divide_power(problem))
    if normalized.weights.shape[-2] == 1:
        receiver, steps = least_norm(*target_channels(normalized), starts)
        m = receiver[..., None]
        return denormalise(normalized, m, forcing_transmit_factors(normalized, m), steps)
    index, w = devices_per_target(normalized.weights)
    target_h = gather_per_target(normalized.h, index)
    interference_blind, steps = least_norm_per_target(target_h, w)
    m, more = suppress_interference(normalized, target_h, w, interference_blind)
    return denormalise(normalized, m, forcing_transmit_factors(normalized, m), steps + more)


def least_norm_per_target(
    target_h: Complex[Tensor, "B T M L"], w: Float[Tensor, "T L"], near: Complex[Tensor, "B M T"] | None = None
) -> tuple[Complex[Tensor, "B M T"], int]:
    """`least_norm` for every target of every block, each with the channels of its own devices."""
    blocks, targets = target_h.shape[:2]
    weights = w.expand(blocks, -1, -1).flatten(0, 1)
    m, steps = least_norm(target_h.flatten(0, 1), weights, near=None if near is None else near.mT.flatten(0, 1))
    return m.reshape(blocks, targets, -1).mT, steps


def forcing_transmit_factors(problem: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> Complex[Tensor, "B K"]:
    """b_k = w_k / (m_i^H h_k), i the target of k; 0 where the limit |b_k| <= 1 forbids it (no channel)."""
    w = problem.weights.sum(-2)
    a = torch.where(problem.weights > 0, receive_gains(problem, m), 0.0).sum(1)
    size = a.abs()
    b = torch.where(size >= w * (1 - 1e-9), w / torch.where(size > 0, a, 1.0), 0.0)
    return b / b.abs().clamp_min(1.0)


def suppress_interference(
    problem: NormalizedProblem,
    target_h: Complex[Tensor, "B T D L"],
    w: Float[Tensor, "T L"],
    interference_blind: Complex[Tensor, "B D T"],
) -> tuple[Complex[Tensor, "B D T"], int]:
    """Receivers for several targets, block by block the best of several candidates. Returns (receivers, steps).

    Candidates are the receivers given and, where the antennas outnumber the interferers of every target, exact nulls
    and the Jacobi rounds from them; elsewhere the result of penalised alternation, scaled to the power limits.
    """
    best, score = interference_blind, forcing_objective(problem, interference_blind)
    interferers = (problem.weights.sum(0) > problem.weights).sum(-1)
    if int(interferers.max()) >= problem.h.shape[2]:
        m, steps = penalised_alternation(problem, interference_blind)
        return keep_better_receivers(problem, best, score, scale_to_power_limit(problem, m))[0], steps
    m, steps = least_norm_per_target(null_projectors(problem) @ target_h, w)
    best, score = keep_better_receivers(problem, best, score, m)
    for _ in range(JACOBI_ROUNDS):
        m, more = jacobi_round(problem, target_h, w, m)
        best, score = keep_better_receivers(problem, best, score, m)
        steps += more
    return best, steps


def forcing_objective(problem: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> Float[Tensor, " B"]:
    """The objective of forcing with these receivers; infinite if they cannot force a device that has a channel."""
    b = forcing_transmit_factors(problem, m)
    reachable = has_channel(channel_power(problem.h))
    missed = ((reachable & (problem.weights > 0)).any(1) & (b == 0)).any(-1)
    return torch.where(missed, torch.inf, weighted_mse(problem, m, b))


def keep_better_receivers(
    problem: NormalizedProblem,
    best: Complex[Tensor, "B D T"],
    score: Float[Tensor, " B"],
    candidate: Complex[Tensor, "B D T"],
) -> tuple[Complex[Tensor, "B D T"], Float[Tensor, " B"]]:
    """Keep in every block the receivers of smaller `forcing_objective`. Returns (receivers, their objective)."""
    value = forcing_objective(problem, candidate)
    return torch.where((value < score)[:, None, None], candidate, best), torch.minimum(value, score)


def null_projectors(problem: NormalizedProblem) -> Complex[Tensor, "B T D D"]:
    """Per target the projector onto the complement of the other targets' channels, from an SVD of their directions."""
    others = ((problem.weights.sum(0) > 0) & (problem.weights == 0)).to(torch.float64)
    h = problem.h / problem.h.abs().square().sum(2, keepdim=True).sqrt().clamp_min(1e-300)
    U, S, _ = torch.linalg.svd(h * others[:, None, :], full_matrices=False)
    U = U * (S > RANK_TOLERANCE)[..., None, :]
    span: Tensor = U @ U.mH
    return torch.eye(U.shape[-2], dtype=U.dtype, device=U.device) - span


def jacobi_round(
    problem: NormalizedProblem,
    target_h: Complex[Tensor, "B T D L"],
    w: Float[Tensor, "T L"],
    m: Complex[Tensor, "B D T"],
) -> tuple[Complex[Tensor, "B D T"], int]:
    """For all targets at once, least m_i^H R_i m_i with R_i = sigma2 I + sum_{j of others} |b_j|^2 h_j h_j^H.

    b is that of the receivers m. With R_i = L L^H the problem is least norm in L^H m_i for the channels L^-1 h_k.
    Returns (receivers, steps).
    """
    transmitted = problem.h * forcing_transmit_factors(problem, m)[:, None, None, :]
    interference = transmitted * (problem.weights == 0)[:, None, :]
    R = interference @ interference.mH
    R.diagonal(dim1=-2, dim2=-1).add_(problem.noise[:, None, None])
    L = torch.linalg.cholesky_ex(R).L
    whitened = torch.linalg.solve_triangular(L, target_h, upper=False)
    near = (L.mH @ m.mT[..., None])[..., 0].mT
    solution, steps = least_norm_per_target(whitened, w, near)
    return torch.linalg.solve_triangular(L.mH, solution.mT[..., None], upper=True)[..., 0].mT, steps


def penalised_alternation(
    problem: NormalizedProblem, m: Complex[Tensor, "B D T"]
) -> tuple[Complex[Tensor, "B D T"], int]:
    """Alternation towards forcing with a growing penalty on the errors of each target's own devices.

        minimise  sum_i alpha_i (kappa sum_{k of i} |m_i^H h_k b_k - w_ik|^2
                                 + sum_{j of others} |m_i^H h_j b_j|^2 + sigma2 ||m_i||^2),

    followed from kappa = 1 (MMSE) to kappa = 1000. Every step solves for the transmit factors, then for each target's
    receiver with its own penalised covariance. Returns (receivers, steps).
    """
    member = (problem.weights > 0).to(torch.float64)
    for kappa in PENALTIES:
        penalty = 1 + (kappa - 1) * member
        alpha = problem.target_weight[:, None] * penalty
        for _ in range(PENALTY_STEPS):
            a = receive_gains(problem, m)
            A = (alpha * a.abs().square()).sum(1)
            B = (alpha * problem.weights * a.conj()).sum(1)
            transmitted = problem.h * (B / torch.maximum(A, B.abs()).clamp_min(1e-300))[:, None, None, :]
            C = (transmitted * penalty[:, None, :]) @ transmitted.mH
            C.diagonal(dim1=-2, dim2=-1).add_(problem.noise[:, None, None])
            right = transmitted @ target_columns(problem, penalty * problem.weights).to(transmitted.dtype)
            solution = torch.linalg.solve_ex(C, receivers_from_columns(right).mT[..., None]).result
            m = solution[..., 0].mT
    return m, len(PENALTIES) * PENALTY_STEPS


def scale_to_power_limit(problem: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> Complex[Tensor, "B D T"]:
    """Scale each receiver by the least factor with which all devices of its target can be forced within their power."""
    index, w = devices_per_target(problem.weights)
    reachable = has_channel(channel_power(problem.h))[:, :, None]
    constrained = gather_per_target(reachable, index)[:, :, 0] & (w > 0)
    gains = receive_gains(problem, m).gather(2, index.expand(len(m), -1, -1))
    ratio = torch.where(constrained, w / gains.abs().clamp_min(1e-300), 0.0)
    return m * ratio.amax(-1)[:, None, :]
