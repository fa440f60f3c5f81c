"""A device's number and task, and the server's address, read from settings."""

import ipaddress
import re
from pathlib import Path

from airpfed.config.schema import NodeSettings, Settings
from airpfed.core.errors import UserError
from airpfed.federation.message import safe_line
from airpfed.model.methods import blocks_of

LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST = re.compile(rf"(?:{LABEL}\.)*{LABEL}")
"""A host's name."""


def check_federable(settings: Settings) -> None:
    """Raise UserError if the settings need something that a federation cannot do."""
    adapters, method = settings.adapters, settings.adapters.method
    blocks = blocks_of(method.name, adapters.rank_shared, adapters.rank_personal, method.options)
    # Rounds of these methods send more than gradients up and sums down.
    simulated = method.row.pooled or method.row.averages or any(block.alternating for block in blocks)
    asked = {
        f'adapters.method = "{method.name}"': simulated,
        f"theory.meter_every = {settings.theory.meter_every}": settings.theory.meter_every > 0,
        'server.lr = "theory"': settings.server.lr == "theory",
        "run.cross_eval = true": settings.run.cross_eval,
    }
    if any("device" in (block.a, block.b) for block in blocks) or adapters.head == "device":
        # A device with a model of its own is asked for answers and does not get to see the right ones.
        asked |= {
            f'tasks.{task.name}.metric = "{choice.name}" with parameters of devices': choice.row.reads == "likelihoods"
            for task in settings.tasks
            for choice in (task.metric, *task.further_metrics)
        }
    if wrong := [words for words, yes in asked.items() if yes]:
        raise UserError(f"{wrong[0]}: not possible in a federation; use `airpfed run`")
    least, there = settings.federation.min_devices, len(task_of_devices(settings))
    if least > there:
        raise UserError(f"federation.min_devices = {least}: should be at most {there}, the tasks' devices; 0: all")


def task_of_devices(settings: Settings) -> list[int]:
    """The task index of every device. Raises UserError if a task does not give its number of devices."""
    if none := [one.name for one in settings.tasks if not one.devices]:
        raise UserError(f"tasks.{none[0]}.devices = 0: a federation needs the number of the task's devices")
    return [n for n, one in enumerate(settings.tasks) for _ in range(one.devices)]


def node_of(settings: Settings, file: Path) -> NodeSettings:
    """A device's [node] settings. Raises UserError if the file has none."""
    if settings.node is None:
        raise UserError(f"{file}: no [node] table; `airpfed federate init` writes one settings file per device")
    if settings.node.device >= len(task_of_devices(settings)):
        raise UserError(
            f"{file}: node.device = {settings.node.device}: should be from 0 to {len(task_of_devices(settings)) - 1}"
        )
    return settings.node


def check_address(address: str) -> None:
    """Raise UserError unless `address` is host:port."""
    if not 0 < port_of(address) < 1 << 16:
        raise UserError(f"address {safe_line(address, 80)}: the port should be from 1 to 65535")
    check_host(host_of(address))
    if ":" in host_of(address) and not address.startswith("["):
        raise UserError(f"address {safe_line(address, 80)}: an IPv6 address stands in brackets, e.g. [::1]:9500")


def check_host(host: str) -> None:
    """Raise UserError unless `host` is a host name or an IP address that a certificate can name."""
    if is_address(host):
        return
    if not HOST.fullmatch(host) or len(host) > 253 or host.rpartition(".")[2].isdigit():
        raise UserError(
            f"host {safe_line(host, 80)!r}: should be a host name of letters, digits, hyphens and dots (others as "
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
    """The port of host:port, or 0 if there is none."""
    port = address.rpartition(":")[2]
    return int(port) if re.fullmatch("[0-9]{1,5}", port) else 0


def private_folder(folder: Path) -> Path:
    """Create a folder that only its owner may enter, whatever the umask is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
