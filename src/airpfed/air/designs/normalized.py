"""The slot in natural units, block by block, so that no design depends on the scale of channels, powers or weights."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int, Num
from torch import Tensor

from airpfed.air.problem import Transceiver, TransceiverProblem

NOISE_FLOOR = 1e-10
"""Least noise that a regularised solve sees, in units of the typical channel power: noise = 0 stays well posed."""

DEAD = 1e-24
"""A device whose received power is this far below the block's strongest cannot be forced in double precision."""


@dataclass(frozen=True)
class NormalizedProblem:
    """A slot with |b_k| <= 1, sum_k w_ik^2 = 1, and channels of typical power 1 per antenna in every block.

    h: channels times sqrt(P_k) over the block's scale, in at most K coordinates (the span of the channels), in V views:
    one for all targets, or each target's own where receivers have different antennas. noise: floored at NOISE_FLOOR.
    csi: P_k csi_k in the same units, mean over a view's antennas. basis, rows, antennas, scale, norm, power: what
    `restore` needs to return to watts; rows: the antennas of each view, -1 where it has fewer. device_of_stream: as
    in `TransceiverProblem`.
    """

    h: Complex[Tensor, "B V D K"]
    weights: Float[Tensor, "*B T K"]
    target_weight: Float[Tensor, " T"]
    noise: Float[Tensor, " B"]
    csi: Float[Tensor, "B V K"]
    basis: Complex[Tensor, "B V N D"] | None
    rows: Int[Tensor, "V N"] | None
    antennas: int
    scale: Float[Tensor, " B"]
    norm: Float[Tensor, "*B T"]
    power: Float[Tensor, " K"]
    device_of_stream: Int[Tensor, " K"] | None


def powers(h: Complex[Tensor, "*B M K"]) -> Float[Tensor, "*B K"]:
    """||h_k||^2."""
    squares: Tensor = torch.linalg.vecdot(h, h, dim=-2)
    return squares.real


def audible(power: Float[Tensor, "*B K"]) -> Bool[Tensor, "*B K"]:
    """Which devices have a channel at all, relative to the strongest of their block, by their received power."""
    return power > DEAD * power.amax(-1, keepdim=True)


def heard(h: Complex[Tensor, "*B M K"]) -> Bool[Tensor, "*B K"]:
    """`audible` of channels."""
    return audible(powers(h))


def typical(power: Float[Tensor, "B K"], wanted: Bool[Tensor, "*b K"]) -> Float[Tensor, " B"]:
    """Geometric mean over the wanted devices that are heard; 1 where none is.

    The geometric mean, because one device beside the antennas must not set the unit for all the others.
    """
    counted = audible(power) & wanted
    logs = (power.clamp_min(1e-300).log() * counted).sum(-1)
    return (logs / counted.sum(-1).clamp_min(1)).exp()


def normalise(problem: TransceiverProblem) -> NormalizedProblem:
    """The slot in natural units; with more antennas than devices, in the span of the channels (exact: m lies in it)."""
    rows = None if problem.antenna_mask is None else antennas(problem.antenna_mask)
    full = (problem.h * problem.power.sqrt())[:, None]
    csi = (problem.csi_variance if problem.csi_variance.dim() > 1 else problem.csi_variance[None]).expand(
        len(full), -1, -1
    )
    h, spread = full, csi.mean(-2, keepdim=True)
    if rows is not None:
        h, spread = seen(full[:, 0], rows), (seen(csi.expand(-1, full.shape[2], -1), rows)).sum(2)
        spread = spread / (rows >= 0).sum(1)[:, None]
    scale = typical(powers(own_view(h, problem.weights)) / h.shape[2], (problem.weights > 0).any(-2))
    h = h / scale.sqrt()[:, None, None, None]
    basis, h = torch.linalg.qr(h) if h.shape[2] > h.shape[3] else (None, h)
    norm = problem.weights.square().sum(-1).sqrt()
    norm = torch.where(norm > 0, norm, 1.0)
    target_weight = problem.target_weight * (
        norm.square() if problem.weights.dim() == 2 else 1.0
    )  # of one target 1 in the end
    return NormalizedProblem(
        h=h,
        weights=problem.weights / norm[..., None],
        target_weight=target_weight / target_weight.sum().clamp_min(1e-300),
        noise=(problem.noise / scale).clamp_min(NOISE_FLOOR),
        csi=spread * problem.power / scale[:, None, None],
        basis=basis,
        rows=rows,
        antennas=problem.h.shape[1],
        scale=scale,
        norm=norm,
        power=problem.power,
        device_of_stream=problem.device_of_stream,
    )


