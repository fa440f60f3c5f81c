"""`airpfed federate join`: a device's two processes, trainer and SuperNode, kept alive."""

import signal
import socket as sockets
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from airpfed import reading
from airpfed.errors import UserError
from airpfed.flower import certificates
from airpfed.flower.places import host_of, node_of, port_of
from airpfed.flower.processes import ended, last_line, pause, started
from airpfed.lock import alone

PAUSES = (1.0, 2.0, 5.0)
"""Seconds before a process that has ended is started again, the first times and from then on."""

LASTING = 60.0
"""A process that lived so many seconds has worked: its next pause is the first again."""

Say = Callable[[str], None]


@dataclass
class Kept:
    """A process that is started again whenever it ends. why: what its end means, from its log."""

    name: str
    words: list[str]
    log: Path
    why: Callable[[int], str]
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    failures: int = 0
    due: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)

    def look(self, say: Say) -> None:
        """Start it if it is not there and its pause is over; tell of its end."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            self.failures = 0 if now - self.begun > LASTING else self.failures + 1
            wait = PAUSES[min(self.failures, len(PAUSES) - 1)]
            say(f"{self.name} ended: {self.why(self.process.returncode)}; again in {wait:g} s")
            self.process, self.due = None, now + wait
        if self.process is None and now >= self.due:
            self.process, self.begun = started(self.words, self.log, self.environment), now
            say(f"{self.name} started, process {self.process.pid}")

    def end(self) -> None:
        """End it for good."""
        if self.process is not None:
            ended(self.process)


def join(file: Path, say: Say) -> None:
    """Take part in a federation until SIGTERM or Ctrl-C. UserError if settings or keys are wrong."""
    settings = reading.read(file)
    node = node_of(settings, file)
    home = file.resolve().parent
    key, authority, address = home / node.key, home / node.certificate, settings.federation.address
    certificates.read_key(key)
    if not address or not authority.is_file():
        raise UserError(
            f"{file}: federation.address and node.certificate are needed; `airpfed federate init` sets them"
        )
    state = home / node.state
    stopping: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(True))
    # A Unix socket's path has to be short.
    with alone(state / "lock", 10.0), tempfile.TemporaryDirectory(prefix="airpfed-") as folder:
        door, logs = Path(folder) / "trainer.sock", (state / "trainer.log", state / "supernode.log")
        words = [sys.executable, "-m", "airpfed.flower.trainer", str(file.resolve()), str(door)]
        trainer = Kept("trainer", words, logs[0], lambda code: f"{last_line(logs[0])} (exit {code})")
        words = supernode(address, authority, key, node.device, node.port, door)
        link = Kept("SuperNode", words, logs[1], lambda code: meaning(code, logs[1]))
        link.environment = {"FLWR_HOME": str(state / "flower"), "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2"}
        try:
            watch(trainer, link, partial(unreachable, address, authority), say, stopping)
        finally:
            link.end()
            trainer.end()


def watch(trainer: Kept, link: Kept, fault: Callable[[], str | None], say: Say, stopping: list[bool]) -> None:
    """Keep both alive until told to stop; the SuperNode only starts while the server can be trusted and reached."""
    said = None
    while not stopping:
        trainer.look(say)
        why = None if link.process is not None and link.process.poll() is None else fault()
        if why is None:
            link.look(say)
        elif why != said:
            say(why)
        said = why
        pause(PAUSES[-1] if why else 0.5, stopping)


def supernode(address: str, authority: Path, key: Path, device: int, port: int, door: Path) -> list[str]:
    """The command line of a device's SuperNode."""
    return [
        sys.executable, "-m", "airpfed.flower.supernode", "--superlink", address, "--root-certificates", str(authority),
        "--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(port),
        "--node-config", f'partition-id={device} socket="{door}"',
    ]  # fmt: skip


def unreachable(address: str, authority: Path) -> str | None:
    """Why the server cannot be trusted or reached, in a line; None if its certificate is right."""
    host, port = host_of(address), port_of(address)
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with (
            sockets.create_connection((host, port), timeout=5) as line,
            context.wrap_socket(line, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return f"refused: the server at {address} has a wrong certificate: {error.verify_message}"
    except (OSError, ssl.SSLError) as error:
        return f"the server at {address} cannot be reached: {error}"


def meaning(code: int, log: Path) -> str:
    """What a SuperNode's exit code means."""
    if code == 1 and "Failed to activate" in last_line(log, "Failed to activate"):
        return "refused by the server: this key is not admitted, or its last process still counts as there (20 s)"
    return f"{last_line(log, '[Errno', 'Exit Code')} (exit {code})"
