"""Folders in which one process works at a time."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from airpfed.core.errors import UserError


@contextmanager
def alone(file: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of a folder; UserError if another process holds it for longer than `seconds`."""
    with locked(file, seconds):
        yield


def locked(file: Path, seconds: float) -> IO[str]:
    """A lock that lasts until the file is closed, at the latest with this process, whatever ends it.

    The file holds the number of the process that has the lock.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, end = file.open("a+"), time.monotonic() + seconds
    while True:
        try:
            hold(handle.fileno())
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            return handle
        except BlockingIOError:
            if time.monotonic() >= end:
                handle.close()
                raise UserError(f"{file.parent}: another process works in this folder") from None
            time.sleep(0.2)
        except BaseException:
            handle.close()
            raise


@contextmanager
def only(folder: Path) -> Iterator[None]:
    """The only run in a folder, which nothing is left in for it; UserError if there is another."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            hold(handle)
        except BlockingIOError:
            raise UserError(f"{folder}: another run is at work here; wait for it, or choose another --out") from None
        yield
    finally:
        os.close(handle)


def hold(handle: int) -> None:
    """Lock an open file or folder until it is closed; BlockingIOError where another process has it."""
    try:
        import fcntl
    except ImportError:
        raise UserError("this system has no fcntl, which airpfed locks folders with; Linux and macOS have it") from None
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def ended_holder(file: Path, seconds: float) -> None:
    """Until nobody holds a lock; who still does after so many seconds is killed."""
    try:
        locked(file, seconds).close()
    except UserError:
        with suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)
        locked(file, 5.0).close()
