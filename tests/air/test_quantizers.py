"""Quantisers of the digital scheme: their errors, what they claim of them, and their bits."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from airpfed.air.digital import QuantizerName
from airpfed.air.mixing import hadamard
from airpfed.air.quantizers import (
    DEFAULT_SHARE,
    QUANTIZERS,
    QuantizedVectors,
    coded_bits,
    eden,
    gaussian_levels,
    position_bits,
    rotation_blocks,
    sign,
    top_k,
)
from airpfed.core.rng import stream


def heavy_tailed(rows: int, width: int, spread: float = 1.5) -> Tensor:
    """Normal entries times log-normal sizes: of kurtosis about 3 exp(4 spread^2), as gradients of LoRA."""
    rng = stream(3, "vectors", rows, width)
    normal, size = torch.randn(2, rows, width, dtype=torch.float64, generator=rng)
    return normal * (spread * size).exp()


def quantise(name: str, x: Tensor, bits: int, share: float = DEFAULT_SHARE, draw: int = 0) -> QuantizedVectors:
    lengths = torch.full((len(x),), x.shape[1])
    return QUANTIZERS[name].quantise(x, lengths, bits, share, stream(4, "rounding", draw))


def relative_error(got: QuantizedVectors, x: Tensor) -> float:
    return float((got.values - x).square().sum() / x.square().sum())


def test_the_option_names_the_rows():
    assert set(get_args(get_args(QuantizerName)[0])) == set(QUANTIZERS)


@pytest.mark.parametrize(("bits", "error"), [(1, 0.57), (2, 0.13), (3, 0.036), (4, 0.0097)])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_eden_has_the_error_of_lloyd_max_levels_whatever_the_tails(bits, error, spread):
    """Within ten percent of EDEN's column, where the uniform quantiser is from 3 to over 100 times worse."""
    x = heavy_tailed(4, 16384, spread)
    assert relative_error(quantise("eden", x, bits), x) == pytest.approx(error, rel=0.1)
    assert relative_error(quantise("uniform", x, bits), x) > 3 * error


