"""Compression of gradients on their way to the server: exact, or rounded at random without bias.

A vector becomes bytes: one float32 scale per normaliser group (integer formats only), then the entries, little-endian.
An entry is rounded to one of its two neighbours, with the probabilities that make the expectation the entry itself.
The simulator and the federation use the same code.
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
"""Largest integer of a format. Integers run from -level to level, and a group's largest magnitude becomes its level."""

UplinkScope = Literal["global", "task"]
UPLINK_SCOPES: tuple[UplinkScope, ...] = ("global", "task")
"""Scopes of the vectors that devices send, in this order."""


def encode(
    vector: Float[Tensor, " d"], groups: Sequence[tuple[int, int]], payload: Payload, rng: torch.Generator
) -> UInt8[Tensor, " bytes"]:
    """A finite float32 vector as bytes. groups: columns that share a scale. Random: rounding, from `rng`."""
    if payload == "float32":
        return vector.contiguous().view(torch.uint8)
    if payload == "bfloat16":
        # Adding a random number below one unit in the last kept place, and then cutting, rounds the magnitude up with
        # a probability equal to the part that is cut off.
        bits = vector.contiguous().view(torch.int32).long() & 0xFFFFFFFF
        bits = (bits + torch.randint(1 << 16, vector.shape, generator=rng)) >> 16
        return torch.where(bits >= 1 << 15, bits - (1 << 16), bits).to(torch.int16).view(torch.uint8)
    level = LEVELS[payload]
    scales = torch.stack([vector[a:b].abs().max() / level for a, b in groups]) if groups else vector.new_zeros(0)
    scale = _scale_of_entries(scales, groups, len(vector))
    units = torch.where(scale > 0, vector / scale, 0.0)
    integers = (units + torch.rand(vector.shape, generator=rng)).floor().clamp(-level, level).to(torch.int8)
    body = _to_nibbles(integers) if payload == "int4" else integers.view(torch.uint8)
    return torch.cat([scales.contiguous().view(torch.uint8), body])


def decode(
    data: UInt8[Tensor, " bytes"], size: int, groups: Sequence[tuple[int, int]], payload: Payload
) -> Float[Tensor, " {size}"]:
    """The vector of `size` entries in `data`, which has `vector_bytes` bytes."""
    data = data.clone()  # aligned for views of wider types
    if payload == "float32":
        return data.view(torch.float32)
    if payload == "bfloat16":
        return data.view(torch.bfloat16).float()
    scales, body = data[: 4 * len(groups)].view(torch.float32), data[4 * len(groups) :]
    integers = _from_nibbles(body)[:size] if payload == "int4" else body.view(torch.int8)
    return integers.float() * _scale_of_entries(scales, groups, size)


def vector_bytes(size: int, groups: Sequence[tuple[int, int]], payload: Payload) -> int:
    """Bytes of a vector: its entries, rounded up to a whole byte, and one scale per group in integer formats."""
    return (size * BITS[payload] + 7) // 8 + (4 * len(groups) if payload in LEVELS else 0)


def vector_lengths(layout: Layout, task: int) -> dict[UplinkScope, int]:
    """Entries of each vector that a device of a task sends; the personal vector ends with its own task's classes."""
    return {"global": layout.size("global"), "task": layout.task_lengths[task]}


def scale_groups(layout: Layout, scope: UplinkScope, size: int) -> tuple[tuple[int, int], ...]:
    """Columns that share a scale: the scope's normaliser groups, cut at the end of a vector of `size` entries."""
    return tuple((a, min(b, size)) for a, b in layout.groups(scope) if a < size)


def bytes_per_device(layout: Layout, task: int, payload: Payload) -> int:
    """Bytes of the gradient that a device of a task sends."""
    lengths = vector_lengths(layout, task)
    return sum(vector_bytes(lengths[s], scale_groups(layout, s, lengths[s]), payload) for s in UPLINK_SCOPES)


def total_bytes(layout: Layout, task_of: Int[Tensor, " K"], payload: Payload) -> int:
    """Bytes of the gradients of all devices."""
    counts = torch.bincount(task_of).tolist()
    return sum(count * bytes_per_device(layout, task, payload) for task, count in enumerate(counts) if count)


def encode_gradient(
    gradient: Vectors, layout: Layout, task: int, payload: Payload, rng: torch.Generator
) -> dict[UplinkScope, UInt8[Tensor, " _bytes"]]:
    """One device's gradient (one row per scope) as bytes. Random: rounding, from `rng`."""
    lengths = vector_lengths(layout, task)
    return {
        s: encode(gradient[s][0, : lengths[s]], scale_groups(layout, s, lengths[s]), payload, rng)
        for s in UPLINK_SCOPES
    }


def decode_gradient(
    data: dict[UplinkScope, UInt8[Tensor, " _bytes"]], layout: Layout, task: int, payload: Payload
) -> Vectors:
    """The inverse of `encode_gradient`: one row per scope, 0 beyond the entries of the task."""
    rows: Vectors = {}
    for scope, size in vector_lengths(layout, task).items():
        row = torch.zeros(1, layout.size(scope))
        row[0, :size] = decode(data[scope], size, scale_groups(layout, scope, size), payload)
        rows[scope] = row
    return rows


def compress_gradients(
    gradients: Vectors,
    present: Bool[Tensor, " K"],
    layout: Layout,
    task_of: Int[Tensor, " K"],
    payload: Payload,
    seed: int,
    t: int,
) -> Vectors:
    """Gradients of all present devices encoded and decoded, as the server of round t gets them.

    Writes into `gradients` and returns it; rows of absent devices stay as they are. Random: `rounding_stream`.
    """
    if payload == "float32":
        return gradients
    for k in present.nonzero().flatten().tolist():
        task, gradient = int(task_of[k]), {scope: rows[k : k + 1] for scope, rows in gradients.items()}
        data = encode_gradient(gradient, layout, task, payload, rounding_stream(seed, k, t))
        for scope, row in decode_gradient(data, layout, task, payload).items():
            gradients[scope][k] = row[0]
    return gradients


def rounding_stream(seed: int, device: int, t: int) -> torch.Generator:
    """The generator that rounds a device's gradient in round t: stream (seed, "payload", device, t)."""
    return stream(seed, "payload", device, t)


def _scale_of_entries(scales: Tensor, groups: Sequence[tuple[int, int]], size: int) -> Tensor:
    counts = torch.tensor([b - a for a, b in groups], dtype=torch.long)
    return scales.repeat_interleave(counts, output_size=size)


def _to_nibbles(integers: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(integers.long() & 15, (0, len(integers) % 2))
    return (padded[0::2] | padded[1::2] << 4).to(torch.uint8)


def _from_nibbles(data: Tensor) -> Tensor:
    halves = torch.stack([data & 15, data >> 4], dim=1).flatten().long()
    return torch.where(halves > 7, halves - 16, halves)
