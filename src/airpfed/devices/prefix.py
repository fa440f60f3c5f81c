"""The frozen-prefix cache: what the layers below the lowest adapter make of a sample, computed once and kept."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from airpfed.model.backbone import Backbone, prefix_output
from airpfed.model.encode import Encoded, collate

PAGE = 16
"""Samples computed together: neighbours in length, so that little padding is computed.

A page is fixed by its shelf alone, so a kept value never depends on the batch that asked for it."""


class PrefixCache:
    """Hidden states of samples on named shelves (a device's data, a test split), by page.

    Off (every call returns None) where the lowest layer has an adapter.
    """

    def __init__(self, backbone: Backbone) -> None:
        """An empty cache for one backbone."""
        self._backbone = backbone
        self._kept: dict[tuple[str, int], Tensor] = {}

    def rows(self, shelf: str, samples: Sequence[Encoded], indices: Sequence[int]) -> list[Float[Tensor, "_ H"]] | None:
        """Hidden states (tokens, H) of samples[i] for i in indices; pages that are missing are computed."""
        if not self._backbone.prefix:
            return None
        missing = {index for index in indices if (shelf, index) not in self._kept}
        if missing:
            for page in pages(samples):
                if missing.intersection(page):
                    self._compute(shelf, samples, page)
        return [self._kept[shelf, index] for index in indices]

    def _compute(self, shelf: str, samples: Sequence[Encoded], page: Sequence[int]) -> None:
        batch = collate([samples[i] for i in page], self._backbone.tokenizer.pad_token_id, self._backbone.causal)
        hidden = prefix_output(self._backbone, batch.ids, batch.mask)
        for index, row, keep in zip(page, hidden, batch.mask.to(hidden.device), strict=True):
            self._kept[shelf, index] = row[keep].clone()


def pages(samples: Sequence[Encoded]) -> list[list[int]]:
    """Indices of a shelf's samples, PAGE at a time, in the order of their lengths."""
    order = sorted(range(len(samples)), key=lambda index: len(samples[index].ids))
    return [order[start : start + PAGE] for start in range(0, len(order), PAGE)]


def stack(rows: Sequence[Float[Tensor, "_ H"]], left: bool) -> Float[Tensor, "rows t H"]:
    """Hidden states of several samples, padded with zeros as `collate` pads their ids."""
    width = max(len(row) for row in rows)
    out = rows[0].new_zeros(len(rows), width, rows[0].shape[1])
    for index, row in enumerate(rows):
        out[index, slice(width - len(row), width) if left else slice(0, len(row))] = row
    return out
