"""What a run writes down: a record a round, a summary at the end, each with its types and units.

The reference page is generated from this file. Records are JSON lines; a line cut short by a crash is dropped on
reading.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airpfed.errors import UserError


class Row(BaseModel):
    """Base of all rows: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SlotError(Row):
    """Error of one received sum, per normalised real entry (spec: MSE)."""

    claimed: float = Field(
        description="what the receiver can compute before the round: channel estimates, symbol powers, its estimate of "
        "the symbols' correlation"
    )
    claimed_genie: float = Field(0.0, description="the same with the true Gram matrix of the round's symbols")
    measured: float = Field(description="||Ghat - G||^2 / (sigma^2 d) of the round")
    bias: float = Field(
        description="||E Ghat - G||^2 / (sigma^2 d) over noise and scrambling; given gradients, channels"
    )
    variance: float = Field(description="E||Ghat - E Ghat||^2 / (sigma^2 d) over noise and scrambling")
    silence: float = Field(description="MSE if nothing were sent (divide by it for the NMSE), i.i.d. symbols")
    scale: float = Field(description="sum of sigma_g^2 d_g over normaliser groups: times measured, the squared error")


class MeanSquaredErrors(Row):
    """Errors of the s-slot and of each task's p-slot; null where nothing was sent."""

    s: SlotError | None = Field(None, description="the shared adapter's sum")
    p: dict[str, SlotError] = Field({}, description="task -> the personal adapter's sum")


class Ledger(Row):
    """What the uplink and downlink cost."""

    channel_uses: int = Field(0, description="complex channel uses that carry gradients")
    pilot_uses: int = Field(0, description="channel uses of pilots: one per device and coherence block")
    ofdm_symbols: int = Field(0, description="OFDM symbols of gradients and pilots")
    air_seconds: float = Field(0.0, description="seconds on air: OFDM symbols with cyclic prefix, and side information")
    joules_mean: float = Field(0.0, description="energy radiated for gradients, mean over devices, J")
    joules_max: float = Field(0.0, description="energy radiated for gradients, largest of a device's rounds summed, J")
    side_bits: int = Field(0, description="side information from the devices (32 bits a scalar), bits")
    downlink_bits: int = Field(0, description="adapters broadcast to the devices (32 bits an entry), bits")
    payload_bytes: int = Field(0, description="gradients of all devices as federation.payload says, computed, bytes")
    uplink_bytes: int = Field(0, description="messages with gradients that arrived in a federation, counted, bytes")
    downlink_bytes: int = Field(0, description="messages with parameters that a federation sent, counted, bytes")

    def __add__(self, other: "Ledger") -> "Ledger":
        """Entry by entry; `joules_max` adds the rounds' maxima, an upper bound of any one device's total."""
        return Ledger(**{key: getattr(self, key) + getattr(other, key) for key in type(self).model_fields})


class RoundRecord(Row):
    """One line of records.jsonl."""

    round: int = Field(description="number of the round, from 1")
    loss: dict[str, float] = Field(description="task -> training loss of the round's batches before the update, nats")
    accuracy: dict[str, float] = Field({}, description="task -> dev metric after the update, where evaluated")
    mse: MeanSquaredErrors = Field(description="errors of the over-the-air sums")
    pi: float | None = Field(description="measured Pi: MSEs weighted by the shares of d; null where nothing was sent")
    pi_claimed: float | None = Field(description="the same of the claimed MSEs")
    correlation: list[tuple[float, float]] = Field(
        [],
        description="correlation of the symbols expected before the round, [within, across] tasks, a normaliser group",
    )
    absent: list[int] = Field([], description="devices without a finite gradient this round")
    ledger: Ledger = Field(description="cost of this round")
    seconds: dict[str, float] = Field(description="phase -> wall-clock seconds")


class TaskSummary(Row):
    """One task's outcome on its test split."""

    metric: str = Field(description='"accuracy" (classify) or "exact_match" (generate)')
    base: float = Field(description="metric of the untouched base model")
    final: float | None = Field(description="metric of the task's model after the last round; null if interrupted")
    base_balanced: float | None = Field(None, description="mean recall over classes of the base model (classify)")
    final_balanced: float | None = Field(None, description="mean recall over classes after the last round (classify)")
    samples: int = Field(description="samples of the test split")


class Summary(Row):
    """summary.json."""

    method: str = Field(description="adapters.method")
    rounds: int = Field(description="rounds done")
    tasks: dict[str, TaskSummary] = Field(description="task -> outcome")
    average: float | None = Field(description="mean of the tasks' final metrics; null if interrupted")
    average_base: float = Field(description="mean of the tasks' base metrics")
    pi_mean: float | None = Field(description="mean of the rounds' measured Pi")
    ledger: Ledger = Field(description="cost of the whole run")
    seconds: dict[str, float] = Field(description="phase -> wall-clock seconds of the whole run")
    exit: str = Field(description='"completed", or "interrupted" (resume with --resume)')


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name on what the disk refuses: a full disk shows in write or fsync, whose errors name no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def append(path: Path, record: RoundRecord) -> None:
    """Add one line and push it to the disk."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(record.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def load(path: Path) -> list[RoundRecord]:
    """All whole lines of a records file; a last line cut short is dropped, any other bad line is a UserError."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records: list[RoundRecord] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(RoundRecord.model_validate_json(line))
        except ValidationError:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not a round's record of this version") from None
    return records


def rewrite(path: Path, records: Iterable[RoundRecord]) -> None:
    """Replace the whole file at once."""
    write_atomic(path, "".join(record.model_dump_json() + "\n" for record in records))


def write_json(path: Path, value: Row | dict[str, object]) -> None:
    """Write one JSON file at once, indented."""
    tree = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_atomic(path, json.dumps(tree, indent=2) + "\n")


def load_summary(path: Path) -> Summary:
    """The summary of a finished run."""
    try:
        return Summary.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no summary here; has this run finished?") from None
    except ValidationError:
        raise UserError(f"{path}: not a summary of this version") from None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    spare = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path), spare.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        spare.replace(path)
    finally:
        with suppress(OSError):
            spare.unlink(missing_ok=True)


def number(value: float | None) -> str:
    """A metric with three decimals; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"
