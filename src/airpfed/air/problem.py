"""The design problem of a slot, its solution, and the mean-squared error of a solution."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from airpfed.core.errors import UserError


@dataclass(frozen=True)
class TransceiverProblem:
    """The design problem of B coherence blocks at once: y = sum_k h_k b_k x_k + z, E|x_k|^2 = 1, z ~ CN(0, noise I_M).

    h: channel estimates, linear amplitude, complex128; h[..., k] is the channel of stream k.
    weights: w_ik >= 0, 0 if target i does not include stream k. With one target the weights may differ from block to
    block, (B, 1, K).
    target_weight: alpha_i >= 0, the weight of target i's error in the objective.
    power_limit: P_k, watts: the limit |b_k|^2 <= P_k (see `check_power`).
    noise: sigma2, the noise power that the receiver assumes, watts per complex symbol and antenna (the true noise power
    is `Uplink.noise`); 0 switches it off.
    csi_variance: variance of the channel estimation error, 0 for a perfect estimate: (K) or (1, K) if all antennas are
    alike, or (M, K), with a leading axis for blocks that differ.
    device_of_stream: None if every stream has a device of its own. In a superposed slot it names the device of each
    stream, and the streams of a device share its limit, sum |b_k|^2 <= P.
    real: symbols are real and only the real part of m_i^H y counts; noise and csi_variance are those of that part.
    antenna_mask: the antennas of each receiver; None if every receiver has all antennas.

    >>> import torch, airpfed as ap
    >>> h = torch.randn(5, 8, 3, dtype=torch.complex128)  # 5 blocks, 8 antennas, 3 devices
    >>> problem = ap.TransceiverProblem.from_channels(h, noise=0.1)
    >>> problem.weights
    tensor([[0.3333, 0.3333, 0.3333]], dtype=torch.float64)
    >>> ap.mse(problem, ap.designs.mmse(problem)).shape
    torch.Size([5, 1])
    """

    h: Complex[Tensor, "B M K"]
    weights: Float[Tensor, "*B T K"]
    target_weight: Float[Tensor, " T"]
    power_limit: Float[Tensor, " K"]
    noise: float
    csi_variance: Float[Tensor, "... K"]
    device_of_stream: Int[Tensor, " K"] | None = None
    real: bool = False
    antenna_mask: Bool[Tensor, "T M"] | None = None

    @classmethod
    def from_channels(
        cls,
        h: Any,
        weights: Any = None,
        *,
        noise: Any = 1.0,
        power_limit: Any = 1.0,
        csi_variance: Any = 0.0,
        target_weight: Any = 1.0,
        real: bool = False,
    ) -> "TransceiverProblem":
        """Make a problem from channels of any source, with values for what is not given.

        h: channels (B, M, K), a tensor or what makes one, such as a NumPy array. weights: (T, K) or (K); default: the
        mean over the devices, w_k = 1/K. noise: watts. power_limit, csi_variance: one for all devices or one each.
        target_weight: one for all targets or one each. Raises UserError for values of another shape, and for NaN,
        infinities, and negative weights, powers or variances.
        """
        h = torch.as_tensor(h).to(torch.complex128)
        if h.dim() != 3 or 0 in h.shape:
            raise UserError(f"h has the shape {tuple(h.shape)}: should be (blocks, antennas, devices)")
        if not bool(h.isfinite().all()):
            raise UserError("h has NaN or infinities: should be amplitudes")
        devices = h.shape[-1]
        values = (
            torch.full((devices,), 1 / devices, dtype=torch.float64) if weights is None else torch.as_tensor(weights)
        )
        if values.is_complex():
            raise UserError("weights are complex: should be real")
        values = values.double()[None] if values.dim() == 1 else values.double()
        if values.dim() != 2 or values.shape[1] != devices or not len(values):
            raise UserError(f"weights have the shape {tuple(values.shape)}: should be (targets, {devices})")
        _check_sign("weights", values)
        power = _numbers("power_limit", power_limit, devices, "devices")
        variance = _numbers("csi_variance", csi_variance, devices, "devices")
        targets = _numbers("target_weight", target_weight, len(values), "targets")
        return cls(h, values, targets, power, float(_numbers("noise", noise, 1, "slot")), variance, real=real)


def _numbers(name: str, values: Any, length: int, nodes: str) -> Float[Tensor, " length"]:
    """Numbers of at least 0, one for all or one each. Raises UserError, with the name, for others."""
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{name} is {values!r}: should be numbers") from None
    if tuple(numbers.shape) not in ((), (1,), (length,)):
        one_each = f", or {length}, one for each of the {nodes}" if length > 1 else ""
        raise UserError(f"{name} has the shape {tuple(numbers.shape)}: should be a number{one_each}")
    _check_sign(name, numbers)
    return numbers.expand(length).clone()


def _check_sign(name: str, numbers: Tensor) -> None:
    if not bool(((numbers >= 0) & numbers.isfinite()).all()):
        verb = "have" if name.endswith("s") else "has"
        raise UserError(f"{name} {verb} NaN, infinities or negative numbers: should be at least 0")


@dataclass(frozen=True)
class Transceiver:
    """Receiver vectors m_i, with m_i^H y the estimate of target i, and transmit factors b_k.

    iterations: steps of the design's algorithm.

    >>> import torch, airpfed as ap
    >>> problem = ap.single_cell(devices=[3], antennas=8, snr_db=10).problem(blocks=5)
    >>> silence = ap.Transceiver(*(torch.zeros(shape, dtype=torch.complex128) for shape in ((5, 8, 1), (5, 3))))
    >>> ap.mse(problem, silence)[0]  # the sum of the squared weights, (1/3)^2 + (1/3)^2 + (1/3)^2
    tensor([0.3333], dtype=torch.float64)
    """

    receiver: Complex[Tensor, "B M T"]
    transmit_factors: Complex[Tensor, "B K"]
    iterations: int = 0

    def split(self, counts: Sequence[int]) -> list["Transceiver"]:
        """Split consecutive blocks into parts of the given sizes; the inverse of `join_blocks`."""
        receivers, factors = (torch.split(part, list(counts)) for part in (self.receiver, self.transmit_factors))
        return [Transceiver(m, b, self.iterations) for m, b in zip(receivers, factors, strict=True)]

    def select(self, condition: Bool[Tensor, " B"], other: "Transceiver") -> "Transceiver":
        """Take this transceiver in the blocks of `condition`, and the other one elsewhere."""
        return Transceiver(
            torch.where(condition[:, None, None], self.receiver, other.receiver),
            torch.where(condition[:, None], self.transmit_factors, other.transmit_factors),
            self.iterations,
        )


def join_blocks(blocks: Sequence[Transceiver]) -> Transceiver:
    """Join the transceivers of separate blocks; `iterations` becomes the largest of theirs."""
    receiver, factors = (
        torch.cat([getattr(block, part) for block in blocks]) for part in ("receiver", "transmit_factors")
    )
    return Transceiver(receiver, factors, max(block.iterations for block in blocks))


def gains(h: Complex[Tensor, "B M K"], transceiver: Transceiver) -> Complex[Tensor, "B T K"]:
    """The gains m_i^H h_k b_k from stream k to the estimate of target i, for estimated or true channels h."""
    return transceiver.receiver.mH @ h * transceiver.transmit_factors[:, None, :]


def mse(problem: TransceiverProblem, transceiver: Transceiver) -> Float[Tensor, "B T"]:
    """The mean-squared error of each target for i.i.d. symbols of unit power, over symbols, noise and CSI error.

    MSE_i = sum_k |m_i^H h_k b_k - w_ik|^2 + sum_a (sigma2 + sum_j csi_aj |b_j|^2) |m_ia|^2. With real symbols the real
    part of the first difference counts.

    >>> import airpfed as ap
    >>> problem = ap.single_cell(devices=[4, 4], antennas=8, snr_db=10).problem(blocks=5)
    >>> bool((ap.mse(problem, ap.designs.mmse(problem)) <= ap.mse(problem, ap.designs.uniform_forcing(problem))).all())
    True
    """
    mismatch = square_magnitude(problem, gains(problem.h, transceiver) - problem.weights).sum(-1)
    return mismatch + disturbance(problem, transceiver, torch.ones_like(problem.power_limit))


def disturbance(
    problem: TransceiverProblem, transceiver: Transceiver, symbol_power: Float[Tensor, "... K"]
) -> Float[Tensor, "B T"]:
    """The power of noise and CSI error after each receiver, sum_a (sigma2 + sum_j csi_aj p_ij |b_j|^2) |m_ia|^2.

    symbol_power: p_ik, the mean over target i's entries, (B, T, K) or (T, K), or p_k.
    """
    radiated = transceiver.transmit_factors.abs().square()[:, None, :] * symbol_power
    power: Tensor = (antenna_disturbance(problem, radiated) * transceiver.receiver.abs().square()).sum(1)
    return power


def antenna_disturbance(problem: TransceiverProblem, radiated: Float[Tensor, "B T K"]) -> Float[Tensor, "B antennas T"]:
    """The power of noise and CSI error at each antenna, or at any one if all are alike. radiated: p_ik |b_k|^2."""
    csi = problem.csi_variance if problem.csi_variance.dim() > 1 else problem.csi_variance[None]
    power: Tensor = problem.noise + (radiated @ csi.mT).mT
    return power


def csi_of_blocks(problem: TransceiverProblem) -> Float[Tensor, "B antennas K"]:
    """`csi_variance` of every block, at each antenna, or at any one if all are alike."""
    csi = problem.csi_variance
    return (csi if csi.dim() > 1 else csi[None]).expand(len(problem.h), -1, -1)


def square_magnitude(problem: TransceiverProblem, mismatch: Complex[Tensor, "B T K"]) -> Float[Tensor, "B T K"]:
    """The squared magnitude of gain errors, or the square of their real part with real symbols."""
    return mismatch.real.square() if problem.real else mismatch.abs().square()


def objective(problem: TransceiverProblem, transceiver: Transceiver) -> Float[Tensor, " B"]:
    """The objective of a design, sum_i alpha_i MSE_i."""
    return mse(problem, transceiver) @ problem.target_weight


def divide_power(problem: TransceiverProblem) -> TransceiverProblem:
    """Divide every device's limit evenly among its streams, for designs with one limit per stream.

    >>> import torch, airpfed as ap
    >>> problem = ap.TransceiverProblem.from_channels(torch.ones(1, 2, 3, dtype=torch.complex128), power_limit=0.1)
    >>> superposed = replace(problem, device_of_stream=torch.tensor([0, 0, 1]))  # the first device sends two streams
    >>> ap.divide_power(superposed).power_limit
    tensor([0.0500, 0.0500, 0.1000], dtype=torch.float64)
    """
    if problem.device_of_stream is None:
        return problem
    return replace(
        problem,
        power_limit=problem.power_limit / problem.device_of_stream.bincount()[problem.device_of_stream],
        device_of_stream=None,
    )


def power_share(problem: TransceiverProblem, transceiver: Transceiver) -> Float[Tensor, "B K"]:
    """The share of its power limit that each stream's device uses, sum over its streams of |b|^2 / P_k: at most 1."""
    power = transceiver.transmit_factors.abs().square() / problem.power_limit.clamp_min(1e-300)
    if problem.device_of_stream is None:
        return power
    devices = torch.zeros(len(power), int(problem.device_of_stream.max()) + 1, dtype=power.dtype, device=power.device)
    return devices.index_add(1, problem.device_of_stream, power)[:, problem.device_of_stream]


