"""Memory: the limit of the machine, the heap of the process, and matrices that move to a file beyond a limit.

By default glibc returns large blocks to the system at once, and the next round must fault every page in again. On
virtual machines that can cost more than the arithmetic of the round.

A matrix with a row per device may be larger than memory. Beyond a limit it lies in a temporary file that is mapped into
memory and stays an ordinary tensor. The file has no name, lies in TMPDIR, and is deleted with the tensor. Its pages
count as resident while they are mapped; `release_pages` unmaps them, so that memory grows only with what is in use.
`TensorFile` writes tensors into such a file and reads them back one by one.
"""

import ctypes
import gc
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.core.errors import UserError

CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the memory limit of a container, if there is one."""

TRIM_THRESHOLD = -1
MMAP_MAX = -4
ARENA_MAX = -8
"""Parameters of `mallopt`, as in malloc.h."""

_FILES: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()
"""Address of a tensor's memory -> the mapped file."""


def available_memory() -> float:
    """Return the memory of this machine or of its container, in bytes."""
    limits = []
    with suppress(OSError, ValueError, AttributeError):
        limits.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    for path in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # the file says "max" if there is no limit
            limits.append(float(path.read_text()))
    return min(limits, default=float("inf"))


def check_memory(description: str, size: float, remedy: str) -> None:
    """Raise UserError if an estimated size in bytes exceeds the memory, before anything is allocated.

    description, remedy: the beginning and the end of the error's line.
    """
    available = available_memory()
    if size > available:
        raise UserError(
            f"{description} would take about {size / 1e9:,.0f} GB, and {available / 1e9:,.0f} GB are available; "
            f"{remedy}"
        )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next round. Other systems stay as they are."""
    with suppress(OSError, TypeError, AttributeError):  # no C library, or one without mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(MMAP_MAX, 0)
        mallopt(ARENA_MAX, 1)  # a single heap, so that all threads reuse each other's memory


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Suspend garbage collection in the block, and exempt its objects from later collections.

    Importing packages and loading a model leaves half a million live objects, and each collection walks through them.
    Only the first such block of a process has this effect, because later models find the packages imported.
    """
    if not gc.isenabled() or gc.get_freeze_count():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def allocate_matrix(rows: int, columns: int, limit_bytes: float) -> Float[Tensor, "{rows} {columns}"]:
    """Allocate a float32 matrix of zeros, in a temporary file if it takes more than `limit_bytes`."""
    size = 4 * rows * columns
    if size <= limit_bytes or size == 0:
        return torch.zeros(rows, columns)
    with tempfile.TemporaryFile(prefix="airpfed-") as file:
        file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    matrix = torch.frombuffer(mapped, dtype=torch.float32).reshape(rows, columns)
    _FILES[matrix.untyped_storage().data_ptr()] = mapped
    return matrix


def is_spilled(matrix: Tensor) -> bool:
    """Check whether a matrix of `allocate_matrix` lies in a file."""
    return matrix.numel() > 0 and matrix.untyped_storage().data_ptr() in _FILES


def release_pages(matrix: Tensor) -> None:
    """Unmap the pages of a matrix that lies in a file; its values stay. A matrix in memory is left alone."""
    if is_spilled(matrix) and hasattr(mmap, "MADV_DONTNEED"):
        _FILES[matrix.untyped_storage().data_ptr()].madvise(mmap.MADV_DONTNEED)


class TensorFile:
    """Tensors one after another in a temporary file."""

    def __init__(self) -> None:
        """Open an empty file."""
        self._file = tempfile.TemporaryFile(prefix="airpfed-")  # noqa: SIM115 - lives as long as its owner
        weakref.finalize(self, self._file.close)
        self._size = 0
        self._lock = Lock()

    def put(self, value: Tensor) -> tuple[int, torch.Size]:
        """Append a tensor; returns its offset in bytes and its shape."""
        data = value.cpu().contiguous().view(torch.uint8).numpy()
        offset = self._size
        self._file.seek(offset)
        self._file.write(data.tobytes())
        self._size += data.nbytes
        return offset, value.shape

    def get(self, entry: tuple[int, torch.Size], dtype: torch.dtype) -> Tensor:
        """Read the tensor of an entry that `put` returned, bit for bit. Any thread may call it."""
        offset, shape = entry
        with self._lock:
            self._file.seek(offset)
            data = bytearray(self._file.read(shape.numel() * dtype.itemsize))
        return torch.frombuffer(data, dtype=dtype).reshape(shape)
