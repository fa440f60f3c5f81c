"""Checks of a packet before its numbers are used. Every failure is a one-line UserError."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.core.errors import UserError
from airpfed.devices.compression import (
    UPLINK_SCOPES,
    Payload,
    UplinkScope,
    decode_gradient,
    scale_groups,
    vector_bytes,
    vector_lengths,
)
from airpfed.devices.evaluate import NO_ANSWER
from airpfed.federation.message import Packet, safe_line
from airpfed.model.layout import Layout, Vectors
from airpfed.model.tokens import Encoding
from airpfed.training.evaluate import TaskView

SAMPLES_LIMIT = 10**9
"""The largest number of samples that a device may report."""

ROUNDS_LIMIT = 10**9
"""The largest number of rounds of a run."""

FLOPS_LIMIT = 10**18
"""The largest number of floating-point operations that a device may report for a round."""

LOSS_LIMIT = 1e6
"""The largest loss in nats that a device may report."""

TOKEN_CHARACTERS = 256
"""The largest number of characters per generated token in an answer."""


def refusal_reason(packet: Packet) -> str:
    """The reason of a refusal, as one line of bounded length."""
    return safe_line(packet.facts.get("why", "no reason given"))


def integer_of(packet: Packet, name: str, minimum: int, maximum: int) -> int:
    """An integer from the facts. Raises UserError unless it is a whole number from `minimum` to `maximum` (true and 1.0
    are not).
    """
    value = packet.facts.get(name)
    if type(value) is not int or not minimum <= value <= maximum:
        raise UserError(f"{name} = {safe_line(value, 40)}: should be a whole number from {minimum} to {maximum}")
    return value


def vector_of(packet: Packet, name: str, size: int) -> Float[Tensor, " {size}"]:
    """A finite float32 body of `size` entries. Raises UserError otherwise."""
    body = packet.bodies.get(name, b"")
    if len(body) != 4 * size:
        raise UserError(f"wrong shape: {name} has {len(body)} bytes, should have {4 * size}")
    vector = torch.frombuffer(bytearray(body), dtype=torch.float32) if size else torch.zeros(0)
    if not bool(vector.isfinite().all()):
        raise UserError(f"{name} is not finite")
    return vector


def samples_of(packet: Packet, vocabulary: int, longest: int) -> tuple[Encoding, ...]:
    """Prompts as token ids.

    longest: number of tokens of the longest allowed prompt. Raises UserError if a token is not in the vocabulary or the
    lengths do not add up.
    """
    ids, lengths = (integers(packet, name) for name in ("ids", "lengths"))
    if not lengths or min(lengths) < 1 or sum(lengths) != len(ids):
        raise UserError("wrong shape: the prompts' lengths do not add up")
    if max(lengths) > longest:
        raise UserError(f"a prompt has {max(lengths)} tokens, should have at most {longest} (model.max_tokens)")
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise UserError("a prompt has a token that the vocabulary does not have")
    place, samples = 0, []
    for length in lengths:
        samples.append(Encoding(tuple(ids[place : place + length]), (0,)))
        place += length
    return tuple(samples)


def integers(packet: Packet, name: str) -> list[int]:
    """The int32 numbers in a body; an empty list if the packet lacks it.

    Raises UserError if its length in bytes is no multiple of 4.
    """
    body = packet.bodies.get(name, b"")
    if len(body) % 4:
        raise UserError(f"wrong shape: {name} has {len(body)} bytes")
    found: list[int] = torch.frombuffer(bytearray(body), dtype=torch.int32).tolist() if body else []
    return found


def packed_integers(values: Sequence[int]) -> bytes:
    """The inverse of `integers`."""
    return torch.tensor(values, dtype=torch.int32).numpy().tobytes()


def samples_of_device(packet: Packet) -> int:
    """The number of samples D_k that a device reports."""
    samples = packet.facts.get("samples")
    if type(samples) is not int or not 1 <= samples <= SAMPLES_LIMIT:
        raise UserError(f"says that it holds {safe_line(samples, 40)} samples")
    return samples


def answers_of(packet: Packet, count: int, task: TaskView) -> list[Any]:
    """A model's answers to `count` prompts: class indices or NONE, or texts. Raises UserError if they are neither."""
    answers = packet.facts.get("said")
    if packet.kind != "done":
        raise UserError(refusal_reason(packet))
    if not isinstance(answers, list) or len(answers) != count:
        found = f"{len(answers)} answers" if isinstance(answers, list) else "no answers"
        raise UserError(f"it gives {found} to {count} prompts")
    if task.kind != "classify":
        longest = TOKEN_CHARACTERS * task.max_new_tokens
        if not all(isinstance(one, str) and len(one) <= longest for one in answers):
            raise UserError(f"some of its answers are not texts of at most {longest} characters")
    elif not all(type(one) is int and (one == NO_ANSWER or 0 <= one < len(task.labels)) for one in answers):
        raise UserError(f"some of its answers are none of the {len(task.labels)} classes of {task.name}")
    return answers


def loss_of(packet: Packet) -> float:
    """The loss that a device reports for its batches, in nats."""
    loss = packet.facts.get("loss")
    if not isinstance(loss, float) or not math.isfinite(loss):
        raise UserError("its loss is not a number")
    if not 0 <= loss <= LOSS_LIMIT:
        raise UserError(f"its loss is {loss:.3g}, should be from 0 to {LOSS_LIMIT:g}")
    return loss


def flops_of(packet: Packet) -> int:
    """The floating-point operations that a device reports for its work in a round."""
    return integer_of(packet, "flops", 0, FLOPS_LIMIT)


def gradient_of(packet: Packet, layout: Layout, task: int, payload: Payload, max_norm: float) -> tuple[Vectors, float]:
    """A device's gradient (one row per scope) and its loss. Raises UserError if shape, values or norm are wrong."""
    wanted = vector_lengths(layout, task)
    data: dict[UplinkScope, Tensor] = {}
    for scope in UPLINK_SCOPES:
        body = packet.bodies.get(scope, b"")
        right = vector_bytes(wanted[scope], scale_groups(layout, scope, wanted[scope]), payload)
        if len(body) != right:
            kind = "oversize" if len(body) > right else "wrong shape"
            raise UserError(f"{kind}: its {scope} gradient has {len(body)} bytes, should have {right}")
        data[scope] = torch.frombuffer(bytearray(body), dtype=torch.uint8) if right else torch.zeros(0).byte()
    rows = decode_gradient(data, layout, task, payload)
    norm = math.sqrt(sum(float(row.double().square().sum()) for row in rows.values()))
    if not math.isfinite(norm):
        raise UserError("its gradient is not finite")
    if norm > max_norm:
        raise UserError(f"its gradient has norm {norm:.3g}, should be at most {max_norm:g}")
    return rows, loss_of(packet)
