"""The fast sum against the physics: antenna by antenna, with the same noise at the antennas."""

import pytest
import torch
from torch import Tensor

from airpfed.air.problem import Transceiver, gains
from airpfed.air.superposition import antenna_by_antenna, collapsed, receiver_noise
from airpfed.core.rng import stream

USES = 50


def complex_normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=stream(seed, "superpose"))


def block(targets: int, devices: int = 7, antennas: int = 4) -> tuple[Tensor, Transceiver, Tensor, Tensor]:
    """Channels, a transceiver, symbols, and which target wants which device."""
    h, m = complex_normal(antennas, devices, seed=1), complex_normal(1, antennas, targets, seed=2)
    x = complex_normal(devices, USES, seed=4)
    return h, Transceiver(m, complex_normal(1, devices, seed=3), 0), x, torch.arange(devices) % targets


def signs_of(targets: int, seed: int = 5) -> Tensor:
    return 2.0 * torch.randint(2, (targets, USES), generator=stream(seed, "signs")).double() - 1


@pytest.mark.parametrize("targets", [1, 3])
def test_the_collapsed_sum_is_the_antennas_sum(targets):
    """Each device multiplies by its task's sign, each receiver multiplies it away after its own combining."""
    h, made, x, group_of = block(targets)
    signs = signs_of(targets) if targets > 1 else torch.ones(1, USES, dtype=torch.float64)
    z = complex_normal(4, USES, seed=6)
    m, b = made.receiver[0], made.transmit[0]
    expected = antenna_by_antenna(h, m, b, signs[group_of] * x, z) * signs
    heard = collapsed(gains(h[None], made)[0], x, m.mH @ z, group_of, signs)
    torch.testing.assert_close(heard.received, expected)


@pytest.mark.parametrize("targets", [1, 3])
def test_the_receiver_is_conjugated(targets):
    """The planted fault: without the conjugate the two forms differ, so the check above would see it."""
    h, made, x, group_of = block(targets)
    ones = torch.ones(targets, USES, dtype=torch.float64)
    none = torch.zeros(4, USES, dtype=torch.complex128)
    expected = antenna_by_antenna(h, made.receiver[0], made.transmit[0], x, none)
    wrong = made.receiver[0].mT @ h * made.transmit[0]
    heard = collapsed(wrong, x, torch.zeros_like(expected), group_of, ones)
    assert (heard.received - expected).norm() > 0.1 * expected.norm()


def test_own_part_and_crosstalk_add_up_to_what_is_received():
    h, made, x, group_of = block(3)
    signs, silence = signs_of(3), torch.zeros(3, USES, dtype=torch.complex128)
    heard = collapsed(gains(h[None], made)[0], x, silence, group_of, signs)
    scrambled = (heard.crosstalk * signs[None]).sum(1) * signs
    torch.testing.assert_close(heard.own + scrambled, heard.received)
    assert (heard.crosstalk.diagonal(dim1=0, dim2=1) == 0).all()


def test_scrambling_makes_the_mean_of_the_crosstalk_vanish():
    """Given symbols and channels; without signs the crosstalk would be a constant far from zero."""
    h, made, x, group_of = block(3)
    gain, silence = gains(h[None], made)[0], torch.zeros(3, USES, dtype=torch.complex128)
    rest = []
    for draw in range(400):
        heard = collapsed(gain, x, silence, group_of, signs_of(3, seed=100 + draw))
        rest.append(heard.received - heard.own)
    found = torch.view_as_real(torch.stack(rest))
    z = found.mean(0) / (found.std(0) / len(found) ** 0.5)
    assert z.abs().max() < 5
    plain = collapsed(gain, x, silence, group_of, torch.ones(3, USES, dtype=torch.float64))
    constant = torch.view_as_real(plain.received - plain.own)
    assert (constant.abs() / (found.std(0) / len(found) ** 0.5)).median() > 5


def test_receiver_noise_has_the_covariance_of_the_combined_antennas():
    """E n n^H = noise M^H M and E n n^T = 0, entry by entry; variances of products from the Gaussian fourth moments."""
    _, made, _, _ = block(3)
    noise, uses = 1e-13, 100_000
    n = receiver_noise(made, 0, noise, uses, stream(7, "noise"))
    m = made.receiver[0]
    expected = noise * (m.mH @ m)
    spread = (expected.diagonal().real[:, None] * expected.diagonal().real[None, :] / uses).sqrt()
    assert ((n @ n.mH / uses - expected).abs() / spread).max() < 5
    assert ((n @ n.mT / uses).abs() / (2**0.5 * spread)).max() < 5
    slipped = (1.02 * expected - expected).diagonal().real / spread.diagonal()
    assert slipped.min() > 5


def test_receivers_that_hear_the_same_have_one_noise():
    """Rank-one M^H M: jointly Gaussian, not independent per receiver."""
    _, made, _, _ = block(2)
    twice = Transceiver(made.receiver[:, :, [0, 0]], made.transmit, 0)
    n = receiver_noise(twice, 0, 1.0, 20, stream(8, "noise"))
    torch.testing.assert_close(n[0], n[1], rtol=0, atol=1e-6)
