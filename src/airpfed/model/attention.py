"""Attention of samples that lie end to end in one row: each reads itself only, in a row of its own.

Everything else in a transformer layer works token by token, so only here is padding computed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

NAME = "airpfed_end_to_end"
"""Under which transformers knows `attend`."""


@dataclass(frozen=True)
class Places:
    """Where T tokens are when each of n samples has a row of its own, `width` wide, filled up at its end.

    token: of each of the n * width places (anything where one is empty). empty: those places. place: of each token.
    """

    width: int
    token: Int[Tensor, " n_width"]
    empty: Int[Tensor, " _"]
    place: Int[Tensor, " T"]


def places(lengths: Sequence[int], device: torch.device) -> Places:
    """For samples of these lengths, one behind the other."""
    sizes, width = torch.tensor(lengths), max(lengths)
    held = torch.arange(width)[None, :] < sizes[:, None]
    token = ((sizes.cumsum(0) - sizes)[:, None] + torch.arange(width)).clamp(max=int(sizes.sum()) - 1)
    found = (part.to(device) for part in (token.flatten(), *(mark.flatten().nonzero()[:, 0] for mark in (~held, held))))
    return Places(width, *found)


class Spread(torch.autograd.Function):
    """Tokens (T, ...) to places (n * width, ...), zeros where these are empty; the adjoint of `Gather`."""

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
    """Places (n * width, ...) to tokens (T, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Places) -> Tensor:
        """A copy of rows."""
        ctx.where = where
        return x.index_select(0, where.place)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """What came to each place, nothing where it is empty."""
        return spread(gradients[0], ctx.where), None


def spread(x: Float[Tensor, "T ..."], where: Places) -> Float[Tensor, "n_width ..."]:
    """`Spread`."""
    found: Tensor = Spread.apply(x, where)  # type: ignore[no-untyped-call]
    return found


def gather(x: Float[Tensor, "n_width ..."], where: Places) -> Float[Tensor, "T ..."]:
    """`Gather`."""
    found: Tensor = Gather.apply(x, where)  # type: ignore[no-untyped-call]
    return found


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 heads T h"],
    key: Float[Tensor, "1 groups T h"],
    value: Float[Tensor, "1 groups T h"],
    attention_mask: Tensor | None,
    *,
    where: Places,
    sliding_window: int | None = None,
    **given: Any,
) -> tuple[Float[Tensor, "1 T heads h"], None]:
    """Causal attention, in the form that transformers asks for. sliding_window: tokens that each one reads."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows = [
        x.reshape(-1, where.width, *x.shape[1:]).transpose(1, 2)
        for x in (spread(one[0].transpose(0, 1), where) for one in (query, key, value))
    ]
    mask = None
    if sliding_window is not None and sliding_window < where.width:
        at = torch.arange(where.width, device=query.device)
        back = at[:, None] - at
        mask = ((back >= 0) & (back < sliding_window))[None, None]
    out, _ = sdpa_attention_forward(module, *rows, mask, **given)
    return gather(out.flatten(0, 1), where)[None], None


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
