"""Named tensors <-> flat vectors: the only place that knows which parameters travel, and in which order.

Within a scope all A factors come first, then all B factors, then head weights; within a kind, blocks and then layers in
sorted order. So each kind is one contiguous slice (a normaliser group), and a task with fewer classes than the widest
head uses a prefix of the vector.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.model.adapters import SCOPES, Block, Scope

Vectors = dict[Scope | Literal["added"], Tensor]
"""Scope -> (copies, d_scope): one copy of `global` and `frozen`, N of `task`, K of `device`.

`added`, where it is not empty: what a server has added to the frozen weights, all adapted layers in sorted order.
"""

Factors = dict[str, Tensor]
"""`LAYER.A` (K, R, Q), `LAYER.B` (K, L, R), `LAYER.head` (K, C, H + 1): what the model's layers use.

`LAYER.W` (L, Q), the same for all devices and never trained by one: what a server has added to the frozen weight.
"""

KINDS = ("A", "B", "head")


@dataclass(frozen=True)
class Entry:
    """One tensor of one block in the vector of its scope: columns start..stop."""

    layer: str
    kind: str
    block: int
    shape: tuple[int, int]
    scope: Scope
    start: int

    @property
    def stop(self) -> int:
        """End of the tensor's columns."""
        return self.start + self.shape[0] * self.shape[1]

    @property
    def key(self) -> str:
        """Name of the factor it is a part of."""
        return f"{self.layer}.{self.kind}"


@dataclass(frozen=True)
class Layout:
    """The order of all entries, and the length of each task's vector (shorter where its head is narrower).

    in_turn: the `global` scope's B factors move in odd rounds, its A factors in even ones.
    """

    entries: tuple[Entry, ...]
    task_lengths: tuple[int, ...]
    in_turn: bool = False

    def size(self, scope: Scope) -> int:
        """d of a scope; for `task` that of the widest head."""
        return max((entry.stop for entry in self.entries if entry.scope == scope), default=0)

    def groups(self, scope: Scope) -> tuple[tuple[int, int], ...]:
        """Columns of each normaliser group of a scope: A factors, B factors, head."""
        return tuple(self.kinds(scope).values())

    def kinds(self, scope: Scope) -> dict[str, tuple[int, int]]:
        """Kind of factor -> its columns in a scope, for the kinds that are there."""
        found = {}
        for kind in KINDS:
            spans = [(e.start, e.stop) for e in self.entries if e.scope == scope and e.kind == kind]
            if spans:
                found[kind] = (spans[0][0], spans[-1][1])
        return found

    def turns(self) -> tuple[tuple[int, int], ...]:
        """Columns of the `global` vector that are sent and move in rounds 1, 2, ..., and then in the same order.

        In turn: B factors (and heads of this scope), then A factors.
        """
        size, first = self.size("global"), self.groups("global")[:1]
        return ((first[0][1], size), first[0]) if self.in_turn else ((0, size),)


def layout(
    layers: Mapping[str, tuple[int, int]],
    blocks: Iterable[Block],
    heads: Mapping[str, tuple[int, int]],
    classes: Iterable[int],
    head: Scope = "task",
) -> Layout:
    """The layout of a model.

    layers: name -> (L, Q) of each adapted linear layer. heads: name -> (C, H + 1) of each linear layer of the task
    head, all of scope `head`, the one whose rows are classes last. classes: C_n of each task.
    """
    tensors: list[tuple[str, str, int, tuple[int, int], Scope]] = []
    blocks = tuple(blocks)
    assert all(not block.in_turn or (block.a, block.b) == ("global", "global") for block in blocks)
    for number, block in enumerate(blocks):
        for name in sorted(layers):
            out, width = layers[name]
            tensors.append((name, "A", number, (block.rank, width), block.a))
            tensors.append((name, "B", number, (out, block.rank), block.b))
    tensors += [(name, "head", 0, shape, head) for name, shape in heads.items()]
    ends: dict[Scope, int] = dict.fromkeys(SCOPES, 0)
    entries: list[Entry] = []
    for kind in KINDS:
        for name, own, number, shape, scope in tensors:
            if own == kind:
                entries.append(Entry(name, kind, number, shape, scope, ends[scope]))
                ends[scope] = entries[-1].stop
    widest, row = list(heads.values())[-1] if heads and head == "task" else (0, 0)
    lengths = tuple(ends["task"] - max(widest - c, 0) * row for c in classes)
    return Layout(tuple(entries), lengths, any(block.in_turn for block in blocks))