def antennas(antenna_mask: Bool[Tensor, "T M"]) -> Int[Tensor, "T N"]:
    """Indices of the antennas that each receiver has, padded with -1."""
    most = int(antenna_mask.sum(1).max())
    order = (
        torch.where(
            antenna_mask, torch.arange(antenna_mask.shape[1], device=antenna_mask.device), antenna_mask.shape[1]
        )
        .sort(1)
        .values[:, :most]
    )
    return torch.where(order < antenna_mask.shape[1], order, -1)


def seen(values: Num[Tensor, "B M K"], rows: Int[Tensor, "V N"]) -> Num[Tensor, "B V N K"]:
    """Values of each view's antennas, 0 where it has none."""
    found: Tensor = values[:, rows.clamp_min(0)] * (rows >= 0)[:, :, None]
    return found


def own_view(h: Complex[Tensor, "B V N K"], weights: Float[Tensor, "*b T K"]) -> Complex[Tensor, "B N K"]:
    """Every device's channel as the target that wants it sees it."""
    if h.shape[1] == 1:
        return h[:, 0]
    return h[:, weights.argmax(0), :, torch.arange(h.shape[3], device=h.device)].permute(1, 2, 0)


def restore(
    unit: NormalizedProblem, receiver: Complex[Tensor, "B D T"], transmit: Complex[Tensor, "B K"], iterations: int
) -> Transceiver:
    """Receivers and transmit factors of a unit problem in the units of its slot."""
    full = receiver if unit.basis is None else times(unit.basis, receiver)
    if unit.rows is not None:
        spot = torch.where(unit.rows < 0, unit.antennas, unit.rows).T.expand(len(full), -1, -1)
        blank = torch.zeros(len(full), unit.antennas + 1, full.shape[2], dtype=full.dtype, device=full.device)
        full = blank.scatter(1, spot, full)[:, : unit.antennas]
    return Transceiver(
        full * unit.norm[..., None, :] / unit.scale.sqrt()[:, None, None], transmit * unit.power.sqrt(), iterations
    )


def adopt(unit: NormalizedProblem, receiver: Complex[Tensor, "B M T"]) -> Complex[Tensor, "B D T"]:
    """A slot's receivers in the unit problem's coordinates, the inverse of `restore`."""
    if unit.rows is not None:
        receiver = receiver.gather(1, unit.rows.clamp_min(0).T.expand(len(receiver), -1, -1)) * (unit.rows >= 0).T
    receiver = receiver if unit.basis is None else times(unit.basis.mH, receiver)
    return receiver * unit.scale.sqrt()[:, None, None] / unit.norm


def times(A: Complex[Tensor, "B V N D"], m: Complex[Tensor, "B D T"]) -> Complex[Tensor, "B N T"]:
    """A matrix, or each target's own, times its receiver."""
    return A[:, 0] @ m if A.shape[1] == 1 else (A @ m.mT[..., None])[..., 0].mT


def hears(unit: NormalizedProblem, m: Complex[Tensor, "*S B D T"]) -> Complex[Tensor, "*S B T K"]:
    """m_i^H h_k of every receiver and device."""
    if unit.h.shape[1] == 1:
        return m.mH @ unit.h[:, 0]
    return (m.mH[..., None, :] @ unit.h)[..., 0, :]


def spread_over(unit: NormalizedProblem, values: Num[Tensor, "... T K"]) -> Num[Tensor, "... V K R"]:
    """Values by target and device as columns for each view: all targets' for one view, else each view its target's."""
    return values.mT[..., None, :, :] if unit.h.shape[1] == 1 else values[..., None]


def gathered(columns: Complex[Tensor, "B V D R"]) -> Complex[Tensor, "B D T"]:
    """Columns of each view as receivers, the inverse of `spread_over`'s order."""
    return columns[:, 0] if columns.shape[1] == 1 else columns[..., 0].mT


def correlate(receiver: Complex[Tensor, "B M"], h: Complex[Tensor, "B M K"]) -> Complex[Tensor, "B K"]:
    """m^H h_k of one receiver per block."""
    return (receiver.conj()[:, None, :] @ h)[:, 0, :]
