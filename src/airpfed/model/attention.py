"""Attention for samples that lie end to end in one row: each sample reads only itself, in a row of its own.

All other parts of a transformer layer work token by token, so padding is computed only here. It is short, because
samples of similar length share a row width. A common beginning of samples is repeated only here.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from airpfed.model.tokens import PackedBatch, length_buckets

NAME = "airpfed_end_to_end"
"""Name of `attend` in transformers."""

SHORT = 128
"""Largest width with two batched products, which were faster there (AVX2, two cores). Wider rows use torch's fused
attention, which needs less memory."""


@dataclass(frozen=True)
class RowPositions:
    """Positions of T tokens when each sample has a row of its own, padded at its end; P positions in all.

    groups: (rows, width) of samples of similar length, group by group. token: token at each position (any token where
    a position is empty). empty: the empty positions. first: first position of each token. repeats: the other positions
    of tokens that several samples share. zeroed: `empty` and `repeats`.
    """

    groups: tuple[tuple[int, int], ...]
    token: Int[Tensor, " P"]
    empty: Int[Tensor, " _"]
    first: Int[Tensor, " T"]
    repeats: Int[Tensor, " _"]
    zeroed: Int[Tensor, " _"]

    @property
    def is_identity(self) -> bool:
        """Whether the tokens lie at their positions already."""
        return len(self.groups) == 1 and not len(self.zeroed)


def price(rows: int, width: int) -> int:
    """Relative cost of attention in so many rows: products and copies, and the cost of a group by itself."""
    return rows * width * (width + 96) + 4096


def row_positions(lengths: Sequence[int], token_of: Int[Tensor, " whole"], device: torch.device) -> RowPositions:
    """Positions for samples of these lengths. token_of: token of each sample's tokens, sample by sample."""
    counts = sorted(Counter(lengths).items())
    cuts = length_buckets([length for length, _ in counts], [count for _, count in counts], price)
    groups = tuple((sum(count for _, count in counts[a:b]), counts[b - 1][0]) for a, b in cuts)
    sizes = torch.tensor(lengths)
    order = sizes.argsort(stable=True)
    sources, occupied_parts = [], []
    for samples, (_, width) in zip(torch.split(order, [rows for rows, _ in groups]), groups, strict=True):
        column = torch.arange(width)
        sources.append((sizes.cumsum(0) - sizes)[samples, None] + column)
        occupied_parts.append(column < sizes[samples, None])
    source, occupied = (torch.cat([part.flatten() for part in parts]) for parts in (sources, occupied_parts))
    token = token_of[source.clamp(max=len(token_of) - 1)]
    filled = occupied.nonzero()[:, 0]
    first = torch.full((int(token_of.max()) + 1,), len(source)).scatter_reduce_(0, token[filled], filled, "amin")
    repeats = filled[first[token[filled]] != filled]
    empty = (~occupied).nonzero()[:, 0]
    tensors = token, empty, first, repeats, torch.cat([empty, repeats])
    return RowPositions(groups, *(tensor.to(device) for tensor in tensors))


def copy_to_all(x: Float[Tensor, "T ..."], positions: RowPositions) -> Float[Tensor, "P ..."]:
    """Copy tokens to all their positions; empty positions are 0."""
    return x.index_select(0, positions.token).index_fill_(0, positions.empty, 0.0)


def sum_over_all(x: Float[Tensor, "P ..."], positions: RowPositions) -> Float[Tensor, "T ..."]:
    """Sum over all positions of each token; the adjoint of `copy_to_all`."""
    repeats = positions.repeats
    return take_first(x, positions).index_add_(0, positions.token[repeats], x.index_select(0, repeats))


def take_first(x: Float[Tensor, "P ..."], positions: RowPositions) -> Float[Tensor, "T ..."]:
    """Take the first position of each token."""
    return x.index_select(0, positions.first)


def copy_to_first(x: Float[Tensor, "T ..."], positions: RowPositions) -> Float[Tensor, "P ..."]:
    """Copy tokens to their first positions; all other positions are 0. The adjoint of `take_first`."""
    return x.index_select(0, positions.token).index_fill_(0, positions.zeroed, 0.0)


ADJOINT = {
    copy_to_all: sum_over_all,
    sum_over_all: copy_to_all,
    take_first: copy_to_first,
    copy_to_first: take_first,
}

Rearrangement = Callable[[Tensor, RowPositions], Tensor]


class Rearrange(torch.autograd.Function):
    """One of the four rearrangements, which copy rows; its derivative is its adjoint."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: RowPositions, rearrangement: Rearrangement) -> Tensor:
        """Apply the rearrangement."""
        ctx.positions, ctx.rearrangement = positions, rearrangement
        return rearrangement(x, positions)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Apply its adjoint."""
        return rearrange(gradients[0], ctx.positions, ADJOINT[ctx.rearrangement]), None, None


def rearrange(x: Tensor, positions: RowPositions, rearrangement: Rearrangement) -> Tensor:
    """A rearrangement with a derivative; x itself where the tokens lie at their positions already."""
    result: Tensor = (
        x if positions.is_identity else Rearrange.apply(x, positions, rearrangement)  # type: ignore[no-untyped-call]
    )
    return result


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 heads T h"],
    key: Float[Tensor, "1 groups T h"],
    value: Float[Tensor, "1 groups T h"],
    attention_mask: Tensor | None,
    *,
    row_positions: RowPositions,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_options: Any,
) -> tuple[Float[Tensor, "1 T heads h"], None]:
    """Causal attention within each sample, with the signature of transformers' attention functions.

    sliding_window: number of tokens that each token reads, itself included.
    """
    sizes = [rows * width for rows, width in row_positions.groups]
    parts = (
        torch.split(rearrange(x[0].transpose(0, 1), row_positions, copy_to_all), sizes) for x in (query, key, value)
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for (rows, width), *group in zip(row_positions.groups, *parts, strict=True):
        q, k, v = (x.reshape(rows, width, *x.shape[1:]).transpose(1, 2) for x in group)
        out = attend_rows(q, k, v, scale, causal_mask(width, sliding_window, query.device))
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return rearrange(torch.cat(outputs), row_positions, take_first)[None], None


def causal_mask(width: int, window: int | None, device: torch.device) -> Tensor:
    """Whether a token (row) reads another token (column): itself and the tokens before it, `window` in all."""
    distance = torch.arange(width, device=device)[:, None] - torch.arange(width, device=device)
    return (distance >= 0) & (distance < (window or width))


def attend_rows(
    query: Float[Tensor, "rows heads t h"],
    key: Float[Tensor, "rows groups t h"],
    value: Float[Tensor, "rows groups t h"],
    scale: float,
    mask: Tensor,
) -> Float[Tensor, "rows heads t h"]:
    """softmax(scale q k^T) v where the mask is True; heads of a group share keys and values."""
    rows, groups, width, size = key.shape
    if width > SHORT:
        return scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
    scaled_query = (scale * query).reshape(rows * groups, -1, size)
    scores = torch.bmm(scaled_query, key.reshape(-1, width, size).mT).view(rows, -1, width, width)
    shares = scores.masked_fill(~mask, -torch.inf).softmax(-1).view(rows * groups, -1, width)
    return torch.bmm(shares, value.reshape(-1, width, size)).view(query.shape)


@contextmanager
def separate_samples(model: Any, batch: PackedBatch, device: torch.device) -> Iterator[dict[str, Any]]:
    """The model with `attend` for a packed batch; yields further keyword arguments of its forward pass."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    previous = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield {"row_positions": row_positions(batch.lengths, batch.token_of, device)}
    finally:
        model.set_attn_implementation(previous)
