"""The frozen-prefix cache: outputs of the layers below the lowest adapter, computed once for each sample.

Values lie in memory up to a limit and in a temporary file beyond it. The place does not change a value.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.core.memory import TensorFile
from airpfed.model.backbone import Backbone, FastPaths
from airpfed.model.forward import prefix_output
from airpfed.model.tokens import Encoding, batches_by_length, collate

PAGE = 4
"""Samples computed together: neighbours in length, so that padding is short.

A page depends on its samples alone, so a cached value never depends on the batch that needed it first. A page is small
because all of it is computed for the first of its samples. Larger pages save no time on a CPU."""

Precision = Literal["float32", "bfloat16"]


class PrefixCache:
    """Hidden states of samples, by cache key (a device's data, a test split) and index.

    The cache is off (every call returns None) where the lowest layer has an adapter or the backbone's fast paths
    exclude it.
    """

    def __init__(self, backbone: Backbone, memory_gb: float = float("inf"), precision: Precision = "float32") -> None:
        """Make an empty cache for one backbone.

        memory_gb: limit of values in memory; further values go to a temporary file. precision: type of stored values;
        bfloat16 halves the space and rounds each entry by at most 2^-8 of itself, float32 is exact.
        """
        self._backbone = backbone
        self._memory_gb = memory_gb
        self._free_bytes = memory_gb * 1e9
        self._precision = precision
        self._in_memory: dict[tuple[str, int], Tensor] = {}
        self._in_file: dict[tuple[str, int], tuple[int, torch.Size]] = {}
        self._file: TensorFile | None = None
        self._dtype = torch.float32  # of the hidden states, as the model gives them

    def fresh(self) -> "PrefixCache":
        """An empty cache with the same backbone and options."""
        return PrefixCache(self._backbone, self._memory_gb, self._precision)

    def use_paths(self, paths: FastPaths) -> Backbone:
        """Compute with these fast paths from now on; returns the backbone. Values of other paths are dropped."""
        if paths != self._backbone.paths:
            other = PrefixCache(self._backbone.with_paths(paths), self._memory_gb, self._precision)
            vars(self).update(vars(other))
        return self._backbone

    def use_tolerance(self, tolerance: float) -> None:
        """Set what counts as rounding on this base (`Backbone.tolerance`)."""
        self._backbone = replace(self._backbone, tolerance=tolerance)

    def rows(
        self, cache_key: str, samples: Sequence[Encoding], indices: Sequence[int]
    ) -> list[Float[Tensor, "_ H"]] | None:
        """Hidden states (tokens, H) of samples[i] for i in indices; missing pages are computed."""
        self.fill(cache_key, samples, indices)
        return [self._get((cache_key, index)) for index in indices] if self._backbone.cached_layers else None

    def fill(self, cache_key: str, samples: Sequence[Encoding], indices: Sequence[int]) -> None:
        """Compute the missing pages of samples[i] for i in indices. Any thread may read these rows afterwards."""
        if not self._backbone.cached_layers:
            return
        missing = {i for i in indices if (cache_key, i) not in self._in_memory and (cache_key, i) not in self._in_file}
        if missing:
            for page in batches_by_length(samples, PAGE if self._backbone.paths.batching else 1):
                if missing.intersection(page):
                    self._compute(cache_key, samples, page)

    def _compute(self, cache_key: str, samples: Sequence[Encoding], page: Sequence[int]) -> None:
        tokenizer, paths = self._backbone.tokenizer, self._backbone.paths
        batch = collate([samples[i] for i in page], tokenizer.pad_token_id, paths.pad_left)
        hidden = prefix_output(self._backbone, batch.ids, batch.mask)
        self._dtype = hidden.dtype
        for index, row, real in zip(page, hidden, batch.mask.to(hidden.device), strict=True):
            self._put((cache_key, index), row[real].to(self._stored_dtype))

    @property
    def _stored_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._precision == "bfloat16" else self._dtype

    def _put(self, key: tuple[str, int], value: Tensor) -> None:
        if value.nbytes <= self._free_bytes:
            self._in_memory[key] = value.clone()
            self._free_bytes -= value.nbytes
            return
        self._file = self._file or TensorFile()
        self._in_file[key] = self._file.put(value)

    def _get(self, key: tuple[str, int]) -> Tensor:
        if key in self._in_memory:
            return self._in_memory[key].to(self._dtype)
        assert self._file is not None
        value = self._file.get(self._in_file[key], self._stored_dtype)
        return value.to(self._backbone.device, self._dtype)


def stack(rows: Sequence[Float[Tensor, "_ H"]], left: bool) -> Float[Tensor, "rows t H"]:
    """Hidden states of several samples, padded with zeros on the side that `collate` pads their ids on."""
    width = max(len(row) for row in rows)
    out = rows[0].new_zeros(len(rows), width, rows[0].shape[1])
    for index, row in enumerate(rows):
        out[index, slice(width - len(row), width) if left else slice(0, len(row))] = row
    return out
