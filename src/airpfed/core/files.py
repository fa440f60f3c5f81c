"""Paths made from names, and what is put in place whole: nothing is removed that was not made here."""

import hashlib
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from airpfed.core.errors import UserError

LONGEST = 200
"""Characters of a name that becomes a path: what is put before and behind it still fits into 255 bytes."""
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that are devices on Windows, whatever their ending."""
TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.(?P<machine>[0-9a-f]{8}))?\.(?P<process>[0-9]+)", re.DOTALL)
"""What `temporary` gives; earlier versions left the machine out."""


def folded(name: str) -> str:
    """A name as a file name: what is no letter, digit or one of `_.=+,-` becomes `-`."""
    return re.sub(r"[^A-Za-z0-9_.=+,-]", "-", name)


def same_place(name: str) -> str:
    """Names that give the same are one file somewhere: on systems that do not tell capitals from small letters."""
    return folded(name).lower()


def inside(folder: Path, name: str) -> Path:
    """The path of what is called `name` right below a folder: the one way from a name to a path.

    Raises UserError where it would not lie there: the name begins with no letter or digit, ends in a dot or is too
    long, or a symbolic link stands in its place.
    """
    plain = folded(name)
    if not plain[:1].isalnum() or plain.endswith(".") or len(plain) > LONGEST or RESERVED.fullmatch(plain):
        raise UserError(
            f"{name[:60]!r}: cannot name a file in {folder}; should begin with a letter or digit, not end in a dot, "
            f"and have at most {LONGEST} characters"
        )
    path = folder / plain
    if path.is_symlink():
        raise UserError(f"{path}: a symbolic link; what is written here should lie here, so move the link away")
    return path


def temporary(path: Path) -> Path:
    """Where `path` is written before it is put in place: beside it, named by machine and process."""
    return path.with_name(f".{path.name}.{machine()}.{os.getpid()}")


def machine() -> str:
    """Eight digits that stand for this machine."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """What killed writes left in a folder: temporary files and folders of processes that have ended.

    name: only those of this file, also as earlier versions named them. Those of other machines stay: nobody knows here
    whether they have ended.
    """
    found, machines = list[Path](), (machine(),) if name is None else (machine(), None)
    with suppress(OSError):
        for path in folder.iterdir():
            match = TEMPORARY.fullmatch(path.name)
            if match and match["machine"] in machines and name in (None, match["name"]):
                process = int(match["process"])
                if process == os.getpid() or not lives(process):
                    found.append(path)
    return found


def lives(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def discard(path: Path) -> None:
    """Remove a temporary file or folder that `temporary` named; links are removed, never followed."""
    assert TEMPORARY.fullmatch(path.name), path
    if path.is_dir() and not path.is_symlink():
        for below, folders, names in os.walk(path, topdown=False):
            for one in [*names, *(f for f in folders if (Path(below) / f).is_symlink())]:
                (Path(below) / one).unlink()
            for one in folders:
                with suppress(FileNotFoundError):
                    (Path(below) / one).rmdir()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path, also: str = "") -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` at the end of the block, whole, or not where it fails.

    What stood in that place is removed only if it is what an earlier call left: a folder of files that are all written
    again, or whose names match `also`. What a call left that was killed between its two moves is put back first.
    Raises UserError, before anything is moved, where a link, a file, or a folder with anything else stands there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in leftovers(folder.parent, f"{folder.name}.old"):
        discard(left) if os.path.lexists(folder) else left.rename(folder)
    for left in leftovers(folder.parent, folder.name):
        discard(left)
    spare = temporary(folder)
    spare.mkdir()
    try:
        yield spare
        replaceable(folder, {path.name for path in spare.iterdir()}, also)
        old = temporary(folder.with_name(f"{folder.name}.old"))
        if folder.exists():
            folder.rename(old)
        spare.rename(folder)
        if old.exists():
            discard(old)
    except BaseException:
        with suppress(OSError):
            discard(spare)
        raise


def replaceable(folder: Path, names: set[str], also: str = "") -> None:
    """UserError unless nothing stands at `folder`, or a folder of files that all have one of these names.

    also: a regular expression of other names.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder}: a link or file; a folder is written here, so move it away")
    for path in sorted(folder.iterdir()):
        known = path.name in names or re.fullmatch(also, path.name)
        if not known or path.is_symlink() or not path.is_file():
            raise UserError(f"{path}: was not written by airpfed and would be lost; move it, or its folder, away")
