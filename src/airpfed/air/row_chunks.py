"""Gradients of many devices, some rows at a time, so that a slot's vectors never lie in float64 all at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.core import memory

ENTRIES = 1 << 23
"""Entries in a chunk of rows: 64 MB in float64, and about five times that with intermediate results."""


def row_chunks(rows: int, columns: int) -> Iterator[slice]:
    """Yield consecutive rows of a matrix, as many at a time as hold at most ENTRIES entries."""
    size = max(1, ENTRIES // max(1, columns))
    for first in range(0, rows if columns else 0, size):
        yield slice(first, min(rows, first + size))


@dataclass(frozen=True)
class Rows:
    """Selected rows of one or several matrices, padded with zeros to `width` columns; a view without a copy.

    parts: pairs of a matrix and the rows selected from it. A matrix may lie in a file (`core.memory`).
    """

    parts: tuple[tuple[Float[Tensor, "_K _d"], Int[Tensor, " _k"]], ...]
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """The number of streams and the number of entries of each."""
        return sum(len(index) for _, index in self.parts), self.width

    @property
    def dtype(self) -> torch.dtype:
        """The type of the entries as they are stored."""
        return self.parts[0][0].dtype

    def __getitem__(self, rows: slice) -> Float[Tensor, "k d"]:
        """Copy some streams' vectors to float64."""
        return self.take(rows, 0, self.width)

    def take(self, rows: slice, begin: int, end: int) -> Float[Tensor, "k _d"]:
        """Copy the columns from `begin` to `end` of some streams' vectors to float64."""
        first, last, _ = rows.indices(self.shape[0])
        copies = []
        for matrix, index in self.parts:
            part = matrix[as_slice(index[max(0, first) : max(0, last)]), begin:end].to(torch.float64, copy=True)
            memory.release_pages(matrix)
            first, last, missing = first - len(index), last - len(index), end - begin - part.shape[1]
            copies.append(torch.nn.functional.pad(part, (0, missing)) if missing else part)
        return torch.cat(copies) if len(copies) > 1 else copies[0]


def as_slice(index: Int[Tensor, " k"]) -> slice | Int[Tensor, " k"]:
    """Turn consecutive ascending indices into a slice, because a slice selects without a copy."""
    if len(index) and int(index[-1]) - int(index[0]) + 1 == len(index):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def all_rows(matrix: Float[Tensor, "K d"]) -> Rows:
    """All rows of a matrix."""
    return Rows(((matrix, torch.arange(len(matrix))),), matrix.shape[1])
