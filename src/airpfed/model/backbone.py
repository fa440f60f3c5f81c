"""The frozen base model: loading, and attaching adapters."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from airpfed.errors import UserError, hint
from airpfed.model import catalog
from airpfed.model.adapters import StackedHead, StackedLoRA, attribute


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
    (none for a causal LM). prefix: layers below the lowest adapter. folder: what from_pretrained takes. paths: the fast
    ways of computing that are used.
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
        return layer_stack(self.model)[1][-1] if self.paths.last_layer else None

    @property
    def forward_parameters(self) -> set[str]:
        """Keyword arguments that the model's forward pass names."""
        return set(signature(self.model.forward).parameters)


def load(
    base: str, kind: str, classes: int, device: str, rng: torch.Generator
) -> tuple[Any, Any, str, bool, list[str]]:
    """Model, tokenizer, folder, causal or not, and the names of the layers that are new (the task head).

    A classifier gets `classes` outputs (the widest task's). New layers are drawn from `rng`, by the model's own rule.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder = catalog.resolve(base)
    causal = catalog.is_causal(folder) if kind == "auto" else kind == "causal"
    extra: dict[str, Any] = {} if causal else {"num_labels": classes, "ignore_mismatched_sizes": True}
    auto = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    with torch.random.fork_rng(), catalog.quiet():
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=rng)))
        try:
            model, info = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **extra)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:
            raise UserError(f'model.base = "{base}": cannot be loaded: {catalog.first_line(error)}') from None
    fresh = {key.rpartition(".")[0] for key in [*info["missing_keys"], *(m[0] for m in info["mismatched_keys"])]}
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval().to(device), tokenizer, folder, causal, [] if causal else sorted(fresh)


def attach(
    model: Any, target_modules: Sequence[str], layers: str | Sequence[int], fresh: Sequence[str], scale: float
) -> tuple[dict[str, StackedLoRA | StackedHead], tuple[Kept, ...]]:
    """Put adapters on the named linear layers and heads in place of the new ones; returns both and the prefix.

    layers: "all", "last-n", or indices into the model's list of transformer layers. Raises UserError where a module
    name or a layer is not there.
    """
    stack_name, stack = layer_stack(model)
    chosen = _chosen(layers, len(stack))
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inside = {n: m for n, m in linears.items() if n.startswith(stack_name + ".")}
    at = {name: int(name[len(stack_name) + 1 :].split(".")[0]) for name in inside}
    found: dict[str, StackedLoRA | StackedHead] = {}
    for target in target_modules:
        hits = [n for n in inside if n.endswith("." + target)]
        if not hits:
            short = sorted({name.rpartition(".")[2] for name in inside})
            near = hint(target, short) or f"; it has {', '.join(short)}"
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


def layer_stack(model: Any) -> tuple[str, nn.ModuleList]:
    """The model's list of transformer layers: its longest ModuleList."""
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise UserError("model.base: this model has no list of transformer layers to put adapters on")
    return max(stacks, key=lambda item: len(item[1]))


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
) -> Backbone:
    """Load a base model and attach adapters; `rng` draws the task head of a classifier, nothing else is random."""
    model, tokenizer, folder, causal, fresh = load(base, kind, classes, device, rng)
    found, prefix = attach(model, target_modules, layers, fresh, scale)
    sites = {n: (m.base.out_features, m.base.in_features) for n, m in found.items() if isinstance(m, StackedLoRA)}
    # In the order of the modules: the layer whose rows are classes is the last.
    heads = {n: m.start.cpu() for n, m in model.named_modules() if isinstance(m, StackedHead)}
    return Backbone(model, tokenizer, folder, causal, sites, heads, found, prefix, torch.device(device))
