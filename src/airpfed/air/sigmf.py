"""Recordings of samples in the Signal Metadata Format (SigMF 1.2): plain JSON beside files of complex float32.

A recording is two files, NAME.sigmf-data and NAME.sigmf-meta; NAME.sigmf-collection lists recordings that belong
together, here those of the antennas. Keys that SigMF does not define begin with `airpfed:`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.core.files import read_bytes, write_atomic

VERSION = "1.2.0"
DATATYPE = "cf32_le"
"""Complex samples of two float32, little endian: real part, imaginary part."""
EXTENSIONS = [{"name": "airpfed", "version": "1.0.0", "optional": True}]


@dataclass(frozen=True)
class Recording:
    """A recording as it was read. samples: complex64. metadata: the tree of its .sigmf-meta."""

    samples: Complex[Tensor, " samples"]
    metadata: Mapping[str, Any]


def write_recording(
    base: Path,
    samples: Complex[Tensor, " samples"],
    sample_rate_hz: float,
    carrier_hz: float,
    fields: Mapping[str, Any],
    annotations: Sequence[Mapping[str, Any]],
) -> str:
    """Write the two files of a recording, and return the hash of its metadata, which a collection needs.

    base: path without an ending. fields: further fields of the global object. annotations: sorted here by their first
    sample. Raises UserError for samples that float32 cannot hold.
    """
    single = samples.to(torch.complex64)
    if not bool(single.isfinite().all()):
        raise UserError(f"{base.name}: samples are infinite, NaN or beyond float32")
    data = single.numpy().astype("<c8").tobytes()
    tree = {
        "global": {
            "core:datatype": DATATYPE,
            "core:sample_rate": sample_rate_hz,
            "core:version": VERSION,
            "core:num_channels": 1,
            "core:sha512": hashlib.sha512(data).hexdigest(),
            "core:extensions": EXTENSIONS,
            **fields,
        },
        "captures": [{"core:sample_start": 0, "core:frequency": carrier_hz}],
        "annotations": sorted(annotations, key=lambda annotation: int(annotation["core:sample_start"])),
    }
    metadata = json.dumps(tree, indent=2) + "\n"
    write_atomic(path_with(base, ".sigmf-data"), data)
    write_atomic(path_with(base, ".sigmf-meta"), metadata)
    return hashlib.sha512(metadata.encode()).hexdigest()


def write_collection(base: Path, streams: Mapping[str, str], description: str) -> None:
    """Write NAME.sigmf-collection. base: path without an ending. streams: recording -> hash of its metadata."""
    collection = {
        "core:version": VERSION,
        "core:description": description,
        "core:extensions": EXTENSIONS,
        "core:streams": [{"name": name, "hash": sha512} for name, sha512 in streams.items()],
    }
    write_atomic(path_with(base, ".sigmf-collection"), json.dumps({"collection": collection}, indent=2) + "\n")


def read_recording(base: Path) -> Recording:
    """Read a recording of one channel of complex float32. Raises UserError if it is another, or damaged."""
    path, meta = path_with(base, ".sigmf-data"), path_with(base, ".sigmf-meta")
    data, text = read_bytes(path), read_bytes(meta)
    if data is None or text is None:
        raise UserError(f"{path if data is None else meta}: missing")
    try:
        tree = json.loads(text)
        fields = dict(tree["global"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{meta}: no metadata of SigMF") from None
    if fields.get("core:datatype") != DATATYPE or fields.get("core:num_channels", 1) != 1 or len(data) % 8:
        raise UserError(f"{meta}: core:datatype should be {DATATYPE}, with whole samples of one channel")
    if fields.get("core:sha512", "") not in ("", hashlib.sha512(data).hexdigest()):
        raise UserError(f"{path}: damaged (its sha512 differs from that in {meta.name})")
    return Recording(torch.from_numpy(np.frombuffer(data, "<c8").astype(np.complex64)), tree)


def read_collection(base: Path) -> list[Recording]:
    """Read the recordings of a collection, in its order. Raises UserError if one differs from what it lists."""
    path = path_with(base, ".sigmf-collection")
    text = read_bytes(path)
    try:
        streams = [(str(item["name"]), item["hash"]) for item in json.loads(text or b"")["collection"]["core:streams"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: missing, or no collection of SigMF") from None
    recordings = []
    for name, sha512 in streams:
        meta = read_bytes(path_with(base.parent / name, ".sigmf-meta"))
        if Path(name).name != name or meta is None or hashlib.sha512(meta).hexdigest() != sha512:
            raise UserError(f"{path}: the metadata of {name} is missing or has changed")
        recordings.append(read_recording(base.parent / name))
    return recordings


def path_with(base: Path, ending: str) -> Path:
    """The path with an ending more, whatever dots its name has."""
    return base.with_name(base.name + ending)
