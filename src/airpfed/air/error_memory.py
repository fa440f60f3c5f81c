"""What devices know that they did not send in a round, so that they can add it to their next gradients.

A device knows its transmit factors by feedback. Where its factor is 0, by the design or in a fade, no entry of the
block was sent. Of a scheme without superposition, the scheme's own function says what it left out. What the channel
loses, in noise or in an outage, no device knows, and nothing of it is kept (AirFL-Mem, Wen et al., arXiv 2310.16606).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air.blockwise import over_uses
from airpfed.air.mixing import GroupMixing, Mixing
from airpfed.air.problem import Transceiver
from airpfed.air.row_chunks import Rows, row_chunks
from airpfed.air.schedule import SlotPlan, Updates, Uplink
from airpfed.air.segments import Segment, mixing_stream
from airpfed.air.symbols import Entries, entries_per_use, normalise_group, zero_tail
from airpfed.core import memory

UnsentScope = Literal["global", "task"]
"""Scopes of the vectors that devices send."""


def unsent_updates(
    link: Uplink,
    memory_bytes: float,
    updates: Updates,
    slots: Sequence[SlotPlan],
    segments: Sequence[Segment],
    transceivers: Sequence[Transceiver],
) -> dict[UnsentScope, Float[Tensor, "K d"]]:
    """What each device did not send of its vectors in a round, by scope; zeros for absent devices.

    memory_bytes: size of both matrices beyond which they lie in a temporary file. Of a vector whose mean travels as
    side information, only the deviation from the mean is unsent.
    """
    sources: dict[UnsentScope, Tensor] = {"global": updates.shared, "task": updates.personal}
    total = max(1, sum(source.shape[1] for source in sources.values()))
    unsent: dict[UnsentScope, Tensor] = {
        scope: memory.allocate_matrix(len(source), source.shape[1], memory_bytes * source.shape[1] / total)
        for scope, source in sources.items()
    }
    for slot in slots:
        pairs = [pair for pair in zip(segments, transceivers, strict=True) if pair[0].slot is slot]
        parts = chain.from_iterable(silent_entries(link, *pair) for pair in pairs)
        if link.unsent is not None:
            chunks = row_chunks(*slot.vectors.shape)
            parts = chain(parts, ((rows, 0, link.unsent(slot.vectors[rows], slot.lengths[rows])) for rows in chunks))
        for rows, first, values in parts:
            for scope, streams, devices in stream_owners(slot, updates, rows):
                matrix = unsent[scope]
                end = min(first + values.shape[1], matrix.shape[1])
                matrix[devices, first:end] += values[streams, : end - first].to(matrix.dtype)
                memory.release_pages(matrix)
    return unsent


def silent_entries(
    link: Uplink, segment: Segment, transceiver: Transceiver
) -> Iterator[tuple[slice, int, Float[Tensor, "k d"]]]:
    """Yield streams of a segment, their first column, and their entries in the blocks in which they were silent."""
    entries, silent = normalised_entries(segment), silent_blocks(segment, transceiver)
    for rows in row_chunks(*entries.shape):
        if bool(silent[:, rows].any()):
            where = over_uses(silent[:, rows], segment.block_ranges, entries_per_use(link.packing))
            yield rows, entries.first, part_of(entries, rows, where[:, : entries.shape[1]])


def normalised_entries(segment: Segment) -> Entries:
    """The entries of a segment, which are read from the round's gradients."""
    entries = segment.group.entries
    assert not isinstance(entries, Tensor), "the entries of a round are read from its gradients"
    return entries


def silent_blocks(segment: Segment, transceiver: Transceiver) -> Bool[Tensor, "B K"]:
    """Whether each stream sent nothing in a block: its factor is 0, or it hardly varies and sends zeros."""
    return (transceiver.transmit_factors == 0) | normalised_entries(segment).divisor.isinf()


