"""Everything that moves, on disk: safetensors for tensors, JSON for the rest, never pickle.

A checkpoint is a tensor file named by its round and `latest.json`, which names that file and its sha256 and is replaced
atomically after the file is safely on disk. A crash at any instant leaves the old checkpoint or the new one.
"""

import hashlib
import os
import re
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.core.files import discard, leftovers
from airpfed.core.run_files import Count, Row, content, read_json, write_atomic, write_json

LATEST = "latest.json"
TENSORS = re.compile(r"round-[0-9]+\.safetensors")


class Latest(Row):
    """latest.json: the file with the tensors, its sha256, the rounds done, and what they stand on."""

    file: str = Field(pattern=f"^{TENSORS.pattern}$")
    sha256: str
    round: Count = Field(ge=0)
    seed: int
    fingerprint: str


Saved = TypeVar("Saved", bound=Any)
"""A frozen dataclass with a field `round`: a run's `State`, or what a device of a federation keeps."""


def tensors_of(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """All tensors of a tree of dataclasses, named by their path."""
    found: dict[str, Tensor] = {}
    for item in fields(value):
        inner = getattr(value, item.name)
        if is_dataclass(inner):
            found |= tensors_of(inner, f"{prefix}{item.name}.")
        elif isinstance(inner, Tensor):
            found[prefix + item.name] = inner.contiguous()
    return found


def rebuilt(like: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """`like` with its tensors replaced by those of the same path; UserError where a shape differs."""
    parts: dict[str, Any] = {}
    for item in fields(like):
        inner = getattr(like, item.name)
        name = prefix + item.name
        if is_dataclass(inner):
            parts[item.name] = rebuilt(inner, tensors, name + ".")
        elif isinstance(inner, Tensor):
            if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (inner.shape, inner.dtype):
                raise UserError(f"checkpoint: {name} does not fit this experiment's settings")
            parts[item.name] = tensors[name]
        else:
            parts[item.name] = inner
    return type(like)(**parts)


def write(folder: Path, state: Saved, seed: int, fingerprint: str) -> None:
    """Save a state. Random streams are functions of (seed, name, round), so seed and round are their positions."""
    folder.mkdir(parents=True, exist_ok=True)
    name = name_of(state.round)
    data = save(tensors_of(state))
    write_atomic(folder / name, data)
    written: dict[str, object] = {
        "file": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "round": state.round,
        "seed": seed,
        "fingerprint": fingerprint,
    }
    write_json(folder / LATEST, written)
    clear(folder, name)


def name_of(done: int) -> str:
    """The file with the tensors after so many rounds."""
    return f"round-{done:06d}.safetensors"


def clear(folder: Path, name: str) -> None:
    """Remove other rounds' tensors than those of `name`, and what killed writes left."""
    for old in folder.glob("round-*.safetensors"):
        if old.name != name and TENSORS.fullmatch(old.name):
            old.unlink(missing_ok=True)
    for left in leftovers(folder):
        discard(left)


def read(folder: Path, like: Saved, fingerprint: str) -> Saved:
    """The saved state; `like` gives structure and shapes.

    UserError if there is none, it is damaged, or of other settings.
    """
    latest = latest_of(folder)
    if latest is None:
        raise UserError(f"{folder}: no checkpoint here to resume from; run without --resume")
    data = content(folder / latest.file)
    if data is None:
        raise UserError(f"{folder / latest.file}: missing; restore it, or begin anew elsewhere")
    if hashlib.sha256(data).hexdigest() != latest.sha256:
        raise UserError(f"{folder / latest.file}: damaged (its sha256 differs); restore it, or begin anew elsewhere")
    if latest.fingerprint != fingerprint:
        raise UserError(f"{folder}: this checkpoint is of other settings, data or base model; use another --out")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UserError(f"{folder / latest.file}: not a safetensors file: {error}") from None
    state: Saved = replace(rebuilt(like, tensors), round=latest.round)
    return state


def latest_of(folder: Path) -> Latest | None:
    """What latest.json says; None where there is none, UserError where it is damaged."""
    try:
        found = read_json(folder / LATEST, Latest)
        if found is not None and found.file != name_of(found.round):
            raise UserError(f"{folder / LATEST}: damaged, {found.file} is not of round {found.round}")
        return found
    except UserError as error:
        raise UserError(f"{error}; restore it, or begin anew elsewhere") from None


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint, good or damaged."""
    return os.path.lexists(folder / LATEST)
