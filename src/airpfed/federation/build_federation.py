"""Both sides of a federation, built from settings: the server's experiment (without training data) and the devices."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from airpfed.air.error_memory import unsent_in_silence
from airpfed.air.schedule import UnsentFunction
from airpfed.air.uplink import uplink
from airpfed.config.schema import Settings, TaskSettings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.devices.compression import UplinkScope
from airpfed.experiment import build
from airpfed.experiment.adapter_files import RunFacts, adapter_documents
from airpfed.federation.addresses import task_of_devices
from airpfed.federation.device import RUN, Device, UnsentOfRound, device_of
from airpfed.federation.device_silence import checked_silences
from airpfed.federation.handshake import Agreement, agreement
from airpfed.federation.message import Packet
from airpfed.federation.server import RoundTerms
from airpfed.tasks import split
from airpfed.tasks.sample import Task
from airpfed.tasks.sources import load_source
from airpfed.training.checkpoint import exists as rounds_exist
from airpfed.training.round import Aggregator
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import DeviceState, ErrorMemory, OptimizedParameters

IDENTITY = "run.json"
"""The file beside a checkpoint that marks it as a federation's."""


def server_tasks(settings: Settings, deployed: bool) -> tuple[Task, ...]:
    """All tasks without training samples.

    deployed: the sources hold only dev and test samples. Otherwise they hold all samples, as in the simulator.
    """
    if not deployed:
        return tuple(replace(one, train=((),) * len(one.train)) for one in build.load_tasks(settings))
    task_of_devices(settings)
    return tuple(
        split.build_test_task(build.source_of(t), build.shares_of(t), settings.run.seed) for t in settings.tasks
    )


def server(settings: Settings, tasks: tuple[Task, ...]) -> tuple[TrainingSetup, list[Agreement]]:
    """The server's experiment, and for each task the agreement that its devices must match.

    The server's state has no entries of device scope.
    """
    experiment = build.build_experiment(settings, tasks)
    device_unsent(settings, experiment)  # refuses what devices cannot do
    agreements = [agreement(settings, experiment, tasks, number) for number in range(len(tasks))]
    own = experiment.initial.devices.own
    nothing = torch.zeros(len(own.updates), 0)
    parameters = OptimizedParameters(nothing, dict.fromkeys(own.optimizer_state, nothing), own.updates)
    empty = DeviceState(parameters, experiment.initial.devices.cursors)
    return replace(experiment, initial=replace(experiment.initial, devices=empty)), agreements


def device_unsent(settings: Settings, experiment: TrainingSetup) -> UnsentOfRound | None:
    """How devices with an error memory know what they did not send in a round; None without one.

    By the scheme's function of their vectors, or by what the server tells them of their silence.
    Raises UserError where devices cannot know it.
    """
    if not settings.devices.memory:
        return None
    scheme, method = settings.radio.scheme, settings.adapters.method
    if not scheme.row.leaves_unsent(scheme.options):
        raise UserError(
            f'devices.memory = true: radio.scheme = "{scheme}" leaves nothing out that devices know of; should be '
            'false here, or radio.scheme = "digital(quantizer=top_k)"'
        )
    if experiment.clients.layout.alternating:
        raise UserError(
            f'devices.memory = true: for adapters.method = "{method}", which sends some factors a round, it is only in '
            "`airpfed run`"
        )
    if tells_silence(settings):
        radio, seed = settings.radio, settings.run.seed
        centred = radio.normalizer == "per_device"
        tasks = len(settings.tasks)
        return partial(unsent_where_silent, tasks, seed=seed, mixing=radio.mixing, centred=centred)
    return partial(unsent_by_scheme, partial(scheme.row.unsent, **scheme.options))


def tells_silence(settings: Settings) -> bool:
    """Whether the server has to tell devices where they were silent, because a design gave them the factor 0."""
    return settings.devices.memory and settings.radio.scheme.row.superposes


def unsent_where_silent(
    tasks: int, vectors: ErrorMemory, lengths: Mapping[UplinkScope, int], packet: Packet, t: int, **link: Any
) -> ErrorMemory:
    """See `UnsentOfRound`: by what the packet tells. tasks: their number. link: options of `unsent_in_silence`."""
    width = max(vector.shape[1] for vector in vectors.values())
    return unsent_in_silence(vectors, lengths, checked_silences(packet, t, lengths, width, tasks), t, **link)


