"""Requests to the resident trainer over its Unix socket. Sizes are checked before anything is read."""

import socket
import time
from pathlib import Path

from airpfed.federation.message import HEAD_LIMIT, BadPacketError, Packet, encoded, head_from, packet_from

PAUSE = 0.05
"""Seconds between attempts to reach a starting trainer."""


def exchange(path: Path, packet: Packet, seconds: float) -> Packet:
    """Send a packet to the trainer and return its answer. The trainer may still be starting, or may be restarted
    meanwhile.

    Raises TimeoutError after `seconds`, and BadPacketError if the answer is damaged.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
                line.settimeout(max(end - time.monotonic(), PAUSE))
                line.connect(str(path))
                line.sendall(encoded(packet))
                line.shutdown(socket.SHUT_WR)
                return read_packet(line, None)
        except (ConnectionError, FileNotFoundError, EOFError):
            time.sleep(PAUSE)
    raise TimeoutError(f"the trainer did not answer within {seconds:g} s")


def read_packet(line: socket.socket, limit: int | None) -> Packet:
    """Read one packet from a socket.

    limit: largest number of body bytes; None for no limit. Raises EOFError if the stream ends early, and BadPacketError
    if the packet is damaged or larger than `limit`.
    """
    size = int.from_bytes(read_exactly(line, 4), "big")
    if size > HEAD_LIMIT:
        raise BadPacketError(f"the head of the message is oversize: {size} bytes")
    head = read_exactly(line, size)
    lengths: dict[str, int] = head_from(head)["lengths"]
    total = sum(lengths.values())
    if limit is not None and total > limit:
        raise BadPacketError(f"the message is oversize: {total} bytes, at most {limit} are expected")
    return packet_from(head, {name: read_exactly(line, length) for name, length in lengths.items()})


def read_exactly(line: socket.socket, count: int) -> bytes:
    """Read `count` bytes. Raises EOFError if the other side closes the connection first."""
    parts = []
    while count:
        part = line.recv(min(count, 1 << 20))
        if not part:
            raise EOFError("the other side hung up")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
