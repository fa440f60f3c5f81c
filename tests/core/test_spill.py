"""Matrices that lie in a file behave as those in memory, and do not stay resident."""

import gc
from pathlib import Path

import pytest
import torch

from airpfed.core import memory


def resident() -> int:
    """Bytes of this process in memory, pages of mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


@pytest.mark.parametrize(("limit", "filed"), [(0.0, True), (119.0, True), (120.0, False), (1e9, False)])
def test_a_file_is_a_tensor(limit, filed):
    matrix = memory.allocate_matrix(6, 5, limit)
    assert memory.is_spilled(matrix) == memory.is_spilled(matrix[2:]) == filed
    assert matrix.shape == (6, 5) and (matrix == 0).all()
    wanted = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for row in range(6):
        matrix[row] = wanted[row]
        memory.release_pages(matrix)
    assert torch.equal(matrix, wanted) and torch.equal(matrix[:, 1:3][[4, 0]], wanted[[4, 0], 1:3])


def test_nothing_to_hold():
    for rows, columns in ((0, 5), (5, 0)):
        matrix = memory.allocate_matrix(rows, columns, 0.0)
        memory.release_pages(matrix)
        assert matrix.shape == (rows, columns) and not memory.is_spilled(matrix)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_what_is_released_is_not_resident():
    size = 64 * 2**20
    matrix = memory.allocate_matrix(64, size // 256, 0.0)
    before = resident()
    matrix[:] = 1.0
    assert resident() - before > size / 2
    memory.release_pages(matrix)
    assert resident() - before < size / 4
    assert bool((matrix[::7, ::1001] == 1).all())
    known = len(memory._FILES)
    del matrix
    gc.collect()
    assert len(memory._FILES) == known - 1, "the file goes with the tensor"


def test_a_tensor_file_gives_back_what_was_put() -> None:
    file, rng = memory.TensorFile(), torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=rng).to(dtype) for shape, dtype in (((3, 5), torch.float32),
              ((1, 7), torch.bfloat16), ((2, 2), torch.float64))]  # fmt: skip
    entries = [file.put(value) for value in values]
    for value, entry in reversed(list(zip(values, entries, strict=True))):
        assert torch.equal(file.get(entry, value.dtype), value)