def unsent_by_scheme(
    unsent: UnsentFunction, vectors: ErrorMemory, lengths: Mapping[UplinkScope, int], packet: Packet, t: int
) -> ErrorMemory:
    """See `UnsentOfRound`: by the scheme's function, which needs no more than the vectors."""
    return {
        scope: unsent(vector.double(), torch.tensor([lengths[scope]])).float()
        if lengths[scope]
        else torch.zeros_like(vector)
        for scope, vector in vectors.items()
    }


def aggregator_of(settings: Settings, experiment: TrainingSetup, samples: Tensor) -> Aggregator:
    """The aggregator, with weights from the sample counts D_k that the devices report."""
    link, aggregator = build.client_uplink(settings, experiment.clients, samples), settings.server.aggregator
    link = replace(link, tells_silence=tells_silence(settings))
    aggregate: Aggregator = aggregator.row.build(partial(uplink, link), link, aggregator.bind())
    return aggregate


def terms_of(settings: Settings) -> RoundTerms:
    """The rules for starting and ending a round, from settings.federation."""
    task_settings = settings.federation
    return RoundTerms(
        task_settings.min_devices, task_settings.wait_seconds, task_settings.deadline_seconds, task_settings.max_norm
    )


def run_identity(checkpoint: Path, resume: bool, deployed: bool) -> str:
    """The identifier under which devices keep their own state.

    A new run draws it; it is stored beside the checkpoint, and a resumed run reads it there.
    """
    file = checkpoint / IDENTITY
    if resume and rounds_exist(checkpoint):
        return identity(file)[0]
    checkpoint.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    run_files.write_json(file, {"run": name, "deployed": deployed})
    return name


def identity(file: Path) -> tuple[str, bool]:
    """A federation's identifier, and whether it was deployed. Raises UserError if the file is missing or damaged."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        name, deployed = tree["run"], tree["deployed"]
        if not isinstance(name, str) or not RUN.fullmatch(name) or not isinstance(deployed, bool):
            raise ValueError
    except FileNotFoundError:
        raise UserError(
            f"{file}: missing, so these rounds were not a federation's; start a new run with another --out"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{file}: damaged; restore it, or start a new run with another --out") from None
    return name, deployed


def reopen(settings: Settings, checkpoint: Path) -> TrainingSetup:
    """The server's experiment of an earlier federation, needed to read its checkpoint."""
    return server(settings, server_tasks(settings, identity(checkpoint / IDENTITY)[1]))[0]


def node_tasks(settings: Settings, device: int) -> tuple[Task, ...]:
    """All tasks as one device knows them: the samples of its own file, and the labels of the other tasks."""
    owner = task_of_devices(settings)[device]
    position = device - task_of_devices(settings).index(owner)
    return tuple(
        local_task(settings, one, position) if number == owner else foreign_task(one)
        for number, one in enumerate(settings.tasks)
    )


def local_task(settings: Settings, task_settings: TaskSettings, position: int) -> Task:
    """The device's own task. Every distinct sample of its file is a training sample."""
    loaded = load_source(build.source_of(task_settings), task_settings.samples_per_device)
    train = tuple(loaded.samples if index == position else () for index in range(task_settings.devices))
    return Task(task_settings.name, loaded.kind, loaded.labels, train, (), (), loaded.sha256, counts=loaded.counts)


def foreign_task(task_settings: TaskSettings) -> Task:
    """Another device's task. Its labels set the width of a classifier's head."""
    kind = "classify" if task_settings.kind == "auto" else task_settings.kind
    if kind == "classify" and not task_settings.labels:
        raise UserError(f"tasks.{task_settings.name}.labels: a device's settings need the labels of every task")
    labels = tuple(f" {word.strip()}" for word in task_settings.labels.values()) if kind == "classify" else ()
    return Task(task_settings.name, kind, labels, ((),) * task_settings.devices, (), (), "")


def devices_of(settings: Settings, tasks: tuple[Task, ...], folders: Mapping[int, Path]) -> dict[int, Device]:
    """Devices that share one base model.

    folders: device -> the folder of the device's state.
    """
    experiment = build.build_experiment(settings, tasks)
    unsent = device_unsent(settings, experiment)
    device_of_node = experiment.clients.task_of.tolist()
    alpha, norm = settings.adapters.alpha, settings.federation.max_norm
    documents = {
        number: adapter_documents(settings, number, experiment.tasks[number], experiment.clients.backbone, RunFacts())
        for number in {device_of_node[k] for k in folders}
    }
    agreements = {number: agreement(settings, experiment, tasks, number) for number in documents}
    return {
        k: device_of(experiment, k, agreements[number], alpha, norm, folder, unsent, documents[number])
        for k, folder in folders.items()
        for number in [device_of_node[k]]
    }
