"""The estimators against cases that can be counted out: eigenvalues, all mini-batches, all envelopes."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from airpfed.theory.constants import (
    batch_variance,
    confidence_interval,
    envelope,
    lanczos,
    ritz_upper,
    sample_variance,
    secant,
    step_curvature,
)


def symmetric(rng: torch.Generator, size: int, count: int = 1) -> torch.Tensor:
    half = torch.randn(count, size, size, generator=rng, dtype=torch.float64)
    return half + half.mT


@pytest.mark.parametrize("size", [1, 2, 12])
def test_as_many_steps_as_dimensions_find_both_ends_exactly(size: int) -> None:
    rng = torch.Generator().manual_seed(size)
    h = symmetric(rng, size, 3)
    start = torch.randn(3, size, generator=rng, dtype=torch.float64)
    found = lanczos(lambda x: torch.einsum("bij,bj->bi", h, x), start, size + 3)
    values, vectors = torch.linalg.eigh(h)
    torch.testing.assert_close(found.top, values[:, -1])
    torch.testing.assert_close(found.bottom, values[:, 0])
    torch.testing.assert_close((found.vector * vectors[:, :, -1]).sum(1).abs(), torch.ones(3, dtype=torch.float64))


def test_a_ritz_value_is_a_lower_bound_and_its_upper_end_misses_rarely() -> None:
    """Over 200 random starts: never above the eigenvalue, and the upper end below it in at most 5 % of them."""
    rng = torch.Generator().manual_seed(0)
    size, steps, count = 400, 8, 200
    values = torch.linspace(-1, 1, size, dtype=torch.float64) ** 3 * 5  # crowded near 0, no gap at the top
    start = torch.randn(count, size, generator=rng, dtype=torch.float64)
    found = lanczos(lambda x: x * values, start, steps)
    assert (found.top <= 5 + 1e-9).all() and (found.bottom >= -5 - 1e-9).all()
    upper = [ritz_upper(t, b, size, steps) for t, b in zip(found.top.tolist(), found.bottom.tolist(), strict=True)]
    missed = sum(end < 5 for end in upper) / count
    assert missed <= 0.05 + 5 * (0.05 * 0.95 / count) ** 0.5
    assert max(found.top.tolist()) < 5, "the Ritz value alone does fall short here"
    assert ritz_upper(1.0, 0.0, 10**6, 2) == float("inf")


@pytest.mark.parametrize(("count", "batch"), [(5, 2), (5, 4), (4, 2), (4, 3), (5, 5), (4, 1), (3, 8)])
def test_the_variance_of_a_mini_batch_is_counted_over_all_pairs_of_epochs(count: int, batch: int) -> None:
    """Every order of an epoch with every order of the next, in the places where batches begin."""
    rng = torch.Generator().manual_seed(count)
    x = torch.randn(count, 3, generator=rng, dtype=torch.float64)
    variance = float((x - x.mean(0)).square().sum() / (count - 1))
    orders, size = list(permutations(range(count))), min(batch, count)
    twice = torch.tensor([[*one, *other] for one in orders for other in orders])
    starts = sorted({round_ * size % count for round_ in range(count)})
    means = [x[twice[:, start : start + size]].mean(1) - x.mean(0) for start in starts]
    counted = [float(one.square().sum(1).mean()) for one in means]
    usual, worst = batch_variance(batch, count)
    assert variance * usual == pytest.approx(sum(counted) / len(counted), abs=1e-12)
    assert variance * worst == pytest.approx(max(counted), abs=1e-12)


def test_groups_tell_the_variance_of_samples_without_bias() -> None:
    """Over random dealings into groups of unequal sizes: mean within 5 standard errors, 3 % off is seen."""
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(11, 40, generator=rng, dtype=torch.float64)
    sizes = torch.tensor([4.0, 4.0, 3.0], dtype=torch.float64)
    found = []
    for _ in range(4000):
        parts = x[torch.randperm(11, generator=rng)].split([4, 4, 3])
        found.append(float(sample_variance(torch.stack([part.mean(0) for part in parts]), sizes, x.mean(0)).mean()))
    values = torch.tensor(found, dtype=torch.float64)
    truth = float((x - x.mean(0)).square().sum() / 10)
    error = float(values.std()) / len(found) ** 0.5
    assert abs(float(values.mean()) - truth) < 5 * error < 0.03 * truth


def test_an_interval_covers_as_often_as_it_says() -> None:
    rng = torch.Generator().manual_seed(3)
    population = torch.randn(60, generator=rng, dtype=torch.float64)
    hits = 0
    for _ in range(1000):
        mean, half = confidence_interval(population[torch.randperm(60, generator=rng)[:30]], 60)
        hits += abs(mean - float(population.mean())) <= half
    assert abs(hits / 1000 - 0.95) < 5 * (0.95 * 0.05 / 1000) ** 0.5 + 0.01
    assert confidence_interval(population, 60)[1] == 0, "everything was seen"
    assert confidence_interval(population[:1])[1] == float("inf"), "one value says nothing of its spread"


points = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(points=points, least=st.sampled_from([0.0, 1.0]), prices=st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)))
def test_an_envelope_holds_everywhere_and_no_valid_pair_is_cheaper(
    points: list[tuple[float, float]], least: float, prices: tuple[float, float]
) -> None:
    """Against a linear program: least price_a a + price_b b over all valid pairs."""
    found = envelope([x for x, _ in points], [y for _, y in points], least)
    assert found and all(a >= least and b >= 0 for a, b in found)
    for a, b in found:
        assert all(y <= a * x + b + 1e-9 * (1 + y) for x, y in points)
    solved = linprog(prices, A_ub=[[-x, -1.0] for x, _ in points], b_ub=[-y for _, y in points],
                     bounds=[(least, None), (0, None)])  # fmt: skip
    best = min(prices[0] * a + prices[1] * b for a, b in found)
    assert best == pytest.approx(solved.fun, rel=1e-6, abs=1e-6)


def test_secants_and_steps_stay_below_beta() -> None:
    """On a quadratic both are Rayleigh quotients or norms of its Hessian."""
    rng = torch.Generator().manual_seed(4)
    h = symmetric(rng, 6)[0]
    beta = float(torch.linalg.eigvalsh(h).abs().max())
    for _ in range(50):
        a, b = torch.randn(2, 6, generator=rng, dtype=torch.float64)
        step = b - a
        assert secant(float((h @ step).norm()), float(step.norm())) <= beta + 1e-9
        change, slope = 0.5 * float(b @ h @ b - a @ h @ a), float(step @ h @ a)
        met = step_curvature(change, slope, float(step.square().sum()))
        assert met == pytest.approx(float(step @ h @ step / step.square().sum())) and met <= beta + 1e-9
    assert secant(1.0, 0.0) == 0 and step_curvature(1.0, 0.0, 0.0) == 0
