"""What a run writes down: a record a round, a summary at the end, each with its types and units.

The reference page is generated from this file. Records are JSON lines; a line cut short by a crash is dropped on
reading. What is written can be read: a number that is infinite, none, or beyond `LARGEST` is written as null, and
read as NaN.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    RootModel,
    ValidationError,
)

from airpfed.core import files
from airpfed.core.errors import UserError

LARGEST = 1e100
"""Numbers of larger size mean nothing here, and their squares and sums are none."""


def _bounded(value: Any, info: Any) -> Any:
    """A number as rows hold it: NaN where it is none or too large. In a file null is NaN, others refused."""
    if value is None and info.mode == "json":
        return nan
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) <= LARGEST:
        if info.mode == "json":
            raise ValueError(f"should be from -{LARGEST:g} to {LARGEST:g}, or null")
        return nan
    return value


Number = Annotated[float, BeforeValidator(_bounded)]
"""A float of a row: NaN where it is none or too large; in a file null."""
Count = Annotated[int, Field(ge=-(1 << 62), le=1 << 62)]
"""A whole number of a row; a cost of many rounds fits with room."""


class Row(BaseModel):
    """Base of all rows: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SlotError(Row):
    """Error of one received sum, per normalised real entry (spec: MSE)."""

    claimed: Number | None = Field(
        description="what the receiver can compute before the round: channel estimates, symbol powers, its estimate of "
        "the symbols' correlation; null where nothing is claimed (docs/air.md)"
    )
    claimed_genie: Number | None = Field(
        0.0, description="the same with the true Gram matrix of the round's symbols; null with clipping_db"
    )
    measured: Number = Field(description="||Ghat - G||^2 / (sigma^2 d) of the round")
    bias: Number = Field(
        description="||E Ghat - G||^2 / (sigma^2 d) over noise and scrambling; given gradients, channels"
    )
    variance: Number = Field(description="E||Ghat - E Ghat||^2 / (sigma^2 d) over noise and scrambling")
    silence: Number = Field(
        description="MSE if nothing were sent (divide by it for the NMSE), i.i.d. symbols; 0 if error-free"
    )
    scale: Number = Field(
        description="sum of sigma_g^2 d_g over normaliser groups: times measured, the squared error; 1 if error-free"
    )


class MeanSquaredErrors(Row):
    """Errors of the s-slot and of each task's p-slot; null where nothing was sent."""

    s: SlotError | None = Field(None, description="the shared adapter's sum")
    p: dict[str, SlotError] = Field({}, description="task -> the personal adapter's sum")


class Ledger(Row):
    """What the uplink and downlink cost."""

    channel_uses: Count = Field(0, description="complex channel uses that carry gradients")
    pilot_uses: Count = Field(0, description="channel uses of pilots: one per device and coherence block")
    ofdm_symbols: Count = Field(0, description="OFDM symbols of gradients and pilots")
    air_seconds: Number = Field(
        0.0, description="seconds on air: OFDM symbols with cyclic prefix, side information and feedback"
    )
    joules_mean: Number = Field(0.0, description="energy radiated for gradients, mean over devices, J")
    joules_max: Number = Field(0.0, description="energy radiated for gradients, largest of a device's rounds summed, J")
    side_bits: Count = Field(0, description="side information from the devices (32 bits a scalar), bits")
    feedback_bits: Count = Field(
        0, description="told to the devices so that they can send: transmit factors, or schemes of a digital link; bits"
    )
    downlink_bits: Count = Field(0, description="adapters broadcast to the devices (32 bits an entry), bits")
    backhaul_bits: Count = Field(0, description="s-sums from the edges to the global server (two_hop), bits")
    payload_bytes: Count = Field(0, description="gradients of all devices as federation.payload says, computed, bytes")
    uplink_bytes: Count = Field(0, description="messages with gradients that arrived in a federation, counted, bytes")
    downlink_bytes: Count = Field(0, description="messages with parameters that a federation sent, counted, bytes")

    def __add__(self, other: "Ledger") -> "Ledger":
        """Entry by entry; `joules_max` adds the rounds' maxima, an upper bound of any one device's total."""
        return Ledger(**{key: getattr(self, key) + getattr(other, key) for key in type(self).model_fields})


