"""Payloads: their length is the computed one, their rounding is to a neighbour and has no bias."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airpfed.devices.compression import BITS, LEVELS, Payload, decode, encode, vector_bytes

ROUNDED: tuple[Payload, ...] = ("bfloat16", "int8", "int4")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def groups_at(cuts: list[int], size: int) -> tuple[tuple[int, int], ...]:
    edges = sorted({0, size, *(cut % (size + 1) for cut in cuts)})
    return tuple(pairwise(edges))


def steps(vector: torch.Tensor, groups: tuple[tuple[int, int], ...], payload: Payload) -> torch.Tensor:
    """Distance of the two neighbours that each entry may be rounded to, at most."""
    if payload == "bfloat16":
        return 2.0 ** (vector.abs().clamp(min=1e-30).log2().floor() - 7)
    each = [vector[a:b].abs().max().expand(b - a) / LEVELS[payload] for a, b in groups]
    return torch.cat(each) if each else vector


@settings(max_examples=60, deadline=None)
@given(
    payload=st.sampled_from(get_args(Payload)), size=st.integers(0, 60), seed=st.integers(0, 99),
    cuts=st.lists(st.integers(0, 60), max_size=3), scale=st.sampled_from([1e-9, 1e-3, 1.0, 1e6]),
)  # fmt: skip
def test_a_vector_comes_back_within_a_step_at_the_computed_length(
    payload: Payload, size: int, seed: int, cuts: list[int], scale: float
) -> None:
    vector, groups = torch.randn(size, generator=rng(seed)) * scale, groups_at(cuts, size)
    data = encode(vector, groups, payload, rng(seed))
    assert data.dtype == torch.uint8 and len(data) == vector_bytes(size, groups, payload)
    back = decode(data, size, groups, payload)
    if payload == "float32":
        assert torch.equal(back, vector)
    else:
        assert bool(((back - vector).abs() <= steps(vector, groups, payload) * (1 + 1e-5)).all())


@pytest.mark.parametrize("payload", ROUNDED)
def test_rounding_has_no_bias(payload: Payload) -> None:
    """4,000 draws: the mean of every entry is the entry within 5 standard errors; rounding to the nearest is not."""
    vector, groups, draws = torch.tensor([1.0, 0.3001, -0.26, 0.0004, -0.0761, 0.9]), ((0, 3), (3, 6)), 4000
    found = torch.stack([decode(encode(vector, groups, payload, rng(s)), 6, groups, payload) for s in range(draws)])
    error = (found - vector).double().mean(0)
    spread = found.double().std(0) / draws**0.5
    assert bool((error.abs() <= 5 * spread + 1e-7).all()), error / spread
    step = steps(vector, groups, payload)
    nearest = (vector / step).round() * step - vector
    assert bool((nearest.abs() > 5 * spread + 1e-7).any()), "a bias of this size would have been seen"


@pytest.mark.parametrize("payload", get_args(Payload))
def test_zeros_stay_zeros_and_seeds_repeat(payload: Payload) -> None:
    groups = ((0, 5), (5, 9))
    assert torch.equal(decode(encode(torch.zeros(9), groups, payload, rng()), 9, groups, payload), torch.zeros(9))
    vector = torch.randn(9, generator=rng(1))
    first, again, other = (encode(vector, groups, payload, rng(seed)) for seed in (2, 2, 3))
    assert torch.equal(first, again)
    assert payload == "float32" or not torch.equal(first, other)


def test_a_thousand_entries_take_the_bytes_of_their_bits() -> None:
    assert [vector_bytes(1000, ((0, 600), (600, 1000)), payload) for payload in BITS] == [4000, 2000, 1008, 508]
