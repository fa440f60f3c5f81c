"""The over-the-air sum: what each receiver hears when all devices of a slot transmit at once.

The physics is three lines (`antenna_by_antenna`): channels times transmitted symbols plus noise at every antenna,
then a receiver vector. The fast path (`collapsed`) uses one scalar gain per device and receiver instead; a test
holds both equal.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air.problem import Transceiver
from airpfed.air.row_chunks import together


@dataclass(frozen=True)
class ReceivedSignal:
    """What T receivers get in one block: their sums, and the parts that a study keeps apart.

    own: E over noise and scrambling. crosstalk: other tasks' parts, one per interfering task, before scrambling.
    """

    received: Complex[Tensor, "T uses"]
    own: Complex[Tensor, "T uses"]
    crosstalk: Complex[Tensor, "T T uses"]


def antenna_by_antenna(
    h: Complex[Tensor, "M K"], m: Complex[Tensor, "M T"], b: Complex[Tensor, " K"], x: Complex[Tensor, "K uses"],
    z: Complex[Tensor, "M uses"],
) -> Complex[Tensor, "T uses"]:  # fmt: skip
    """The specification: y = sum_k h_k b_k x_k + z at the antennas, then m_i^H y."""
    y = h @ (b[:, None] * x) + z
    return m.mH @ y


def members(group_of: Int[Tensor, " K"], targets: int) -> list[slice | Int[Tensor, " _k"]]:
    """Streams that each receiver wants; a slice where they stand together, which selects without a copy."""
    return [together((group_of == j).nonzero().flatten()) for j in range(targets)]


def superpose(
    gain: Complex[Tensor, "T K"], x: Complex[Tensor, "K uses"], of: Sequence[slice | Int[Tensor, " _k"]]
) -> Complex[Tensor, "T T uses"]:
    """[i, j]: what receiver i hears of target j's streams, sum_k gain_ik x_k; `of`: `members`.

    Sums over disjoint sets of devices add up: a slot of many devices is superposed some at a time.
    """
    return torch.stack([gain[:, own] @ x[own] for own in of], dim=1)


def heard(
    parts: Complex[Tensor, "T T uses"], noise: Complex[Tensor, "T uses"], signs: Float[Tensor, "T uses"]
) -> ReceivedSignal:
    """What the receivers get of superposed streams; arguments as in `collapsed`."""
    if len(parts) == 1:
        return ReceivedSignal(parts[0] + noise * signs, parts[0], torch.zeros_like(parts))
    own = parts.diagonal(dim1=0, dim2=1).T
    crosstalk = parts * ~torch.eye(len(parts), dtype=torch.bool)[:, :, None]
    scrambled = (crosstalk * signs[None, :, :]).sum(1) * signs
    return ReceivedSignal(own + scrambled + noise * signs, own, crosstalk)


def collapsed(
    gain: Complex[Tensor, "T K"],
    x: Complex[Tensor, "K uses"],
    noise: Complex[Tensor, "T uses"],
    group_of: Int[Tensor, " K"],
    signs: Float[Tensor, "T uses"],
) -> ReceivedSignal:
    """The same through one gain per device and receiver: sum_k gain_ik x_k + m_i^H z.

    group_of: which receiver wants device k. signs: +-1 per task and use; a task's devices multiply by their sign and
    its receiver multiplies it away, so other tasks' parts have zero mean.
    """
    return heard(superpose(gain, x, members(group_of, len(gain))), noise, signs)


def receiver_noise(
    transceiver: Transceiver, block: int, noise: float, uses: int, rng: torch.Generator
) -> Complex[Tensor, "T {uses}"]:
    """Draw m_i^H z for z ~ CN(0, noise I_M): jointly Gaussian over receivers with covariance noise M^H M."""
    m = transceiver.receiver[block]
    values, vectors = torch.linalg.eigh(m.mH @ m)
    root = vectors * (noise * values.clamp(min=0)).sqrt()
    heard: Tensor = root @ torch.randn(m.shape[1], uses, dtype=torch.complex128, generator=rng)
    return heard
