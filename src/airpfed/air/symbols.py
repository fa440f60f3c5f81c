"""Gradients as symbols: normalisation into entries of unit power, packing into complex symbols, and the inverses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air.mixing import GroupMixing
from airpfed.air.row_chunks import Rows, all_rows, row_chunks

Packing = Literal["iq", "real"]

FLOOR = 1e-12
"""A device is silent if its variance is below this share of the largest; relative, as LoRA gradients can be tiny."""


@dataclass(frozen=True)
class Entries:
    """Normalised entries u_k = (g_k - mean_k) / divisor_k of the columns from `first` to `last`.

    They are computed when rows are read; mixed entries are kept if all rows fit into one chunk. lengths: number of
    entries of each device in these columns, zeros follow. mixing: the map of the entries; None without mixing.
    divisor: the normaliser, s_k per device or the common sigma; infinite for a silent device.
    """

    vectors: Rows
    first: int
    last: int
    lengths: Int[Tensor, " K"]
    mean: Float[Tensor, " K"]
    divisor: Float[Tensor, " K"]
    mixing: GroupMixing | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The number of devices and of entries, (K, d)."""
        return len(self.lengths), self.last - self.first

    def __getitem__(self, rows: slice) -> Float[Tensor, "k d"]:
        """Compute some devices' entries, float64."""
        if self.mixing is None:
            return self._normalised(rows)
        whole = len(list(row_chunks(*self.shape))) == 1
        return self._all_mixed[rows] if whole else self.mixing.apply(self._normalised(rows), self.lengths[rows])

    @cached_property
    def _all_mixed(self) -> Float[Tensor, "K d"]:
        assert self.mixing is not None
        return self.mixing.apply(self._normalised(slice(0, self.shape[0])), self.lengths)

    def _normalised(self, rows: slice) -> Float[Tensor, "k d"]:
        g = self.vectors.take(rows, self.first, self.last).sub_(self.mean[rows, None])
        return zero_tail(g.div_(self.divisor[rows, None]), self.lengths[rows])

    def moments(self, centred: bool) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
        """The means of all devices' entries, 0 unless `centred`, and the mean squares about them."""
        means, squares, counts = [], [], self.lengths.clamp(min=1).double()
        for rows in row_chunks(*self.shape):
            g, count = zero_tail(self.vectors.take(rows, self.first, self.last), self.lengths[rows]), counts[rows]
            means.append(g.sum(1) / count if centred else torch.zeros_like(count))
            g = zero_tail(g.sub_(means[-1][:, None]), self.lengths[rows]) if centred else g
            squares.append(torch.linalg.vector_norm(g, dim=1).square() / count)
        empty = torch.zeros(0, dtype=torch.float64)
        return torch.cat([empty, *means]), torch.cat([empty, *squares])


def zero_tail(values: Float[Tensor, "T d"], lengths: Int[Tensor, " T"]) -> Float[Tensor, "T d"]:
    """Replace all entries of a row after its first `lengths` by zeros."""
    if bool((lengths >= values.shape[1]).all()):
        return values
    return values.masked_fill(torch.arange(values.shape[1])[None, :] >= lengths[:, None], 0.0)


@dataclass(frozen=True)
class NormalizedGroup:
    """The symbols of one normaliser group in one slot: target i's sum is sigma_i sum_k weights_ik u_k + offset_i.

    entries: u_k; read as entries[a:b], some devices at a time, because all of them in float64 may not fit into memory.
    weights: the design's weights. scale: sigma_i. offset: the mean of target i's sum, which travels as side
    information. symbol_power: mean power of u_k over the device's entries: 1, or less than 1 with the common
    normaliser, or 0 for a silent device. num_entries: length of each target's sum, whose entries come first in a row.
    """

    entries: Entries | Float[Tensor, "K d"]
    weights: Float[Tensor, "T K"]
    scale: Float[Tensor, " T"]
    offset: Float[Tensor, " T"]
    symbol_power: Float[Tensor, " K"]
    num_entries: Int[Tensor, " T"]


def common_sigma(vectors: Sequence[Rows], lengths: Sequence[Int[Tensor, " _K"]]) -> float:
    """The common sigma_t of the appendix: the largest root mean square of a vector in any slot of the round."""
    powers = [
        v[rows].square().sum(1) / n[rows].clamp(min=1)
        for v, n in zip(vectors, lengths, strict=True)
        for rows in row_chunks(*v.shape)
    ]
    return float(torch.cat(powers).max().sqrt()) if powers else 0.0


def normalise_group(
    g: Rows | Float[Tensor, "K _d"],
    lengths: Int[Tensor, " K"],
    weights: Float[Tensor, "T K"],
    sigma: float | None,
    columns: tuple[int, int] | None = None,
) -> NormalizedGroup:
    """Normalise a group of columns by the common `sigma`, or by each device's mean and deviation if `sigma` is None.

    lengths: entries of each device, zeros follow. columns: first and last + 1 of the group; None for all. Per device,
    the design's weights become w_ik s_k / sigma_i with sigma_i^2 = sum_k w_ik^2 s_k^2 / sum_k w_ik^2, so that the
    largest weights stay near w.
    """
    first, last = columns or (0, g.shape[1])
    lengths = (lengths - first).clamp(0, last - first)
    zero = torch.zeros(len(lengths), dtype=torch.float64)
    entries = Entries(
        vectors=g if isinstance(g, Rows) else all_rows(g),
        first=first,
        last=last,
        lengths=lengths,
        mean=zero,
        divisor=torch.ones_like(zero),
    )
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
        entries=replace(entries, mean=mean, divisor=divisor),
        weights=scaled,
        scale=total,
        offset=weights @ mean,
        symbol_power=power,
        num_entries=num_entries,
    )


def pack_symbols(u: Float[Tensor, "K d"], packing: Packing) -> Complex[Tensor, "K uses"]:
    """Pack real entries into complex symbols of the same mean power: iq (u_2i + j u_2i+1) / sqrt 2, real u."""
    if packing == "real":
        return torch.complex(u, torch.zeros_like(u))
    padded = torch.nn.functional.pad(u, (0, 1)) if u.shape[1] % 2 else u
    return torch.view_as_complex((2**-0.5 * padded).reshape(len(u), -1, 2))


def unpack_symbols(x: Complex[Tensor, "T uses"], packing: Packing, d: int) -> Float[Tensor, "T {d}"]:
    """Unpack received symbols into real entries, the inverse of `pack_symbols`; real packing keeps the real part."""
    if packing == "real":
        return x.real
    return (2**0.5 * torch.view_as_real(x)).flatten(1)[:, :d]


def uses_of(d: int, packing: Packing) -> int:
    """The number of complex channel uses that d real entries take."""
    return d if packing == "real" else (d + 1) // 2


def entries_per_use(packing: Packing) -> int:
    """The number of real entries in a channel use."""
    return 1 if packing == "real" else 2