@pytest.mark.parametrize(("bits", "distortion"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_levels_are_those_of_lloyd_and_max(bits, distortion):
    levels = gaussian_levels(bits)
    grid = torch.linspace(-8, 8, 400_001, dtype=torch.float64)
    nearest = levels[torch.bucketize(grid, (levels[1:] + levels[:-1]) / 2)]
    density = torch.exp(-grid.square() / 2) / (2 * math.pi) ** 0.5 * (grid[1] - grid[0])
    assert float(((grid - nearest).square() * density).sum()) == pytest.approx(distortion, rel=1e-3)


def test_eden_loses_nothing_along_the_vector_and_knows_its_error():
    x = heavy_tailed(3, 4096 + 512)  # no padding, which would decode to something that the server drops
    got = quantise("eden", x, 2)
    torch.testing.assert_close((got.values * x).sum(1), x.square().sum(1), rtol=1e-6, atol=0)
    assert got.variance is not None
    torch.testing.assert_close(got.variance, (got.values - x).square())
    # Every block is decoded as S R^T Q, so that its squared error is S^2 ||Q||^2 - ||x||^2.
    torch.testing.assert_close(got.variance.sum(1), got.values.square().sum(1) - x.square().sum(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bits", [1, 2])
def test_eden_has_mean_zero_over_rotations(bits):
    """The errors of two draws are orthogonal in the mean, for a vector with a few dominant entries.

    With one transform in place of two, this is 8 standard errors off with one bit.
    """
    x, draws = heavy_tailed(1, 4096), 150
    errors = torch.stack([quantise("eden", x, bits, draw=n).values[0] - x[0] for n in range(draws)])
    products = (errors[0::2] * errors[1::2]).sum(1) / errors.square().sum(1).mean()  # the squared bias over the error
    z = float(products.mean() / (products.std() / len(products) ** 0.5))
    assert abs(z) < 5 and abs(float(products.mean())) < 0.01


def test_a_scale_that_shrinks_would_be_seen():
    """The planted fault: levels as they are, without the unbiased scale, lose the distortion along x."""
    x = heavy_tailed(1, 4096, 0.0)
    norm = x.norm()
    levels = gaussian_levels(1)
    y = hadamard(x.reshape(1, -1)) * 4096**0.5 / norm
    shrunk = hadamard(levels[torch.bucketize(y, torch.zeros(1, dtype=torch.float64))] * norm / 4096**0.5)
    assert float((shrunk * x).sum() / norm**2) == pytest.approx(1 - 0.3634, abs=0.02)


@given(size=st.sampled_from([1, 2, 16, 64, 512, 4096]))
def test_the_transform_is_its_own_inverse_and_keeps_the_norm(size):
    x = torch.randn(2, size, dtype=torch.float64, generator=stream(1, "x", size))
    torch.testing.assert_close(hadamard(hadamard(x)), x)
    torch.testing.assert_close(hadamard(x).norm(dim=1), x.norm(dim=1))


@given(entries=st.integers(1, 20_000))
def test_rotation_blocks_cover_a_vector(entries):
    end = 0
    for first, count, size in rotation_blocks(entries):
        assert first == end and size & (size - 1) == 0
        end += count * size
    assert entries <= end < entries + 64


@given(bits=st.sampled_from([1, 2, 3, 4, 8]), share=st.floats(0.001, 1), width=st.integers(1, 700))
def test_top_k_sends_the_largest_entries_each_with_less_error_than_its_size(bits, share, width):
    x = heavy_tailed(2, width)
    got = quantise("top_k", x, bits, share)
    sent = got.values != 0
    assert (sent.sum(1) == got.num_codes).all() and got.num_codes[0] <= max(1, round(share * width))
    for row in range(2):
        if bool((~sent[row]).any()):
            assert x[row][sent[row]].abs().min() >= x[row][~sent[row]].abs().max()
    if bits > 1:
        assert ((got.values - x).abs()[sent] < x.abs()[sent]).all()
    assert ((got.values - x).square().sum(1) < x.square().sum(1)).all(), "error feedback needs a contraction"
    assert got.variance is None


def test_top_k_takes_the_nearest_of_its_magnitudes():
    x = torch.tensor([[8.0, -1.0, 2.9, 0.5, 0.0, 5.9]], dtype=torch.float64)
    got = top_k(x, torch.tensor([6]), 3, 4 / 6, stream(0, "none"))
    # Magnitudes 1, 2, 4, 8: 2.9 is nearer to 2, 5.9 to 4.
    torch.testing.assert_close(got.values, torch.tensor([[8.0, -1.0, 2.0, 0.0, 0.0, 4.0]], dtype=torch.float64))
    assert got.codes.sort().values.tolist() == [[1, 2, 3, 4]]


def test_zeros_stay_zeros():
    for name in QUANTIZERS:
        got = quantise(name, torch.zeros(2, 600, dtype=torch.float64), 1)
        assert (got.values == 0).all(), name
    few = torch.zeros(1, 600, dtype=torch.float64)
    few[0, 3] = 2.0
    assert torch.equal(quantise("top_k", few, 4, 0.1).values, few)


def test_signs_carry_the_mean_magnitude_of_their_bucket():
    x = heavy_tailed(1, 700)
    got = sign(x, torch.tensor([700]), 1, 0.0, stream(0, "none"))
    for part in (slice(0, 512), slice(512, 700)):
        scale = float(x[0, part].abs().mean())
        assert got.values[0, part].abs().unique().numel() == 1
        assert float(got.values[0, part].abs()[0]) == pytest.approx(scale, rel=2**-8)
    assert torch.equal(got.values.sign(), x.sign())
    assert float((got.values - x).square().sum()) < float(x.square().sum())


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("bits", [1, 4])
def test_bits_are_those_of_the_codes_and_what_goes_beside(name, bits):
    x = heavy_tailed(2, 5000)
    got = quantise(name, x, bits)
    per_code = 1 if name == "sign" else bits
    fixed = QUANTIZERS[name].num_bits(5000, bits, DEFAULT_SHARE)
    assert (got.num_codes * per_code + got.side_bits == fixed).all()
    assert int(got.codes.max()) < got.levels == 2**per_code and int(got.codes.min()) >= 0


@pytest.mark.parametrize("name", ["eden", "top_k", "sign"])
def test_a_shorter_vector_is_the_same_without_its_padding(name):
    """Deterministic quantisers to the bit; of EDEN the first row, which draws its signs first."""
    x = heavy_tailed(2, 900)
    x[0, 300:] = 0
    lengths = torch.tensor([300, 900])
    got = QUANTIZERS[name].quantise(x, lengths, 1, 0.05, stream(4, "rounding"))
    alone = QUANTIZERS[name].quantise(x[:1, :300], lengths[:1], 1, 0.05, stream(4, "rounding"))
    assert torch.equal(got.values[:1, :300], alone.values) and (got.values[0, 300:] == 0).all()
    assert got.num_codes[0] == alone.num_codes[0] and got.side_bits[0] == alone.side_bits[0]


def test_the_ideal_length_is_the_entropy():
    """A quarter of ones: 0.811 bits each; and 16 bits for each of the two counts, and the bit that says so."""
    codes = torch.zeros(1, 5000, dtype=torch.long)
    codes[0, :1000] = 1
    codes[0, 4300:] = 1  # beyond the codes that count
    got = QuantizedVectors(codes.double(), None, codes, torch.tensor([4000]), 2, torch.zeros(1, dtype=torch.float64))
    entropy = 4000 * (0.25 * 2 + 0.75 * math.log2(4 / 3))
    fixed = torch.tensor([4000.0], dtype=torch.float64)
    assert float(coded_bits(got, fixed)) == math.ceil(entropy) + 2 * 16 + 1
    assert float(coded_bits(got, fixed / 4)) == 1001, "the shorter of both"


def test_heavy_tails_make_the_codes_of_uniform_levels_short():
    """Four bits an entry become about two, as a lossless coder would find; EDEN's codes hardly change."""
    x = heavy_tailed(1, 16384, 1.0)
    lengths = {}
    for name in ("uniform", "eden"):
        fixed = torch.tensor([QUANTIZERS[name].num_bits(16384, 4, 0.0)], dtype=torch.float64)
        lengths[name] = float(coded_bits(quantise(name, x, 4), fixed)) / 16384
    assert lengths["uniform"] < 2.5 and 3.7 < lengths["eden"] < 4.02


def test_positions_are_numbered():
    assert position_bits(8, 2) == 5.0 and position_bits(10, 10) == 0.0 and position_bits(1 << 20, 1) == 20.0
    assert position_bits(1000, 10) == math.ceil(math.log2(math.comb(1000, 10)))


def test_eden_of_one_device_differs_by_draw_alone():
    x = heavy_tailed(1, 300)
    one, again = (quantise("eden", x, 2).values for _ in range(2))
    other = quantise("eden", x, 2, draw=1).values
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert eden(x, torch.tensor([300]), 2, 0.0, stream(4, "rounding", 0)).values.shape == x.shape
