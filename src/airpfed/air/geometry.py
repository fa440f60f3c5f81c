"""Positions of stations and devices, and mean power gains between them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.core.units import SPEED_OF_LIGHT


def disc_distances(devices: int, radius_m: float, nearest_m: float, rng: torch.Generator) -> Float[Tensor, " K"]:
    """Draw the distances in metres of devices uniform over a disc from its centre, at least `nearest_m`.

    They are uniform over the area of a ring, so that the squared distance is uniform. Random: one draw per device.
    """
    share = torch.rand(devices, generator=rng, dtype=torch.float64)
    return (nearest_m**2 + share * (radius_m**2 - nearest_m**2)).sqrt()


def directions(devices: int, rng: torch.Generator) -> Float[Tensor, "K 2"]:
    """Draw unit vectors in the plane, uniform over the circle. Random: one draw per device."""
    angle = 2 * math.pi * torch.rand(devices, generator=rng, dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1)


def on_circle(stations: int, radius_m: float) -> Float[Tensor, "S 2"]:
    """Positions of stations evenly spaced on a circle around the origin, the first to the east; one station is at the
    origin.
    """
    angle = 2 * math.pi * torch.arange(stations, dtype=torch.float64) / stations
    return (radius_m if stations > 1 else 0.0) * torch.stack([angle.cos(), angle.sin()], 1)


def in_square(points: int, side_m: float, rng: torch.Generator) -> Float[Tensor, "P 2"]:
    """Draw points uniform over the square [0, side] x [0, side]. Random: two draws per point."""
    return side_m * torch.rand(points, 2, generator=rng, dtype=torch.float64)


def offsets(a: Float[Tensor, "A 2"], b: Float[Tensor, "B 2"], wrap_m: float | None = None) -> Float[Tensor, "A B 2"]:
    """Compute b - a for every pair, metres.

    wrap_m: side of a square that wraps around; the shorter way round is taken. None: the plane.
    """
    apart = b[None] - a[:, None]
    return apart if wrap_m is None else apart - wrap_m * (apart / wrap_m).round()


def distances(
    a: Float[Tensor, "A 2"], b: Float[Tensor, "B 2"], height_m: float = 0.0, wrap_m: float | None = None
) -> Float[Tensor, "A B"]:
    """The distances of every pair with a height difference of `height_m`; wrap_m as in `offsets`."""
    return (offsets(a, b, wrap_m).square().sum(-1) + height_m**2).sqrt()


def log_distance_gain(
    distance_m: Float[Tensor, "*K"], carrier_hz: float, exponent: float, loss_1m_db: float | None = None
) -> Float[Tensor, "*K"]:
    """The mean power gain, linear: a path loss of `loss_1m_db` at 1 m, then distance^-exponent.

    loss_1m_db None: free space, (c / (4 pi f))^2 (Friis at 1 m, log-distance model beyond).
    """
    free_space = (SPEED_OF_LIGHT / (4 * math.pi * carrier_hz)) ** 2
    at_one_metre = free_space if loss_1m_db is None else 10 ** (-loss_1m_db / 10)
    return at_one_metre * distance_m**-exponent


def shadowing(
    apart_m: Float[Tensor, "K K"], stations: int, sigma_db: float, decorrelation_m: float, rng: torch.Generator
) -> Float[Tensor, "S K"]:
    """Draw log-normal shadow fading as a linear factor on the mean power gain, independent from station to station.

    The shadowing of two devices to one station has the correlation 2^(-distance / decorrelation_m) in decibels (3GPP TR
    36.814, table B.1.2.2.1-4); with decorrelation_m = 0 it is independent. apart_m: distances between devices. Random:
    one draw per pair of station and device.
    """
    normal = torch.randn(stations, len(apart_m), generator=rng, dtype=torch.float64)
    if decorrelation_m > 0:
        values, vectors = torch.linalg.eigh(2 ** (-apart_m / decorrelation_m))
        # With wrap-around, the kernel may have small negative eigenvalues.
        normal = normal @ (vectors * values.clamp_min(0.0).sqrt()) @ vectors.T
    decibels: Tensor = sigma_db * normal
    return 10 ** (decibels / 10)


def noise_for_snr(gain: Float[Tensor, "*S K"], power: Float[Tensor, " K"], snr: float) -> float:
    """The noise power, watts, that makes the median device's per-antenna SNR, P_k gain_k / noise, equal `snr`.

    snr: linear. gain_k is the gain to the device's strongest station. The median of an even number of devices is the
    lower of the two middle values.
    """
    return float((power * gain.reshape(-1, gain.shape[-1]).amax(0)).median()) / snr
