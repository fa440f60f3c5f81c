"""The state of a run: parameters with their optimizer moments, and each device's position in its data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.air.error_memory import UnsentScope
from airpfed.core.errors import UserError
from airpfed.model.layout import Layout, Vectors, num_copies
from airpfed.model.methods import Scope
from airpfed.training.optimizers import OPTIMIZERS, Init, OptimizerState, Update
from airpfed.training.schedules import SCHEDULES

NOTHING = torch.zeros(1, 0)

ErrorMemory = Mapping[UnsentScope, Float[Tensor, "K d"]]
"""Scope -> what each device still has to send."""


@dataclass(frozen=True)
class ServerStep:
    """The optimizer of the servers, its learning rate and its options.

    optimizer: name of a row of `OPTIMIZERS`. lr: learning rate, None until the theory's probe sets it. schedule: name
    of a row of `SCHEDULES`, with its options, which gives the rate of each of the run's `rounds`.
    """

    optimizer: str
    lr: float | None
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "constant"
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 0

    @property
    def step_size(self) -> float:
        """The learning rate; ValueError if only the probe could set it."""
        if self.lr is None:
            raise ValueError('server.lr = "theory": the probe decides the step size, and no probe was run')
        return self.lr

    def rule(self, lr: float) -> tuple[Init, Update]:
        """The functions (init, update) of the optimizer at a learning rate. Raises UserError if it gives others."""
        functions: tuple[Init, Update] = OPTIMIZERS.bind(self.optimizer, self.options)(lr)
        if not isinstance(functions, (tuple, list)) or len(functions) != 2 or not all(map(callable, functions)):
            raise UserError(
                f'server.optimizer = "{self.optimizer}": should return two functions (init, update), not '
                f"{type(functions).__name__}"
            )
        return functions

    def resolve(self, eta: float | None) -> "ServerStep":
        """The same step, with the probe's step size `eta` if the settings leave the rate to the probe."""
        return self if self.lr is not None else replace(self, lr=eta)

    @property
    def has_schedule(self) -> bool:
        """Whether the learning rate changes from round to round."""
        return self.schedule != "constant" or any(self.schedule_options.values())

    def of_round(self, t: int) -> "ServerStep":
        """The step of round t, with the learning rate that the schedule gives.

        Raises UserError if a schedule of the user's gives no rate.
        """
        if not self.has_schedule:
            return self
        rate = SCHEDULES.bind(self.schedule, self.schedule_options)(self.step_size, t, self.rounds)
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < float("inf"):
            raise UserError(
                f'server.schedule = "{self.schedule}": gives {rate!r} in round {t}; should be a finite number of at '
                "least 0"
            )
        return replace(self, lr=float(rate), schedule="constant", schedule_options={})


@dataclass(frozen=True)
class OptimizedParameters:
    """Parameters of one scope, one row per copy, with the optimizer's state and each copy's number of updates.

    optimizer_state: name -> tensor of the shape of `value`. updates: one count per phase (last axis) if factors
    alternate, else one count.
    """

    value: Float[Tensor, "copies d"]
    optimizer_state: OptimizerState
    updates: Int[Tensor, "copies *phases"]


@dataclass(frozen=True)
class DeviceCopies:
    """The servers' parameters as the devices hold them after a rounded downlink, see `training.downlink`.

    shared: s-adapter. personal: p-adapters, one row per task. What the servers have beyond these copies is the
    rounding error that error feedback adds to the next broadcast.
    """

    shared: Float[Tensor, "1 d_s"]
    personal: Float[Tensor, "N d_p"]


@dataclass(frozen=True)
class ServerState:
    """The servers' state; no field holds what must not leave a device.

    shared: s-adapter. personal: p-adapters, one row per task. correlation_statistics: the receivers' normal equations
    of the correlation of symbols, see `air.uplink.initial_statistics`. added: added to the frozen weights of all
    adapted layers (`factor_averaging`), empty for every other method. copies: the parameters at the devices; None where
    the downlink carries the servers' own.
    """

    shared: OptimizedParameters
    personal: OptimizedParameters
    correlation_statistics: Float[Tensor, "G 7"]
    added: Float[Tensor, "1 d_W"] = NOTHING
    copies: DeviceCopies | None = None


