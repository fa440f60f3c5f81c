"""Alternating optimisation of transmit factors and receivers, for any number of targets.

In natural units (`normalized.py`) the problem of one slot is

    minimise  sum_i alpha_i MSE_i   over receivers m_i and |b_k| <= 1,
    MSE_i = sum_k |m_i^H h_k b_k - w_ik|^2 + (sigma2 + sum_k c_k |b_k|^2) ||m_i||^2,

with h_k the channel estimates, c_k the variance of their errors and sigma2 the noise. It is convex in the m_i and in
the b_k, not in both. Each half has a closed form: b_k = B_k / max(A_k, |B_k|) with the coefficients A_k and B_k of
`joint_transmit_factors`, and m_i = C^-1 sum_k w_ik b_k h_k, the linear MMSE receiver.

Plain alternation of the two halves is what the literature on over-the-air computation runs: `naive_ao`. `continued_ao`
adds a continuation in the noise. `accelerated_alternation` runs alternation as a preconditioned conjugate gradient
(Nocedal and Wright, Numerical Optimization, 2006, section 5.2) and also takes several slots that share power. Shapes: h
(B, V, D, K), m (B, D, T), b (B, K), for B blocks, T targets, K streams, D coordinates and V antenna sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.normalized import (
    NormalizedProblem,
    denormalise,
    normalise_problem,
    per_target_product,
    receive_gains,
    receivers_from_columns,
    target_columns,
)
from airpfed.air.designs.power_constraint import PowerConstraint, transmit_magnitudes
from airpfed.air.problem import Transceiver, TransceiverProblem

STEP_SIZES = (1.0, 2.5, 1.6, 1.25, 0.8, 0.6, 0.4, 0.2, 0.08, 0.02, 1e-3, 0.0)
TOLERANCE = 1e-5
PATIENCE = 4

CONTINUATION_START = 10.0
"""First noise level of `continued_ao`, in units of the typical channel power per antenna."""
CONTINUATION_TOLERANCE = 1e-4
CONTINUATION_LEVEL_STEPS = 200

Receivers = tuple[Complex[Tensor, "B _D _T"], ...]


@dataclass(frozen=True)
class JointProblem:
    """Slots designed together: minimise sum_j weight_j times the objective of slot j under one power constraint.

    slots: problems with the same B; their streams lie side by side in the constraint. constraint: None if every stream
    has a limit of its own, |b| <= 1.
    """

    slots: tuple[NormalizedProblem, ...]
    slot_weight: tuple[float, ...]
    constraint: PowerConstraint | None

    def split(self, values: Complex[Tensor, "B S"]) -> tuple[Complex[Tensor, "B _K"], ...]:
        """Split values of all streams slot by slot."""
        return torch.split(values, [problem.h.shape[-1] for problem in self.slots], -1)


def one_slot(problem: NormalizedProblem) -> JointProblem:
    """The joint problem of a single slot, in which the streams of a device share its limit."""
    if problem.device_of_stream is None:
        return JointProblem((problem,), (1.0,), None)
    ones = torch.ones_like(problem.power_limit)
    limit = ones[: int(problem.device_of_stream.max()) + 1]
    return JointProblem((problem,), (1.0,), PowerConstraint(problem.device_of_stream, ones, limit))


def transmit_factors(problem: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> Complex[Tensor, "B K"]:
    """The transmit factors of least objective for given receivers, within the limits."""
    return joint_transmit_factors(one_slot(problem), (m,))[0]


def joint_transmit_factors(joint: JointProblem, m: Receivers) -> tuple[Complex[Tensor, "B _K"], ...]:
    """The transmit factors of least objective for given receivers, slot by slot.

    The part of stream k is A_k |b_k|^2 - 2 Re(conj(B_k) b_k) with A_k = sum_i alpha_i (|m_i^H h_k|^2 + c_k ||m_i||^2)
    and B_k = sum_i alpha_i w_ik conj(m_i^H h_k). So b_k has the phase of B_k; its magnitude needs at most one scalar
    search per device (`transmit_magnitudes`).
    """
    A, B = [], []
    for problem, weight, receiver in zip(joint.slots, joint.slot_weight, m, strict=True):
        a, alpha = receive_gains(problem, receiver), weight * problem.target_weight
        norm = alpha * receiver.abs().square().sum(1)
        A.append((alpha[:, None] * a.abs().square()).sum(1) + (problem.csi_variance * norm[:, :, None]).sum(1))
        B.append((alpha[:, None] * problem.weights * a.conj()).sum(1))
    quadratic, linear = torch.cat(A, -1), torch.cat(B, -1)
    size = linear.abs()
    return joint.split(linear / size.clamp_min(1e-300) * transmit_magnitudes(quadratic, size, joint.constraint))


def weighted_mse(
    problem: NormalizedProblem, m: Complex[Tensor, "B D T"], b: Complex[Tensor, "B K"]
) -> Float[Tensor, " B"]:
    """The objective sum_i alpha_i MSE_i in natural units."""
    mismatch = (receive_gains(problem, m) * b[:, None, :] - problem.weights).abs().square().sum(-1)
    return (mismatch + effective_noise(problem, b) * m.abs().square().sum(1)) @ problem.target_weight


def effective_noise(problem: NormalizedProblem, b: Complex[Tensor, "B K"]) -> Float[Tensor, "B V"]:
    """Noise and channel estimation error at an antenna: sigma2 + sum_j c_j |b_j|^2."""
    return problem.noise[:, None] + (problem.csi_variance * b.abs().square()[:, None]).sum(-1)


def received_covariance(problem: NormalizedProblem, b: Complex[Tensor, "B K"]) -> Complex[Tensor, "B V D D"]:
    """C = (sigma2 + sum_j c_j |b_j|^2) I + sum_j |b_j|^2 h_j h_j^H, the covariance of the received signal."""
    transmitted = problem.h * b[:, None, None, :]
    C = transmitted @ transmitted.mH
    C.diagonal(dim1=-2, dim2=-1).add_(effective_noise(problem, b)[:, :, None])
    return C


def mmse_receivers(
    problem: NormalizedProblem, b: Complex[Tensor, "B K"], C: Complex[Tensor, "B V D D"]
) -> Complex[Tensor, "B D T"]:
    """The linear MMSE receivers m_i = C^-1 sum_k w_ik b_k h_k; one Cholesky factor serves all targets of a set."""
    right = problem.h @ target_columns(problem, problem.weights * b[:, None, :])
    return receivers_from_columns(torch.cholesky_solve(right, torch.linalg.cholesky_ex(C).L))


def alternate(problem: NormalizedProblem, m: Complex[Tensor, "B D T"], steps: int) -> Complex[Tensor, "B D T"]:
    """Alternate `steps` times between optimal transmit factors and optimal receivers; the objective never rises."""
    for _ in range(steps):
        b = transmit_factors(problem, m)
        m = mmse_receivers(problem, b, received_covariance(problem, b))
    return m


def accelerated_alternation(joint: JointProblem, m: Receivers, steps: int) -> tuple[Receivers, int]:
    """Alternation as a preconditioned conjugate gradient with a joint line search; monotone, about four times faster.

    The step of alternation d_i = C^-1 r_i - m_i, r_i = sum_k w_ik b_k h_k, is the negative gradient 2 alpha_i C d_i
    preconditioned by C, so that the Polak-Ribiere rule needs C d only. A block is frozen after PATIENCE steps that each
    gain less than TOLERANCE. Returns (receivers, steps taken).
    """
    slots = joint.slots
    d = p = tuple(torch.zeros_like(receiver) for receiver in m)
    slope = torch.ones_like(slots[0].noise)
    value = torch.full_like(slope, torch.inf)
    stale = torch.zeros_like(slope)
    for step in range(steps):
        b = joint_transmit_factors(joint, m)
        C = [received_covariance(problem, factors) for problem, factors in zip(slots, b, strict=True)]
        previous, d = d, tuple(mmse_receivers(s, f, c) - x for s, x, f, c in zip(slots, m, b, C, strict=True))
        g = [
            weight * problem.target_weight * per_target_product(c, x)
            for weight, problem, c, x in zip(joint.slot_weight, slots, C, d, strict=True)
        ]
        change = tuple(new - old for new, old in zip(d, previous, strict=True))
        beta = (receiver_inner_product(change, g) / slope).clamp(0.0, 10.0)[:, None, None]
        slope = receiver_inner_product(d, g).clamp_min(1e-300)
        restart = (stale > 0)[:, None, None]
        p = tuple(torch.where(restart, new, new + beta * old) for new, old in zip(d, p, strict=True))
        t, reached = joint_line_search(joint, m, p)
        t = torch.where(stale >= PATIENCE, 0.0, t)[:, None, None]
        m = tuple(receiver + t * direction for receiver, direction in zip(m, p, strict=True))
        stale = torch.where((value - reached > TOLERANCE * value) & (stale < PATIENCE), 0.0, stale + 1)
        value = torch.minimum(value, reached)
        if bool((stale >= PATIENCE).all()):
            return m, step + 1
    return m, steps


def receiver_inner_product(first: Receivers, second: Sequence[Complex[Tensor, "B _D _T"]]) -> Float[Tensor, " B"]:
    """Real inner product over the receivers of all slots, per block."""
    return torch.stack([(a.conj() * b).real.sum((1, 2)) for a, b in zip(first, second, strict=True)]).sum(0)


def joint_line_search(
    joint: JointProblem, m: Receivers, d: Receivers
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """The step size t of STEP_SIZES with the least objective at m + t d. Returns (t, objective).

    With optimal transmit factors the objective is sum_k (A_k |b_k|^2 - 2 |B_k| |b_k|) plus noise and a constant, and
    A_k and |B_k|^2 are quadratics in t: a step size costs O(K).
    """
    parts = [line_coefficients(*slot) for slot in zip(joint.slots, joint.slot_weight, m, d, strict=True)]
    A, squares = (torch.cat([part[i] for part in parts], -1) for i in (0, 1))
    norms = torch.stack([part[2] for part in parts]).sum(0)
    grid = norms.new_tensor(STEP_SIZES)
    t = grid[:, None]
    quadratic, size = (c[0][:, None] + t * (c[1][:, None] + t * c[2][:, None]) for c in (A, squares))
    size = size.clamp_min(0.0).sqrt()
    beta = transmit_magnitudes(quadratic.clamp_min(0.0), size, joint.constraint)
    penalty = norms[0][:, None] + grid * (norms[1][:, None] + grid * norms[2][:, None])
    value, index = ((beta * (quadratic * beta - 2 * size)).sum(-1) + penalty).min(1)
    pairs = zip(joint.slots, joint.slot_weight, strict=True)
    silent = sum(weight * float((slot.target_weight[:, None] * slot.weights.square()).sum()) for slot, weight in pairs)
    return grid[index], value + silent


def line_coefficients(
    problem: NormalizedProblem, weight: float, m: Complex[Tensor, "B D T"], d: Complex[Tensor, "B D T"]
) -> tuple[Float[Tensor, "3 B K"], Float[Tensor, "3 B K"], Float[Tensor, "3 B"]]:
    """A_k, |B_k|^2 and the noise's part of the objective at m + t d as quadratics in t, constant term first."""
    alpha = (weight * problem.target_weight)[:, None]
    a, step = receive_gains(problem, m), receive_gains(problem, d)
    square = torch.stack([m.abs().square().sum(1), 2 * (m.conj() * d).real.sum(1), d.abs().square().sum(1)])
    norms = square * alpha[:, 0]
    A = torch.stack([(alpha * s).sum(1) for s in (a.abs().square(), 2 * (a.conj() * step).real, step.abs().square())])
    B, C = (alpha * problem.weights * a).sum(1), (alpha * problem.weights * step).sum(1)
    squares = torch.stack([B.abs().square(), 2 * (B.conj() * C).real, C.abs().square()])
    return A + (problem.csi_variance * norms[..., None]).sum(2), squares, problem.noise * norms.sum(-1)


