"""Packets between server and devices: a kind, JSON facts and named bytes; never pickle.

On a socket a packet is the length of its head (4 bytes, big-endian), the head as JSON, and the bodies in order. This
module imports neither torch nor Flower, so that the relaying process starts fast.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HEAD_LIMIT = 1 << 24
"""The largest head in bytes. Facts are hashes, numbers and, in `answer`, short texts."""

DEPTH = 8
"""The largest nesting depth of JSON tables and lists; facts need three levels."""

NUMBER = 2**63
"""The bound on whole numbers in a head, so that they fit into 64 bits."""

LINE = 300
"""The longest text from another machine that is shown, in characters."""

KEYS: dict[str, type] = {"kind": str, "facts": dict, "lengths": dict, "sha256": str}
"""The keys of a head and their types."""


class BadPacketError(ValueError):
    """Bytes that are not a valid packet, or not the bytes that were sent. The text is one line."""


@dataclass(frozen=True)
class Packet:
    """A message between server and device.

    kind: request or answer. facts: JSON values. bodies: named bytes, none of them empty.
    """

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    bodies: Mapping[str, bytes] = field(default_factory=dict)


def safe_line(value: object, limit: int = LINE) -> str:
    """Text from another machine as one safe line.

    White space becomes one space. Characters that move the cursor, reverse the writing or cannot be encoded become
    question marks. Text beyond `limit` is cut.
    """
    text = value if isinstance(value, str) else repr(value)
    words = " ".join(text[: 4 * limit].split())
    shown = "".join(sign if sign.isprintable() else "?" for sign in words)
    return shown if len(shown) <= limit and len(text) <= 4 * limit else shown[: limit - 3] + "..."


def refusal(reason: str) -> Packet:
    """The answer that refuses a request, with the reason."""
    return Packet("refused", {"why": safe_line(reason)})


def head_of(packet: Packet) -> str:
    """The head of a packet as JSON: kind, facts, body lengths and the sha256 of the packet."""
    lengths = {name: len(body) for name, body in packet.bodies.items()}
    return json.dumps(
        {"kind": packet.kind, "facts": dict(packet.facts), "lengths": lengths, "sha256": digest(packet)},
        allow_nan=False,
    )


def packet_from(head: str | bytes, bodies: Mapping[str, bytes]) -> Packet:
    """The packet with this head and these bodies. Raises BadPacketError if they do not belong together."""
    tree = head_from(head)
    kind, facts, lengths, sha256 = (tree[key] for key in KEYS)
    if {name: len(body) for name, body in bodies.items()} != lengths:
        raise BadPacketError("the message is not as long as its head says")
    packet = Packet(kind, facts, dict(bodies))
    if digest(packet) != sha256:
        raise BadPacketError("the message is corrupted (its sha256 differs)")
    return packet


def head_from(head: str | bytes) -> dict[str, Any]:
    """A parsed head with all keys of the right types. Raises BadPacketError otherwise."""
    if len(head) > HEAD_LIMIT:
        raise BadPacketError(f"the head of the message is oversize: {len(head)} bytes")

    def none(name: str) -> Any:
        raise ValueError(name)  # NaN and infinities are not JSON

    try:
        tree = json.loads(head, parse_constant=none)
        good = all(isinstance(tree[key], kind) for key, kind in KEYS.items()) and is_bounded(tree, DEPTH)
        good = good and all(type(length) is int and length > 0 for length in tree["lengths"].values())
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise BadPacketError("the head of the message is not what this version writes")
    found: dict[str, Any] = tree
    return found


def is_bounded(value: Any, depth: int) -> bool:
    """Whether a JSON value is not too deep, its floats are finite and its integers are below `NUMBER`."""
    match value:
        case dict():
            return depth > 0 and all(is_bounded(one, depth - 1) for one in value.values())
        case list():
            return depth > 0 and all(is_bounded(one, depth - 1) for one in value)
        case float():
            return math.isfinite(value)
        case int():
            return abs(value) < NUMBER
        case _:
            return True


def digest(packet: Packet) -> str:
    """sha256 over kind, facts and bodies."""
    text = json.dumps([packet.kind, dict(packet.facts), sorted(packet.bodies)], sort_keys=True, allow_nan=False)
    found = hashlib.sha256(text.encode())
    for name in sorted(packet.bodies):
        found.update(packet.bodies[name])
    return found.hexdigest()


def encoded(packet: Packet) -> bytes:
    """A packet as bytes for a socket."""
    head = head_of(packet).encode()
    return b"".join([len(head).to_bytes(4, "big"), head, *packet.bodies.values()])
