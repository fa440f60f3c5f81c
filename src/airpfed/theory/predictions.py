"""The channel's energy in (40) to (43), the bias of our bound, and A3 at other splits of ranks, predicted for a plan.

The inputs are numbers and small matrices only: no model, no channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from airpfed.core.run_files import Constants, Point, Probe


@dataclass(frozen=True)
class StudiedGroup:
    """One target's normaliser group in a channel study.

    energy: share of F times entries. weights: w_k sigma_k. gains: m^H h_k b_k times the receiver's sigma, mean over
    channels. mean_correlation: mean correlation of the devices' symbols. mse: MSE per entry, mean over channels.
    """

    energy: float
    weights: Float[Tensor, " K"]
    gains: Complex[Tensor, " K"]
    mean_correlation: Float[Tensor, "K K"]
    mse: float


def normalise_weights(
    weights: Float[Tensor, "T K"], variance: Float[Tensor, " K"]
) -> tuple[Float[Tensor, "T K"], Float[Tensor, " T"]]:
    """w_k s_k / sigma_i and sigma_i^2 = sum_k w_k^2 s_k^2 / sum_k w_k^2 of each target i (per-device sigma).

    variance: s_k^2.
    """
    square = weights.square() @ variance / weights.square().sum(1)
    scaled = weights * variance.sqrt() / square.clamp_min(1e-300).sqrt()[:, None]
    return torch.where(square[:, None] > 0, scaled, 0.0), square


def predicted_energy(groups: Sequence[StudiedGroup]) -> float:
    """E||Ghat - G||^2 in the weights of F."""
    return sum(group.energy * group.mse for group in groups)


def bias(groups: Sequence[StudiedGroup]) -> tuple[float, float]:
    """Gain and deviation of the sums: c = <G, E Ghat> / E||G||^2, rho^2 = E||E Ghat - c G||^2 / E||G||^2.

    In a group G = w u and E Ghat = a u, so that <G, E Ghat> = energy Re(a R w^T).
    """
    square = projection = 0.0
    for group in groups:
        product = group.mean_correlation @ group.weights
        square += group.energy * float(group.weights @ product)
        projection += group.energy * float(group.gains.real @ product)
    if square <= 0:
        return 1.0, 0.0
    c = projection / square
    residual = 0.0
    for group in groups:
        error = group.gains - c * group.weights
        residual += group.energy * float((error.conj() @ (group.mean_correlation.to(error.dtype) @ error)).real)
    return c, (max(0.0, residual) / square) ** 0.5


def mean_over_time(points: Sequence[Point], values: Sequence[float]) -> float:
    """Mean over the pilot's time of values at the probe's points, by trapezoids; the value itself at a single point."""
    times = [point.time for point in points]
    if times[-1] <= times[0]:
        return values[0]
    steps = range(len(points) - 1)
    return sum((times[i + 1] - times[i]) * (values[i] + values[i + 1]) / 2 for i in steps) / (times[-1] - times[0])


def at_split(probe: Probe, shared: float, given: bool) -> Constants:
    """The constants if the share `shared` of all ranks were shared: only sigma_dif^2 changes.

    F_n, grad F_k and mini-batch noise do not depend on the shared ranks. Lambda does: sharing averages over more
    devices. As for the probe's own split, A3 must also hold at a gradient of 0 with the smallest disagreement observed.
    given: whether the settings give sigma_dif^2, which then stays.
    """
    if given:
        return probe.constants
    lam, points = probe.constants.lam, probe.points[: probe.used]
    pairs = [(p.power, shared * p.as_shared + (1 - shared) * p.as_personal + p.head) for p in points]
    least_spread = min(power - gradient for power, gradient in pairs)
    spread = max(0.0, least_spread, *(power - lam * gradient for power, gradient in pairs))
    return probe.constants.model_copy(update={"sigma_dif2": probe.safety * spread})
