"""Least mean-squared error of the received sums.

The problem of one slot:

    minimise  sum_i alpha_i MSE_i   over receivers m_i and transmit factors |b_k|^2 <= P_k,
    MSE_i = sum_k |m_i^H h_k b_k - w_ik|^2 + (sigma2 + sum_k c_k |b_k|^2) ||m_i||^2.

h_k: channel estimate of device k at M antennas, linear amplitude. w_ik: weight of device k in the sum of target i, 0
for devices of other targets. alpha_i: weight of the error of target i. P_k: power limit, watts. sigma2: noise power per
antenna and symbol, watts. c_k: variance of the channel's estimation error. Symbols are i.i.d. with unit power. The
solution shrinks the sum, so it is biased; `debias` undoes that on average. The problem is not convex, and the solution
is a local optimum.

One target: with b_k eliminated, F(m) = sum_k (w_k - sqrt(P_k) |m^H h_k|)_+^2 + sigma2 ||m||^2 is minimised by
Gauss-Newton while sigma2 falls to its value (`single_target.py`). Several targets: accelerated alternation from several
starts (`alternating.py`), for real symbols widely linear receivers (`widely_linear.py`), and `naive_ao` where antennas
are fewer than streams. The result is never worse than `uniform_forcing`, nor there than `naive_ao`, block by block.
Shapes: h (B, M, K), weights (T, K) or (B, 1, K), receivers (B, M, T), transmit factors (B, K), for B coherence blocks,
K devices and T targets.
"""

from dataclasses import replace

import torch
from jaxtyping import Complex
from torch import Tensor

from airpfed.air.designs.alternating import (
    accelerated_alternation,
    naive_ao,
    one_slot,
    singular_start,
    transmit_factors,
    weighted_mse,
)
from airpfed.air.designs.forcing import Starts, forcing_transmit_factors, uniform_forcing
from airpfed.air.designs.normalized import (
    NormalizedProblem,
    denormalise,
    inference_mode,
    normalise_problem,
    normalise_receiver,
)
from airpfed.air.designs.single_target import least_error_near, least_norm_and_error
from airpfed.air.designs.widely_linear import optimal_transmit_factors, widely_linear
from airpfed.air.problem import Transceiver, TransceiverProblem, gains, keep_better

STEPS = 60
"""Most steps of an accelerated alternation."""


@inference_mode
def mmse(
    problem: TransceiverProblem, start: Complex[Tensor, "B M T"] | None = None, *, starts: Starts = 1
) -> Transceiver:
    """Least mean-squared error: receivers and transmit factors to a local optimum, shrinking where noise asks for it.

    start: for one target, a receiver to begin from, for example the receiver of the previous channel; then there is no
    continuation and no comparison with forcing. starts: how many beams a slot of one target begins from otherwise; the
    best result is kept. A slot of several targets has its own starts. Raises ValueError if `start` is given for several
    targets.
    """
    normalized = normalise_problem(problem)
    if problem.weights.shape[-2] == 1:
        if start is None:
            return single_target_mmse(problem, normalized, starts)
        return refine_for_csi_error(normalized, *least_error_near(normalized, normalise_receiver(normalized, start)))
    if start is not None:
        raise ValueError("a given start is for slots of one target")
    forcing = uniform_forcing(problem)
    transceiver = multi_target_mmse(normalized, forcing)
    if problem.real:
        transceiver = keep_better(problem, transceiver, widely_linear_mmse(normalized, transceiver))
    transceiver = keep_better(problem, forcing, transceiver)
    if problem.h.shape[1] < problem.h.shape[2]:  # fewer antennas than streams: plain alternation may end elsewhere
        transceiver = keep_better(problem, transceiver, naive_ao(problem))
    return transceiver


def single_target_mmse(problem: TransceiverProblem, normalized: NormalizedProblem, starts: int) -> Transceiver:
    """For one target, keep the better of forcing and least error in each block; one continuation gives both."""
    short, least, steps = least_norm_and_error(normalized, starts)
    forcing = denormalise(normalized, short, forcing_transmit_factors(normalized, short), 0)
    transceiver = keep_better(problem, forcing, refine_for_csi_error(normalized, least, steps))
    # The best start was chosen before the refinement, which may change the order of the starts.
    if starts > 1 and bool((normalized.csi_variance > 0).any()):
        return keep_better(problem, single_target_mmse(problem, normalized, 1), transceiver)
    return transceiver


