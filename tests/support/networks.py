"""Worlds for tests: given mean gains, flat Rayleigh fading."""

from functools import partial

import torch
from torch import Tensor

from airpfed.air.channels.fading import FadingParameters, fading_channels
from airpfed.air.network import Network


def flat(gain: Tensor, antennas: int, **changes) -> Network:
    """Stations (rows of `gain`, or one) of `antennas` antennas; changes: of the FadingParameters."""
    gain = torch.atleast_2d(gain)
    stations, devices = gain.shape
    parameters = {
        "gain": gain,
        "antennas": antennas,
        "los": torch.zeros(stations * antennas, devices, dtype=torch.complex128),
        "profile": torch.ones(1, dtype=torch.float64),
        "centres": torch.zeros(1, dtype=torch.float64),
        "time_correlation": 0.0,
        "round_correlation": 0.0,
        "names": (),
    }
    made = FadingParameters(**{**parameters, **changes})
    places = torch.zeros(stations, 2, dtype=torch.float64), torch.zeros(devices, 2, dtype=torch.float64)
    return Network(
        *places, gain, antennas, made.names, scattered=made.gain, channel_model=partial(fading_channels, made)
    )
