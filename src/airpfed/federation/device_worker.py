"""The resident trainer of a device: it holds the base model and the data, and answers on a Unix socket.

Run as `python -m airpfed.federation.device_worker DEVICE.toml SOCKET`. It ends with the process that started it.
"""

import os
import socket
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.experiment import data_report
from airpfed.federation import build_federation
from airpfed.federation.addresses import node_of
from airpfed.federation.device import Device, handle
from airpfed.federation.ipc import read_packet
from airpfed.federation.message import BadPacketError, Packet, encoded, refusal, safe_line
from airpfed.federation.processes import parent_has_exited

PATIENCE = 30.0
"""Socket timeout in seconds."""


def device_at(file: Path) -> Device:
    """The device of a settings file, with its data and the base model."""
    settings = settings_file.read_settings(file)
    node = node_of(settings, file)
    tasks = build_federation.node_tasks(settings, node.device)
    folders = {node.device: file.parent / node.state / "runs"}
    device = build_federation.devices_of(settings, tasks, folders)[node.device]
    own = replace(tasks[device.task], train=tuple(shard for shard in tasks[device.task].train if shard))
    shard = device.local_clients.shards[0]
    report = data_report.report_task(settings, device.task, own, shard, device.experiment)
    for line in data_report.data_lines({own.name: report}):
        print(line, flush=True)
    return device


def answer_connection(device: Device, line: socket.socket) -> None:
    """Read one packet from a connection and answer it. Any failure becomes a refusal or closes the connection."""
    line.settimeout(PATIENCE)
    try:
        reply = answer_or_refusal(device, read_packet(line, device.limit))
    except BadPacketError as error:
        reply = refusal(str(error))
    except (EOFError, OSError):
        return
    try:
        line.sendall(encoded(reply))
    except OSError:
        print("the answer could not be handed on", flush=True)


def answer_or_refusal(device: Device, packet: Packet) -> Packet:
    """The device's answer. An unexpected exception is written to the log and reported in one line; the trainer
    continues.
    """
    begin = time.perf_counter()
    try:
        reply = handle(device, packet)
    except Exception as error:
        traceback.print_exc()
        reply = refusal(f"{type(error).__name__}: {error}")
    what = safe_line(f"{packet.kind} {packet.facts.get('round', '')}", 60)
    outcome = "done" if reply.kind == "done" else f"refused: {reply.facts['why']}"
    print(f"{what}: {outcome}, {time.perf_counter() - begin:.2f} s", flush=True)
    return reply


def follow_parent(parent: int) -> None:
    """End this process when its parent has exited."""
    while not parent_has_exited(parent):
        time.sleep(0.5)
    os._exit(1)


def main(file: Path, path: Path) -> None:
    """Load the device's model and data, then answer requests until a signal or the parent's exit ends the process.

    file: the device's settings. path: the Unix socket to create; only this user may connect to it.
    """
    threading.Thread(target=follow_parent, args=(os.getppid(),), daemon=True).start()
    device = device_at(file)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        before = os.umask(0o177)  # only this user may connect
        door.bind(str(path))
        os.umask(before)
        door.listen()
        print(f"device {device.number} with {device.samples} samples is ready", flush=True)
        while True:
            line, _ = door.accept()
            with line:
                answer_connection(device, line)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        print(f"airpfed: {error}", flush=True)
        sys.exit(2)
