"""The designs by name."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from airpfed.air.designs.channel_inversion import channel_inversion
from airpfed.air.designs.energy import share_energy
from airpfed.air.designs.mmse import debias, mmse
from airpfed.air.designs.naive_ao import continued_ao, naive_ao
from airpfed.air.designs.uniform_forcing import uniform_forcing
from airpfed.air.plan import RoundFunction
from airpfed.air.slot import Slot, Transceiver

DesignName = Literal["uniform_forcing", "mmse", "channel_inversion", "naive_ao", "continued_ao"]

DESIGNS: dict[DesignName, Callable[[Slot], Transceiver]] = {
    "uniform_forcing": uniform_forcing,
    "mmse": mmse,
    "channel_inversion": channel_inversion,
    "naive_ao": naive_ao,
    "continued_ao": continued_ao,
}


def refine_of(name: str, energy: str, debiased: bool) -> RoundFunction | None:
    """How the slots of a round share energy: None for `per_slot`, and for designs that ask no more than their limit."""
    if energy != "per_round" or name != "mmse":
        return None
    if not debiased:
        return share_energy
    return lambda slots, *rest: [debias(*pair) for pair in zip(slots, share_energy(slots, *rest), strict=True)]


def design_of(name: str, truncation: float | None, debiased: bool) -> Callable[[Slot], Transceiver] | None:
    """A named design with its options; None for `error_free`."""
    if name == "error_free":
        return None
    if name == "channel_inversion":
        return partial(channel_inversion, truncation=truncation)
    design = {str(key): value for key, value in DESIGNS.items()}[name]
    if debiased and name == "mmse":
        return lambda slot: debias(slot, design(slot))
    return design
