"""Named random streams: a new draw under one name never shifts a draw under another.

A stream is a pure function of (seed, names). Its position follows from the round alone, so a resumed run needs no saved
generator state. Generators live on the CPU, so that a GPU run draws the same numbers.
"""

import hashlib

import numpy as np
import torch


def _digest(seed: int, names: tuple[str | int, ...]) -> int:
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stream(seed: int, *names: str | int) -> torch.Generator:
    """Return a torch generator for the stream `names` of `seed`, e.g. `stream(seed, "fading", t)`."""
    return torch.Generator().manual_seed(_digest(seed, names) & (2**63 - 1))


def numpy_stream(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator, for distributions that torch cannot draw from a seed (Dirichlet, log-normal)."""
    return np.random.default_rng(_digest(seed, names))
