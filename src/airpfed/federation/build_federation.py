"""Settings to the two sides of a federation: the server's experiment, which holds no training data, and a device."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from airpfed.air.uplink import send
from airpfed.config.schema import Settings, TaskSettings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.experiment import build
from airpfed.federation.addresses import counted
from airpfed.federation.device import RUN, Device, device_of
from airpfed.federation.handshake import Agreement, agreement
from airpfed.federation.server import Terms
from airpfed.tasks import datasets
from airpfed.tasks.sample import Task
from airpfed.tasks.sources import load
from airpfed.training.checkpoint import exists as rounds_exist
from airpfed.training.experiment import Experiment
from airpfed.training.round import Aggregator
from airpfed.training.state import DeviceState, OptimizedParameters

IDENTITY = "run.json"
"""The file beside a checkpoint that says that it is a federation's."""


def server_tasks(settings: Settings, deployed: bool) -> tuple[Task, ...]:
    """All tasks without training samples.

    deployed: the sources need hold dev and test samples only; otherwise they hold all, as in the simulator.
    """
    if not deployed:
        return tuple(replace(one, train=((),) * len(one.train)) for one in build.load_tasks(settings))
    counted(settings)
    return tuple(datasets.held_out(build.source_of(t), build.shares_of(t), settings.run.seed) for t in settings.tasks)


def server(settings: Settings, tasks: tuple[Task, ...]) -> tuple[Experiment, list[Agreement]]:
    """The server's experiment: nothing of device scope is in its state. And what devices of each task must agree on."""
    made = build.experiment(settings, tasks)
    agreed = [agreement(settings, made, tasks, number) for number in range(len(tasks))]
    own = made.initial.devices.own
    nothing = torch.zeros(len(own.updates), 0)
    empty = DeviceState(OptimizedParameters(nothing, nothing, nothing, own.updates), made.initial.devices.cursors)
    return replace(made, initial=replace(made.initial, devices=empty)), agreed


def aggregator_of(settings: Settings, made: Experiment, samples: Tensor) -> Aggregator:
    """The link, with weights from D_k as the devices told it."""
    return partial(send, build.link(settings, made.clients, samples))


def terms(settings: Settings) -> Terms:
    """When rounds start and end."""
    wanted = settings.federation
    return Terms(wanted.min_devices, wanted.wait_seconds, wanted.deadline_seconds, wanted.max_norm)


def run_identity(checkpoint: Path, resume: bool, deployed: bool) -> str:
    """The name under which devices keep their own state: drawn when a run starts, kept with its checkpoint."""
    file = checkpoint / IDENTITY
    if resume and rounds_exist(checkpoint):
        return identity(file)[0]
    checkpoint.mkdir(parents=True, exist_ok=True)
    name = uuid.uuid4().hex
    run_files.write_json(file, {"run": name, "deployed": deployed})
    return name


def identity(file: Path) -> tuple[str, bool]:
    """A federation's run: its name, and whether it was deployed; UserError where the file does not say."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        name, deployed = tree["run"], tree["deployed"]
        if not isinstance(name, str) or not RUN.fullmatch(name) or not isinstance(deployed, bool):
            raise ValueError
    except FileNotFoundError:
        raise UserError(f"{file}: missing, so these rounds were not a federation's; begin anew elsewhere") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{file}: damaged; restore it, or begin anew elsewhere") from None
    return name, deployed


def reopened(settings: Settings, checkpoint: Path) -> Experiment:
    """The server's experiment of a federation's run, to read its checkpoint with."""
    return server(settings, server_tasks(settings, identity(checkpoint / IDENTITY)[1]))[0]


def node_tasks(settings: Settings, device: int) -> tuple[Task, ...]:
    """All tasks as one device knows them: its own file's samples, and the labels of the others."""
    owner = counted(settings)[device]
    place = device - counted(settings).index(owner)
    return tuple(
        own_task(settings, one, place) if number == owner else foreign_task(one)
        for number, one in enumerate(settings.tasks)
    )


def own_task(settings: Settings, wanted: TaskSettings, place: int) -> Task:
    """The device's task: every distinct sample of its file is for training."""
    loaded = load(build.source_of(wanted), wanted.samples_per_device)
    train = tuple(loaded.samples if index == place else () for index in range(wanted.devices))
    return Task(wanted.name, loaded.kind, loaded.labels, train, (), (), loaded.sha256)


def foreign_task(wanted: TaskSettings) -> Task:
    """Another task: its labels matter, for the width of a classifier's head."""
    kind = "classify" if wanted.kind == "auto" else wanted.kind
    if kind == "classify" and not wanted.labels:
        raise UserError(f"tasks.{wanted.name}.labels: a device's settings need the labels of every task")
    labels = tuple(f" {word.strip()}" for word in wanted.labels.values()) if kind == "classify" else ()
    return Task(wanted.name, kind, labels, ((),) * wanted.devices, (), (), "")


def devices(settings: Settings, tasks: tuple[Task, ...], folders: Mapping[int, Path]) -> dict[int, Device]:
    """Devices over one base model. folders: device -> where it keeps its own state."""
    made = build.experiment(settings, tasks)
    owners = made.clients.task_of.tolist()
    alpha, norm = settings.adapters.alpha, settings.federation.max_norm
    return {
        k: device_of(made, k, agreement(settings, made, tasks, owners[k]), alpha, norm, folder)
        for k, folder in folders.items()
    }
