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
    _, rounded, variance = stochastic_codes(values, bits, rng)
    return rounded, variance


def stochastic_codes(
    values: Float[Tensor, "R d"], bits: int, rng: torch.Generator
) -> tuple[Float[Tensor, "R d"], Float[Tensor, "R d"], Float[Tensor, "R d"]]:
    """As `round_stochastically`, with the number of each entry's level, 0 to 2^bits - 1, in front."""
    width = values.shape[1]
    buckets = in_buckets(values)
    top = buckets.abs().amax(-1, keepdim=True)
    spacing = 2 * top / (2**bits - 1)
    level = (buckets + top) / torch.where(spacing > 0, spacing, 1.0)
    low = level.floor().clamp(0, 2**bits - 2)
    share = (level - low).clamp(0.0, 1.0)
    up = torch.rand(share.shape, dtype=values.dtype, generator=rng) < share
    code = low + up
    rounded = torch.where(spacing > 0, code * spacing - top, 0.0)
    variance = share * (1 - share) * spacing.square()
    return code.flatten(1)[:, :width], rounded.flatten(1)[:, :width], variance.flatten(1)[:, :width]


def in_buckets(values: Float[Tensor, "R d"]) -> Float[Tensor, "R buckets 512"]:
    """The buckets of each row, the last one padded with zeros."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % BUCKET))
    return padded.reshape(len(values), -1, BUCKET)


def round_to_nearest(values: Float[Tensor, "R d"], bits: int) -> Float[Tensor, "R d"]:
    """Round values to the nearest of 2^bits levels from -s to s, with s the largest magnitude of the bucket.

    s is a bfloat16 number, which has `SCALE_BITS`. Nothing is random, and the result is biased: it is for sums with
    error feedback, whose rounding must contract. In each bucket the largest error is at most `contraction(bits)` times
    the largest magnitude. Returns float32.
    """
    width = values.shape[1]
    buckets = in_buckets(values.float())
    top = buckets.abs().amax(-1, keepdim=True).bfloat16().float()
    steps = 2**bits - 1
    level = ((buckets / torch.where(top > 0, top, 1.0) + 1) * (steps / 2)).round().clamp(0, steps)
    rounded = torch.where(top > 0, (2 * level - steps) * (top / steps), 0.0)
    return rounded.flatten(1)[:, :width]


def contraction(bits: int) -> float:
    """The largest error of `round_to_nearest` over the largest magnitude of a bucket: q < 1 from 2 bits on.

    Half a spacing is 1 / (2^bits - 1) of the scale, and the scale is a bfloat16 number, off by at most 2^-8. With error
    feedback, e <- (x + e) - round(x + e), so |e| <= q / (1 - q) max|x| for ever; with 1 bit q = 1 and e may grow.
    """
    return max((1 + 2**-8) / float(2**bits - 1), 2**-8)


def bits_of(entries: int, bits: int) -> int:
    """The bits of a vector of `entries` entries, with the scales of its buckets."""
    return entries * bits + -(-entries // BUCKET) * SCALE_BITS
