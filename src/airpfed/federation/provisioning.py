"""`airpfed federate init`: a checked folder for the server and for each device."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airpfed.config import settings_file
from airpfed.config.plugins import code_hashes
from airpfed.config.schema import (
    FLAT_USES,
    FederationSettings,
    NodeSettings,
    RadioSettings,
    ServerSettings,
    Settings,
    TaskSettings,
)
from airpfed.core.errors import UserError
from airpfed.core.files import write_atomic
from airpfed.experiment import build
from airpfed.experiment.artifacts import copy_plugins
from airpfed.federation import build_federation, certificates
from airpfed.federation.addresses import (
    check_address,
    check_federable,
    check_host,
    node_of,
    private_folder,
    task_of_devices,
)
from airpfed.federation.handshake import DEVICE_CODE
from airpfed.tasks.sample import Sample, Task
from airpfed.tasks.sources import with_defaults

DATA = "data.jsonl"
"""The data file of a device, one JSON object per line."""


@dataclass(frozen=True)
class FederationPlan:
    """The options of `airpfed federate init`.

    hosts: names for the server's certificate; devices use the first. write_share: write each device's share of the
    data.
    """

    address: str
    hosts: tuple[str, ...]
    write_share: bool
    days: int
    port: int


LONGEST = 36_500
"""The longest validity of certificates in days (a hundred years)."""


def provision(folder: Path, settings: Settings, plan: FederationPlan) -> list[str]:
    """Create a federation in a new `folder`, all or nothing. Returns lines that say what to do next.

    Raises UserError if a check fails; nothing is left behind then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not empty; choose a new folder, because keys are never overwritten")
    check_federable(settings)
    owners = task_of_devices(settings)
    check_plan(plan, len(owners))
    tasks = build.load_tasks(settings) if plan.write_share else build_federation.server_tasks(settings, deployed=True)
    steps = next_steps(folder, [settings.tasks[n].name for n in owners], plan, device_plugins(settings))
    target = folder.resolve()
    if target == Path.cwd():
        raise UserError(f"{folder}: the working directory; choose a new folder for the federation")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name[:100]}.", dir=target.parent))
    try:
        _found(staging, settings, tasks, plan)
        write_atomic(staging / "README.txt", "\n".join(steps) + "\n")
        staging.replace(target)  # replaces an empty folder
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror or error}") from None
    except UserError as error:
        raise UserError(str(error).replace(str(staging), str(folder))) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return steps


def check_plan(plan: FederationPlan, devices: int) -> None:
    """Raise UserError unless days, address, hosts and ports are possible."""
    if not 1 <= plan.days <= LONGEST:
        raise UserError(f"--days {plan.days}: should be from 1 to {LONGEST}")
    check_address(plan.address)
    for host in plan.hosts:
        check_host(host)
    if not 1 <= plan.port <= 65536 - devices:
        raise UserError(f"--port {plan.port}: should be from 1 to {65536 - devices}; device k takes port + k")


def _found(folder: Path, settings: Settings, tasks: tuple[Task, ...], plan: FederationPlan) -> None:
    server, devices = folder / "server", len(task_of_devices(settings))
    private_folder(server / "devices")
    private_folder(server)
    authority = certificates.new_authority(folder, plan.days)
    certificates.new_server(server, authority, plan.hosts, plan.days)
    _copy(folder / "ca.crt", server / "ca.crt")
    joined = settings.federation.model_copy(update={"address": plan.address, "folder": "."})
    served = copy_plugins(settings.model_copy(update={"federation": joined}), server)
    settings_file.write_settings(served, server / "experiment.toml", SERVER, False)
    _script(server / "start.sh", 'exec airpfed federate experiment.toml --backend deployment "$@"')
    for device in range(devices):
        _found_device(folder, device, device_settings(settings, tasks, device, plan), tasks, plan)
    check(folder, devices, plan.hosts[0])


