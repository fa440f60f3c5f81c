"""`airpfed federate join`: keep a device's two processes alive, the trainer and the SuperNode."""

import os
import re
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

from airpfed.config import settings_file
from airpfed.config.schema import NodeSettings, Settings
from airpfed.core import files
from airpfed.core.errors import UserError
from airpfed.core.files import acquire_lock
from airpfed.federation import certificates
from airpfed.federation.addresses import check_address, host_of, node_of, port_of, private_folder
from airpfed.federation.message import safe_line
from airpfed.federation.processes import end_process, last_line, pause, start_process

PAUSES = (1.0, 2.0, 5.0)
"""Seconds before the first, second, ... restart of a process; the last value repeats."""

LASTING = 60.0
"""A process that ran this many seconds counts as working, and its restart pauses begin anew."""

WRONG = 2
"""Exit code of a trainer with wrong settings, data or model. It counts as a failure however long the trainer ran."""

TRIES = {"trainer": 5, "SuperNode": 20}
"""The number of consecutive failures after which a process is given up. Refusals by the server do not count."""

SOCKET_PATH = 107
"""The longest path of a Unix socket in bytes (macOS: 103)."""

Say = Callable[[str], None]


@dataclass
class SupervisedProcess:
    """A process that is restarted whenever it ends.

    reason: exit code -> reason of the end, read from the log. patient: whether the server caused this reason; such an
    end does not count as a failure.
    """

    name: str
    words: list[str]
    log: Path
    reason: Callable[[int], str]
    patient: Callable[[str], bool] = lambda _: False
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    due: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)

    def look(self, log: Say) -> None:
        """Restart the process if it has ended and its pause is over, and log the end. Raises UserError if it keeps
        failing at once.
        """
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            code = self.process.returncode
            reason, worked = self.reason(code), now - self.started_at > LASTING and code != WRONG
            self.process, self.failures = None, 0 if worked else self.failures + 1
            if self.failures >= TRIES.get(self.name, 5) and not self.patient(reason):
                raise UserError(
                    f"{self.name} ended {self.failures} times in a row: {reason}; all of it is in {self.log}"
                )
            wait = PAUSES[min(self.failures, len(PAUSES) - 1)]
            log(f"{self.name} ended: {reason}; again in {wait:g} s")
            self.due = now + wait
        if self.process is None and now >= self.due:
            self.process, self.started_at = start_process(self.words, self.log, self.environment), now
            log(f"{self.name} started, process {self.process.pid}")

    def end(self) -> None:
        """End the process for good."""
        if self.process is not None:
            end_process(self.process)


def join_federation(file: Path, log: Say) -> None:
    """Take part in a federation until SIGTERM or Ctrl-C.

    Raises UserError if settings or keys are wrong, or if one of the two processes keeps failing at once.
    """
    settings, node = device_settings_of(file)
    home = file.resolve().parent
    key, authority, address = home / node.key, home / node.certificate, settings.federation.address
    stopping: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(True))
    os.umask(0o077)  # the device's files are for its owner only
    state = private_folder(home / node.state)
    with (
        acquire_lock(state / "lock", 10.0),
        tempfile.TemporaryDirectory(prefix="airpfed-", dir=short_folder()) as folder,
    ):
        remove_temporary_files(state)
        socket_path, logs = Path(folder) / DOOR, (state / "trainer.log", state / "supernode.log")
        words = [sys.executable, "-m", "airpfed.federation.device_worker", str(file.resolve()), str(socket_path)]
        trainer = SupervisedProcess("trainer", words, logs[0], lambda code: f"{last_line(logs[0])} (exit {code})")
        words = supernode(address, authority, key, node.device, node.port, socket_path)
        link = SupervisedProcess(
            "SuperNode", words, logs[1], lambda code: meaning(code, logs[1]), lambda reason: REFUSED in reason
        )
        link.environment = {
            "FLWR_HOME": str(state / "flower"),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "NO_PROXY": host_of(address),
        }
        try:
            watch(trainer, link, partial(unreachable, address, authority), log, stopping)
        finally:
            link.end()
            trainer.end()


def device_settings_of(file: Path) -> tuple[Settings, NodeSettings]:
    """A device's settings. Raises UserError unless its settings, key and authority certificate are usable."""
    settings = settings_file.read_settings(file)
    node = node_of(settings, file)
    home = file.resolve().parent
    certificates.read_key(home / node.key)
    if not settings.federation.address:
        raise UserError(f"{file}: federation.address is needed; `airpfed federate init` sets it")
    check_address(settings.federation.address)
    certificates.read_certificate(home / node.certificate)
    return settings, node


DOOR = "trainer.sock"


def short_folder() -> Path:
    """The temporary folder, or /tmp if a Unix socket's path would be too long or contain unusual characters there."""
    wanted = Path(tempfile.gettempdir())
    limit = SOCKET_PATH if sys.platform == "linux" else 103
    for folder in (wanted, Path("/tmp")):
        path = folder / "airpfed-12345678" / DOOR
        if len(os.fsencode(path)) <= limit and re.fullmatch(r"[\w./+-]+", str(path)) and os.access(folder, os.W_OK):
            return folder
    raise UserError(
        f"TMPDIR = {wanted}: too long or of odd letters for a socket, and /tmp cannot be written to; should be of at "
        f"most {limit - len(DOOR) - 18} letters, digits and ./_+-"
    )


def remove_temporary_files(state: Path) -> None:
    """Remove temporary files that killed processes left in a device's state. The caller holds the folder's lock."""
    for path in list(state.rglob(".*")):
        if files.TEMPORARY_NAME.fullmatch(path.name) and path.exists() and not path.is_symlink():
            files.discard(path)


def watch(
    trainer: SupervisedProcess, link: SupervisedProcess, fault: Callable[[], str | None], log: Say, stopping: list[bool]
) -> None:
    """Keep both processes alive until `stopping` is not empty. The SuperNode starts only while the server is reachable
    and its certificate valid.
    """
    last_line_logged = None
    while not stopping:
        trainer.look(log)
        reason = None if link.process is not None and link.process.poll() is None else fault()
        if reason is None:
            link.look(log)
        elif reason != last_line_logged:
            log(reason)
        last_line_logged = reason
        pause(PAUSES[-1] if reason else 0.5, stopping)


def supernode(address: str, authority: Path, key: Path, device: int, port: int, socket_path: Path) -> list[str]:
    """The command line of a device's SuperNode."""
    return [
        sys.executable, "-m", "airpfed.federation.supernode", "--superlink", address, "--root-certificates",
        str(authority), "--auth-supernode-private-key", str(key), "--host", "127.0.0.1", "--port", str(port),
        "--node-config", f'partition-id={device} socket="{socket_path}"',
    ]  # fmt: skip


def unreachable(address: str, authority: Path) -> str | None:
    """Why the server cannot be reached or trusted, as one line, or None."""
    host, port = host_of(address), port_of(address)
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with (
            sockets.create_connection((host, port), timeout=5) as line,
            context.wrap_socket(line, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as error:
        return f"refused: the server at {address} has a wrong certificate: {safe_line(error.verify_message)}"
    except (OSError, ssl.SSLError) as error:
        return f"the server at {address} cannot be reached: {safe_line(str(error))}"


REFUSED = "refused by the server"


def meaning(code: int, log: Path) -> str:
    """The meaning of a SuperNode's exit code."""
    if code == 1 and "Failed to activate" in last_line(log, "Failed to activate"):
        return f"{REFUSED}: this key is not admitted, or its last process still counts as there (20 s)"
    return f"{last_line(log, '[Errno', 'Exit Code')} (exit {code})"
