"""What moves during a run: parameters with their optimiser moments, and where each device is in its data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.model.adapters import Scope
from airpfed.model.layout import Layout, Vectors, copies

Optimizer = Literal["adam", "sgd"]

BETAS = (0.9, 0.999)
EPSILON = 1e-12
"""Far below the usual 1e-8: root mean squares of LoRA gradients can be smaller than that."""


NOTHING = torch.zeros(1, 0)


@dataclass(frozen=True)
class OptimizedParameters:
    """Parameters of one scope, one row per copy, with Adam's moments and the number of updates of each copy.

    Where parts of the columns move in turn, each turn counts its own updates: the last axis of `updates`.
    """

    value: Float[Tensor, "copies d"]
    first: Float[Tensor, "copies d"]
    second: Float[Tensor, "copies d"]
    updates: Int[Tensor, "copies *turns"]


@dataclass(frozen=True)
class ServerState:
    """What servers hold: the shared parameters and each task's, and what they have heard of symbols' correlation.

    added: to the frozen weights of all adapted layers (`rounds.merge`), empty for every other method. Nothing that must
    not leave a device is a field here.
    """

    shared: OptimizedParameters
    personal: OptimizedParameters
    correlation_statistics: Float[Tensor, "G 7"]
    added: Float[Tensor, "1 d_W"] = NOTHING


@dataclass(frozen=True)
class DeviceState:
    """What devices hold, one row a device: parameters that are never sent, and samples drawn so far."""

    own: OptimizedParameters
    cursors: Int[Tensor, " K"]


@dataclass(frozen=True)
class State:
    """A run after `round` rounds. frozen: parameters that never move (one row)."""

    round: int
    server: ServerState
    devices: DeviceState
    frozen: Float[Tensor, "1 d"]


def start(
    initial: Vectors,
    layout: Layout,
    tasks: int,
    devices: int,
    correlation_statistics: Float[Tensor, "G 7"],
    added: Float[Tensor, "1 d_W"] = NOTHING,
) -> State:
    """Round 0: every copy of a scope starts from the same values.

    correlation_statistics: the link's, before anything was heard.
    """

    def moving(scope: Scope, turns: Sequence[int] = ()) -> OptimizedParameters:
        rows = copies(scope, tasks, devices)
        value = initial[scope].repeat(rows, 1)
        updates = torch.zeros(rows, *turns, dtype=torch.long)
        return OptimizedParameters(value, torch.zeros_like(value), torch.zeros_like(value), updates)

    shared = moving("global", (len(layout.turns()),) if layout.in_turn else ())
    own = DeviceState(moving("device"), torch.zeros(devices, dtype=torch.long))
    return State(0, ServerState(shared, moving("task"), correlation_statistics, added), own, initial["frozen"])


def vectors(state: State) -> Vectors:
    """The current parameters of every scope."""
    server, own = state.server, state.devices.own
    found: Vectors = {"global": server.shared.value, "task": server.personal.value, "device": own.value}
    found["frozen"] = state.frozen
    return found | {"added": server.added} if server.added.numel() else found


def update(
    moving: OptimizedParameters,
    gradient: Float[Tensor, "copies d"],
    moves: Bool[Tensor, " copies"],
    optimizer: Optimizer,
    lr: float,
) -> OptimizedParameters:
    """One step of the copies in `moves`; the others stay exactly as they are.

    sgd: W - lr g. adam: Kingma and Ba 2015, bias-corrected, on whatever gradient was received.
    """
    if optimizer == "sgd":
        after = OptimizedParameters(moving.value - lr * gradient, moving.first, moving.second, moving.updates + 1)
    else:
        updates = moving.updates + 1
        first = BETAS[0] * moving.first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * moving.second + (1 - BETAS[1]) * gradient.square()
        lag = [(1 - beta ** updates.double()).to(first.dtype)[:, None] for beta in BETAS]
        mean, spread = first / lag[0], (second / lag[1]).sqrt()
        after = OptimizedParameters(moving.value - lr * mean / (spread + EPSILON), first, second, updates)

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(moves.view(-1, *[1] * (new.dim() - 1)), new, old)

    return OptimizedParameters(
        chosen(after.value, moving.value),
        chosen(after.first, moving.first),
        chosen(after.second, moving.second),
        chosen(after.updates, moving.updates),
    )


def update_turn(
    moving: OptimizedParameters,
    turn: int,
    columns: tuple[int, int],
    gradient: Float[Tensor, "copies d"],
    moves: Bool[Tensor, " copies"],
    optimizer: Optimizer,
    lr: float,
) -> OptimizedParameters:
    """`update` of the columns whose turn it is, by that turn's own count; the others stay exactly as they are."""
    first, last = columns
    place = {"value": slice(first, last), "first": slice(first, last), "second": slice(first, last), "updates": turn}
    part = OptimizedParameters(**{key: getattr(moving, key)[:, at] for key, at in place.items()})
    after = update(part, gradient[:, first:last], moves, optimizer, lr)
    whole = {key: getattr(moving, key).clone() for key in place}
    for key, at in place.items():
        whole[key][:, at] = getattr(after, key)
    return OptimizedParameters(**whole)
