"""Paths built from names, atomic writes, and locks of folders. Nothing is removed that this package did not write."""

import hashlib
import os
import platform
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from airpfed.core.errors import UserError

MAX_NAME_LENGTH = 200
"""Characters of a name that becomes a path. Prefixes and endings still fit into the 255 bytes of a file name."""
RESERVED_NAME = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names of devices on Windows. No file can have such a name, whatever its ending."""
TEMPORARY_NAME = re.compile(r"\.(?P<name>.+?)(\.(?P<machine>[0-9a-f]{8}))?\.(?P<process>[0-9]+)", re.DOTALL)
"""Names from `temporary_path`. Earlier versions wrote them without the machine."""


# Paths built from names


def file_name_of(name: str) -> str:
    """Turn a name into a file name: characters other than letters, digits and `_.=+,-` become `-`."""
    return re.sub(r"[^A-Za-z0-9_.=+,-]", "-", name)


def collision_key(name: str) -> str:
    """Return a key that is equal for names that share one file on a file system without capitals."""
    return file_name_of(name).lower()


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file called `name` directly below a folder. Every path that contains a name comes from here.

    Raises UserError if the name begins with no letter or digit, ends in a dot, is too long or is reserved on Windows,
    and if the path is a symbolic link.
    """
    plain = file_name_of(name)
    if not plain[:1].isalnum() or plain.endswith(".") or len(plain) > MAX_NAME_LENGTH or RESERVED_NAME.fullmatch(plain):
        raise UserError(
            f"{name[:60]!r}: cannot name a file in {folder}; should begin with a letter or digit, not end in a dot, "
            f"and have at most {MAX_NAME_LENGTH} characters"
        )
    path = folder / plain
    if path.is_symlink():
        raise UserError(f"{path}: is a symbolic link; files are written only below {folder}, so move the link away")
    return path


# Reading and atomic writing


def read_bytes(path: Path) -> bytes | None:
    """Read a file. Returns None if it does not exist; raises UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Add the path to an OSError of the block. A full disk shows in write or fsync, and their errors name no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new content, never a part."""
    data = content.encode() if isinstance(content, str) else content
    spare = temporary_path(path)
    try:
        with name_file_in_errors(path):
            for left in leftovers(path.parent, path.name):
                discard(left)
            with spare.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            spare.replace(path)
    finally:
        with suppress(OSError):
            spare.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return the path next to `path` at which its new content is prepared. Machine and process are in the name."""
    return path.with_name(f".{path.name}.{machine_id()}.{os.getpid()}")


def machine_id() -> str:
    """Return eight hexadecimal digits that identify this machine."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """List the temporary files and folders of processes that ended before they finished writing.

    name: the file whose leftovers are listed, including leftovers named by earlier versions; None lists all. Leftovers
    of other machines are left alone, because their processes cannot be checked from here.
    """
    paths, machines = list[Path](), (machine_id(),) if name is None else (machine_id(), None)
    with suppress(OSError):
        for path in folder.iterdir():
            match = TEMPORARY_NAME.fullmatch(path.name)
            if match and match["machine"] in machines and name in (None, match["name"]):
                process = int(match["process"])
                if process == os.getpid() or not process_exists(process):
                    paths.append(path)
    return paths


def process_exists(process: int) -> bool:
    """Check whether a process with this number exists."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def discard(path: Path) -> None:
    """Remove a file or folder named by `temporary_path`. Links are removed and never followed."""
    assert TEMPORARY_NAME.fullmatch(path.name), path
    if path.is_dir() and not path.is_symlink():
        for parent, folders, names in os.walk(path, topdown=False):
            for name in [*names, *(f for f in folders if (Path(parent) / f).is_symlink())]:
                (Path(parent) / name).unlink()
            for name in folders:
                with suppress(FileNotFoundError):
                    (Path(parent) / name).rmdir()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: Path, extra_names: str = "") -> Iterator[Path]:
    """Yield an empty temporary folder that replaces `folder` when the block ends without an error.

    An existing folder is replaced only if all its files are written again or have names that match the regular
    expression `extra_names`. If an earlier call was killed between its two moves, its old folder is put back first.
    Raises UserError, before anything is moved, if a link, a file, or a folder with other content is in the way.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in leftovers(folder.parent, f"{folder.name}.old"):
        discard(left) if os.path.lexists(folder) else left.rename(folder)
    for left in leftovers(folder.parent, folder.name):
        discard(left)
    spare = temporary_path(folder)
    spare.mkdir()
    try:
        yield spare
        check_replaceable(folder, {path.name for path in spare.iterdir()}, extra_names)
        old = temporary_path(folder.with_name(f"{folder.name}.old"))
        if folder.exists():
            folder.rename(old)
        spare.rename(folder)
        if old.exists():
            discard(old)
    except BaseException:
        with suppress(OSError):
            discard(spare)
        raise


def check_replaceable(folder: Path, names: set[str], extra_names: str = "") -> None:
    """Raise UserError unless `folder` is absent or holds only files with one of these names.

    extra_names: regular expression of further names.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder}: is a link or a file, and should be a folder; move it away")
    for path in sorted(folder.iterdir()):
        expected = path.name in names or re.fullmatch(extra_names, path.name)
        if not expected or path.is_symlink() or not path.is_file():
            raise UserError(f"{path}: was not written by airpfed and would be lost; move it, or its folder, away")


# Locks of folders


def acquire_lock(file: Path, seconds: float) -> IO[str]:
    """Lock a file for this process; raise UserError if another process holds the lock for longer than `seconds`.

    The lock ends when the returned file is closed, or when this process ends for any reason. The file holds the number
    of the process that has the lock.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, end = file.open("a+"), time.monotonic() + seconds
    while True:
        try:
            lock_handle(handle.fileno())
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
def exclusive_run(folder: Path) -> Iterator[None]:
    """Lock a folder itself, so that no lock file is left in it. Raises UserError if another run works there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            lock_handle(handle)
        except BlockingIOError:
            raise UserError(f"{folder}: another run is at work here; wait for it, or choose another --out") from None
        yield
    finally:
        os.close(handle)


def lock_handle(handle: int) -> None:
    """Lock an open file or folder until it is closed. Raises BlockingIOError if another process holds the lock."""
    try:
        import fcntl
    except ImportError:
        raise UserError("this system has no fcntl, which airpfed locks folders with; Linux and macOS have it") from None
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def end_lock_holder(file: Path, seconds: float) -> None:
    """Wait until a lock is free. A process that still holds it after so many seconds is killed."""
    try:
        acquire_lock(file, seconds).close()
    except UserError:
        with suppress(OSError, ValueError):
            os.kill(int(file.read_text()), signal.SIGKILL)
        acquire_lock(file, 5.0).close()
