"""Real symbols, several targets: widely linear receivers, which null twice as many interferers as complex ones.

Only the real part of m_i^H y is kept, so another task's device is gone as soon as its part there is imaginary: M
antennas are 2M real ones, and a transmit factor has two real coordinates.
"""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.alternating import behind
from airpfed.air.designs.normalized import NormalizedProblem, gathered, hears, spread_over
from airpfed.air.designs.power_constraint import Budget, spend

STEPS = 80
STRIDES = (1.0, 2.0, 4.0, 8.0)
TOLERANCE = 1e-5


def widely_linear(unit: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> tuple[Complex[Tensor, "B D T"], int]:
    """Alternation of closed-form devices and real MMSE receivers from m, each step stretched as far as it pays.

    A stride of 1 is the plain step, so the objective never rises. Returns (receivers, steps).
    """
    value, b = eliminated(unit, m)
    strides = value.new_tensor(STRIDES)[:, None, None, None]
    for taken in range(STEPS):
        tried = m + strides * (receivers(unit, b) - m)
        values, factors = eliminated(unit, tried)
        reached, index = values.min(0)
        block = torch.arange(len(m), device=m.device)
        m, b = tried[index, block], factors[index, block]
        if bool((value - reached <= TOLERANCE * value.abs()).all()):
            return m, taken + 1
        value = reached
    return m, STEPS


def eliminated(
    unit: NormalizedProblem, m: Complex[Tensor, "*S B D T"]
) -> tuple[Float[Tensor, "*S B"], Complex[Tensor, "*S B K"]]:
    """The objective with the devices at their best, and those b_k.

    sum_i alpha_i (Re(a_ik b_k) - w_ik)^2 + csi_k ||m||^2 |b_k|^2, a_ik = m_i^H h_k, is a quadratic in the two real
    coordinates of b_k. With z = sum_i alpha_i conj(a_ik)^2, its axes lie at half the angle of z and their curvatures
    are (sum_i alpha_i |a_ik|^2 +- |z|) / 2: along its axes, two streams that share one limit.
    """
    a, alpha = hears(unit, m), unit.target_weight[:, None]
    square = m.abs().square().sum(-2) * unit.target_weight
    z = (alpha * a.conj().square()).sum(-2)
    middle = 0.5 * (alpha * a.abs().square()).sum(-2) + (unit.csi * square[..., None]).sum(-2)
    axis = torch.polar(torch.ones_like(middle), 0.5 * z.angle())
    along = torch.view_as_real((alpha * unit.weights * a.conj()).sum(-2) * axis.conj())
    curvature = torch.stack([middle + 0.5 * z.abs(), middle - 0.5 * z.abs()], -1).clamp_min(0.0)
    size = spend(curvature.flatten(-2), along.abs().flatten(-2), limits(unit)).view_as(along)
    b = torch.view_as_complex(along.sign() * size) * axis
    spared = (size * (curvature * size - 2 * along.abs())).sum((-2, -1))
    nothing = (alpha * unit.weights.square()).sum()
    return spared + unit.noise * square.sum(-1) + nothing, b


def limits(unit: NormalizedProblem) -> Budget:
    """Both coordinates of all streams of a device share its limit."""
    ones = torch.ones_like(unit.power)
    device_of_stream = (
        torch.arange(len(ones), device=ones.device) if unit.device_of_stream is None else unit.device_of_stream
    )
    return Budget(device_of_stream.repeat_interleave(2), ones.repeat(2), ones[: int(device_of_stream.max()) + 1])


def receivers(unit: NormalizedProblem, b: Complex[Tensor, "B K"]) -> Complex[Tensor, "B D T"]:
    """r_i = (G G^T + (sigma2 + sum_j csi_j |b_j|^2) I)^-1 G w_i with G the real and imaginary parts of h_k b_k."""
    sent = unit.h * b[:, None, None, :]
    G = torch.cat([sent.real, sent.imag], 2)
    C = G @ G.mT
    C.diagonal(dim1=-2, dim2=-1).add_(behind(unit, b)[:, :, None])
    r = torch.cholesky_solve(G @ spread_over(unit, unit.weights), torch.linalg.cholesky_ex(C).L)
    return gathered(torch.complex(*r.chunk(2, 2)))
