"""The frozen base model: loading it, and attaching adapters."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from airpfed.core.errors import UserError, first_line
from airpfed.model import compatibility, origin, zoo
from airpfed.model.layers import (
    OutputLayer,
    RecomputedLayer,
    SkippableLayer,
    StackedHead,
    StackedLoRA,
    is_linear,
    linear_shape,
)
from airpfed.model.origin import Origin
from airpfed.model.precision import (
    FLOAT32,
    Precision,
    is_coarse,
    is_quantised,
    is_stored_quantised,
    set_for_training,
)


@dataclass(frozen=True)
class FastPaths:
    """Fast ways of computing to use. By default none: one sample at a time, as PEFT computes it.

    A path is used on a base only where it was measured to give the same numbers (`devices.fast_paths`).

    prefix: cache the outputs of the layers below the lowest adapter. packing: samples of different lengths lie end to
    end in one row (causal LMs on a CPU). last_layer: compute the last layer, after its attention, only for tokens that
    are read. stacking: several devices in a pass. batching: several samples in a pass, with padding. pad_left: padding
    on the left. parallel: several passes at the same time, each with modules of its own. fused: an adapted layer is one
    autograd function where its base is a plain matrix product. decoding: greedy decoding caches keys and values.
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
    precision: how the weights are held. checkpointing: whether layers are computed again in the backward pass. rslora:
    whether adapters are scaled by the root of their rank. tolerance: largest difference of logits, relative to the
    largest, that is rounding on this base.
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
    precision: Precision = FLOAT32
    checkpointing: bool = False
    rslora: bool = False
    tolerance: float = 1e-4
    _replicas: list["Backbone"] = field(default_factory=list, init=False, repr=False, compare=False)

    def replicas(self, count: int) -> list["Backbone"]:
        """`count` backbones with the same weights in modules of their own; the first is this backbone.

        A pass sets attributes of its modules, so passes at the same time need a replica each.
        """
        while len(self._replicas) < count - 1:
            tensors = [*self.model.parameters(), *self.model.buffers(), *_state_tensors(self.model)]
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
    def coarse(self) -> bool:
        """Whether products are rounded to fewer digits than float32's (`precision.is_coarse`)."""
        return is_coarse(self.model)

    @property
    def has_quantised_weights(self) -> bool:
        """Whether some weights are quantised."""
        return is_quantised(self.model)

    @property
    def forward_parameters(self) -> set[str]:
        """Keyword arguments that the model's forward pass names."""
        return set(signature(self.model.forward).parameters)


def _state_tensors(model: nn.Module) -> list[Tensor]:
    """Tensors that quantised layers hold outside of parameters and buffers, in objects of their own."""
    objects = [value for module in model.modules() for key, value in vars(module).items() if not key.startswith("_")]
    states = [vars(value) for value in objects if hasattr(value, "__dict__") and not isinstance(value, nn.Module)]
    return [tensor for state in states for tensor in state.values() if isinstance(tensor, Tensor)]


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
    meta_model: Any


