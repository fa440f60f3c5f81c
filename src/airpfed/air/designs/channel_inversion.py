"""Truncated channel inversion on a fixed beam."""

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from airpfed.air.designs.alternation import covariance
from airpfed.air.designs.own import gather_own, own_devices, scatter_own
from airpfed.air.designs.unit import Unit, correlate, dominant_beam, normalise, restore
from airpfed.air.slot import Slot, Transceiver


def channel_inversion(slot: Slot, truncation: float | None = None) -> Transceiver:
    """Invert the channel seen through the weighted dominant eigenvector u; devices too weak for it are silent.

    b_k = kappa w_k / (u^H h_k) for the devices kept, kappa as large as the weakest of them allows; then the receiver's
    scale of least error. truncation: devices with sqrt(P_k)|u^H h_k|/w_k below this fraction of the best are silent;
    None searches all K thresholds exactly. Several targets: each as if alone, then the receive scale among the others.
    """
    unit = normalise(slot)
    index, w = own_devices(unit.weights)
    own = gather_own(unit.h, index)
    blocks, targets = own.shape[:2]
    h, weights = own.flatten(0, 1), w.expand(blocks, -1, -1).flatten(0, 1)
    beam = dominant_beam(h, weights)
    a = correlate(beam, h)
    noise = unit.noise.repeat_interleave(targets)
    csi = unit.csi[:, index].flatten(0, 1)
    strength = torch.where(weights > 0, a.abs() / weights.clamp_min(1e-300), 0.0)
    kept = best_kept(strength, weights, noise, csi) if truncation is None else above(strength, truncation)
    b = invert(a, weights, kept).reshape(blocks, targets, -1)
    transmit = scatter_own(b, w, index, slot.h.shape[-1])
    receiver = beam.reshape(blocks, targets, -1).mT
    return restore(unit, receiver * receive_scale(unit, receiver, transmit), transmit, 0)


def above(strength: Float[Tensor, "B K"], truncation: float) -> Bool[Tensor, "B K"]:
    """Devices at or above a fraction of the strongest; a device of strength 0 has no channel and never sends."""
    return (strength >= truncation * strength.amax(-1, keepdim=True)) & (strength > 0)


def invert(
    a: Complex[Tensor, "B K"], weights: Float[Tensor, "B K"], kept: Bool[Tensor, "B K"]
) -> Complex[Tensor, "B K"]:
    """b_k = kappa w_k / a_k on the devices kept, kappa so that the weakest of them meets |b_k| = 1."""
    ratio = torch.where(kept, weights / torch.where(kept, a, 1.0), 0.0)
    return ratio / ratio.abs().amax(-1, keepdim=True).clamp_min(1e-300)


def best_kept(
    strength: Float[Tensor, "B K"], weights: Float[Tensor, "B K"], noise: Float[Tensor, " B"], csi: Float[Tensor, "B K"]
) -> Bool[Tensor, "B K"]:
    """The truncation of least error, from the exact error of each of the K thresholds.

    Keep the j strongest: with kappa = strength_j, W = sum of their w^2 and v = (noise + sum csi |b|^2)/kappa^2, the
    best receive scale leaves W v/(W + v), and the others leave their w^2.
    """
    order = strength.argsort(-1, descending=True)
    kappa, w2 = strength.gather(-1, order), weights.square().gather(-1, order)
    inverse = torch.where(kappa > 0, kappa, 1.0).square().reciprocal()
    W = w2.cumsum(-1)
    spread = (csi.gather(-1, order) * inverse).cumsum(-1)
    v = noise[:, None] * inverse + spread
    error = W * v / (W + v).clamp_min(1e-300) + (w2.sum(-1, keepdim=True) - W)
    error = torch.where(kappa > 0, error, torch.inf)
    return (strength >= kappa.gather(-1, error.argmin(-1, keepdim=True))) & (strength > 0)


def receive_scale(
    unit: Unit, receiver: Complex[Tensor, "B D T"], b: Complex[Tensor, "B K"]
) -> Complex[Tensor, "B 1 T"]:
    """The factor on each receiver of least error: m_i^H r_i / m_i^H C m_i, with r_i = sum_k w_ik b_k h_k."""
    right = unit.h @ (unit.weights * b[:, None, :]).mT
    power = (receiver.conj() * (covariance(unit, b) @ receiver)).sum(1, keepdim=True)
    return (receiver.conj() * right).sum(1, keepdim=True) / power
