"""Links of methods that do not send everything in every round."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air.schedule import Uplink, correlation_rows
from airpfed.air.uplink import Aggregate, initial_statistics, send
from airpfed.core.run_files import Ledger, MeanSquaredErrors


def send_in_turn(
    links: Sequence[Uplink],
    turns: Sequence[tuple[int, int]],
    t: int,
    shared: Float[Tensor, "K d_s"],
    personal: Float[Tensor, "K d_p"],
    present: Bool[Tensor, " K"],
    correlation_statistics: Float[Tensor, "G 7"],
) -> Aggregate:
    """`send` of the columns of `shared` whose turn round t is, over that turn's `link`; 0 comes back in the others.

    turns: columns of each turn. correlation_statistics: the turns' own, one below another
    (`initial_statistics_of_turns`).
    """
    turn = (t - 1) % len(turns)
    first, last = turns[turn]
    place = sum(correlation_rows(link) for link in links[:turn])
    stop = place + correlation_rows(links[turn])
    got = send(links[turn], t, shared[:, first:last], personal, present, correlation_statistics[place:stop])
    whole = torch.zeros(shared.shape[1])
    whole[first:last] = got.shared
    kept = torch.cat([correlation_statistics[:place], got.correlation_statistics, correlation_statistics[stop:]])
    return replace(got, shared=whole, correlation_statistics=kept, turn=(turn, (first, last)))


def initial_statistics_of_turns(links: Sequence[Uplink]) -> Float[Tensor, "G 7"]:
    """The memory of `send_in_turn` before anything was heard."""
    return torch.cat([initial_statistics(link) for link in links])


def unsent(aggregate: Callable[..., Aggregate], *round_: object) -> Aggregate:
    """What `aggregate` gives, where sender and receiver are the same machine: nothing is on the air, nothing is
    charged."""
    got = aggregate(*round_)
    return replace(got, ledger=Ledger(), mse=MeanSquaredErrors(), pi=None, pi_claimed=None)
