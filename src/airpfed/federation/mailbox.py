"""Questions to nodes and their answers, over Flower's grid, with our own deadline."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from flwr.app import Message

from airpfed.federation.flower_codec import TYPES, byte_count, content, packet_of
from airpfed.federation.message import BadPacketError, Packet, refusal

POLL = 0.2
"""Seconds between looks into the letter box."""

GRACE = 5.0
"""Seconds before a message expires from which on it is not asked for: Flower 1.41 fails on one that is gone."""


@runtime_checkable
class Grid(Protocol):
    """What is used of Flower's grid."""

    def get_node_ids(self) -> Iterable[int]:
        """Nodes that are there."""
        ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send; the ids of the messages, in order."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these messages that have come since."""
        ...


@dataclass(frozen=True)
class Reply:
    """An answer: which node was asked what, what it said, and the bytes of the message (0 if none came)."""

    node: int
    request: Packet
    answer: Packet
    size: int


@dataclass
class Mailbox:
    """Letters under way. pending: message id -> (node, question, the moment it expires)."""

    grid: Grid
    pending: dict[str, tuple[int, Packet, float]] = field(default_factory=dict)

    def send(self, packets: Mapping[int, Packet], seconds: float) -> int:
        """Ask each node its question, which lives so many seconds; returns the bytes sent."""
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
        """Answers that have come since; each question is answered once at most, an error of Flower's is a refusal.

        Flower's own error replies come from the server, so answers are matched by the question's id alone.
        """
        now = time.monotonic()
        self.pending = {name: entry for name, entry in self.pending.items() if entry[2] - GRACE > now}
        for message in self.grid.pull_messages(list(self.pending)) if self.pending else ():
            entry = self.pending.pop(message.metadata.reply_to_message_id, None)
            if entry is not None:  # a second answer to a question finds its entry gone
                yield Reply(entry[0], entry[1], *_read(message))

    def busy(self) -> set[int]:
        """Nodes that have not answered yet, as far as the letter box knows."""
        return {node for node, _, _ in self.pending.values()}

    def waiting(self, packets: Mapping[int, Packet]) -> bool:
        """Whether any of these very questions is still open."""
        return any(packets.get(node) is packet for node, packet, _ in self.pending.values())

    def until(self, done: Callable[[], bool], seconds: float) -> Iterator[Reply]:
        """Answers as they come, until `done` or the deadline."""
        end = time.monotonic() + seconds
        while True:
            yield from self.receive()
            if done() or time.monotonic() >= end:
                return
            time.sleep(POLL)


def _read(message: Message) -> tuple[Packet, int]:
    """The parcel in an answer, and its bytes; whatever Flower's types make of a stranger's message is a refusal."""
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
