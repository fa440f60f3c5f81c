"""Fine-tuning methods: which adapter blocks they have, and which devices share each factor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Scope = Literal["global", "task", "device", "frozen"]
"""Who shares a tensor: all devices (summed over them), the devices of a task (summed over them), no other device (never
sent), or all devices without training (never changed)."""

SCOPES: tuple[Scope, ...] = ("global", "task", "device", "frozen")


@dataclass(frozen=True)
class Block:
    """An adapter block: `rank` columns of B and rows of A, with the scope of each factor.

    alternating: whether B is trained and sent in odd rounds only, and A in even rounds only.
    """

    rank: int
    a: Scope
    b: Scope
    alternating: bool = False


METHODS: dict[str, Callable[[int, int], tuple[Block, ...]]] = {
    "airpfed": lambda r_s, r_p: (Block(r_s, "global", "global"), Block(r_p, "task", "task")),
    "fedit": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
    "per_task_fedit": lambda r_s, r_p: (Block(r_s + r_p, "task", "task"),),
    "feddpa": lambda r_s, r_p: (Block(r_s, "global", "global"), Block(r_p, "device", "device")),
    "ffa": lambda r_s, r_p: (Block(r_s + r_p, "frozen", "global"),),
    "fedsa": lambda r_s, r_p: (Block(r_s + r_p, "global", "device"),),
    "rolora": lambda r_s, r_p: (Block(r_s + r_p, "global", "global", alternating=True),),
    "local": lambda r_s, r_p: (Block(r_s + r_p, "device", "device"),),
    "centralised": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
    "fedex": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
    "flora": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
}
"""Method -> its blocks, from (R_s, R_p). A method with one block takes the total rank R_s + R_p.

The last three are error-free upper bounds, which no uplink over the air can send: `centralised` has one worker per task
that holds the data of its devices; the servers of `fedex` and `flora` need every device's factors
(`training.factor_averaging`).
"""


def blocks_of(method: str, rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """The blocks of a method, without blocks of rank 0."""
    return tuple(block for block in METHODS[method](rank_shared, rank_personal) if block.rank > 0)
