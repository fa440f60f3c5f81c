"""A gradient becomes symbols: normalising, packing, and both undone."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

Packing = Literal["iq", "real"]

FLOOR = 1e-12
"""A device whose variance is below this share of the strongest is silent. Relative: LoRA gradients can be tiny."""


@dataclass(frozen=True)
class Normalised:
    """One normaliser group of one slot, ready to send.

    entries: u_k, mean power over the group's own entries `power` (1, 0 if silent; less than 1 under `common`).
    weights: the design's targets. scale: sigma_i of each target; the sum is sigma_i sum_k weights_ik u_k plus
    `offset`_i, which travels as side information. valid: which entries each target has.
    """

    entries: Float[Tensor, "K d"]
    weights: Float[Tensor, "T K"]
    scale: Float[Tensor, " T"]
    offset: Float[Tensor, " T"]
    power: Float[Tensor, " K"]
    valid: Bool[Tensor, "T d"]


def common_sigma(vectors: list[Float[Tensor, "_K _d"]], lengths: list[Int[Tensor, " _K"]]) -> float:
    """sigma_t of the appendix: the largest root mean square of any device's vector in any slot of the round."""
    powers = [v.double().square().sum(1) / n.clamp(min=1) for v, n in zip(vectors, lengths, strict=True) if v.numel()]
    return float(torch.cat(powers).max().sqrt()) if powers else 0.0


def normalise(
    g: Float[Tensor, "K d"],
    lengths: Int[Tensor, " K"],
    weights: Float[Tensor, "T K"],
    sigma: float | None,
) -> Normalised:
    """Divide a group by the common `sigma`, or (None) by each device's own deviation after taking its mean away.

    lengths: entries of each device; the rest of its row is silence. Per device, the design's weights become
    w_ik s_k / sigma_i with sigma_i^2 = sum_k w_ik^2 s_k^2 / sum_k w_ik^2, so that the largest weights stay near w.
    """
    own = torch.arange(g.shape[1])[None, :] < lengths[:, None]
    g = g.double() * own
    count = lengths.clamp(min=1).double()
    mean = g.sum(1) / count if sigma is None else torch.zeros(len(g), dtype=torch.float64)
    centred = (g - mean[:, None]) * own
    variance = centred.square().sum(1) / count
    if sigma is None:
        loud = variance > FLOOR * (variance.max() + mean.square().max())
        spread = torch.where(loud, variance.sqrt(), 0.0)
        total = (weights.square() @ spread.square() / weights.square().sum(1)).sqrt()
        scaled = torch.where(total[:, None] > 0, weights * spread / total[:, None], 0.0)
        divisor = torch.where(loud, spread, 1.0)
    else:
        loud = variance > 0
        divisor = torch.full_like(mean, sigma if sigma > 0 else 1.0)
        total = torch.full((len(weights),), sigma, dtype=torch.float64)
        scaled = weights if sigma > 0 else torch.zeros_like(weights)
    entries = torch.where(loud[:, None], centred / divisor[:, None], 0.0)
    valid = torch.stack([own[row > 0].any(0) for row in weights])
    return Normalised(entries, scaled, total, weights @ mean, entries.square().sum(1) / count, valid)


def pack(u: Float[Tensor, "K d"], packing: Packing) -> Complex[Tensor, "K uses"]:
    """Real entries as complex symbols of the same mean power: iq (u_2i + j u_2i+1) / sqrt 2, real u."""
    if packing == "real":
        return torch.complex(u, torch.zeros_like(u))
    padded = torch.nn.functional.pad(u, (0, u.shape[1] % 2))
    return torch.complex(padded[:, 0::2], padded[:, 1::2]) / 2**0.5


def unpack(x: Complex[Tensor, "T uses"], packing: Packing, d: int) -> Float[Tensor, "T {d}"]:
    """The inverse of `pack` on received symbols; real packing keeps the real part only."""
    if packing == "real":
        return x.real
    return (2**0.5 * torch.view_as_real(x)).flatten(1)[:, :d]


def uses_of(d: int, packing: Packing) -> int:
    """Complex channel uses of d real entries."""
    return d if packing == "real" else (d + 1) // 2
