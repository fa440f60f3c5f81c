"""One device at a time: the model as Hugging Face made it, forward hooks and autograd.

The specification that the stacked pass is held to. It shares no layer, vector, padding or cache with airpfed: every
sample runs alone, and flat vectors are cut here once more from the written rule (A, B, head; blocks; sorted layers).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from airpfed.devices.clients import Clients
from airpfed.model.methods import Block
from airpfed.model.tokens import Encoding

Leaves = dict[tuple[str, str, int], Tensor]
"""(layer, kind, block) -> values."""


@dataclass(frozen=True)
class OneDevice:
    """A fresh model; which layers have adapters, of which blocks; scale c; heads with their widths (C, H + 1)."""

    model: Any
    causal: bool
    sites: Mapping[str, tuple[int, int]]
    heads: Mapping[str, tuple[int, int]]
    blocks: Sequence[Block]
    scale: float

    def order(self) -> Iterator[tuple[str, tuple[str, str, int], tuple[int, int]]]:
        """(scope, name of the leaf, shape) in the order of the flat vectors."""
        for kind in ("A", "B"):
            for number, block in enumerate(self.blocks):
                for name in sorted(self.sites):
                    out, width = self.sites[name]
                    shape = (block.rank, width) if kind == "A" else (out, block.rank)
                    yield (block.a if kind == "A" else block.b), (name, kind, number), shape
        for name, shape in self.heads.items():
            yield "task", (name, "head", 0), shape

    def cut(self, rows: Mapping[str, Tensor]) -> Leaves:
        """A device's row of each scope as leaves."""
        place = dict.fromkeys(rows, 0)
        leaves: Leaves = {}
        for scope, key, shape in self.order():
            size = shape[0] * shape[1]
            part = rows[scope][place[scope] : place[scope] + size]
            leaves[key] = part.reshape(shape).clone().requires_grad_()
            place[scope] += size
        assert all(place[scope] == len(row) for scope, row in rows.items())
        return leaves

    def paste(self, values: Leaves) -> dict[str, Tensor]:
        """The inverse of `cut`."""
        parts: dict[str, list[Tensor]] = {scope: [] for scope in ("global", "task", "device", "frozen")}
        for scope, key, _ in self.order():
            parts[scope].append(values[key].flatten())
        return {scope: torch.cat(part) if part else torch.zeros(0) for scope, part in parts.items()}

    @contextmanager
    def hooked(self, leaves: Leaves) -> Iterator[None]:
        """The model with W0 x + c sum_blocks B A x in its layers, and its heads replaced."""

        def lora(name: str) -> Any:
            def hook(_module: Any, args: Any, output: Tensor) -> Tensor:
                for number in range(len(self.blocks)):
                    a, b = leaves[name, "A", number], leaves[name, "B", number]
                    output = output + self.scale * (b @ (a @ args[0].mT)).mT
                return output

            return hook

        def head(name: str) -> Any:
            def hook(_module: Any, args: Any, _output: Tensor) -> Tensor:
                weight = leaves[name, "head", 0]
                return args[0] @ weight[:, :-1].T + weight[:, -1]

            return hook

        modules = dict(self.model.named_modules())
        handles = [modules[name].register_forward_hook(lora(name)) for name in self.sites]
        handles += [modules[name].register_forward_hook(head(name)) for name in self.heads]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, leaves: Leaves, samples: Sequence[Encoding], classes: int) -> Tensor:
        """Mean over samples of the mean cross-entropy over a sample's targets, each sample on its own."""
        losses = []
        for sample in samples:
            with self.hooked(leaves):
                out = self.model(input_ids=torch.tensor([sample.ids])).logits
            rows = out[0, len(sample.ids) - len(sample.targets) :] if self.causal else out[:, :classes]
            each = [-row.log_softmax(0)[target] for row, target in zip(rows, sample.targets, strict=True)]
            losses.append(torch.stack(each).mean())
        return torch.stack(losses).mean()

    def gradient(self, leaves: Leaves, samples: Sequence[Encoding], classes: int) -> tuple[Tensor, Leaves]:
        """The loss and its gradient by autograd."""
        loss = self.loss(leaves, samples, classes)
        return loss.detach(), dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def one_device(folder: Path, clients: Clients, blocks: Sequence[Block]) -> OneDevice:
    """A fresh model from `folder`, with adapters where the fleet has them and alpha = 16."""
    causal = clients.backbone.causal
    model = (
        AutoModelForCausalLM.from_pretrained(folder)
        if causal
        else AutoModelForSequenceClassification.from_pretrained(folder, num_labels=max(clients.classes))
    )
    model.requires_grad_(False)
    heads = {name: tuple(weight.shape) for name, weight in clients.backbone.heads.items()}
    return OneDevice(
        model.eval(), causal, clients.backbone.target_layers, heads, blocks, 16 / sum(b.rank for b in blocks)
    )
