"""Fine-tuning methods: which adapter blocks they have, and which devices share each factor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airpfed.core.errors import UserError
from airpfed.core.rows import RowDict

Scope = Literal["global", "task", "device", "frozen"]
"""Who shares a tensor: all devices (summed over them), the devices of a task (summed over them), no other device (never
sent), or all devices without training (never changed)."""

SCOPES: tuple[Scope, ...] = ("global", "task", "device", "frozen")


@dataclass(frozen=True)
class Block:
    """An adapter block: `rank` columns of B and rows of A, with the scope of each factor.

    alternating: whether B is trained and sent in odd rounds only, and A in even rounds only.

    >>> import airpfed as ap
    >>> ap.Block(4, a="global", b="device")
    Block(rank=4, a='global', b='device', alternating=False)
    """

    rank: int
    a: Scope
    b: Scope
    alternating: bool = False


@dataclass(frozen=True)
class Method:
    """A fine-tuning method.

    blocks: (R_s, R_p, *, options) -> adapter blocks; those of rank 0 are left out. error_free: why it needs an
    error-free uplink; empty if it does not. pooled: one worker a task holds the data of all its devices. averages: the
    server averages factors or weights in place of the sum of gradients (`training.factor_averaging`).

    >>> import airpfed as ap
    >>> for block in ap.METHODS["airpfed"].blocks(4, 2):
    ...     print(block)
    Block(rank=4, a='global', b='global', alternating=False)
    Block(rank=2, a='task', b='task', alternating=False)
    """

    blocks: Callable[..., tuple[Block, ...]]
    error_free: str = ""
    pooled: bool = False
    averages: bool = False


def airpfed(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """A shared s-adapter and a p-adapter of every task, both trained by sums over the air."""
    return Block(rank_shared, "global", "global"), Block(rank_personal, "task", "task")


def fedit(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """One adapter for all devices (Zhang et al., ICASSP 2024)."""
    return (Block(rank_shared + rank_personal, "global", "global"),)


def per_task_fedit(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """One adapter for the devices of each task."""
    return (Block(rank_shared + rank_personal, "task", "task"),)


def feddpa(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """A global adapter and one that stays on the device (Yang et al., NeurIPS 2024)."""
    return Block(rank_shared, "global", "global"), Block(rank_personal, "device", "device")


def ffa(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """FFA-LoRA: A stays as initialised, B is global (Sun et al., ICLR 2024)."""
    return (Block(rank_shared + rank_personal, "frozen", "global"),)


def fedsa(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """FedSA-LoRA: A is global, B stays on the device (Guo et al., ICLR 2025)."""
    return (Block(rank_shared + rank_personal, "global", "device"),)


def rolora(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """RoLoRA: B in odd rounds, A in even rounds (Chen et al., 2025)."""
    return (Block(rank_shared + rank_personal, "global", "global", alternating=True),)


def local(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """One adapter for every device, and nothing is sent."""
    return (Block(rank_shared + rank_personal, "device", "device"),)


def centralised(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """Upper bound: one worker a task holds the data of all its devices."""
    return fedit(rank_shared, rank_personal)


def fedex_blocks(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """Upper bound: FedEx-LoRA averages factors and adds the residual to the base (Singhal et al., 2024)."""
    return fedit(rank_shared, rank_personal)


def flora_blocks(rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """Upper bound: FLoRA stacks the devices' factors (Wang et al., NeurIPS 2024)."""
    return fedit(rank_shared, rank_personal)


SUM_ONLY = "its server needs every device's factors, and the air carries only their sum"
METHODS: RowDict[Method] = RowDict(
    "method",
    {
        "airpfed": Method(airpfed),
        "fedit": Method(fedit),
        "per_task_fedit": Method(per_task_fedit),
        "feddpa": Method(feddpa),
        "ffa": Method(ffa),
        "fedsa": Method(fedsa),
        "rolora": Method(rolora),
        "local": Method(local),
        "centralised": Method(centralised, "one worker a task holds all data, and nothing is sent", pooled=True),
        "fedex": Method(fedex_blocks, SUM_ONLY, averages=True),
        "flora": Method(flora_blocks, SUM_ONLY, averages=True),
    },
    wrap=Method,
    function=lambda row: row.blocks,
)
"""The methods that `adapters.method` knows. A method with one block takes the total rank R_s + R_p."""


def blocks_of(
    method: str, rank_shared: int, rank_personal: int, options: Mapping[str, Any] | None = None
) -> tuple[Block, ...]:
    """The blocks of a method, without blocks of rank 0. Raises UserError if a row gives something else than blocks."""
    blocks: Any = METHODS.bind(method, options or {})(rank_shared, rank_personal)
    if not isinstance(blocks, (tuple, list)) or not all(isinstance(block, Block) for block in blocks):
        raise UserError(f'adapters.method = "{method}": should give a tuple of Block, not {type(blocks).__name__}')
    for block in blocks:
        wrong = type(block.rank) is not int or block.rank < 0 or not {block.a, block.b} <= set(SCOPES)
        if wrong:
            raise UserError(
                f'adapters.method = "{method}": {block}: rank should be a whole number of at least 0, a and b one of '
                f"{', '.join(SCOPES)}"
            )
    if not any(block.rank for block in blocks):
        raise UserError(f'adapters.method = "{method}": gives no block with a rank of at least 1')
    return tuple(block for block in blocks if block.rank > 0)
