"""Stochastic rounding: unbiased, of the variance it tells, in as many bits as it says."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from airpfed.air.quantization import BUCKET, bits_of, round_stochastically
from airpfed.core.rng import stream


@given(bits=st.sampled_from([1, 2, 4, 8]), width=st.integers(1, 1300), scale_db=st.floats(-200, 100))
def test_values_lie_on_the_levels_of_their_bucket(bits, width, scale_db):
    values = 10 ** (scale_db / 20) * torch.randn(2, width, dtype=torch.float64, generator=stream(1, "values", width))
    found, variance = round_stochastically(values, bits, stream(2, "rounding"))
    assert found.shape == values.shape and (variance >= 0).all()
    for start in range(0, width, BUCKET):
        part = slice(start, start + BUCKET)
        top = values[:, part].abs().amax(1, keepdim=True)
        place = (found[:, part] / top + 1) / 2 * (2**bits - 1)
        torch.testing.assert_close(place, place.round(), rtol=0, atol=1e-6)
        assert place.min() >= -1e-6 and place.max() <= 2**bits - 1 + 1e-6


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_mean_is_the_value_and_the_variance_as_told(bits):
    values = torch.randn(1, 700, dtype=torch.float64, generator=stream(3, "values"))
    draws = torch.stack([round_stochastically(values, bits, stream(4, "rounding", i))[0] for i in range(400)])
    variance = round_stochastically(values, bits, stream(4, "rounding", 0))[1]
    moving = variance[0] > 0
    z = (draws.mean(0) - values)[0, moving] / (variance[0, moving] / 400).sqrt()
    assert z.abs().max() < 5.5  # 700 entries
    ratio = (draws - values).square().sum((1, 2)) / variance.sum() - 1
    assert abs(float(ratio.mean())) < 5 * float(ratio.std()) / 400**0.5


def test_zeros_stay_zero_and_the_largest_entry_is_exact():
    values = torch.zeros(1, 600, dtype=torch.float64)
    values[0, 550] = -3.0
    found, variance = round_stochastically(values, 4, stream(5, "rounding"))
    assert (found[0, :512] == 0).all() and found[0, 550] == -3.0 and variance[0, 550] == 0


def test_bits_count_the_scales():
    assert bits_of(1000, 4) == 4000 + 2 * 16
    assert bits_of(512, 1) == 512 + 16