def load_model(
    base: str,
    kind: str,
    classes: int,
    device: str,
    rng: torch.Generator,
    tokens: int = 0,
    answer: int = 0,
    trusted: bool = False,
    precision: Precision = FLOAT32,
) -> LoadedModel:
    """Load a base model and its tokenizer, and check that it can be trained.

    kind: the setting `model.kind`. classes: number of outputs of a classifier's head (the largest over tasks). tokens:
    number of tokens of the longest sample. answer: number of tokens of the longest answer to generate. trusted: whether
    the base's own Python code may run. precision: how the weights are held. Random: a classifier's head, drawn from
    `rng` by the model's own rule. Raises UserError where the base does not fit.
    """
    from transformers import AutoTokenizer, GenerationConfig

    notes = list[str]()
    source = origin.origin_of(base, trusted, notes.append)
    config = origin.read_config(source, base)
    causal = compatibility.is_causal(config, kind, base)
    precision.check(base, config)
    extra: dict[str, Any] = {} if causal else {"num_labels": classes, "ignore_mismatched_sizes": True}
    auto = compatibility.auto_class(config, causal)
    with torch.random.fork_rng(), zoo.quiet_transformers():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
        try:
            empty = (
                empty_model(auto, config, source, extra) if "device_map" in precision.options(config, device) else None
            )
            options = precision.options(config, device, whole_modules(empty))
            model, info = auto.from_pretrained(
                source.folder, output_loading_info=True, **options, **source.options, **extra
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
        set_for_training(model)
        missing = [*info["missing_keys"], *(mismatch[0] for mismatch in info["mismatched_keys"])]
        heads = [] if causal else compatibility.head_layers(model, missing)
        compatibility.check_weights(model, missing, heads, base)
        lost = [name for name in heads if is_stored_quantised(model.get_submodule(name))]
        if lost:
            raise UserError(
                f'model.base = "{base}": its files have no weights of {lost[0]}, which would be trained, and a '
                'quantised layer cannot be; model.quantization = "none" fits'
            )
        loaded_heads = [name for name in heads if f"{name}.weight" not in missing]
        compatibility.redraw(model, loaded_heads)
    if precision.quantisation != "none" and not any(map(is_stored_quantised, model.modules())):
        kinds = ", ".join(sorted({type(module).__name__ for module in model.modules() if is_linear(module)}))
        raise UserError(
            f'model.quantization = "{precision.quantisation}": finds no layer of model.base = "{base}" to quantise, '
            f'whose linear layers are {kinds}; another row, or "none", fits'
        )
    source = origin.confirm(source)
    if config.get_text_config() is not config:
        notes.append(f"the base is a model of more than text ({config.model_type}): its text layers get the adapters")
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
    padding = getattr(config.get_text_config(), "pad_token_id", None) or 0
    if tokens and (line := compatibility.check_length(model, tokenizer, causal, padding, tokens, answer, base)):
        notes.append(line)
    model = model if is_quantised(model) else model.to(device)
    meta_model = _copy_to_meta(model) if empty is None else empty
    return LoadedModel(model, tokenizer, source, causal, heads, end_tokens, tuple(notes), meta_model)


def empty_model(auto: Any, config: Any, source: Origin, extra: Mapping[str, Any]) -> Any:
    """The modules of a base with plain layers, all weights on the meta device."""
    config = deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if "num_labels" in extra:
        config.num_labels = extra["num_labels"]
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=source.trusted).eval().requires_grad_(False)


def whole_modules(model: Any) -> list[str]:
    """The modules that no quantisation touches: an output layer to the vocabulary, or the linear layers of a head.

    model: with plain layers, its weights anywhere; None has none.
    """
    if model is None:
        return []
    out = model.get_output_embeddings()
    outputs = [name for name, module in model.named_modules() if module is out]
    return outputs or compatibility.head_layers(model, ())


def attach(
    model: Any,
    stack_name: str,
    target_modules: Sequence[str] | str,
    layers: str | Sequence[int],
    heads: Sequence[str],
    scale: float,
    *,
    checkpointing: bool = False,
    dropout: float = 0.0,
) -> tuple[dict[str, StackedLoRA | StackedHead], tuple[SkippableLayer, ...]]:
    """Wrap the target layers and the heads in place; returns the new modules by name, and the prefix.

    layers: "all", "last-n", or indices into `stack_name`, the model's list of transformer layers. checkpointing:
    whether layers with adapters are computed again in the backward pass. dropout: rate of the adapters' dropout. The
    rest as in `target_layers_of`, which raises the exceptions.
    """
    stack: Any = model.get_submodule(stack_name)
    targets = target_layers_of(model, stack_name, target_modules, layers, heads)
    wrappers: dict[str, StackedLoRA | StackedHead] = {n: StackedLoRA(m, scale) for n, m in targets.items()}
    for wrapper in wrappers.values():
        wrapper.dropout = dropout
    wrappers |= {name: StackedHead(model.get_submodule(name)) for name in heads}
    for name, module in wrappers.items():
        model.set_submodule(name, module)
    numbers = [layer_number(name, stack_name) for name in targets]
    lowest = 0 if None in numbers else min(number for number in numbers if number is not None)
    prefix = tuple(SkippableLayer(stack[index]) for index in range(lowest))
    for index, layer in enumerate(prefix):
        stack[index] = layer
    for index in range(lowest, len(stack)) if checkpointing else ():
        stack[index] = RecomputedLayer(stack[index])
    return wrappers, prefix


def layer_number(name: str, stack_name: str) -> int | None:
    """Index of the transformer layer that a module lies in; None for a module outside the list of layers."""
    return int(name[len(stack_name) + 1 :].split(".")[0]) if name.startswith(stack_name + ".") else None


