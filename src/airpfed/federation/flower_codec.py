"""Packets as Flower messages: the head in a config record, the bodies as raw bytes in an array record."""

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import Array

from airpfed.federation.message import BadPacketError, Packet, head_of, packet_from

TYPES = {"hello": "query.hello", "train": "train", "answer": "evaluate", "finish": "query.finish"}
"""Kind of a request -> Flower's message type."""


def content(packet: Packet) -> RecordDict:
    """A packet as the content of a Flower message. Flower splits long bodies into chunks by itself."""
    arrays = {name: Array("uint8", (len(body),), "airpfed.raw", body) for name, body in packet.bodies.items()}
    return RecordDict({"head": ConfigRecord({"json": head_of(packet)}), "bodies": ArrayRecord(arrays)})


def packet_of(message: Message) -> Packet:
    """The packet in a Flower message. Raises BadPacketError if there is none."""
    found = message.content.get("head"), message.content.get("bodies")
    if not isinstance(found[0], ConfigRecord) or not isinstance(found[1], ArrayRecord):
        raise BadPacketError("the message has no head and bodies")
    head = found[0].get("json")
    if not isinstance(head, str):
        raise BadPacketError("the message has no head and bodies")
    return packet_from(head, {name: array.data for name, array in found[1].items()})


def byte_count(message: Message) -> int:
    """Bytes of a message's records, as Flower counts them."""
    return sum(record.count_bytes() for record in message.content.values())
