"""Slots to test designs on, in physical units, and the antenna-by-antenna specification of a slot."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.core.rng import stream

PATH_GAIN = 1e-12
"""Typical channel power of the test slots, so that no design can lean on channels near 1."""


def complex_normal(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=rng)


def make(
    blocks: int,
    antennas: int,
    devices: int,
    targets: int = 1,
    snr_db: float = 10.0,
    near_far: bool = True,
    csi: float = 0.0,
    seed: int = 0,
) -> TransceiverProblem:
    """Rayleigh fading, U[10, 200] m with exponent 3 (or equal gains), shares U[0.5, 1.5], device k of task k mod T."""
    rng = stream(seed, "slot", blocks, antennas, devices, targets)
    distance = 10 + 190 * torch.rand(blocks, 1, devices, dtype=torch.float64, generator=rng)
    gain = PATH_GAIN * ((distance / 100) ** -3 if near_far else torch.ones_like(distance))
    share = 0.5 + torch.rand(devices, dtype=torch.float64, generator=rng)
    member = torch.arange(devices) % targets == torch.arange(targets)[:, None]
    group = (member * share).sum(-1)
    return TransceiverProblem(
        h=gain.sqrt() * complex_normal(blocks, antennas, devices, rng=rng),
        weights=member * share / group[:, None],
        target_weight=group / share.sum(),
        power_limit=0.05 + 0.1 * torch.rand(devices, dtype=torch.float64, generator=rng),
        noise=0.1 * PATH_GAIN * 10 ** (-snr_db / 10),
        csi_variance=torch.full((devices,), csi * PATH_GAIN, dtype=torch.float64),
    )


def superpose(problem: TransceiverProblem, transceiver: Transceiver, uses: int, rng: torch.Generator) -> Tensor:
    """The specification: symbols through antennas, noise and CSI error. Returns |estimate - sum|^2, (uses, B, T)."""
    blocks, antennas, devices = problem.h.shape
    x = complex_normal(uses, blocks, devices, rng=rng)
    spread = problem.csi_variance.sqrt()
    h = (
        problem.h + spread * complex_normal(uses, blocks, antennas, devices, rng=rng)
        if bool(spread.any())
        else problem.h
    )
    y = (h @ (transceiver.transmit_factors * x)[..., None])[..., 0]
    y = y + problem.noise**0.5 * complex_normal(uses, blocks, antennas, rng=rng)
    estimate = (y[..., None, :] @ transceiver.receiver.conj())[..., 0, :]
    return (estimate - x @ problem.weights.mT.to(x.dtype)).abs().square()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small batched operations wait for threads far longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_slot() -> Callable[..., TransceiverProblem]:
    return make


@pytest.fixture(scope="session")
def measure() -> Callable[..., Tensor]:
    return superpose
