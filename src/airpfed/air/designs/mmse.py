"""Least mean squared error: transmit factors eliminated in closed form, receivers by continuation or acceleration."""

from dataclasses import replace

import torch
from jaxtyping import Complex
from torch import Tensor

from airpfed.air.designs.alone import least_error_alone, least_error_from
from airpfed.air.designs.alternating import accelerate, alone, devices, error, singular_start
from airpfed.air.designs.normalized import NormalizedProblem, adopt, normalise, restore
from airpfed.air.designs.quiet import quiet
from airpfed.air.designs.uniform_forcing import forced, uniform_forcing
from airpfed.air.designs.widely_linear import eliminated, widely_linear
from airpfed.air.problem import Transceiver, TransceiverProblem, gains, keep_better

STEPS = 60


@quiet
def mmse(problem: TransceiverProblem, starts: int = 1, start: Complex[Tensor, "B M T"] | None = None) -> Transceiver:
    """The least sum_i alpha_i MSE_i over receivers and |b_k|^2 <= P_k, to a local optimum; shrinks, hence biased.

    One target: Gauss-Newton over m while sigma2 falls to its value; several: accelerated alternation from
    `uniform_forcing` and from singular vectors, the better. Never worse than `uniform_forcing`, block by block.
    One target only: starts, how many beams it begins from, the best is kept; start, a receiver to begin from instead,
    say that of a channel just before, with no path and no comparison with forcing (see benchmarks/transceivers.py).
    """
    unit = normalise(problem)
    if problem.weights.shape[-2] == 1:
        return single(problem, unit, starts) if start is None else nearby(unit, start)
    if starts != 1 or start is not None:
        raise ValueError("several starts and a given start are for slots of one target")
    forcing = uniform_forcing(problem)
    found = concurrent(unit, forcing)
    if problem.real:
        found = keep_better(problem, found, imaginary(unit, found))
    return keep_better(problem, forcing, found)


def imaginary(unit: NormalizedProblem, complex_found: Transceiver) -> Transceiver:
    """Real symbols of several targets: from the complex answer and from the SVD, the better; interference may go into
    the imaginary part.
    """
    found = []
    for begin in (adopt(unit, complex_found.receiver), singular_start(unit)):
        m, steps = widely_linear(unit, begin)
        found.append((*eliminated(unit, m), m, steps))
    (first, b, m, steps), (second, b2, m2, more) = found
    swap = second < first
    m, b = torch.where(swap[:, None, None], m2, m), torch.where(swap[:, None], b2, b)
    return restore(unit, m, b, complex_found.iterations + steps + more)


def single(problem: TransceiverProblem, unit: NormalizedProblem, starts: int) -> Transceiver:
    """One target: both designs from one continuation, CSI error as noise at full power, the better per block."""
    forcing, least, steps = least_error_alone(unit, starts)
    found = keep_better(problem, restore(unit, forcing, forced(unit, forcing), 0), polished(unit, least, steps))
    if starts > 1 and bool((unit.csi > 0).any()):  # the best start was chosen before the polish, which may reorder
        return keep_better(problem, single(problem, unit, 1), found)
    return found


def nearby(unit: NormalizedProblem, start: Complex[Tensor, "B M 1"]) -> Transceiver:
    """One target: the local optimum near a receiver."""
    return polished(unit, *least_error_from(unit, adopt(unit, start)))


def polished(unit: NormalizedProblem, m: Complex[Tensor, "B D 1"], steps: int) -> Transceiver:
    """Optimal devices for a receiver, after a few alternations where CSI error makes the hinge inexact."""
    if bool((unit.csi > 0).any()):
        (m,), more = accelerate(alone(unit), (m,), STEPS)
        steps += more
    return restore(unit, m, devices(unit, m), steps)


def concurrent(unit: NormalizedProblem, forcing: Transceiver) -> Transceiver:
    """Several targets: accelerated alternation from uniform forcing and, for when forcing is hopeless, from the SVD."""
    joint, steps = alone(unit), 0
    m, least = adopt(unit, forcing.receiver), torch.full_like(unit.noise, torch.inf)
    for begin in (m, singular_start(unit), *winners(unit)):
        (reached,), taken = accelerate(joint, (begin,), STEPS)
        value = error(unit, reached, devices(unit, reached))
        m = torch.where((value < least)[:, None, None], reached, m)
        least, steps = torch.minimum(value, least), steps + taken
    return restore(unit, m, devices(unit, m), steps)


def winners(unit: NormalizedProblem) -> list[Complex[Tensor, "B D T"]]:
    """Superposed streams of a device share its channel, so one must give way: a start with only the dearer of each.

    Without noise the dearer, by alpha_i w_ik^2, is all that can be had; none where no device has two streams.
    """
    if unit.device_of_stream is None:
        return []
    price = (unit.target_weight[:, None] * unit.weights.square()).sum(0)
    best = torch.zeros_like(price).scatter_reduce(0, unit.device_of_stream, price, "amax")
    only = replace(unit, weights=unit.weights * (price >= best[unit.device_of_stream]))
    (m,), _ = accelerate(alone(only), (singular_start(only),), STEPS)
    return [m]


def debias(problem: TransceiverProblem, transceiver: Transceiver) -> Transceiver:
    """Each receiver over its mean effective gain, sum_k w_ik g_ik / sum_k w_ik^2, g_ik = m_i^H h_k b_k.

    Afterwards the weighted mean gain is 1; device by device it still is not. A receiver that hears nothing stays. Of
    real symbols only the real part counts: a receiver is not turned, for what it put out of the way would come back.
    """
    square = problem.weights.square().sum(-1)
    mean = (gains(problem.h, transceiver) * problem.weights).sum(-1) / torch.where(square > 0, square, 1.0)
    mean = mean.real.to(mean.dtype) if problem.real else mean
    mean = torch.where(mean.abs() > 1e-12, mean, 1.0)
    return Transceiver(transceiver.receiver / mean.conj()[:, None, :], transceiver.transmit, transceiver.iterations)
