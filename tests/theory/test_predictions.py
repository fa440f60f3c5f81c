"""What a plan computes from numbers: weights, bias, time averages, other splits of the ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airpfed.air.symbols import normalise_group
from airpfed.theory.predictions import StudiedGroup, at_split, bias, mean_over_time, normalise_weights, predicted_energy
from support.theory_records import make_point, make_probe


def test_weights_are_those_of_the_link() -> None:
    """Against the per-device normaliser on real vectors."""
    rng = torch.Generator().manual_seed(0)
    g = torch.randn(4, 50, generator=rng, dtype=torch.float64) * torch.tensor([[1.0], [3.0], [0.2], [0.0]])
    weights = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.0, 0.0, 0.4, 0.6]], dtype=torch.float64)
    aggregate = normalise_group(g, torch.full((4,), 50), weights, None)
    variance = (g - g.mean(1, keepdim=True)).square().mean(1)
    scaled, square = normalise_weights(weights, variance)
    torch.testing.assert_close(scaled, aggregate.weights)
    torch.testing.assert_close(square, aggregate.scale.square())
    nothing, zero = normalise_weights(weights, torch.zeros(4, dtype=torch.float64))
    assert (nothing == 0).all() and (zero == 0).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), rho=st.floats(0, 0.9))
def test_gain_and_deviation_are_the_regression_of_the_mean_sum(seed: int, rho: float) -> None:
    """Against symbols: c = <G, E Ghat>/||G||^2 and the rest, of two groups; no rest where all gains are equal."""
    rng = torch.Generator().manual_seed(seed)
    parts, sums = [], []
    for energy in (2.0, 0.5):
        w = torch.rand(3, generator=rng, dtype=torch.float64)
        a = w * (0.3 + torch.rand(3, generator=rng, dtype=torch.float64)) + 0j
        own = torch.randn(3, 40_000, generator=rng, dtype=torch.float64)
        u = (1 - rho) ** 0.5 * own + rho**0.5 * torch.randn(1, 40_000, generator=rng, dtype=torch.float64)
        mean_correlation = (1 - rho) * torch.eye(3, dtype=torch.float64) + rho
        parts.append(StudiedGroup(energy, w, a, mean_correlation, 0.1))
        sums.append((energy, w @ u, a.real @ u))
    whole = sum(e * float(g.square().mean()) for e, g, _ in sums)
    c = sum(e * float((g * h).mean()) for e, g, h in sums) / whole
    off = sum(e * float((h - c * g).square().mean()) for e, g, h in sums) / whole
    gain, deviation = bias(parts)
    assert gain == pytest.approx(c, rel=0.03) and deviation == pytest.approx(off**0.5, rel=0.05, abs=0.01)
    same = [StudiedGroup(p.energy, p.weights, 0.4 * p.weights + 0j, p.mean_correlation, p.mse) for p in parts]
    assert bias(same) == pytest.approx((0.4, 0.0), abs=1e-7)
    assert predicted_energy(parts) == pytest.approx(0.25)
    assert bias([]) == (1.0, 0.0)


def test_means_over_time_are_trapezoids() -> None:
    points = [make_point(time=t) for t in (0.0, 1.0, 4.0)]
    assert mean_over_time(points, [2.0, 4.0, 0.0]) == pytest.approx((3.0 + 6.0) / 4)
    assert mean_over_time(points[:1], [7.0]) == 7.0


def test_another_split_moves_heterogeneity_alone() -> None:
    """All personal: Lambda is larger, devices disagree less; a given sigma_dif^2 stays."""
    probe = make_probe([make_point(power=5.0, as_shared=1.0, as_personal=3.0, head=0.5)])
    none, half, every = (at_split(probe, share, False) for share in (0.0, 0.5, 1.0))
    assert [round(k.sigma_dif2, 9) for k in (none, half, every)] == [1.5 * (5 - g) for g in (3.5, 2.5, 1.5)]
    for k in (none, half, every):
        assert k.model_copy(update={"sigma_dif2": 0.0}) == probe.constants.model_copy(update={"sigma_dif2": 0.0})
    assert at_split(probe, 1.0, True) == probe.constants


def test_disagreement_at_another_split_does_not_vanish_with_the_gradient() -> None:
    """A lambda that covers all of it where the probe looked still leaves the least seen at a gradient of 0."""
    probe = make_probe([make_point(power=5.0, as_shared=1.0, as_personal=3.0, head=0.5)], safety=1.5)
    wide = probe.model_copy(update={"constants": probe.constants.model_copy(update={"lam": 10.0})})
    assert at_split(wide, 1.0, given=False).sigma_dif2 == pytest.approx(1.5 * (5 - 1.5))
    assert at_split(wide, 0.0, given=False).sigma_dif2 == pytest.approx(1.5 * (5 - 3.5))
