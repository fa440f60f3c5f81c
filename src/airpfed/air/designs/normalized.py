"""The design problem in natural units, so that no design depends on the scale of channels, powers or weights.

With P_k the power limit of device k and g the typical received power per antenna of a block, a design works on

    h_k <- sqrt(P_k / g) h_k,    b_k <- b_k / sqrt(P_k),    w_ik <- w_ik / n_i,    sigma2 <- sigma2 / g,

where n_i^2 = sum_k w_ik^2. Then |b_k| <= 1, sum_k w_ik^2 = 1, and channels have typical power 1 per antenna in every
block. `normalise_problem` goes to these units, `denormalise` returns to watts. The file also holds what several designs
share: gains of receivers, each target's own devices as a batch axis, and inference mode.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec

import torch
from jaxtyping import Bool, Complex, Float, Int, Num, Shaped
from torch import Tensor

from airpfed.air.problem import Transceiver, TransceiverProblem, csi_of_blocks

NOISE_FLOOR = 1e-10
"""Least noise of a regularised solve, in units of the typical channel power: noise = 0 stays well posed."""

NEGLIGIBLE_POWER = 1e-24
"""Received power over the block's largest up to which a device counts as having no channel: double precision cannot
force it."""

P = ParamSpec("P")


@dataclass(frozen=True)
class NormalizedProblem:
    """The design problem of B blocks, T targets and K streams in natural units.

    An antenna set is the antennas of a receiver. There are V antenna sets: V = 1 if all receivers share one, V = T if
    receivers have different antennas.

    h: channels in D <= K coordinates. If an antenna set has more antennas than there are streams, the coordinates are
    coordinates in the span of the channels; nothing is lost, because an optimal receiver lies in the span.
    weights: w_ik, sum_k w_ik^2 = 1. target_weight: alpha_i, sum_i alpha_i = 1.
    noise: sigma2 over the block's typical power, at least NOISE_FLOOR.
    csi_variance: variance of the estimation error times P_k, mean over the antennas of a set.
    basis: orthonormal basis of the span of the channels, None if h is in antenna coordinates.
    antenna_index: the antennas of each set, padded with -1; None if all receivers have all antennas.
    num_antennas: M of the slot. block_power: typical received power per antenna, watts. weight_norm: n_i.
    power_limit: P_k in watts. device_of_stream: see `TransceiverProblem`.
    """

    h: Complex[Tensor, "B V D K"]
    weights: Float[Tensor, "*B T K"]
    target_weight: Float[Tensor, " T"]
    noise: Float[Tensor, " B"]
    csi_variance: Float[Tensor, "B V K"]
    basis: Complex[Tensor, "B V N D"] | None
    antenna_index: Int[Tensor, "V N"] | None
    num_antennas: int
    block_power: Float[Tensor, " B"]
    weight_norm: Float[Tensor, "*B T"]
    power_limit: Float[Tensor, " K"]
    device_of_stream: Int[Tensor, " K"] | None


def normalise_problem(problem: TransceiverProblem) -> NormalizedProblem:
    """Express a design problem in natural units."""
    index = None if problem.antenna_mask is None else antenna_indices(problem.antenna_mask)
    full = (problem.h * problem.power_limit.sqrt())[:, None]
    csi = csi_of_blocks(problem)
    h, csi_mean = full, csi.mean(-2, keepdim=True)
    if index is not None:
        h, csi_mean = (
            select_antennas(full[:, 0], index),
            (select_antennas(csi.expand(-1, full.shape[2], -1), index)).sum(2),
        )
        csi_mean = csi_mean / (index >= 0).sum(1)[:, None]
    # The unit of power is a geometric mean: one device beside the antennas must not set it for all the others.
    received = channel_power(channels_at_target(h, problem.weights)) / h.shape[2]
    counted = has_channel(received) & (problem.weights > 0).any(-2)
    logs = (received.clamp_min(1e-300).log() * counted).sum(-1)
    block_power = (logs / counted.sum(-1).clamp_min(1)).exp()
    h = h / block_power.sqrt()[:, None, None, None]
    basis, h = torch.linalg.qr(h) if h.shape[2] > h.shape[3] else (None, h)
    norm = problem.weights.square().sum(-1).sqrt()
    norm = torch.where(norm > 0, norm, 1.0)
    # Weights that differ between blocks belong to one target, whose weight is 1 in any case.
    target_weight = problem.target_weight * (norm.square() if problem.weights.dim() == 2 else 1.0)
    return NormalizedProblem(
        h=h,
        weights=problem.weights / norm[..., None],
        target_weight=target_weight / target_weight.sum().clamp_min(1e-300),
        noise=(problem.noise / block_power).clamp_min(NOISE_FLOOR),
        csi_variance=csi_mean * problem.power_limit / block_power[:, None, None],
        basis=basis,
        antenna_index=index,
        num_antennas=problem.h.shape[1],
        block_power=block_power,
        weight_norm=norm,
        power_limit=problem.power_limit,
        device_of_stream=problem.device_of_stream,
    )


def denormalise(
    normalized: NormalizedProblem, receiver: Complex[Tensor, "B D T"], transmit: Complex[Tensor, "B K"], iterations: int
) -> Transceiver:
    """Express receivers and transmit factors of the normalized problem in watts and antennas."""
    full = receiver if normalized.basis is None else per_target_product(normalized.basis, receiver)
    if normalized.antenna_index is not None:
        antennas = normalized.num_antennas
        index = torch.where(normalized.antenna_index < 0, antennas, normalized.antenna_index)
        zeros = torch.zeros(len(full), antennas + 1, full.shape[2], dtype=full.dtype, device=full.device)
        full = zeros.scatter(1, index.T.expand(len(full), -1, -1), full)[:, :antennas]
    return Transceiver(
        full * normalized.weight_norm[..., None, :] / normalized.block_power.sqrt()[:, None, None],
        transmit * normalized.power_limit.sqrt(),
        iterations,
    )


def normalise_receiver(normalized: NormalizedProblem, receiver: Complex[Tensor, "B M T"]) -> Complex[Tensor, "B D T"]:
    """Express receivers of the slot in the coordinates of the normalized problem: the inverse of `denormalise`."""
    index = normalized.antenna_index
    if index is not None:
        receiver = receiver.gather(1, index.clamp_min(0).T.expand(len(receiver), -1, -1)) * (index >= 0).T
    receiver = receiver if normalized.basis is None else per_target_product(normalized.basis.mH, receiver)
    return receiver * normalized.block_power.sqrt()[:, None, None] / normalized.weight_norm[..., None, :]


def antenna_indices(antenna_mask: Bool[Tensor, "T M"]) -> Int[Tensor, "T N"]:
    """Indices of each receiver's antennas in ascending order, padded with -1."""
    antennas = torch.arange(antenna_mask.shape[1], device=antenna_mask.device)
    ordered = torch.where(antenna_mask, antennas, len(antennas)).sort(1).values
    ordered = ordered[:, : int(antenna_mask.sum(1).max())]
    return torch.where(ordered < len(antennas), ordered, -1)


