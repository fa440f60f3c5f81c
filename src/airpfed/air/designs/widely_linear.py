"""Widely linear transceivers for real symbols and several targets.

Symbols x_k are real, and only the real part of m_i^H y is kept. In natural units (`normalized.py`) the problem is

    minimise  sum_i alpha_i (sum_k (Re(m_i^H h_k b_k) - w_ik)^2 + (sigma2 + sum_k c_k |b_k|^2) ||m_i||^2),   |b_k| <= 1,

where sigma2 and c_k are the noise and the estimation error of the real part. Such receivers are widely linear
(Picinbono and Chevalier, IEEE Trans. Signal Process. 43(8), 1995): M antennas are 2M real ones, a transmit factor has
two real coordinates, and a device of another target is nulled as soon as its part is imaginary. So 2M - 1 interferers
can be nulled. Shapes: h (B, V, D, K), m (B, D, T), b (B, K), as in `alternating.py`.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.alternating import effective_noise
from airpfed.air.designs.normalized import NormalizedProblem, receive_gains, receivers_from_columns, target_columns
from airpfed.air.designs.power_constraint import PowerConstraint, transmit_magnitudes

STEPS = 80
STRIDES = (1.0, 2.0, 4.0, 8.0)
TOLERANCE = 1e-5


def widely_linear(problem: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> tuple[Complex[Tensor, "B D T"], int]:
    """Alternate between optimal transmit factors and real MMSE receivers from m, each step extrapolated by STRIDES.

    A stride of 1 is the plain step, so the objective never rises. Returns (receivers, steps).
    """
    value, b = optimal_transmit_factors(problem, m)
    strides = value.new_tensor(STRIDES)[:, None, None, None]
    for step in range(STEPS):
        candidates = m + strides * (real_mmse_receivers(problem, b) - m)
        values, factors = optimal_transmit_factors(problem, candidates)
        reached, index = values.min(0)
        block = torch.arange(len(m), device=m.device)
        m, b = candidates[index, block], factors[index, block]
        if bool((value - reached <= TOLERANCE * value.abs()).all()):
            return m, step + 1
        value = reached
    return m, STEPS


def optimal_transmit_factors(
    problem: NormalizedProblem, m: Complex[Tensor, "*S B D T"]
) -> tuple[Float[Tensor, "*S B"], Complex[Tensor, "*S B K"]]:
    """The objective with optimal transmit factors, and those factors b_k.

    With a_ik = m_i^H h_k the objective is a quadratic in the two real coordinates of b_k. Let
    z = sum_i alpha_i conj(a_ik)^2. The axes of the quadratic lie at half the angle of z, and its curvatures along them
    are (sum_i alpha_i |a_ik|^2 +- |z|) / 2. The two coordinates are solved as two streams that share the limit of k.
    """
    a, alpha = receive_gains(problem, m), problem.target_weight[:, None]
    square = m.abs().square().sum(-2) * problem.target_weight
    z = (alpha * a.conj().square()).sum(-2)
    middle = 0.5 * (alpha * a.abs().square()).sum(-2) + (problem.csi_variance * square[..., None]).sum(-2)
    axis = torch.polar(torch.ones_like(middle), 0.5 * z.angle())
    linear = torch.view_as_real((alpha * problem.weights * a.conj()).sum(-2) * axis.conj())
    curvature = torch.stack([middle + 0.5 * z.abs(), middle - 0.5 * z.abs()], -1).clamp_min(0.0)
    constraint = coordinate_constraint(problem)
    size = transmit_magnitudes(curvature.flatten(-2), linear.abs().flatten(-2), constraint).view_as(linear)
    b = torch.view_as_complex(linear.sign() * size) * axis
    reduction = (size * (curvature * size - 2 * linear.abs())).sum((-2, -1))
    silent = (alpha * problem.weights.square()).sum()
    return reduction + problem.noise * square.sum(-1) + silent, b


def coordinate_constraint(problem: NormalizedProblem) -> PowerConstraint:
    """The power constraint of the coordinates: both of every stream of a device share the limit of the device."""
    ones = torch.ones_like(problem.power_limit)
    device_of_stream = (
        torch.arange(len(ones), device=ones.device) if problem.device_of_stream is None else problem.device_of_stream
    )
    limit = ones[: int(device_of_stream.max()) + 1]
    return PowerConstraint(device_of_stream.repeat_interleave(2), ones.repeat(2), limit)


def real_mmse_receivers(problem: NormalizedProblem, b: Complex[Tensor, "B K"]) -> Complex[Tensor, "B D T"]:
    """r_i = (G G^T + (sigma2 + sum_j c_j |b_j|^2) I)^-1 G w_i, G the real and imaginary parts of h_k b_k."""
    transmitted = problem.h * b[:, None, None, :]
    G = torch.cat([transmitted.real, transmitted.imag], 2)
    C = G @ G.mT
    C.diagonal(dim1=-2, dim2=-1).add_(effective_noise(problem, b)[:, :, None])
    r = torch.cholesky_solve(G @ target_columns(problem, problem.weights), torch.linalg.cholesky_ex(C).L)
    return receivers_from_columns(torch.complex(*r.chunk(2, 2)))
