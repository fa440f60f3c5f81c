"""The time-frequency grid: on which OFDM symbol and which subcarrier a channel use of a round lies.

A coherence block of a round is a group of subcarriers during a coherence time: block i is group i mod G at time i // G.
Power limits, amplifiers, offsets of carrier and timing, channels and waveforms all read a use's place here.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class GridPositions:
    """Where the uses of a segment lie.

    symbol, subcarrier: of each use. time: coherence time of each of the B blocks. first_symbol: OFDM symbol in which
    each block begins.
    """

    symbol: Int[Tensor, " uses"]
    subcarrier: Int[Tensor, " uses"]
    time: Int[Tensor, " B"]
    first_symbol: Int[Tensor, " B"]

    @cached_property
    def symbol_index(self) -> Int[Tensor, " uses"]:
        """The OFDM symbol of each use, numbered from 0 among those that have a use."""
        index: Tensor = torch.unique(self.symbol, return_inverse=True)[1]
        return index


@dataclass(frozen=True)
class ResourceGrid:
    """The grid of an uplink.

    coherence_symbols: channel uses of a coherence block. groups: G, groups of equally many subcarriers. subcarriers:
    N, a multiple of G.

    >>> grid = ResourceGrid(coherence_symbols=4, groups=2, subcarriers=4)
    >>> symbol, subcarrier = grid.positions(0, 10)
    >>> symbol.tolist(), subcarrier.tolist()
    ([0, 0, 1, 1, 0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 3, 2, 3, 0, 1])
    """

    coherence_symbols: int
    groups: int
    subcarriers: int

    @property
    def width(self) -> int:
        """The subcarriers of a group."""
        return self.subcarriers // self.groups

    def positions(self, first_use: int, uses: int) -> tuple[Int[Tensor, " uses"], Int[Tensor, " uses"]]:
        """The OFDM symbol and the subcarrier of each use from `first_use` of a round on.

        The uses of a group, one coherence time after another, fill the group's subcarriers symbol by symbol without a
        gap. Neighbouring coherence times may therefore share a symbol if a block does not fill whole symbols.
        """
        use = torch.arange(first_use, first_use + uses)
        block = use // self.coherence_symbols
        group = block % self.groups
        in_group = (block // self.groups - block) * self.coherence_symbols + use
        return in_group // self.width, group * self.width + in_group % self.width

    def grid_positions(self, first_use: int, uses: int, blocks: range) -> "GridPositions":
        """The places of uses from `first_use` of a round on, which lie in the coherence blocks `blocks`."""
        block = torch.tensor(blocks)
        time = block // self.groups
        return GridPositions(*self.positions(first_use, uses), time, time * self.coherence_symbols // self.width)

    def num_symbols(self, uses: int) -> int:
        """The OFDM symbols that the first `uses` uses of a round touch; one that blocks or slots share counts once."""
        blocks = -(-uses // self.coherence_symbols)
        if blocks <= self.groups:
            return -(-min(uses, self.coherence_symbols) // self.width)
        # The longest group is the first one: all of its blocks but the last are whole.
        times = -(-blocks // self.groups)
        last = min(self.coherence_symbols, uses - (times - 1) * self.groups * self.coherence_symbols)
        return -(-((times - 1) * self.coherence_symbols + last) // self.width)
