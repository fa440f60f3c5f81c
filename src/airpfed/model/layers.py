"""Layers of the adapted model: linear layers with the adapters of many devices, task heads, skippable layers."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def product(x: Float[Tensor, "T n"], w: Float[Tensor, "K n m"], counts: list[int] | None) -> Float[Tensor, "T m"]:
    """The product of each device's rows with its own matrix.

    counts: rows of each device; None where all devices have equally many.
    """
    if counts is None:
        return torch.bmm(x.reshape(len(w), -1, x.shape[1]), w).flatten(0, 1)
    return torch.cat([rows @ matrix for rows, matrix in zip(torch.split(x, counts), w.unbind(), strict=True)])


def add_product(
    y: Float[Tensor, "T m"], x: Float[Tensor, "T n"], w: Float[Tensor, "K n m"], counts: list[int] | None
) -> Float[Tensor, "T m"]:
    """Add `product` to y in place."""
    if counts is None:
        y.view(len(w), -1, y.shape[1]).baddbmm_(x.reshape(len(w), -1, x.shape[1]), w)
    else:
        for end, rows, matrix in zip(accumulate(counts), torch.split(x, counts), w.unbind(), strict=True):
            # `narrow`, because autograd does not allow in-place changes of the parts that `split` returns
            y.narrow(0, end - len(rows), len(rows)).addmm_(rows, matrix)
    return y


def cross_product(
    x: Float[Tensor, "T n"], y: Float[Tensor, "T m"], devices: int, counts: list[int] | None
) -> Float[Tensor, "K n m"]:
    """x_k^T y_k over the rows of each device k; fastest where n is smaller than m."""
    if counts is None:
        return torch.bmm(x.reshape(devices, -1, x.shape[1]).mT, y.reshape(devices, -1, y.shape[1]))
    return torch.stack([a.T @ b for a, b in zip(torch.split(x, counts), torch.split(y, counts), strict=True)])


class LowRank(torch.autograd.Function):
    """y_k = W x_k + bias + U_k^T A_k x_k for the rows of device k, with W and bias frozen.

    One function, because it then adds in place and orders every product for few columns. It has second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, up: Tensor, counts: list[int] | None
    ) -> Tensor:
        """x (T, Q), weight (L, Q), a (K, R, Q), up (K, R, L) -> (T, L). counts: rows of each device, or None."""
        ctx.save_for_backward(x, weight, a, up)
        ctx.counts, ctx.low = counts, product(x, a.mT, counts)
        return add_product(nn.functional.linear(x, weight, bias), ctx.low, up, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, a and up; a gradient that is not needed is not computed."""
        x, weight, a, up = ctx.saved_tensors
        g, counts = gradients[0].contiguous(), ctx.counts
        low = product(x, a.mT, counts) if torch.is_grad_enabled() else ctx.low  # the saved tensor has no derivative
        needs_x, _, _, needs_a, needs_up, _ = ctx.needs_input_grad
        back = product(g, up.mT, counts) if needs_x or needs_a else None
        grad_x = add_product(g @ weight, back, a, counts) if needs_x and back is not None else None
        grad_a = cross_product(back, x, len(a), counts) if needs_a and back is not None else None
        grad_up = cross_product(low, g, len(a), counts) if needs_up else None
        return grad_x, None, None, grad_a, grad_up, None


class StackedLoRA(nn.Module):
    """A frozen linear layer plus the adapters of K devices: W0 x + c B_k A_k x for the rows of device k.

    Rows come device by device. All devices have equally many, x is (K*b, ..., Q), unless `counts` gives each device's
    number of flattened rows. `a` (K, R, Q) and `b` (K, L, R) hold all blocks side by side; the layer is its base while
    they are None. With B = 0 the output equals the base's exactly. `added` (L, Q) is what a server has added to W0, or
    None. `fused`: compute with `LowRank`, for bases that are a plain matrix product.
    """

    def __init__(self, base: nn.Linear, scale: float) -> None:
        """Wrap `base`; `scale` is c = alpha / (R_s + R_p)."""
        super().__init__()
        self.base = base
        self.scale = scale
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        self.added: Tensor | None = None
        self.counts: Sequence[int] | None = None
        self.fused = False

    def __getattr__(self, name: str) -> Any:
        """The base's attributes, which models read from their linear layers (weight, bias, in_features)."""
        return base_attribute(self, name)

    def forward(self, x: Float[Tensor, "rows *t Q"]) -> Float[Tensor, "rows *t L"]:
        """W0 x + c B A x, each row with its own device's factors."""
        if self.a is None or self.b is None:
            base: Tensor = self.base(x)
            return base
        counts = list(self.counts) if self.counts is not None and len(set(self.counts)) > 1 else None
        if not self.fused:  # operation by operation as in PEFT: the base, then A, then B
            y: Tensor = self.base(x)
            low = product(product(x.reshape(-1, x.shape[-1]), self.a.mT, counts), self.b.mT, counts)
            y = y + self.scale * low.reshape(y.shape)
        else:
            weight, bias, device = self.base.weight, self.base.bias, x.device.type
            up = (self.scale * self.b).mT.contiguous()
            tensors = x.reshape(-1, x.shape[-1]), weight, bias, self.a, up
            if torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
                tensors = tuple(t if t is None else t.to(dtype) for t in tensors)  # type: ignore[assignment]
            out: Tensor = LowRank.apply(*tensors, counts)  # type: ignore[no-untyped-call]
            y = out.reshape(*x.shape[:-1], -1)
        return y if self.added is None else y + nn.functional.linear(x, self.added)


def base_attribute(wrapper: nn.Module, name: str) -> Any:
    """An attribute of a module that wraps another module as its `base`: the wrapper's, else the base's."""
    try:
        return nn.Module.__getattr__(wrapper, name)
    except AttributeError:
        return getattr(nn.Module.__getattr__(wrapper, "base"), name)


ROW_MULTIPLE = 16
"""The gradient at an output layer is padded to a multiple of this number of rows.

MKL sums the remaining rows entry by entry. Over a vocabulary of 49,152 this leaves a relative error of 9e-5 in float32
gradients instead of 3e-6 (SmolLM2-135M, two cores)."""


class PaddedLinear(torch.autograd.Function):
    """y = W x + bias, both frozen; the gradient of x is computed with a multiple of `ROW_MULTIPLE` rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., H), weight (V, H) -> (..., V)."""
        ctx.save_for_backward(weight)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of x."""
        (weight,), g = ctx.saved_tensors, gradients[0]
        rows = g.reshape(-1, g.shape[-1])
        missing = -len(rows) % ROW_MULTIPLE
        padded = nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
        return (padded @ weight)[: len(rows)].reshape(*g.shape[:-1], -1), None, None


class OutputLayer(nn.Module):
    """A causal LM's layer from hidden states to the vocabulary, with exact gradients for any number of rows."""

    def __init__(self, base: nn.Linear) -> None:
        """Wrap `base`."""
        super().__init__()
        self.base = base

    def __getattr__(self, name: str) -> Any:
        """The base's attributes, which models read from their output layer (weight)."""
        return base_attribute(self, name)

    def forward(self, x: Float[Tensor, "*t H"]) -> Float[Tensor, "*t V"]:
        """W x + bias."""
        if torch.is_autocast_enabled(x.device.type) or not x.requires_grad:
            y: Tensor = self.base(x)
            return y
        out: Tensor = PaddedLinear.apply(x, self.base.weight, self.base.bias)  # type: ignore[no-untyped-call]
        return out


class StackedHead(nn.Module):
    """A trained linear layer with one weight per device: W_k x + bias_k for the rows of device k.

    `weight` (K, C, H + 1) holds the bias as its last column ((K, C, H) without bias); the layer is its base, the head
    at the start of training, while it is None. The change of the weight is applied on top of the base's output, so an
    untrained head gives exactly the base's output.
    """

    def __init__(self, base: nn.Linear) -> None:
        """Wrap `base`."""
        super().__init__()
        self.base = base
        self.weight: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """The base's attributes, which models read from their linear layers (bias, in_features)."""
        return base_attribute(self, name)

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
        update = self.weight - self.start
        rows = x.reshape(self.weight.shape[0], -1, x.shape[-1])
        change = torch.bmm(rows, update[:, :, : x.shape[-1]].transpose(1, 2))
        if self.base.bias is not None:
            change = change + update[:, None, :, -1]
        return y + change.reshape(y.shape)


class SkippableLayer(nn.Module):
    """A transformer layer below the lowest adapter, whose output can come from the prefix cache.

    While `skip` is set, the layer returns its input unchanged; while `value` is set, it returns `value` instead. Both
    have the form that the layer itself returned last: a tensor, or a tuple that begins with a tensor.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Wrap `layer`."""
        super().__init__()
        self.base = layer
        self.skip = False
        self.value: Tensor | None = None
        self._num_empty: int | None = None  # empty entries behind the hidden states of a tuple; None for a tensor
        self._only_hidden = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output, its input, or `value`. Raises ValueError where the layer returns further tensors."""
        if self.value is None and not self.skip:
            out = self.base(*args, **kwargs)
            self._num_empty = len(out) - 1 if isinstance(out, tuple) else None
            self._only_hidden = not isinstance(out, tuple) or all(item is None for item in out[1:])
            return out
        if not self._only_hidden:
            raise ValueError("a layer returns more than its hidden states")
        hidden = self.value if self.value is not None else args[0] if args else next(iter(kwargs.values()))
        return hidden if self._num_empty is None else (hidden, *[None] * self._num_empty)

    def __getattr__(self, name: str) -> Any:
        """The wrapped layer's attributes, which models read from their layers (an attention type, for example)."""
        return base_attribute(self, name)
