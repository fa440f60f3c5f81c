"""Transceiver designs by name.

A design is a function `(TransceiverProblem, *, options) -> Transceiver`, batched over coherence blocks, whose result
for a block does not depend on the other blocks. Each file begins with the problem that it solves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from airpfed.air.designs.alternating import continued_ao, naive_ao
from airpfed.air.designs.error_bound import lower_bound
from airpfed.air.designs.forcing import uniform_forcing
from airpfed.air.designs.inversion import channel_inversion
from airpfed.air.designs.least_error import debiased_mmse, mmse
from airpfed.air.designs.power_sharing import share_energy, share_energy_debiased
from airpfed.air.problem import Transceiver, TransceiverProblem
from airpfed.air.schedule import RoundFunction
from airpfed.core.rows import RowDict

Unbiased = Literal["given the channel", "over fading", "no"]
"""Whether the mean of the received sum is the true sum: for every channel, only over fading, or not at all."""


@dataclass(frozen=True)
class Design:
    """A transceiver design.

    solve: (problem, *, options) -> transceiver. unbiased: what it claims of the mean of the received sum, for devices
    without impairments. shrinks: whether its receivers shrink the sum for i.i.d. symbols, so that the uplink rescales
    them to the correlation of the symbols. batched: whether it takes weights that differ from block to block,
    (B, 1, K), so that several slots of one target share a call. share_energy: for `radio.energy = "per_round"`, the
    function that shares energy among the slots of a round; None if the design cannot.

    A design from a bare function promises nothing: it is taken for biased, and is called once a slot.

    >>> import airpfed as ap
    >>> inversion = ap.Design(ap.designs.channel_inversion, unbiased="no")
    >>> problem = ap.single_cell(devices=[4], antennas=8, snr_db=10).problem(blocks=5)
    >>> inversion(problem, truncation=0.1).transmit_factors.shape
    torch.Size([5, 4])
    """

    solve: Callable[..., Transceiver]
    unbiased: Unbiased = "no"
    shrinks: bool = False
    batched: bool = False
    share_energy: RoundFunction | None = None

    def __call__(self, problem: TransceiverProblem, **options: Any) -> Transceiver:
        """Solve a problem."""
        return self.solve(problem, **options)


DESIGNS: RowDict[Design] = RowDict(
    "design",
    {
        "uniform_forcing": Design(uniform_forcing, unbiased="given the channel", batched=True),
        "mmse": Design(mmse, shrinks=True, batched=True, share_energy=share_energy),
        "debiased_mmse": Design(debiased_mmse, batched=True, share_energy=share_energy_debiased),
        "channel_inversion": Design(channel_inversion),
        "naive_ao": Design(naive_ao),
        "continued_ao": Design(continued_ao),
    },
    wrap=Design,
    function=lambda row: row.solve,
)
"""The designs that `radio.design`, `airpfed link`, the notebooks and the tests know."""

__all__ = [
    "DESIGNS",
    "Design",
    "channel_inversion",
    "continued_ao",
    "debiased_mmse",
    "lower_bound",
    "mmse",
    "naive_ao",
    "uniform_forcing",
]
