"""Where tensors become arrays: hinges of as many blocks at a time as pays."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.air.designs.hinge import LARGE, single_target_problem
from airpfed.air.designs.paths import Found

TOGETHER = 1 << 16
"""Channel entries of small blocks that are designed together."""


def blockwise(
    design: Callable[..., Found], h: Complex[Tensor, "B M K"], weights: Float[Tensor, "B K"], *given: Tensor
) -> tuple[list[Complex[Tensor, "B M"]], int]:
    """The receivers that `design(hinge, *given)` finds, on h's device, and the most steps that any block took.

    given: of whatever else is needed, one entry a block. The arithmetic is done on the CPU, and without warnings:
    where no receiver hears a device, infinite norms are compared. Small blocks are batched, because a call costs more
    than its arithmetic; a large block is better off alone, where its satisfied devices cost nothing.
    """
    arrays = [one.detach().cpu().numpy() for one in (h, weights, *given)]
    entries = h.shape[1] * h.shape[2]
    size = 1 if entries >= LARGE else TOGETHER // max(1, entries)
    found, steps = [], 0
    with np.errstate(all="ignore"):
        for first in range(0, len(h), size):
            channels, w, *rest = (one[first : first + size] for one in arrays)
            receivers, taken = design(single_target_problem(channels, w), *rest)
            found.append(receivers)
            steps = max(steps, taken)
    return [torch.from_numpy(np.concatenate(parts)).to(h.device) for parts in zip(*found, strict=True)], steps