def copies(scope: Scope, tasks: int, devices: int) -> int:
    """How many versions of a scope's vector there are."""
    return {"global": 1, "frozen": 1, "task": tasks, "device": devices}[scope]


def gather(vectors: Vectors, layout: Layout, task_of: Int[Tensor, " K"], device: Int[Tensor, " K"]) -> Factors:
    """The factors of K devices, each a tensor with K as its leading axis; blocks lie side by side along the rank."""
    row = {"global": torch.zeros_like(task_of), "frozen": torch.zeros_like(task_of), "task": task_of, "device": device}
    parts: dict[str, list[Tensor]] = {}
    for entry in layout.entries:
        columns = vectors[entry.scope][:, entry.start : entry.stop]
        parts.setdefault(entry.key, []).append(columns[row[entry.scope]].reshape(-1, *entry.shape))
    found = _side_by_side(parts)
    return found | additions(vectors["added"], found) if "added" in vectors else found


def unflatten(rows: Vectors, layout: Layout) -> Factors:
    """The factors that have these rows, one a device in every scope: the inverse of `flatten`."""
    parts: dict[str, list[Tensor]] = {}
    for entry in layout.entries:
        columns = rows[entry.scope][:, entry.start : entry.stop]
        parts.setdefault(entry.key, []).append(columns.reshape(-1, *entry.shape))
    return _side_by_side(parts)


def _side_by_side(parts: dict[str, list[Tensor]]) -> Factors:
    """Blocks beside each other along the rank."""
    return {key: torch.cat(tensors, dim=1 if key.endswith(".A") else 2) for key, tensors in parts.items()}


def additions(added: Float[Tensor, "1 d"], factors: Factors) -> Factors:
    """`LAYER.W` of every adapted layer, sorted, from one vector."""
    layers = sorted(key.removesuffix(".B") for key in factors if key.endswith(".B"))
    shapes = [(factors[f"{layer}.B"].shape[1], factors[f"{layer}.A"].shape[2]) for layer in layers]
    cut = torch.split(added[0], [out * width for out, width in shapes])
    return {f"{layer}.W": one.view(shape) for layer, one, shape in zip(layers, cut, shapes, strict=True)}


def trained(factors: Factors) -> Factors:
    """The factors that devices train: all but what a server has added to the frozen weights."""
    return {key: tensor for key, tensor in factors.items() if not key.endswith(".W")}


def flatten(factors: Factors, layout: Layout) -> Vectors:
    """The factors (or their gradients) of K devices as one (K, d_scope) matrix per scope: the inverse of `gather`."""
    seen: dict[str, int] = {}
    parts: dict[Scope, list[Tensor]] = {scope: [] for scope in SCOPES}
    for entry in layout.entries:
        dim, rank = (1, entry.shape[0]) if entry.kind == "A" else (2, entry.shape[1])
        start = seen.get(entry.key, 0)
        seen[entry.key] = start + rank
        parts[entry.scope].append(factors[entry.key].narrow(dim, start, rank).flatten(1))
    rows = next(iter(factors.values()))
    return {s: torch.cat(p, dim=1) if p else rows.new_zeros(rows.shape[0], 0) for s, p in parts.items()}


def initial(layout: Layout, heads: Mapping[str, Float[Tensor, "C H"]], rng: torch.Generator) -> Vectors:
    """Fresh adapters: B = 0, A uniform in +-1/sqrt(Q) (as PEFT's Kaiming start), heads as the model came.

    One row per scope, float32: every task and device starts from the same values. A layer's A is drawn whole and
    then cut into blocks, so that all methods of one total rank start from the same A.
    """
    values: Vectors = {s: torch.zeros(1, layout.size(s)) for s in SCOPES}
    downs = [entry for entry in layout.entries if entry.kind == "A"]
    for layer in sorted({entry.layer for entry in downs}):
        parts = [entry for entry in downs if entry.layer == layer]
        width = parts[0].shape[1]
        whole = torch.empty(sum(e.shape[0] for e in parts), width).uniform_(-(width**-0.5), width**-0.5, generator=rng)
        for entry in parts:
            rows, whole = whole[: entry.shape[0]], whole[entry.shape[0] :]
            values[entry.scope][0, entry.start : entry.stop] = rows.flatten()
    for entry in (e for e in layout.entries if e.kind == "head"):
        values[entry.scope][0, entry.start : entry.stop] = heads[entry.layer].flatten()
    return values
