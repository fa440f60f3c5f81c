"""The frozen base model: loading, and attaching adapters."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from airpfed.core.errors import UserError
from airpfed.model import fit, origin, zoo
from airpfed.model.adapters import OutputLayer, StackedHead, StackedLoRA, attribute
from airpfed.model.origin import Origin


@dataclass(frozen=True)
class FastPaths:
    """Which fast ways of computing are used; by default none: one sample at a time, as PEFT does it.

    Each is used on a base only where it was measured to give the same numbers (`devices.fast_paths`).

    prefix: what the layers below the lowest adapter make of a sample is kept. packing: samples of unlike lengths lie
    end to end in one row (causal LMs on a CPU). last_layer: past its attention, the last layer is computed only where
    it is read. stacking: several devices in one pass. batching: several samples in one pass, shorter ones padded.
    left: on which side. parallel: passes side by side, each over modules of its own. fused: an adapted layer is one
    function. decoding: greedy decoding keeps keys and values of tokens that it has read.
    """

    prefix: bool = False
    packing: bool = False
    last_layer: bool = False
    stacking: bool = False
    batching: bool = False
    left: bool = False
    parallel: bool = False
    fused: bool = False
    decoding: bool = False


class Kept(nn.Module):
    """A transformer layer below the lowest adapter, which a kept output can stand in for.

    While `skip` is set the layer hands its input on unchanged; while `value` is set it returns that instead. Both come
    in the form that the layer returned when it last ran: a tensor, or a tuple that begins with it.
    """

    def __init__(self, layer: nn.Module) -> None:
        """Wrap `layer`."""
        super().__init__()
        self.base = layer
        self.skip = False
        self.value: Tensor | None = None
        self.empty: int | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output, its input, or the kept value."""
        if self.value is None and not self.skip:
            out = self.base(*args, **kwargs)
            self.empty = len(out) - 1 if isinstance(out, tuple) else None
            if self.empty and any(one is not None for one in out[1:]):
                self.empty = -1  # more than one tensor: nothing can stand in for it
            return out
        if self.empty == -1:
            raise ValueError("a layer returns more than its hidden states")
        hidden = self.value if self.value is not None else args[0] if args else next(iter(kwargs.values()))
        return hidden if self.empty is None else (hidden, *[None] * self.empty)

    def __getattr__(self, name: str) -> Any:
        """Attributes that models read off their layers (an attention type, say) come from the wrapped one."""
        return attribute(self, name)


