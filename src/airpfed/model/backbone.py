"""The frozen base model: loading it, and attaching adapters."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from airpfed.core.errors import UserError, first_line
from airpfed.model import compatibility, origin, zoo
from airpfed.model.layers import OutputLayer, SkippableLayer, StackedHead, StackedLoRA
from airpfed.model.origin import Origin


@dataclass(frozen=True)
class FastPaths:
    """Fast ways of computing to use. By default none: one sample at a time, as PEFT computes it.

    A path is used on a base only where it was measured to give the same numbers (`devices.fast_paths`).

    prefix: cache the outputs of the layers below the lowest adapter. packing: samples of different lengths lie end to
    end in one row (causal LMs on a CPU). last_layer: compute the last layer, after its attention, only for tokens that
    are read. stacking: several devices in a pass. batching: several samples in a pass, with padding. pad_left: padding
    on the left. parallel: several passes at the same time, each with modules of its own. fused: an adapted layer is one
    autograd function. decoding: greedy decoding caches keys and values.
    """

    prefix: bool = False
    packing: bool = False
    last_layer: bool = False
    stacking: bool = False
    batching: bool = False
    pad_left: bool = False
    parallel: bool = False
    fused: bool = False
    decoding: bool = False


@dataclass(frozen=True)
class Backbone:
    """A base model with adapters attached.

    folder: argument of from_pretrained. target_layers: name -> (L, Q) of each adapted linear layer. heads: name ->
    initial weight (C, H + 1) of each head layer (empty for a causal LM); the layer whose rows are classes comes last.
    layers: name -> module of both. prefix: layers below the lowest adapter. paths: the fast paths in use. end_tokens:
    tokens that end an answer, first the token that training answers end with. notes: lines for the user before round 1.
    meta_model: the model without adapters, its weights on the meta device. stack_name: the model's list of layers.
    """

    model: Any
    tokenizer: Any
    folder: str
    causal: bool
    target_layers: dict[str, tuple[int, int]]
    heads: dict[str, Tensor]
    layers: dict[str, StackedLoRA | StackedHead]
    prefix: tuple[SkippableLayer, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    paths: FastPaths = FastPaths()
    origin: Origin = field(default_factory=Origin)
    end_tokens: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    meta_model: Any = None
    stack_name: str = ""
    _replicas: list["Backbone"] = field(default_factory=list, init=False, repr=False, compare=False)

    def replicas(self, count: int) -> list["Backbone"]:
        """`count` backbones with the same weights in modules of their own; the first is this backbone.

        A pass sets attributes of its modules, so passes at the same time need a replica each.
        """
        while len(self._replicas) < count - 1:
            tensors = [*self.model.parameters(), *self.model.buffers()]
            model = deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
            layers = {name: model.get_submodule(name) for name in self.layers}
            prefix = tuple(module for module in model.modules() if isinstance(module, SkippableLayer))
            self._replicas.append(replace(self, model=model, layers=layers, prefix=prefix))
        return [self, *self._replicas[: count - 1]]

    def with_paths(self, paths: FastPaths) -> "Backbone":
        """The same backbone with other fast paths."""
        return replace(self, paths=paths)

    @property
    def cached_layers(self) -> tuple[SkippableLayer, ...]:
        """Layers whose outputs are cached: the prefix, or none where `FastPaths.prefix` is off."""
        return self.prefix if self.paths.prefix else ()

    @property
    def last_layer(self) -> nn.Module | None:
        """The last layer, where only tokens that are read are computed in it (`forward.last_tokens_only`)."""
        return self.model.get_submodule(self.stack_name)[-1] if self.paths.last_layer else None

    @property
    def forward_parameters(self) -> set[str]:
        """Keyword arguments that the model's forward pass names."""
        return set(signature(self.model.forward).parameters)


@dataclass(frozen=True)
class LoadedModel:
    """A base model as loaded. heads: names of the layers of the task head; see `Backbone` for the other fields."""

    model: Any
    tokenizer: Any
    origin: Origin
    causal: bool
    heads: list[str]
    end_tokens: tuple[int, ...]
    notes: tuple[str, ...]


