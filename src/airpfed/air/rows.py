"""The streams' vectors of a slot, some rows at a time: nothing here holds all of them in float64 at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed import spill

ENTRIES = 1 << 23
"""Entries of vectors that are worked on at once: 64 MB in float64, about five times that with what lies between."""


def chunks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive rows, as many at a time as hold at most ENTRIES entries."""
    size = max(1, ENTRIES // max(1, columns))
    for first in range(0, rows if columns else 0, size):
        yield slice(first, min(rows, first + size))


@dataclass(frozen=True)
class Rows:
    """Chosen rows of one matrix after another, each filled up with zeros to `width`; a view, nothing is copied.

    parts: (matrix, which of its rows). Matrices may lie in a file (`spill`).
    """

    parts: tuple[tuple[Float[Tensor, "_K _d"], Int[Tensor, " _k"]], ...]
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(streams, entries)."""
        return sum(len(index) for _, index in self.parts), self.width

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries."""
        return self.parts[0][0].dtype

    def __getitem__(self, rows: slice) -> Float[Tensor, "k d"]:
        """A copy of some streams' vectors."""
        return self.take(rows, 0, self.width)

    def take(self, rows: slice, begin: int, end: int) -> Float[Tensor, "k _d"]:
        """A copy of columns `begin` to `end` of some streams' vectors."""
        first, last, _ = rows.indices(self.shape[0])
        found = []
        for matrix, index in self.parts:
            chosen = index[max(0, first) : max(0, last)]
            first, last = first - len(index), last - len(index)
            part = matrix[:, begin:end][chosen]
            spill.release(matrix)
            found.append(torch.nn.functional.pad(part, (0, end - begin - part.shape[1])))
        return torch.cat(found) if len(found) > 1 else found[0]


def rows_of(matrix: Float[Tensor, "K d"]) -> Rows:
    """All rows of a matrix."""
    return Rows(((matrix, torch.arange(len(matrix))),), matrix.shape[1])
