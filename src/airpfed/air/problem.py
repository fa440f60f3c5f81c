"""One slot of the air: what a transceiver design is given, what it returns, and what its result costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TransceiverProblem:
    """The design problem of B coherence blocks at once: y = sum_k h_k b_k x_k + z, E|x_k|^2 = 1, z ~ CN(0, noise I_M).

    h: channel estimates, linear amplitude, complex128, h[..., k] the channel of device k.
    weights: w_ik >= 0, 0 where target i does not want device k; of one target they may differ from block to block,
    (B, 1, K). target_weight: alpha_i >= 0, weight of target i's error.
    power: P_k in watts, |b_k|^2 <= P_k. noise: sigma2 in watts per complex symbol and antenna, 0 switches it off.
    csi_variance: variance of the estimation error at antenna m of device k, 0 where the estimate is perfect: (K) or
    (1, K) for all antennas alike, or (M, K), with blocks before them where they differ. device_of_stream: None where
    every k is a device of its own. Superposed slots carry several streams a device: then each k is a stream, owner[k]
    its device, and the streams of a device share its limit, sum |b_k|^2 <= P. real: symbols are real and only the
    real part of m_i^H y is kept; noise and csi_variance are those of that part. antenna_mask: the antennas that each
    receiver has;
    None: all have all.
    """

    h: Complex[Tensor, "B M K"]
    weights: Float[Tensor, "*B T K"]
    target_weight: Float[Tensor, " T"]
    power: Float[Tensor, " K"]
    noise: float
    csi_variance: Float[Tensor, "... K"]
    device_of_stream: Int[Tensor, " K"] | None = None
    real: bool = False
    antenna_mask: Bool[Tensor, "T M"] | None = None


@dataclass(frozen=True)
class Transceiver:
    """Receivers m_i, of which m_i^H y estimates target i, and transmit factors b_k; `iterations` the design took."""

    receiver: Complex[Tensor, "B M T"]
    transmit: Complex[Tensor, "B K"]
    iterations: int

    def split(self, counts: Sequence[int]) -> list["Transceiver"]:
        """Consecutive blocks, so many at a time; the inverse of `joined`."""
        receivers, transmit = (torch.split(part, list(counts)) for part in (self.receiver, self.transmit))
        return [Transceiver(m, b, self.iterations) for m, b in zip(receivers, transmit, strict=True)]

    def where(self, chosen: Bool[Tensor, " B"], other: "Transceiver") -> "Transceiver":
        """This one in the blocks chosen, the other elsewhere."""
        return Transceiver(
            torch.where(chosen[:, None, None], self.receiver, other.receiver),
            torch.where(chosen[:, None], self.transmit, other.transmit),
            self.iterations,
        )


def joined(blocks: Sequence[Transceiver]) -> Transceiver:
    """Transceivers of separate blocks as one; `iterations` is the most that any took."""
    receiver, transmit = (torch.cat([getattr(one, part) for one in blocks]) for part in ("receiver", "transmit"))
    return Transceiver(receiver, transmit, max(one.iterations for one in blocks))


def gains(h: Complex[Tensor, "B M K"], transceiver: Transceiver) -> Complex[Tensor, "B T K"]:
    """The scalar that target i hears device k through: m_i^H h_k b_k, for any channel h, estimated or true."""
    return transceiver.receiver.mH @ h * transceiver.transmit[:, None, :]


def mse(problem: TransceiverProblem, transceiver: Transceiver) -> Float[Tensor, "B T"]:
    """Mean squared error of each target's sum for i.i.d. symbols of unit power, over symbols, noise and CSI error.

    MSE_i = sum_k |m_i^H h_k b_k - w_ik|^2 + sum_a (sigma2 + sum_j csi_aj |b_j|^2) |m_ia|^2; of real symbols the real
    part.
    """
    mismatch = squared(problem, gains(problem.h, transceiver) - problem.weights).sum(-1)
    return mismatch + disturbance(problem, transceiver, torch.ones_like(problem.power))


def disturbance(
    problem: TransceiverProblem, transceiver: Transceiver, symbol_power: Float[Tensor, "... K"]
) -> Float[Tensor, "B T"]:
    """Noise and CSI error behind each receiver: sum_a (sigma2 + sum_j csi_aj p_ij |b_j|^2) |m_ia|^2.

    symbol_power: p_ik, mean over target i's entries (B T K or T K), or p_k.
    """
    radiated = transceiver.transmit.abs().square()[:, None, :] * symbol_power
    squares = transceiver.receiver.abs().square()
    csi = problem.csi_variance if problem.csi_variance.dim() > 1 else problem.csi_variance[None]
    behind: Tensor = ((problem.noise + (radiated @ csi.mT).mT) * squares).sum(1)
    return behind


def squared(problem: TransceiverProblem, mismatch: Complex[Tensor, "B T K"]) -> Float[Tensor, "B T K"]:
    """What a gain that is off by `mismatch` costs: its square, of real symbols that of its real part."""
    return mismatch.real.square() if problem.real else mismatch.abs().square()


def objective(problem: TransceiverProblem, transceiver: Transceiver) -> Float[Tensor, " B"]:
    """What a design minimises: sum_i importance_i MSE_i."""
    return mse(problem, transceiver) @ problem.target_weight


def divided(problem: TransceiverProblem) -> TransceiverProblem:
    """The slot with every device's limit divided evenly among its streams, for designs that know one limit a stream."""
    if problem.device_of_stream is None:
        return problem
    return replace(
        problem,
        power=problem.power / problem.device_of_stream.bincount()[problem.device_of_stream],
        device_of_stream=None,
    )


def spent(problem: TransceiverProblem, transceiver: Transceiver) -> Float[Tensor, "B K"]:
    """Power of each stream's device over its limit, sum over its streams of |b|^2 / P_k: at most 1."""
    power = transceiver.transmit.abs().square() / problem.power.clamp_min(1e-300)
    if problem.device_of_stream is None:
        return power
    devices = torch.zeros(len(power), int(problem.device_of_stream.max()) + 1, dtype=power.dtype, device=power.device)
    return devices.index_add(1, problem.device_of_stream, power)[:, problem.device_of_stream]


def kept(problem: TransceiverProblem, transceiver: Transceiver) -> Transceiver:
    """The transceiver, if it keeps the limits; ValueError if a design asks a device for more power than it has."""
    most = float(spent(problem, transceiver).max()) if transceiver.transmit.numel() else 0.0
    if most > 1 + 1e-9:
        raise ValueError(f"a design lets a device send {most:.6g} times its power limit")
    return transceiver


def silent(problem: TransceiverProblem) -> Transceiver:
    """The transceiver that sends and hears nothing; its MSE_i is sum_k w_ik^2, the reference of every NMSE."""
    blocks, antennas, devices = problem.h.shape
    return Transceiver(
        torch.zeros(blocks, antennas, len(problem.weights), dtype=problem.h.dtype, device=problem.h.device),
        torch.zeros(blocks, devices, dtype=problem.h.dtype, device=problem.h.device),
        0,
    )


def keep_better(problem: TransceiverProblem, first: Transceiver, second: Transceiver) -> Transceiver:
    """Block by block the transceiver of smaller objective, `first` on a tie; iterations add up."""
    swap = objective(problem, second) < objective(problem, first)
    return replace(second.where(swap, first), iterations=first.iterations + second.iterations)
