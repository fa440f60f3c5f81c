"""Truncated channel inversion on a fixed beam."""

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from airpfed.air.designs.blocks import blockwise
from airpfed.air.designs.normalized import correlate, normalise, restore
from airpfed.air.designs.own import gather_own, own_devices, scatter_own
from airpfed.air.designs.paths import first_beam
from airpfed.air.problem import Transceiver, TransceiverProblem, divide_power, keep_better, silent


def channel_inversion(problem: TransceiverProblem, truncation: float | None = None) -> Transceiver:
    """Invert the channel seen through the weighted dominant eigenvector u; devices too weak for it are silent.

    b_k = kappa w_k / (u^H h_k) for the devices kept, kappa as large as the weakest of them allows, and m = u / kappa:
    the sum is unbiased on the devices kept, the others' part is missing. truncation: devices with
    sqrt(P_k)|u^H h_k|/w_k below this fraction of the best are silent; None takes the threshold of least error, by an
    exact search over all K, and silence of all where even that is better. Several targets: each as if alone.
    """
    unit = normalise(divide_power(problem))
    index, w = own_devices(unit.weights)
    own = gather_own(unit.h, index)
    blocks, targets = own.shape[:2]
    h, weights = own.flatten(0, 1), w.expand(blocks, -1, -1).flatten(0, 1)
    (beam,), _ = blockwise(first_beam, h, weights)
    a = correlate(beam, h)
    noise = unit.noise.repeat_interleave(targets)
    csi = gather_own(unit.csi[:, :, None], index)[:, :, 0].flatten(0, 1)
    strength = torch.where(weights > 0, a.abs() / weights.clamp_min(1e-300), 0.0)
    kept = best_kept(strength, weights, noise, csi) if truncation is None else above(strength, truncation)
    b, kappa = invert(a, weights, kept)
    transmit = scatter_own(b.reshape(blocks, targets, -1), w, index, problem.h.shape[-1])
    receiver = (beam / kappa).reshape(blocks, targets, -1).mT
    made = restore(unit, receiver, transmit, 0)
    return keep_better(problem, silent(problem), made) if truncation is None else made


def above(strength: Float[Tensor, "B K"], truncation: float) -> Bool[Tensor, "B K"]:
    """Devices at or above a fraction of the strongest; a device of strength 0 has no channel and never sends."""
    return (strength >= truncation * strength.amax(-1, keepdim=True)) & (strength > 0)


def invert(
    a: Complex[Tensor, "B K"], weights: Float[Tensor, "B K"], kept: Bool[Tensor, "B K"]
) -> tuple[Complex[Tensor, "B K"], Float[Tensor, "B 1"]]:
    """b_k = kappa w_k / a_k on the devices kept, and kappa, which lets the weakest of them meet |b_k| = 1."""
    ratio = torch.where(kept, weights / torch.where(kept, a, 1.0), 0.0)
    largest = ratio.abs().amax(-1, keepdim=True)
    kappa = torch.where(largest > 0, largest, 1.0).reciprocal()
    return ratio * kappa, kappa


def best_kept(
    strength: Float[Tensor, "B K"], weights: Float[Tensor, "B K"], noise: Float[Tensor, " B"], csi: Float[Tensor, "B K"]
) -> Bool[Tensor, "B K"]:
    """The truncation of least error, from the exact error of each of the K thresholds.

    Keep the j strongest: with kappa = strength_j the noise leaves (noise + sum csi |b|^2)/kappa^2, and the devices that
    are silent leave their w^2.
    """
    order = strength.argsort(-1, descending=True)
    kappa, w2 = strength.gather(-1, order), weights.square().gather(-1, order)
    inverse = torch.where(kappa > 0, kappa, 1.0).square().reciprocal()
    spread = (csi.gather(-1, order) * inverse).cumsum(-1)
    error = noise[:, None] * inverse + spread + w2.sum(-1, keepdim=True) - w2.cumsum(-1)
    error = torch.where(kappa > 0, error, torch.inf)
    return (strength >= kappa.gather(-1, error.argmin(-1, keepdim=True))) & (strength > 0)
