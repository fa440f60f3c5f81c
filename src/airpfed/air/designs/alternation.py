"""Alternation between closed-form devices and closed-form receivers, plain or accelerated, any number of targets."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.hinge import STEPS
from airpfed.air.designs.unit import Unit

TOLERANCE = 1e-5
PATIENCE = 4


def devices(unit: Unit, m: Complex[Tensor, "B D T"]) -> Complex[Tensor, "B K"]:
    """The transmit factors of least objective under |b_k| <= 1, for given receivers; no bisection, one scalar a device.

    b_k = B_k / max(A_k, |B_k|), A_k = sum_i alpha_i (|m_i^H h_k|^2 + csi_k ||m_i||^2),
    B_k = sum_i alpha_i w_ik (m_i^H h_k)^*.
    """
    a = m.mH @ unit.h
    square = unit.importance @ m.abs().square().sum(1).mT
    A = (unit.importance[:, None] * a.abs().square()).sum(1) + unit.csi * square[:, None]
    B = (unit.importance[:, None] * unit.weights * a.conj()).sum(1)
    return B / torch.maximum(A, B.abs()).clamp_min(1e-300)


def error(unit: Unit, m: Complex[Tensor, "B D T"], b: Complex[Tensor, "B K"]) -> Float[Tensor, " B"]:
    """The objective sum_i alpha_i MSE_i in natural units, with the floored noise."""
    mismatch = (m.mH @ unit.h * b[:, None, :] - unit.weights).abs().square().sum(-1)
    disturbance = unit.noise + (unit.csi * b.abs().square()).sum(-1)
    return (mismatch + disturbance[:, None] * m.abs().square().sum(1)) @ unit.importance


def covariance(unit: Unit, b: Complex[Tensor, "B K"]) -> Complex[Tensor, "B D D"]:
    """What the antennas hear: (noise + sum_j csi_j |b_j|^2) I + sum_j |b_j|^2 h_j h_j^H."""
    sent = unit.h * b[:, None, :]
    C = sent @ sent.mH
    C.diagonal(dim1=-2, dim2=-1).add_((unit.noise + (unit.csi * b.abs().square()).sum(-1))[:, None])
    return C


def wiener(unit: Unit, b: Complex[Tensor, "B K"], C: Complex[Tensor, "B D D"]) -> Complex[Tensor, "B D T"]:
    """The linear MMSE receivers m_i = C^-1 sum_k w_ik b_k h_k; one Cholesky factor serves all targets."""
    right = unit.h @ (unit.weights * b[:, None, :]).mT
    return torch.cholesky_solve(right, torch.linalg.cholesky_ex(C).L)


def alternate(unit: Unit, m: Complex[Tensor, "B D T"], steps: int) -> Complex[Tensor, "B D T"]:
    """Plain alternation, `steps` times devices then receivers; the objective never rises."""
    for _ in range(steps):
        b = devices(unit, m)
        m = wiener(unit, b, covariance(unit, b))
    return m


def line_search(unit: Unit, m: Complex[Tensor, "B D T"], d: Complex[Tensor, "B D T"]) -> tuple[Tensor, Tensor]:
    """Best t >= 0, and the objective there, of m + t d for all receivers jointly with the devices eliminated.

    At every t the devices are optimal, beta_k = min(|B_k|/A_k, 1) in sum_k (A_k beta_k^2 - 2 |B_k| beta_k), and A_k and
    |B_k|^2 are quadratics in t, so a grid costs O(K) a point. Returns (t, objective), each of shape (B,).
    """
    alpha, w = unit.importance[:, None], unit.weights
    a, step = m.mH @ unit.h, d.mH @ unit.h
    norms = (
        torch.stack([m.abs().square().sum(1), 2 * (m.conj() * d).real.sum(1), d.abs().square().sum(1)])
        @ unit.importance
    )
    A = torch.stack([(alpha * s).sum(1) for s in (a.abs().square(), 2 * (a.conj() * step).real, step.abs().square())])
    A = A + unit.csi * norms[:, :, None]
    B, C = (alpha * w * a).sum(1), (alpha * w * step).sum(1)
    squares = torch.stack([B.abs().square(), 2 * (B.conj() * C).real, C.abs().square()])

    grid = unit.noise.new_tensor(STEPS)
    t = grid[:, None]
    quadratic, pull = (c[0][:, None] + t * (c[1][:, None] + t * c[2][:, None]) for c in (A, squares))
    pull = pull.clamp_min(0.0).sqrt()
    beta = pull / torch.maximum(quadratic, pull).clamp_min(1e-300)
    penalty = norms[0][:, None] + grid * (norms[1][:, None] + grid * norms[2][:, None])
    values = (beta * (quadratic * beta - 2 * pull)).sum(-1) + unit.noise[:, None] * penalty
    value, index = values.min(1)
    return grid[index], value + (alpha * w.square()).sum()


def accelerate(unit: Unit, m: Complex[Tensor, "B D T"], steps: int) -> tuple[Complex[Tensor, "B D T"], int]:
    """Alternation as a preconditioned conjugate gradient with a joint line search; monotone, some four times faster.

    The alternating step d = C^-1 r - m is the gradient -2 alpha_i C d_i preconditioned by C, so Polak-Ribiere needs C d
    only. A block is frozen after PATIENCE steps that each gain less than TOLERANCE. Returns (m, steps taken).
    """
    d = g = p = torch.zeros_like(m)
    slope = torch.ones_like(unit.noise)
    value = torch.full_like(unit.noise, torch.inf)
    stale = torch.zeros_like(unit.noise)
    for taken in range(steps):
        b = devices(unit, m)
        C = covariance(unit, b)
        previous, d = d, wiener(unit, b, C) - m
        g = unit.importance * (C @ d)
        beta = ((d - previous).conj() * g).real.sum((1, 2)) / slope
        slope = (d.conj() * g).real.sum((1, 2)).clamp_min(1e-300)
        p = torch.where((stale > 0)[:, None, None], d, d + beta.clamp(0.0, 10.0)[:, None, None] * p)
        t, reached = line_search(unit, m, p)
        m = torch.where((stale >= PATIENCE)[:, None, None], m, m + t[:, None, None] * p)
        stale = torch.where((value - reached > TOLERANCE * value) & (stale < PATIENCE), 0.0, stale + 1)
        value = torch.minimum(value, reached)
        if bool((stale >= PATIENCE).all()):
            return m, taken + 1
    return m, steps


def singular_start(unit: Unit) -> Complex[Tensor, "B D T"]:
    """Per target the dominant left singular vector of the channels it wants; zero where it wants none."""
    wanted = unit.h[:, None] * (unit.weights > 0).to(unit.h.dtype)[:, None, :]
    vectors: Tensor = torch.linalg.eigh(wanted @ wanted.mH).eigenvectors
    return vectors[..., -1].mT
