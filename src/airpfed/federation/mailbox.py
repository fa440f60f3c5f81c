"""Questions to nodes and their answers, over Flower's grid, with our own deadline."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from flwr.app import Message

from airpfed.federation.flower_codec import TYPES, byte_count, content, parcel_of
from airpfed.federation.message import BadParcelError, Parcel, refusal

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
class Letter:
    """An answer: which node was asked what, what it said, and the bytes of the message (0 if none came)."""

    node: int
    asked: Parcel
    answer: Parcel
    size: int


@dataclass
class Post:
    """Letters under way. sent: message id -> (node, question, the moment it expires)."""

    grid: Grid
    sent: dict[str, tuple[int, Parcel, float]] = field(default_factory=dict)

    def send(self, parcels: Mapping[int, Parcel], seconds: float) -> int:
        """Ask each node its question, which lives so many seconds; returns the bytes sent."""
        messages = [
            Message(content(parcel), dst_node_id=node, message_type=TYPES[parcel.kind],
                    group_id=str(parcel.facts.get("round", "")), ttl=seconds)
            for node, parcel in parcels.items()
        ]  # fmt: skip
        total = sum(byte_count(message) for message in messages)
        expires = time.monotonic() + seconds
        for name, (node, parcel) in zip(self.grid.push_messages(messages), parcels.items(), strict=True):
            if name is not None:
                self.sent[name] = (node, parcel, expires)
        return total

    def receive(self) -> Iterator[Letter]:
        """Answers that have come since; each question is answered once at most, an error of Flower's is a refusal.

        Flower's own error replies come from the server, so answers are matched by the question's id alone.
        """
        now = time.monotonic()
        self.sent = {name: entry for name, entry in self.sent.items() if entry[2] - GRACE > now}
        for message in self.grid.pull_messages(list(self.sent)) if self.sent else ():
            entry = self.sent.pop(message.metadata.reply_to_message_id, None)
            if entry is not None:  # a second answer to a question finds its entry gone
                yield Letter(entry[0], entry[1], *_read(message))

    def busy(self) -> set[int]:
        """Nodes that have not answered yet, as far as the letter box knows."""
        return {node for node, _, _ in self.sent.values()}

    def waiting(self, parcels: Mapping[int, Parcel]) -> bool:
        """Whether any of these very questions is still open."""
        return any(parcels.get(node) is parcel for node, parcel, _ in self.sent.values())

    def until(self, done: Callable[[], bool], seconds: float) -> Iterator[Letter]:
        """Answers as they come, until `done` or the deadline."""
        end = time.monotonic() + seconds
        while True:
            yield from self.receive()
            if done() or time.monotonic() >= end:
                return
            time.sleep(POLL)


def _read(message: Message) -> tuple[Parcel, int]:
    """The parcel in an answer, and its bytes; whatever Flower's types make of a stranger's message is a refusal."""
    if message.has_error():
        return refusal(f"Flower says: {message.error.reason or message.error.code}"), 0
    size = 0
    try:
        size = byte_count(message)
        return parcel_of(message), size
    except BadParcelError as error:
        return refusal(str(error)), size
    except Exception as error:
        return refusal(f"the message cannot be read: {type(error).__name__}: {error}"), size
