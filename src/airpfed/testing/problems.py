"""Design problems to try a design on, in physical units, and the specification of a slot antenna by antenna."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.core.rng import stream

PATH_GAIN = 1e-12
"""Typical channel power of the problems, so that no design can rely on channels near 1."""


def complex_normal(*shape: int, rng: torch.Generator) -> Tensor:
    """Draw CN(0, 1) entries of a shape."""
    return torch.randn(*shape, dtype=torch.complex128, generator=rng)


def random_problem(
    blocks: int,
    antennas: int,
    devices: int,
    targets: int = 1,
    snr_db: float = 10.0,
    near_far: bool = True,
    csi: float = 0.0,
    seed: int = 0,
) -> TransceiverProblem:
    """A design problem with Rayleigh fading; device k belongs to target k mod T.

    snr_db: SNR at one antenna of a device with 0.1 W and a channel power of PATH_GAIN. near_far: distances uniform in
    10 to 200 m with path loss exponent 3; otherwise equal mean gains. csi: variance of the channel estimation error
    over PATH_GAIN. Random: the stream of the seed and the sizes.
    """
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


def regular_problems() -> Mapping[str, TransceiverProblem]:
    """Name -> problem in which every device has a channel, a weight and power, and the noise is not 0."""
    return _regular_problems()


def degenerate_problems() -> Mapping[str, TransceiverProblem]:
    """Name -> problem in which something is 0 or equal: a channel, a weight, a limit, the noise."""
    return _degenerate_problems()


@cache
def _regular_problems() -> Mapping[str, TransceiverProblem]:
    one, several = random_problem(3, 4, 6), random_problem(3, 8, 6, 2)
    crowded = random_problem(3, 3, 9, 3)
    per_antenna = PATH_GAIN * torch.linspace(0.02, 0.2, 4, dtype=torch.float64)[:, None]
    problems = {
        "one target": one,
        "one target, more devices than antennas": random_problem(3, 3, 9),
        "one target, more antennas than devices": random_problem(3, 12, 8),
        "one antenna": random_problem(3, 1, 4),
        "several targets": several,
        "several targets, more devices than antennas": crowded,
        "real packing": replace(one, real=True),
        "real packing, several targets": replace(several, real=True),
        "channel estimation error": random_problem(3, 6, 9, 3, csi=0.1),
        "channel estimation error by antenna": replace(one, csi_variance=per_antenna.expand(4, 6).clone()),
        "unequal power limits": replace(one, power_limit=torch.logspace(-4, 0, 6, dtype=torch.float64)),
        "two streams a device": superposed_problem(3, 4, 3),
        "receivers at different antennas": with_antenna_masks(several),
    }
    return MappingProxyType(problems)


@cache
def _degenerate_problems() -> Mapping[str, TransceiverProblem]:
    problems: dict[str, TransceiverProblem] = {}
    for suffix, targets, noise in (
        ("", 1, None),
        (", several targets", 2, None),
        (", no noise", 1, 0.0),
    ):
        base = random_problem(3, 4, 6, targets)
        base = base if noise is None else replace(base, noise=noise)
        dead = base.h.clone()
        dead[0, :, 1], dead[2] = 0, 0
        equal = base.h.clone()
        equal[1] = equal[1, :, :1]
        no_weight, no_power = base.weights.clone(), base.power_limit.clone()
        no_weight[:, 0], no_power[1] = 0, 0
        problems |= {
            f"dead channels{suffix}": replace(base, h=dead),
            f"a device without weight{suffix}": replace(base, weights=no_weight),
            f"a device without power{suffix}": replace(base, power_limit=no_power),
            f"equal channels{suffix}": replace(base, h=equal),
            f"no weights{suffix}": replace(base, weights=torch.zeros_like(base.weights)),
        }
    problems["no noise, more devices than antennas"] = replace(random_problem(3, 3, 9, 3), noise=0.0)
    problems["dead channels, no noise, several targets"] = replace(
        problems["dead channels, several targets"], noise=0.0
    )
    problems["no noise"] = replace(random_problem(3, 4, 6), noise=0.0)
    problems["one antenna, no noise"] = replace(random_problem(3, 1, 6), noise=0.0)
    problems["one device"] = random_problem(3, 4, 1)
    problems["as many devices as targets"] = random_problem(3, 4, 2, 2)
    return MappingProxyType(problems)


def superposed_problem(blocks: int, antennas: int, devices: int) -> TransceiverProblem:
    """A problem of two targets in which every device has a stream for each of them, and a limit for both."""
    base = random_problem(blocks, antennas, devices)
    zeros = torch.zeros_like(base.weights)
    return replace(
        base,
        h=torch.cat([base.h, base.h], -1),
        weights=torch.cat([torch.cat([base.weights, zeros]), torch.cat([zeros, base.weights])], -1),
        target_weight=torch.tensor([0.4, 0.6], dtype=torch.float64),
        power_limit=base.power_limit.repeat(2),
        csi_variance=base.csi_variance.repeat(2),
        device_of_stream=torch.arange(devices).repeat(2),
    )


def with_antenna_masks(problem: TransceiverProblem) -> TransceiverProblem:
    """The problem of two targets with one half of the antennas for each receiver."""
    half = torch.arange(problem.h.shape[1]) < problem.h.shape[1] // 2
    return replace(problem, antenna_mask=torch.stack([half, ~half]))


def in_other_units(problem: TransceiverProblem, watts: float, volts: float, sums: float) -> TransceiverProblem:
    """The same problem in other units: power times `watts`, channels times `volts`, weights times `sums`.

    The objective of a transceiver is then multiplied by sums^2.
    """
    return replace(
        problem,
        h=problem.h * volts,
        power_limit=problem.power_limit * watts,
        noise=problem.noise * watts * volts**2,
        csi_variance=problem.csi_variance * volts**2,
        weights=problem.weights * sums,
    )


def permute_streams(problem: TransceiverProblem, order: Int[Tensor, " K"]) -> TransceiverProblem:
    """The same problem with its streams in another order."""
    devices = problem.device_of_stream
    return replace(
        problem,
        h=problem.h[..., order],
        weights=problem.weights[..., order],
        power_limit=problem.power_limit[order],
        csi_variance=problem.csi_variance[..., order],
        device_of_stream=None if devices is None else devices[order],
    )


def squared_errors(
    problem: TransceiverProblem, transceiver: Transceiver, uses: int, rng: torch.Generator
) -> Float[Tensor, "uses B T"]:
    """The squared error |m_i^H y - sum_k w_ik x_k|^2 of each use: symbols pass through antennas with noise.

    The specification of `air.problem.mse`, its mean: i.i.d. symbols of unit power, channels h + e with the variance
    `csi_variance` of e, noise of the power `noise`. With real symbols the real part counts.
    """
    blocks, antennas, devices = problem.h.shape
    x = complex_normal(uses, blocks, devices, rng=rng)
    double = 1.0
    if problem.real:  # `noise` and `csi_variance` are those of the real part
        x, double = (x.real * 2**0.5).to(x.dtype), 2.0
    h = problem.h
    if bool(problem.csi_variance.any()):
        h = h + (double * problem.csi_variance).sqrt() * complex_normal(uses, blocks, antennas, devices, rng=rng)
    y = (h @ (transceiver.transmit_factors * x)[..., None])[..., 0]
    y = y + (double * problem.noise) ** 0.5 * complex_normal(uses, blocks, antennas, rng=rng)
    error = (y[..., None, :] @ transceiver.receiver.conj())[..., 0, :] - (
        x[..., None, :] @ problem.weights.mT.to(x.dtype)
    )[..., 0, :]
    squares: Tensor = error.real.square() if problem.real else error.abs().square()
    return squares


def has_weight(problem: TransceiverProblem) -> Bool[Tensor, "*B K"]:
    """The streams that some target includes."""
    return (problem.weights > 0).any(-2)
