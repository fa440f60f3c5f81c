"""Normalising and packing, and both undone."""

import pytest
import torch
from torch import Tensor

from airpfed.air.row_chunks import all_rows
from airpfed.air.symbols import FLOOR, common_sigma, normalise_group, pack_symbols, unpack_symbols, uses_of
from airpfed.core.rng import stream

WEIGHTS = torch.tensor([[0.2, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
LENGTHS = torch.tensor([9, 9, 7])


def rows(d: int = 9) -> Tensor:
    g = torch.randn(3, d, generator=stream(0, "rows")) * torch.tensor([[0.1], [1.0], [5.0]]) + 0.7
    return g * (torch.arange(d) < LENGTHS[:, None])


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("d", [1, 8, 9])
def test_unpacking_undoes_packing(packing, d):
    u = torch.randn(3, d, dtype=torch.float64, generator=stream(1, "u"))
    x = pack_symbols(u, packing)
    assert x.shape[1] == uses_of(d, packing)
    torch.testing.assert_close(unpack_symbols(x, packing, d), u, rtol=1e-15, atol=0)


@pytest.mark.parametrize("packing", ["iq", "real"])
def test_a_symbol_has_the_mean_power_of_its_entries(packing):
    u = torch.randn(3, 8, dtype=torch.float64, generator=stream(1, "u"))
    torch.testing.assert_close(pack_symbols(u, packing).abs().square().mean(1), u.square().mean(1))


def test_real_packing_throws_the_imaginary_half_of_noise_away():
    """The same complex noise costs half as much per real entry as with iq."""
    z = torch.randn(1, 100_000, dtype=torch.complex128, generator=stream(2, "z"))
    real, iq = unpack_symbols(z, "real", 100_000).square(), unpack_symbols(z, "iq", 200_000).square()
    assert abs(float((real.mean() - 0.5) / (real.std() / len(real[0]) ** 0.5))) < 5
    assert abs(float((iq.mean() - 1.0) / (iq.std() / len(iq[0]) ** 0.5))) < 5


@pytest.mark.parametrize("sigma", [None, 6.0])
def test_weights_scale_and_offset_give_the_weighted_sum_back(sigma):
    g = rows()
    made = normalise_group(g, LENGTHS, WEIGHTS, sigma)
    back = made.scale[:, None] * (made.weights @ made.entries[:]) + made.offset[:, None] * (
        torch.arange(9) < made.num_entries[:, None]
    )
    torch.testing.assert_close(back, WEIGHTS @ g.double(), rtol=1e-12, atol=1e-12)


def test_own_entries_have_mean_zero_and_power_one():
    made = normalise_group(rows(), LENGTHS, WEIGHTS, None)
    torch.testing.assert_close(made.symbol_power, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(made.entries[:].sum(1), torch.zeros(3, dtype=torch.float64))
    assert (made.entries[:][2, 7:] == 0).all()


def test_targets_own_the_entries_of_the_devices_they_want():
    made = normalise_group(rows(), LENGTHS, WEIGHTS, None)
    assert made.num_entries.tolist() == [9, 7]


def test_scaled_weights_keep_the_energy_of_the_plain_ones():
    """sigma_i^2 = sum_k w_ik^2 s_k^2 / sum_k w_ik^2, so that sum_k of the squared design weights is sum_k w_ik^2."""
    made = normalise_group(rows(), LENGTHS, WEIGHTS, None)
    torch.testing.assert_close(made.weights.square().sum(1), WEIGHTS.square().sum(1))


def test_the_common_sigma_is_the_largest_root_mean_square_of_the_round():
    """Over a device's own entries, not over the padded row."""
    short = torch.zeros(2, 10)
    short[0, :4], short[1] = 3.0, 2.0
    assert (
        common_sigma([all_rows(torch.ones(2, 5)), all_rows(short)], [torch.tensor([5, 5]), torch.tensor([4, 10])])
        == 3.0
    )


def test_under_a_common_sigma_weaker_devices_send_with_less_power():
    g = rows()
    sigma = common_sigma([all_rows(g)], [LENGTHS])
    made = normalise_group(g, LENGTHS, WEIGHTS, sigma)
    expected = g.double().square().sum(1) / LENGTHS / sigma**2
    torch.testing.assert_close(made.symbol_power, expected)
    assert float(made.symbol_power.max()) == pytest.approx(1.0, rel=1e-12)
    assert (made.weights == WEIGHTS).all() and (made.offset == 0).all()


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_floor_is_relative_to_the_strongest(scale):
    """A device just above the floor sends, one below is silent, whatever the unit of the gradients."""
    g = torch.randn(3, 50, dtype=torch.float64, generator=stream(3, "floor"))
    g = (g - g.mean(1, keepdim=True)) / g.std(1, keepdim=True, unbiased=False)
    g = scale * g * torch.tensor([1.0, 2 * FLOOR**0.5, 0.3 * FLOOR**0.5], dtype=torch.float64)[:, None]
    made = normalise_group(g, torch.full((3,), 50), WEIGHTS, None)
    assert (made.symbol_power > 0.5).tolist() == [True, True, False]
    assert made.weights.isfinite().all() and made.entries[:].isfinite().all()


def test_a_constant_row_travels_as_its_mean_only():
    g = torch.full((3, 9), 0.25)
    made = normalise_group(g, torch.full((3,), 9), WEIGHTS, None)
    assert (made.entries[:] == 0).all() and (made.scale == 0).all()
    torch.testing.assert_close(made.offset, torch.tensor([0.25, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("sigma", [None, 0.0])
def test_zeros_become_silence(sigma):
    made = normalise_group(torch.zeros(3, 9), LENGTHS, WEIGHTS, sigma)
    for tensor in (made.entries[:], made.weights, made.scale, made.offset, made.symbol_power):
        assert (tensor == 0).all()
