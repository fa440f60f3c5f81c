"""How a gradient travels: exact, or rounded at random so that its mean is exact; the same in the simulator.

A vector becomes bytes: a float32 scale per tensor group (integers only), then the entries, little-endian. Rounding is
to one of the two neighbours, up with the probability that makes the expectation the entry itself.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from airpfed.core.rng import stream
from airpfed.model.layout import Layout, Vectors

Payload = Literal["float32", "bfloat16", "int8", "int4"]

BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
LEVELS = {"int8": 127, "int4": 7}
"""Integers run from -level to level; a group's largest entry is sent as its level."""

Sent = Literal["global", "task"]
SENT: tuple[Sent, ...] = ("global", "task")
"""Scopes that travel, in this order."""


def encode(
    vector: Float[Tensor, " d"], groups: Sequence[tuple[int, int]], payload: Payload, rng: torch.Generator
) -> UInt8[Tensor, " bytes"]:
    """A finite float32 vector as bytes. groups: columns that share a scale. Random: rounding, from `rng`."""
    if payload == "float32":
        return vector.contiguous().view(torch.uint8)
    if payload == "bfloat16":
        # Adding less than one unit of the last place kept and cutting off: away from zero, in proportion to the rest.
        bits = vector.contiguous().view(torch.int32).long() & 0xFFFFFFFF
        bits = (bits + torch.randint(1 << 16, vector.shape, generator=rng)) >> 16
        return torch.where(bits >= 1 << 15, bits - (1 << 16), bits).to(torch.int16).view(torch.uint8)
    level = LEVELS[payload]
    scales = torch.stack([vector[a:b].abs().max() / level for a, b in groups]) if groups else vector.new_zeros(0)
    step = _spread(scales, groups, len(vector))
    units = torch.where(step > 0, vector / step, 0.0)
    whole = (units + torch.rand(vector.shape, generator=rng)).floor().clamp(-level, level).to(torch.int8)
    body = _nibbles(whole) if payload == "int4" else whole.view(torch.uint8)
    return torch.cat([scales.contiguous().view(torch.uint8), body])


def decode(
    data: UInt8[Tensor, " bytes"], size: int, groups: Sequence[tuple[int, int]], payload: Payload
) -> Float[Tensor, " {size}"]:
    """The vector that bytes of the right length (`byte_count`) stand for."""
    data = data.clone()  # where it starts, views of wider numbers may start
    if payload == "float32":
        return data.view(torch.float32)
    if payload == "bfloat16":
        return data.view(torch.bfloat16).float()
    scales, body = data[: 4 * len(groups)].view(torch.float32), data[4 * len(groups) :]
    whole = _from_nibbles(body)[:size] if payload == "int4" else body.view(torch.int8)
    return whole.float() * _spread(scales, groups, size)


def byte_count(size: int, groups: Sequence[tuple[int, int]], payload: Payload) -> int:
    """Bytes of a vector: its entries, whole bytes, and a scale per group where there are scales."""
    return (size * BITS[payload] + 7) // 8 + (4 * len(groups) if payload in LEVELS else 0)


def sizes(layout: Layout, task: int) -> dict[Sent, int]:
    """Entries of each vector that a device of a task sends: its task's own head only."""
    return {"global": layout.size("global"), "task": layout.task_lengths[task]}


def groups_of(layout: Layout, scope: Sent, size: int) -> tuple[tuple[int, int], ...]:
    """Columns that share a scale: a scope's normaliser groups, cut where the task's vector ends."""
    return tuple((a, min(b, size)) for a, b in layout.groups(scope) if a < size)


def device_bytes(layout: Layout, task: int, payload: Payload) -> int:
    """Bytes of the gradient that a device of a task sends."""
    found = sizes(layout, task)
    return sum(byte_count(found[s], groups_of(layout, s, found[s]), payload) for s in SENT)


def all_bytes(layout: Layout, task_of: Int[Tensor, " K"], payload: Payload) -> int:
    """Bytes of the gradients of all devices."""
    counts = torch.bincount(task_of).tolist()
    return sum(count * device_bytes(layout, task, payload) for task, count in enumerate(counts) if count)


def encoded(
    gradient: Vectors, layout: Layout, task: int, payload: Payload, rng: torch.Generator
) -> dict[Sent, UInt8[Tensor, " _bytes"]]:
    """The sent scopes of one device's gradient (one row each) as bytes."""
    found = sizes(layout, task)
    return {s: encode(gradient[s][0, : found[s]], groups_of(layout, s, found[s]), payload, rng) for s in SENT}


def decoded(data: dict[Sent, UInt8[Tensor, " _bytes"]], layout: Layout, task: int, payload: Payload) -> Vectors:
    """The inverse: one row a scope, zero beyond the task's own entries."""
    rows: Vectors = {}
    for scope in SENT:
        size = sizes(layout, task)[scope]
        row = torch.zeros(1, layout.size(scope))
        row[0, :size] = decode(data[scope], size, groups_of(layout, scope, size), payload)
        rows[scope] = row
    return rows


def rounded(
    gradients: Vectors,
    present: Bool[Tensor, " K"],
    layout: Layout,
    task_of: Int[Tensor, " K"],
    payload: Payload,
    seed: int,
    t: int,
) -> Vectors:
    """Gradients of all devices as they come out of their payload in round t, in place of those given.

    An absent device's row stays as it is.
    """
    if payload == "float32":
        return gradients
    for k in present.nonzero().flatten().tolist():
        task, own = int(task_of[k]), {s: rows[k : k + 1] for s, rows in gradients.items()}
        data = encoded(own, layout, task, payload, rounding(seed, k, t))
        for scope, row in decoded(data, layout, task, payload).items():
            gradients[scope][k] = row[0]
    return gradients


def rounding(seed: int, device: int, t: int) -> torch.Generator:
    """The stream that rounds a device's gradient in round t."""
    return stream(seed, "payload", device, t)


def _spread(scales: Tensor, groups: Sequence[tuple[int, int]], size: int) -> Tensor:
    """Each entry's scale."""
    counts = torch.tensor([b - a for a, b in groups], dtype=torch.long)
    return scales.repeat_interleave(counts, output_size=size)


def _nibbles(whole: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(whole.long() & 15, (0, len(whole) % 2))
    return (padded[0::2] | padded[1::2] << 4).to(torch.uint8)


def _from_nibbles(data: Tensor) -> Tensor:
    halves = torch.stack([data & 15, data >> 4], dim=1).flatten().long()
    return torch.where(halves > 7, halves - 16, halves)
