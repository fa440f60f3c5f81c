"""Stochastic rounding: b bits an entry, unbiased, with one scale a bucket."""

import torch
from jaxtyping import Float
from torch import Tensor

BUCKET = 512
"""Entries that share a scale (QSGD, Alistarh et al. 2017): a large entry spoils only its neighbours."""

SCALE_BITS = 16


def rounded(
    values: Float[Tensor, "R d"], bits: int, rng: torch.Generator
) -> tuple[Float[Tensor, "R d"], Float[Tensor, "R d"]]:
    """Values on 2^bits levels from -s to s, s the largest magnitude of the bucket; E rounded = values.

    Returns (rounded, variance of each entry over the rounding). Random: one draw an entry.
    """
    width = values.shape[1]
    buckets = torch.nn.functional.pad(values, (0, -width % BUCKET)).reshape(len(values), -1, BUCKET)
    top = buckets.abs().amax(-1, keepdim=True)
    spacing = 2 * top / (2**bits - 1)
    place = (buckets + top) / torch.where(spacing > 0, spacing, 1.0)
    low = place.floor().clamp(0, 2**bits - 2)
    share = (place - low).clamp(0.0, 1.0)
    up = torch.rand(share.shape, dtype=values.dtype, generator=rng) < share
    found = torch.where(spacing > 0, (low + up) * spacing - top, 0.0)
    variance = share * (1 - share) * spacing.square()
    return found.flatten(1)[:, :width], variance.flatten(1)[:, :width]


def bits_of(entries: int, bits: int) -> int:
    """Bits that so many entries take, their buckets' scales included."""
    return entries * bits + -(-entries // BUCKET) * SCALE_BITS