def target_layers_of(
    model: Any,
    stack_name: str,
    target_modules: Sequence[str] | str,
    layers: str | Sequence[int],
    heads: Sequence[str],
) -> dict[str, nn.Module]:
    """The linear layers that get adapters, by name.

    target_modules: ends of names in the chosen transformer layers; or, as PEFT takes a text, "all-linear" or a regular
    expression that whole names match. A text with layers = "all" also finds linear layers outside the list of layers,
    but never a causal LM's output layer, a head, or a layer of a model of images. Raises UserError where a
    module name or a layer does not exist.
    """
    stack: Any = model.get_submodule(stack_name)
    chosen = _layer_indices(layers, len(stack))
    linears = {name: module for name, module in model.named_modules() if is_linear(module)}
    number_of = {name: layer_number(name, stack_name) for name in linears}
    inside = [name for name, number in number_of.items() if number is not None]
    if isinstance(target_modules, str):
        out = model.get_output_embeddings()
        taken = {name for name, module in linears.items() if module is out} | set(heads)
        outside = layers == "all" and model.config.get_text_config() is model.config
        free = [n for n, number in number_of.items() if n not in taken and (outside or number is not None)]
        matches = _matches(target_modules, free, stack)
    else:
        matches = []
        for target in target_modules:
            names = [n for n in inside if n.endswith("." + target)]
            if not names:
                short = sorted({name.rpartition(".")[2] for name in inside})
                close = get_close_matches(target, set(short) - set(target_modules), n=1, cutoff=0.85)
                near = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(short) or _no_linear(stack)}"
                raise UserError(f'adapters.target_modules = "{target}": no such nn.Linear in the model\'s layers{near}')
            matches += [name for name in names if name not in matches]
    targets = {name: linears[name] for name in matches if number_of[name] is None or number_of[name] in chosen}
    if not targets:
        raise UserError(f"adapters.layers = {layers}: none of these layers has a module of adapters.target_modules")
    return targets


def _matches(pattern: str, names: Sequence[str], stack: nn.ModuleList) -> list[str]:
    """The names that "all-linear" or a regular expression selects. Raises UserError where there is none."""
    if pattern.lower() == "all-linear":
        matches = list(names)
    else:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UserError(f'adapters.target_modules = "{pattern}": no regular expression: {error}') from None
        matches = [name for name in names if expression.fullmatch(name)]
    if not matches:
        example = f"; names are like {names[-1]}" if names else f"; it has {_no_linear(stack)}"
        raise UserError(
            f'adapters.target_modules = "{pattern}": no linear layer\'s whole name matches; one or more names go into '
            f'a list, ["{pattern}"]{example}'
        )
    return matches


def _no_linear(stack: nn.ModuleList) -> str:
    """Text on the matrices of layers without any nn.Linear."""
    kinds = {
        type(module).__name__ for module in stack.modules() for w in module.parameters(recurse=False) if w.ndim > 1
    }
    return f"none, but {', '.join(sorted(kinds))}, which takes no adapter here"


def layer_stack(model: Any) -> tuple[str, nn.ModuleList]:
    """The model's list of transformer layers: the longest ModuleList whose layers all run on a text.

    Lists whose layers all hold a linear layer take precedence. For a model that does not run on tokens alone, the
    longest of all lists.
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
        if all(any(is_linear(module) for module in layer.modules()) for layer in stack)
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
    target_modules: Sequence[str] | str,
    layers: str | Sequence[int],
    scale: float,
    device: str,
    rng: torch.Generator,
    tokens: int = 0,
    answer: int = 0,
    trusted: bool = False,
    *,
    precision: Precision = FLOAT32,
    checkpointing: bool = False,
    rslora: bool = False,
    dropout: float = 0.0,
) -> Backbone:
    """Load a base model and attach adapters; arguments and exceptions as in `load_model` and `attach`.

    rslora: whether `scale` is alpha over the root of the rank, as an export says. Random: a classifier's head, from
    `rng`.
    """
    loaded = load_model(base, kind, classes, device, rng, tokens, answer, trusted, precision)
    model = loaded.model
    stack_name, stack = layer_stack(model)
    stacks_note = compatibility.frozen_stacks(stack)
    wrappers, prefix = attach(
        model, stack_name, target_modules, layers, loaded.heads, scale, checkpointing=checkpointing, dropout=dropout
    )
    out = model.get_output_embeddings() if loaded.causal else None
    if type(out) is nn.Linear:
        model.set_submodule(next(name for name, module in model.named_modules() if module is out), OutputLayer(out))
    target_layers = {n: linear_shape(m.base) for n, m in wrappers.items() if isinstance(m, StackedLoRA)}
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
        meta_model=loaded.meta_model,
        stack_name=stack_name,
        precision=precision,
        checkpointing=checkpointing,
        rslora=rslora,
    )


def _copy_to_meta(model: Any) -> Any:
    """The same modules with all tensors on the meta device, which takes no memory."""
    parameters: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    return deepcopy(model, parameters | {id(buffer): buffer.to("meta") for buffer in model.buffers()})
