"""The over-the-air sum: the signal at the receivers when all devices of a slot transmit at once.

`antenna_by_antenna` is the specification: channels times transmitted symbols plus noise at every antenna, then a
receiver vector. `superpose` and `receive` compute the same through one scalar gain per device and receiver. A test
compares `transmit.transmit`, which calls them, with the specification.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from airpfed.air.problem import Transceiver
from airpfed.air.row_chunks import as_slice


@dataclass(frozen=True)
class ReceivedSignal:
    """The signal after the T receivers of a slot.

    received: the estimates of the targets. desired: each target's own streams, which is the mean of `received` over
    noise and scrambling. crosstalk: [i, j] the streams of target j at receiver i before scrambling, 0 for i = j.
    """

    received: Complex[Tensor, "T uses"]
    desired: Complex[Tensor, "T uses"]
    crosstalk: Complex[Tensor, "T T uses"]


def antenna_by_antenna(
    h: Complex[Tensor, "M K"], m: Complex[Tensor, "M T"], b: Complex[Tensor, " K"], x: Complex[Tensor, "K uses"],
    z: Complex[Tensor, "M uses"],
) -> Complex[Tensor, "T uses"]:  # fmt: skip
    """Compute y = sum_k h_k b_k x_k + z at the antennas, then m_i^H y: the specification of the air."""
    y = h @ (b[:, None] * x) + z
    return m.mH @ y


def target_streams(target_of: Int[Tensor, " K"], targets: int) -> list[slice | Int[Tensor, " _k"]]:
    """The streams of each target; a slice if they are consecutive, because a slice selects without a copy."""
    return [as_slice((target_of == j).nonzero().flatten()) for j in range(targets)]


def superpose(
    gain: Complex[Tensor, "T K"], x: Complex[Tensor, "K uses"], streams: Sequence[slice | Int[Tensor, " _k"]]
) -> Complex[Tensor, "T T uses"]:
    """Compute the sums [i, j] of target j's streams at receiver i, sum_k gain_ik x_k. streams: see `target_streams`.

    Sums over disjoint sets of devices add up, so that a large slot is superposed some devices at a time.
    """
    parts = [gain[:, of_target] @ x[of_target] for of_target in streams]
    return parts[0][:, None] if len(parts) == 1 else torch.stack(parts, dim=1)


def receive(
    parts: Complex[Tensor, "T T uses"], noise: Complex[Tensor, "T uses"], signs: Float[Tensor, "T uses"]
) -> ReceivedSignal:
    """Add noise to superposed streams, and apply the scrambling signs of the devices and of the receivers.

    parts: sums of unscrambled streams, see `superpose`. noise: m_i^H z. signs: +-1 per target and use. The devices of a
    target multiply their symbols by its sign and its receiver multiplies by the same sign, so that other targets'
    streams have zero mean. Both multiplications happen here: a target's sign cancels for its own streams.
    """
    if len(parts) == 1:
        return ReceivedSignal(parts[0] + noise * signs, parts[0], torch.zeros_like(parts))
    desired = parts.diagonal(dim1=0, dim2=1).T
    crosstalk = parts * ~torch.eye(len(parts), dtype=torch.bool)[:, :, None]
    scrambled = (crosstalk * signs[None, :, :]).sum(1) * signs
    return ReceivedSignal(desired + scrambled + noise * signs, desired, crosstalk)


def antenna_noise_of(
    m: Complex[Tensor, "M T"], combined: Complex[Tensor, "T uses"], power: Float[Tensor, " M"], rng: torch.Generator
) -> Complex[Tensor, "M uses"]:
    """Draw noise z at the antennas whose combinations m_i^H z are those given.

    z = w + S (S M)^+H (n - M^H w) with w ~ CN(0, diag(power)), n = M^H z as given, of covariance M^H diag(power) M, and
    S the deviations over the largest one; z has the covariance diag(power). power: watts.
    """
    root = power.sqrt()[:, None]
    w = root * torch.randn(len(m), combined.shape[1], dtype=torch.complex128, generator=rng)
    relative = root / root.max().clamp_min(1e-300)
    z: Tensor = w + relative * (torch.linalg.pinv((relative * m).mH) @ (combined - m.mH @ w))
    return z


def receiver_noise(
    transceiver: Transceiver, block: int, noise: float | Float[Tensor, " M"], uses: int, rng: torch.Generator
) -> Complex[Tensor, "T {uses}"]:
    """Draw m_i^H z with z ~ CN(0, noise I_M): jointly Gaussian over the receivers, of covariance noise M^H M.

    noise: watts, one for all antennas or one each.
    """
    m = transceiver.receiver[block]
    if isinstance(noise, Tensor):
        m, noise = noise.sqrt()[:, None] * m, 1.0
    values, vectors = torch.linalg.eigh(m.mH @ m)
    root = vectors * (noise * values.clamp(min=0)).sqrt()
    combined: Tensor = root @ torch.randn(m.shape[1], uses, dtype=torch.complex128, generator=rng)
    return combined
