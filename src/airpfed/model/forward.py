"""Forward passes for the rows of many devices, without cached parts and without outputs that nobody reads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from airpfed.model.attention import separate_samples
from airpfed.model.backbone import Backbone
from airpfed.model.compatibility import no_cache_option
from airpfed.model.layers import StackedLoRA
from airpfed.model.layout import Factors
from airpfed.model.tokens import PackedBatch


class _CapturedError(Exception):
    """Carries a value out of a forward pass that need not continue."""


@contextmanager
def with_adapters(
    backbone: Backbone,
    factors: Factors | None,
    tokens_per_device: Sequence[int] | None = None,
    rng: torch.Generator | None = None,
) -> Iterator[None]:
    """The model with the factors of K devices in its layers; rows of a batch then come device by device.

    factors: factors of K models; None for the base model. tokens_per_device: tokens of each device, where these differ.
    rng: stream of the adapters' dropout, which layers draw from in the order in which they run; None drops nothing.
    """
    for name, layer in (backbone.layers if factors is not None else {}).items():
        assert factors is not None
        if isinstance(layer, StackedLoRA):
            layer.a, layer.b, layer.added = factors[f"{name}.A"], factors[f"{name}.B"], factors.get(f"{name}.W")
            layer.counts, layer.fused = tokens_per_device, backbone.paths.fused
            layer.rng = rng
        else:
            layer.weight = factors[f"{name}.head"]
    try:
        yield
    finally:
        for layer in backbone.layers.values():
            if isinstance(layer, StackedLoRA):
                layer.a = layer.b = layer.added = layer.counts = layer.rng = None
            else:
                layer.weight = None


@contextmanager
def with_prefix_output(backbone: Backbone, hidden: Tensor | None) -> Iterator[None]:
    """The model with `hidden` as the output of its prefix, whose layers are then not computed; None computes them."""
    if hidden is not None:
        for layer in backbone.prefix:
            layer.skip = True
        backbone.prefix[-1].value = hidden
    try:
        yield
    finally:
        for layer in backbone.prefix:
            layer.skip, layer.value = False, None


def model_inputs(backbone: Backbone, ids: Int[Tensor, "rows t"], mask: Bool[Tensor, "rows t"]) -> dict[str, Any]:
    """Keyword arguments of the model's forward pass.

    Position ids are given only where rows are padded on the left; otherwise the model counts by itself, from whatever
    position it starts at.
    """
    parameters, fields = backbone.forward_parameters, {"input_ids": ids, "attention_mask": mask.long()}
    if backbone.paths.pad_left and not bool(mask.all()) and "position_ids" in parameters:
        fields["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    tensors: dict[str, Any] = {key: value.to(backbone.device) for key, value in fields.items()}
    return tensors | no_cache_option(backbone.model)


@contextmanager
def last_tokens_only(
    backbone: Backbone, take: Callable[[Tensor], Tensor], tokens_per_device: Sequence[int] | None = None
) -> Iterator[None]:
    """The model with its last layer, after attention, computed only for the tokens that are read.

    take: a function that selects these tokens from (rows, t, _). tokens_per_device: selected tokens of each device,
    where these differ. Changes nothing where `FastPaths.last_layer` is off. Raises AttributeError where the layer is
    not built like that of a Llama or a BERT.
    """
    layer: Any = backbone.last_layer
    if layer is None:
        yield
        return
    full_forward = layer.forward
    # The attention module, and its output projection where that is a part of it.
    attention, projection = (
        (layer.self_attn, layer.self_attn.o_proj) if backbone.causal else (layer.attention.self, None)
    )
    register = attention.register_forward_hook if projection is None else projection.register_forward_pre_hook

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        context = take(_capture(register, lambda: full_forward(hidden, *args, **kwargs)))
        with _row_counts(layer, tokens_per_device):
            attention.forward = lambda *_, **__: (context if projection is None else projection(context), None)
            try:
                return full_forward(take(hidden), *args, **kwargs)
            finally:
                del attention.forward

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def _row_counts(layer: nn.Module, tokens_per_device: Sequence[int] | None) -> Iterator[None]:
    """A layer whose adapters have other numbers of rows per device; None changes nothing."""
    modules = [m for m in layer.modules() if isinstance(m, StackedLoRA)] if tokens_per_device is not None else []
    previous = [module.counts for module in modules]
    for module in modules:
        module.counts = tokens_per_device
    try:
        yield
    finally:
        for module, counts in zip(modules, previous, strict=True):
            module.counts = counts


def _capture(register: Callable[[Any], Any], run: Callable[[], Any]) -> Tensor:
    """The first input or output of a module, from a forward pass that stops there.

    register: a module's method that registers a forward hook or a forward pre-hook.
    """

    def stop(_module: nn.Module, *values: Any) -> None:
        value = values[-1]  # the output in a forward hook, the inputs in a pre-hook
        raise _CapturedError(value if isinstance(value, Tensor) else value[0])

    handle = register(stop)
    try:
        run()
    except _CapturedError as captured:
        value: Tensor = captured.args[0]
        return value
    finally:
        handle.remove()
    raise RuntimeError("the model did not run its own layers")


def logits(
    backbone: Backbone,
    ids: Int[Tensor, "rows t"],
    mask: Bool[Tensor, "rows t"],
    last: int,
    hidden: Float[Tensor, "rows t H"] | None = None,
) -> Float[Tensor, "rows last C"]:
    """Logits of the last `last` positions (causal LM), or of the classes (classifier, last = 1).

    ids: padded left if `FastPaths.pad_left`, else right; causal LMs always left. mask: False on padding. hidden: the
    prefix's output for these rows; None computes it.
    """
    keep = {"logits_to_keep": last} if backbone.causal and "logits_to_keep" in backbone.forward_parameters else {}
    part = slice(-last, None) if backbone.causal else slice(0, 1)
    with with_prefix_output(backbone, hidden), last_tokens_only(backbone, lambda x: x[:, part]):
        out: Tensor = backbone.model(**model_inputs(backbone, ids, mask), **keep).logits
    return out[:, -last:] if backbone.causal else out[:, None, :]


def packed_logits(
    backbone: Backbone,
    batch: PackedBatch,
    counts: Sequence[int],
    hidden: Float[Tensor, "T H"] | None = None,
) -> Float[Tensor, "n last C"]:
    """Logits of a causal LM at the tokens `batch.target_index`; samples do not read each other.

    counts: samples of each device. hidden: the prefix's output for the batch's tokens; None computes it.
    """
    index = batch.target_index.flatten().to(backbone.device)
    fields = {"input_ids": batch.ids, "position_ids": batch.positions}
    fields = {key: value[None].to(backbone.device) for key, value in fields.items()}
    targets_per_device = [count * batch.target_index.shape[1] for count in counts]
    with (
        with_prefix_output(backbone, None if hidden is None else hidden[None]),
        last_tokens_only(backbone, lambda x: x[:, index], targets_per_device),
        separate_samples(backbone.model, batch, backbone.device) as options,
    ):
        out: Tensor = backbone.model(**fields, **options, use_cache=False).logits
    return (out if backbone.last_layer is not None else out[:, index]).reshape(*batch.target_index.shape, -1)


def prefix_output(
    backbone: Backbone, ids: Int[Tensor, "rows t"], mask: Bool[Tensor, "rows t"]
) -> Float[Tensor, "rows t H"]:
    """The input of the first adapted layer, which is the output of the layers below it; without gradients."""
    with torch.no_grad():
        register = backbone.prefix[-1].register_forward_hook
        return _capture(register, lambda: backbone.model(**model_inputs(backbone, ids, mask)))
