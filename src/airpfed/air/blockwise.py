"""Values of a segment by coherence block: whole blocks together, because a call costs more than its arithmetic."""

from collections.abc import Callable

import torch
from torch import Tensor

BlockRanges = tuple[tuple[int, int], ...]
"""Uses [first, last) of a segment in each of its coherence blocks."""

SERIAL = 32768
"""Entries that torch sums in one thread, so that the sum of a block does not depend on the call that contains it."""


def by_block(
    function: Callable[[Tensor], Tensor], values: Tensor, block_ranges: BlockRanges, per_use: int = 1
) -> Tensor:
    """Apply a function of the last axis, such as a sum, to the values of each block; returns them stacked, block first.

    function: (..., n) -> (...). per_use: values of a use. All blocks but the first and the last are whole, and share a
    call.
    """
    bounds = [(per_use * first, per_use * last) for first, last in block_ranges]
    inner = bounds[1:-1]
    size = inner[0][1] - inner[0][0] if inner else 0
    if any(last - first != size for first, last in inner) or size * values[..., 0].numel() >= SERIAL:
        inner, parts = [], [function(values[..., first:last]) for first, last in bounds]
        return torch.stack(parts)
    parts = [function(values[..., slice(*bounds[0])])[None]]
    if inner:
        whole = values[..., inner[0][0] : inner[-1][1]]
        together = whole.reshape(*whole.shape[:-1], len(inner), size)
        parts.append(function(together).movedim(-1, 0))
    if len(bounds) > 1:
        parts.append(function(values[..., slice(*bounds[-1])])[None])
    return torch.cat(parts)


def over_uses(values: Tensor, block_ranges: BlockRanges, per_use: int = 1) -> Tensor:
    """Repeat the values of each block, (B, *rest), for its uses: (*rest, uses), `per_use` times for each."""
    counts = torch.tensor([per_use * (last - first) for first, last in block_ranges])
    return values.repeat_interleave(counts, 0).movedim(0, -1)