def load_model(
    base: str,
    kind: str,
    classes: int,
    device: str,
    rng: torch.Generator,
    tokens: int = 0,
    answer: int = 0,
    trusted: bool = False,
) -> LoadedModel:
    """Load a base model and its tokenizer, and check that it can be trained.

    kind: the setting `model.kind`. classes: number of outputs of a classifier's head (the largest over tasks). tokens:
    number of tokens of the longest sample. answer: number of tokens of the longest answer to generate. trusted: whether
    the base's own Python code may run. Random: a classifier's head, drawn from `rng` by the model's own rule. Raises
    UserError where the base does not fit.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

    notes = list[str]()
    source = origin.origin_of(base, trusted, notes.append)
    config = origin.read_config(source, base)
    causal = compatibility.is_causal(config, kind, base)
    extra: dict[str, Any] = {} if causal else {"num_labels": classes, "ignore_mismatched_sizes": True}
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.random.fork_rng(), zoo.quiet_transformers():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
        try:
            model, info = auto.from_pretrained(
                source.folder, dtype=torch.float32, output_loading_info=True, **source.options, **extra
            )
        except Exception as error:  # transformers raises many types of exceptions here
            reason = origin.needs_code(error) or f"cannot be loaded: {first_line(error)}"
            raise UserError(f'model.base = "{base}": {reason}') from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.folder, **source.options)
        except Exception as error:
            reason = origin.needs_code(error) or compatibility.tokenizer_error(error, source.folder)
            raise UserError(f'model.base = "{base}": {reason}') from None
        model.eval().requires_grad_(False)
        missing = [*info["missing_keys"], *(mismatch[0] for mismatch in info["mismatched_keys"])]
        heads = [] if causal else compatibility.head_layers(model, missing)
        compatibility.check_weights(model, missing, heads, base)
        loaded_heads = [name for name in heads if f"{name}.weight" not in missing]
        compatibility.redraw(model, loaded_heads)
    source = origin.confirm(source)
    if loaded_heads:
        notes.append(
            f"the base has a head of its own ({', '.join(loaded_heads)}): tasks get new ones, drawn at random, and "
            "train them"
        )
    if not causal and not any(model.get_submodule(name).out_features == classes for name in heads):
        raise UserError(
            f'model.base = "{base}": no nn.Linear gives this classifier\'s classes, so tasks can have no head'
        )
    compatibility.check_vocabulary(tokenizer, base)
    compatibility.set_padding(tokenizer, model, causal)
    end_tokens = compatibility.end_tokens(tokenizer, model)
    if causal and hasattr(model, "generation_config"):  # plain greedy decoding, whatever the base declares
        model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=list(end_tokens) or None, pad_token_id=tokenizer.pad_token_id
        )
    compatibility.check_passes(model, tokenizer, causal, base)
    padding = getattr(config, "pad_token_id", None) or 0
    if tokens and (line := compatibility.check_length(model, tokenizer, causal, padding, tokens, answer, base)):
        notes.append(line)
    return LoadedModel(model.to(device), tokenizer, source, causal, heads, end_tokens, tuple(notes))


def attach(
    model: Any,
    stack_name: str,
    target_modules: Sequence[str],
    layers: str | Sequence[int],
    heads: Sequence[str],
    scale: float,
) -> tuple[dict[str, StackedLoRA | StackedHead], tuple[SkippableLayer, ...]]:
    """Wrap the target layers and the heads in place; returns the new modules by name, and the prefix.

    layers: "all", "last-n", or indices into `stack_name`, the model's list of transformer layers. Raises UserError
    where a module name or a layer does not exist.
    """
    stack: Any = model.get_submodule(stack_name)
    chosen = _layer_indices(layers, len(stack))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inside = {n: m for n, m in linears.items() if n.startswith(stack_name + ".")}
    layer_of = {name: int(name[len(stack_name) + 1 :].split(".")[0]) for name in inside}
    wrappers: dict[str, StackedLoRA | StackedHead] = {}
    for target in target_modules:
        matches = [n for n in inside if n.endswith("." + target)]
        if not matches:
            short = sorted({name.rpartition(".")[2] for name in inside})
            close = get_close_matches(target, set(short) - set(target_modules), n=1, cutoff=0.85)
            near = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(short) or _no_linear(stack)}"
            raise UserError(f'adapters.target_modules = "{target}": no such nn.Linear in the model\'s layers{near}')
        wrappers |= {n: StackedLoRA(inside[n], scale) for n in matches if layer_of[n] in chosen}
    if not wrappers:
        raise UserError(f"adapters.layers = {layers}: none of these layers has a module of adapters.target_modules")
    wrappers |= {name: StackedHead(linears[name]) for name in heads if name in linears}
    for name, module in wrappers.items():
        model.set_submodule(name, module)
    lowest = min(layer_of[name] for name in wrappers if name in layer_of)
    prefix = tuple(SkippableLayer(stack[index]) for index in range(lowest))
    for index, layer in enumerate(prefix):
        stack[index] = layer
    return wrappers, prefix


def _no_linear(stack: nn.ModuleList) -> str:
    """Text on the matrices of layers without any nn.Linear."""
    kinds = {
        type(module).__name__ for module in stack.modules() for w in module.parameters(recurse=False) if w.ndim > 1
    }
    return f"none, but {', '.join(sorted(kinds))}, which takes no adapter here"


def layer_stack(model: Any) -> tuple[str, nn.ModuleList]:
    """The model's list of transformer layers: the longest ModuleList whose layers all run on a text.

    Lists whose layers all hold an nn.Linear take precedence. For a model that does not run on tokens alone, the longest
    of all lists.
    """
    stacks = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and module}
    if not stacks:
        raise UserError("model.base: this model has no list of transformer layers to put adapters on")
    idle = {id(layer) for stack in stacks.values() for layer in stack}
    handles = [
        layer.register_forward_pre_hook(lambda module, _args: idle.discard(id(module)))
        for stack in stacks.values()
        for layer in stack
    ]
    tokens = torch.arange(1, compatibility.SHORT + 1, device=next(model.parameters()).device)[None]
    try:
        with torch.no_grad():
            option = compatibility.no_cache_option(model)
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **option)
    except Exception:  # a model that needs more than text is refused elsewhere
        idle.clear()
    finally:
        for handle in handles:
            handle.remove()
    active = {name: stack for name, stack in stacks.items() if not any(id(layer) in idle for layer in stack)}
    linear = {
        name: stack
        for name, stack in active.items()
        if all(any(isinstance(module, nn.Linear) for module in layer.modules()) for layer in stack)
    }
    return max((linear or active or stacks).items(), key=lambda item: len(item[1]))


def _layer_indices(layers: str | Sequence[int], count: int) -> set[int]:
    if isinstance(layers, str):
        last = count if layers == "all" else int(layers.removeprefix("last-"))
        if last > count:
            raise UserError(
                f'adapters.layers = "{layers}": the model has {count} layers; "last-{count}" or "all" are all'
            )
        return set(range(count - last, count))
    indices = {index % count for index in layers}
    if not layers or len(indices) < len(layers) or not all(-count <= index < count for index in layers):
        raise UserError(
            f"adapters.layers = {list(layers)}: indices should be from 0 to {count - 1}, or -1 (the last) to -{count}, "
            "each layer once"
        )
    return indices


def build_backbone(
    base: str,
    kind: str,
    classes: int,
    target_modules: Sequence[str],
    layers: str | Sequence[int],
    scale: float,
    device: str,
    rng: torch.Generator,
    tokens: int = 0,
    answer: int = 0,
    trusted: bool = False,
) -> Backbone:
    """Load a base model and attach adapters; arguments and exceptions as in `load_model` and `attach`.

    Random: a classifier's head, from `rng`.
    """
    loaded = load_model(base, kind, classes, device, rng, tokens, answer, trusted)
    model = loaded.model
    meta_model = _copy_to_meta(model)
    stack_name, stack = layer_stack(model)
    stacks_note = compatibility.frozen_stacks(stack)
    wrappers, prefix = attach(model, stack_name, target_modules, layers, loaded.heads, scale)
    out = model.get_output_embeddings() if loaded.causal else None
    if type(out) is nn.Linear:
        model.set_submodule(next(name for name, module in model.named_modules() if module is out), OutputLayer(out))
    target_layers = {
        n: (m.base.out_features, m.base.in_features) for n, m in wrappers.items() if isinstance(m, StackedLoRA)
    }
    # In module order, except that the layer whose rows are classes comes last.
    order = sorted(loaded.heads, key=lambda name: wrappers[name].base.out_features == classes)
    heads = {name: m.start.cpu() for name in order if isinstance(m := wrappers[name], StackedHead)}
    return Backbone(
        model=model,
        tokenizer=loaded.tokenizer,
        folder=loaded.origin.folder,
        causal=loaded.causal,
        target_layers=target_layers,
        heads=heads,
        layers=wrappers,
        prefix=prefix,
        device=torch.device(device),
        origin=loaded.origin,
        end_tokens=loaded.end_tokens,
        notes=loaded.notes if stacks_note is None else (*loaded.notes, stacks_note),
        meta_model=meta_model,
        stack_name=stack_name,
    )


def _copy_to_meta(model: Any) -> Any:
    """The same modules with all tensors on the meta device, which takes no memory."""
    parameters: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    return deepcopy(model, parameters | {id(buffer): buffer.to("meta") for buffer in model.buffers()})
