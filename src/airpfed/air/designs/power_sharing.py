"""Energy shared by the slots of a round: a device may spend in one slot what it saves in another.

- u_j: channel uses of slot j
- p_jk: mean power of the symbols of device k in slot j
- b_jk: transmit factor of device k in slot j
- P_k: power limit of device k, watts
- objective_j = sum_i alpha_i MSE_i: weighted mean-squared error of slot j

The joint problem of a round is

    minimise  sum_j u_j objective_j   subject to   sum_j u_j p_jk |b_jk|^2 <= P_k sum_j u_j   for every device k,

where the sums of the constraint run over the slots in which k sends. The accelerated alternation of `alternating.py`
over all slots at once solves it to a local optimum.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.air.designs.alternating import (
    JointProblem,
    Receivers,
    accelerated_alternation,
    joint_transmit_factors,
)
from airpfed.air.designs.least_error import STEPS, debias
from airpfed.air.designs.normalized import denormalise, normalise_problem, normalise_receiver
from airpfed.air.designs.power_constraint import PowerConstraint
from airpfed.air.problem import Transceiver, TransceiverProblem, objective

MIN_SYMBOL_POWER = 1e-6
"""Least mean power of symbols that counts: a stream without symbols in a slot is not amplified without limit."""


def share_energy(
    slots: Sequence[TransceiverProblem],
    devices: Sequence[Int[Tensor, " _K"]],
    uses: Sequence[float],
    powers: Sequence[Float[Tensor, " _K"]],
    starts: Sequence[Transceiver],
) -> list[Transceiver]:
    """Lower the weighted error of a round by letting devices move energy between its slots.

    slots: problems with the same B; block b of all slots is one round. devices: the device of each stream of each slot,
    numbered over the round; a device has the same limit P_k in all slots. uses: u_j. powers: p_jk, the mean power of
    each stream's symbols. starts: transceivers that keep the limit in every slot, e.g. those of `mmse`. The sum of the
    objectives never rises above the sum for the starts.
    """
    normalized = tuple(normalise_problem(problem) for problem in slots)
    weight = tuple(
        u * float((problem.target_weight * problem.weights.square().sum(-1)).sum())
        for u, problem in zip(uses, slots, strict=True)
    )
    constraint = energy_constraint(devices, uses, powers)
    joint = JointProblem(normalized, tuple(w / max(sum(weight), 1e-300) for w in weight), constraint)
    m: Receivers = tuple(
        normalise_receiver(slot, start.receiver) for slot, start in zip(normalized, starts, strict=True)
    )
    m, steps = accelerated_alternation(joint, m, STEPS)
    parts = zip(normalized, m, joint_transmit_factors(joint, m), starts, strict=True)
    shared = [denormalise(slot, r, b, steps + start.iterations) for slot, r, b, start in parts]
    # Real symbols of several targets have another objective, which the joint steps do not see.
    worse = weighted_objective(slots, uses, shared) > weighted_objective(slots, uses, starts)
    return [transceiver.select(~worse, start) for transceiver, start in zip(shared, starts, strict=True)]


def share_energy_debiased(
    slots: Sequence[TransceiverProblem],
    devices: Sequence[Int[Tensor, " _K"]],
    uses: Sequence[float],
    powers: Sequence[Float[Tensor, " _K"]],
    starts: Sequence[Transceiver],
) -> list[Transceiver]:
    """`share_energy`, with every receiver then divided by its mean effective gain."""
    shared = share_energy(slots, devices, uses, powers, starts)
    return [debias(*pair) for pair in zip(slots, shared, strict=True)]


def weighted_objective(
    slots: Sequence[TransceiverProblem], uses: Sequence[float], transceivers: Sequence[Transceiver]
) -> Float[Tensor, " B"]:
    """sum_j u_j objective_j, per block."""
    parts = zip(uses, slots, transceivers, strict=True)
    return torch.stack([u * objective(problem, transceiver) for u, problem, transceiver in parts]).sum(0)


def energy_constraint(
    devices: Sequence[Int[Tensor, " _K"]], uses: Sequence[float], powers: Sequence[Float[Tensor, " _K"]]
) -> PowerConstraint:
    """The constraint of the joint problem in units of P_k: limit_k is the uses of the slots in which k sends."""
    device_of_stream = torch.cat(list(devices))
    cost = torch.cat([float(u) * power.clamp_min(MIN_SYMBOL_POWER) for u, power in zip(uses, powers, strict=True)])
    limit = torch.zeros(int(device_of_stream.max()) + 1, dtype=torch.float64)
    for senders, u in zip(devices, uses, strict=True):
        limit[senders.bincount(minlength=len(limit)) > 0] += float(u)
    return PowerConstraint(device_of_stream, cost, limit.clamp_min(1e-300))