@dataclass(frozen=True)
class Backbone:
    """A base model with adapters attached.

    sites: name -> (L, Q) of each adapted linear layer; heads: name -> initial (C, H + 1) weight of each head layer
    (none for a causal LM), the one whose rows are classes last. prefix: layers below the lowest adapter. folder: what
    from_pretrained takes; origin: which base that is. paths: the fast ways of computing that are used. ends: tokens
    that end an answer, first the one that training answers end with. notes: lines that the user is told before round 1.
    blank: the model without adapters and without memory for its weights.
    """

    model: Any
    tokenizer: Any
    folder: str
    causal: bool
    sites: dict[str, tuple[int, int]]
    heads: dict[str, Tensor]
    layers: dict[str, StackedLoRA | StackedHead]
    prefix: tuple[Kept, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    paths: FastPaths = FastPaths()
    origin: Origin = field(default_factory=Origin)
    ends: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    blank: Any = None
    stack: str = ""
    _twins: list["Backbone"] = field(default_factory=list, init=False, repr=False, compare=False)

    def twins(self, count: int) -> list["Backbone"]:
        """Itself and others, `count` in all, that have the same weights under modules of their own.

        A pass tells its modules what they need to know, so passes at the same time need one each.
        """
        while len(self._twins) < count - 1:
            tensors = [*self.model.parameters(), *self.model.buffers()]
            model = deepcopy(self.model, {id(tensor): tensor for tensor in tensors})
            layers = {name: model.get_submodule(name) for name in self.layers}
            prefix = tuple(module for module in model.modules() if isinstance(module, Kept))
            self._twins.append(replace(self, model=model, layers=layers, prefix=prefix))
        return [self, *self._twins[: count - 1]]

    def on(self, paths: FastPaths) -> "Backbone":
        """The same, computing in other ways."""
        return replace(self, paths=paths)

    @property
    def kept_layers(self) -> tuple[Kept, ...]:
        """Layers whose output is kept, sample by sample: none where that is not one of the ways that are used."""
        return self.prefix if self.paths.prefix else ()

    @property
    def top(self) -> nn.Module | None:
        """The last layer, where it is computed only where it is read (`passes.read_only`)."""
        return self.model.get_submodule(self.stack)[-1] if self.paths.last_layer else None

    @property
    def forward_parameters(self) -> set[str]:
        """Keyword arguments that the model's forward pass names."""
        return set(signature(self.model.forward).parameters)


@dataclass(frozen=True)
class Loaded:
    """A base model as it came. heads: names of the layers that are a task's own; the rest as in `Backbone`."""

    model: Any
    tokenizer: Any
    origin: Origin
    causal: bool
    heads: list[str]
    ends: tuple[int, ...]
    notes: tuple[str, ...]


def load(
    base: str,
    kind: str,
    classes: int,
    device: str,
    rng: torch.Generator,
    tokens: int = 0,
    answer: int = 0,
    trusted: bool = False,
) -> Loaded:
    """A base model and its tokenizer.

    A classifier gets `classes` outputs (the widest task's); its head is new, drawn from `rng` by the model's own rule.
    tokens, answer: of the longest sample, and of the longest answer that may be generated; trusted: whether Python code
    that the base brings may run. Raises UserError where the base is not fit for that.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

    notes = list[str]()
    place = origin.origin(base, trusted, notes.append)
    config = origin.read_config(place, base)
    causal = fit.kind_of(config, kind, base)
    extra: dict[str, Any] = {} if causal else {"num_labels": classes, "ignore_mismatched_sizes": True}
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.random.fork_rng(), zoo.quiet():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
        try:
            model, info = auto.from_pretrained(
                place.folder, dtype=torch.float32, output_loading_info=True, **place.options, **extra
            )
        except Exception as error:  # transformers raises many kinds here
            why = origin.needs_code(error) or f"cannot be loaded: {zoo.first_line(error)}"
            raise UserError(f'model.base = "{base}": {why}') from None
        try:
            tokenizer = AutoTokenizer.from_pretrained(place.folder, **place.options)
        except Exception as error:
            why = origin.needs_code(error) or fit.unreadable(error, place.folder)
            raise UserError(f'model.base = "{base}": {why}') from None
        model.eval().requires_grad_(False)
        missing = [*info["missing_keys"], *(one[0] for one in info["mismatched_keys"])]
        heads = [] if causal else fit.head_layers(model, missing)
        fit.whole(model, missing, heads, base)
        came = [name for name in heads if f"{name}.weight" not in missing]
        fit.redraw(model, came)
    place = origin.loaded(place)
    if came:
        notes.append(
            f"the base has a head of its own ({', '.join(came)}): tasks get new ones, drawn at random, and train them"
        )
    if not causal and not any(model.get_submodule(name).out_features == classes for name in heads):
        raise UserError(
            f'model.base = "{base}": no nn.Linear gives this classifier\'s classes, so tasks can have no head'
        )
    fit.vocabulary(tokenizer, base)
    fit.pad(tokenizer, model, causal)
    stops = fit.ends(tokenizer, model)
    if causal and hasattr(model, "generation_config"):  # plain greedy decoding, whatever the base declares
        model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=list(stops) or None, pad_token_id=tokenizer.pad_token_id
        )
    fit.reading(model, tokenizer, causal, base)
    padding = getattr(config, "pad_token_id", None) or 0
    if tokens and (line := fit.room(model, tokenizer, causal, padding, tokens, answer, base)):
        notes.append(line)
    return Loaded(model.to(device), tokenizer, place, causal, heads, stops, tuple(notes))


def attach(
    model: Any,
    stack_name: str,
    target_modules: Sequence[str],
    layers: str | Sequence[int],
    fresh: Sequence[str],
    scale: float,
) -> tuple[dict[str, StackedLoRA | StackedHead], tuple[Kept, ...]]:
    """Put adapters on the named linear layers and heads in place of the new ones; returns both and the prefix.

    layers: "all", "last-n", or indices into `stack_name`, the model's list of transformer layers. Raises UserError
    where a module name or a layer is not there.
    """
    stack: Any = model.get_submodule(stack_name)
    chosen = _chosen(layers, len(stack))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inside = {n: m for n, m in linears.items() if n.startswith(stack_name + ".")}
    at = {name: int(name[len(stack_name) + 1 :].split(".")[0]) for name in inside}
    found: dict[str, StackedLoRA | StackedHead] = {}
    for target in target_modules:
        hits = [n for n in inside if n.endswith("." + target)]
        if not hits:
            short = sorted({name.rpartition(".")[2] for name in inside})
            close = get_close_matches(target, set(short) - set(target_modules), n=1, cutoff=0.85)
            near = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(short) or others(stack)}"
            raise UserError(f'adapters.target_modules = "{target}": no such nn.Linear in the model\'s layers{near}')
        found |= {n: StackedLoRA(inside[n], scale) for n in hits if at[n] in chosen}
    if not found:
        raise UserError(f"adapters.layers = {layers}: none of these layers has a module of adapters.target_modules")
    found |= {name: StackedHead(linears[name]) for name in fresh if name in linears}
    for name, module in found.items():
        model.set_submodule(name, module)
    lowest = min(at[name] for name in found if name in at)
    prefix = tuple(Kept(stack[index]) for index in range(lowest))
    for index, kept in enumerate(prefix):
        stack[index] = kept
    return found, prefix


def others(stack: nn.ModuleList) -> str:
    """What layers without any nn.Linear hold in its place."""
    kinds = {
        type(module).__name__ for module in stack.modules() for w in module.parameters(recurse=False) if w.ndim > 1
    }
    return f"none, but {', '.join(sorted(kinds))}, which takes no adapter here"


def layer_stack(model: Any) -> tuple[str, nn.ModuleList]:
    """The model's list of transformer layers: the longest ModuleList all of whose layers run on a text.

    One whose layers all hold an nn.Linear goes before others. Of a model that does not run on tokens alone it is the
    longest of all.
    """
    stacks = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and module}
    if not stacks:
        raise UserError("model.base: this model has no list of transformer layers to put adapters on")
    idle = {id(layer) for stack in stacks.values() for layer in stack}
    handles = [
        layer.register_forward_pre_hook(lambda one, _args: idle.discard(id(one)))
        for stack in stacks.values()
        for layer in stack
    ]
    tokens = torch.arange(1, fit.SHORT + 1, device=next(model.parameters()).device)[None]
    try:
        with torch.no_grad():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **fit.uncached(model))
    except Exception:  # whatever a model raises that needs more than text: it is refused elsewhere
        idle.clear()
    finally:
        for handle in handles:
            handle.remove()
    run = {name: stack for name, stack in stacks.items() if not any(id(layer) in idle for layer in stack)}
    linear = {
        name: stack
        for name, stack in run.items()
        if all(any(isinstance(one, nn.Linear) for one in layer.modules()) for layer in stack)
    }
    return max((linear or run or stacks).items(), key=lambda item: len(item[1]))


def _chosen(layers: str | Sequence[int], count: int) -> set[int]:
    if isinstance(layers, str):
        last = count if layers == "all" else int(layers.removeprefix("last-"))
        if last > count:
            raise UserError(
                f'adapters.layers = "{layers}": the model has {count} layers; "last-{count}" or "all" are all'
            )
        return set(range(count - last, count))
    found = {index % count for index in layers}
    if not layers or len(found) < len(layers) or not all(-count <= index < count for index in layers):
        raise UserError(
            f"adapters.layers = {list(layers)}: indices should be from 0 to {count - 1}, or -1 (the last) to -{count}, "
            "each layer once"
        )
    return found


def build(
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
    """Load a base model and attach adapters; `rng` draws the task head of a classifier, nothing else is random.

    tokens, answer, trusted: as `load` takes them.
    """
    made = load(base, kind, classes, device, rng, tokens, answer, trusted)
    model = made.model
    blank = blueprint(model)
    stack_name, stack = layer_stack(model)
    stacks = fit.frozen_stacks(stack)
    found, prefix = attach(model, stack_name, target_modules, layers, made.heads, scale)
    out = model.get_output_embeddings() if made.causal else None
    if type(out) is nn.Linear:
        model.set_submodule(next(name for name, one in model.named_modules() if one is out), OutputLayer(out))
    sites = {n: (m.base.out_features, m.base.in_features) for n, m in found.items() if isinstance(m, StackedLoRA)}
    # In the order of the modules; the layer whose rows are classes is the last.
    order = sorted(made.heads, key=lambda name: found[name].base.out_features == classes)
    heads = {name: m.start.cpu() for name in order if isinstance(m := found[name], StackedHead)}
    notes = made.notes if stacks is None else (*made.notes, stacks)
    return Backbone(
        model,
        made.tokenizer,
        made.origin.folder,
        made.causal,
        sites,
        heads,
        found,
        prefix,
        torch.device(device),
        origin=made.origin,
        ends=made.ends,
        notes=notes,
        blank=blank,
        stack=stack_name,
    )


def blueprint(model: Any) -> Any:
    """The same modules without memory for their tensors."""
    memo: dict[int, Any] = {id(one): nn.Parameter(one.to("meta"), requires_grad=False) for one in model.parameters()}
    return deepcopy(model, memo | {id(one): one.to("meta") for one in model.buffers()})
