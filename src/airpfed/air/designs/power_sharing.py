"""Energy shared by the slots of a round: a device may spend in one slot what it saves in another."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.air.designs.alternating import JointProblem, Receivers, accelerate, transmit
from airpfed.air.designs.mmse import STEPS
from airpfed.air.designs.normalized import adopt, normalise, restore
from airpfed.air.designs.power_constraint import Budget
from airpfed.air.problem import Transceiver, TransceiverProblem, objective

FAINT = 1e-6
"""Least power of a stream's symbols that is counted: one that is silent in a slot is not amplified without end."""


def share_energy(
    slots: Sequence[TransceiverProblem],
    devices: Sequence[Int[Tensor, " _K"]],
    uses: Sequence[float],
    powers: Sequence[Float[Tensor, " _K"]],
    starts: Sequence[Transceiver],
) -> list[Transceiver]:
    """Least sum_j uses_j objective_j with sum_j uses_j p_jk |b_jk|^2 <= P_k sum_j uses_j over the slots j that k is in.

    devices: the device, numbered over the round, of each stream of each slot; a device has the same limit P_k in all.
    powers: mean power p_jk of each stream's symbols in its slot. Slots have the same B; block b of all slots is one
    round. starts: transceivers that keep the limit, e.g. `mmse`'s; their receivers are the start of a joint accelerated
    alternation, so the sum never rises.
    """
    units = tuple(normalise(problem) for problem in slots)
    weight = tuple(
        u * float((problem.target_weight * problem.weights.square().sum(-1)).sum())
        for u, problem in zip(uses, slots, strict=True)
    )
    joint = JointProblem(units, tuple(w / max(sum(weight), 1e-300) for w in weight), budget_of(devices, uses, powers))
    m: Receivers = tuple(adopt(unit, start.receiver) for unit, start in zip(units, starts, strict=True))
    m, steps = accelerate(joint, m, STEPS)
    sent = transmit(joint, m)
    parts = zip(units, m, sent, starts, strict=True)
    made = [restore(unit, r, b, steps + start.iterations) for unit, r, b, start in parts]
    # Real symbols of several targets have a cost of their own, which the joint steps do not see.
    worse = total(slots, uses, made) > total(slots, uses, starts)
    return [one.select(~worse, start) for one, start in zip(made, starts, strict=True)]


def total(
    slots: Sequence[TransceiverProblem], uses: Sequence[float], made: Sequence[Transceiver]
) -> Float[Tensor, " B"]:
    """The round's objective, slots weighed by their uses."""
    return torch.stack([u * objective(problem, one) for u, problem, one in zip(uses, slots, made, strict=True)]).sum(0)


def budget_of(
    devices: Sequence[Int[Tensor, " _K"]], uses: Sequence[float], powers: Sequence[Float[Tensor, " _K"]]
) -> Budget:
    """Each device's budget in units of its limit: the uses of the slots that it sends in, once a slot."""
    device_of_stream = torch.cat(list(devices))
    cost = torch.cat([float(u) * power.clamp_min(FAINT) for u, power in zip(uses, powers, strict=True)])
    limit = torch.zeros(int(device_of_stream.max()) + 1, dtype=torch.float64)
    for one, u in zip(devices, uses, strict=True):
        limit[one.bincount(minlength=len(limit)) > 0] += float(u)
    return Budget(device_of_stream, cost, limit.clamp_min(1e-300))
