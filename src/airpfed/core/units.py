"""Conversion between decibels, which only the settings use, and the linear SI units of everything else."""

import math

SPEED_OF_LIGHT = 299_792_458.0
"""Metres per second."""

THERMAL_DBM_PER_HZ = -174.0
"""Thermal noise density at 290 K, dBm per hertz."""


def from_db(decibels: float) -> float:
    """Convert a power ratio in decibels to a linear ratio."""
    return float(10.0 ** (decibels / 10.0))


def to_db(ratio: float) -> float:
    """Convert a linear power ratio to decibels; 0 gives -inf."""
    return 10.0 * math.log10(ratio) if ratio > 0 else -math.inf


def dbm_to_watts(dbm: float) -> float:
    """Convert a power in dBm to watts."""
    return from_db(dbm - 30.0)


def thermal_noise_watts(bandwidth_hz: float, noise_figure_db: float) -> float:
    """Return the receiver's noise power in watts: k T B at 290 K times the noise figure."""
    return dbm_to_watts(THERMAL_DBM_PER_HZ + noise_figure_db) * bandwidth_hz
