"""Transceiver designs by name.

A design is a function `(TransceiverProblem) -> Transceiver`, batched over coherence blocks, whose result for a block
does not depend on the other blocks. Each file begins with the problem that it solves.
"""

from collections.abc import Callable
from functools import partial

from airpfed.air.designs import alternating, channel_inversion, mmse, power_sharing, uniform_forcing
from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.air.schedule import DesignFunction, RoundFunction

DESIGNS: dict[str, DesignFunction] = {
    "uniform_forcing": uniform_forcing.uniform_forcing,
    "mmse": mmse.mmse,
    "channel_inversion": channel_inversion.channel_inversion,
    "naive_ao": alternating.naive_ao,
    "continued_ao": alternating.continued_ao,
}
"""The designs that `radio.design`, `airpfed link` and the tests know."""

BATCHED = ("uniform_forcing", "mmse")
"""Designs that take several slots of one target in one call (`batching.py`)."""

WITHOUT_DESIGN = ("error_free", "digital")
"""Links that superpose nothing: exact sums, and sums of quantised gradients."""


def refine_of(name: str, energy: str, debiased: bool) -> RoundFunction | None:
    """The function that shares energy between the slots of a round.

    None if `energy` is "per_slot", or if the design does not use more power than its limit in a slot.
    """
    if energy != "per_round" or name != "mmse":
        return None
    if not debiased:
        return power_sharing.share_energy
    return lambda slots, *arguments: [
        mmse.debias(*pair) for pair in zip(slots, power_sharing.share_energy(slots, *arguments), strict=True)
    ]


def design_of(
    name: str, truncation: float | None = None, debiased: bool = False, starts: int = 1
) -> DesignFunction | None:
    """A named design with its options; None for links without a design.

    truncation: the option of `channel_inversion`. debiased: whether `mmse` is debiased. starts: number of starting
    beams of `uniform_forcing` and `mmse`, for slots of one target.
    """
    if name in WITHOUT_DESIGN:
        return None
    if name == "channel_inversion":
        return partial(channel_inversion.channel_inversion, truncation=truncation)
    design = DESIGNS[name]
    if name in ("uniform_forcing", "mmse") and starts > 1:
        design = partial(best_of_starts, design, starts)
    if debiased and name == "mmse":
        return lambda problem: mmse.debias(problem, design(problem))
    return design


def best_of_starts(design: Callable[..., Transceiver], starts: int, problem: TransceiverProblem) -> Transceiver:
    """The best of several starts for a slot of one target; the plain design for several targets."""
    return design(problem, starts=starts) if problem.weights.shape[-2] == 1 else design(problem)
