"""Names of settings files: experiments that ship with the package go by name, such as `quickstart`."""

import os
import re
from pathlib import Path

from airpfed.core.errors import UserError, hint

FOLDER = Path(__file__).parents[1] / "experiments"
"""Folder of the settings files that ship with the package."""

RENAMED = {"link": "four_tasks", "federation": "three_devices"}
"""Former names of experiments that ship with the package, and their names today."""

MAX_BYTES = 4 << 20
"""Size of the largest settings file. A larger file must be something else."""

DEFAULT = Path("experiment.toml")
"""The settings file of a command that names none."""


def experiment_names() -> list[str]:
    """List the names of the experiments that ship with the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def experiment_title(name: str) -> str:
    """Return the start of the comment at the top of an experiment's file, up to the first full stop or colon."""
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    comment = " ".join(line.removeprefix("#").strip() for line in text.partition("\n\n")[0].splitlines())
    return re.split(r"[.:?](?: |$)", comment)[0]


def settings_path(text: str | Path) -> Path:
    """Return the path of a settings file that is given as a path or as the name of an experiment of the package.

    A word without a slash and without the ending .toml is a name, unless a file is called so. A path need not exist.
    Raises UserError with the nearest name if a name is unknown, and for a missing file if an experiment has its name.
    """
    path, names = Path(text), experiment_names()
    is_name = not any(mark in str(text) for mark in "/\\") and path.suffix != ".toml" and not path.is_file()
    if is_name and path.name in names:
        return FOLDER / f"{path.name}.toml"
    if (is_name or path.suffix == ".toml") and path.stem in RENAMED and not path.exists():
        raise UserError(f"{text}: no such file; the experiment of this name is called {RENAMED[path.stem]} now")
    if is_name and not path.exists():
        raise UserError(f"{text}: no such file, and none of the experiments {', '.join(names)}{hint(path.name, names)}")
    if path.stem in names and not path.exists():
        raise UserError(f"{text}: no such settings file; the package's experiment of this name is called {path.stem}")
    return path


def settings_text(path: Path) -> str:
    """Read the text of a settings file, without waiting or filling the memory. Raises UserError if it is not one."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: a directory; a settings file (TOML) is needed")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file; a settings file (TOML) is needed")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MB; a settings file (TOML) is needed")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such settings file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValueError as error:  # a null byte in the name
        raise UserError(f"{path}: cannot be read: {error}") from None


def default_path() -> Path:
    """Return the path of `experiment.toml` in the working directory. Raises UserError if there is none."""
    if not os.path.lexists(DEFAULT):
        raise UserError(
            f"{DEFAULT}: no such settings file here; `airpfed init` writes one, `airpfed run quickstart` needs none"
        )
    return DEFAULT


def display_name(path: Path) -> str:
    """Return the text for a command line that `settings_path` turns into this path: a name where there is one."""
    return path.stem if path.parent == FOLDER and settings_path(path.stem) == path else str(path)
