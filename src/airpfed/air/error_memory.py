"""What devices know that they did not send in a round, so that they can add it to their next gradients.

A device knows its transmit factors by feedback. Where its factor is 0, by the design or in a fade, no entry of the
block was sent. Of a scheme without superposition, the scheme's own function says what it left out. What the channel
loses, in noise or in an outage, no device knows, and nothing of it is kept (AirFL-Mem, Wen et al., arXiv 2310.16606).
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air.problem import Transceiver
from airpfed.air.row_chunks import row_chunks
from airpfed.air.schedule import SlotPlan, Updates, Uplink
from airpfed.air.segments import Segment
from airpfed.air.symbols import entries_per_use, zero_tail
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
    group, per_use = segment.group, entries_per_use(link.packing)
    entries = group.entries
    assert not isinstance(entries, Tensor), "the entries of a round are read from its gradients"
    # A stream that hardly varies has an infinite divisor and sends zeros, whatever its factor.
    silent: Bool[Tensor, "B K"] = (transceiver.transmit_factors == 0) | entries.divisor.isinf()
    for rows in row_chunks(*entries.shape):
        if not bool(silent[:, rows].any()):
            continue
        lengths = entries.lengths[rows]
        deviation = entries.vectors.take(rows, entries.first, entries.last).sub_(entries.mean[rows, None])
        deviation = zero_tail(deviation, lengths)
        if entries.mixing is not None:  # what a block carries are mixed entries
            deviation = entries.mixing.apply(deviation, lengths)
        remaining = torch.zeros_like(deviation)
        for block, (a, b) in enumerate(segment.block_ranges):
            columns = slice(per_use * a, per_use * b)
            remaining[:, columns] = torch.where(silent[block, rows, None], deviation[:, columns], 0.0)
        if entries.mixing is not None:
            remaining = entries.mixing.undo(remaining, lengths)
        yield rows, entries.first, zero_tail(remaining, lengths)


def stream_owners(slot: SlotPlan, updates: Updates, rows: slice) -> Iterator[tuple[UnsentScope, slice, Tensor]]:
    """Yield (scope, streams counted from the first of `rows`, their devices) for some streams of a slot."""
    begin = 0
    for source, devices in slot.vectors.parts:
        first, last = max(rows.start, begin), min(rows.stop, begin + len(devices))
        if first < last:
            scope: UnsentScope = "global" if source is updates.shared else "task"
            yield scope, slice(first - rows.start, last - rows.start), devices[first - begin : last - begin]
        begin += len(devices)
