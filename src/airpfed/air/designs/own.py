"""Each target's own devices as one more batch axis, for the designs that work target by target."""

import torch
from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor

from airpfed.air.designs.normalized import NormalizedProblem, hears


def own_devices(weights: Float[Tensor, "T K"]) -> tuple[Int[Tensor, "T L"], Float[Tensor, "T L"]]:
    """Indices and weights of the devices each target wants, padded with weight 0 to the largest target's count."""
    most = max(1, int((weights > 0).sum(-1).max()))
    values, index = weights.topk(most, dim=-1)
    return index, values


def gather_own(h: Shaped[Tensor, "B V D K"], index: Int[Tensor, "T L"]) -> Shaped[Tensor, "B T D L"]:
    """The channels of every target's own devices, as it sees them."""
    if h.shape[1] == 1:
        return h[:, 0][:, :, index].movedim(2, 1)
    return h.gather(3, index[:, None, :].expand(len(h), -1, h.shape[2], -1))


def scatter_own(
    values: Complex[Tensor, "B T L"], weights: Float[Tensor, "T L"], index: Int[Tensor, "T L"], devices: int
) -> Complex[Tensor, "B K"]:
    """Per-target values of own devices as one value per device; padding is dropped, other devices get 0."""
    kept = values * (weights > 0)
    out = torch.zeros(len(values), devices, dtype=values.dtype, device=values.device)
    return out.index_add(1, index.flatten(), kept.flatten(1))


def own_gains(
    unit: NormalizedProblem, receiver: Complex[Tensor, "B D T"], index: Int[Tensor, "T L"]
) -> Complex[Tensor, "B T L"]:
    """m_i^H h_k of each target's own devices."""
    return hears(unit, receiver).gather(2, index.expand(len(receiver), -1, -1))
