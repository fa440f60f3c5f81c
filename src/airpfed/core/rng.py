"""Named random streams: a new draw under one name never shifts a draw under another.

A stream is a pure function of (seed, names). Its position follows from the round alone, so a resumed run needs no saved
generator state. Generators live on the CPU, so that a GPU run draws the same numbers.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def _digest(seed: int, names: tuple[str | int, ...]) -> int:
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stream(seed: int, *names: str | int) -> torch.Generator:
    """Return a torch generator for the stream `names` of `seed`, e.g. `stream(seed, "fading", t)`."""
    return torch.Generator().manual_seed(_digest(seed, names) & (2**63 - 1))


def complex_normals(seed: int, names: tuple[str | int, ...], indices: Iterable[int], shape: Sequence[int]) -> Tensor:
    """Draw CN(0, 1) of a shape from the stream (names, index) of each index; complex128, stacked, index first."""
    rng, indices = torch.Generator(), list(indices)
    normals = torch.empty(len(indices), *shape, dtype=torch.complex128)
    for row, index in zip(normals, indices, strict=True):
        torch.randn(*shape, generator=rng.manual_seed(_digest(seed, (*names, index)) & (2**63 - 1)), out=row)
    return normals


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator, for distributions that torch cannot draw from a seed (Dirichlet, log-normal)."""
    return np.random.default_rng(_digest(seed, names))
