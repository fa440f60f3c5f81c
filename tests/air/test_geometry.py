"""Where devices stand and how much of their power arrives."""

import math

import pytest
import torch

from airpfed.air.geometry import (
    directions,
    disc_distances,
    distances,
    in_square,
    log_distance_gain,
    noise_for_snr,
    on_circle,
    shadowing,
)
from airpfed.core.rng import stream


def test_at_one_metre_the_loss_is_free_space():
    """Friis at 3.5 GHz: 20 log10(4 pi f / c) = 43.33 dB."""
    gain = log_distance_gain(torch.tensor([1.0], dtype=torch.float64), 3.5e9, 3.0)
    assert -10 * math.log10(float(gain)) == pytest.approx(43.33, abs=0.005)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 3.76])
def test_ten_times_the_distance_costs_ten_decibels_per_exponent(exponent):
    near, far = log_distance_gain(torch.tensor([7.0, 70.0], dtype=torch.float64), 1e9, exponent)
    assert 10 * math.log10(near / far) == pytest.approx(10 * exponent)


def test_devices_are_uniform_over_the_area_of_the_ring():
    """The squared distance is uniform: mean and Kolmogorov's distance within their standard errors."""
    n, near, far = 20_000, 30.0, 200.0
    d = disc_distances(n, far, near, stream(0, "drop"))
    assert d.min() >= near and d.max() <= far
    share = ((d.square() - near**2) / (far**2 - near**2)).sort().values
    assert abs(float(share.mean()) - 0.5) < 5 * (1 / 12 / n) ** 0.5
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    assert float((share - steps).abs().max()) < 2.0 / n**0.5  # exceeded once in 1,500 times


def test_noise_for_snr_sets_the_median_device():
    gain = torch.tensor([1e-9, 1e-11, 1e-10], dtype=torch.float64)
    power = torch.tensor([0.1, 0.1, 0.2], dtype=torch.float64)
    assert noise_for_snr(gain, power, 10.0) == pytest.approx(2e-12)


def test_the_snr_is_that_of_the_strongest_station():
    gain = torch.tensor([[1e-9, 1e-11, 1e-12], [1e-13, 1e-13, 1e-10]], dtype=torch.float64)
    power = torch.tensor([0.1, 0.1, 0.2], dtype=torch.float64)
    assert noise_for_snr(gain, power, 10.0) == pytest.approx(2e-12)


def test_a_stated_loss_at_one_metre_replaces_free_space():
    gain = log_distance_gain(torch.tensor([10.0], dtype=torch.float64), 3.5e9, 3.67, 30.5)
    assert -10 * math.log10(float(gain)) == pytest.approx(30.5 + 36.7)


def test_directions_are_uniform_over_the_circle():
    unit = directions(20_000, stream(0, "directions"))
    torch.testing.assert_close(unit.square().sum(1), torch.ones(20_000, dtype=torch.float64))
    assert (unit.mean(0).abs() * (2 * 20_000) ** 0.5).max() < 5
    assert abs(float((unit[:, 0] * unit[:, 1]).mean())) * (8 * 20_000) ** 0.5 < 5


def test_edges_stand_evenly_on_their_circle():
    four = on_circle(4, 100.0)
    torch.testing.assert_close(four.square().sum(1).sqrt(), torch.full((4,), 100.0, dtype=torch.float64))
    gaps = (four - four.roll(1, 0)).square().sum(1).sqrt()
    torch.testing.assert_close(gaps, torch.full((4,), 100 * 2**0.5, dtype=torch.float64))
    assert (on_circle(1, 100.0) == 0).all()


def test_distances_wrap_round_the_square_and_know_the_height():
    a = torch.tensor([[10.0, 500.0]], dtype=torch.float64)
    b = torch.tensor([[990.0, 500.0], [10.0, 530.0]], dtype=torch.float64)
    torch.testing.assert_close(distances(a, b, 0.0, 1000.0), torch.tensor([[20.0, 30.0]], dtype=torch.float64))
    torch.testing.assert_close(distances(a, b, 40.0), torch.tensor([[(980**2 + 1600) ** 0.5, 50.0]]).double())


def test_no_two_places_of_a_wrapped_square_are_further_apart_than_half_its_diagonal():
    places = in_square(300, 1000.0, stream(1, "square"))
    assert places.min() >= 0 and places.max() <= 1000
    apart = distances(places, places, 0.0, 1000.0)
    assert float(apart.max()) <= 500 * 2**0.5 + 1e-9
    assert abs(float(apart.square().mean()) / (1000**2 / 6) - 1) < 0.02  # each offset uniform in +-500


@pytest.mark.parametrize("decorrelation", [0.0, 9.0])
def test_shadowing_has_its_deviation_and_halves_its_correlation_with_distance(decorrelation):
    apart = distances(*[torch.tensor([[0.0, 0.0], [9.0, 0.0], [300.0, 0.0]], dtype=torch.float64)] * 2)
    db = 10 * shadowing(apart, 20_000, 4.0, decorrelation, stream(0, "shadowing")).log10()
    assert ((db.std(0) / 4 - 1) * (2 * 20_000) ** 0.5).abs().max() < 5
    found = (db.T @ db) / 20_000 / 16
    expected = 2 ** (-apart / decorrelation) if decorrelation else torch.eye(3, dtype=torch.float64)
    assert ((found - expected).abs() * 20_000**0.5).max() < 5 * 2**0.5
