"""Processes that a federation starts. None is left behind, however its parent ends."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from airpfed.federation.message import safe_line

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""

QUIET = {
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Variables that turn off telemetry in Flower and its dependencies."""

STEERING = re.compile(r"(FLWR|FORWARDED|UVICORN|GUNICORN|HYPERCORN|WEB|GRPC)_\w*|SSLKEYLOGFILE", re.IGNORECASE)
"""Variables that change where Flower and its server listen, whom they trust, or who can read the traffic."""

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of this machine."""


def start_process(words: Sequence[str], log: Path, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process in its own process group, so that Ctrl-C reaches only its parent. Its output goes to `log`.

    Only the owner may read the log. If the parent is killed, the kernel kills the process (Linux).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab", opener=_private) as output:
        os.fchmod(output.fileno(), 0o600)  # also for a file that an earlier version left
        return subprocess.Popen(
            list(words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=environment(extra or {}), start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process: this process's, without variables that configure Flower (`STEERING`), plus
    `extra`.

    PATH begins with this environment's programs, because Flower starts its own programs by name. NO_PROXY lists this
    machine and the hosts in extra["NO_PROXY"], which are reached without a proxy.
    """
    found = {name: value for name, value in os.environ.items() if not STEERING.fullmatch(name)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    before = [found.get(name, "") for name in ("NO_PROXY", "no_proxy")]
    direct = ",".join(dict.fromkeys(filter(None, [*before, *LOCAL, extra.get("NO_PROXY", "")])))
    # Forwarding headers are trusted from no machine.
    found |= {**QUIET, "PATH": path, "FORWARDED_ALLOW_IPS": "", **extra}
    return found | {"NO_PROXY": direct, "no_proxy": direct}


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group: SIGTERM first, then SIGKILL."""
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
    """The last line of a log that contains the first of `words`, else the second, and so on; else the last line."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no log"
    lines = [line for line in text.splitlines()[-200:] if line.strip()]
    for word in words:
        if found := [line for line in lines if word in line]:
            return safe_line(found[-1])
    return safe_line(lines[-1]) if lines else "an empty log"


def parent_has_exited(parent: int) -> bool:
    """Whether this process's parent is no longer the one that started it."""
    return os.getppid() != parent


def pause(seconds: float, stopping: Sequence[bool]) -> None:
    """Sleep for `seconds`, or until `stopping` is not empty."""
    end = time.monotonic() + seconds
    while not stopping and time.monotonic() < end:
        time.sleep(0.1)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
