"""One round, gradients in, state out: the piece that the simulator and a real federation share."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air.row_chunks import chunks
from airpfed.air.uplink import Aggregate
from airpfed.core import spill
from airpfed.model.layout import Vectors
from airpfed.training.state import DeviceState, Optimizer, State, update, update_turn

Aggregator = Callable[[int, Tensor, Tensor, Tensor, Tensor], Aggregate]
"""(t, shared gradients (K, d_s), personal gradients (K, d_p), present (K), memory) -> what the servers receive."""


def finite(gradients: Vectors) -> Bool[Tensor, " K"]:
    """Devices whose whole gradient is finite: the others are absent from the round."""
    return torch.stack([_finite_rows(g) for g in gradients.values()]).all(0)


def _finite_rows(gradient: Float[Tensor, "K d"]) -> Bool[Tensor, " K"]:
    """By sums, which one infinity or NaN spoils; a sum may overflow by itself, so a spoilt one is looked into."""
    found = torch.ones(len(gradient), dtype=torch.bool)
    for rows in chunks(*gradient.shape):
        found[rows] = gradient[rows].sum(1).isfinite()
        spill.release(gradient)
    for row in (~found).nonzero().flatten().tolist():
        found[row] = gradient[row].isfinite().all()
    return found


def step(
    state: State, gradients: Vectors, cursors: Tensor, aggregate: Aggregator, optimizer: Optimizer, lr: float
) -> tuple[State, Aggregate, Bool[Tensor, " K"]]:
    """Play round `state.round + 1`: devices send, servers update; pure but for the streams that `aggregate` draws from.

    gradients: scope -> (K, d_scope), one row a device; cursors: the devices' places in their data after this round. A
    device without a finite gradient neither sends nor updates its own parameters. Returns the next state, what was
    received, and which devices were present.
    """
    present = finite(gradients)
    t = state.round + 1
    received = aggregate(t, gradients["global"], gradients["task"], present, state.server.correlation_statistics)
    anyone = present.any().reshape(1)
    shared = received.shared[None, :]
    server = replace(
        state.server,
        shared=update(state.server.shared, shared, anyone, optimizer, lr)
        if received.turn is None
        else update_turn(state.server.shared, *received.turn, shared, anyone, optimizer, lr),
        personal=update(state.server.personal, received.personal, received.heard, optimizer, lr),
        correlation_statistics=received.correlation_statistics,
    )
    own = update(state.devices.own, _clean(gradients["device"], present), present, optimizer, lr)
    return replace(state, round=t, server=server, devices=DeviceState(own, cursors)), received, present


def _clean(gradient: Float[Tensor, "K d"], present: Bool[Tensor, " K"]) -> Float[Tensor, "K d"]:
    return torch.where(present[:, None], gradient, 0.0)
