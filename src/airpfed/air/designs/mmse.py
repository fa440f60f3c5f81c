"""Least mean squared error: transmit factors eliminated in closed form, receivers by continuation or acceleration."""

from dataclasses import replace

import torch
from jaxtyping import Complex
from torch import Tensor

from airpfed.air.designs.alternation import accelerate, alone, devices, error, singular_start
from airpfed.air.designs.hinge import continuation, point, real_maps, receiver
from airpfed.air.designs.real import eliminated, widely_linear
from airpfed.air.designs.uniform_forcing import uniform_forcing
from airpfed.air.designs.unit import Unit, dominant_beam, heard, normalise, restore
from airpfed.air.slot import Slot, Transceiver, gains, keep_better

START = 10.0
"""First noise level of the continuation, in units of the typical channel power per antenna."""

STEPS = 60


def mmse(slot: Slot) -> Transceiver:
    """The least sum_i alpha_i MSE_i over receivers and |b_k|^2 <= P_k, to a local optimum; shrinks, hence biased.

    One target: Gauss-Newton over m while sigma2 falls to its value; several: accelerated alternation from
    `uniform_forcing` and from singular vectors, the better. Never worse than `uniform_forcing`, block by block.
    """
    forcing = uniform_forcing(slot)
    unit = normalise(slot)
    found = concurrent(unit, forcing) if len(slot.weights) > 1 else single(unit)
    if slot.real and len(slot.weights) > 1:
        found = keep_better(slot, found, imaginary(unit, found))
    return keep_better(slot, forcing, found)


def imaginary(unit: Unit, complex_found: Transceiver) -> Transceiver:
    """Real symbols of several targets: from the complex answer and from the SVD, the better; interference may go into
    the imaginary part.
    """
    found = []
    for begin in (adopt(unit, complex_found), singular_start(unit)):
        m, steps = widely_linear(unit, begin)
        found.append((*eliminated(unit, m), m, steps))
    (first, b, m, steps), (second, b2, m2, more) = found
    swap = second < first
    m, b = torch.where(swap[:, None, None], m2, m), torch.where(swap[:, None], b2, b)
    return restore(unit, m, b, complex_found.iterations + steps + more)


def single(unit: Unit) -> Transceiver:
    """One target: Gauss-Newton with continuation, CSI error as noise at full power, then polished."""
    h, w = unit.h, torch.where(heard(unit.h), unit.weights[0], 0.0)
    noise = unit.noise + unit.csi.sum(-1)
    maps = real_maps(h)
    at, steps = continuation(maps, w, noise, point(maps, dominant_beam(h, w)), START)
    m = receiver(at)[..., None]
    if bool((unit.csi > 0).any()):
        (m,), more = accelerate(alone(unit), (m,), STEPS)
        steps += more
    return restore(unit, m, devices(unit, m), steps)


def concurrent(unit: Unit, forcing: Transceiver) -> Transceiver:
    """Several targets: accelerated alternation from uniform forcing and, for when forcing is hopeless, from the SVD."""
    problem, steps = alone(unit), 0
    m, least = adopt(unit, forcing), torch.full_like(unit.noise, torch.inf)
    for begin in (m, singular_start(unit), *winners(unit)):
        (reached,), taken = accelerate(problem, (begin,), STEPS)
        value = error(unit, reached, devices(unit, reached))
        m = torch.where((value < least)[:, None, None], reached, m)
        least, steps = torch.minimum(value, least), steps + taken
    return restore(unit, m, devices(unit, m), steps)


def winners(unit: Unit) -> list[Complex[Tensor, "B D T"]]:
    """Superposed streams of a device share its channel, so one must give way: a start with only the dearer of each.

    Without noise the dearer, by alpha_i w_ik^2, is all that can be had; none where no device has two streams.
    """
    if unit.owner is None:
        return []
    price = (unit.importance[:, None] * unit.weights.square()).sum(0)
    best = torch.zeros_like(price).scatter_reduce(0, unit.owner, price, "amax")
    only = replace(unit, weights=unit.weights * (price >= best[unit.owner]))
    (m,), _ = accelerate(alone(only), (singular_start(only),), STEPS)
    return [m]


def adopt(unit: Unit, transceiver: Transceiver) -> Complex[Tensor, "B D T"]:
    """A slot's receivers in the unit problem's coordinates, the inverse of `restore`."""
    receiver = transceiver.receiver if unit.basis is None else unit.basis.mH @ transceiver.receiver
    return receiver * unit.scale.sqrt()[:, None, None] / unit.norm


def debias(slot: Slot, transceiver: Transceiver) -> Transceiver:
    """Each receiver over its mean effective gain, sum_k w_ik g_ik / sum_k w_ik^2, g_ik = m_i^H h_k b_k.

    Afterwards the weighted mean gain is 1; device by device it still is not. A receiver that hears nothing stays.
    """
    square = slot.weights.square().sum(-1)
    mean = (gains(slot.h, transceiver) * slot.weights).sum(-1) / torch.where(square > 0, square, 1.0)
    mean = torch.where(mean.abs() > 1e-12, mean, 1.0)
    return Transceiver(transceiver.receiver / mean.conj()[:, None, :], transceiver.transmit, transceiver.iterations)
