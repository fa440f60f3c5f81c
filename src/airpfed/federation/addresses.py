"""Where a device stands: its number, its task, the server's host; from settings alone."""

import ipaddress
import re
from pathlib import Path

from airpfed.config.schema import NodeSettings, Settings
from airpfed.core.errors import UserError
from airpfed.federation.message import printable

SIMULATED = ("rolora", "centralised", "fedex", "flora")
"""Methods whose rounds are more than gradients up and sums down: they run in the simulator only."""


LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST = re.compile(rf"(?:{LABEL}\.)*{LABEL}")
"""A host's name."""


def check_federable(settings: Settings) -> None:
    """UserError where the settings ask for what a federation does not do."""
    asked = {
        f'adapters.method = "{settings.adapters.method}"': settings.adapters.method in SIMULATED,
        f"theory.meter_every = {settings.theory.meter_every}": settings.theory.meter_every > 0,
        'server.lr = "theory"': settings.server.lr == "theory",
        "run.cross_eval = true": settings.run.cross_eval,
    }
    if wrong := [words for words, yes in asked.items() if yes]:
        raise UserError(f"{wrong[0]}: not in a federation; `airpfed run` does it")
    least, there = settings.federation.min_devices, len(task_of_devices(settings))
    if least > there:
        raise UserError(f"federation.min_devices = {least}: should be at most {there}, the tasks' devices; 0: all")


def task_of_devices(settings: Settings) -> list[int]:
    """The task of every device; UserError where a task does not say how many it has."""
    if none := [one.name for one in settings.tasks if not one.devices]:
        raise UserError(f"tasks.{none[0]}.devices = 0: a federation needs the number of the task's devices")
    return [n for n, one in enumerate(settings.tasks) for _ in range(one.devices)]


def node_of(settings: Settings, file: Path) -> NodeSettings:
    """A device's own settings; UserError if the file has none."""
    if settings.node is None:
        raise UserError(f"{file}: no [node] table; `airpfed federate init` writes one settings file per device")
    if settings.node.device >= len(task_of_devices(settings)):
        raise UserError(
            f"{file}: node.device = {settings.node.device}: there are {len(task_of_devices(settings))}, from 0"
        )
    return settings.node


def check_address(address: str) -> None:
    """UserError unless this is host:port of a machine."""
    if not 0 < port_of(address) < 1 << 16:
        raise UserError(f"address {printable(address, 80)}: the port should be from 1 to 65535")
    check_host(host_of(address))
    if ":" in host_of(address) and not address.startswith("["):
        raise UserError(f"address {printable(address, 80)}: an IPv6 address stands in brackets, e.g. [::1]:9500")


def check_host(host: str) -> None:
    """UserError unless this can be a machine's name or IP address, and stand in a certificate."""
    if is_address(host):
        return
    if not HOST.fullmatch(host) or len(host) > 253 or host.rpartition(".")[2].isdigit():
        raise UserError(
            f"host {printable(host, 80)!r}: should be a host name of letters, digits, hyphens and dots (others as "
            "xn--...), an IPv4 address, or in an address an IPv6 address in brackets"
        )


def is_address(host: str) -> bool:
    """Whether a host is an IP address, without a zone."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host


def host_of(address: str) -> str:
    """The host of host:port; an IPv6 address stands in brackets."""
    return re.sub(r"^\[(.*)\]$", r"\1", address.rpartition(":")[0])


def port_of(address: str) -> int:
    """The port of host:port; 0 where it is none."""
    port = address.rpartition(":")[2]
    return int(port) if re.fullmatch("[0-9]{1,5}", port) else 0


def private_folder(folder: Path) -> Path:
    """A folder that only its owner may enter, made where it is not there, whatever the umask."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
