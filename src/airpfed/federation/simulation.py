"""The same run on Flower's simulation: devices are Ray actors on this machine."""

import functools
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid as FlowerGrid
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from airpfed.config.schema import Settings
from airpfed.config.settings_file import settings_from_json
from airpfed.experiment import build
from airpfed.federation import build_federation
from airpfed.federation.client_app import app_of
from airpfed.federation.device import Device, handle
from airpfed.federation.message import Packet
from airpfed.training.loop import Outcome


def simulate(settings: Settings, folder: Path, serve: Callable[[FlowerGrid], Outcome]) -> Outcome:
    """Run `serve` with all devices of the settings; devices keep their state in `folder`.

    As many devices compute at once as their threads fit the CPUs. Each actor has its own base model.
    """
    server_app = ServerApp()
    outcomes: list[Outcome] = []

    @server_app.main()
    def main(grid: FlowerGrid, context: Context) -> None:
        outcomes.append(serve(grid))

    gpus = 1.0 if build.torch_device(settings.run.device) == "cuda" else 0.0
    run_simulation(
        server_app,
        app_of(functools.partial(answer_of_device, settings.model_dump_json(), str(folder))),
        sum(len(task.train) for task in build.load_tasks(settings)),
        backend_config={
            "client_resources": {"num_cpus": settings.run.threads or 1, "num_gpus": gpus},
            "init_args": {"num_cpus": os.cpu_count() or 1, "include_dashboard": False, "log_to_driver": False},
        },
    )
    return outcomes[0]


def answer_of_device(settings: str, folder: str, packet: Packet, context: Context) -> Packet:
    """A device's answer, computed in the actor that Flower chose."""
    number = context.node_config["partition-id"]
    return handle(actor_devices(settings, folder)[int(number)], packet)


@functools.cache
def actor_devices(settings: str, folder: str) -> dict[int, Device]:
    """All devices over one base model, built once per actor."""
    read = settings_from_json(settings)
    tasks = build.load_tasks(read)
    count = sum(len(task.train) for task in tasks)
    return build_federation.devices_of(read, tasks, {k: Path(folder) / f"device-{k}" for k in range(count)})
