"""Layers of the adapted model: linear layers with the adapters of many devices, task heads, skippable layers."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D, a linear layer whose weight is stored as (Q, L)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: an nn.Linear, a quantised one among them, or transformers' Conv1D."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(L, Q), outputs and inputs of a linear layer. A quantised weight need not have this shape."""
    if is_transposed(module):
        inputs, outputs = module.weight.shape  # type: ignore[misc]
        return int(outputs), int(inputs)
    linear: Any = module
    return int(linear.out_features), int(linear.in_features)


def plain_matrix(module: nn.Module) -> Float[Tensor, "L Q"] | None:
    """The weight of a linear layer that is one product of float32 (or float64) matrices; None for all others.

    A quantised weight, of whatever library, is a tensor of another type.
    """
    weight: Any = getattr(module, "weight", None)
    if type(weight) not in (Tensor, nn.Parameter) or weight.dtype not in (torch.float32, torch.float64):
        return None
    if isinstance(module, nn.Linear):
        return module.weight
    matrix: Tensor | None = weight.T if is_transposed(module) else None
    return matrix


def weight_norm(module: nn.Module, dtype: torch.dtype, rng: torch.Generator) -> float:
    """The Frobenius norm of a linear layer's weight; of a quantised one an estimate, within some percent.

    dtype: of the layer's inputs. Random: `rng`, for a quantised weight, of which only products are known: the mean of
    ||W x||^2 over 32 standard normal x.
    """
    weight: Any = module.weight
    if type(weight) is nn.Parameter and weight.is_floating_point():
        norm: float = weight.detach().float().norm().item()
        return norm
    x = torch.randn(32, linear_shape(module)[1], generator=rng).to(weight.device, dtype)
    with torch.no_grad():
        product = module(x) - module(torch.zeros_like(x[:1]))
    norm = float(product.float().norm())
    return norm / math.sqrt(len(x))


def drop_entries(x: Float[Tensor, "*t Q"], rate: float, rng: torch.Generator) -> Float[Tensor, "*t Q"]:
    """Dropout: each entry is 0 with probability `rate`, else divided by 1 - rate. Random: `rng`, on the CPU."""
    kept = torch.rand(x.shape, generator=rng) >= rate
    return x * (kept.to(x) / (1 - rate))


def contiguous_if_narrow(x: Float[Tensor, "*t Q"]) -> Float[Tensor, "*t Q"]:
    """The input of a frozen layer, copied where it is a slice of numbers of 16 bits.

    torch (2.13, CPU with AVX-512 BF16) multiplies such a slice by slow code: the last positions of 6 texts times an
    output layer of 128,256 x 2048 in bfloat16 took 95 s and 3 GB, and 0.1 s after a copy.
    """
    return x.contiguous() if x.dtype in (torch.bfloat16, torch.float16) else x


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
    None. `fused`: compute with `LowRank` where the base is a plain matrix product (`plain_matrix`). Other bases
    (bfloat16, quantised) are called as they are; adapters then work in their own type, float32, and the sum has the
    type of the base's output, as in PEFT. `dropout`: rate of the dropout before A; `rng`: its stream, or None where
    nothing is dropped.
    """

    dropout = 0.0

    def __init__(self, base: nn.Module, scale: float) -> None:
        """Wrap `base`, a linear layer; `scale` is c, alpha / (R_s + R_p) or alpha over its square root."""
        super().__init__()
        self.base = base
        self.scale = scale
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        self.added: Tensor | None = None
        self.counts: Sequence[int] | None = None
        self.fused = False
        self.rng: torch.Generator | None = None

    def __getattr__(self, name: str) -> Any:
        """The base's attributes, which models read from their linear layers (weight, bias, in_features)."""
        return base_attribute(self, name)

    def forward(self, x: Float[Tensor, "rows *t Q"]) -> Float[Tensor, "rows *t L"]:
        """W0 x + c B A x, each row with its own device's factors."""
        if self.a is None or self.b is None:
            base: Tensor = self.base(contiguous_if_narrow(x))
            return base
        counts = list(self.counts) if self.counts is not None and len(set(self.counts)) > 1 else None
        weight = plain_matrix(self.base) if self.fused and self.rng is None else None
        if weight is None:  # operation by operation as in PEFT: the base, then A, then B
            y: Tensor = self.base(contiguous_if_narrow(x))
            wide = x.to(self.a.dtype)
            wide = wide if self.rng is None else drop_entries(wide, self.dropout, self.rng)
            low = product(product(wide.reshape(-1, x.shape[-1]), self.a.mT, counts), self.b.mT, counts)
            y = (y + self.scale * low.reshape(y.shape)).to(y.dtype)
        else:
            bias, device = self.base.bias, x.device.type
            up = (self.scale * self.b).mT.contiguous()
            tensors = x.reshape(-1, x.shape[-1]), weight, bias, self.a, up
            if torch.is_autocast_enabled(device):
                dtype = torch.get_autocast_dtype(device)
                tensors = tuple(t if t is None else t.to(dtype) for t in tensors)  # type: ignore[assignment]
            out: Tensor = LowRank.apply(*tensors, counts)  # type: ignore[no-untyped-call]
            y = out.reshape(*x.shape[:-1], -1)
        if self.added is None:
            return y
        return (y + nn.functional.linear(x.to(self.added.dtype), self.added)).to(y.dtype)


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
        x = contiguous_if_narrow(x)
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
        """Weight and bias of the base as one matrix of float32 (or float64), the bias its last column."""
        weight, bias = self.base.weight, self.base.bias
        matrix = weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)
        return matrix.to(torch.promote_types(matrix.dtype, torch.float32))

    def forward(self, x: Float[Tensor, "rows *t H"]) -> Float[Tensor, "rows *t C"]:
        """W x + bias, each row with its own device's head."""
        y: Tensor = self.base(contiguous_if_narrow(x))
        if self.weight is None:
            return y
        update = self.weight - self.start
        rows = x.to(update.dtype).reshape(self.weight.shape[0], -1, x.shape[-1])
        change = torch.bmm(rows, update[:, :, : x.shape[-1]].transpose(1, 2))
        if self.base.bias is not None:
            change = change + update[:, None, :, -1]
        out = y + change.reshape(y.shape)
        return out if self.base.weight.dtype in (torch.float32, torch.float64) else out.to(y.dtype)


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


