"""Links of methods that do not send everything in every round."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air.plan import Air, memory_rows
from airpfed.air.uplink import Received, fresh_memory, send
from airpfed.record import Ledger, MeanSquaredErrors


def send_in_turn(
    airs: Sequence[Air],
    turns: Sequence[tuple[int, int]],
    t: int,
    shared: Float[Tensor, "K d_s"],
    personal: Float[Tensor, "K d_p"],
    present: Bool[Tensor, " K"],
    memory: Float[Tensor, "G 7"],
) -> Received:
    """`send` of the columns of `shared` whose turn round t is, over that turn's `air`; 0 comes back in the others.

    turns: columns of each turn. memory: the turns' own, one below another (`fresh_memories`).
    """
    turn = (t - 1) % len(turns)
    first, last = turns[turn]
    place = sum(memory_rows(air) for air in airs[:turn])
    stop = place + memory_rows(airs[turn])
    got = send(airs[turn], t, shared[:, first:last], personal, present, memory[place:stop])
    whole = torch.zeros(shared.shape[1])
    whole[first:last] = got.shared
    kept = torch.cat([memory[:place], got.memory, memory[stop:]])
    return replace(got, shared=whole, memory=kept, turn=(turn, (first, last)))


def fresh_memories(airs: Sequence[Air]) -> Float[Tensor, "G 7"]:
    """The memory of `send_in_turn` before anything was heard."""
    return torch.cat([fresh_memory(air) for air in airs])


def unsent(link: Callable[..., Received], *round_: object) -> Received:
    """What `link` gives, where sender and receiver are the same machine: nothing is on the air, nothing is charged."""
    got = link(*round_)
    return replace(got, ledger=Ledger(), mse=MeanSquaredErrors(), pi=None, pi_claimed=None)
