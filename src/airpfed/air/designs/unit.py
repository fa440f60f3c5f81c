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


def typical(power: Float[Tensor, "B K"], wanted: Bool[Tensor, " K"]) -> Float[Tensor, " B"]:
    """Geometric mean over the wanted devices that are heard; 1 where none is.

    The geometric mean, because one device beside the antennas must not set the unit for all the others.
    """
    counted = audible(power) & wanted
    logs = (power.clamp_min(1e-300).log() * counted).sum(-1)
    return (logs / counted.sum(-1).clamp_min(1)).exp()


def normalise(slot: Slot) -> Unit:
    """The slot in natural units; with more antennas than devices, in the span of the channels (exact: m lies in it)."""
    antennas, devices = slot.h.shape[1:]
    scale = typical(powers(slot.h) * slot.power / antennas, (slot.weights > 0).any(0))
    h = slot.h * (slot.power / scale[:, None]).sqrt()[:, None, :]
    basis, h = torch.linalg.qr(h) if antennas > devices else (None, h)
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
