"""Packing: samples of unlike lengths end to end in rows of one width, so that hardly any padding is computed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from airpfed.model.encode import Encoded, targets_of

LIMIT = 256
"""Tokens of the widest row that is tried, unless one sample is longer."""

STEP = 2
"""Tokens between two widths that are tried."""

FAR = 1536
"""Tokens of a row at which attention, which reads all of it, costs about as much as everything else."""


@dataclass(frozen=True)
class Packing:
    """Where samples lie in the flattened tokens of `rows` rows: `starts`, in the order given, device by device.

    spans: tokens of each device, one behind the other, all tokens in all. What is left empty at the end of a row
    belongs to whoever comes next, or to the last.
    """

    rows: int
    width: int
    starts: tuple[int, ...]
    spans: tuple[int, ...]

    @property
    def cost(self) -> float:
        """Tokens' worth of arithmetic."""
        return self.rows * self.width * (1 + self.width / FAR)


@dataclass(frozen=True)
class Packed:
    """Samples in their places.

    positions: of each token in its sample, from 0; what is empty counts as samples of one token. at: the flattened
    tokens whose predictions the targets are for.
    """

    ids: Int[Tensor, "rows t"]
    positions: Int[Tensor, "rows t"]
    at: Int[Tensor, "n last"]
    targets: Int[Tensor, "n last"]


def pack(lengths: Sequence[Sequence[int]]) -> Packing:
    """The cheapest width of rows for samples of these lengths, a sequence a device."""
    longest = max(max(own) for own in lengths)
    widths = range(longest, max(longest, LIMIT) + 1, STEP)
    return min((packing(lengths, width) for width in widths), key=lambda one: one.cost)


def packing(lengths: Sequence[Sequence[int]], width: int) -> Packing:
    """Device by device, the longest sample that fits into what is left of a row, or else into a new row."""
    place, starts, ends = 0, list[int](), [0]
    for own in lengths:
        left, found = sorted(range(len(own)), key=lambda i: -own[i]), [0] * len(own)
        while left:
            room = width - place % width
            chosen = next((i for i in left if own[i] <= room), None)
            if chosen is None:
                place += room
                continue
            left.remove(chosen)
            found[chosen] = place
            place += own[chosen]
        starts += found
        ends.append(place)
    rows = -(-place // width)
    ends[-1] = rows * width
    return Packing(rows, width, tuple(starts), tuple(b - a for a, b in pairwise(ends)))


def placed(samples: Sequence[Encoded], plan: Packing, pad: int) -> Packed:
    """Tokens, positions and targets of samples in a packing made for their lengths."""
    targets = targets_of(samples)
    ids = torch.full((plan.rows * plan.width,), pad, dtype=torch.long)
    positions = torch.zeros_like(ids)
    for start, sample in zip(plan.starts, samples, strict=True):
        ids[start : start + len(sample.ids)] = torch.tensor(sample.ids)
        positions[start : start + len(sample.ids)] = torch.arange(len(sample.ids))
    first = torch.tensor(plan.starts)[:, None]
    ends = first + torch.tensor([len(sample.ids) for sample in samples])[:, None]
    at = torch.maximum(ends - torch.arange(targets.shape[1], 0, -1), first)  # what lies before a sample is ignored
    shape = plan.rows, plan.width
    return Packed(ids.reshape(shape), positions.reshape(shape), at, targets)
