"""Conversion between named tensors and the flat vector of each scope.

Within a scope, all A factors come first, then all B factors, then head weights; within a kind, blocks in order and then
layers in sorted order. So each kind is one contiguous range of columns (a normaliser group), and a task with fewer
classes than the widest head uses a prefix of the vector.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.model.methods import SCOPES, Block, Scope

Vectors = dict[Scope | Literal["added"], Tensor]
"""Scope -> (copies, d_scope): one copy of `global` and `frozen`, N of `task`, K of `device`.

`added`, where present: what a server has added to the frozen weights, all adapted layers in sorted order.
"""

Factors = dict[str, Tensor]
"""The tensors of the model's layers: `LAYER.A` (K, R, Q), `LAYER.B` (K, L, R), `LAYER.head` (K, C, H + 1).

`LAYER.W` (L, Q) is what a server has added to the frozen weight; it is the same for all devices, which do not train it.
"""

KINDS = ("A", "B", "head")


@dataclass(frozen=True)
class Entry:
    """One tensor of one block, at columns start..stop of its scope's vector."""

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
        """Name of the factor that the tensor is a part of."""
        return f"{self.layer}.{self.kind}"


@dataclass(frozen=True)
class Layout:
    """The order of all entries, and the length of each task's vector (shorter for a narrower head).

    alternating: whether the `global` scope's B factors are trained in odd rounds only, its A factors in even rounds.
    """

    entries: tuple[Entry, ...]
    task_lengths: tuple[int, ...]
    alternating: bool = False

    def size(self, scope: Scope) -> int:
        """d of a scope; of `task` with the widest head."""
        return max((entry.stop for entry in self.entries if entry.scope == scope), default=0)

    def groups(self, scope: Scope) -> tuple[tuple[int, int], ...]:
        """First and last column of each normaliser group of a scope: A factors, B factors, head."""
        return tuple(self.kinds(scope).values())

    def kinds(self, scope: Scope) -> dict[str, tuple[int, int]]:
        """Kind of factor -> its first and last column in a scope, for the kinds that the scope has."""
        columns = {}
        for kind in KINDS:
            spans = [(e.start, e.stop) for e in self.entries if e.scope == scope and e.kind == kind]
            if spans:
                columns[kind] = (spans[0][0], spans[-1][1])
        return columns

    def phases(self) -> tuple[tuple[int, int], ...]:
        """The active columns [first, last) of the `global` vector in each phase; phases take turns round by round.

        Alternating methods have two phases: B factors and heads, then A factors. Other methods have one phase.
        """
        size, first = self.size("global"), self.groups("global")[:1]
        return ((first[0][1], size), first[0]) if self.alternating else ((0, size),)

    def active_columns(self, t: int) -> tuple[int, int]:
        """The columns [first, last) of the `global` vector that are trained and sent in round t = 1, 2, ...

        `uplink` selects the same phase in `alternating_phases`.
        """
        phases = self.phases()
        return phases[(t - 1) % len(phases)]


def arrange_layout(
    target_layers: Mapping[str, tuple[int, int]],
    blocks: Iterable[Block],
    heads: Mapping[str, tuple[int, int]],
    classes: Iterable[int],
    head: Scope = "task",
) -> Layout:
    """The layout of a model.

    target_layers: name -> (L, Q) of each adapted linear layer. heads: name -> (C, H + 1) of each linear layer of the
    task head, all of scope `head`; the layer whose rows are classes comes last. classes: C_n of each task.
    """
    tensors: list[tuple[str, str, int, tuple[int, int], Scope]] = []
    blocks = tuple(blocks)
    assert all(not block.alternating or (block.a, block.b) == ("global", "global") for block in blocks)
    for number, block in enumerate(blocks):
        for name in sorted(target_layers):
            out, width = target_layers[name]
            tensors.append((name, "A", number, (block.rank, width), block.a))
            tensors.append((name, "B", number, (out, block.rank), block.b))
    tensors += [(name, "head", 0, shape, head) for name, shape in heads.items()]
    ends: dict[Scope, int] = dict.fromkeys(SCOPES, 0)
    entries: list[Entry] = []
    for kind in KINDS:
        for name, tensor_kind, number, shape, scope in tensors:
            if tensor_kind == kind:
                entries.append(Entry(name, kind, number, shape, scope, ends[scope]))
                ends[scope] = entries[-1].stop
    widest, row = list(heads.values())[-1] if heads and head == "task" else (0, 0)
    lengths = tuple(ends["task"] - max(widest - c, 0) * row for c in classes)
    return Layout(tuple(entries), lengths, any(block.alternating for block in blocks))


