"""Mixing: an orthogonal map of a target's entries before they are sent, so that every OFDM symbol has the same power.

Gradients have heavy tails: as they are, single OFDM symbols exceed the mean power by more than ten decibels. All
devices of a target use the same map, which therefore commutes with their sum, and the receiver undoes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Mixing = Literal["full", "permutation", "none"]
"""Which mixing of the entries before sending: with rotations, permutations only, or none."""

BLOCK = 256
"""Entries of a Hadamard block; blocks of 4096 lower the largest symbol by another 0.2 dB only."""

SMALLEST = 64
"""Entries below which a remainder is only permuted and gets signs."""


@dataclass(frozen=True)
class EntryMixing:
    """The map of a target's d entries: permutation, signs, Hadamard transforms of blocks, permutation.

    signs: None for a permutation alone. The last permutation spreads each block over the whole slot: Walsh functions
    have peaky spectra, so that a block on neighbouring subcarriers would be peaky in time.

    >>> import torch
    >>> mixing = EntryMixing.draw(300, "full", torch.Generator().manual_seed(0))
    >>> x = torch.randn(2, 300, dtype=torch.float64)
    >>> bool(torch.allclose(mixing.undo(mixing.apply(x)), x)), bool(torch.allclose(mixing.apply(x).norm(), x.norm()))
    (True, True)
    """

    first: Int[Tensor, " d"]
    signs: Float[Tensor, " d"] | None
    last: Int[Tensor, " d"]

    @classmethod
    def draw(cls, entries: int, mixing: Mixing, rng: torch.Generator) -> "EntryMixing":
        """Draw the map of `entries` entries. mixing: full or permutation."""
        first = torch.randperm(entries, generator=rng)
        if mixing == "permutation":
            return cls(first, None, torch.arange(entries))
        signs = 2.0 * torch.randint(2, (entries,), generator=rng).double() - 1.0
        return cls(first, signs, torch.randperm(entries, generator=rng))

    def to_array(self) -> Any:
        """The map as a NumPy array of three rows: first permutation, signs or zeros, last permutation."""
        signs = torch.zeros(len(self.first)) if self.signs is None else self.signs
        return torch.stack([self.first.double(), signs.double(), self.last.double()]).numpy()

    @classmethod
    def from_array(cls, array: Any) -> "EntryMixing":
        """Read what `to_array` writes."""
        first, signs, last = torch.as_tensor(array, dtype=torch.float64)
        return cls(first.long(), signs if bool(signs.any()) else None, last.long())

    def apply(self, x: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
        """Map the entries of each row."""
        if self.signs is None:
            return x[:, self.first]
        return rotate_blocks(x[:, self.first].mul_(self.signs))[:, self.last]

    def undo(self, y: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
        """Map back, the inverse of `apply`."""
        if self.signs is None:
            return torch.empty_like(y).index_copy_(1, self.first, y)
        x = rotate_blocks(torch.empty_like(y).index_copy_(1, self.last, y)).mul_(self.signs)
        return torch.empty_like(y).index_copy_(1, self.first, x)


def hadamard_blocks(
    entries: int, max_size: int = BLOCK, min_size: int = SMALLEST, padded: bool = False
) -> list[tuple[int, int, int]]:
    """The Hadamard blocks of a row as (first entry, blocks, size): blocks of `max_size`, then smaller powers of two.

    padded: whether the end of the row is padded to a block of `min_size`; otherwise fewer than `min_size` entries may
    remain without a transform.

    >>> hadamard_blocks(900)
    [(0, 3, 256), (768, 1, 128)]
    >>> hadamard_blocks(900, padded=True)
    [(0, 3, 256), (768, 1, 128), (896, 1, 64)]
    """
    parts, first, size = [], 0, max_size
    while size >= min_size:
        remaining = entries - first
        if count := -(-remaining // size) if padded and size == min_size else remaining // size:
            parts.append((first, count, size))
            first += count * size
        size //= 2
    return parts


def rotate_blocks(x: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
    """Transform the blocks of each row by normalised Hadamard matrices, in place; its own inverse."""
    for first, count, size in hadamard_blocks(x.shape[1]):
        part = x[:, first : first + count * size]
        part.copy_(hadamard(part.reshape(-1, size)).view_as(part))
    return x


def hadamard(x: Float[Tensor, "R n"]) -> Float[Tensor, "R n"]:
    """Multiply each row by the normalised Hadamard matrix of n entries, a power of two, by its Kronecker factors."""
    size = x.shape[1]
    factors = [16] * ((size.bit_length() - 1) // 4) + [1 << ((size.bit_length() - 1) % 4)]
    for factor in factors:
        # The last `factor` entries are transformed and become the leading axis, so that every factor has its turn.
        matrix = hadamard_matrix(factor, x.dtype)
        x = (x.reshape(len(x), -1, factor) @ matrix).transpose(1, 2).reshape(len(x), size)
    return x


@lru_cache(16)
def hadamard_matrix(size: int, dtype: torch.dtype) -> Float[Tensor, "{size} {size}"]:
    """The normalised Hadamard matrix in Sylvester's order."""
    index = torch.arange(size)
    bits = index[:, None] & index
    parity = sum(((bits >> shift) & 1 for shift in range(size.bit_length())), torch.zeros_like(bits)) % 2
    matrix: Tensor = (1.0 - 2.0 * parity.to(dtype)) * size**-0.5
    return matrix


@dataclass(frozen=True)
class GroupMixing:
    """The maps of a normaliser group: one for each length, because padding is not mixed.

    Targets of equal length share the map.
    """

    by_length: Mapping[int, EntryMixing]

    @classmethod
    def draw(cls, lengths: Int[Tensor, " K"], mixing: Mixing, rng: torch.Generator) -> "GroupMixing | None":
        """Draw the maps of all lengths of a group; None without mixing. Random: `rng`."""
        if mixing == "none":
            return None
        sizes = [int(length) for length in torch.unique(lengths) if length > 1]
        return cls({size: EntryMixing.draw(size, mixing, rng) for size in sizes})

    def apply(self, values: Float[Tensor, "R d"], lengths: Int[Tensor, " R"]) -> Float[Tensor, "R d"]:
        """Map the first `lengths` entries of each row."""
        return _map_lengths(values, lengths, {size: mixing.apply for size, mixing in self.by_length.items()})

    def undo(self, values: Float[Tensor, "R d"], lengths: Int[Tensor, " R"]) -> Float[Tensor, "R d"]:
        """Map back, the inverse of `apply`."""
        return _map_lengths(values, lengths, {size: mixing.undo for size, mixing in self.by_length.items()})


def _map_lengths(values: Tensor, lengths: Tensor, functions: Mapping[int, Callable[[Tensor], Tensor]]) -> Tensor:
    """Apply to the first entries of each row the function of its length; rows of other lengths stay."""
    out = values.clone()
    for size, function in functions.items():
        rows = (lengths == size).nonzero().flatten()
        if len(rows):
            out[rows, :size] = function(values[rows, :size])
    return out
