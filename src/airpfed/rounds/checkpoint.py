"""Everything that moves, on disk: safetensors for tensors, JSON for the rest, never pickle.

A checkpoint is a tensor file named by its round and `latest.json`, which names that file and its sha256 and is replaced
atomically after the file is safely on disk. A crash at any instant leaves the old checkpoint or the new one.
"""

import hashlib
import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from airpfed.errors import UserError
from airpfed.record import write_atomic, write_json

LATEST = "latest.json"

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
            if name not in tensors or tensors[name].shape != inner.shape:
                raise UserError(f"checkpoint: {name} does not fit this experiment's settings")
            parts[item.name] = tensors[name]
        else:
            parts[item.name] = inner
    return type(like)(**parts)


def write(folder: Path, state: Saved, seed: int, fingerprint: str) -> None:
    """Save a state. Random streams are functions of (seed, name, round), so seed and round are their positions."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"round-{state.round:06d}.safetensors"
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
    for old in folder.glob("*round-*.safetensors*"):  # the last round's, and parts that a crash left behind
        if old.name != name:
            old.unlink(missing_ok=True)


def read(folder: Path, like: Saved, fingerprint: str) -> Saved:
    """The saved state; `like` gives structure and shapes.

    UserError if there is none, it is damaged, or of other settings.
    """
    try:
        latest = json.loads((folder / LATEST).read_text(encoding="utf-8"))
        name, sha256, made_by, done = (latest[key] for key in ("file", "sha256", "fingerprint", "round"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no checkpoint here to resume from; run without --resume") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / LATEST}: damaged; restore it, or begin anew elsewhere") from None
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{folder / name}: missing; restore it, or begin anew elsewhere") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{folder / name}: damaged (its sha256 differs); restore it, or begin anew elsewhere")
    if made_by != fingerprint:
        raise UserError(f"{folder}: this checkpoint is of other settings, data or base model; use another --out")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UserError(f"{folder / name}: not a safetensors file: {error}") from None
    state: Saved = replace(rebuilt(like, tensors), round=int(done))
    return state


def exists(folder: Path) -> bool:
    """Whether there is a checkpoint."""
    return (folder / LATEST).is_file()
