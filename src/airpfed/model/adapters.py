"""Adapter blocks and their scopes, and the linear layers that apply them for many devices at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Scope = Literal["global", "task", "device", "frozen"]
"""Who shares a tensor: summed over all devices, summed over a task's, never sent, or never changed."""

SCOPES: tuple[Scope, ...] = ("global", "task", "device", "frozen")


@dataclass(frozen=True)
class Block:
    """`rank` columns of B and rows of A, with the scope of each factor.

    in_turn: B is sent and moves in odd rounds, A in even ones; the factor that rests does neither.
    """

    rank: int
    a: Scope
    b: Scope
    in_turn: bool = False


METHODS: dict[str, Callable[[int, int], tuple[Block, ...]]] = {
    "airpfed": lambda r_s, r_p: (Block(r_s, "global", "global"), Block(r_p, "task", "task")),
    "fedit": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
    "per_task_fedit": lambda r_s, r_p: (Block(r_s + r_p, "task", "task"),),
    "feddpa": lambda r_s, r_p: (Block(r_s, "global", "global"), Block(r_p, "device", "device")),
    "ffa": lambda r_s, r_p: (Block(r_s + r_p, "frozen", "global"),),
    "fedsa": lambda r_s, r_p: (Block(r_s + r_p, "global", "device"),),
    "rolora": lambda r_s, r_p: (Block(r_s + r_p, "global", "global", in_turn=True),),
    "local": lambda r_s, r_p: (Block(r_s + r_p, "device", "device"),),
    "centralised": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
    "fedex": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
    "flora": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
}
"""Every method is a row: (R_s, R_p) -> blocks. A method of one block takes the total rank R_s + R_p.

The last three are upper bounds without an error, not of the air: one worker a task that holds its devices' data, and
two whose server needs every device's factors (`rounds.merge`).
"""


