"""Alternating factors: an uplink that sends some columns of the s-vector in each round, one phase after another."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air.schedule import Updates, Uplink, num_statistics_rows


@dataclass(frozen=True)
class Phase:
    """One phase of `Uplink.alternating`; `number` counts from 0.

    columns: first and last + 1 of the columns of the s-vector that the phase sends. link: the uplink of these columns.
    statistics: the phase's rows of the correlation statistics.
    """

    number: int
    columns: tuple[int, int]
    link: Uplink
    statistics: slice

    def updates(self, updates: Updates) -> Updates:
        """Select the phase's columns of the s-vectors."""
        return replace(updates, shared=updates.shared[:, slice(*self.columns)])

    def widen(self, shared: Float[Tensor, " d"], width: int) -> Float[Tensor, " {width}"]:
        """Place a received s-sum into its columns, with zeros in the columns of other phases."""
        full = torch.zeros(width)
        full[slice(*self.columns)] = shared
        return full


def alternating_phases(link: Uplink) -> list[Phase]:
    """The phases of an uplink with alternating factors, in the order of the rounds.

    A phase sends the normaliser groups in its columns, and has statistics rows of its own.
    """
    phases, start = list[Phase](), 0
    for number, (first, last) in enumerate(link.alternating):
        groups = {k: (a - first, b - first) for k, (a, b) in enumerate(link.shared_groups) if first <= a and b <= last}
        kinds = [*dict.fromkeys([*groups, *link.personal_rows])]
        part = replace(
            link,
            shared_groups=tuple(groups.values()),
            personal_rows=tuple(kinds.index(kind) for kind in link.personal_rows),
            alternating=(),
        )
        stop = start + num_statistics_rows(part)
        phases.append(Phase(number=number, columns=(first, last), link=part, statistics=slice(start, stop)))
        start = stop
    return phases