class Constants(Row):
    """What the bounds are made of (docs/theory.md), fixed before the round in which they are used."""

    beta: Number = Field(gt=0, description="beta of A1: every F_n is beta-smooth in (W_s, W_p,n)")
    c: Number = Field(
        ge=0, description="C of A2: sum_k D_k/D E||g_k - grad F_k||^2 <= C sum_k D_k/D ||grad F_k||^2 + ."
    )
    sigma_sgd2: Number = Field(ge=0, description="sigma_SGD^2 of A2")
    lam: Number = Field(ge=0, description="lambda of A3, X = Lambda: sum_k D_k/D ||grad F_k||^2 <= lambda X + .")
    sigma_dif2: Number = Field(ge=0, description="sigma_dif^2 of A3, X = Lambda")
    lam_printed: Number = Field(
        ge=0, description="lambda of A3 as the appendix prints it, X = ||sum_k D_k/D grad F_k||^2"
    )
    sigma_dif2_printed: Number = Field(ge=0, description="sigma_dif^2 of A3 as printed")
    largest: Number = Field(
        1.0, ge=0, description="largest weight of a device in a sum; 1: mini-batches may be dependent"
    )
    gain: Number = Field(1.0, description="c of Ghat = c G + r + n; 1 of an unbiased design")
    deviation: Number = Field(0.0, ge=0, description="rho, E||r||^2 <= rho^2 E||G||^2; 0 of an unbiased design")


class Gradients(Row):
    """The full-data gradients at a point, in the weights of F."""

    loss: Number = Field(description="F on the full training data, nats")
    gradient: Number = Field(description="Lambda of (42), the squared norm of grad F")
    gradient_printed: Number = Field(description="||sum_k D_k/D grad F_k||^2, p-parts of different tasks added")
    power: Number = Field(description="sum_k D_k/D ||grad F_k||^2")
    sgd: Number = Field(description="sum_k D_k/D E||g_k - grad F_k||^2 of the run's batch size")
    sgd_error: Number = Field(
        description="half the width of its 95 % interval, over how samples were dealt into groups"
    )


class Point(Gradients):
    """What the probe saw at one point of its pilot."""

    rounds: Count = Field(description="pilot rounds played before it")
    time: Number = Field(description="their number times their step")
    distance: Number = Field(description="from the start, in the norm of F's weights")
    beta: Number = Field(description="largest Hessian eigenvalue of any F_n: Lanczos, a lower bound")
    beta_low: Number = Field(description="lower end of its 95 % interval, over the samples it is taken on")
    beta_high: Number = Field(description="upper end, over those samples and the random start of Lanczos")
    secant: Number = Field(description="||change of grad F|| / distance from the point before: a lower bound of beta")
    energy: dict[str, list[Number]] = Field(
        description="normaliser group, e.g. global.B -> E||g_k||^2 of a mini-batch, device by device"
    )
    alike: dict[str, Number] = Field(
        description='"s" or task -> mean correlation of its devices\' mini-batch gradients'
    )
    as_shared: Number = Field(description="part of Lambda in A and B if every rank were shared")
    as_personal: Number = Field(description="the same if every rank were personal")
    head: Number = Field(description="part of Lambda that no split of the ranks changes: heads, what devices keep")
    gain: Number = Field(description="<G, mean Ghat> / ||G||^2 over channel draws")
    deviation: Number = Field(description="||mean Ghat - gain G|| / ||G|| over channel draws, their noise taken away")
    channel: Number = Field(description="mean over channel draws of the channel's energy as claimed")


class Probe(Row):
    """theory.json: what was known before the first round."""

    constants: Constants = Field(description="what every round's bounds use")
    eta: Number = Field(description="the rule's step 1 / (lambda (C + 1) beta)")
    reach: Number = Field(description="distance from the start up to which the constants were looked at")
    unbiased: bool = Field(description="whether the radio's design claims E Ghat = G")
    plain: bool = Field(True, description="whether the update is plain SGD, which (39) to (43) and ours speak of")
    lr: Number | None = Field(None, description="the run's step size; null: the rule's")
    tasks: dict[str, Number] = Field(description="task -> D_n/D")
    points: list[Point] = Field(min_length=1, description="the start and points of the pilot")
    used: Count = Field(description="how many of the points the constants cover")
    safety: Number = Field(description="factor on beta, sigma_SGD^2, sigma_dif^2 and rho as seen")
    seconds: dict[str, Number] = Field(
        description="wall-clock seconds: sweeps, hessians, pilot; gradients: of one round; link: of one set of draws"
    )


