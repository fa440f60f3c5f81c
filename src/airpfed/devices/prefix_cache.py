"""The frozen-prefix cache: what the layers below the lowest adapter make of a sample, computed once and kept.

In memory up to a limit, and in a temporary file beyond it; where a value lies does not change it.
"""

import tempfile
import weakref
from collections.abc import Sequence
from threading import Lock
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.model.backbone import Backbone, FastPaths
from airpfed.model.buckets import batched
from airpfed.model.forward import prefix_output
from airpfed.model.tokens import Encoded, collate

PAGE = 4
"""Samples computed together: neighbours in length, so that little padding is computed.

A page is fixed by its shelf alone, so a kept value never depends on the batch that asked for it. Small, because all of
it is computed for the first of its samples: a first round waits for a batch's pages only. Larger ones gain nothing on
a CPU."""

Precision = Literal["float32", "bfloat16"]


class Overflow:
    """Tensors behind each other in a temporary file, which goes with the process."""

    def __init__(self) -> None:
        """A file without a name: nothing is left behind, whatever happens."""
        self._file = tempfile.TemporaryFile(prefix="airpfed-")  # noqa: SIM115 - lives as long as its owner
        weakref.finalize(self, self._file.close)
        self._place = 0
        self._reading = Lock()

    def put(self, value: Tensor) -> tuple[int, torch.Size]:
        """Write a value; returns where it is."""
        data = value.cpu().contiguous().view(torch.uint8).numpy()
        place = self._place
        self._file.seek(place)
        self._file.write(data.tobytes())
        self._place += data.nbytes
        return place, value.shape

    def get(self, where: tuple[int, torch.Size], dtype: torch.dtype) -> Tensor:
        """Read a value back, bit for bit."""
        place, shape = where
        with self._reading:
            self._file.seek(place)
            data = bytearray(self._file.read(shape.numel() * dtype.itemsize))
        return torch.frombuffer(data, dtype=dtype).reshape(shape)


class PrefixCache:
    """Hidden states of samples on named shelves (a device's data, a test split), by page.

    Off (every call returns None) where the lowest layer has an adapter, or the backbone keeps nothing.
    """

    def __init__(self, backbone: Backbone, memory_gb: float = float("inf"), precision: Precision = "float32") -> None:
        """An empty cache for one backbone.

        memory_gb: held in memory, further values in a temporary file. precision: what values are kept as; bfloat16
        halves the space and rounds each entry by at most 2^-8 of itself, float32 is what the model computes.
        """
        self._backbone = backbone
        self._memory_gb = memory_gb
        self._room = memory_gb * 1e9
        self._precision = precision
        self._kept: dict[tuple[str, int], Tensor] = {}
        self._written: dict[tuple[str, int], tuple[int, torch.Size]] = {}
        self._overflow: Overflow | None = None

    def fresh(self) -> "PrefixCache":
        """An empty cache of the same kind."""
        return PrefixCache(self._backbone, self._memory_gb, self._precision)

    def computed_on(self, paths: FastPaths) -> Backbone:
        """The backbone, computing in these ways from now on; what was kept in other ways is let go."""
        if paths != self._backbone.paths:
            other = PrefixCache(self._backbone.on(paths), self._memory_gb, self._precision)
            vars(self).update(vars(other))
        return self._backbone

    def rows(self, shelf: str, samples: Sequence[Encoded], indices: Sequence[int]) -> list[Float[Tensor, "_ H"]] | None:
        """Hidden states (tokens, H) of samples[i] for i in indices; pages that are missing are computed."""
        self.fill(shelf, samples, indices)
        return [self._get((shelf, index)) for index in indices] if self._backbone.kept_layers else None

    def fill(self, shelf: str, samples: Sequence[Encoded], indices: Sequence[int]) -> None:
        """Compute the pages of samples[i] for i in indices that are missing; rows may then be read in any thread."""
        if not self._backbone.kept_layers:
            return
        missing = {index for index in indices if not self._has((shelf, index))}
        if missing:
            for page in pages(samples, PAGE if self._backbone.paths.batching else 1):
                if missing.intersection(page):
                    self._compute(shelf, samples, page)

    def _compute(self, shelf: str, samples: Sequence[Encoded], page: Sequence[int]) -> None:
        batch = collate([samples[i] for i in page], self._backbone.tokenizer.pad_token_id, self._backbone.paths.left)
        hidden = prefix_output(self._backbone, batch.ids, batch.mask)
        for index, row, keep in zip(page, hidden, batch.mask.to(hidden.device), strict=True):
            self._put((shelf, index), row[keep].to(self._held))

    @property
    def _computed(self) -> torch.dtype:
        """What the model computes in."""
        found: torch.dtype = next(iter(self._backbone.model.parameters())).dtype
        return found

    @property
    def _held(self) -> torch.dtype:
        return torch.bfloat16 if self._precision == "bfloat16" else self._computed

    def _has(self, key: tuple[str, int]) -> bool:
        return key in self._kept or key in self._written

    def _put(self, key: tuple[str, int], value: Tensor) -> None:
        if value.nbytes <= self._room:
            self._kept[key] = value.clone()
            self._room -= value.nbytes
            return
        self._overflow = self._overflow or Overflow()
        self._written[key] = self._overflow.put(value)

    def _get(self, key: tuple[str, int]) -> Tensor:
        if key in self._kept:
            return self._kept[key].to(self._computed)
        assert self._overflow is not None
        value = self._overflow.get(self._written[key], self._held)
        return value.to(self._backbone.device, self._computed)


def pages(samples: Sequence[Encoded], size: int = PAGE) -> list[list[int]]:
    """Indices of a shelf's samples, `size` at a time, in the order of their lengths."""
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].ids))
    return [list(page) for page in batched(order, size)]


def stack(rows: Sequence[Float[Tensor, "_ H"]], left: bool) -> Float[Tensor, "rows t H"]:
    """Hidden states of several samples, padded with zeros as `collate` pads their ids."""
    width = max(len(row) for row in rows)
    out = rows[0].new_zeros(len(rows), width, rows[0].shape[1])
    for index, row in enumerate(rows):
        out[index, slice(width - len(row), width) if left else slice(0, len(row))] = row
    return out
