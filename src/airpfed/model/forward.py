"""One forward pass for the rows of many devices: what is kept is not computed again, and nothing that nobody reads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from airpfed.model import fit
from airpfed.model.adapters import StackedLoRA
from airpfed.model.attention import each_alone
from airpfed.model.backbone import Backbone
from airpfed.model.layout import Factors
from airpfed.model.tokens import Packed


class _ReachedError(Exception):
    """Carries a value out of a forward pass that need not go on."""


@contextmanager
def adapted(backbone: Backbone, factors: Factors | None, spans: Sequence[int] | None = None) -> Iterator[None]:
    """The model with the factors of K devices in its layers; rows of a batch then come device by device.

    factors: None is the base. spans: tokens of each device where these are unlike; only adapted layers know of them.
    """
    for name, layer in (backbone.layers if factors is not None else {}).items():
        assert factors is not None
        if isinstance(layer, StackedLoRA):
            layer.a, layer.b, layer.added = factors[f"{name}.A"], factors[f"{name}.B"], factors.get(f"{name}.W")
            layer.spans, layer.fused = spans, backbone.paths.fused
        else:
            layer.weight = factors[f"{name}.head"]
    try:
        yield
    finally:
        for layer in backbone.layers.values():
            if isinstance(layer, StackedLoRA):
                layer.a = layer.b = layer.added = layer.spans = None
            else:
                layer.weight = None


@contextmanager
def resumed(backbone: Backbone, hidden: Tensor | None) -> Iterator[None]:
    """The model with its prefix's output already there: the layers below the lowest adapter are not computed."""
    if hidden is not None:
        for layer in backbone.prefix:
            layer.skip = True
        backbone.prefix[-1].value = hidden
    try:
        yield
    finally:
        for layer in backbone.prefix:
            layer.skip, layer.value = False, None


def inputs(backbone: Backbone, ids: Int[Tensor, "rows t"], mask: Bool[Tensor, "rows t"]) -> dict[str, Any]:
    """Keyword arguments of the model; one that takes positions is told them where rows are padded on the left.

    Where nothing is padded they are what the model counts by itself, from wherever it begins.
    """
    known, fields = backbone.forward_parameters, {"input_ids": ids, "attention_mask": mask.long()}
    if backbone.paths.left and not bool(mask.all()) and "position_ids" in known:
        fields["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    given: dict[str, Any] = {key: value.to(backbone.device) for key, value in fields.items()}
    return given | fit.uncached(backbone.model)


@contextmanager
def read_only(
    backbone: Backbone, take: Callable[[Tensor], Tensor], spans: Sequence[int] | None = None
) -> Iterator[None]:
    """The last layer, past its attention, computed only for the tokens that `take` takes out of (rows, t, _).

    spans: how many those are of each device, where they are unlike. Where this is not one of the ways that are used
    (`FastPaths.last_layer`) the layer computes all, and nothing is taken. Raises AttributeError where the layer is not
    built like a Llama's or a BERT's.
    """
    layer: Any = backbone.top
    if layer is None:
        yield
        return
    whole = layer.forward
    crossing, out = (layer.self_attn, layer.self_attn.o_proj) if backbone.causal else (layer.attention.self, None)
    read_across = crossing.register_forward_hook if out is None else out.register_forward_pre_hook

    def forward(hidden: Tensor, *args: Any, **given: Any) -> Any:
        context = take(_reached(read_across, lambda: whole(hidden, *args, **given)))
        with _spans(layer, spans):
            crossing.forward = lambda *_args, **_given: (context if out is None else out(context), None)
            try:
                return whole(take(hidden), *args, **given)
            finally:
                del crossing.forward

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


@contextmanager
def _spans(layer: nn.Module, spans: Sequence[int] | None) -> Iterator[None]:
    """Adapters of a layer with other spans."""
    inside = [module for module in layer.modules() if isinstance(module, StackedLoRA)] if spans is not None else []
    before = [module.spans for module in inside]
    for module in inside:
        module.spans = spans
    try:
        yield
    finally:
        for module, own in zip(inside, before, strict=True):
            module.spans = own


def _reached(hook: Callable[[Any], Any], run: Callable[[], Any]) -> Tensor:
    """The first of what a module is given or gives, from a pass that ends there; `hook`: its method that registers."""

    def stop(_module: nn.Module, *seen: Any) -> None:
        value = seen[-1]  # the output, if there is one yet
        raise _ReachedError(value if isinstance(value, Tensor) else value[0])

    handle = hook(stop)
    try:
        run()
    except _ReachedError as reached:
        found: Tensor = reached.args[0]
        return found
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

    ids are padded on the side of `FastPaths.left`, a causal LM's on the left; mask is False on padding. hidden: the
    prefix's output for these rows, if it is at hand.
    """
    keep = {"logits_to_keep": last} if backbone.causal and "logits_to_keep" in backbone.forward_parameters else {}
    part = slice(-last, None) if backbone.causal else slice(0, 1)
    with resumed(backbone, hidden), read_only(backbone, lambda x: x[:, part]):
        out: Tensor = backbone.model(**inputs(backbone, ids, mask), **keep).logits
    return out[:, -last:] if backbone.causal else out[:, None, :]


def packed_logits(
    backbone: Backbone,
    packed: Packed,
    counts: Sequence[int],
    hidden: Float[Tensor, "T H"] | None = None,
) -> Float[Tensor, "n last C"]:
    """Logits of a causal LM at the tokens `packed.at`; no sample reads another.

    counts: samples of each device. hidden: the prefix's output for these tokens, if it is at hand.
    """
    at = packed.at.flatten().to(backbone.device)
    fields = {"input_ids": packed.ids, "position_ids": packed.positions}
    fields = {key: value[None].to(backbone.device) for key, value in fields.items()}
    read = [own * packed.at.shape[1] for own in counts]
    with (
        resumed(backbone, None if hidden is None else hidden[None]),
        read_only(backbone, lambda x: x[:, at], read),
        each_alone(backbone.model, packed, backbone.device) as told,
    ):
        out: Tensor = backbone.model(**fields, **told, use_cache=False).logits
    return (out if backbone.top is not None else out[:, at]).reshape(*packed.at.shape, -1)


def prefix_output(
    backbone: Backbone, ids: Int[Tensor, "rows t"], mask: Bool[Tensor, "rows t"]
) -> Float[Tensor, "rows t H"]:
    """What the first adapted layer reads: the output of the layers below it, without gradients."""
    with torch.no_grad():
        hook = backbone.prefix[-1].register_forward_hook
        return _reached(hook, lambda: backbone.model(**inputs(backbone, ids, mask)))