def _found_device(folder: Path, device: int, settings: Settings, tasks: tuple[Task, ...], plan: FederationPlan) -> None:
    target, owner = folder / f"device-{device}", task_of_devices(settings)[device]
    private_folder(target)
    certificates.new_device(target / "device.key", folder / "server" / "devices" / f"device-{device}.pub")
    _copy(folder / "ca.crt", target / "ca.crt")
    settings_file.write_settings(settings, target / "device.toml", DEVICE, False)
    _script(target / "start.sh", 'exec airpfed federate join device.toml "$@"')
    if plan.write_share:
        position = device - task_of_devices(settings).index(owner)
        write_share(tasks[owner].train[position], target)
        written = settings_file.read_settings(target / "device.toml", run_plugins=False)
        again = build_federation.node_tasks(written, device)[owner].train[position]
        if [plain(sample) for sample in again] != [plain(sample) for sample in tasks[owner].train[position]]:
            raise UserError(
                f"tasks.{tasks[owner].name}: its samples read back from {DATA} differ; where max_chars cuts a text at "
                "white space, another length may do; else give devices data of their own (without --deal)"
            )


def write_share(samples: Sequence[Sample], target: Path) -> None:
    """Write a device's share of the samples: the prompt as the model reads it, and the answer."""
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": role, "content": content} for role, content in sample.messages]}
        if sample.messages
        else {"prompt": sample.prompt, "answer": sample.answer.strip()}
        for sample in samples
    ]
    write_atomic(target / DATA, "".join(json.dumps(row) + "\n" for row in rows))
    (target / DATA).chmod(0o600)


def plain(sample: Sample) -> tuple[str, str, int]:
    """The part of a sample that its gradient depends on."""
    return sample.prompt, sample.answer, sample.label


def device_settings(settings: Settings, tasks: tuple[Task, ...], device: int, plan: FederationPlan) -> Settings:
    """One device's settings: everything it must share with the server, its own data, and its [node] table."""
    owner = task_of_devices(settings)[device]
    words = [labels_of(task_settings, task) for task_settings, task in zip(settings.tasks, tasks, strict=True)]
    others = [
        TaskSettings(name=task.name, kind=task.kind, labels=dict(labels), devices=task_settings.devices)
        for task_settings, task, labels in zip(settings.tasks, tasks, words, strict=True)
    ]
    others[owner] = local_task_settings(settings.tasks[owner], tasks[owner], words[owner], plan.write_share)
    task_settings = settings.federation
    federation = FederationSettings(
        payload=task_settings.payload, max_norm=task_settings.max_norm, address=plan.address
    )
    node = NodeSettings(device=device, port=plan.port + device)
    ideal = settings.radio.scheme.name == "error_free"  # some methods are for this scheme alone
    server = settings.server.model_copy(update={"aggregator": ServerSettings().aggregator})
    return Settings(
        plugins=device_plugins(settings),
        model=settings.model,
        adapters=settings.adapters,
        tasks=tuple(others),
        devices=settings.devices,
        server=server,
        radio=RadioSettings(scheme=settings.radio.scheme)
        if ideal
        else RadioSettings(coherence_symbols=FLAT_USES, csi_error=0.0),
        run=settings.run,
        federation=federation,
        node=node,
    )


def device_plugins(settings: Settings) -> tuple[str, ...]:
    """The names of the plug-ins whose rows a device runs. Each device has its own copy: code is never sent."""
    used = code_hashes(settings, DEVICE_CODE)
    return tuple(Path(path).name for path in settings.plugins if Path(path).name in used)