@dataclass(frozen=True)
class DeviceState:
    """The devices' state, one row per device.

    own: parameters that are never sent. cursors: number of samples that each device has drawn so far. memory: scope ->
    (K, d_scope), float32, what of its gradients a device knows that it has not sent yet; empty without an error memory.
    """

    own: OptimizedParameters
    cursors: Int[Tensor, " K"]
    memory: ErrorMemory = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """A run after `round` rounds. frozen: parameters that never change (one row)."""

    round: int
    server: ServerState
    devices: DeviceState
    frozen: Float[Tensor, "1 d"]


def initial_parameters(
    value: Float[Tensor, "copies d"], server_step: ServerStep, phases: tuple[int, ...] = ()
) -> OptimizedParameters:
    """Parameters before their first update. phases: () or (number of phases,), if factors alternate.

    Raises UserError if the optimizer's state does not have the shape of the parameters.
    """
    init, _ = server_step.rule(1.0)
    optimizer_state = dict(init(value))
    for name, tensor in optimizer_state.items():
        if tensor.shape != value.shape:
            raise UserError(
                f"server.optimizer: {server_step.optimizer} keeps {name} of shape {tuple(tensor.shape)}; should be "
                f"that of the parameters, {tuple(value.shape)}"
            )
    return OptimizedParameters(value, optimizer_state, torch.zeros(len(value), *phases, dtype=torch.long))


def start(
    initial: Vectors,
    layout: Layout,
    tasks: int,
    devices: int,
    correlation_statistics: Float[Tensor, "G 7"],
    server_step: ServerStep,
    added: Float[Tensor, "1 d_W"] = NOTHING,
    memory: ErrorMemory | None = None,
) -> State:
    """The state before round 1: every copy of a scope starts from the same values.

    tasks, devices: numbers of tasks and devices. correlation_statistics: the uplink's initial statistics. memory: the
    devices' empty error memory, None without one. Raises UserError as `initial_parameters`.
    """

    def parameters(scope: Scope, phases: tuple[int, ...] = ()) -> OptimizedParameters:
        return initial_parameters(initial[scope].repeat(num_copies(scope, tasks, devices), 1), server_step, phases)

    shared = parameters("global", (len(layout.phases()),) if layout.alternating else ())
    return State(
        round=0,
        server=ServerState(shared, parameters("task"), correlation_statistics, added),
        devices=DeviceState(parameters("device"), torch.zeros(devices, dtype=torch.long), memory or {}),
        frozen=initial["frozen"],
    )


def vectors(state: State) -> Vectors:
    """The current parameters of every scope, as the devices hold them."""
    server = state.server
    copies = server.copies or DeviceCopies(server.shared.value, server.personal.value)
    values: Vectors = {
        "global": copies.shared,
        "task": copies.personal,
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
    """Take one step on the copies in `mask`; the other copies do not change at all."""
    updates = parameters.updates + 1
    _, step = server_step.rule(server_step.step_size)
    value, state = step(gradient, parameters.optimizer_state, parameters.value, updates)
    for name, new, old in (
        ("value", value, parameters.value),
        *((name, state.get(name), old) for name, old in parameters.optimizer_state.items()),
    ):
        if not isinstance(new, Tensor) or new.shape != old.shape:
            raise UserError(
                f"server.optimizer: {server_step.optimizer} gives {name} of shape "
                f"{tuple(getattr(new, 'shape', ()))}; should be {tuple(old.shape)}"
            )

    def select(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)

    return OptimizedParameters(
        value=select(value, parameters.value),
        optimizer_state={name: select(state[name], old) for name, old in parameters.optimizer_state.items()},
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
    active = OptimizedParameters(
        parameters.value[:, columns],
        {name: tensor[:, columns] for name, tensor in parameters.optimizer_state.items()},
        parameters.updates[:, phase],
    )
    new = update(active, gradient[:, columns], mask, server_step)

    def put(full: Tensor, index: slice | int, part: Tensor) -> Tensor:
        full = full.clone()
        full[:, index] = part
        return full

    return OptimizedParameters(
        put(parameters.value, columns, new.value),
        {name: put(old, columns, new.optimizer_state[name]) for name, old in parameters.optimizer_state.items()},
        put(parameters.updates, phase, new.updates),
    )
