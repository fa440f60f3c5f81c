"""Where devices are, and how much power reaches the station."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.units import SPEED_OF_LIGHT


def disc_distances(devices: int, radius_m: float, nearest_m: float, rng: torch.Generator) -> Float[Tensor, " K"]:
    """Distances in metres of devices dropped uniformly over a disc around the station, none nearer than `nearest_m`.

    Uniform over the ring's area, so the squared distance is uniform. Random: one draw a device.
    """
    share = torch.rand(devices, generator=rng, dtype=torch.float64)
    return (nearest_m**2 + share * (radius_m**2 - nearest_m**2)).sqrt()


def log_distance_gain(distance_m: Float[Tensor, " K"], carrier_hz: float, exponent: float) -> Float[Tensor, " K"]:
    """Mean power gain (linear): free space to 1 m, then distance^-exponent.

    gain = (c / (4 pi f))^2 d^-exponent (Friis at 1 m, log-distance model beyond).
    """
    free_space = (SPEED_OF_LIGHT / (4 * math.pi * carrier_hz)) ** 2
    return free_space * distance_m**-exponent


def noise_for_snr(gain: Float[Tensor, " K"], power: Float[Tensor, " K"], snr: float) -> float:
    """Noise power in watts at which the median over devices of P_k gain_k / noise is `snr` (linear), per antenna."""
    return float((power * gain).median()) / snr
