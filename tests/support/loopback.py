"""A whole federation on this machine, as docs/federation.md starts it: scripts, TLS, keys; nothing is left behind."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from airpfed.core import run_files
from airpfed.core.run_files import RoundRecord

ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def airpfed(*words: str | Path) -> str:
    """Run the command line to its end."""
    done = subprocess.run(
        [sys.executable, "-c", "from airpfed.cli import main; main()", *map(str, words)],
        capture_output=True, text=True, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.stdout[-1000:]} {done.stderr[-2000:]}"
    return done.stdout


def free_port(count: int = 1) -> int:
    """The first of so many ports in a row that are free."""
    for first in range(20000 + secrets.randbelow(20000), 60000, count):
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
            return first
        except OSError:
            continue
    raise AssertionError("no free ports")


def eventually(true: Callable[[], object], what: str, seconds: float = 240.0) -> None:
    """Wait for something; what is under way on a busy machine may take its time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


@dataclass
class Loopback:
    """Folders and processes of a federation. log: what a process printed. extra: of the processes' environment."""

    site: Path
    out: Path
    extra: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *words: str | Path) -> subprocess.Popen[bytes]:
        """Run a folder's start.sh; its output is appended to a log."""
        with self.log_file(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(self.site / name / "start.sh"), *map(str, words)], stdout=log, stderr=subprocess.STDOUT,
                env={**ENVIRONMENT, **self.extra}, start_new_session=True, umask=0,
            )  # fmt: skip
        return self.processes[name]

    def serve(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start the server on this federation's run folder."""
        return self.start("server", "--out", self.out, *words)

    def log_file(self, name: str) -> Path:
        return self.site / f"{name}.log"

    def log(self, name: str) -> str:
        return self.log_file(name).read_text(errors="replace")

    def kill(self, name: str) -> None:
        """kill -9: what it has started dies with it."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def rows(self) -> list[RoundRecord]:
        return run_files.load_records(self.out / "records.jsonl")

    def wait_for_round(self, number: int) -> None:
        def done() -> bool:
            server = self.processes["server"]
            assert server.poll() is None or len(self.rows()) >= number, self.log("server")[-3000:]
            return len(self.rows()) >= number

        eventually(done, f"round {number}: {self.log('server')[-1500:]}")

    def finish(self, seconds: float = 240.0) -> None:
        """Wait for the server's good end."""
        assert self.processes["server"].wait(seconds) == 0, self.log("server")[-3000:]


@contextmanager
def federation(site: Path, out: Path, extra: dict[str, str] | None = None) -> Iterator[Loopback]:
    """A federation whose processes are all gone afterwards, also those that a process has started."""
    made = Loopback(site, out, extra or {})
    try:
        yield made
    finally:
        for process in made.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in made.processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        eventually(lambda: not left_behind(site, out), f"nothing is left behind: {left_behind(site, out)}", 30)


def left_behind(*folders: Path) -> list[str]:
    """Command lines of living processes that name one of these folders."""
    provision = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if any(str(folder) in words for folder in folders) and "pytest" not in words:
            provision.append(words)
    return provision


def copied(site: Path, device: str, name: str) -> Path:
    """Another device's folder, made from one of the federation's."""
    home = shutil.copytree(site / device, site / name)
    shutil.rmtree(home / "state", ignore_errors=True)
    return home
