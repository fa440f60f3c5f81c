"""A device's part of a run: its gradient of each round, its own parameters and its answers; the same on all engines.

Only what these functions put into a packet leaves the device: no parameters of device scope, no samples, no labels.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from airpfed.core import files
from airpfed.core.errors import UserError
from airpfed.devices.clients import Clients, draw_samples
from airpfed.devices.clipping import clip_gradients
from airpfed.devices.compression import (
    UPLINK_SCOPES,
    UplinkScope,
    decode_gradient,
    encode_gradient,
    rounding_stream,
    vector_lengths,
)
from airpfed.devices.gradients import gradients
from airpfed.federation import device_state
from airpfed.federation.addresses import private_folder
from airpfed.federation.device_state import Personal
from airpfed.federation.handshake import Agreement, difference, sha256_of
from airpfed.federation.message import Packet, refusal, safe_line
from airpfed.federation.validate import ROUNDS_LIMIT, integer_of, samples_of, vector_of
from airpfed.model import export
from airpfed.model.layout import Factors, Vectors, gather
from airpfed.training.evaluate import predict_answers
from airpfed.training.round import carry_over, finite
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import ErrorMemory, OptimizedParameters

RUN = re.compile(r"[0-9a-f]{32}")
"""A run's identifier, which is also the name of the folder with the device's state."""

QUESTION_BYTES = 1 << 26
"""Bytes of the largest request beside the parameters: the token ids of a test split."""


UnsentOfRound = Callable[[ErrorMemory, Mapping[UplinkScope, int], Packet, int], ErrorMemory]
"""(vectors of scope -> (1, d), their lengths, the next round's packet, t) -> what of them was not sent in round t."""


@dataclass(frozen=True)
class Device:
    """One device.

    clients: all devices, with at least this device's data. local_clients: this device as a client set of size one.
    unsent: for an error memory, see `UnsentOfRound`; None without one.
    documents: texts that are written beside its adapter, by file name.
    """

    number: int
    experiment: TrainingSetup
    clients: Clients
    local_clients: Clients
    task: int
    alpha: float
    agreement: Agreement
    max_norm: float
    folder: Path
    unsent: UnsentOfRound | None = None
    documents: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """The number of training samples, D_k."""
        return len(self.clients.shards[self.number])

    @property
    def limit(self) -> int:
        """The largest number of body bytes that is read from one packet."""
        return 4 * sum(vector_lengths(self.clients.layout, self.task).values()) + QUESTION_BYTES


def device_of(
    experiment: TrainingSetup,
    number: int,
    agreement: Agreement,
    alpha: float,
    max_norm: float,
    folder: Path,
    unsent: UnsentOfRound | None,
    documents: Mapping[str, str],
) -> Device:
    """Device `number` of an experiment that holds its data. Its own state is kept in `folder`."""
    clients = experiment.clients
    task = int(clients.task_of[number])
    local_clients = replace(
        clients, cache=clients.cache.fresh(), shards=(clients.shards[number],), task_of=torch.zeros(1).long(),
        classes=(clients.classes[task],), batch_multiplier=(), numbers=(number,),
    )  # fmt: skip
    return Device(
        number, experiment, clients, local_clients, task, alpha, agreement, max_norm, folder, unsent, documents
    )


def handle(device: Device, packet: Packet) -> Packet:
    """Answer a packet. A request that cannot be served is refused with one line."""
    try:
        match packet.kind:
            case "hello":
                return Packet("done", {**identity_of(device), "agreement": device.agreement})
            case "train":
                return train(device, packet)
            case "answer":
                return answer(device, packet)
            case "finish":
                return finish(device, packet)
            case _:
                return refusal(f"unknown request: {safe_line(packet.kind, 40)!r}")
    except UserError as error:
        return refusal(str(error))
    except OSError as error:
        return refusal(f"the device's disk: {error.filename or device.folder}: {error.strerror or error}")


def identity_of(device: Device) -> dict[str, Any]:
    """The facts that every answer carries."""
    return {"device": device.number, "samples": device.samples}


def train(device: Device, packet: Packet) -> Packet:
    """Compute a round's gradient at the parameters in the packet. The device's new state is on disk before it answers.

    A refused request leaves the state unchanged.
    """
    run, t, counted = request_of(device, packet)
    state = stored_state(device, run)
    personal = device_state.start_of_round(state, t, counted)
    made, clients = device.experiment, device.clients
    local = made.local_training
    count = min(local.batch_size, device.samples)
    first = (t - 1) * local.steps * count  # counts all rounds, so an absence shifts no data
    plan = [draw_samples(clients, device.number, first + step * count, count) for step in range(local.steps)]
    active_columns = clients.layout.active_columns(t)
    found, loss = gradients(
        device.local_clients,
        parameters_of(device, packet, personal),
        [plan],
        local.lr,
        1,
        active_columns,
        local.proximal_mu,
        t,
    )
    clipped = bool(local.max_norm and clip_gradients(found, local.max_norm, active_columns))
    memory = device_state.memory_at_start(state, t, counted, partial(unsent_vectors, device, packet, state.round))
    carry_over(found, memory)
    norm = math.sqrt(sum(float(found[scope].double().square().sum()) for scope in UPLINK_SCOPES))
    good = bool(finite(found)) and bool(loss.isfinite().all()) and norm <= device.max_norm
    if not good:
        why = f"has norm {norm:.3g}, at most {device.max_norm:g} is sent" if math.isfinite(norm) else "is not finite"
        raise UserError(f"the gradient of round {t} {why}")
    data = encode_gradient(
        found, clients.layout, device.task, made.payload, rounding_stream(made.seed, device.number, t)
    )
    arriving = decode_gradient(data, clients.layout, device.task, made.payload) if memory else {}
    after = device_state.outcomes(
        personal,
        found["device"],
        t,
        made.server_step.of_round(t),
        memory,
        {scope: arriving[scope] for scope in memory},
    )
    device_state.save(device.folder / run, after, made.seed, sha256_of(sorted(device.agreement.items())))
    assert made.compute is not None, "a federation's methods compute on devices"
    flops = int(made.compute.flops(device.local_clients, [first], [plan]))
    facts = {**identity_of(device), "run": run, "round": t, "loss": float(loss), "flops": flops}
    facts |= {"clipped": clipped} if local.max_norm else {}
    return Packet("done", facts, {scope: body.numpy().tobytes() for scope, body in data.items() if len(body)})


def unsent_vectors(device: Device, packet: Packet, t: int, transmitted: ErrorMemory) -> ErrorMemory:
    """What was not sent in round t, the last one in which the device was counted, of the vectors that it sent then."""
    assert device.unsent is not None
    return device.unsent(transmitted, vector_lengths(device.clients.layout, device.task), packet, t)


def answer(device: Device, packet: Packet) -> Packet:
    """Predict classes or texts for prompts that arrive as token ids."""
    factors = factors_of(device, packet)
    samples = samples_of(packet, len(device.clients.backbone.tokenizer), int(device.agreement["model.max_tokens"]))
    view = device.experiment.tasks[device.task]
    cache_key = sha256_of([sample.ids for sample in samples])
    said = predict_answers(device.local_clients, factors, cache_key, samples, view)
    return Packet("done", {**identity_of(device), "said": said})


def finish(device: Device, packet: Packet) -> Packet:
    """Export this device's model, with its own parameters, to its own disk as a PEFT adapter; reload and compare it."""
    factors, clients = factors_of(device, packet), device.clients
    classes = device.clients.classes[device.task]
    view = device.experiment.tasks[device.task]
    folder = files.path_inside(private_folder(device.folder) / str(packet.facts["run"]) / "adapters", view.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    base = export.fresh_base(clients.backbone, classes)
    export.export_adapter(
        clients.backbone, factors, classes, device.alpha, folder, base, device.local_clients.shards[0][:8],
        device.documents,
    )  # fmt: skip
    return Packet("done", identity_of(device))


def request_of(device: Device, packet: Packet) -> tuple[str, int, int]:
    """A packet's run, its round, and the number of earlier rounds in which the server counted this device.

    Raises UserError if one is missing or if server and device disagree on the computation.
    """
    run = packet.facts.get("run")
    if not isinstance(run, str) or not RUN.fullmatch(run):
        raise UserError("the message names no run")
    t = integer_of(packet, "round", 1, ROUNDS_LIMIT)
    counted = integer_of(packet, "counted", 0, t - 1)
    if why := difference(packet.facts.get("agreement"), device.agreement):
        raise UserError(why)
    return run, t, counted


def factors_of(device: Device, packet: Packet) -> Factors:
    """This device's adapter factors: the shared parameters of the packet and its own after all counted rounds."""
    run, _, counted = request_of(device, packet)
    state = stored_state(device, run)
    values = parameters_of(device, packet, device_state.start_of_round(state, state.round + 1, counted))
    one = torch.zeros(1, dtype=torch.long)
    factors = gather(values, device.clients.layout, one, one)
    return {key: tensor.to(device.clients.backbone.device) for key, tensor in factors.items()}


def stored_state(device: Device, run: str) -> Personal:
    """The state that the device keeps for a run."""
    like = device_state.fresh(
        device.experiment.initial.devices.own.value[device.number : device.number + 1],
        device.experiment.server_step,
        {scope: matrix[:1] for scope, matrix in device.experiment.initial.devices.memory.items()},
    )
    return device_state.load(device.folder / run, like, sha256_of(sorted(device.agreement.items())))


def parameters_of(device: Device, packet: Packet, personal: OptimizedParameters) -> Vectors:
    """All parameters of the device: shared ones from the packet, its own ones, and frozen ones.

    Entries of the task's vector beyond the task's own head keep their initial values, because no gradient reaches them.
    """
    start, wanted = device.experiment.initial, vector_lengths(device.clients.layout, device.task)
    came: dict[str, Tensor] = {scope: vector_of(packet, scope, wanted[scope]) for scope in UPLINK_SCOPES}
    task = start.server.personal.value[device.task : device.task + 1].clone()
    task[0, : wanted["task"]] = came["task"]
    return {"global": came["global"][None, :], "task": task, "device": personal.value, "frozen": start.frozen}
