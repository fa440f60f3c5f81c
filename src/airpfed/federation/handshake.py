"""The agreement between a device and the server: named values that both must share."""

import hashlib
import importlib.metadata
import json
from dataclasses import astuple
from typing import Any

from airpfed.config.plugins import code_hashes
from airpfed.config.schema import Settings
from airpfed.experiment import build
from airpfed.federation.message import safe_line
from airpfed.tasks.sample import Task
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import vectors

Agreement = dict[str, str]
"""Name -> value, as text or hash."""
DEVICE_CODE = ("adapters.method", "server.optimizer", "server.schedule")
"""Choices whose rows a device runs. The other rows of plug-ins are the server's alone."""


def agreement(settings: Settings, experiment: TrainingSetup, tasks: tuple[Task, ...], number: int) -> Agreement:
    """Everything that decides which gradient a device of task `number` computes, as text or hash.

    The device's data and the wording of its prompts are not part of it.
    """
    layout, task, view = experiment.clients.layout, tasks[number], experiment.tasks[number]
    chat = settings.tasks[number] if task.kind == "chat" else None
    work = {
        "server.optimizer": settings.server.optimizer.label,
        "server.lr": experiment.server_step.lr,
        "devices.batch_size": experiment.local_training.batch_size,
        "devices.local_steps": experiment.local_training.steps,
        "devices.local_lr": experiment.local_training.lr,
        "federation.payload": experiment.payload,
        "run.seed": experiment.seed,
        "model.max_tokens": settings.model.max_tokens,
        "devices.precision": settings.devices.precision,
        "model.dtype": settings.model.dtype,
        "model.quantization": settings.model.quantization,
        "adapters.dropout": settings.adapters.dropout,
        "adapters.rslora": settings.adapters.rslora,
    }
    # Values that change nothing at their defaults are left out, so that devices of a version without them agree.
    if experiment.server_step.has_schedule:
        work["server.schedule"] = f"{settings.server.schedule.label}, server.rounds = {experiment.server_step.rounds}"
    for key, value in (
        ("devices.proximal_mu", experiment.local_training.proximal_mu),
        ("devices.max_grad_norm", experiment.local_training.max_norm),
    ):
        work |= {key: value} if value else {}
    if settings.devices.memory:
        work["devices.memory, radio.scheme"] = settings.radio.scheme.label
        if settings.radio.scheme.row.superposes:
            work["devices.memory, radio.mixing"] = settings.radio.mixing
            work["devices.memory, radio.normalizer"] = settings.radio.normalizer
    if code := code_hashes(settings, (*DEVICE_CODE, *(["radio.scheme"] if settings.devices.memory else []))):
        work["plugins"] = json.dumps(code, sort_keys=True)
    start = hashlib.sha256()
    for scope, values in vectors(experiment.initial).items():
        start.update(values[:1].contiguous().numpy().tobytes() if scope != "device" else b"")
    return {
        "airpfed": importlib.metadata.version("airpfed"),
        "model.base": build.base_hash(experiment.clients.backbone),
        "adapters": sha256_of([[astuple(entry) for entry in layout.entries], layout.task_lengths]),
        "adapters.alpha": str(settings.adapters.alpha),
        "initial adapters": start.hexdigest(),
        "tasks": sha256_of([one.name for one in settings.tasks]),
        f"tasks.{task.name}.max_new_tokens": str(settings.tasks[number].max_new_tokens),
        f"tasks.{task.name}.labels, as tokens": json.dumps(view.words or view.choices),
        **({f"tasks.{task.name}.label_normalised": "true"} if view.words and view.normalised else {}),
        **({f"tasks.{task.name}.{key}": getattr(chat, key) for key in ("template", "replies")} if chat else {}),
        f"tasks.{task.name}.labels": json.dumps([task.kind, *task.labels]),
        **{key: str(value) for key, value in work.items()},
    }


def difference(server: Any, device: Any) -> str | None:
    """One line about the first value on which two agreements differ, or None."""
    if not isinstance(server, dict) or not isinstance(device, dict):
        return "the other side does not say what it stands on"
    for name in [*server, *(key for key in device if key not in server)]:
        if server.get(name) != device.get(name):
            connected, there = short(server.get(name)), short(device.get(name))
            return f"{safe_line(name, 60)} differs: {connected} at the server, {there} on the device"
    return None


def short(value: Any) -> str:
    """A value as text for an error line; a hash by its first digits."""
    text = safe_line(value, 100)
    return f"{text[:12]}..." if len(text) == 64 else text


def sha256_of(value: Any) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
