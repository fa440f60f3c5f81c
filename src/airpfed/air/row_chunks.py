"""The streams' vectors of a slot, some rows at a time: nothing here holds all of them in float64 at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.core import spill

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
        """Some streams' vectors, a copy in float64."""
        return self.take(rows, 0, self.width)

    def take(self, rows: slice, begin: int, end: int) -> Float[Tensor, "k _d"]:
        """Columns `begin` to `end` of some streams' vectors, a copy in float64."""
        first, last, _ = rows.indices(self.shape[0])
        found = []
        for matrix, index in self.parts:
            part = matrix[together(index[max(0, first) : max(0, last)]), begin:end].to(torch.float64, copy=True)
            spill.release(matrix)
            first, last, missing = first - len(index), last - len(index), end - begin - part.shape[1]
            found.append(torch.nn.functional.pad(part, (0, missing)) if missing else part)
        return torch.cat(found) if len(found) > 1 else found[0]


def together(index: Int[Tensor, " k"]) -> slice | Int[Tensor, " k"]:
    """Ascending indices as a slice where they are consecutive: that selects without a copy."""
    if len(index) and int(index[-1]) - int(index[0]) + 1 == len(index):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index


def rows_of(matrix: Float[Tensor, "K d"]) -> Rows:
    """All rows of a matrix."""
    return Rows(((matrix, torch.arange(len(matrix))),), matrix.shape[1])
