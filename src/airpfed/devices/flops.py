"""Floating-point operations of a device's step: forward and backward, with the frozen prefix cached.

A product of an (m, k) and a (k, n) matrix takes 2 m n k operations, a multiplication and an addition each. Everything
else (norms, activations, softmax, convolutions, sums) is left out. For a sample of T tokens, of which the loss reads r:

- Forward: a weight matrix costs a product with every token that reaches it. Behind the last attention, and at the
  output layer, these are the r tokens that are read, where the base allows it (`FastPaths.last_layer`). Attention is a
  product of queries and keys and one of shares and values, with all T^2 pairs of tokens. A LoRA block is two products.
- Backward: a product costs itself once more for each operand that depends on a trained factor. The base is frozen: a
  weight matrix costs one product, for the gradient of its input, in place of two in full training; and none where its
  input depends on no trained factor, which is so below the lowest adapter and before the first adapter of its layer.
  A LoRA block costs up to four products, attention up to four.
- The layers below the lowest adapter run forward only, and once for each sample, because their outputs are cached. They
  are charged when a device draws a sample for the first time, in its first epoch. Without the cache
  (`FastPaths.prefix`) they are charged in every step.

So a step takes a T + b r + c T^2 operations, and its prefix a' T + c' T^2. The five numbers come from the products of
three forward passes of short texts through the adapted model, so that any architecture is counted as it is built; in a
mixture of experts a token is charged for the experts that it goes to.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from airpfed.core.rng import stream
from airpfed.devices.clients import Clients
from airpfed.model.backbone import Backbone
from airpfed.model.forward import logits, with_adapters
from airpfed.model.layout import gather, initial_vectors, trained_factors

CAUSAL_TEXTS = ((4, 1), (8, 1), (8, 3))
"""(tokens, tokens that are read) of the texts that a causal LM is counted on."""
CLASSIFIER_TEXTS = ((4, 1), (8, 1), (12, 1))
"""The same for a classifier, which reads one token of any text."""

PRODUCTS = {
    "linear": 0, "matmul": 0, "__matmul__": 0, "bmm": 0, "mm": 0, "_grouped_mm": 0, "grouped_mm": 0, "addmm": 1,
    "baddbmm": 1,
}  # fmt: skip
"""Name of a function of torch that multiplies -> position of its first matrix; the second follows."""


@dataclass(frozen=True)
class SampleFlops:
    """Operations of a sample in a step, forward and backward.

    token: for each token. read: for each token that is read. square: times the square of the number of tokens.
    prefix_token, prefix_square: the same of the cached layers, for the sample's first time.
    """

    token: float
    read: float
    square: float
    prefix_token: float
    prefix_square: float

    def total(self, tokens: int, read: int, first: bool) -> float:
        """The operations of a sample. read: tokens that its loss reads. first: whether its prefix is not cached yet."""
        step = self.token * tokens + self.read * read + self.square * tokens**2
        return step + first * (self.prefix_token * tokens + self.prefix_square * tokens**2)


class ProductCounter(TorchFunctionMode):
    """Counts the operations of all products in the block, forward and (later) backward.

    prefix: operations inside the cached layers. trained: of everything else.
    """

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self.prefix, self.trained, self.in_prefix = 0.0, 0.0, False

    def __torch_function__(
        self, func: Any, _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the function, and add what its products take."""
        kwargs = kwargs or {}
        out, name = func(*args, **kwargs), getattr(func, "__name__", "")
        if name in PRODUCTS and isinstance(out, Tensor):
            a, b = (*args, *kwargs.values())[PRODUCTS[name] :][:2]
            self.add(2.0 * out.numel() * a.shape[-1], a.requires_grad + b.requires_grad)
        elif name == "scaled_dot_product_attention":
            query, key, value = (*args, *(kwargs[word] for word in ("query", "key", "value") if word in kwargs))[:3]
            pairs = query.numel() // query.shape[-1] * key.shape[-2]
            self.add(2.0 * pairs * query.shape[-1], query.requires_grad + key.requires_grad)
            self.add(2.0 * pairs * value.shape[-1], (query.requires_grad or key.requires_grad) + value.requires_grad)
        return out

    def add(self, flops: float, operands: int) -> None:
        """Add a product. operands: how many of its two operands need a gradient."""
        if self.in_prefix:
            self.prefix += flops
        else:
            self.trained += flops * (1 + operands)


def count_sample_flops(clients: Clients) -> SampleFlops:
    """Count the operations of a sample on the clients' base with their adapters, as the module's docstring says."""
    texts = CAUSAL_TEXTS if clients.backbone.causal else CLASSIFIER_TEXTS
    counts = [count_products(clients, tokens, read) for tokens, read in texts]
    rows = torch.tensor([(tokens, read, tokens**2) for tokens, read in texts], dtype=torch.float64)
    trained, prefix = (torch.tensor(part, dtype=torch.float64) for part in zip(*counts, strict=True))
    token, read, square = torch.linalg.solve(rows, trained).tolist()
    prefix_token, prefix_square = torch.linalg.solve(rows[:2, ::2], prefix[:2]).tolist()
    return SampleFlops(token, read, square, prefix_token, prefix_square)


def count_products(clients: Clients, tokens: int, read: int) -> tuple[float, float]:
    """The operations of a step on a text of so many tokens: of all but the cached layers, and of these."""
    paths = replace(clients.backbone.paths, fused=False, packing=False)
    backbone, zero = clients.backbone.with_paths(paths), torch.zeros(1, dtype=torch.long)
    start = gather(initial_vectors(clients.layout, backbone.heads, stream(0, "flops")), clients.layout, zero, zero)
    factors = {key: tensor.to(backbone.device) for key, tensor in start.items()}
    factors |= {key: tensor.detach().requires_grad_() for key, tensor in trained_factors(factors).items()}
    ids = torch.arange(1, tokens + 1)[None]
    with torch.enable_grad(), with_adapters(backbone, factors), ProductCounter() as counter, _marked(backbone, counter):
        logits(backbone, ids, torch.ones_like(ids, dtype=torch.bool), read)
    return counter.trained, counter.prefix


@contextmanager
def _marked(backbone: Backbone, counter: ProductCounter) -> Iterator[None]:
    """A backbone whose cached layers tell the counter when they begin and end."""

    def mark(inside: bool) -> Any:
        return lambda *_: setattr(counter, "in_prefix", inside)

    handles = [layer.register_forward_pre_hook(mark(True)) for layer in backbone.cached_layers]
    handles += [layer.register_forward_hook(mark(False)) for layer in backbone.cached_layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
