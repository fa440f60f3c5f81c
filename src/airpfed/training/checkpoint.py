"""Checkpoints: the state of a run as safetensors and JSON, never pickle.

A checkpoint is a file of tensors, named by its round, and `latest.json`, which names that file and its sha256. The JSON
file is replaced atomically after the tensors are on the disk. A crash at any instant leaves the old checkpoint or the
new one.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.core.files import discard, leftovers, read_bytes, write_atomic
from airpfed.core.run_files import Count, Record, read_json, write_json

LATEST = "latest.json"
TENSORS = re.compile(r"round-[0-9]+\.safetensors")
KEYS = {
    "correlation_statistics": "memory",
    "optimizer_state": "",
    "memory": "error_memory.",
    "transmitted": "transmitted.",
}
"""Field -> its name in the keys of tensors, if it differs: keys are a format, fields may get better names.

The tensors of a field without a name go by their own; the names of tensors of a mapping follow that of the field.
"""


class Latest(Record):
    """latest.json: the file of tensors, its sha256, the rounds done, their seed and the run's fingerprint."""

    file: str = Field(pattern=f"^{TENSORS.pattern}$")
    sha256: str
    round: Count = Field(ge=0)
    seed: int
    fingerprint: str


Saved = TypeVar("Saved", bound=Any)
"""A frozen dataclass with a field `round`: a run's `State`, or the state of a device in a federation."""


def tensors_of(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """All tensors in a tree of dataclasses, by their path."""
    tensors: dict[str, Tensor] = {}
    for item in fields(value):
        inner, key = getattr(value, item.name), prefix + KEYS.get(item.name, item.name)
        if is_dataclass(inner):
            tensors |= tensors_of(inner, f"{key}.")
        elif isinstance(inner, Mapping):
            tensors |= {key + name: tensor.contiguous() for name, tensor in inner.items()}
        elif isinstance(inner, Tensor):
            tensors[key] = inner.contiguous()
    return tensors


def rebuild(template: Any, tensors: dict[str, Tensor], prefix: str = "") -> Any:
    """`template` with its tensors replaced by those of the same path; UserError if a shape differs."""
    parts: dict[str, Any] = {}
    for item in fields(template):
        inner, key = getattr(template, item.name), prefix + KEYS.get(item.name, item.name)
        if is_dataclass(inner):
            parts[item.name] = rebuild(inner, tensors, f"{key}.")
        elif isinstance(inner, Mapping):
            parts[item.name] = {name: _fitting(key + name, tensor, tensors) for name, tensor in inner.items()}
        elif isinstance(inner, Tensor):
            parts[item.name] = _fitting(key, inner, tensors)
        else:
            parts[item.name] = inner
    return type(template)(**parts)


def _fitting(key: str, template: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """The tensor of a key; UserError unless it has the shape and type of the template."""
    if key not in tensors or (tensors[key].shape, tensors[key].dtype) != (template.shape, template.dtype):
        raise UserError(f"checkpoint: {key} does not fit this experiment's settings")
    return tensors[key]


def save_state(folder: Path, state: Saved, seed: int, fingerprint: str) -> None:
    """Save a state. Random streams are functions of (seed, name, round), so seed and round are their positions."""
    folder.mkdir(parents=True, exist_ok=True)
    name = tensor_file(state.round)
    data = save(tensors_of(state))
    write_atomic(folder / name, data)
    latest = Latest(
        file=name,
        sha256=hashlib.sha256(data).hexdigest(),
        round=state.round,
        seed=seed,
        fingerprint=fingerprint,
    )
    write_json(folder / LATEST, latest)
    clear(folder, name)


def tensor_file(rounds: int) -> str:
    """The name of the file that holds the tensors after `rounds` rounds."""
    return f"round-{rounds:06d}.safetensors"


def clear(folder: Path, name: str) -> None:
    """Remove the tensors of all rounds but those in the file `name`, and the leftovers of killed writes."""
    for path in folder.glob("round-*.safetensors"):
        if path.name != name and TENSORS.fullmatch(path.name):
            path.unlink(missing_ok=True)
    for path in leftovers(folder):
        discard(path)


def load_state(folder: Path, template: Saved, fingerprint: str) -> Saved:
    """The saved state. template: a state with the right structure and shapes.

    Raises UserError if there is no checkpoint, if it is damaged, or if it was saved under other settings, data or base
    model.
    """
    latest = latest_of(folder)
    if latest is None:
        raise UserError(f"{folder}: no checkpoint here to resume from; run without --resume")
    path = folder / latest.file
    data = read_bytes(path)
    if data is None:
        raise UserError(f"{path}: missing; restore it, or start a new run with another --out")
    if hashlib.sha256(data).hexdigest() != latest.sha256:
        raise UserError(f"{path}: damaged (its sha256 differs); restore it, or start a new run with another --out")
    if latest.fingerprint != fingerprint:
        raise UserError(f"{folder}: this checkpoint is of other settings, data or base model; use another --out")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from None
    state: Saved = replace(rebuild(template, tensors), round=latest.round)
    return state


def latest_of(folder: Path) -> Latest | None:
    """The content of latest.json; None if there is no such file, UserError if it is damaged."""
    try:
        latest = read_json(folder / LATEST, Latest)
        if latest is not None and latest.file != tensor_file(latest.round):
            raise UserError(f"{folder / LATEST}: damaged, {latest.file} is not of round {latest.round}")
        return latest
    except UserError as error:
        raise UserError(f"{error}; restore it, or start a new run with another --out") from None


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint, good or damaged."""
    return os.path.lexists(folder / LATEST)