def singular_start(problem: NormalizedProblem) -> Complex[Tensor, "B D T"]:
    """The dominant left singular vector of the channels of each target's devices; zero for a target without devices."""
    channels = problem.h * (problem.weights > 0).to(problem.h.dtype)[:, None, :]
    vectors: Tensor = torch.linalg.eigh(channels @ channels.mH).eigenvectors
    return vectors[..., -1].mT


def naive_ao(problem: TransceiverProblem, steps: int = 200) -> Transceiver:
    """Alternating optimisation from each target's dominant singular vector: the baseline of the literature.

    It has neither continuation nor acceleration. From 20 dB SNR on its final error is several dB larger than that of
    `mmse` (docs/air.md).
    """
    normalized = normalise_problem(problem)
    m = alternate(normalized, singular_start(normalized), steps)
    return denormalise(normalized, m, transmit_factors(normalized, m), steps)


def continued_ao(problem: TransceiverProblem) -> Transceiver:
    """`naive_ao` with continuation: the noise falls from CONTINUATION_START to its value by factors of ten.

    A level of the noise lasts until a step gains less than CONTINUATION_TOLERANCE, or for CONTINUATION_LEVEL_STEPS
    steps. Blocks go to the next level one by one.
    """
    normalized = normalise_problem(problem)
    m, noise, steps = singular_start(normalized), normalized.noise.clamp_min(CONTINUATION_START), 0
    done = torch.zeros_like(noise, dtype=torch.bool)
    count = torch.zeros_like(noise)
    value = torch.full_like(noise, torch.inf)
    while not bool(done.all()):
        level = replace(normalized, noise=noise)
        m = torch.where(done[:, None, None], m, alternate(level, m, 1))
        reached = weighted_mse(level, m, transmit_factors(level, m))
        count, steps = count + 1, steps + 1
        settled = (reached >= (1 - CONTINUATION_TOLERANCE) * value) | (count >= CONTINUATION_LEVEL_STEPS)
        done = done | (settled & (noise <= normalized.noise))
        noise = torch.where(settled, torch.maximum(noise / 10, normalized.noise), noise)
        value, count = torch.where(settled, torch.inf, reached), torch.where(settled, 0.0, count)
    return denormalise(normalized, m, transmit_factors(normalized, m), steps)