def num_copies(scope: Scope, tasks: int, devices: int) -> int:
    """Number of copies of a scope's vector."""
    return {"global": 1, "frozen": 1, "task": tasks, "device": devices}[scope]


def gather(vectors: Vectors, layout: Layout, task_of: Int[Tensor, " K"], device: Int[Tensor, " K"]) -> Factors:
    """The factors of K devices, each a tensor with leading axis K and all blocks side by side along the rank.

    task_of, device: rows of the `task` and of the `device` vectors to take.
    """
    row = {"global": torch.zeros_like(task_of), "frozen": torch.zeros_like(task_of), "task": task_of, "device": device}
    parts: dict[str, list[Tensor]] = {}
    for entry in layout.entries:
        columns = vectors[entry.scope][:, entry.start : entry.stop]
        parts.setdefault(entry.key, []).append(columns[row[entry.scope]].reshape(-1, *entry.shape))
    factors = _join_blocks(parts)
    return factors | added_weights(vectors["added"], factors) if "added" in vectors else factors


def unflatten(rows: Vectors, layout: Layout) -> Factors:
    """The factors of one row per device in every scope: the inverse of `flatten`."""
    parts: dict[str, list[Tensor]] = {}
    for entry in layout.entries:
        columns = rows[entry.scope][:, entry.start : entry.stop]
        parts.setdefault(entry.key, []).append(columns.reshape(-1, *entry.shape))
    return _join_blocks(parts)


def _join_blocks(parts: dict[str, list[Tensor]]) -> Factors:
    return {key: torch.cat(tensors, dim=1 if key.endswith(".A") else 2) for key, tensors in parts.items()}


def added_weights(added: Float[Tensor, "1 d"], factors: Factors) -> Factors:
    """`LAYER.W` of every adapted layer, in sorted order, from one vector."""
    layers = sorted(key.removesuffix(".B") for key in factors if key.endswith(".B"))
    shapes = [(factors[f"{layer}.B"].shape[1], factors[f"{layer}.A"].shape[2]) for layer in layers]
    parts = torch.split(added[0], [out * width for out, width in shapes])
    return {f"{layer}.W": part.view(shape) for layer, part, shape in zip(layers, parts, shapes, strict=True)}


def trained_factors(factors: Factors) -> Factors:
    """The factors that devices train: all except what a server has added to the frozen weights."""
    return {key: tensor for key, tensor in factors.items() if not key.endswith(".W")}


def flatten(factors: Factors, layout: Layout) -> Vectors:
    """The factors (or their gradients) of K devices as one (K, d_scope) matrix per scope: the inverse of `gather`."""
    rank_end: dict[str, int] = {}
    parts: dict[Scope, list[Tensor]] = {scope: [] for scope in SCOPES}
    for entry in layout.entries:
        dim, rank = (1, entry.shape[0]) if entry.kind == "A" else (2, entry.shape[1])
        start = rank_end.get(entry.key, 0)
        rank_end[entry.key] = start + rank
        parts[entry.scope].append(factors[entry.key].narrow(dim, start, rank).flatten(1))
    rows = next(iter(factors.values()))
    return {s: torch.cat(p, dim=1) if p else rows.new_zeros(rows.shape[0], 0) for s, p in parts.items()}


def initial_vectors(layout: Layout, heads: Mapping[str, Float[Tensor, "C H"]], rng: torch.Generator) -> Vectors:
    """Vectors at the start of training: B = 0, A uniform in +-1/sqrt(Q) (PEFT's Kaiming start), heads as given.

    One row per scope, float32: all tasks and devices start from the same values. A layer's A is drawn as one matrix and
    then cut into blocks, so all methods with one total rank start from the same A. Random: `rng`.
    """
    values: Vectors = {s: torch.zeros(1, layout.size(s)) for s in SCOPES}
    a_entries = [entry for entry in layout.entries if entry.kind == "A"]
    for layer in sorted({entry.layer for entry in a_entries}):
        blocks = [entry for entry in a_entries if entry.layer == layer]
        rank, width = sum(entry.shape[0] for entry in blocks), blocks[0].shape[1]
        a = torch.empty(rank, width).uniform_(-(width**-0.5), width**-0.5, generator=rng)
        for entry, rows in zip(blocks, torch.split(a, [entry.shape[0] for entry in blocks]), strict=True):
            values[entry.scope][0, entry.start : entry.stop] = rows.flatten()
    for entry in (e for e in layout.entries if e.kind == "head"):
        values[entry.scope][0, entry.start : entry.stop] = heads[entry.layer].flatten()
    return values
