"""A device's part of a run: its gradient of each round, its own parameters, its answers; the same for all engines.

What travels back is what these functions put into a parcel: nothing of device scope, no sample, no label.
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from airpfed.core import files
from airpfed.core.errors import UserError
from airpfed.devices.compression import SENT, encoded, rounding, sizes
from airpfed.devices.evaluate import classify, complete
from airpfed.devices.gradients import Clients, draw, gradients
from airpfed.federation import device_state
from airpfed.federation.addresses import private
from airpfed.federation.device_state import Personal
from airpfed.federation.handshake import Agreement, difference, hashed
from airpfed.federation.message import Parcel, printable, refusal
from airpfed.federation.validate import ROUNDS_LIMIT, integer_of, samples_of, vector_of
from airpfed.model import export
from airpfed.model.layout import Factors, Vectors, gather
from airpfed.training.experiment import Experiment
from airpfed.training.round import finite
from airpfed.training.state import OptimizedParameters

RUN = re.compile(r"[0-9a-f]{32}")
"""A run's identity: names the folder of what the device keeps for it."""

QUESTION_BYTES = 1 << 26
"""Bodies of the largest question beside the parameters: the token ids of a test split."""


@dataclass(frozen=True)
class Device:
    """One device. clients: all devices, with this one's data at least; alone: this device as a fleet of one."""

    number: int
    experiment: Experiment
    clients: Clients
    alone: Clients
    task: int
    alpha: float
    agreed: Agreement
    max_norm: float
    folder: Path

    @property
    def samples(self) -> int:
        """D_k."""
        return len(self.clients.shards[self.number])

    @property
    def limit(self) -> int:
        """Bytes of the largest parcel's bodies that is read."""
        return 4 * sum(sizes(self.clients.layout, self.task).values()) + QUESTION_BYTES


def device_of(
    experiment: Experiment, number: int, agreed: Agreement, alpha: float, max_norm: float, folder: Path
) -> Device:
    """Device `number` of an experiment that holds its data; its own state lies in `folder`."""
    clients = experiment.clients
    task = int(clients.task_of[number])
    alone = replace(
        clients, cache=clients.cache.fresh(), shards=(clients.shards[number],), task_of=torch.zeros(1).long(),
        classes=(clients.classes[task],), batch_multiplier=(),
    )  # fmt: skip
    return Device(number, experiment, clients, alone, task, alpha, agreed, max_norm, folder)


def handled(device: Device, parcel: Parcel) -> Parcel:
    """The answer to a parcel; what cannot be done is refused with a line."""
    try:
        match parcel.kind:
            case "hello":
                return Parcel("done", {**told(device), "agreement": device.agreed})
            case "train":
                return trained(device, parcel)
            case "answer":
                return answered(device, parcel)
            case "finish":
                return finished(device, parcel)
            case _:
                return refusal(f"no such question: {printable(parcel.kind, 40)!r}")
    except UserError as error:
        return refusal(str(error))
    except OSError as error:
        return refusal(f"the device's disk: {error.filename or device.folder}: {error.strerror or error}")


def told(device: Device) -> dict[str, Any]:
    """What stands in every answer."""
    return {"device": device.number, "samples": device.samples}


def trained(device: Device, parcel: Parcel) -> Parcel:
    """The gradient of a round at the parameters that came; what the device keeps is on its disk before it answers.

    A question that is refused leaves what it keeps as it was.
    """
    run, t, counted = asked(device, parcel)
    kept = restored(device, run)
    own = device_state.begun(kept, t, counted)
    made, clients = device.experiment, device.clients
    local = made.local_training
    count = min(local.batch_size, device.samples)
    first = (t - 1) * local.steps * count  # as if it had been there in every round: absence skips no data twice
    plan = [draw(clients, device.number, first + step * count, count) for step in range(local.steps)]
    found, loss = gradients(device.alone, received(device, parcel, own), [plan], local.lr, 1)
    norm = math.sqrt(sum(float(found[scope].double().square().sum()) for scope in SENT))
    good = bool(finite(found)) and bool(loss.isfinite().all()) and norm <= device.max_norm
    if not good:
        why = f"has norm {norm:.3g}, at most {device.max_norm:g} is sent" if math.isfinite(norm) else "is not finite"
        raise UserError(f"the gradient of round {t} {why}")
    after = device_state.moved(own, found["device"], t, made.server_step)
    device_state.save(device.folder / run, after, made.seed, hashed(sorted(device.agreed.items())))
    data = encoded(found, clients.layout, device.task, made.payload, rounding(made.seed, device.number, t))
    facts = {**told(device), "run": run, "round": t, "loss": float(loss)}
    return Parcel("done", facts, {scope: body.numpy().tobytes() for scope, body in data.items() if len(body)})


