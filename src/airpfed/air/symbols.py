"""A gradient becomes symbols: normalising, packing, and both undone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air.row_chunks import Rows, chunks, rows_of

Packing = Literal["iq", "real"]

FLOOR = 1e-12
"""A device whose variance is below this share of the strongest is silent. Relative: LoRA gradients can be tiny."""


@dataclass(frozen=True)
class Entries:
    """Normalised entries u_k = (g_k - mean_k) / divisor_k over columns `first` to `last`, computed for the rows asked.

    lengths: a device's entries of these columns; the rest of its row is silence. divisor: infinite for a device that
    is silent altogether.
    """

    of: Rows
    first: int
    last: int
    lengths: Int[Tensor, " K"]
    mean: Float[Tensor, " K"]
    divisor: Float[Tensor, " K"]

    @property
    def shape(self) -> tuple[int, int]:
        """(K, d)."""
        return len(self.lengths), self.last - self.first

    def __getitem__(self, rows: slice) -> Float[Tensor, "k d"]:
        """Some devices' entries, float64."""
        g = self.of.take(rows, self.first, self.last).sub_(self.mean[rows, None])
        return cut(g.div_(self.divisor[rows, None]), self.lengths[rows])

    def moments(self, centred: bool) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """Means (0 unless centred) of all devices' own entries, and their mean squares about them."""
        means, squares, counts = [], [], self.lengths.clamp(min=1).double()
        for rows in chunks(*self.shape):
            g, own = cut(self.of.take(rows, self.first, self.last), self.lengths[rows]), counts[rows]
            means.append(g.sum(1) / own if centred else torch.zeros_like(own))
            g = cut(g.sub_(means[-1][:, None]), self.lengths[rows]) if centred else g
            squares.append(torch.linalg.vector_norm(g, dim=1).square() / own)
        nothing = torch.zeros(0, dtype=torch.float64)
        return torch.cat([nothing, *means]), torch.cat([nothing, *squares])


def cut(values: Float[Tensor, "T d"], lengths: Int[Tensor, " T"]) -> Float[Tensor, "T d"]:
    """Values with zeros beyond the first `lengths` of each row."""
    if bool((lengths >= values.shape[1]).all()):
        return values
    return values.masked_fill(torch.arange(values.shape[1])[None, :] >= lengths[:, None], 0.0)


@dataclass(frozen=True)
class NormalizedGroup:
    """One normaliser group of one slot, ready to send.

    entries: u_k, mean power over the group's own entries `power` (1, 0 if silent; less than 1 under `common`); rows of
    some devices at a time, entries[a:b], since all of them in float64 may be more than fits.
    weights: the design's targets. scale: sigma_i of each target; the sum is sigma_i sum_k weights_ik u_k plus
    `offset`_i, which travels as side information. num_entries: entries that each target has, the first of a row.
    """

    entries: Entries | Float[Tensor, "K d"]
    weights: Float[Tensor, "T K"]
    scale: Float[Tensor, " T"]
    offset: Float[Tensor, " T"]
    power: Float[Tensor, " K"]
    num_entries: Int[Tensor, " T"]


def common_sigma(vectors: Sequence[Rows], lengths: Sequence[Int[Tensor, " _K"]]) -> float:
    """sigma_t of the appendix: the largest root mean square of any device's vector in any slot of the round."""
    powers = [
        v[rows].square().sum(1) / n[rows].clamp(min=1)
        for v, n in zip(vectors, lengths, strict=True)
        for rows in chunks(*v.shape)
    ]
    return float(torch.cat(powers).max().sqrt()) if powers else 0.0


def normalise(
    g: Rows | Float[Tensor, "K _d"],
    lengths: Int[Tensor, " K"],
    weights: Float[Tensor, "T K"],
    sigma: float | None,
    span: tuple[int, int] | None = None,
) -> NormalizedGroup:
    """Divide a group by the common `sigma`, or (None) by each device's own deviation after taking its mean away.

    lengths: entries of each device; the rest of its row is silence. span: columns of the group; None: all. Per device,
    the design's weights become w_ik s_k / sigma_i with sigma_i^2 = sum_k w_ik^2 s_k^2 / sum_k w_ik^2, so that the
    largest weights stay near w.
    """
    first, last = span or (0, g.shape[1])
    lengths = (lengths - first).clamp(0, last - first)
    zero = torch.zeros(len(lengths), dtype=torch.float64)
    entries = Entries(g if isinstance(g, Rows) else rows_of(g), first, last, lengths, zero, torch.ones_like(zero))
    mean, variance = entries.moments(sigma is None)
    if sigma is None:
        loud = variance > FLOOR * (variance.max() + mean.square().max())
        spread = torch.where(loud, variance.sqrt(), 0.0)
        total = (weights.square() @ spread.square() / weights.square().sum(1)).sqrt()
        scaled = torch.where(total[:, None] > 0, weights * spread / total[:, None], 0.0)
        divisor = torch.where(loud, spread, torch.inf)
    else:
        loud = variance > 0
        divisor = torch.where(loud, torch.full_like(variance, sigma if sigma > 0 else 1.0), torch.inf)
        total = torch.full((len(weights),), sigma, dtype=torch.float64)
        scaled = weights if sigma > 0 else torch.zeros_like(weights)
    num_entries = torch.where(weights > 0, lengths, 0).amax(1)
    power = torch.where(loud, variance / divisor.square(), 0.0)
    return NormalizedGroup(
        replace(entries, mean=mean, divisor=divisor), scaled, total, weights @ mean, power, num_entries
    )


def pack(u: Float[Tensor, "K d"], packing: Packing) -> Complex[Tensor, "K uses"]:
    """Real entries as complex symbols of the same mean power: iq (u_2i + j u_2i+1) / sqrt 2, real u."""
    if packing == "real":
        return torch.complex(u, torch.zeros_like(u))
    padded = torch.nn.functional.pad(u, (0, 1)) if u.shape[1] % 2 else u
    return torch.view_as_complex((2**-0.5 * padded).reshape(len(u), -1, 2))


def unpack(x: Complex[Tensor, "T uses"], packing: Packing, d: int) -> Float[Tensor, "T {d}"]:
    """The inverse of `pack` on received symbols; real packing keeps the real part only."""
    if packing == "real":
        return x.real
    return (2**0.5 * torch.view_as_real(x)).flatten(1)[:, :d]


def uses_of(d: int, packing: Packing) -> int:
    """Complex channel uses of d real entries."""
    return d if packing == "real" else (d + 1) // 2