def local_task_settings(
    task_settings: TaskSettings, task: Task, labels: Mapping[str, str], with_shares: bool
) -> TaskSettings:
    """The settings of the device's own task: the server's prompt for the device's file."""
    source = with_defaults(build.source_of(task_settings))
    common = {"name": task_settings.name, "source": DATA, "kind": task.kind, "devices": task_settings.devices}
    limits: dict[str, Any] = {"max_new_tokens": task_settings.max_new_tokens}
    for key in ("label_score", "label_normalised", "template", "replies"):
        if getattr(task_settings, key) != TaskSettings.model_fields[key].default:
            limits[key] = getattr(task_settings, key)
    if task.kind == "chat" and (with_shares or task_settings.messages):
        column = "messages" if with_shares else task_settings.messages
        local: dict[str, Any] = {"system": task_settings.system}
        local |= {} if with_shares else {"max_chars": source.max_chars or 0}  # dealt messages are cut already
        return TaskSettings.model_validate({**common, **limits, **local, "messages": column})
    if with_shares:
        words = {word.strip(): word.strip() for word in task.labels}
        template = source.prompt or ""  # white space around a column's text is not read
        before, after = template[: len(template) - len(template.lstrip())], template[len(template.rstrip()) :]
        return TaskSettings.model_validate(
            {**common, **limits, "prompt": f"{before}{{prompt}}{after}", "label": "answer", "labels": words}
        )
    system = {"system": task_settings.system} if task.kind == "chat" else {}
    columns = {
        **system,
        "prompt": source.prompt,
        "text": task_settings.text,
        "label": task_settings.label,
        "max_chars": source.max_chars or 0,
    }
    return TaskSettings.model_validate({**common, **limits, **columns, "labels": dict(labels)})


def labels_of(task_settings: TaskSettings, task: Task) -> Mapping[str, str]:
    """Class name -> label word, in the order of the class indices; empty for text generation."""
    if task.kind != "classify":
        return {}
    return with_defaults(build.source_of(task_settings)).labels or {word.strip(): word.strip() for word in task.labels}


def check(folder: Path, devices: int, host: str) -> None:
    """Raise UserError unless certificate, keys and settings files can be used by server and devices."""
    certificates.check_server(folder / "server", host)
    settings_file.read_settings(folder / "server" / "experiment.toml")
    for device in range(devices):
        target = folder / f"device-{device}"
        certificates.check_pair(target / "device.key", folder / "server" / "devices" / f"device-{device}.pub")
        node_of(settings_file.read_settings(target / "device.toml", run_plugins=False), target / "device.toml")


def next_steps(folder: Path, tasks: Sequence[str], plan: FederationPlan, plugins: Sequence[str] = ()) -> list[str]:
    """The remaining steps, line by line. plugins: files that each device needs beside its settings."""
    data = "holds its share of the data" if plan.write_share else f"put its data there as {DATA}"
    lines = [
        f"{folder}: certificates, keys, settings; checked",
        f"1. Keep {folder / 'ca.key'} offline: who has it can pass for the server.",
        f"2. On the server (reached as {plan.address}): {folder / 'server' / 'start.sh'} --out RUN_DIR",
        "3. Copy each device's folder to its machine, by a way that nobody reads along, and delete it here:",
    ]
    lines += [f"   device-{k} (task {task}): {data}; then device-{k}/start.sh" for k, task in enumerate(tasks)]
    if plugins:
        lines.append(
            f"Every device needs its own copy of {', '.join(plugins)}, and of what it imports, beside its device.toml; "
            "code is never sent, and a device with another copy is refused."
        )
    return [*lines, "Every machine needs `airpfed[flower]` of the same version and the base model."]


SERVER = """# The server's settings: the experiment's, with [federation]. `airpfed run` accepts them unchanged.

"""

DEVICE = """# One device's settings. Whatever decides its gradients must equal the server's, or the server refuses it.
# Source, prompt, text and label of its own task may differ.

"""


def _copy(source: Path, target: Path) -> None:
    write_atomic(target, source.read_bytes())


def _script(path: Path, line: str) -> None:
    write_atomic(path, f'#!/bin/sh\ncd "$(dirname "$0")" && {line}\n')
    os.chmod(path, 0o755)  # noqa: PTH101
