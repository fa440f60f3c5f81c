"""Where devices stand and how much of their power arrives."""

import math

import pytest
import torch

from airpfed.air.geometry import disc_distances, log_distance_gain, noise_for_snr
from airpfed.streams import stream


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