def blocks_of(method: str, rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """The blocks of a method; blocks of rank 0 are left out."""
    return tuple(block for block in METHODS[method](rank_shared, rank_personal) if block.rank > 0)


def product(x: Float[Tensor, "T n"], w: Float[Tensor, "K n m"], spans: list[int] | None) -> Float[Tensor, "T m"]:
    """Each device's rows times its own matrix. spans: None where all have equally many."""
    if spans is None:
        return torch.bmm(x.reshape(len(w), -1, x.shape[1]), w).flatten(0, 1)
    return torch.cat([own @ matrix for own, matrix in zip(torch.split(x, spans), w.unbind(), strict=True)])


def add_product(
    y: Float[Tensor, "T m"], x: Float[Tensor, "T n"], w: Float[Tensor, "K n m"], spans: list[int] | None
) -> Float[Tensor, "T m"]:
    """`product` added to y in place."""
    if spans is None:
        y.view(len(w), -1, y.shape[1]).baddbmm_(x.reshape(len(w), -1, x.shape[1]), w)
    else:
        for end, own, matrix in zip(accumulate(spans), torch.split(x, spans), w.unbind(), strict=True):
            y.narrow(0, end - len(own), len(own)).addmm_(own, matrix)  # a part that `split` gives may not be written
    return y


def cross(
    x: Float[Tensor, "T n"], y: Float[Tensor, "T m"], devices: int, spans: list[int] | None
) -> Float[Tensor, "K n m"]:
    """x_k^T y_k over each device's rows; fastest where n is the smaller."""
    if spans is None:
        return torch.bmm(x.reshape(devices, -1, x.shape[1]).mT, y.reshape(devices, -1, y.shape[1]))
    return torch.stack([own.T @ other for own, other in zip(torch.split(x, spans), torch.split(y, spans), strict=True)])


class LowRank(torch.autograd.Function):
    """y_k = W x_k + bias + U_k^T A_k x_k for the rows of device k, with W and bias frozen; it has second derivatives.

    As one function it adds in place and has every product in the order that is fastest for few columns.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, up: Tensor, spans: list[int] | None
    ) -> Tensor:
        """x (T, Q), weight (L, Q), a (K, R, Q), up (K, R, L) -> (T, L)."""
        ctx.save_for_backward(x, weight, a, up)
        ctx.spans, ctx.low = spans, product(x, a.mT, spans)
        return add_product(nn.functional.linear(x, weight, bias), ctx.low, up, spans)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, a and up; what x or a do not need is not computed."""
        x, weight, a, up = ctx.saved_tensors
        g, spans = gradients[0].contiguous(), ctx.spans
        low = product(x, a.mT, spans) if torch.is_grad_enabled() else ctx.low  # the kept one has no derivative
        needs_x, _, _, needs_a, needs_up, _ = ctx.needs_input_grad
        back = product(g, up.mT, spans) if needs_x or needs_a else None
        of_x = add_product(g @ weight, back, a, spans) if needs_x and back is not None else None
        of_a = cross(back, x, len(a), spans) if needs_a and back is not None else None
        return of_x, None, None, of_a, cross(low, g, len(a), spans) if needs_up else None, None


class StackedLoRA(nn.Module):
    """A frozen linear layer plus the adapters of K devices: W0 x + c B_k A_k x for the rows of device k.

    Rows come device by device, equally many each: x is (K*b, ..., Q); or, where `spans` is set, `spans[k]` of the
    flattened rows are device k's. `a` (K, R, Q) and `b` (K, L, R) hold all blocks side by side; while they are None the
    layer is its base. With B = 0 the output equals the base's exactly. `added` (L, Q), if there is one, is what a
    server has added to W0. `fused` is whether `LowRank` computes it, for bases that are a plain product.
    """

    def __init__(self, base: nn.Linear, scale: float) -> None:
        """Wrap `base`; `scale` is c = alpha / (R_s + R_p)."""
        super().__init__()
        self.base = base
        self.scale = scale
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        self.added: Tensor | None = None
        self.spans: Sequence[int] | None = None
        self.fused = False

    def __getattr__(self, name: str) -> Any:
        """Attributes that models read off their linear layers (weight, bias, in_features) are the base's."""
        return attribute(self, name)

    def forward(self, x: Float[Tensor, "rows *t Q"]) -> Float[Tensor, "rows *t L"]:
        """W0 x + c B A x, each row with its own device's factors."""
        if self.a is None or self.b is None:
            base: Tensor = self.base(x)
            return base
        if not self.fused:
            return self._by_operations(x, self.a, self.b)
        weight, bias, device = self.base.weight, self.base.bias, x.device.type
        up = (self.scale * self.b).mT.contiguous()
        tensors = x.reshape(-1, x.shape[-1]), weight, bias, self.a, up
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            tensors = tuple(one if one is None else one.to(dtype) for one in tensors)  # type: ignore[assignment]
        spans = list(self.spans) if self.spans is not None and len(set(self.spans)) > 1 else None
        out: Tensor = LowRank.apply(*tensors, spans)  # type: ignore[no-untyped-call]
        y = out.reshape(*x.shape[:-1], -1)
        return y if self.added is None else y + nn.functional.linear(x, self.added)

    def _by_operations(
        self, x: Float[Tensor, "rows *t Q"], a: Float[Tensor, "K R Q"], b: Float[Tensor, "K L R"]
    ) -> Float[Tensor, "rows *t L"]:
        """The same as PEFT computes it: the base as it is, then A, then B, operation by operation."""
        y: Tensor = self.base(x)
        spans = list(self.spans) if self.spans is not None and len(set(self.spans)) > 1 else None
        low = product(product(x.reshape(-1, x.shape[-1]), a.mT, spans), b.mT, spans)
        y = y + self.scale * low.reshape(y.shape)
        return y if self.added is None else y + nn.functional.linear(x, self.added)


def attribute(wrapper: nn.Module, name: str) -> Any:
    """An attribute of a module that wraps another as its `base`: its own, or the base's."""
    try:
        return nn.Module.__getattr__(wrapper, name)
    except AttributeError:
        return getattr(nn.Module.__getattr__(wrapper, "base"), name)


ROWS = 16
"""Rows of the gradient at an output layer come in multiples of this: those that are over MKL adds up entry by entry,
which over a vocabulary of 49,152 leaves gradients 9e-5 off in float32 instead of 3e-6 (SmolLM2-135M, two cores)."""


class FromLogits(torch.autograd.Function):
    """y = W x + bias, both frozen; the gradient of x is a product of whole multiples of `ROWS` rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., H), weight (V, H) -> (..., V)."""
        ctx.save_for_backward(weight)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of x."""
        (weight,), g = ctx.saved_tensors, gradients[0]
        rows = g.reshape(-1, g.shape[-1])
        filled = nn.functional.pad(rows, (0, 0, 0, -len(rows) % ROWS)) if len(rows) % ROWS else rows
        return (filled @ weight)[: len(rows)].reshape(*g.shape[:-1], -1), None, None


class OutputLayer(nn.Module):
    """A causal LM's layer from hidden states to the vocabulary, with exact gradients for any number of rows."""

    def __init__(self, base: nn.Linear) -> None:
        """Wrap `base`."""
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        """Attributes that models read off their output layer (weight) are the base's."""
        return attribute(self, name)

    def forward(self, x: Float[Tensor, "*t H"]) -> Float[Tensor, "*t V"]:
        """W x + bias."""
        if torch.is_autocast_enabled(x.device.type) or not x.requires_grad:
            y: Tensor = self.base(x)
            return y
        out: Tensor = FromLogits.apply(x, self.base.weight, self.base.bias)  # type: ignore[no-untyped-call]
        return out


class StackedHead(nn.Module):
    """A trained linear layer with one weight per device: W_k x + bias_k for the rows of device k.

    `weight` (K, C, H + 1) holds the bias as its last column (K, C, H without bias); while it is None the layer is its
    base, the head the model came with. What moved is added to the base's output, so that a head that has not moved
    gives exactly the base's.
    """

    def __init__(self, base: nn.Linear) -> None:
        """Wrap `base`."""
        super().__init__()
        self.base = base
        self.weight: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """Attributes that models read off their linear layers (bias, in_features) are the base's."""
        return attribute(self, name)

    @property
    def start(self) -> Float[Tensor, "C H"]:
        """Weight and bias of the base as one matrix, the bias its last column."""
        weight, bias = self.base.weight, self.base.bias
        return weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)

    def forward(self, x: Float[Tensor, "rows *t H"]) -> Float[Tensor, "rows *t C"]:
        """W x + bias, each row with its own device's head."""
        y: Tensor = self.base(x)
        if self.weight is None:
            return y
        moved = self.weight - self.start
        rows = x.reshape(self.weight.shape[0], -1, x.shape[-1])
        change = torch.bmm(rows, moved[:, :, : x.shape[-1]].transpose(1, 2))
        if self.base.bias is not None:
            change = change + moved[:, None, :, -1]
        return y + change.reshape(y.shape)
