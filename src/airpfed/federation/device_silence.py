"""Where devices were silent on the air: kept by the server until each device asks, and checked by the device.

A device with an error memory keeps what it did not send. Over a real radio it knows its silence by its transmit
factors; here the server plays the channel, and tells the device with the next question. The device may be away for
rounds, so the server keeps what belongs to the last round in which it counted the device.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from airpfed.air.error_memory import Silence, UnsentScope
from airpfed.core import files, run_files
from airpfed.core.errors import UserError
from airpfed.federation.message import Packet

FILE = "silence.json"
"""The file beside a checkpoint with what devices have not been told yet."""

Whole = Annotated[int, Field(ge=0, le=2**40)]


class Group(run_files.Record):
    """A `Silence` as JSON."""

    scope: Literal["global", "task"]
    slot: Annotated[str, Field(max_length=10_000)]
    first: Whole
    last: Whole
    lengths: list[Whole]
    entries: list[tuple[Whole, Whole]]


class SilentRound(run_files.Record):
    """Where a device was silent in a round in which it was counted."""

    round: Whole
    groups: list[Group]


class Records(run_files.Record):
    """silence.json: device -> its last two rounds, because a killed server may play the last one again."""

    devices: dict[int, list[SilentRound]]


@dataclass
class SilenceRecords:
    """What the server keeps, in a file at `path`."""

    path: Path
    devices: dict[int, list[SilentRound]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, resume: bool) -> "SilenceRecords":
        """The records of a new run, which are written, or those of the file. Raises UserError if there is no file."""
        if not resume:
            records = cls(path)
            records.write()
            return records
        found = run_files.read_json(path, Records)
        if found is None:
            raise UserError(f"{path}: missing; restore it, or start a new run with another --out")
        return cls(path, found.devices)

    def add(self, t: int, silences: Mapping[int, tuple[Silence, ...]]) -> None:
        """Keep where the devices counted in round t were silent. It is on the disk before the round's checkpoint is."""
        for device, groups in silences.items():
            found = SilentRound(round=t, groups=[Group.model_validate(asdict(one)) for one in groups])
            earlier = [one for one in self.devices.get(device, []) if one.round < t]
            self.devices[device] = [*earlier[-1:], found]
        self.write()

    def write(self) -> None:
        """Write the file atomically."""
        files.write_atomic(self.path, Records(devices=self.devices).model_dump_json() + "\n")

    def fact(self, device: int, rounds: int) -> dict[str, Any] | None:
        """What a device is told after `rounds` rounds: of the last one that counted it; None before that."""
        known = [one for one in self.devices.get(device, []) if one.round <= rounds]
        return known[-1].model_dump(mode="json") if known else None


def checked_silences(
    packet: Packet, t: int, lengths: Mapping[UnsentScope, int], width: int, tasks: int
) -> tuple[Silence, ...]:
    """Where the server says that the device was silent in round t, the last one in which it was counted.

    lengths: entries of the device's vectors. width: of the longest vector of any device. tasks: number of tasks, whose
    vectors may have different lengths. Raises UserError if it does not say, or if that does not fit.
    """
    try:
        found = SilentRound.model_validate(packet.facts.get("silence"))
    except ValidationError:
        raise UserError("the message does not say where the device was silent (devices.memory)") from None
    if found.round != t:
        raise UserError(f"the server tells of the silence in round {found.round}, the device was last counted in {t}")
    ends: dict[UnsentScope, int] = {}
    for one in found.groups:
        size, own = one.last - one.first, min(lengths[one.scope], one.last) - one.first
        fits = ends.get(one.scope, 0) <= one.first < one.last <= width and own in one.lengths and own > 0
        fits = fits and one.lengths == sorted({*one.lengths}) and len(one.lengths) <= tasks + 2
        ranges = [end for each in one.entries for end in each]
        if not (fits and one.lengths[-1] <= size and ranges == sorted({*ranges}) and ranges[-1:] <= [size]):
            raise UserError("where the device was silent (devices.memory) does not fit its vectors")
        ends[one.scope] = one.last
    return tuple(
        Silence(each.scope, each.slot, each.first, each.last, tuple(each.lengths), tuple(each.entries))
        for each in found.groups
    )
