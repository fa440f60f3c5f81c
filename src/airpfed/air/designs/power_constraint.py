"""Transmit magnitudes of least error under a power limit that several streams of a device share.

For given receivers the objective is a sum over streams s, and a device k limits the power of its streams:

    minimise  sum_s A_s |b_s|^2 - 2 B_s |b_s|    subject to    sum_{s of k} cost_s |b_s|^2 <= limit_k for every k.

The solution is |b_s| = B_s / (A_s + lambda_k cost_s) with one multiplier lambda_k >= 0 per device. Streams of a device
lie in one slot (superposed streams) or in several slots (energy shared over a round).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEWTON_STEPS = 12


@dataclass(frozen=True)
class PowerConstraint:
    """The limit of each device k: sum of cost_s |b_s|^2 over its streams s <= limit_k, for S streams of K devices."""

    device_of_stream: Int[Tensor, " S"]
    cost: Float[Tensor, " S"]
    limit: Float[Tensor, " K"]

    def sum_per_device(self, values: Float[Tensor, "*B S"]) -> Float[Tensor, "*B K"]:
        """Sum values over the streams of each device."""
        zero = torch.zeros(*values.shape[:-1], len(self.limit), dtype=values.dtype, device=values.device)
        return zero.index_add(-1, self.device_of_stream, values)


def transmit_magnitudes(
    A: Float[Tensor, "*B S"], B: Float[Tensor, "*B S"], constraint: PowerConstraint | None
) -> Float[Tensor, "*B S"]:
    """Compute the |b_s| of least objective. Without a constraint every stream has a limit of its own, |b_s| <= 1.

    A, B: nonnegative coefficients of the objective. lambda_k is the root of phi(lambda) = limit_k, where phi is the
    power spent. Newton's method runs on phi^-1/2, which is concave. It starts at the largest lambda that any stream of
    the device would need alone, rises to the root, and needs no step for a device with one stream.
    """
    if constraint is None:
        return B / torch.maximum(A, B).clamp_min(1e-300)
    device_of_stream, cost, limit = constraint.device_of_stream, constraint.cost, constraint.limit
    single_stream = (B * (cost / limit[device_of_stream]).sqrt() - A) / cost
    lam = torch.zeros_like(constraint.sum_per_device(A))
    lam = lam.scatter_reduce(-1, device_of_stream.expand(single_stream.shape), single_stream, "amax").clamp_min(0.0)
    for _ in range(NEWTON_STEPS):
        denominator = (A + lam[..., device_of_stream] * cost).clamp_min(1e-300)
        power = cost * (B / denominator).square()
        phi = constraint.sum_per_device(power)
        slope = constraint.sum_per_device(power * cost / denominator)
        step = ((phi / limit).clamp_min(1.0).sqrt() - 1) * phi / slope.clamp_min(1e-300)
        lam = lam + torch.where(slope > 0, step, 0.0)
    magnitude = B / (A + lam[..., device_of_stream] * cost).clamp_min(1e-300)
    excess = (constraint.sum_per_device(cost * magnitude.square()) / limit).clamp_min(1.0).sqrt()
    return magnitude / excess[..., device_of_stream]
