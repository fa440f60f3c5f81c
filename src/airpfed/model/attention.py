"""Attention of samples that lie end to end in one row: each reads itself only, in a row of its own.

Everything else in a transformer layer works token by token, so only here is padding computed, and little of it: samples
of like length have rows of one width.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from airpfed.model.buckets import buckets

NAME = "airpfed_end_to_end"
"""Under which transformers knows `attend`."""

SHORT = 128
"""Up to this width two batched products were faster (AVX2, two cores); beyond, torch's fused attention saves memory."""


@dataclass(frozen=True)
class Places:
    """Where T tokens are when each sample has a row of its own, filled up at its end.

    groups: (rows, width) of samples of like length, group by group. token: of each of the P places (anything where one
    is empty). empty: those places. place: of each token.
    """

    groups: tuple[tuple[int, int], ...]
    token: Int[Tensor, " P"]
    empty: Int[Tensor, " _"]
    place: Int[Tensor, " T"]

    @property
    def as_they_are(self) -> bool:
        """Whether tokens are in their places already."""
        return len(self.groups) == 1 and not len(self.empty)


def price(rows: int, width: int) -> int:
    """Of attention in so many rows: products and copies, and what a group costs by itself; in proportion."""
    return rows * width * (width + 96) + 4096


def places(lengths: Sequence[int], device: torch.device) -> Places:
    """For samples of these lengths, one behind the other."""
    counts = sorted(Counter(lengths).items())
    cuts = buckets([length for length, _ in counts], [count for _, count in counts], price)
    groups = tuple((sum(count for _, count in counts[a:b]), counts[b - 1][0]) for a, b in cuts)
    sizes = torch.tensor(lengths)
    order = sizes.argsort(stable=True)
    token, held = [], []
    for own, (_, width) in zip(torch.split(order, [rows for rows, _ in groups]), groups, strict=True):
        column = torch.arange(width)
        token.append((sizes.cumsum(0) - sizes)[own, None] + column)
        held.append(column < sizes[own, None])
    tokens, holds = (torch.cat([part.flatten() for part in one]) for one in (token, held))
    place = torch.empty(int(sizes.sum()), dtype=torch.long)
    place[tokens[holds]] = holds.nonzero()[:, 0]
    parts = tokens.clamp(max=len(place) - 1), (~holds).nonzero()[:, 0], place
    return Places(groups, *(part.to(device) for part in parts))


class Spread(torch.autograd.Function):
    """Tokens (T, ...) to places (P, ...), zeros where these are empty; the adjoint of `Gather`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Places) -> Tensor:
        """A copy of rows, so that the backward pass is one too."""
        ctx.where = where
        return x.index_select(0, where.token).index_fill_(0, where.empty, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """What came to each token's place."""
        return gather(gradients[0], ctx.where), None


class Gather(torch.autograd.Function):
    """Places (P, ...) to tokens (T, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Places) -> Tensor:
        """A copy of rows."""
        ctx.where = where
        return x.index_select(0, where.place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """What came to each place, nothing where it is empty."""
        return spread(gradients[0], ctx.where), None


def spread(x: Float[Tensor, "T ..."], where: Places) -> Float[Tensor, "P ..."]:
    """`Spread`."""
    found: Tensor = x if where.as_they_are else Spread.apply(x, where)  # type: ignore[no-untyped-call]
    return found


def gather(x: Float[Tensor, "P ..."], where: Places) -> Float[Tensor, "T ..."]:
    """`Gather`."""
    found: Tensor = x if where.as_they_are else Gather.apply(x, where)  # type: ignore[no-untyped-call]
    return found


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 heads T h"],
    key: Float[Tensor, "1 groups T h"],
    value: Float[Tensor, "1 groups T h"],
    attention_mask: Tensor | None,
    *,
    where: Places,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **given: Any,
) -> tuple[Float[Tensor, "1 T heads h"], None]:
    """Causal attention, in the form that transformers asks for. sliding_window: tokens that each one reads."""
    sizes = [rows * width for rows, width in where.groups]
    parts = (torch.split(spread(one[0].transpose(0, 1), where), sizes) for one in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = []
    for (rows, width), *three in zip(where.groups, *parts, strict=True):
        q, k, v = (x.reshape(rows, width, *x.shape[1:]).transpose(1, 2) for x in three)
        out = rowwise(q, k, v, scale, seen(width, sliding_window, query.device))
        found.append(out.transpose(1, 2).flatten(0, 1))
    return gather(torch.cat(found), where)[None], None


def seen(width: int, window: int | None, device: torch.device) -> Tensor:
    """Whether a token (row) reads another (column): itself and those before it, `window` in all."""
    back = torch.arange(width, device=device)[:, None] - torch.arange(width, device=device)
    return (back >= 0) & (back < (window or width))


def rowwise(
    query: Float[Tensor, "rows heads t h"],
    key: Float[Tensor, "rows groups t h"],
    value: Float[Tensor, "rows groups t h"],
    scale: float,
    mask: Tensor,
) -> Float[Tensor, "rows heads t h"]:
    """softmax(scale q k^T) v where the mask allows it; heads of a group share its keys and values."""
    rows, groups, width, size = key.shape
    if width > SHORT:
        return scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
    together = (scale * query).reshape(rows * groups, -1, size)
    scores = torch.bmm(together, key.reshape(-1, width, size).mT).view(rows, -1, width, width)
    shares = scores.masked_fill(~mask, -torch.inf).softmax(-1).view(rows * groups, -1, width)
    return torch.bmm(shares, value.reshape(-1, width, size)).view(query.shape)


@contextmanager
def each_alone(model: Any, lengths: Sequence[int], device: torch.device) -> Iterator[dict[str, Any]]:
    """The model with `attend` for samples of these lengths; yields what its forward pass has to be told."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield {"where": places(lengths, device)}
    finally:
        model.set_attn_implementation(before)
