"""Whole blocks together: the same bits as block by block."""

from functools import partial

import pytest
import torch

from airpfed.air.blockwise import by_block
from airpfed.air.segments import block_ranges_of
from airpfed.core.rng import complex_normals, stream

SUM = partial(torch.sum, dim=-1)
NORM = partial(torch.linalg.vector_norm, dim=-1)


@pytest.mark.parametrize("function", [SUM, NORM])
@pytest.mark.parametrize("per_use", [1, 2])
@pytest.mark.parametrize(
    ("first_use", "uses", "coherence"),
    [(0, 5, 7), (3, 4, 7), (3, 5, 7), (0, 70, 7), (5, 1001, 33), (0, 900, 300), (17, 60_000, 9000), (0, 1, 1)],
)
@pytest.mark.parametrize("rows", [1, 3])
def test_blocks_together_have_the_bits_of_each_block(function, per_use, first_use, uses, coherence, rows):
    _, ranges = block_ranges_of(first_use, uses, coherence)
    values = torch.randn(rows, per_use * uses, dtype=torch.float64, generator=stream(1, "values"))
    expected = torch.stack([function(values[:, per_use * a : per_use * b]) for a, b in ranges])
    found = by_block(function, values, ranges, per_use)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_streams_drawn_together_are_those_of_each_name():
    each = [
        torch.randn(2, 3, dtype=torch.complex128, generator=stream(3, "drop", 1, "fading", 7, block))
        for block in (4, 5, 9)
    ]
    found = complex_normals(3, ("drop", 1, "fading", 7), [4, 5, 9], (2, 3))
    torch.testing.assert_close(found, torch.stack(each), rtol=0, atol=0)
