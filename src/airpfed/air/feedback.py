"""Feedback to the devices: transmit factors as codes of a few bits.

A code has a phase, one of 2^p evenly spaced ones, and a magnitude: silence, or one of 2^m - 1 levels that are evenly
spaced in decibels. Magnitudes are rounded down, so that every power limit holds.
"""

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

RANGE_DB = 60.0
"""The range of the levels of magnitude, in power; what is weaker is silence."""
HEADROOM_DB = 10.0
"""The largest level above the power limit where devices may save energy in one slot for another."""


def round_factors(
    factors: Complex[Tensor, "B K"], limit: Float[Tensor, " K"], bits: int, headroom_db: float = 0.0
) -> Complex[Tensor, "B K"]:
    """Round transmit factors to codes of `bits` bits, m = bits // 2 of them for the magnitude.

    A phase becomes the nearest one: for uniform phases its error has the mean factor sin(a) / a with a = pi / 2^p. A
    magnitude becomes the next smaller level. limit: P_k, watts; the largest level is sqrt(P_k). headroom_db: by how
    much the largest level is above that.
    """
    magnitude_bits = bits // 2
    step = 2 * math.pi / 2 ** (bits - magnitude_bits)
    phase = (factors.angle() / step).round() * step
    levels = 2**magnitude_bits - 1
    top, spacing = limit.sqrt() * 10 ** (headroom_db / 20), RANGE_DB / max(1, levels - 1)
    below = -20 * (factors.abs() / top).log10()
    # A factor that is a level but for rounding stays there.
    level = (below / spacing - 1e-9).ceil().clamp(min=0)
    magnitude = torch.where(level < levels, top * 10 ** (-level * spacing / 20), 0.0)
    return torch.polar(torch.minimum(magnitude, factors.abs()), phase)
