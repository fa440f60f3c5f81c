"""Processes that a federation starts: never left behind, whatever ends the one that started them."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE = 5.0
"""Seconds that a process has to end by itself."""


def started(words: Sequence[str], log: Path, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, so that Ctrl-C reaches only its parent; its output goes to `log`.

    If the parent is killed, the kernel kills it (Linux).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, **own_programs(), **(extra or {})}, start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip


def own_programs() -> dict[str, str]:
    """PATH with this environment's programs first: Flower starts its own by name."""
    return {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def ended(process: subprocess.Popen[bytes]) -> None:
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
    lines = [" ".join(line.split()) for line in text.splitlines()[-200:] if line.strip()]
    for word in words:
        if found := [line for line in lines if word in line]:
            return found[-1][:300]
    return lines[-1][:300] if lines else "an empty log"


def parent_gone(parent: int) -> bool:
    """Whether this process's parent is no longer the one that started it."""
    return os.getppid() != parent


def pause(seconds: float, stopping: Sequence[bool]) -> None:
    """Sleep, but not beyond the moment when something is put into `stopping`."""
    end = time.monotonic() + seconds
    while not stopping and time.monotonic() < end:
        time.sleep(0.1)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
