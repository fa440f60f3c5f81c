"""Uniform forcing: every wanted device is heard with exactly its weight, at the least noise that allows."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.alone import least_norm, least_norm_alone
from airpfed.air.designs.alternating import error
from airpfed.air.designs.emphasis import emphasise
from airpfed.air.designs.normalized import NormalizedProblem, heard, hears, normalise, restore
from airpfed.air.designs.own import gather_own, own_devices, own_gains
from airpfed.air.designs.quiet import quiet
from airpfed.air.problem import Transceiver, TransceiverProblem, divide_power

JACOBI_ROUNDS = 3
RANK_TOLERANCE = 1e-10


@quiet
def uniform_forcing(problem: TransceiverProblem, starts: int = 1) -> Transceiver:
    """b_k = w_k / (m_i^H h_k) and the receivers of locally least objective: unbiased for perfect CSI.

    One target: min ||m||^2 s.t. sqrt(P_k)|m^H h_k| >= w_k, so that the weakest device sends exactly P_k. Several: exact
    nulls on the other targets' devices where the antennas allow, against receivers that weigh interference with noise
    (Jacobi: each whitened by what the others send), whichever is better in a block; alternation with the own error
    emphasised where nulls are out of reach. A device without a channel (or without weight) constrains nothing and is
    silent. Streams of one device have even shares of its limit. CSI error enters the error, not the design. starts: how
    many beams a slot of one target begins from; the best is kept.
    """
    unit = normalise(divide_power(problem))
    if unit.weights.shape[-2] == 1:
        m, steps = least_norm_alone(unit, starts)
        return restore(unit, m, forced(unit, m), steps)
    if starts != 1:
        raise ValueError("several starts are for slots of one target")
    index, w = own_devices(unit.weights)
    own = gather_own(unit.h, index)
    alone, steps = least_norm_each(own, w)
    m, more = separate(unit, own, alone)
    return restore(unit, m, forced(unit, m), steps + more)


def least_norm_each(
    own: Complex[Tensor, "B T M L"], w: Float[Tensor, "T L"], m: Complex[Tensor, "B M T"] | None = None
) -> tuple[Complex[Tensor, "B M T"], int]:
    """`least_norm` for every target of every block, each with its own devices' channels."""
    blocks, targets = own.shape[:2]
    weights = w.expand(blocks, -1, -1).flatten(0, 1)
    found, steps = least_norm(own.flatten(0, 1), weights, None if m is None else m.mT.flatten(0, 1))
    return found.reshape(blocks, targets, -1).mT, steps


def forced(unit: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> Complex[Tensor, "B K"]:
    """b_k = w_k / (m_i^H h_k), i the target that wants k; 0 where the limit |b_k| <= 1 forbids it (no channel)."""
    w = unit.weights.sum(-2)
    a = torch.where(unit.weights > 0, hears(unit, m), 0.0).sum(1)
    size = a.abs()
    b = torch.where(size >= w * (1 - 1e-9), w / torch.where(size > 0, a, 1.0), 0.0)
    return b / b.abs().clamp_min(1.0)


def separate(
    unit: NormalizedProblem, own: Complex[Tensor, "B T D L"], alone: Complex[Tensor, "B D T"]
) -> tuple[Complex[Tensor, "B D T"], int]:
    """The best of receivers blind to interference and either exact nulls and Jacobi rounds from them, or emphasis."""
    _, w = own_devices(unit.weights)
    best, score = alone, forcing_error(unit, alone)
    interferers = (unit.weights.sum(0) > unit.weights).sum(-1)
    if int(interferers.max()) >= unit.h.shape[2]:
        m, steps = emphasise(unit, alone)
        return better(unit, best, score, stretch(unit, m))[0], steps
    m, steps = least_norm_each(nulling(unit) @ own, w)
    best, score = better(unit, best, score, m)
    for _ in range(JACOBI_ROUNDS):
        m, more = jacobi(unit, own, w, m)
        best, score = better(unit, best, score, m)
        steps += more
    return best, steps


def stretch(unit: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> Complex[Tensor, "B D T"]:
    """Each receiver at the least scale that lets all its own devices be forced within their power."""
    index, w = own_devices(unit.weights)
    audible = gather_own(heard(unit.h)[:, :, None], index)[:, :, 0] & (w > 0)
    ratio = torch.where(audible, w / own_gains(unit, m, index).abs().clamp_min(1e-300), 0.0)
    return m * ratio.amax(-1)[:, None, :]


def forcing_error(unit: NormalizedProblem, m: Complex[Tensor, "B D T"]) -> Float[Tensor, " B"]:
    """The objective of forcing with these receivers; infinite where a device that is heard could not be forced."""
    b = forced(unit, m)
    missed = ((heard(unit.h) & (unit.weights > 0)).any(1) & (b == 0)).any(-1)
    return torch.where(missed, torch.inf, error(unit, m, b))


def better(
    unit: NormalizedProblem, best: Complex[Tensor, "B D T"], score: Float[Tensor, " B"], m: Complex[Tensor, "B D T"]
) -> tuple[Complex[Tensor, "B D T"], Float[Tensor, " B"]]:
    """Block by block the better of two sets of receivers, with its objective."""
    tried = forcing_error(unit, m)
    return torch.where((tried < score)[:, None, None], m, best), torch.minimum(tried, score)


def nulling(unit: NormalizedProblem) -> Complex[Tensor, "B T D D"]:
    """Per target the projector onto the complement of the other targets' devices, from an SVD of their directions."""
    others = ((unit.weights.sum(0) > 0) & (unit.weights == 0)).to(torch.float64)
    h = unit.h / unit.h.abs().square().sum(2, keepdim=True).sqrt().clamp_min(1e-300)
    U, S, _ = torch.linalg.svd(h * others[:, None, :], full_matrices=False)
    U = U * (S > RANK_TOLERANCE)[..., None, :]
    span: Tensor = U @ U.mH
    return torch.eye(U.shape[-2], dtype=U.dtype, device=U.device) - span


def jacobi(
    unit: NormalizedProblem, own: Complex[Tensor, "B T D L"], w: Float[Tensor, "T L"], m: Complex[Tensor, "B D T"]
) -> tuple[Complex[Tensor, "B D T"], int]:
    """All targets at once: least noise plus interference m^H R_i m, R_i of what the others send with the receivers m.

    With R_i = L L^H the problem is least norm in L^H m for the channels L^-1 h.
    """
    sent = unit.h * forced(unit, m)[:, None, None, :]
    heard_others = sent * (unit.weights == 0)[:, None, :]
    R = heard_others @ heard_others.mH
    R.diagonal(dim1=-2, dim2=-1).add_(unit.noise[:, None, None])
    L = torch.linalg.cholesky_ex(R).L
    white = torch.linalg.solve_triangular(L, own, upper=False)
    start = (L.mH @ m.mT[..., None])[..., 0].mT
    found, steps = least_norm_each(white, w, start)
    return torch.linalg.solve_triangular(L.mH, found.mT[..., None], upper=True)[..., 0].mT, steps
