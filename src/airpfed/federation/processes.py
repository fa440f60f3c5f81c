"""Processes that a federation starts: never left behind, whatever ends the one that started them."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from airpfed.federation.message import printable

GRACE = 5.0
"""Seconds that a process has to end by itself."""

QUIET = {
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Flower and what it brings along do not phone home."""

STEERING = re.compile(r"(FLWR|FORWARDED|UVICORN|GUNICORN|HYPERCORN|WEB|GRPC)_\w*|SSLKEYLOGFILE", re.IGNORECASE)
"""Variables that change where Flower and its server listen, whom they trust, or who can read along."""

LOCAL = ("localhost", "127.0.0.1", "::1")
"""What this machine calls itself."""


def start_process(words: Sequence[str], log: Path, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, so that Ctrl-C reaches only its parent; its output goes to `log`.

    The log is for its owner only. If the parent is killed, the kernel kills the process (Linux).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab", opener=_private) as output:
        os.fchmod(output.fileno(), 0o600)  # also one that an earlier version left
        return subprocess.Popen(
            list(words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=environment(extra or {}), start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process of ours: this one's, without what would steer Flower (`STEERING`), with `extra`.

    PATH has this environment's programs first, since Flower starts its own by name. NO_PROXY has this machine and, in
    `extra`, further hosts that are reached directly: a proxy is for others.
    """
    found = {name: value for name, value in os.environ.items() if not STEERING.fullmatch(name)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    before = [found.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    direct = ",".join(dict.fromkeys(filter(None, [*before, *LOCAL, extra.get("NO_PROXY", "")])))
    # No machine is believed when it says for whom it forwards.
    found |= {**QUIET, "PATH": path, "FORWARDED_ALLOW_IPS": "", **extra}
    return found | {"NO_PROXY": direct, "no_proxy": direct}


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def last_line(log: Path, *words: str) -> str:
    """The last line of a log that has the first of `words` in it, or the second, ...; or the last line at all."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no log"
    lines = [line for line in text.splitlines()[-200:] if line.strip()]
    for word in words:
        if found := [line for line in lines if word in line]:
            return printable(found[-1])
    return printable(lines[-1]) if lines else "an empty log"


def parent_has_exited(parent: int) -> bool:
    """Whether this process's parent is no longer the one that started it."""
    return os.getppid() != parent


def pause(seconds: float, stopping: Sequence[bool]) -> None:
    """Sleep, but not beyond the moment when something is put into `stopping`."""
    end = time.monotonic() + seconds
    while not stopping and time.monotonic() < end:
        time.sleep(0.1)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
