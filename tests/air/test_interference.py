"""Interference: whitened where it is known, its mean where it is not; claims meet measurements in both."""

from dataclasses import replace

import pytest
import torch

from airpfed.air import resources
from airpfed.air.designs import mmse
from airpfed.air.digital import sinr
from airpfed.air.interference import Interference, ReceivedChannels, covariance, least_snr_share, whiten
from airpfed.air.network import Estimation
from airpfed.air.problem import TransceiverProblem, mse
from airpfed.air.round_cost import rates
from support.uplinks import drawn, everyone, excess, large_air, send, slots, z_of


def jammer(power: float, count: int = 1, known: bool = True, load: float = 1.0) -> Interference:
    shape = torch.ones(count, dtype=torch.float64)
    return Interference(power * shape, load * shape, known)


def whitened(power: float, count: int, antennas: int = 4, csi: float = 0.0) -> tuple[ReceivedChannels, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    h = torch.randn(20, antennas, 3, dtype=torch.complex128, generator=rng)
    interference = jammer(power, count)
    R = covariance(interference, 0.1, antennas, 5, ("interference", 1), range(20))
    variance = torch.full((1, 3), csi, dtype=torch.float64)
    return whiten(interference, 0.1, R, ReceivedChannels(h, h, variance)), torch.linalg.inv(R) @ h


def test_a_device_alone_has_the_sinr_of_the_best_receiver() -> None:
    """P h^H R^-1 h for each device, from white noise at the transformed antennas."""
    received, solved = whitened(3.0, 2)
    rng = torch.Generator().manual_seed(2)
    h = torch.randn(20, 4, 3, dtype=torch.complex128, generator=rng)
    for k in range(3):
        got = sinr(received.h[:, :, k : k + 1], torch.zeros(20, 4, 1).double(), torch.tensor([0.7]).double(), 0.1)
        expected = 0.7 * (h[:, :, k].conj() * solved[:, :, k]).sum(1).real
        torch.testing.assert_close(got[:, 0], expected, rtol=1e-6, atol=0)


def test_one_strong_interferer_takes_one_antenna() -> None:
    """The least error is that of M - 1 antennas, with the interferer's direction projected out."""
    received, _ = whitened(1e8, 1)
    rng = torch.Generator().manual_seed(2)
    h = torch.randn(20, 4, 3, dtype=torch.complex128, generator=rng)
    R = covariance(jammer(1e8), 0.1, 4, 5, ("interference", 1), range(20))
    clean = torch.linalg.eigh(R).eigenvectors[:, :, :3].mH @ h
    errors = [mse(problem, mmse(problem)) for problem in (
        TransceiverProblem.from_channels(received.h, noise=0.1), TransceiverProblem.from_channels(clean, noise=0.1)
    )]  # fmt: skip
    torch.testing.assert_close(*errors, rtol=1e-4, atol=0)


def test_csi_errors_keep_their_law_at_the_transformed_antennas() -> None:
    """The covariance of W v for white v of variance c is diagonal, c sigma2 / lambda_a."""
    received, _ = whitened(3.0, 2, csi=0.2)
    R = covariance(jammer(3.0, 2), 0.1, 4, 5, ("interference", 1), range(20))
    values, vectors = torch.linalg.eigh(R)
    W = (0.1 / values).sqrt()[..., None] * vectors.mH
    covariances = 0.2 * W @ W.mH
    torch.testing.assert_close(
        covariances, torch.diag_embed(received.csi_variance[..., 0]).to(torch.complex128), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("access", ["tdma", "concurrent"])
@pytest.mark.parametrize(("design", "packing"), [("uniform_forcing", "iq"), ("mmse", "real")])
@pytest.mark.parametrize("pilots", [None, 20])
def test_claims_know_the_interference(access, design, packing, pilots, monkeypatch) -> None:
    """Of known covariance, with known channels and with channels from pilots: claimed is measured."""
    link = large_air(design, access=access, packing=packing, d=400)
    link = replace(link, interference=jammer(30 * link.noise, 2, load=0.7), estimation=Estimation(pilots=pilots))
    blind = slots(send(replace(link, interference=None), 1, *drawn(link, 0), everyone(link)))
    errors = []
    for seed in range(30):
        sent = send(replace(link, seed=seed), 1, *drawn(link, seed), everyone(link))
        errors.append(sent)
    assert abs(z_of(excess(errors, lambda e: e.claimed_genie))) < 5
    assert sum(e.measured for e in slots(errors[0])) > 1.05 * sum(e.measured for e in blind)


def test_where_only_the_mean_is_known_the_claim_is_right_on_average() -> None:
    link = large_air("uniform_forcing", d=400)
    link = replace(link, interference=jammer(5 * link.noise, 2, known=False), coherence_symbols=40)
    errors = [send(replace(link, seed=seed), 1, *drawn(link, seed), everyone(link)) for seed in range(40)]
    assert abs(z_of(excess(errors, lambda e: e.claimed))) < 5
    known = replace(link, interference=jammer(5 * link.noise, 2), coherence_symbols=40)
    better = [send(replace(known, seed=seed), 1, *drawn(link, seed), everyone(link)) for seed in range(10)]
    assert sum(slots(row)[0].measured for row in better) < 0.7 * sum(slots(row)[0].measured for row in errors[:10])


def test_overwhelming_interference_leaves_the_other_directions() -> None:
    """Beyond double precision eigenvalues come out below the noise, or negative; channels stay finite."""
    for power in (1e12, 1e16, 1e19):
        received, _ = whitened(power, 2, csi=0.1)
        assert bool(received.h.isfinite().all()) and bool((received.csi_variance <= 0.1 * (1 + 1e-9)).all())
        assert float(received.h.abs().square().sum(1).mean()) > 1.0  # two of four antennas' worth


@pytest.mark.parametrize(
    ("power", "count", "load"), [(0.01, 2, 1.0), (0.3, 3, 0.5), (1e6, 2, 1.0), (1e6, 6, 1.0), (1e6, 4, 0.1)]
)
def test_scalars_are_charged_for_no_more_than_is_left(power, count, load) -> None:
    """tr(sigma2 R^-1) / M in the mean over channels is at least what the ledger's rates count with."""
    for known in (True, False):
        interference = jammer(power, count, known, load)
        R = covariance(interference, 0.1, 4, 5, ("interference", 1), range(2000))
        left = float((0.1 * torch.linalg.inv(R)).diagonal(dim1=1, dim2=2).real.mean())
        share = least_snr_share(interference, 0.1, 4)
        assert share <= left * (1 + 1e-6)
        if known and power == 1e6 and count * load < 4:
            assert share == pytest.approx(left, rel=0.02)


def test_the_ledger_s_scalars_meet_the_interference() -> None:
    """Strong known interferers leave M - J antennas: side information and feedback take longer, data do not."""
    link = large_air("uniform_forcing", d=400)
    alone, jammed = (
        send(replace(link, interference=interference), 1, *drawn(link, 0), everyone(link)).ledger
        for interference in (None, jammer(1e6 * link.noise, 2))
    )
    assert jammed.air_seconds > alone.air_seconds and jammed.channel_uses == alone.channel_uses
    rate = [float(rates(each).min()) for each in (link, replace(link, interference=jammer(1e6 * link.noise, 2)))]
    gain = link.network.gain.sum(0) * link.power_limit / link.noise
    antennas = link.network.antennas
    expected = [
        resources.bits_per_use(float(gain.min()) * torch.tensor([m]).double()) for m in (antennas, antennas - 2)
    ]
    assert rate[1] / rate[0] == pytest.approx(float(expected[1] / expected[0]), rel=1e-6)


def test_every_drop_has_interference_of_its_own() -> None:
    link = large_air("uniform_forcing", d=400)
    link = replace(link, interference=jammer(30 * link.noise))
    link = replace(link, csi_error=0.1)
    first, again, other = (  # the variances of CSI errors show the eigenvalues of the covariance
        replace(link, network=replace(link.network, names=names)).received_channels(0, 2).csi_variance
        for names in ((), (), ("drop", 2))
    )
    assert torch.equal(first, again) and float((first / other - 1).abs().max()) > 0.01