def answered(device: Device, parcel: Parcel) -> Parcel:
    """What this device's model says to prompts that came as token ids: classes, or texts."""
    factors = model(device, parcel)
    samples = samples_of(parcel, len(device.clients.backbone.tokenizer), int(device.agreed["model.max_tokens"]))
    view = device.experiment.tasks[device.task]
    if view.kind == "generate":
        said: list[Any] = list(complete(device.alone, factors, [s.ids for s in samples], view.max_new_tokens))
    else:
        shelf = hashed([sample.ids for sample in samples])
        said = list(classify(device.alone, factors, shelf, samples, view.choices))
    return Parcel("done", {**told(device), "said": said})


def finished(device: Device, parcel: Parcel) -> Parcel:
    """Export this device's model, with its own parts, to its own disk: a PEFT adapter, reloaded and compared."""
    factors, clients = model(device, parcel), device.clients
    classes = device.clients.classes[device.task]
    view = device.experiment.tasks[device.task]
    folder = files.inside(private(device.folder) / str(parcel.facts["run"]) / "adapters", view.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    base = export.fresh_base(clients.backbone, classes)
    export.checked(clients.backbone, factors, classes, device.alpha, folder, base, device.alone.shards[0][:8])
    return Parcel("done", told(device))


def asked(device: Device, parcel: Parcel) -> tuple[str, int, int]:
    """A parcel's run and round, and in how many earlier rounds its server counted this device.

    UserError where these are none, or where server and device do not agree on what they compute.
    """
    run = parcel.facts.get("run")
    if not isinstance(run, str) or not RUN.fullmatch(run):
        raise UserError("the message names no run")
    t = integer_of(parcel, "round", 1, ROUNDS_LIMIT)
    counted = integer_of(parcel, "counted", 0, t - 1)
    if why := difference(parcel.facts.get("agreement"), device.agreed):
        raise UserError(why)
    return run, t, counted


def model(device: Device, parcel: Parcel) -> Factors:
    """This device's model with the shared parameters that came, after all rounds that the server counted."""
    run, _, counted = asked(device, parcel)
    kept = restored(device, run)
    values = received(device, parcel, device_state.begun(kept, kept.round + 1, counted))
    one = torch.zeros(1, dtype=torch.long)
    factors = gather(values, device.clients.layout, one, one)
    return {key: tensor.to(device.clients.backbone.device) for key, tensor in factors.items()}


def restored(device: Device, run: str) -> Personal:
    """What the device keeps for a run."""
    like = device_state.fresh(device.experiment.initial.devices.own.value[device.number : device.number + 1])
    return device_state.load(device.folder / run, like, hashed(sorted(device.agreed.items())))


def received(device: Device, parcel: Parcel, own: OptimizedParameters) -> Vectors:
    """All parameters of the device: those that came, its own, and those that never move.

    Beyond its task's own head the task's vector is as it began: no gradient reaches there.
    """
    start, wanted = device.experiment.initial, sizes(device.clients.layout, device.task)
    came: dict[str, Tensor] = {scope: vector_of(parcel, scope, wanted[scope]) for scope in SENT}
    task = start.server.personal.value[device.task : device.task + 1].clone()
    task[0, : wanted["task"]] = came["task"]
    return {"global": came["global"][None, :], "task": task, "device": own.value, "frozen": start.frozen}