def check_power(problem: TransceiverProblem, transceiver: Transceiver) -> Transceiver:
    """Return the transceiver; raise ValueError if it exceeds a device's power limit by more than rounding.

    The check is |b_k|^2 <= P_k in every block, while `radio.power_dbm` limits the mean power over a slot. They agree
    because a device's symbols have unit mean power over each normaliser group of the slot (less with the common
    normaliser), although not over each block.
    """
    if excess := power_excess(problem, transceiver):
        raise ValueError(f"a design {excess}")
    return transceiver


def power_excess(problem: TransceiverProblem, transceiver: Transceiver) -> str:
    """Say by how much a device exceeds its power limit; empty if none does by more than rounding."""
    maximum = float(power_share(problem, transceiver).max()) if transceiver.transmit_factors.numel() else 0.0
    return f"lets a device send {maximum:.6g} times its power limit" if maximum > 1 + 1e-9 else ""


def transceiver_fault(problem: TransceiverProblem, transceiver: object) -> str:
    """Say what makes a design's result no transceiver of a problem: type, shape, numbers or power; empty if nothing."""
    if not isinstance(transceiver, Transceiver):
        return f"returns {type(transceiver).__name__}; should return a Transceiver(receiver, transmit_factors)"
    blocks, antennas, streams = problem.h.shape
    shapes = {"receiver": (blocks, antennas, problem.weights.shape[-2]), "transmit_factors": (blocks, streams)}
    for part, shape in shapes.items():
        value = getattr(transceiver, part)
        kind = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        if kind != f"{shape} {problem.h.dtype}":
            return f"returns a {part} of {kind}; should be {shape} {problem.h.dtype}"
        if not bool(value.isfinite().all()):
            return f"returns a {part} that is not finite"
    return power_excess(problem, transceiver)


def silent(problem: TransceiverProblem) -> Transceiver:
    """The transceiver of zeros, with MSE_i = sum_k w_ik^2: the reference of every NMSE."""
    blocks, antennas, devices = problem.h.shape
    return Transceiver(
        torch.zeros(blocks, antennas, len(problem.weights), dtype=problem.h.dtype, device=problem.h.device),
        torch.zeros(blocks, devices, dtype=problem.h.dtype, device=problem.h.device),
        0,
    )


def keep_better(problem: TransceiverProblem, first: Transceiver, second: Transceiver) -> Transceiver:
    """Keep the transceiver of smaller objective in every block, `first` on a tie; iterations add up."""
    swap = objective(problem, second) < objective(problem, first)
    return replace(second.select(swap, first), iterations=first.iterations + second.iterations)
