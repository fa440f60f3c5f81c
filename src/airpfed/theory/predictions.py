"""What a plan needs of the theory, from numbers and small matrices only: no model, no channel."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.core.run_files import Constants, Point, Probe


@dataclass(frozen=True)
class Part:
    """One target's normaliser group in a channel study.

    energy: share of F times entries; weights: w_k sigma_k; gains: what devices' symbols arrive with, m^H h_k b_k times
    the receiver's sigma, mean over channels; mean_correlation: correlation of the symbols. mse: mean over channels,
    per entry.
    """

    energy: float
    weights: Float[Tensor, " K"]
    gains: Complex[Tensor, " K"]
    mean_correlation: Float[Tensor, "K K"]
    mse: float


def normalised(
    weights: Float[Tensor, "T K"], variance: Float[Tensor, " K"]
) -> tuple[Float[Tensor, "T K"], Float[Tensor, " T"]]:
    """w_k s_k / sigma_i and sigma_i^2 = sum w^2 s^2 / sum w^2 of each target, as the per-device normaliser has them."""
    square = weights.square() @ variance / weights.square().sum(1)
    scaled = weights * variance.sqrt() / square.clamp_min(1e-300).sqrt()[:, None]
    return torch.where(square[:, None] > 0, scaled, 0.0), square


def channel_energy(parts: Sequence[Part]) -> float:
    """E||Ghat - G||^2 in the weights of F."""
    return sum(part.energy * part.mse for part in parts)


def bias(parts: Sequence[Part]) -> tuple[float, float]:
    """gain and deviation of the sums: c = <G, E Ghat> / E||G||^2, rho^2 = E||E Ghat - c G||^2 / E||G||^2.

    In a group G = w u and E Ghat = a u, so that <G, E Ghat> = energy Re(a R w^T).
    """
    whole = along = 0.0
    for part in parts:
        seen = part.mean_correlation @ part.weights
        whole += part.energy * float(part.weights @ seen)
        along += part.energy * float(part.gains.real @ seen)
    if whole <= 0:
        return 1.0, 0.0
    c = along / whole
    off = 0.0
    for part in parts:
        error = part.gains - c * part.weights
        off += part.energy * float((error.conj() @ (part.mean_correlation.to(error.dtype) @ error)).real)
    return c, (max(0.0, off) / whole) ** 0.5


def over_time(points: Sequence[Point], values: Sequence[float]) -> float:
    """Mean of what was seen at the probe's points over the pilot's time (trapezoids); of a single point, its value."""
    times = [point.time for point in points]
    if times[-1] <= times[0]:
        return values[0]
    steps = range(len(points) - 1)
    return sum((times[i + 1] - times[i]) * (values[i] + values[i + 1]) / 2 for i in steps) / (times[-1] - times[0])


def at_split(probe: Probe, shared: float, given: bool) -> Constants:
    """The constants if `shared` of all ranks were shared: beta, C and sigma_SGD^2 stay, devices disagree otherwise.

    F_n, grad F_k and mini-batch noise do not know which ranks are shared, Lambda does: sharing averages over more
    devices. As at the probe's own split, the least disagreement seen is also asked for at a gradient of 0. given:
    sigma_dif^2 was given and stays too.
    """
    if given:
        return probe.constants
    lam, points = probe.constants.lam, probe.points[: probe.used]
    seen = [(p.power, shared * p.as_shared + (1 - shared) * p.as_personal + p.head) for p in points]
    least = min(power - gradient for power, gradient in seen)
    spread = max(0.0, least, *(power - lam * gradient for power, gradient in seen))
    return probe.constants.model_copy(update={"sigma_dif2": probe.safety * spread})
