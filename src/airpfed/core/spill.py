"""Matrices with a row a device, in memory up to a limit and in a temporary file beyond it: ordinary tensors either way.

A file's pages count as resident while they are mapped; `release` unmaps what was read or written, so that memory grows
with what is used at once. The file has no name, lies in TMPDIR, and goes with the tensor.
"""

import mmap
import tempfile
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor

_FILES: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()
"""Start of a tensor's memory -> the file that it is."""


def zeros(rows: int, columns: int, limit_bytes: float) -> Float[Tensor, "{rows} {columns}"]:
    """A float32 matrix of zeros; in a file if it takes more than `limit_bytes`."""
    size = 4 * rows * columns
    if size <= limit_bytes or size == 0:
        return torch.zeros(rows, columns)
    with tempfile.TemporaryFile(prefix="airpfed-") as file:
        file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    found = torch.frombuffer(mapped, dtype=torch.float32).reshape(rows, columns)
    _FILES[found.untyped_storage().data_ptr()] = mapped
    return found


def filed(matrix: Tensor) -> bool:
    """Whether a matrix of `zeros` lies in a file."""
    return matrix.numel() > 0 and matrix.untyped_storage().data_ptr() in _FILES


def release(matrix: Tensor) -> None:
    """Let the memory go that a file's pages hold; their values stay. Nothing to do for a matrix in memory."""
    if filed(matrix) and hasattr(mmap, "MADV_DONTNEED"):
        _FILES[matrix.untyped_storage().data_ptr()].madvise(mmap.MADV_DONTNEED)
