"""Named random streams: a draw added under one name never shifts a draw under another.

A stream is a pure function of (seed, names), so its position is known from the round alone and a resumed run needs no
saved generator state. Generators live on the CPU, so that a GPU run sees the same numbers.
"""

import hashlib

import numpy as np
import torch


def _digest(seed: int, names: tuple[str | int, ...]) -> int:
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator for the stream `names` of `seed`, e.g. `stream(seed, "fading", t)`."""
    return torch.Generator().manual_seed(_digest(seed, names) & (2**63 - 1))


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """The same for numpy, for draws that torch has no seeded form of (Dirichlet, log-normal)."""
    return np.random.default_rng(_digest(seed, names))
