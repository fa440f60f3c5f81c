"""One round: gradients in, state out. The simulator and a real federation share this step."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.air.error_memory import UnsentScope
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import Updates
from airpfed.air.uplink import Aggregate
from airpfed.core.memory import release_pages
from airpfed.devices.clients import Clients, draw_batches
from airpfed.devices.gradients import gradients
from airpfed.model.layout import Vectors
from airpfed.training.state import (
    DeviceState,
    ErrorMemory,
    ServerStep,
    State,
    update,
    update_active,
    vectors,
)

Aggregator = Callable[[int, Updates, Tensor], Aggregate]
"""(t, the devices' updates, correlation statistics) -> the sums."""


@dataclass(frozen=True)
class LocalTraining:
    """A device's work in a round: `steps` steps of SGD at learning rate `lr`, each on a mini-batch.

    batch_size: samples of a mini-batch. proximal_mu: mu of FedProx. max_norm: largest norm of what is sent (0: any).
    """

    batch_size: int
    steps: int
    lr: float
    proximal_mu: float = 0.0
    max_norm: float = 0.0


def local_gradients(
    clients: Clients, state: State, local_training: LocalTraining, devices_per_pass: int
) -> tuple[Vectors, Float[Tensor, " K"], Int[Tensor, " K"]]:
    """The devices' gradients in the next round: scope -> (K, d_scope), losses in nats, and cursors after the round.

    After several local steps the pseudo-gradient (W_start - W_end) / (steps lr) takes the gradient's place. Nothing is
    clipped yet.
    """
    plan, cursors = draw_batches(clients, state.devices.cursors, local_training.batch_size, local_training.steps)
    t = state.round + 1
    active_columns = clients.layout.active_columns(t)
    rows, loss = gradients(
        clients,
        vectors(state),
        plan,
        local_training.lr,
        devices_per_pass,
        active_columns,
        local_training.proximal_mu,
        t,
    )
    return rows, loss, cursors


def finite(gradients: Vectors) -> Bool[Tensor, " K"]:
    """Whether each device's gradient is finite in all scopes. The other devices are absent from the round."""
    return torch.stack([_finite_rows(rows) for rows in gradients.values()]).all(0)


def _finite_rows(gradient: Float[Tensor, "K d"]) -> Bool[Tensor, " K"]:
    """Rows whose sum is not finite are checked entry by entry, because a finite row can overflow in the sum."""
    result = torch.ones(len(gradient), dtype=torch.bool)
    for rows in row_chunks(*gradient.shape):
        result[rows] = gradient[rows].sum(1).isfinite()
        release_pages(gradient)
    for row in (~result).nonzero().flatten().tolist():
        result[row] = gradient[row].isfinite().all()
    return result


def round_step(
    state: State, gradients: Vectors, cursors: Int[Tensor, " K"], aggregate: Aggregator, server_step: ServerStep
) -> tuple[State, Aggregate, Bool[Tensor, " K"]]:
    """Send the gradients of round `state.round + 1` and update all parameters; pure but for `aggregate`'s streams.

    gradients: scope -> (K, d_scope), one row per device, with what its error memory held (`carry_over`). cursors: the
    devices' positions in their data after the round. A device without a finite gradient neither sends nor updates its
    own parameters. Returns the next state, the received sums, and the devices that were present.
    """
    present = finite(gradients)
    t = state.round + 1
    updates = Updates(gradients["global"], gradients["task"], present)
    received = aggregate(t, updates, state.server.correlation_statistics)
    anyone = present.any().reshape(1)
    shared = received.shared[None, :]
    server = replace(
        state.server,
        shared=update(state.server.shared, shared, anyone, server_step)
        if received.active_columns is None
        else update_active(state.server.shared, *received.active_columns, shared, anyone, server_step),
        personal=update(state.server.personal, received.personal, received.active_tasks, server_step),
        correlation_statistics=received.correlation_statistics,
    )
    local = torch.where(present[:, None], gradients["device"], 0.0)
    memory = next_memory(state.devices.memory, gradients, present, received)
    devices = DeviceState(update(state.devices.own, local, present, server_step), cursors, memory)
    return replace(state, round=t, server=server, devices=devices), received, present


def carry_over(gradients: Vectors, memory: ErrorMemory) -> Vectors:
    """Add what the devices have not sent yet to their gradients, which are changed in place."""
    for scope, unsent in memory.items():
        for rows in row_chunks(*unsent.shape):
            gradients[scope][rows] += unsent[rows]
            release_pages(gradients[scope])
            release_pages(unsent)
    return gradients


def next_memory(
    memory: ErrorMemory, gradients: Vectors, present: Bool[Tensor, " K"], received: Aggregate
) -> ErrorMemory:
    """The devices' error memory after a round; empty without one. Changes `received.unsent`.

    A device that sent keeps what the uplink says was not sent. An absent device keeps all that it wanted to send, or
    what it had before if its gradient is not finite. Columns that alternating factors did not send stay as they were.
    """
    if not memory:
        return memory
    after: dict[UnsentScope, Tensor] = {}
    for scope, before in memory.items():
        columns = slice(*received.active_columns[1]) if scope == "global" and received.active_columns else slice(None)
        unsent, wanted, old = received.unsent[scope], gradients[scope][:, columns], before[:, columns]
        for row in (~present).nonzero().flatten().tolist():
            unsent[row] = wanted[row] if bool(wanted[row].isfinite().all()) else old[row]
        after[scope] = unsent
        if unsent.shape != before.shape:
            after[scope] = before.clone()
            after[scope][:, columns] = unsent
    return after
