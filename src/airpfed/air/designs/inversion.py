"""Truncated channel inversion on a fixed beam.

The beam u of a target is the unit dominant eigenvector of sum_k (w_k / ||h_k||^2)^2 h_k h_k^H. On a set S of devices

    b_k = kappa w_k / (u^H h_k) for k in S, else 0,    m = u / kappa,    kappa = min_{k in S} sqrt(P_k) |u^H h_k| / w_k,

where h_k is the channel estimate of device k, w_k its weight in the sum of the target and P_k its power limit in watts.
The sum over S is unbiased, the weakest device of S sends at its limit, and the devices outside S are missing. S holds
the devices whose strength sqrt(P_k) |u^H h_k| / w_k is at least a threshold (for one antenna: Zhu, Wang and Huang, IEEE
Trans. Wireless Commun. 19(1), 2020). Each target is designed as if it were alone. Shapes: h (B, M, K), weights (T, K),
receivers (B, M, T), transmit factors (B, K), for B coherence blocks, M antennas, K devices and T targets.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from airpfed.air.designs.normalized import (
    denormalise,
    devices_per_target,
    gather_per_target,
    normalise_problem,
    scatter_per_target,
)
from airpfed.air.designs.single_target import dominant_beams
from airpfed.air.problem import Transceiver, TransceiverProblem, divide_power, keep_better, silent

Truncation = Annotated[
    Annotated[float, Field(ge=0, le=1)] | Literal["best"],
    Field(description="threshold relative to the strongest device of a target; best: the one of least error"),
]
"""The option of truncated channel inversion."""


def channel_inversion(problem: TransceiverProblem, *, truncation: Truncation = "best") -> Transceiver:
    """Invert the channels seen through a fixed beam; devices too weak for it are silent.

    truncation: the threshold as a fraction of the largest strength of a target, 0 to 1. "best" takes the threshold of
    least error by an exact search over all K, and silence of all devices where that is better still. Streams of
    one device have even shares of its limit.
    """
    normalized = normalise_problem(divide_power(problem))
    index, w = devices_per_target(normalized.weights)
    target_h = gather_per_target(normalized.h, index)
    blocks, targets = target_h.shape[:2]
    h, weights = target_h.flatten(0, 1), w.expand(blocks, -1, -1).flatten(0, 1)
    beam = dominant_beams(h, weights)
    a = (beam.conj()[:, None, :] @ h)[:, 0, :]
    noise = normalized.noise.repeat_interleave(targets)
    csi = gather_per_target(normalized.csi_variance[:, :, None], index)[:, :, 0].flatten(0, 1)
    strength = torch.where(weights > 0, a.abs() / weights.clamp_min(1e-300), 0.0)
    if truncation == "best":
        active = least_error_set(strength, weights, noise, csi)
    else:
        active = (strength >= truncation * strength.amax(-1, keepdim=True)) & (strength > 0)
    ratio = torch.where(active, weights / torch.where(active, a, 1.0), 0.0)
    largest = ratio.abs().amax(-1, keepdim=True)
    kappa = torch.where(largest > 0, largest, 1.0).reciprocal()
    transmit = scatter_per_target((ratio * kappa).reshape(blocks, targets, -1), w, index, problem.h.shape[-1])
    receiver = (beam / kappa).reshape(blocks, targets, -1).mT
    transceiver = denormalise(normalized, receiver, transmit, 0)
    return keep_better(problem, silent(problem), transceiver) if truncation == "best" else transceiver


def least_error_set(
    strength: Float[Tensor, "B K"], weights: Float[Tensor, "B K"], noise: Float[Tensor, " B"], csi: Float[Tensor, "B K"]
) -> Bool[Tensor, "B K"]:
    """The devices above the threshold of least error, from the exact error of each of the K thresholds.

    With the j strongest devices kappa is the strength of device j. The error is (noise + sum_k csi_k |b_k|^2) / kappa^2
    plus the sum of w_k^2 over the silent devices.
    """
    order = strength.argsort(-1, descending=True)
    kappa, w2 = strength.gather(-1, order), weights.square().gather(-1, order)
    inverse = torch.where(kappa > 0, kappa, 1.0).square().reciprocal()
    csi_error = (csi.gather(-1, order) * inverse).cumsum(-1)
    error = noise[:, None] * inverse + csi_error + w2.sum(-1, keepdim=True) - w2.cumsum(-1)
    error = torch.where(kappa > 0, error, torch.inf)
    return (strength >= kappa.gather(-1, error.argmin(-1, keepdim=True))) & (strength > 0)
