"""Mixing is orthogonal, common to all devices, leaves padding alone, and makes symbols of a heavy-tailed row equal."""

import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard
from torch import Tensor

from airpfed.air.mixing import EntryMixing, GroupMixing, hadamard, hadamard_blocks


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heavy(rows: int, entries: int) -> Tensor:
    """Entries of which a few hold most of the power."""
    normal = torch.randn(rows, entries, dtype=torch.float64, generator=rng(1))
    return normal.sign() * normal.abs() ** 6


@pytest.mark.parametrize("size", [1, 2, 8, 16, 64, 128, 256])
def test_the_transform_is_sylvester_s_up_to_order(size: int) -> None:
    """Every row of the transform of unit vectors is a row of the matrix; it is orthogonal and its own inverse."""
    ours = hadamard(torch.eye(size, dtype=torch.float64))
    known = torch.tensor(scipy_hadamard(size), dtype=torch.float64) / size**0.5
    assert {tuple(row) for row in ours.sign().tolist()} == {tuple(row) for row in known.sign().tolist()}
    torch.testing.assert_close(ours @ ours.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(hadamard(ours), torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("entries", [1, 2, 63, 64, 200, 700, 1000])
@pytest.mark.parametrize("mixing", ["full", "permutation"])
def test_the_map_is_orthogonal_and_undone(entries: int, mixing: str) -> None:
    drawn, x = EntryMixing.draw(entries, mixing, rng()), heavy(3, entries)  # type: ignore[arg-type]
    mixed = drawn.apply(x)
    torch.testing.assert_close(drawn.undo(mixed), x, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(mixed @ mixed.T, x @ x.T, rtol=1e-12, atol=1e-9)
    assert entries < 3 or not torch.equal(mixed, x)


def test_blocks_leave_less_than_the_smallest() -> None:
    for entries in range(1, 1200):
        parts = hadamard_blocks(entries)
        covered = sum(count * size for _, count, size in parts)
        assert entries - covered < 64 and all(size & (size - 1) == 0 for _, _, size in parts)


def test_padding_is_not_mixed_and_equal_lengths_share_the_map() -> None:
    lengths = torch.tensor([300, 100, 300])
    x = heavy(3, 300)
    x[1, 100:] = 0.0
    group = GroupMixing.draw(lengths, "full", rng())
    assert group is not None
    mixed = group.apply(x, lengths)
    assert bool((mixed[1, 100:] == 0).all())
    torch.testing.assert_close(group.apply(x[:1] + x[2:], lengths[:1]), mixed[:1] + mixed[2:], rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(group.undo(mixed, lengths), x, rtol=1e-12, atol=1e-9)
    assert GroupMixing.draw(lengths, "none", rng()) is None


def test_the_largest_symbol_comes_down_to_a_gaussian_s() -> None:
    """Heavy-tailed entries as symbols of 256 subcarriers: only the whole map gives a Gaussian's largest power."""
    x = heavy(8, 1 << 14)
    normal = torch.randn(x.shape, dtype=torch.float64, generator=rng(2))

    def largest_db(values: Tensor) -> float:
        power = values.square().reshape(len(values), -1, 512).mean(2)
        return float((power.amax(1) / power.mean(1)).log10().mean() * 10)

    full, permuted = (EntryMixing.draw(1 << 14, mixing, rng()).apply(x) for mixing in ("full", "permutation"))
    assert largest_db(full) < largest_db(normal) + 0.4
    assert largest_db(permuted) > 3 and largest_db(x) > 3
