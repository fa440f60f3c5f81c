"""The designs by name."""

from collections.abc import Callable
from functools import partial

from airpfed.air.designs.channel_inversion import channel_inversion
from airpfed.air.designs.mmse import debias, mmse
from airpfed.air.designs.naive_ao import continued_ao, naive_ao
from airpfed.air.designs.power_sharing import share_energy
from airpfed.air.designs.uniform_forcing import uniform_forcing
from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.air.schedule import DesignFunction, RoundFunction

DESIGNS: dict[str, DesignFunction] = {
    "uniform_forcing": uniform_forcing,
    "mmse": mmse,
    "channel_inversion": channel_inversion,
    "naive_ao": naive_ao,
    "continued_ao": continued_ao,
}
"""A row here is a design everywhere: `radio.design` (whose names stand in settings.py), `airpfed link`, the tests."""

BUNDLED = ("uniform_forcing", "mmse")
"""Designs that take slots of one target in bundles (`bundle`)."""

WITHOUT_DESIGN = ("error_free", "digital")
"""Links that superpose nothing: the exact sums, and sums of rounded gradients."""


def refine_of(name: str, energy: str, debiased: bool) -> RoundFunction | None:
    """How the slots of a round share energy: None for `per_slot`, and for designs that ask no more than their limit."""
    if energy != "per_round" or name != "mmse":
        return None
    if not debiased:
        return share_energy
    return lambda slots, *rest: [debias(*pair) for pair in zip(slots, share_energy(slots, *rest), strict=True)]


def design_of(
    name: str, truncation: float | None = None, debiased: bool = False, starts: int = 1
) -> DesignFunction | None:
    """A named design with its options; None for `error_free` and `digital`. starts: of uniform_forcing and mmse, one
    target only."""
    if name in WITHOUT_DESIGN:
        return None
    if name == "channel_inversion":
        return partial(channel_inversion, truncation=truncation)
    design = DESIGNS[name]
    if name in ("uniform_forcing", "mmse") and starts > 1:
        design = partial(from_several, {"uniform_forcing": uniform_forcing, "mmse": mmse}[name], starts)
    if debiased and name == "mmse":
        return lambda problem: debias(problem, design(problem))
    return design


def from_several(design: Callable[..., Transceiver], starts: int, problem: TransceiverProblem) -> Transceiver:
    """The best of several starts in a slot of one target; elsewhere the design as it is."""
    return design(problem, starts=starts) if problem.weights.shape[-2] == 1 else design(problem)
