"""Everything that a run consists of, the devices' work in this process, and the hooks for theory beside a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, Probe, Theory
from airpfed.devices.clients import Clients, draw_batches
from airpfed.devices.clipping import clip_gradients
from airpfed.devices.compression import Payload, compress_gradients, total_bytes
from airpfed.devices.compute import ComputeModel
from airpfed.model.layout import Vectors
from airpfed.training.evaluate import Score, TaskView, score_task
from airpfed.training.factor_averaging import FactorAveraging
from airpfed.training.round import Aggregator, LocalTraining, carry_over, finite, local_gradients
from airpfed.training.state import ServerStep, State, vectors

Log = Callable[[str], None]
"""Shows a line to the user."""


@dataclass(frozen=True)
class RoundGradients:
    """What the devices deliver in a round, one row per device, NaN for a device that delivers nothing.

    gradients: scope -> (K, d_scope). loss: nats. cursors: samples that each device has drawn since round 1, this round
    included. samples: D_k. cost: of the messages and of computing. late: devices that deliver nothing because they
    compute longer than the deadline. clipped: share of the devices with a finite gradient whose gradient was scaled
    down to the largest norm; None if no norm is set.
    """

    gradients: Vectors
    loss: Float[Tensor, " K"]
    cursors: Int[Tensor, " K"]
    samples: Float[Tensor, " K"]
    cost: Ledger
    late: tuple[int, ...] = ()
    clipped: float | None = None


@dataclass(frozen=True)
class RoundTrace:
    """A round with the states around it, the devices' gradients and cursors, and the devices that were present."""

    previous: State
    next_state: State
    gradients: Vectors
    cursors: Int[Tensor, " K"]
    present: Bool[Tensor, " K"]


@runtime_checkable
class RoundMonitor(Protocol):
    """Theory beside the rounds: a hook that reads a round and changes nothing."""

    def is_due(self, t: int) -> bool:
        """Whether round t is to be checked."""

    def check_round(self, probe: Probe, initial: State, trace: RoundTrace, eta: float) -> Theory:
        """The round held against its bounds. initial: the state before round 1. eta: the step size."""


ProbeHook = Callable[[State, Path, bool, Log], Probe]
"""(state before round 1, path of theory.json, whether to read that file, log) -> constants known before round 1."""


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that a run needs, as objects and plain values.

    aggregate: the uplink. factor_averaging: takes the place of uplink and server step, if the method needs it.
    server_step: its lr is None if the probe sets it. devices_per_pass: devices computed together. eval_every: rounds
    between dev scores (0: none). air_seconds, seconds: the run's budgets, on air and with computing. air_seconds_of:
    the links that count on air. compute: what computing costs the devices; None if it is not charged. downlink_bits:
    bits per entry of a rounded downlink, None for an exact one. score: splits that the final models are scored on.
    payload: format of the gradients in messages. notes: lines for the user about how this base is computed.
    fingerprint: of settings, data and base model. base_key: of everything that the untouched model's scores depend on.
    probe, monitor: hooks before round 1 and beside a round. collect: a function for the devices' work in a round.
    evaluate_task: a function for the score of a task. A federation replaces both by functions that ask real devices.
    """

    method: str
    clients: Clients
    tasks: tuple[TaskView, ...]
    aggregate: Aggregator
    initial: State
    server_step: ServerStep
    local_training: LocalTraining
    rounds: int
    devices_per_pass: int
    eval_every: int
    seed: int
    fingerprint: str
    probe: ProbeHook | None = None
    monitor: RoundMonitor | None = None
    factor_averaging: FactorAveraging | None = None
    air_seconds: float | None = None
    air_seconds_of: Literal["uplink", "both"] = "uplink"
    seconds: float | None = None
    compute: ComputeModel | None = None
    downlink_bits: int | None = None
    score: Literal["test", "dev", "both"] = "test"
    cross_eval: bool = False
    base_key: str = ""
    payload: Payload = "float32"
    notes: tuple[str, ...] = ()
    collect: "Collect" = field(default_factory=lambda: simulate_gradients)
    evaluate_task: "EvaluateTask" = field(default_factory=lambda: simulate_score)


Collect = Callable[[TrainingSetup, State], RoundGradients]
EvaluateTask = Callable[[TrainingSetup, State, int, Literal["dev", "test"]], Score | None]
"""(experiment, state, index of a task, split) -> the task's score; None if no device answers."""


def simulate_gradients(experiment: TrainingSetup, state: State) -> RoundGradients:
    """The work of all devices in this process; gradients are those that their payload can carry.

    What the devices' error memory holds is part of the gradients. A payload's rounding error is noise and is not kept.
    Raises UserError if no device has a finite gradient in round 1: training cannot have diverged yet.
    """
    clients, local_training = experiment.clients, experiment.local_training
    gradients, loss, cursors = local_gradients(clients, state, local_training, experiment.devices_per_pass)
    flops = late = None
    if experiment.compute is not None:
        plan, _ = draw_batches(clients, state.devices.cursors, local_training.batch_size, local_training.steps)
        flops = experiment.compute.flops(clients, state.devices.cursors.tolist(), plan)
        late = experiment.compute.is_late(flops)
        if state.round == 0 and bool(late.all()):
            raise UserError(experiment.compute.reason_all_late(flops))
        if bool(late.any()) and state.devices.memory:  # absent, but it keeps its gradient
            gradients["frozen"] = torch.where(late[:, None], torch.nan, 0.0)
        elif bool(late.any()):
            for rows in gradients.values():
                rows[late] = torch.nan
    present, clipped = finite(gradients), None
    if experiment.local_training.max_norm:
        long = clip_gradients(
            gradients, experiment.local_training.max_norm, clients.layout.active_columns(state.round + 1)
        )
        clipped = share_of(long & present, present)
    carry_over(gradients, state.devices.memory)
    if state.round == 0 and not present.any():
        cause = "" if experiment.local_training.steps == 1 else ", or devices.local_lr is too large"
        raise UserError(
            "model.base: no device has a finite gradient in round 1, before any step of the server: the base gives no "
            f"numbers for these tasks{cause}"
        )
    messages = compress_gradients(
        gradients, present, clients.layout, clients.task_of, experiment.payload, clients.seed, state.round + 1
    )
    computing = Ledger() if experiment.compute is None or flops is None else experiment.compute.cost(flops, present)
    payload_bytes = 0
    if not clients.batch_multiplier:  # workers that stand for many devices send nothing
        payload_bytes = total_bytes(clients.layout, clients.task_of, experiment.payload)
    return RoundGradients(
        gradients=messages,
        loss=loss,
        cursors=cursors,
        samples=torch.tensor([float(len(shard)) for shard in clients.shards]),
        cost=Ledger(payload_bytes=payload_bytes) + computing,
        late=() if late is None else tuple(late.nonzero().flatten().tolist()),
        clipped=clipped,
    )


def share_of(selected: Bool[Tensor, " K"], present: Bool[Tensor, " K"]) -> float:
    """Share of the present devices that are selected; 0 if none is present."""
    return int(selected.sum()) / max(1, int(present.sum()))


def simulate_score(experiment: TrainingSetup, state: State, number: int, split: Literal["dev", "test"]) -> Score:
    """A task's score, computed in this process. number: index of the task."""
    return score_task(experiment.clients, vectors(state), number, experiment.tasks[number], split)