def refine_for_csi_error(normalized: NormalizedProblem, m: Complex[Tensor, "B D 1"], steps: int) -> Transceiver:
    """Add optimal transmit factors to a receiver; with channel estimation error, improve the receiver first.

    F counts the channel estimation error at full power, which is an approximation. The improvement is at most STEPS
    steps of accelerated alternation on the exact problem. steps: number of steps taken so far.
    """
    if bool((normalized.csi_variance > 0).any()):
        (m,), more = accelerated_alternation(one_slot(normalized), (m,), STEPS)
        steps += more
    return denormalise(normalized, m, transmit_factors(normalized, m), steps)


def multi_target_mmse(normalized: NormalizedProblem, forcing: Transceiver) -> Transceiver:
    """Several targets: run accelerated alternation from two starts, keep the better result block by block.

    The starts are uniform forcing and singular vectors; superposed slots have a third one, `dominant_streams_start`.
    """
    joint, steps = one_slot(normalized), 0
    m, least = normalise_receiver(normalized, forcing.receiver), torch.full_like(normalized.noise, torch.inf)
    for begin in (m, singular_start(normalized), *dominant_streams_start(normalized)):
        (end,), more = accelerated_alternation(joint, (begin,), STEPS)
        value = weighted_mse(normalized, end, transmit_factors(normalized, end))
        m = torch.where((value < least)[:, None, None], end, m)
        least, steps = torch.minimum(value, least), steps + more
    return denormalise(normalized, m, transmit_factors(normalized, m), steps)


def dominant_streams_start(normalized: NormalizedProblem) -> list[Complex[Tensor, "B D T"]]:
    """Receivers for only the dominant stream of each device; empty if no device has several streams.

    Superposed streams of a device share its channel, so one must give way. Without noise the stream of the largest
    alpha_i w_ik^2 is all that can be received.
    """
    if normalized.device_of_stream is None:
        return []
    price = (normalized.target_weight[:, None] * normalized.weights.square()).sum(0)
    best = torch.zeros_like(price).scatter_reduce(0, normalized.device_of_stream, price, "amax")
    dominant = replace(normalized, weights=normalized.weights * (price >= best[normalized.device_of_stream]))
    (m,), _ = accelerated_alternation(one_slot(dominant), (singular_start(dominant),), STEPS)
    return [m]


def widely_linear_mmse(normalized: NormalizedProblem, start: Transceiver) -> Transceiver:
    """Real symbols of several targets: run `widely_linear` from two starts, keep the better result block by block.

    The starts are the receivers of `start` and the singular vectors.
    """
    solutions = []
    for begin in (normalise_receiver(normalized, start.receiver), singular_start(normalized)):
        m, steps = widely_linear(normalized, begin)
        solutions.append((*optimal_transmit_factors(normalized, m), m, steps))
    (value, b, m, steps), (value2, b2, m2, more) = solutions
    swap = value2 < value
    m, b = torch.where(swap[:, None, None], m2, m), torch.where(swap[:, None], b2, b)
    return denormalise(normalized, m, b, start.iterations + steps + more)


def debiased_mmse(problem: TransceiverProblem, *, starts: Starts = 1) -> Transceiver:
    """`mmse`, with every receiver divided by its mean effective gain.

    starts: as in `mmse`.
    """
    return debias(problem, mmse(problem, starts=starts))


def debias(problem: TransceiverProblem, transceiver: Transceiver) -> Transceiver:
    """Divide each receiver by its mean effective gain, sum_k w_ik g_ik / sum_k w_ik^2 with g_ik = m_i^H h_k b_k.

    Afterwards the weighted mean of the gains is 1; each device's own gain still differs from 1. A receiver with mean
    gain 0 stays. For real symbols only the real part of the mean counts: a complex mean would also rotate the
    receiver's phase, and interference would return to the real part.
    """
    square = problem.weights.square().sum(-1)
    mean = (gains(problem.h, transceiver) * problem.weights).sum(-1) / torch.where(square > 0, square, 1.0)
    mean = mean.real.to(mean.dtype) if problem.real else mean
    mean = torch.where(mean.abs() > 1e-12, mean, 1.0)
    return Transceiver(
        transceiver.receiver / mean.conj()[:, None, :], transceiver.transmit_factors, transceiver.iterations
    )