class RecomputedLayer(nn.Module):
    """A transformer layer whose inner values are not kept for the backward pass, but computed again there.

    The backward pass may come after the adapters have left the layer, or when others are in it. So the layer is
    computed again with what it had in the forward pass: factors, stream of the dropout, attention function.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Wrap `layer`."""
        super().__init__()
        self.base = layer

    def __getattr__(self, name: str) -> Any:
        """The wrapped layer's attributes, which models read from their layers (an attention type, for example)."""
        return base_attribute(self, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output."""
        adapted: list[Any] = [m for m in self.base.modules() if isinstance(m, StackedLoRA | StackedHead)]
        if not torch.is_grad_enabled() or not any(isinstance(m, StackedLoRA) and m.a is not None for m in adapted):
            return self.base(*args, **kwargs)
        values = [{key: getattr(module, key) for key in _STATE if key in vars(module)} for module in adapted]
        streams = {id(rng): (rng, rng.get_state()) for value in values if (rng := value.get("rng")) is not None}
        configs = {id(m.config): m.config for m in self.base.modules() if hasattr(m, "config")}
        attention = [(c, c._attn_implementation) for c in configs.values() if hasattr(c, "_attn_implementation")]
        first = True

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal first
            if first:  # the forward pass itself
                first = False
                return self.base(*args, **kwargs)
            with _restored(list(zip(adapted, values, strict=True)), list(streams.values()), attention):
                return self.base(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


_STATE = ("a", "b", "added", "counts", "fused", "rng", "weight")
"""Attributes of adapted layers that `forward.with_adapters` sets."""


@contextmanager
def _restored(
    modules: Sequence[tuple[Any, dict[str, Any]]],
    streams: Sequence[tuple[torch.Generator, Tensor]],
    attention: Sequence[tuple[Any, Any]],
) -> Iterator[None]:
    """Modules, random streams and attention functions as they were; afterwards as they are now."""
    present = [{key: getattr(module, key) for key in values} for module, values in modules]
    stream_states = [rng.get_state() for rng, _ in streams]
    implementations = [config._attn_implementation for config, _ in attention]
    try:
        for module, values in modules:
            for key, value in values.items():
                setattr(module, key, value)
        for rng, state in streams:
            rng.set_state(state)
        for config, implementation in attention:
            config._attn_implementation = implementation
        yield
    finally:
        for (module, _), values in zip(modules, present, strict=True):
            for key, value in values.items():
                setattr(module, key, value)
        for (rng, _), state in zip(streams, stream_states, strict=True):
            rng.set_state(state)
        for (config, _), implementation in zip(attention, implementations, strict=True):
            config._attn_implementation = implementation
