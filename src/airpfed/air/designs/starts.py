"""Beams from which a one-target design begins: the weighted dominant eigenvector, then fixed draws."""

from collections.abc import Iterator

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.unit import dominant_beam, heard


def beams(h: Complex[Tensor, "B M K"], weights: Float[Tensor, "B K"], starts: int) -> Iterator[Complex[Tensor, "B M"]]:
    """`starts` beams a block, the first the dominant one, the others random combinations of the channels.

    The combination's coefficients are CN(0, 1) from a fixed seed and the same in every block, each channel with the
    weight that it has in the dominant beam; a block's starts do not depend on its batch. ValueError below one start.
    """
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    yield dominant_beam(h, weights)
    rng = torch.Generator().manual_seed(0)
    power = h.abs().square().sum(-2)
    pull = torch.where(heard(h), weights / power.clamp_min(1e-300), 0.0)
    pull = pull / pull.amax(-1, keepdim=True).clamp_min(1e-300)
    for _ in range(starts - 1):
        draw = torch.randn(h.shape[-1], dtype=h.dtype, generator=rng).to(h.device)
        yield (h @ (pull * draw)[..., None])[..., 0]