class Bounds(Row):
    """Upper bounds of a round's change of F; negative where they prove a decrease."""

    descent: Number = Field(description="(38): E1 + E2 + E3 + E4 of the step that was taken")
    first_order: Number | None = Field(None, description="(39), for the mean of E1 + E2")
    second_order: Number | None = Field(None, description="(40) with its beta/2, for the mean of E3 + E4")
    one_round: Number | None = Field(None, description="(41), A3 with X = Lambda; null unless the update is plain SGD")
    one_round_printed: Number | None = Field(None, description="(41), A3 as printed")
    one_round_ours: Number | None = Field(None, description="ours, for biased aggregates too")


class Theory(Gradients):
    """A metered round: what F did, and what the theory had said. Changes are F after minus F before, nats."""

    change: Number = Field(description="of F on the full training data, differences in float64")
    e1: Number = Field(description="E1 of (38): shared part, first order")
    e2: Number = Field(description="E2: personal part, first order")
    e3: Number = Field(description="E3: beta/2 ||step of the shared part||^2")
    e4: Number = Field(description="E4: the same of the personal part")
    draws: Count = Field(description="channel draws of the round, its mini-batches kept")
    change_mean: Number = Field(description="mean over draws of the change of F, every sample at one of the draws")
    first_mean: Number = Field(description="mean over draws of E1 + E2")
    second_mean: Number = Field(description="mean over draws of E3 + E4")
    channel: Number = Field(description="mean over draws of the channel's energy as claimed, what the bounds use")
    channel_measured: Number = Field(description="mean over draws of ||Ghat - G||^2")
    gain: Number = Field(description="<G, mean Ghat> / ||G||^2 over draws")
    deviation: Number = Field(description="||mean Ghat - gain G|| / ||G||, the draws' noise taken away")
    distance: Number = Field(description="from the start, in the norm of F's weights")
    curvature: Number = Field(description="2 (change - E1 - E2) / ||step||^2: beta that the step met")
    eta: Number = Field(description="step size")
    bounds: Bounds = Field(description="what the theory said")
    constants: Constants = Field(description="what they used")
    failed: list[str] = Field(description="assumptions that did not hold this round")


class RoundRecord(Row):
    """One line of records.jsonl."""

    round: Count = Field(description="number of the round, from 1")
    loss: dict[str, Number] = Field(description="task -> training loss of the round's batches before the update, nats")
    accuracy: dict[str, Number] = Field({}, description="task -> dev metric after the update, where evaluated")
    mse: MeanSquaredErrors = Field(description="errors of the over-the-air sums")
    pi: Number | None = Field(description="measured Pi: MSEs weighted by the shares of d; null where nothing was sent")
    pi_claimed: Number | None = Field(description="the same of the claimed MSEs; null where one claims nothing")
    correlation: list[tuple[Number, Number]] = Field(
        [],
        description="correlation of the symbols expected before the round, [within, across] tasks, a normaliser group",
    )
    absent: list[Count] = Field([], description="devices without a finite gradient this round")
    theory: Theory | None = Field(None, description="the theory beside the round, where theory.meter_every says so")
    ledger: Ledger = Field(description="cost of this round")
    seconds: dict[str, Number] = Field(description="phase -> wall-clock seconds")


class Place(Row):
    """A device's place."""

    x: Number = Field(description="metres east")
    y: Number = Field(description="metres north")
    task: str = Field(description="its task")
    gain_db: Number = Field(description="mean power gain per antenna of its strongest station, dB")


class Layout(Row):
    """layout.json."""

    stations: list[tuple[Number, Number]] = Field(description="places of the stations, metres")
    devices: list[Place] = Field(description="the devices in their order")


class DataReport(Row):
    """What the data of a task is, known before round 1."""

    rows: int = Field(description="rows of the source, those of classes that were not asked for aside")
    skipped: int = Field(description="rows without text or label, left out")
    duplicates: int = Field(description="rows left out because their text, as the prompt has it, had come before")
    contradictions: int = Field(description="those of the duplicates with another class or answer than the row kept")
    barred: int = Field(description="samples kept from training because a task of the same split_as tests on them")
    devices: int = Field(description="devices of the task")
    samples_least: int = Field(description="training samples of the device that has fewest; 0 where they are not here")
    samples_most: int = Field(description="training samples of the device that has most")
    dev: int = Field(description="samples of the dev split")
    test: int = Field(description="samples of the test split")
    classes: dict[str, list[int]] = Field(description="class -> samples in train, dev and test (classify)")
    prompts_cut: float = Field(description="share of all prompts that model.max_tokens cuts")
    prompts_cut_tokens: float | None = Field(
        description="median length of those before the cut, with the answer where one is trained on, tokens"
    )
    answers_cut: float = Field(description="share of the training answers that it cuts, the end token with them")
    answers_cut_tokens: float | None = Field(description="median length of those before the cut, tokens")
    alike_when_cut: int = Field(
        description="test prompts that the model reads, once cut, as it reads a training prompt"
    )
    notes: list[str] = Field(description="what else should be known, a line each")