def select_antennas(values: Num[Tensor, "B M K"], index: Int[Tensor, "V N"]) -> Num[Tensor, "B V N K"]:
    """Values at the antennas of each set, 0 where the index is -1."""
    selected: Tensor = values[:, index.clamp_min(0)] * (index >= 0)[:, :, None]
    return selected


def channel_power(h: Complex[Tensor, "*B M K"]) -> Float[Tensor, "*B K"]:
    """||h_k||^2."""
    squares: Tensor = torch.linalg.vecdot(h, h, dim=-2)
    return squares.real


def has_channel(power: Float[Tensor, "*B K"]) -> Bool[Tensor, "*B K"]:
    """Whether a device's received power is more than negligible against the strongest of its block."""
    return power > NEGLIGIBLE_POWER * power.amax(-1, keepdim=True)


def channels_at_target(h: Complex[Tensor, "B V N K"], weights: Float[Tensor, "*b T K"]) -> Complex[Tensor, "B N K"]:
    """Each device's channel to the antenna set of its own target."""
    if h.shape[1] == 1:
        return h[:, 0]
    return h[:, weights.argmax(0), :, torch.arange(h.shape[3], device=h.device)].permute(1, 2, 0)


def receive_gains(problem: NormalizedProblem, m: Complex[Tensor, "*S B D T"]) -> Complex[Tensor, "*S B T K"]:
    """m_i^H h_k of every receiver and stream."""
    if problem.h.shape[1] == 1:
        return m.mH @ problem.h[:, 0]
    return (m.mH[..., None, :] @ problem.h)[..., 0, :]


def per_target_product(A: Complex[Tensor, "B V N D"], m: Complex[Tensor, "B D T"]) -> Complex[Tensor, "B N T"]:
    """A_i m_i, where all targets share one matrix if V = 1."""
    return A[:, 0] @ m if A.shape[1] == 1 else (A @ m.mT[..., None])[..., 0].mT


def target_columns(problem: NormalizedProblem, values: Num[Tensor, "... T K"]) -> Num[Tensor, "... V K R"]:
    """Arrange values per target as the columns of each antenna set: R = T columns for one common set, else R = 1."""
    return values.mT[..., None, :, :] if problem.h.shape[1] == 1 else values[..., None]


def receivers_from_columns(columns: Complex[Tensor, "B V D R"]) -> Complex[Tensor, "B D T"]:
    """Columns in the order of `target_columns` as one receiver per target."""
    return columns[:, 0] if columns.shape[1] == 1 else columns[..., 0].mT


def devices_per_target(weights: Float[Tensor, "T K"]) -> tuple[Int[Tensor, "T L"], Float[Tensor, "T L"]]:
    """Indices and weights of the devices of each target, padded with weight 0 to the count of the largest target."""
    count = max(1, int((weights > 0).sum(-1).max()))
    values, index = weights.topk(count, dim=-1)
    return index, values


def gather_per_target(values: Shaped[Tensor, "B V D K"], index: Int[Tensor, "T L"]) -> Shaped[Tensor, "B T D L"]:
    """Select each target's devices from `index`, with their values at the antenna set of that target."""
    if values.shape[1] == 1:
        return values[:, 0][:, :, index].movedim(2, 1)
    return values.gather(3, index[:, None, :].expand(len(values), -1, values.shape[2], -1))


def scatter_per_target(
    values: Complex[Tensor, "B T L"], weights: Float[Tensor, "T L"], index: Int[Tensor, "T L"], devices: int
) -> Complex[Tensor, "B K"]:
    """Return the values to the order of devices: padding is dropped, and a device without a target gets 0."""
    valid = values * (weights > 0)
    out = torch.zeros(len(values), devices, dtype=values.dtype, device=values.device)
    return out.index_add(1, index.flatten(), valid.flatten(1))


def inference_mode(design: Callable[P, Transceiver]) -> Callable[P, Transceiver]:
    """Switch autograd off: its bookkeeping would be nine tenths of the time of a small problem.

    The result is copied out of inference mode, so that callers may differentiate around it.
    """

    @wraps(design)
    def run(*args: P.args, **kwargs: P.kwargs) -> Transceiver:
        with torch.inference_mode():
            transceiver = design(*args, **kwargs)
        return Transceiver(transceiver.receiver.clone(), transceiver.transmit_factors.clone(), transceiver.iterations)

    return run
