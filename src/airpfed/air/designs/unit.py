"""The slot in natural units, block by block, so that no design depends on the scale of channels, powers or weights."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from airpfed.air.slot import Slot, Transceiver

NOISE_FLOOR = 1e-10
"""Least noise that a regularised solve sees, in units of the typical channel power: noise = 0 stays well posed."""

DEAD = 1e-24
"""A device whose received power is this far below the block's strongest cannot be forced in double precision."""


@dataclass(frozen=True)
class Unit:
    """A slot with |b_k| <= 1, sum_k w_ik^2 = 1, and channels of typical power 1 per antenna in every block.

    h: channels times sqrt(P_k) over the block's scale, in at most K coordinates (the span of the channels).
    noise: floored at NOISE_FLOOR. csi: P_k csi_k in the same units.
    basis, scale, norm, power: what `restore` needs to return to watts. owner: as in `Slot`.
    """

    h: Complex[Tensor, "B D K"]
    weights: Float[Tensor, "T K"]
    importance: Float[Tensor, " T"]
    noise: Float[Tensor, " B"]
    csi: Float[Tensor, "B K"]
    basis: Complex[Tensor, "B M D"] | None
    scale: Float[Tensor, " B"]
    norm: Float[Tensor, " T"]
    power: Float[Tensor, " K"]
    owner: Int[Tensor, " K"] | None


def heard(h: Complex[Tensor, "*B M K"]) -> Bool[Tensor, "*B K"]:
    """Which devices have a channel at all, relative to the strongest of their block."""
    power = h.abs().square().sum(-2)
    return power > DEAD * power.amax(-1, keepdim=True)


def typical_power(h: Complex[Tensor, "B M K"], wanted: Bool[Tensor, " K"]) -> Float[Tensor, " B"]:
    """Geometric mean over wanted devices of ||h_k||^2 / M per block; 1 where none is heard.

    The geometric mean, because one device beside the antennas must not set the unit for all the others.
    """
    counted = (heard(h) & wanted).to(torch.float64)
    logs = (h.abs().square().mean(-2).clamp_min(1e-300).log() * counted).sum(-1)
    return (logs / counted.sum(-1).clamp_min(1.0)).exp()


def normalise(slot: Slot) -> Unit:
    """The slot in natural units; with more antennas than devices, in the span of the channels (exact: m lies in it)."""
    h = slot.h * slot.power.sqrt()
    scale = typical_power(h, (slot.weights > 0).any(0))
    h = h / scale.sqrt()[:, None, None]
    basis, h = torch.linalg.qr(h) if h.shape[1] > h.shape[2] else (None, h)
    norm = slot.weights.square().sum(-1).sqrt()
    norm = torch.where(norm > 0, norm, 1.0)
    importance = slot.importance * norm.square()
    return Unit(
        h=h,
        weights=slot.weights / norm[:, None],
        importance=importance / importance.sum().clamp_min(1e-300),
        noise=(slot.noise / scale).clamp_min(NOISE_FLOOR),
        csi=slot.csi_variance * slot.power / scale[:, None],
        basis=basis,
        scale=scale,
        norm=norm,
        power=slot.power,
        owner=slot.owner,
    )


def restore(
    unit: Unit, receiver: Complex[Tensor, "B D T"], transmit: Complex[Tensor, "B K"], iterations: int
) -> Transceiver:
    """Receivers and transmit factors of a unit problem in the units of its slot."""
    full = receiver if unit.basis is None else unit.basis @ receiver
    return Transceiver(full * unit.norm / unit.scale.sqrt()[:, None, None], transmit * unit.power.sqrt(), iterations)


def correlate(receiver: Complex[Tensor, "B M"], h: Complex[Tensor, "B M K"]) -> Complex[Tensor, "B K"]:
    """m^H h_k of one receiver per block."""
    return (receiver.conj()[:, None, :] @ h)[:, 0, :]


def dominant_beam(h: Complex[Tensor, "B M K"], weights: Float[Tensor, "B K"]) -> Complex[Tensor, "B M"]:
    """Unit dominant eigenvector of sum_k (w_k / ||h_k||^2)^2 h_k h_k^H: weak devices count more than strong ones."""
    power = h.abs().square().sum(-2)
    pull = torch.where(heard(h), weights / power.clamp_min(1e-300), 0.0)
    pull = pull / pull.amax(-1, keepdim=True).clamp_min(1e-300)
    lifted = h * pull[:, None, :]
    lifted = lifted / lifted.abs().amax((-2, -1), keepdim=True).clamp_min(1e-300)
    vectors: Tensor = torch.linalg.eigh(lifted @ lifted.mH).eigenvectors
    return vectors[..., -1]