def part_of(entries: Entries, rows: slice, silent: Bool[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    """What some streams' vectors, less their means, hold in the silent entries; these are mixed ones if any are."""
    lengths = entries.lengths[rows]
    deviation = entries.vectors.take(rows, entries.first, entries.last).sub_(entries.mean[rows, None])
    deviation = zero_tail(deviation, lengths)
    if entries.mixing is not None:
        deviation = entries.mixing.apply(deviation, lengths)
    remaining = torch.where(silent, deviation, 0.0)
    if entries.mixing is not None:
        remaining = entries.mixing.undo(remaining, lengths)
    return zero_tail(remaining, lengths)


# What devices of a federation are told


@dataclass(frozen=True)
class Silence:
    """Where a device was silent in a group of a slot: what it knows by its transmit factors.

    scope: of its vector. slot: name of the slot. first, last: columns of the group. lengths: numbers of entries that
    streams of the slot have in it, from which the mixing is drawn. entries: ranges [first, last) of silent entries of
    the group, in the order in which they are sent.
    """

    scope: UnsentScope
    slot: str
    first: int
    last: int
    lengths: tuple[int, ...]
    entries: tuple[tuple[int, int], ...]


def silences(
    link: Uplink,
    updates: Updates,
    slots: Sequence[SlotPlan],
    segments: Sequence[Segment],
    transceivers: Sequence[Transceiver],
) -> dict[int, tuple[Silence, ...]]:
    """Where each present device was silent in a round."""
    told: dict[int, tuple[Silence, ...]] = {int(device): () for device in updates.present.nonzero().flatten()}
    per_use = entries_per_use(link.packing)
    for segment, transceiver in zip(segments, transceivers, strict=True):
        slot, entries, silent = segment.slot, normalised_entries(segment), silent_blocks(segment, transceiver)
        lengths = tuple(torch.unique(entries.lengths).tolist())
        for scope, streams, devices in stream_owners(slot, updates, slice(0, entries.shape[0])):
            for row, device in zip(range(streams.start, streams.stop), devices.tolist(), strict=True):
                ranges = joined_ranges(
                    (per_use * first, min(per_use * last, entries.shape[1]))
                    for is_silent, (first, last) in zip(silent[:, row].tolist(), segment.block_ranges, strict=True)
                    if is_silent
                )
                if ranges and int(entries.lengths[row]):
                    one = Silence(scope, slot.name, entries.first, entries.last, lengths, ranges)
                    told[device] = (*told[device], one)
    return told


def joined_ranges(ranges: Iterator[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Ascending ranges with those joined that touch."""
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def unsent_in_silence(
    vectors: Mapping[UnsentScope, Float[Tensor, "1 _d"]],
    lengths: Mapping[UnsentScope, int],
    groups: Sequence[Silence],
    t: int,
    *,
    seed: int,
    mixing: Mixing,
    centred: bool,
) -> dict[UnsentScope, Float[Tensor, "1 _d"]]:
    """What a device did not send of its vectors in round t, where it was silent: its row of `unsent_updates`.

    lengths: entries of its vectors, zeros follow. seed, mixing: those of the link. centred: whether the normaliser is
    the device's own, with a mean that it tells.
    """
    left: dict[UnsentScope, Tensor] = {scope: torch.zeros_like(vector) for scope, vector in vectors.items()}
    for one in groups:
        rows = Rows(((vectors[one.scope], torch.zeros(1, dtype=torch.int64)),), one.last)
        length, weights = torch.tensor([lengths[one.scope]]), torch.ones(1, 1, dtype=torch.float64)
        columns = one.first, one.last
        entries = normalise_group(rows, length, weights, None if centred else 1.0, columns).entries
        assert isinstance(entries, Entries)
        rng = mixing_stream(seed, t, one.slot, one.first)
        entries = replace(entries, mixing=GroupMixing.draw(torch.tensor(one.lengths), mixing, rng))
        silent = torch.zeros(entries.shape, dtype=torch.bool)
        for first, last in one.entries:
            silent[:, first:last] = True
        target = left[one.scope][:, slice(*columns)]
        target += part_of(entries, slice(0, 1), silent)[:, : target.shape[1]].to(target.dtype)
    return left


def stream_owners(slot: SlotPlan, updates: Updates, rows: slice) -> Iterator[tuple[UnsentScope, slice, Tensor]]:
    """Yield (scope, streams counted from the first of `rows`, their devices) for some streams of a slot."""
    begin = 0
    for source, devices in slot.vectors.parts:
        first, last = max(rows.start, begin), min(rows.stop, begin + len(devices))
        if first < last:
            scope: UnsentScope = "global" if source is updates.shared else "task"
            yield scope, slice(first - rows.start, last - rows.start), devices[first - begin : last - begin]
        begin += len(devices)
