"""The state of a run: parameters with their optimizer moments, and each device's position in its data."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.model.layout import Layout, Vectors, num_copies
from airpfed.model.methods import Scope

Optimizer = Literal["adam", "sgd"]

BETAS = (0.9, 0.999)
EPSILON = 1e-12
"""Far below the usual 1e-8: root mean squares of LoRA gradients can be smaller than that."""


NOTHING = torch.zeros(1, 0)


@dataclass(frozen=True)
class ServerStep:
    """The optimizer of the servers and its learning rate. lr: learning rate, None until the theory's probe sets it."""

    optimizer: Optimizer
    lr: float | None

    @property
    def step_size(self) -> float:
        """The learning rate; ValueError if only the probe could set it."""
        if self.lr is None:
            raise ValueError('server.lr = "theory": the probe decides the step size, and no probe was run')
        return self.lr

    def resolve(self, eta: float | None) -> "ServerStep":
        """The same step, with the probe's step size `eta` if the settings leave the rate to the probe."""
        return self if self.lr is not None else replace(self, lr=eta)


@dataclass(frozen=True)
class OptimizedParameters:
    """Parameters of one scope, one row per copy, with Adam's moments and each copy's number of updates.

    first, second: moments. updates: one count per phase (last axis) if factors alternate, else one count.
    """

    value: Float[Tensor, "copies d"]
    first: Float[Tensor, "copies d"]
    second: Float[Tensor, "copies d"]
    updates: Int[Tensor, "copies *phases"]


@dataclass(frozen=True)
class ServerState:
    """The servers' state; no field holds what must not leave a device.

    shared: s-adapter. personal: p-adapters, one row per task. correlation_statistics: the receivers' normal equations
    of the correlation of symbols, see `air.uplink.initial_statistics`. added: added to the frozen weights of all
    adapted layers (`factor_averaging`), empty for every other method.
    """

    shared: OptimizedParameters
    personal: OptimizedParameters
    correlation_statistics: Float[Tensor, "G 7"]
    added: Float[Tensor, "1 d_W"] = NOTHING


@dataclass(frozen=True)
class DeviceState:
    """The devices' state, one row per device.

    own: parameters that are never sent. cursors: number of samples that each device has drawn so far.
    """

    own: OptimizedParameters
    cursors: Int[Tensor, " K"]


@dataclass(frozen=True)
class State:
    """A run after `round` rounds. frozen: parameters that never change (one row)."""

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
    """The state before round 1: every copy of a scope starts from the same values.

    tasks, devices: numbers of tasks and devices. correlation_statistics: the uplink's initial statistics.
    """

    def parameters(scope: Scope, phases: tuple[int, ...] = ()) -> OptimizedParameters:
        rows = num_copies(scope, tasks, devices)
        value = initial[scope].repeat(rows, 1)
        updates = torch.zeros(rows, *phases, dtype=torch.long)
        return OptimizedParameters(value, torch.zeros_like(value), torch.zeros_like(value), updates)

    shared = parameters("global", (len(layout.phases()),) if layout.alternating else ())
    return State(
        round=0,
        server=ServerState(shared, parameters("task"), correlation_statistics, added),
        devices=DeviceState(parameters("device"), torch.zeros(devices, dtype=torch.long)),
        frozen=initial["frozen"],
    )


def vectors(state: State) -> Vectors:
    """The current parameters of every scope."""
    server = state.server
    values: Vectors = {
        "global": server.shared.value,
        "task": server.personal.value,
        "device": state.devices.own.value,
        "frozen": state.frozen,
    }
    return values | {"added": server.added} if server.added.numel() else values


def update(
    parameters: OptimizedParameters,
    gradient: Float[Tensor, "copies d"],
    mask: Bool[Tensor, " copies"],
    server_step: ServerStep,
) -> OptimizedParameters:
    """Take one step on the copies in `mask`; the other copies do not change at all.

    sgd: W - lr g. adam: Kingma and Ba (2015) with bias correction, on the received gradient.
    """
    lr, updates = server_step.step_size, parameters.updates + 1
    if server_step.optimizer == "sgd":
        value, first, second = parameters.value - lr * gradient, parameters.first, parameters.second
    else:
        first = BETAS[0] * parameters.first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * parameters.second + (1 - BETAS[1]) * gradient.square()
        correction = [(1 - beta ** updates.double()).to(first.dtype)[:, None] for beta in BETAS]
        mean, root_mean_square = first / correction[0], (second / correction[1]).sqrt()
        value = parameters.value - lr * mean / (root_mean_square + EPSILON)

    def select(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)

    return OptimizedParameters(
        value=select(value, parameters.value),
        first=select(first, parameters.first),
        second=select(second, parameters.second),
        updates=select(updates, parameters.updates),
    )


def update_active(
    parameters: OptimizedParameters,
    phase: int,
    active_columns: tuple[int, int],
    gradient: Float[Tensor, "copies d"],
    mask: Bool[Tensor, " copies"],
    server_step: ServerStep,
) -> OptimizedParameters:
    """Take one step on the active columns, with the phase's own count of updates; the other columns do not change.

    active_columns: first and last + 1.
    """
    columns = slice(*active_columns)
    index = {"value": columns, "first": columns, "second": columns, "updates": phase}
    active = OptimizedParameters(**{key: getattr(parameters, key)[:, i] for key, i in index.items()})
    new = update(active, gradient[:, columns], mask, server_step)
    tensors = {key: getattr(parameters, key).clone() for key in index}
    for key, i in index.items():
        tensors[key][:, i] = getattr(new, key)
    return OptimizedParameters(**tensors)
