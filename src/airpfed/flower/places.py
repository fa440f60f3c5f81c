"""Where a device stands: its number, its task, the server's host; from settings alone."""

import re
from pathlib import Path

from airpfed.errors import UserError
from airpfed.settings import NodeSettings, Settings

SIMULATED = ("rolora", "centralised", "fedex", "flora")
"""Methods whose rounds are more than gradients up and sums down: they run in the simulator only."""


def federable(settings: Settings) -> None:
    """UserError where the settings ask for what a federation does not do."""
    asked = {
        f'adapters.method = "{settings.adapters.method}"': settings.adapters.method in SIMULATED,
        f"theory.meter_every = {settings.theory.meter_every}": settings.theory.meter_every > 0,
        'server.lr = "theory"': settings.server.lr == "theory",
        "run.cross_eval = true": settings.run.cross_eval,
    }
    if wrong := [words for words, yes in asked.items() if yes]:
        raise UserError(f"{wrong[0]}: not in a federation; `airpfed run` does it")


def counted(settings: Settings) -> list[int]:
    """The task of every device; UserError where a task does not say how many it has."""
    if none := [one.name for one in settings.tasks if not one.devices]:
        raise UserError(f"tasks.{none[0]}.devices = 0: a federation needs the number of the task's devices")
    return [n for n, one in enumerate(settings.tasks) for _ in range(one.devices)]


def node_of(settings: Settings, file: Path) -> NodeSettings:
    """A device's own settings; UserError if the file has none."""
    if settings.node is None:
        raise UserError(f"{file}: no [node] table; `airpfed federate init` writes one settings file per device")
    if settings.node.device >= len(counted(settings)):
        raise UserError(f"{file}: node.device = {settings.node.device}: there are {len(counted(settings))}, from 0")
    return settings.node


def host_of(address: str) -> str:
    """The host of host:port; an IPv6 address stands in brackets."""
    return re.sub(r"^\[(.*)\]$", r"\1", address.rpartition(":")[0])


def port_of(address: str) -> int:
    """The port of host:port."""
    return int(address.rpartition(":")[2])