class TaskSummary(Row):
    """One task's outcome on its test split."""

    metric: str = Field(description='"accuracy" (classify) or "exact_match" (generate)')
    base: Number = Field(description="metric of the untouched base model")
    final: Number | None = Field(
        description="metric of the task's model after the last round; null if interrupted or not to be scored"
    )
    base_balanced: Number | None = Field(None, description="mean recall over classes of the base model (classify)")
    final_balanced: Number | None = Field(None, description="mean recall over classes after the last round (classify)")
    samples: Count = Field(description="samples of the test split")
    dev: Number | None = Field(None, description="metric on the dev split after the last round, where evaluated then")
    others: dict[str, Number | None] = Field(
        {},
        description="other task -> metric of this task's model on its test split (run.cross_eval); null where this "
        "task's head has other classes",
    )


class Summary(Row):
    """summary.json."""

    method: str = Field(description="adapters.method")
    rounds: Count = Field(description="rounds done")
    tasks: dict[str, TaskSummary] = Field(description="task -> outcome")
    average: Number | None = Field(description="mean of the tasks' final metrics; null if interrupted or not scored")
    average_base: Number = Field(description="mean of the tasks' base metrics")
    pi_mean: Number | None = Field(description="mean of the rounds' measured Pi")
    ledger: Ledger = Field(description="cost of the whole run")
    seconds: dict[str, Number] = Field(description="phase -> wall-clock seconds of the whole run")
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
    lines = (content(path) or b"").split(b"\n")
    records: list[RoundRecord] = []
    for number, line in enumerate(lines, 1):
        try:
            if line or number < len(lines):
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
    write_atomic(path, json.dumps(told(tree), indent=2, allow_nan=False) + "\n")


def told(tree: Any) -> Any:
    """A tree as JSON can hold it: null where a number is infinite or none."""
    if isinstance(tree, dict):
        return {key: told(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [told(value) for value in tree]
    return None if isinstance(tree, float) and not isfinite(tree) else tree


Kind = TypeVar("Kind", bound=BaseModel)


def content(path: Path) -> bytes | None:
    """The bytes of a file, None where there is none; UserError that names it where it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_json(path: Path, kind: type[Kind]) -> Kind | None:
    """A JSON file as what it should hold, checked by pydantic; None where there is no file.

    The one reader of JSON that a run or a sweep left. UserError that names the file where it holds something else.
    """
    data = content(path)
    if data is None:
        return None
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{path}: damaged, or of another version: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's findings in a few printable words."""
    item = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    return "".join(c if c.isprintable() else "?" for c in f"{where}: {message}".removeprefix(": "))[:160]


class Environment(RootModel[dict[str, JsonValue]]):
    """environment.json."""


def load_summary(path: Path) -> Summary:
    """The summary of a finished run."""
    found = read_json(path, Summary)
    if found is None:
        raise UserError(f"{path}: no summary here; has this run finished?")
    return found


def load_layout(path: Path) -> Layout | None:
    """A run's layout; None where it has none."""
    return read_json(path, Layout)


def load_probe(path: Path) -> Probe | None:
    """theory.json of a run; None if there is none, UserError if it is of another version."""
    return read_json(path, Probe)


@contextmanager
def fitting(*folders: Path) -> Iterator[None]:
    """A block that reckons with files of runs, each of which is good; UserError where they do not fit together."""
    try:
        yield
    except (ArithmeticError, LookupError, AssertionError, ValueError) as error:
        why = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise UserError(f"{', '.join(map(str, folders))}: the files here do not fit together ({why})") from None


def together(folder: Path, summary: Summary | None, records: Sequence[RoundRecord]) -> None:
    """UserError unless a run's records are those of the rounds that its summary tells of, each once.

    A run that was resumed and killed since may have more; one that was never ended has no summary.
    """
    rounds, least = [row.round for row in records], summary.rounds if summary else 0
    if rounds != list(range(1, len(rounds) + 1)) or len(rounds) < least:
        raise UserError(
            f"{folder / 'records.jsonl'}: should hold rounds 1 to {max(least, len(rounds))}, as summary.json says, "
            "each once; restore it, or run again elsewhere"
        )


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    spare = files.temporary(path)
    try:
        with naming(path):
            for left in files.leftovers(path.parent, path.name):
                files.discard(left)
            with spare.open("wb") as file:
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
