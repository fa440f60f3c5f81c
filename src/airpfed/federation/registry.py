"""The server's list of devices: the node of each, its number of samples, and the last line logged about it."""

import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from airpfed.core.errors import UserError
from airpfed.federation.handshake import Agreement, difference
from airpfed.federation.message import Packet, safe_line
from airpfed.federation.validate import refusal_reason, samples_of_device

AGAIN = 5.0
"""Seconds until a node that was refused or did not answer receives the next hello."""


@dataclass
class Registry:
    """The devices as the server knows them.

    task_of: task of each device. agreements: the agreement of each task. device_of_node: node -> device by registered
    key, or None if nodes say which device they are. log: a function that receives lines; a repeated line about the same
    node is dropped.
    """

    task_of: list[int]
    agreements: list[Agreement]
    device_of_node: Mapping[int, int] | None
    log: Callable[[str], None]
    nodes: dict[int, int] = field(default_factory=dict)
    samples: list[int] = field(default_factory=list)
    hello_times: dict[int, float] = field(default_factory=dict)
    last_lines: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Set all sample counts to 0."""
        self.samples = [0] * len(self.task_of)

    def connected(self, ids: Set[int]) -> dict[int, int]:
        """Connected nodes that were admitted: node -> device, in the order of devices."""
        found = {node: device for node, device in self.nodes.items() if node in ids}
        for device in set(self.nodes.values()):
            self.line(f"device {device}", "is here" if device in found.values() else "is gone")
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def unknown(self, ids: Set[int]) -> list[int]:
        """Nodes that should receive a hello now."""
        now = time.monotonic()
        new = [
            node for node in sorted(ids) if node not in self.nodes and self.hello_times.get(node, 0.0) + AGAIN <= now
        ]
        self.hello_times.update(dict.fromkeys(new, now))
        return new

    def admit(self, node: int, answer: Packet) -> None:
        """Admit the node that sent this answer to a hello, or log why it is refused."""
        known = self.device_of_node.get(node) if self.device_of_node is not None else None
        name = f"node {node}" if known is None else f"device {known}"
        try:
            device, samples = self._checked(node, answer)
        except UserError as error:
            self.line(name, f"refused: {error}")
            return
        self.nodes = {other: owner for other, owner in self.nodes.items() if owner != device} | {node: device}
        self.samples[device] = samples
        self.line(f"device {device}", "is here")

    def _checked(self, node: int, answer: Packet) -> tuple[int, int]:
        if answer.kind != "done":
            raise UserError(refusal_reason(answer))
        device = answer.facts.get("device")
        if type(device) is not int or not 0 <= device < len(self.task_of):
            raise UserError(f"says it is device {safe_line(device, 40)}; should be from 0 to {len(self.task_of) - 1}")
        if self.device_of_node is not None and self.device_of_node.get(node) != device:
            raise UserError(f"says it is device {device}, but its key is of {self.device_of_node.get(node, 'none')}")
        if why := difference(self.agreements[self.task_of[device]], answer.facts.get("agreement")):
            raise UserError(why)
        return device, samples_of_device(answer)

    def line(self, name: str, text: str) -> None:
        """Log a line about a device or node unless it repeats the last one."""
        if self.last_lines.get(name) != text:
            self.last_lines[name] = text
            self.log(f"{name} {text}")
