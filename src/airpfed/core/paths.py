"""Files and folders that settings name. Paths are relative to the settings file, not to the working directory."""

import re
from pathlib import Path

from airpfed.core.errors import UserError
from airpfed.core.rows import CALL

TABLES = (".csv", ".json", ".jsonl", ".parquet", ".tsv")
"""Endings, in any case, of the files that hold a task's data."""
MAX_BYTES = 1 << 29
"""Size of the largest data file that is read, and letters of all its cells."""
MAX_CELLS = 20_000_000
"""Rows times columns of the largest data file that is read."""

CHAT_TASKS = ("dialogue",)
"""Tasks of the catalogue whose kind is chat, known without loading the catalogue."""

HUB = "hf:"
"""Prefix of data sets of the hub, and of folders in the hub's form."""


def source_in(name: str, folder: Path) -> str:
    """Make a task's source absolute if it is a path.

    A source is a path if it has a slash, ends like a data file, or has another ending and names a file in `folder`. A
    bare word is always a name: a folder `sms` never replaces the task `sms`. After `hf:` stands a path if the text
    begins with a dot, a slash or `~/`, or if the folder exists.
    """
    if CALL.fullmatch(name):  # a row with options, `mine(year=2024)`
        return name
    if name.startswith(HUB):
        return HUB + _data_set(name.removeprefix(HUB), folder)
    ending = Path(name).suffix.lower()
    if "/" in name or ending in TABLES or (ending and _exists(_resolve(name, folder))):
        return str(_resolve(name, folder))
    return name


def base_in(name: str, folder: Path) -> str:
    """Make the name of a base model absolute if it is a path.

    A name is a path if it begins with a dot, a slash or `~/`, if it ends in .gguf, or if it has a slash and exists in
    `folder`.
    """
    if _begins_a_path(name) or Path(name).suffix.lower() == ".gguf":
        return str(_resolve(name, folder))
    return str(_resolve(name, folder)) if "/" in name and _exists(_resolve(name, folder)) else name


def option_in(value: str, folder: Path) -> str:
    """Make an option's text absolute if it names a file of `folder`: it has a slash or an ending, and the file exists.

    Other texts are no paths.
    """
    if not ("/" in value or Path(value).suffix) or "\0" in value:
        return value
    path = _resolve(value, folder)
    return str(path) if _exists(path) and path.is_file() else value


def _data_set(name: str, folder: Path) -> str:
    """Make the text after `hf:` absolute if it is a path. `:config` and `@split` may follow the path."""
    ends = sorted({len(name), *(mark.start() for mark in re.finditer("[:@]", name))}, reverse=True)
    for end in ends:
        if end and ("/" in name[:end] or _begins_a_path(name[:end])) and _exists(_resolve(name[:end], folder)):
            return f"{_resolve(name[:end], folder)}{name[end:]}"
    if not _begins_a_path(name):
        return name
    end = min([mark.start() for mark in re.finditer("[:@]", name)], default=len(name))
    return f"{_resolve(name[:end], folder)}{name[end:]}"


def _begins_a_path(name: str) -> bool:
    return name in (".", "..", "~") or name.startswith(("./", "../", "/", "~/"))


def _resolve(name: str, folder: Path) -> Path:
    """Resolve a path relative to `folder`. Links on the way are followed; a file keeps its own name and ending."""
    try:
        path = folder / (Path(name).expanduser() if name.startswith("~/") or name == "~" else name)
        if "\0" in str(path) or not str(path).encode():
            raise ValueError
        return path.resolve() if path.name in ("", "..") or path.is_dir() else path.parent.resolve() / path.name
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(f"{name!r}: no path of a file or folder ({reason}), as seen from {folder}") from None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long, or the folder may not be read
        return False
