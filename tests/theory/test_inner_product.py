"""The weighted space: averages, inner products and norms against their sums written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airpfed.theory.inner_product import (
    Direction,
    Stack,
    dot,
    dot_parts,
    gradient_correlation,
    mean_power_of,
    printed_squared_norm,
    squared_norm,
    weighted_average,
    weights_of,
)


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor, Stack]:
    rng = torch.Generator().manual_seed(seed)
    samples = torch.randint(1, 9, (5,), generator=rng).double()
    task_of = torch.tensor([0, 0, 1, 1, 1])
    rows = Stack(*(torch.randn(5, d, generator=rng, dtype=torch.float64) for d in (3, 4, 2)))
    return samples, task_of, rows


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16))
def test_sums_are_those_of_the_problem(seed: int) -> None:
    """grad F by D_k/D and D_k/D_n; Lambda; the printed square is smaller, the devices' power larger (Jensen)."""
    samples, task_of, rows = drawn(seed)
    weights = weights_of(samples, task_of, 2)
    mean = weighted_average(weights, rows)
    total = float(samples.sum())
    torch.testing.assert_close(mean.shared, sum(samples[k] / total * rows.shared[k] for k in range(5)))
    for n, members in enumerate(([0, 1], [2, 3, 4])):
        own = float(samples[members].sum())
        torch.testing.assert_close(mean.personal[n], sum(samples[k] / own * rows.personal[k] for k in members))
    written = float(mean.shared.square().sum())
    written += sum(float(samples[task_of == n].sum()) / total * float(mean.personal[n].square().sum()) for n in (0, 1))
    written += sum(float(samples[k]) / total * float(rows.local[k].square().sum()) for k in range(5))
    assert squared_norm(weights, mean) == pytest.approx(written)
    assert sum(dot_parts(weights, mean, mean)) == pytest.approx(written)
    assert printed_squared_norm(weights, mean) <= written + 1e-12 <= mean_power_of(weights, rows) + 1e-9
    each = [float(torch.cat([rows.shared[k], rows.personal[k], rows.local[k]]).square().sum()) for k in range(5)]
    assert mean_power_of(weights, rows) == pytest.approx(sum(float(samples[k]) / total * each[k] for k in range(5)))


def test_a_directional_derivative_of_f_is_an_inner_product() -> None:
    """F(W + e v) - F(W) = e <grad F, v> + O(e^2) for F_k = 1/2 ||W_k - a_k||^2, by differences."""
    samples, task_of, rows = drawn(3)
    weights = weights_of(samples, task_of, 2)
    rng = torch.Generator().manual_seed(4)
    at, way = (
        Direction(*(torch.randn(*size, generator=rng, dtype=torch.float64) for size in ((3,), (2, 4), (5, 2))))
        for _ in range(2)
    )

    def away(where: Direction) -> Stack:
        return Stack(where.shared - rows.shared, where.personal[task_of] - rows.personal, where.local - rows.local)

    def f(where: Direction) -> float:
        return mean_power_of(weights, away(where)) / 2

    slope = (f(at + way * 1e-4) - f(at - way * 1e-4)) / 2e-4
    assert slope == pytest.approx(dot(weights, weighted_average(weights, away(at)), way), rel=1e-8)


def test_likeness_is_the_mean_correlation_of_pairs() -> None:
    rng = torch.Generator().manual_seed(5)
    g = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    energy = g.square().sum(1) + torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    members = torch.tensor([0, 2, 3])
    pairs = [(j, k) for j in members for k in members if j != k]
    written = sum(float(g[j] @ g[k] / (energy[j] * energy[k]).sqrt()) for j, k in pairs) / len(pairs)
    assert gradient_correlation(g, energy, members) == pytest.approx(written)
    assert gradient_correlation(g, energy, members[:1]) == 0
