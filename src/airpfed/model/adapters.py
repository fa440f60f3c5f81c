"""Adapter blocks and their scopes, and the linear layers that apply them for many devices at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Scope = Literal["global", "task", "device", "frozen"]
"""Who shares a tensor: summed over all devices, summed over a task's, never sent, or never changed."""

SCOPES: tuple[Scope, ...] = ("global", "task", "device", "frozen")


@dataclass(frozen=True)
class Block:
    """`rank` columns of B and rows of A, with the scope of each factor.

    in_turn: B is sent and moves in odd rounds, A in even ones; the factor that rests does neither.
    """

    rank: int
    a: Scope
    b: Scope
    in_turn: bool = False


METHODS: dict[str, Callable[[int, int], tuple[Block, ...]]] = {
    "airpfed": lambda r_s, r_p: (Block(r_s, "global", "global"), Block(r_p, "task", "task")),
    "fedit": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
    "per_task_fedit": lambda r_s, r_p: (Block(r_s + r_p, "task", "task"),),
    "feddpa": lambda r_s, r_p: (Block(r_s, "global", "global"), Block(r_p, "device", "device")),
    "ffa": lambda r_s, r_p: (Block(r_s + r_p, "frozen", "global"),),
    "fedsa": lambda r_s, r_p: (Block(r_s + r_p, "global", "device"),),
    "rolora": lambda r_s, r_p: (Block(r_s + r_p, "global", "global", in_turn=True),),
    "local": lambda r_s, r_p: (Block(r_s + r_p, "device", "device"),),
    "centralised": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
    "fedex": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
    "flora": lambda r_s, r_p: (Block(r_s + r_p, "global", "global"),),
}
"""Every method is a row: (R_s, R_p) -> blocks. A method of one block takes the total rank R_s + R_p.

The last three are upper bounds without an error, not of the air: one worker a task that holds its devices' data, and
two whose server needs every device's factors (`rounds.merge`).
"""


def blocks_of(method: str, rank_shared: int, rank_personal: int) -> tuple[Block, ...]:
    """The blocks of a method; blocks of rank 0 are left out."""
    return tuple(block for block in METHODS[method](rank_shared, rank_personal) if block.rank > 0)


class StackedLoRA(nn.Module):
    """A frozen linear layer plus the adapters of K devices: W0 x + c B_k A_k x for the rows of device k.

    Rows come device by device, equally many each: x is (K*b, ..., Q); or, where `spans` is set, `spans[k]` of the
    flattened rows are device k's. `a` (K, R, Q) and `b` (K, L, R) hold all blocks side by side; while they are None the
    layer is its base. With B = 0 the output equals the base's exactly. `added` (L, Q), if there is one, is what a
    server has added to W0.
    """

    def __init__(self, base: nn.Linear, scale: float) -> None:
        """Wrap `base`; `scale` is c = alpha / (R_s + R_p)."""
        super().__init__()
        self.base = base
        self.scale = scale
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        self.added: Tensor | None = None
        self.spans: Sequence[int] | None = None

    def forward(self, x: Float[Tensor, "rows *t Q"]) -> Float[Tensor, "rows *t L"]:
        """W0 x + c B A x, each row with its own device's factors."""
        y: Tensor = self.base(x)
        if self.a is None or self.b is None:
            return y
        if self.added is not None:
            y = y + nn.functional.linear(x, self.added)
        up = self.scale * self.b
        if self.spans is not None:
            parts = torch.split(x.reshape(-1, x.shape[-1]), list(self.spans))
            moved = [part @ a.T @ b.T for part, a, b in zip(parts, self.a.unbind(), up.unbind(), strict=True)]
            return y + torch.cat(moved).reshape(y.shape)
        low = torch.bmm(x.reshape(self.a.shape[0], -1, x.shape[-1]), self.a.transpose(1, 2))
        return y + torch.bmm(low, up.transpose(1, 2)).reshape(y.shape)


class StackedHead(nn.Module):
    """A trained linear layer with one weight per device: W_k x + bias_k for the rows of device k.

    `weight` (K, C, H + 1) holds the bias as its last column (K, C, H without bias); while it is None the layer is its
    base, the head the model came with. What moved is added to the base's output, so that a head that has not moved
    gives exactly the base's.
    """

    def __init__(self, base: nn.Linear) -> None:
        """Wrap `base`."""
        super().__init__()
        self.base = base
        self.weight: Tensor | None = None

    @property
    def start(self) -> Float[Tensor, "C H"]:
        """Weight and bias of the base as one matrix, the bias its last column."""
        weight, bias = self.base.weight, self.base.bias
        return weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)

    def forward(self, x: Float[Tensor, "rows *t H"]) -> Float[Tensor, "rows *t C"]:
        """W x + bias, each row with its own device's head."""
        y: Tensor = self.base(x)
        if self.weight is None:
            return y
        moved = self.weight - self.start
        rows = x.reshape(self.weight.shape[0], -1, x.shape[-1])
        change = torch.bmm(rows, moved[:, :, : x.shape[-1]].transpose(1, 2))
        if self.base.bias is not None:
            change = change + moved[:, None, :, -1]
        return y + change.reshape(y.shape)
