"""Attention of samples that lie end to end in one row: each reads itself only, in a row of its own.

Everything else in a transformer layer works token by token, so only here is padding computed, and little of it: samples
of like length have rows of one width. Only here, too, is what samples begin with alike computed once for each.
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

from airpfed.model.buckets import buckets
from airpfed.model.tokens import Packed

NAME = "airpfed_end_to_end"
"""Under which transformers knows `attend`."""

SHORT = 128
"""Up to this width two batched products were faster (AVX2, two cores); beyond, torch's fused attention saves memory."""


@dataclass(frozen=True)
class Places:
    """Where T tokens are when each sample has a row of its own, filled up at its end.

    groups: (rows, width) of samples of like length, group by group. token: of each of the P places (anything where one
    is empty). empty: those places. place: of each token, its first. again: the other places of tokens that samples
    share; silent: these and the empty ones.
    """

    groups: tuple[tuple[int, int], ...]
    token: Int[Tensor, " P"]
    empty: Int[Tensor, " _"]
    place: Int[Tensor, " T"]
    again: Int[Tensor, " _"]
    silent: Int[Tensor, " _"]

    @property
    def as_they_are(self) -> bool:
        """Whether tokens are in their places already."""
        return len(self.groups) == 1 and not len(self.silent)


def price(rows: int, width: int) -> int:
    """Of attention in so many rows: products and copies, and what a group costs by itself; in proportion."""
    return rows * width * (width + 96) + 4096


def places(lengths: Sequence[int], shared: Int[Tensor, " whole"], device: torch.device) -> Places:
    """For samples of these lengths, one behind the other; shared: which of the T tokens each of theirs is."""
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
    token_at = shared[tokens.clamp(max=len(shared) - 1)]
    full = holds.nonzero()[:, 0]
    place = torch.full((int(shared.max()) + 1,), len(tokens)).scatter_reduce_(0, token_at[full], full, "amin")
    again = full[place[token_at[full]] != full]
    empty = (~holds).nonzero()[:, 0]
    parts = token_at, empty, place, again, torch.cat([empty, again])
    return Places(groups, *(part.to(device) for part in parts))


def spread(x: Float[Tensor, "T ..."], where: Places) -> Float[Tensor, "P ..."]:
    """Tokens to all their places, zeros where these are empty."""
    return x.index_select(0, where.token).index_fill_(0, where.empty, 0.0)


def collect(x: Float[Tensor, "P ..."], where: Places) -> Float[Tensor, "T ..."]:
    """The sum over a token's places."""
    return gather(x, where).index_add_(0, where.token[where.again], x.index_select(0, where.again))


def gather(x: Float[Tensor, "P ..."], where: Places) -> Float[Tensor, "T ..."]:
    """What is in a token's first place."""
    return x.index_select(0, where.place)


def put(x: Float[Tensor, "T ..."], where: Places) -> Float[Tensor, "P ..."]:
    """Tokens to their first places, zeros elsewhere."""
    return x.index_select(0, where.token).index_fill_(0, where.silent, 0.0)


ADJOINT = {spread: collect, collect: spread, gather: put, put: gather}


class Move(torch.autograd.Function):
    """One of the above; the derivative is its adjoint, copies of rows like itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Places, way: Callable[[Tensor, Places], Tensor]) -> Tensor:
        """The way."""
        ctx.where, ctx.way = where, way
        return way(x, where)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Its adjoint."""
        return move(gradients[0], ctx.where, ADJOINT[ctx.way]), None, None


def move(x: Tensor, where: Places, way: Callable[[Tensor, Places], Tensor]) -> Tensor:
    """A way with a derivative; nothing is done where tokens are in their places."""
    found: Tensor = x if where.as_they_are else Move.apply(x, where, way)  # type: ignore[no-untyped-call]
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
    parts = (torch.split(move(one[0].transpose(0, 1), where, spread), sizes) for one in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = []
    for (rows, width), *three in zip(where.groups, *parts, strict=True):
        q, k, v = (x.reshape(rows, width, *x.shape[1:]).transpose(1, 2) for x in three)
        out = rowwise(q, k, v, scale, seen(width, sliding_window, query.device))
        found.append(out.transpose(1, 2).flatten(0, 1))
    return move(torch.cat(found), where, gather)[None], None


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
def each_alone(model: Any, packed: Packed, device: torch.device) -> Iterator[dict[str, Any]]:
    """The model with `attend` for these samples; yields what its forward pass has to be told."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield {"where": places(packed.lengths, packed.token, device)}
    finally:
        model.set_attn_implementation(before)
