"""Unbiased stochastic rounding to b bits per entry, with one scale per bucket of entries."""

import torch
from jaxtyping import Float
from torch import Tensor

BUCKET = 512
"""Entries that share a scale, so that a large entry makes only its bucket coarse (QSGD, Alistarh et al. 2017)."""

SCALE_BITS = 16


def round_stochastically(
    values: Float[Tensor, "R d"], bits: int, rng: torch.Generator
) -> tuple[Float[Tensor, "R d"], Float[Tensor, "R d"]]:
    """Round values to 2^bits levels from -s to s, with s the largest magnitude of the bucket; E rounded = values.

    Returns the rounded values and the variance of each over the rounding. Random: one draw per entry.
    """
    width = values.shape[1]
    buckets = torch.nn.functional.pad(values, (0, -width % BUCKET)).reshape(len(values), -1, BUCKET)
    top = buckets.abs().amax(-1, keepdim=True)
    spacing = 2 * top / (2**bits - 1)
    level = (buckets + top) / torch.where(spacing > 0, spacing, 1.0)
    low = level.floor().clamp(0, 2**bits - 2)
    share = (level - low).clamp(0.0, 1.0)
    up = torch.rand(share.shape, dtype=values.dtype, generator=rng) < share
    rounded = torch.where(spacing > 0, (low + up) * spacing - top, 0.0)
    variance = share * (1 - share) * spacing.square()
    return rounded.flatten(1)[:, :width], variance.flatten(1)[:, :width]


def bits_of(entries: int, bits: int) -> int:
    """The bits of a vector of `entries` entries, with the scales of its buckets."""
    return entries * bits + -(-entries // BUCKET) * SCALE_BITS
