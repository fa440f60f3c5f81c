"""Alternating optimisation, the literature's habit, plain and with continuation, kept as baselines."""

from dataclasses import replace

import torch

from airpfed.air.designs.alternating import alternate, devices, error, singular_start
from airpfed.air.designs.normalized import normalise, restore
from airpfed.air.problem import Transceiver, TransceiverProblem

START = 10.0
"""First noise level of the continuation, in units of the typical channel power per antenna."""

TOLERANCE = 1e-4
LEVEL_STEPS = 200


def naive_ao(problem: TransceiverProblem, steps: int = 200) -> Transceiver:
    """`steps` alternations of closed-form devices and MMSE receivers from each target's dominant singular vector.

    Neither continuation nor acceleration: from about 10 dB on it stops dBs above `mmse`.
    """
    unit = normalise(problem)
    m = alternate(unit, singular_start(unit), steps)
    return restore(unit, m, devices(unit, m), steps)


def continued_ao(problem: TransceiverProblem) -> Transceiver:
    """Alternation from the same start while the noise falls by tens from START to its value, any number of targets.

    A level lasts until a step gains less than TOLERANCE, or LEVEL_STEPS steps; blocks move on one by one.
    """
    unit = normalise(problem)
    m, noise, steps = singular_start(unit), unit.noise.clamp_min(START), 0
    done = torch.zeros_like(noise, dtype=torch.bool)
    count = torch.zeros_like(noise)
    value = torch.full_like(noise, torch.inf)
    while not bool(done.all()):
        level = replace(unit, noise=noise)
        m = torch.where(done[:, None, None], m, alternate(level, m, 1))
        reached = error(level, m, devices(level, m))
        count, steps = count + 1, steps + 1
        settled = (reached >= (1 - TOLERANCE) * value) | (count >= LEVEL_STEPS)
        done = done | (settled & (noise <= unit.noise))
        noise = torch.where(settled, torch.maximum(noise / 10, unit.noise), noise)
        value, count = torch.where(settled, torch.inf, reached), torch.where(settled, 0.0, count)
    return restore(unit, m, devices(unit, m), steps)
