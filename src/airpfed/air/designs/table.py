"""The designs by name."""

from collections.abc import Callable
from typing import Literal

from airpfed.air.designs.channel_inversion import channel_inversion
from airpfed.air.designs.mmse import mmse
from airpfed.air.designs.naive_ao import naive_ao
from airpfed.air.designs.uniform_forcing import uniform_forcing
from airpfed.air.slot import Slot, Transceiver

DesignName = Literal["uniform_forcing", "mmse", "channel_inversion", "naive_ao"]

DESIGNS: dict[DesignName, Callable[[Slot], Transceiver]] = {
    "uniform_forcing": uniform_forcing,
    "mmse": mmse,
    "channel_inversion": channel_inversion,
    "naive_ao": naive_ao,
}
