"""Requests to nodes and their replies over Flower's grid, with our own deadline."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from flwr.app import Message

from airpfed.federation.flower_codec import TYPES, byte_count, content, packet_of
from airpfed.federation.message import BadPacketError, Packet, refusal

POLL = 0.2
"""Seconds between polls for replies."""

GRACE = 5.0
"""Polling for a reply ends this many seconds before its request expires: Flower 1.41 fails on an expired message."""


@runtime_checkable
class Grid(Protocol):
    """The part of Flower's grid that is used here."""

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the connected nodes."""
        ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages. Returns their ids in the same order."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these messages that have arrived since the last call."""
        ...


@dataclass(frozen=True)
class Reply:
    """A node's answer to a request.

    size: bytes of the message, or 0 if none arrived.
    """

    node: int
    request: Packet
    answer: Packet
    size: int


@dataclass
class Mailbox:
    """Open requests.

    pending: message id -> (node, request, expiry time).
    """

    grid: Grid
    pending: dict[str, tuple[int, Packet, float]] = field(default_factory=dict)

    def send(self, packets: Mapping[int, Packet], seconds: float) -> int:
        """Send one request to each node, valid for `seconds`. Returns the bytes sent."""
        messages = [
            Message(content(packet), dst_node_id=node, message_type=TYPES[packet.kind],
                    group_id=str(packet.facts.get("round", "")), ttl=seconds)
            for node, packet in packets.items()
        ]  # fmt: skip
        total = sum(byte_count(message) for message in messages)
        expires = time.monotonic() + seconds
        for name, (node, packet) in zip(self.grid.push_messages(messages), packets.items(), strict=True):
            if name is not None:
                self.pending[name] = (node, packet, expires)
        return total

    def receive(self) -> Iterator[Reply]:
        """Replies that have arrived since the last call. Each request is answered at most once; an error from Flower is
        a refusal.

        Flower's own error replies come from the server, so a reply is matched only by the id of its request.
        """
        now = time.monotonic()
        self.pending = {name: entry for name, entry in self.pending.items() if entry[2] - GRACE > now}
        for message in self.grid.pull_messages(list(self.pending)) if self.pending else ():
            entry = self.pending.pop(message.metadata.reply_to_message_id, None)
            if entry is not None:  # the entry is gone for a second answer
                yield Reply(entry[0], entry[1], *_read(message))

    def busy(self) -> set[int]:
        """Nodes with an open request."""
        return {node for node, _, _ in self.pending.values()}

    def waiting(self, packets: Mapping[int, Packet]) -> bool:
        """Whether any of these requests is still open."""
        return any(packets.get(node) is packet for node, packet, _ in self.pending.values())

    def until(self, done: Callable[[], bool], seconds: float) -> Iterator[Reply]:
        """Yield replies as they arrive, until `done()` is true or `seconds` have passed."""
        end = time.monotonic() + seconds
        while True:
            yield from self.receive()
            if done() or time.monotonic() >= end:
                return
            time.sleep(POLL)


def _read(message: Message) -> tuple[Packet, int]:
    """The packet in a Flower message, and its size in bytes. A message that cannot be read becomes a refusal."""
    if message.has_error():
        return refusal(f"Flower says: {message.error.reason or message.error.code}"), 0
    size = 0
    try:
        size = byte_count(message)
        return packet_of(message), size
    except BadPacketError as error:
        return refusal(str(error)), size
    except Exception as error:
        return refusal(f"the message cannot be read: {type(error).__name__}: {error}"), size
