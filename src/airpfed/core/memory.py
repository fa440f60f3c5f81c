"""How much memory there is, so that what cannot fit is refused in a line before it grows."""

import os
from contextlib import suppress
from pathlib import Path

from airpfed.core.errors import UserError

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""What a container may take, where there is one."""


def available() -> float:
    """Bytes of this machine's memory, or of what its container may take."""
    found = []
    with suppress(OSError, ValueError, AttributeError):
        found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    for path in LIMITS:
        with suppress(OSError, ValueError):  # "max": none
            found.append(float(path.read_text()))
    return min(found, default=float("inf"))


def fits(what: str, wanted: float, right: str) -> None:
    """UserError where `what` would take more than there is. wanted: bytes, an estimate; right: what would be less."""
    have = available()
    if wanted > have:
        raise UserError(f"{what} would take about {wanted / 1e9:,.0f} GB, and there are {have / 1e9:,.0f}; {right}")
