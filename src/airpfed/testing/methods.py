"""The contract of a federated fine-tuning method, checked on the layout of a toy model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from airpfed.model.layout import Layout, Vectors, arrange_layout, flatten, gather, initial_vectors, num_copies
from airpfed.model.methods import SCOPES, Block, Method
from airpfed.testing.report import (
    CheckSkipped,
    Report,
    Subject,
    describe_exception,
    require,
    run_checks,
    subject_of,
    tensors_equal,
    with_global_seeds,
)
from airpfed.training.factor_averaging import RULES

RANKS = ((2, 2), (4, 0), (0, 4), (1, 1), (3, 5))
"""Pairs (R_s, R_p) of the checks."""
TARGET_LAYERS = {"q": (6, 4), "v": (5, 3)}
"""Name -> (L, Q) of the adapted layers of the toy model."""
HEADS = {"head": (4, 7)}
"""Name -> (C, H + 1) of its head."""
CLASSES = (4, 2)
TASK_OF = (0, 0, 1)


def check_method(method: Method | Callable[..., tuple[Block, ...]] | str, **options: Any) -> Report:
    """Check a fine-tuning method: everything that the layout of vectors, the uplink and the export rely on.

    method: a `Method`, a function `(rank_shared, rank_personal, *, options) -> blocks`, or the name of a row of
    `METHODS`. options: its options. No model is loaded: the layout is that of a toy model of two layers and a head.
    Raises UserError for a function that cannot be a row, and for wrong options.

    >>> from airpfed import testing
    >>> testing.check_method("fedit").ok
    True
    """
    subject = subject_of("methods", method, options)
    trial = MethodTrial.arrange_blocks(subject)
    return run_checks(
        subject,
        [
            ("gives blocks", trial.gives_blocks),
            ("ranks", trial.ranks),
            ("scopes", trial.scopes),
            ("alternating factors", trial.alternating),
            ("deterministic", trial.deterministic),
            ("columns of the layout", trial.columns),
            ("every column has its rounds", trial.phases),
            ("something is trained", trial.trains),
            ("export as one adapter", trial.export),
            ("error-free link", trial.error_free),
        ],
    )


@dataclass(frozen=True)
class MethodTrial:
    """A method and its blocks of rank > 0 for each pair of RANKS. fault: why it gives no blocks; empty if it does."""

    name: str
    row: Method
    blocks_function: Callable[[int, int], tuple[Block, ...]]
    blocks: tuple[tuple[Block, ...], ...]
    fault: str

    @classmethod
    def arrange_blocks(cls, subject: Subject) -> "MethodTrial":
        """Call the method for every pair of ranks."""
        blocks: list[tuple[Block, ...]] = []
        fault = ""
        for ranks in RANKS:
            try:
                result = subject.function(*ranks)
            except Exception as error:  # of the user's method, which may raise anything
                fault = f"ranks {ranks}: {describe_exception(error)}"
                break
            if not isinstance(result, tuple) or not all(isinstance(block, Block) for block in result):
                fault = f"ranks {ranks}: returns {describe(result)}; should be a tuple of Block"
                break
            if wrong := [block.rank for block in result if type(block.rank) is not int or block.rank < 0]:
                fault = f"ranks {ranks}: a block has the rank {wrong[0]!r}; should be a whole number, 0 or more"
                break
            blocks.append(tuple(block for block in result if block.rank > 0))
        return cls(subject.name, subject.row, subject.function, tuple(blocks), fault)

    def gives_blocks(self) -> str:
        """A tuple of blocks for every pair of ranks, also where one of them is 0."""
        require(not self.fault, self.fault)
        return f"{len(RANKS)} pairs of ranks"

    def ranks(self) -> str:
        """The ranks of all blocks have the sum R_s + R_p, for which the export and the scale alpha / R are set."""
        for (shared, personal), blocks in self._pairs():
            total = sum(block.rank for block in blocks)
            require(
                total == shared + personal,
                f"ranks ({shared}, {personal}): the blocks have rank {total} in all; should be {shared + personal}",
            )
        return ""

    def scopes(self) -> str:
        """Every factor has one of the scopes of `SCOPES`."""
        for pair, blocks in self._pairs():
            for scope in (scope for block in blocks for scope in (block.a, block.b)):
                require(scope in SCOPES, f"ranks {pair}: the scope {scope!r}; should be one of {', '.join(SCOPES)}")
        return ""

    def alternating(self) -> str:
        """Blocks that alternate are global, and then all blocks with a global factor alternate."""
        for pair, blocks in self._valid_pairs():
            if not any(block.alternating for block in blocks):
                continue
            for block in blocks:
                require(
                    not block.alternating or (block.a, block.b) == ("global", "global"),
                    f"ranks {pair}: a block alternates with A {block.a} and B {block.b}; should be global, global",
                )
                require(
                    block.alternating or "global" not in (block.a, block.b),
                    f"ranks {pair}: a block with a global factor does not alternate beside one that does; the columns "
                    "of the global vector alternate together",
                )
        return ""

    def deterministic(self) -> str:
        """The same ranks give the same blocks."""
        for pair, _ in self._pairs():
            first, second = with_global_seeds(partial(self.blocks_function, *pair))
            require(first == second, f"ranks {pair}: two calls give {first} and {second}")
        return ""

    def columns(self) -> str:
        """The vectors of all scopes hold every entry of A, B and head once, and go to factors and back unchanged."""
        for pair, blocks in self._valid_pairs():
            layout = toy_layout(blocks)
            rank = sum(block.rank for block in blocks)
            entries = sum(rank * (rows + width) for rows, width in TARGET_LAYERS.values())
            entries += sum(rows * width for rows, width in HEADS.values())
            columns = {scope: sorted((e.start, e.stop) for e in layout.entries if e.scope == scope) for scope in SCOPES}
            for scope, spans in columns.items():
                borders = [0, *(stop for _, stop in spans)]
                require(
                    borders[:-1] == [start for start, _ in spans] and borders[-1] == layout.size(scope),
                    f"ranks {pair}: the columns of scope {scope} overlap or leave gaps",
                )
            total = sum(layout.size(scope) for scope in SCOPES)
            require(total == entries, f"ranks {pair}: the layout has {total} columns for {entries} entries")
            vectors = initial_vectors(layout, {n: torch.ones(*s) for n, s in HEADS.items()}, torch.Generator())
            rows: Vectors = {s: vectors[s].expand(num_copies(s, len(CLASSES), len(TASK_OF)), -1) for s in SCOPES}
            factors = gather(rows, layout, torch.tensor(TASK_OF), torch.arange(len(TASK_OF)))
            back = flatten(factors, layout)
            require(
                all(tensors_equal(back[scope][:1], vectors[scope]) for scope in SCOPES),
                f"ranks {pair}: vectors that become factors and vectors again have changed",
            )
        return ""

    def phases(self) -> str:
        """Every column of the global vector is active in some round."""
        for pair, blocks in self._valid_pairs():
            layout = toy_layout(blocks)
            active: set[int] = set()
            for t in range(1, 1 + len(layout.phases())):
                active |= set(range(*layout.active_columns(t)))
            missing = set(range(layout.size("global"))) - active
            require(not missing, f"ranks {pair}: {len(missing)} columns of the global vector are active in no round")
        return ""

    def trains(self) -> str:
        """B starts at 0, so a block with a frozen B never changes the model."""
        for pair, blocks in self._valid_pairs():
            for number, block in enumerate(blocks):
                require(
                    block.b != "frozen",
                    f"ranks {pair}: block {number} has a frozen B, which starts at 0: its A gets no gradient and the "
                    "block changes nothing",
                )
        return ""

    def export(self) -> str:
        """All blocks of a device side by side are one LoRA adapter of rank R_s + R_p, as PEFT stores it."""
        if self.row.averages:
            raise CheckSkipped("a method that averages changes the frozen weights and exports merged ones")
        for pair, blocks in self._valid_pairs():
            layout, rank = toy_layout(blocks), sum(pair)
            rows: Vectors = {s: torch.zeros(num_copies(s, len(CLASSES), len(TASK_OF)), layout.size(s)) for s in SCOPES}
            factors = gather(rows, layout, torch.tensor(TASK_OF), torch.arange(len(TASK_OF)))
            for name, (out, width) in TARGET_LAYERS.items():
                for key, shape in ((f"{name}.A", (rank, width)), (f"{name}.B", (out, rank))):
                    size = tuple(factors[key].shape[1:]) if key in factors else None
                    require(size == shape, f"ranks {pair}: {key} is {size}; PEFT expects {shape}")
        return ""

    def error_free(self) -> str:
        """A method that averages needs an error-free link, and a rule of the server by its name."""
        require(
            isinstance(self.row.error_free, str), "error_free should be a text: why a method needs an error-free link"
        )
        if self.row.averages:
            require(
                bool(self.row.error_free), "a method that averages needs every device's factors: say so in error_free"
            )
            require(
                self.name in RULES,
                f"averages is for methods with a rule of the server, {' and '.join(RULES)}; {self.name} has none",
            )
        return ""

    def _pairs(self) -> list[tuple[tuple[int, int], tuple[Block, ...]]]:
        """The pairs of ranks and their blocks; skip the check if the method gives none."""
        if self.fault:
            raise CheckSkipped("the method does not give blocks")
        return list(zip(RANKS, self.blocks, strict=True))

    def _valid_pairs(self) -> list[tuple[tuple[int, int], tuple[Block, ...]]]:
        """The pairs of ranks and their blocks; skip the check unless all scopes are valid."""
        pairs = self._pairs()
        if any(scope not in SCOPES for _, blocks in pairs for block in blocks for scope in (block.a, block.b)):
            raise CheckSkipped("a scope is not valid")
        return pairs


def toy_layout(blocks: tuple[Block, ...]) -> Layout:
    """The layout of the toy model. Alternation is left out where a block cannot alternate."""
    valid = all((block.a, block.b) == ("global", "global") for block in blocks if block.alternating)
    blocks = blocks if valid else tuple(replace(block, alternating=False) for block in blocks)
    return arrange_layout(TARGET_LAYERS, blocks, HEADS, CLASSES)


def describe(value: Any) -> str:
    """A value in at most 60 characters."""
    return repr(value)[:60]
