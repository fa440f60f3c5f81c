"""Transmit factors under a limit that several streams of a device share: closed form but for one scalar a device."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEWTON_STEPS = 12


@dataclass(frozen=True)
class Budget:
    """S streams of K devices: sum over the streams s of device k of cost_s |b_s|^2 <= limit_k.

    device_of_stream: the device of each stream. Streams may lie in one slot (superposed) or in several (energy of a
    round).
    """

    device_of_stream: Int[Tensor, " S"]
    cost: Float[Tensor, " S"]
    limit: Float[Tensor, " K"]

    def total(self, values: Float[Tensor, "*B S"]) -> Float[Tensor, "*B K"]:
        """Sum over each device's streams."""
        zero = torch.zeros(*values.shape[:-1], len(self.limit), dtype=values.dtype, device=values.device)
        return zero.index_add(-1, self.device_of_stream, values)


def spend(A: Float[Tensor, "*B S"], pull: Float[Tensor, "*B S"], budget: Budget | None) -> Float[Tensor, "*B S"]:
    """The magnitudes |b_s| that minimise sum_s A_s |b_s|^2 - 2 pull_s |b_s| within the budget; None: every |b_s| <= 1.

    b_s = pull_s / (A_s + lambda_k cost_s), lambda_k >= 0 such that device k's streams meet their limit. Newton on
    phi^-1/2, phi the energy spent, which is concave: from the least lambda that each stream alone would need, it rises
    to the root and is exact at once for a device of one stream.
    """
    if budget is None:
        return pull / torch.maximum(A, pull).clamp_min(1e-300)
    device_of_stream, cost, limit = budget.device_of_stream, budget.cost, budget.limit
    alone = (pull * (cost / limit[device_of_stream]).sqrt() - A) / cost
    lam = torch.zeros_like(budget.total(A))
    lam = lam.scatter_reduce(-1, device_of_stream.expand(alone.shape), alone, "amax").clamp_min(0.0)
    for _ in range(NEWTON_STEPS):
        reach = (A + lam[..., device_of_stream] * cost).clamp_min(1e-300)
        energy = cost * (pull / reach).square()
        phi = budget.total(energy)
        slope = budget.total(energy * cost / reach)
        rise = ((phi / limit).clamp_min(1.0).sqrt() - 1) * phi / slope.clamp_min(1e-300)
        lam = lam + torch.where(slope > 0, rise, 0.0)
    magnitude = pull / (A + lam[..., device_of_stream] * cost).clamp_min(1e-300)
    over = (budget.total(cost * magnitude.square()) / limit).clamp_min(1.0).sqrt()
    return magnitude / over[..., device_of_stream]
