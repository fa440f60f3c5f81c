"""Files and folders that settings name: relative to the settings file, wherever a command is called from."""

import re
from pathlib import Path

from airpfed.core.errors import UserError

TABLES = (".csv", ".json", ".jsonl", ".parquet")
"""Endings, in any case, of the files that hold a task's data."""

HUB = "hf:"
"""Prefix of data sets, which may be folders."""


def source_in(name: str, folder: Path) -> str:
    """A task's source with its path, if it is one, made absolute.

    A path has a slash in it, the ending of a data file, or another ending and a file of that name in `folder`. A bare
    word is a name, never a file: a folder `sms` does not take the place of the task `sms`. `hf:` is followed by a path
    where that begins with a dot, a slash or `~/`, or where the folder is there.
    """
    if name.startswith(HUB):
        return HUB + _data_set(name.removeprefix(HUB), folder)
    ending = Path(name).suffix.lower()
    if "/" in name or ending in TABLES or (ending and _exists(_beside(name, folder))):
        return str(_beside(name, folder))
    return name


def base_in(name: str, folder: Path) -> str:
    """A base model's name with its path, if it is one, made absolute.

    A path begins with a dot, a slash or `~/`, ends in .gguf, or has a slash and is there in `folder`.
    """
    if _begins_a_path(name) or Path(name).suffix.lower() == ".gguf":
        return str(_beside(name, folder))
    return str(_beside(name, folder)) if "/" in name and _exists(_beside(name, folder)) else name


def _data_set(name: str, folder: Path) -> str:
    """What follows `hf:`; behind the path may stand `:config` and `@split`."""
    ends = sorted({len(name), *(at.start() for at in re.finditer("[:@]", name))}, reverse=True)
    for end in ends:
        if end and ("/" in name[:end] or _begins_a_path(name[:end])) and _exists(_beside(name[:end], folder)):
            return f"{_beside(name[:end], folder)}{name[end:]}"
    if not _begins_a_path(name):
        return name
    end = min([at.start() for at in re.finditer("[:@]", name)], default=len(name))
    return f"{_beside(name[:end], folder)}{name[end:]}"


def _begins_a_path(name: str) -> bool:
    return name in (".", "..", "~") or name.startswith(("./", "../", "/", "~/"))


def _beside(name: str, folder: Path) -> Path:
    """A path as seen from `folder`. Links on the way to a file are followed; the file keeps its own name and ending."""
    try:
        path = folder / (Path(name).expanduser() if name.startswith("~/") or name == "~" else name)
        if "\0" in str(path) or not str(path).encode():
            raise ValueError
        return path.resolve() if path.name in ("", "..") or path.is_dir() else path.parent.resolve() / path.name
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"{name!r}: no path of a file or folder ({why}), as seen from {folder}") from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long, or not to be looked into
        return False
