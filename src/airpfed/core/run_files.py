"""The schema of every file that a run writes, with types and units, and the functions that read and write them.

The reference page is generated from this file. Records are JSON lines; a line that a crash cut short is dropped on
reading. A number that is infinite, NaN or larger than `MAX_NUMBER` is written as null and read as NaN.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, RootModel, ValidationError

from airpfed.core.errors import UserError
from airpfed.core.files import name_file_in_errors, read_bytes, write_atomic

MAX_NUMBER = 1e100
"""Largest magnitude of a number. Squares and sums of larger numbers overflow."""


def _replace_invalid(value: Any, info: Any) -> Any:
    """Replace an invalid number by NaN. In a file, null means NaN, and other invalid numbers are refused."""
    if value is None and info.mode == "json":
        return nan
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) <= MAX_NUMBER:
        if info.mode == "json":
            raise ValueError(f"should be from -{MAX_NUMBER:g} to {MAX_NUMBER:g}, or null")
        return nan
    return value


Number = Annotated[float, BeforeValidator(_replace_invalid)]
"""A float of a record: NaN if it is infinite or too large; null in a file."""
Count = Annotated[int, Field(ge=-(1 << 62), le=1 << 62)]
"""A whole number of a record. The costs of many rounds fit."""


class Record(BaseModel):
    """The base class of all records: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SlotError(Record):
    """The mean-squared error of a received sum, per normalised real entry."""

    claimed: Number | None = Field(
        description="computed before the round from channel estimates, symbol powers and the estimated correlation of "
        "the symbols; null if nothing is claimed (docs/air.md)"
    )
    claimed_genie: Number | None = Field(
        0.0, description="claimed with the true Gram matrix of the round's symbols; null with clipping_db"
    )
    measured: Number = Field(description="||Ghat - G||^2 / (sigma^2 d) of the round")
    bias: Number = Field(
        description="||E Ghat - G||^2 / (sigma^2 d), mean over noise and scrambling for the round's gradients and "
        "channels"
    )
    variance: Number = Field(description="E||Ghat - E Ghat||^2 / (sigma^2 d), mean over noise and scrambling")
    silence: Number = Field(
        description="MSE if nothing were sent, for i.i.d. symbols (divide by it for the NMSE); 0 if error-free"
    )
    scale: Number = Field(
        description="sum of sigma_g^2 d_g over normaliser groups; times measured, it is the squared error; 1 if "
        "error-free"
    )


class MeanSquaredErrors(Record):
    """Errors of the s-slot and of each task's p-slot; null if nothing was sent."""

    s: SlotError | None = Field(None, description="sum of the s-adapter's gradients")
    p: dict[str, SlotError] = Field({}, description="task -> sum of the p-adapter's gradients")


class Ledger(Record):
    """The cost of uplink, downlink and computing.

    Energy is that of the devices: radiated and amplifier are spent on the uplink, circuit on both links.
    """

    channel_uses: Count = Field(0, description="complex channel uses that carry gradients")
    pilot_uses: Count = Field(0, description="channel uses of pilots of all devices in their coherence blocks")
    ofdm_symbols: Count = Field(0, description="OFDM symbols of gradients and pilots")
    air_seconds: Number = Field(
        0.0, description="seconds on air: OFDM symbols with cyclic prefix, side information, feedback"
    )
    downlink_seconds: Number = Field(
        0.0, description="seconds of the broadcast of the adapters, at the rate of the weakest device that listens"
    )
    compute_seconds: Number = Field(
        0.0, description="seconds until the slowest present device has its gradient; the deadline if a device is late"
    )
    total_seconds: Number = Field(0.0, description="air_seconds + downlink_seconds + compute_seconds")
    joules_mean: Number = Field(0.0, description="energy radiated for gradients, mean over devices, J")
    joules_max: Number = Field(
        0.0, description="energy radiated for gradients, sum over rounds of the largest device's, J"
    )
    radiated_joules: Number = Field(
        0.0, description="energy radiated for gradients, pilots and side information, mean over devices, J"
    )
    amplifier_joules: Number = Field(
        0.0, description="heat of the amplifiers, radiated (1 / devices.amplifier_efficiency - 1), mean over devices, J"
    )
    circuit_joules: Number = Field(
        0.0, description="energy of the radio circuits while a device sends or receives, mean over devices, J"
    )
    compute_joules: Number = Field(0.0, description="energy of computing, mean over devices, J")
    total_joules_mean: Number = Field(0.0, description="radiated + amplifier + circuit + compute, mean over devices, J")
    total_joules_max: Number = Field(
        0.0,
        description="radio of the largest device + computing of the largest device, sum over rounds, J; no device "
        "spends more",
    )
    side_bits: Count = Field(0, description="side information from the devices (32 bits a scalar), bits")
    feedback_bits: Count = Field(
        0, description="sent to the devices before they transmit: transmit factors, or schemes of a digital link; bits"
    )
    downlink_bits: Count = Field(
        0, description="adapters broadcast to the devices (32 bits an entry, or server.downlink_bits), bits"
    )
    backhaul_bits: Count = Field(0, description="s-sums from the edges to the global server (two_hop), bits")
    payload_bytes: Count = Field(
        0, description="gradients of all devices in the format of federation.payload, computed, bytes"
    )
    uplink_bytes: Count = Field(0, description="messages with gradients that a federation received, counted, bytes")
    downlink_bytes: Count = Field(0, description="messages with parameters that a federation sent, counted, bytes")

    def __add__(self, other: "Ledger") -> "Ledger":
        """Add entry by entry. The sums of `joules_max` and `total_joules_max` bound every device's total from above."""
        return Ledger(**{key: getattr(self, key) + getattr(other, key) for key in type(self).model_fields})


class Constants(Record):
    """The constants of the bounds (docs/theory.md), fixed before the round that uses them."""

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
        1.0, ge=0, description="largest weight of a device in a sum; 1 if mini-batches may be dependent"
    )
    gain: Number = Field(1.0, description="c of Ghat = c G + r + n; 1 for an unbiased design")
    deviation: Number = Field(0.0, ge=0, description="rho of E||r||^2 <= rho^2 E||G||^2; 0 for an unbiased design")


class Gradients(Record):
    """The full-data gradients at a point, weighted as in F."""

    loss: Number = Field(description="F on the full training data, nats")
    gradient: Number = Field(description="Lambda of (42), the squared norm of grad F")
    gradient_printed: Number = Field(description="||sum_k D_k/D grad F_k||^2, p-parts of different tasks added")
    power: Number = Field(description="sum_k D_k/D ||grad F_k||^2")
    sgd: Number = Field(description="sum_k D_k/D E||g_k - grad F_k||^2 for the run's batch size")
    sgd_error: Number = Field(description="half the width of the 95 % interval of sgd, over random groups of samples")


class Point(Gradients):
    """Measurements of the probe at a point of its pilot."""

    rounds: Count = Field(description="pilot rounds before the point")
    time: Number = Field(description="rounds times the step size")
    distance: Number = Field(description="from the start, in the norm of F's weights")
    beta: Number = Field(description="largest Hessian eigenvalue of any F_n by Lanczos, a lower bound")
    beta_low: Number = Field(description="lower end of the 95 % interval of beta, over its samples")
    beta_high: Number = Field(description="upper end, over its samples and the random start of Lanczos")
    secant: Number = Field(description="||change of grad F|| / distance from the previous point, a lower bound of beta")
    energy: dict[str, list[Number]] = Field(
        description="normaliser group, e.g. global.B -> E||g_k||^2 of a mini-batch, per device"
    )
    alike: dict[str, Number] = Field(
        description='"s" or task -> mean correlation of its devices\' mini-batch gradients'
    )
    as_shared: Number = Field(description="part of Lambda in A and B if all ranks were shared")
    as_personal: Number = Field(description="part of Lambda in A and B if all ranks were personal")
    head: Number = Field(
        description="part of Lambda that does not depend on the split of the ranks: heads, parts of device scope"
    )
    gain: Number = Field(description="<G, mean Ghat> / ||G||^2 over channel draws")
    deviation: Number = Field(
        description="||mean Ghat - gain G|| / ||G|| over channel draws, without the noise of the mean"
    )
    channel: Number = Field(description="mean over channel draws of the claimed channel energy")


class Probe(Record):
    """theory.json: the constants before the first round."""

    constants: Constants = Field(description="constants of every round's bounds")
    eta: Number = Field(description="step size of the rule, 1 / (lambda (C + 1) beta)")
    reach: Number = Field(description="distance from the start up to which the constants were measured")
    unbiased: bool = Field(description="whether the transceiver design claims E Ghat = G")
    plain: bool = Field(True, description="whether the update is plain SGD, as (39) to (43) and our bound assume")
    lr: Number | None = Field(None, description="step size of the run; null: the rule's")
    tasks: dict[str, Number] = Field(description="task -> D_n/D")
    points: list[Point] = Field(min_length=1, description="the start and the points of the pilot")
    used: Count = Field(description="number of points that the constants cover")
    safety: Number = Field(description="safety factor on the measured beta, sigma_SGD^2, sigma_dif^2 and rho")
    seconds: dict[str, Number] = Field(
        description="wall-clock seconds of sweeps, hessians, pilot; of gradients in one round; of link for one set "
        "of draws"
    )


class Bounds(Record):
    """Upper bounds of the change of F in a round; a negative bound proves a decrease."""

    descent: Number = Field(description="(38): E1 + E2 + E3 + E4 of the round's step")
    first_order: Number | None = Field(None, description="(39), bound of the mean of E1 + E2")
    second_order: Number | None = Field(None, description="(40) with its beta/2, bound of the mean of E3 + E4")
    one_round: Number | None = Field(None, description="(41), A3 with X = Lambda; null unless the update is plain SGD")
    one_round_printed: Number | None = Field(None, description="(41), A3 as printed")
    one_round_ours: Number | None = Field(None, description="our bound, which also covers biased aggregates")


class Theory(Gradients):
    """A monitored round: the change of F, and its bounds. Changes are F after the round minus F before, nats."""

    change: Number = Field(description="change of F on the full training data, differences in float64")
    e1: Number = Field(description="E1 of (38): shared part, first order")
    e2: Number = Field(description="E2 of (38): personal part, first order")
    e3: Number = Field(description="E3 of (38): beta/2 ||step of the shared part||^2")
    e4: Number = Field(description="E4 of (38): beta/2 ||step of the personal part||^2")
    draws: Count = Field(description="channel draws for the round's mini-batches")
    change_mean: Number = Field(description="mean over draws of the change of F, each sample at one of the draws")
    first_mean: Number = Field(description="mean over draws of E1 + E2")
    second_mean: Number = Field(description="mean over draws of E3 + E4")
    channel: Number = Field(description="mean over draws of the claimed channel energy, which the bounds use")
    channel_measured: Number = Field(description="mean over draws of ||Ghat - G||^2")
    gain: Number = Field(description="<G, mean Ghat> / ||G||^2 over draws")
    deviation: Number = Field(description="||mean Ghat - gain G|| / ||G|| over draws, without the noise of the mean")
    distance: Number = Field(description="from the start, in the norm of F's weights")
    curvature: Number = Field(description="2 (change - E1 - E2) / ||step||^2, the curvature along the step")
    eta: Number = Field(description="step size")
    bounds: Bounds = Field(description="bounds of the theory")
    constants: Constants = Field(description="constants of the bounds")
    failed: list[str] = Field(description="assumptions that did not hold in this round")


class RoundRecord(Record):
    """A line of records.jsonl.

    >>> import airpfed as ap
    >>> numbers = {"mse": {}, "pi": 0.01, "pi_claimed": 0.01, "ledger": {"air_seconds": 0.2}, "seconds": {}}
    >>> record = ap.RoundRecord(round=1, loss={"trec": 1.5}, **numbers)
    >>> record.loss["trec"], record.ledger.air_seconds
    (1.5, 0.2)
    """

    round: Count = Field(description="number of the round, from 1")
    loss: dict[str, Number] = Field(description="task -> training loss of the round's batches before the update, nats")
    accuracy: dict[str, Number] = Field({}, description="task -> dev metric after the update, if evaluated")
    mse: MeanSquaredErrors = Field(description="errors of the over-the-air sums")
    pi: Number | None = Field(
        description="measured Pi: mean of the MSEs of the s-sum and the p-sums, weighted by the length d of "
        "their vectors, and for task n also by D_n/D, its share of the present devices' training "
        "samples; null if nothing was sent"
    )
    pi_claimed: Number | None = Field(
        description="claimed Pi, the same mean of the claimed MSEs; null if an MSE has no claim"
    )
    correlation: list[tuple[Number, Number]] = Field(
        [],
        description="estimated correlation of the symbols before the round, [within, across] tasks, per normaliser "
        "group",
    )
    absent: list[Count] = Field(
        [], description="devices without a finite gradient in this round, or later than server.deadline_seconds"
    )
    late: list[Count] = Field(
        [], description="those of the absent devices that computed longer than server.deadline_seconds"
    )
    lr: Number | None = Field(
        None, description="learning rate of the round's update; null where server.schedule does not change it"
    )
    clipped: Number | None = Field(
        None,
        description="share of the present devices whose gradient was scaled down to devices.max_grad_norm; null "
        "without it",
    )
    theory: Theory | None = Field(None, description="bounds of the round, in rounds that theory.meter_every selects")
    ledger: Ledger = Field(description="cost of this round")
    seconds: dict[str, Number] = Field(description="phase -> wall-clock seconds")


class DevicePosition(Record):
    """The position of a device."""

    x: Number = Field(description="metres east")
    y: Number = Field(description="metres north")
    task: str = Field(description="task of the device")
    gain_db: Number = Field(description="mean power gain per antenna of its strongest station, dB")


class NetworkLayout(Record):
    """layout.json: the positions of stations and devices."""

    stations: list[tuple[Number, Number]] = Field(description="positions of the stations, metres")
    devices: list[DevicePosition] = Field(description="devices in their order")


class DataReport(Record):
    """Counts and warnings about a task's data, before round 1."""

    rows: int = Field(description="rows of the source, without the classes that the settings leave out")
    skipped: int = Field(description="rows left out because they have no text or label")
    duplicates: int = Field(description="rows left out because an earlier row gives the same prompt text")
    contradictions: int = Field(description="duplicates whose class or answer differs from that of the retained row")
    barred: int = Field(description="samples excluded from training because a task of the same split_as tests on them")
    devices: int = Field(description="devices of the task")
    samples_least: int = Field(
        description="training samples of the device with the fewest; 0 if the data is on the devices"
    )
    samples_most: int = Field(description="training samples of the device with the most")
    dev: int = Field(description="samples of the dev split")
    test: int = Field(description="samples of the test split")
    classes: dict[str, list[int]] = Field(description="class -> samples in train, dev and test (classify)")
    prompts_cut: float = Field(description="share of the prompts that model.max_tokens cuts")
    prompts_cut_tokens: float | None = Field(
        description="median length of these prompts before the cut, with the answer if it is trained on, tokens"
    )
    answers_cut: float = Field(
        description="share of the training answers that model.max_tokens cuts; they lose the end token"
    )
    answers_cut_tokens: float | None = Field(description="median length of these answers before the cut, tokens")
    alike_when_cut: int = Field(description="test prompts that equal a training prompt after the cut")
    notes: list[str] = Field(description="further warnings, a line each")


class TaskSummary(Record):
    """The scores of a task."""

    metric: str = Field(
        description="name of the metric: that of tasks.metric, or accuracy (classify) or exact_match (generate)"
    )
    base: Number = Field(description="metric of the untouched base model on the test split")
    final: Number | None = Field(
        description="metric of the task's model after the last round; null if the run was interrupted or does not "
        "score it"
    )
    base_balanced: Number | None = Field(None, description="mean recall over classes of the base model (classify)")
    final_balanced: Number | None = Field(None, description="mean recall over classes after the last round (classify)")
    samples: Count = Field(description="samples of the test split")
    dev: Number | None = Field(None, description="metric on the dev split after the last round, if evaluated")
    others: dict[str, Number | None] = Field(
        {},
        description="other task -> metric of this task's model on the other task's test split (run.cross_eval); null "
        "if "
        "this task's head has other classes",
    )
    larger_is_better: bool = Field(True, description="direction of the metric; false for perplexity")
    base_metrics: dict[str, Number] = Field(
        {}, description="name -> further metric (tasks.further_metrics) of the base model on the test split"
    )
    final_metrics: dict[str, Number] = Field(
        {}, description="name -> further metric of the task's model after the last round"
    )


class Summary(Record):
    """summary.json: the outcome of a run.

    >>> import airpfed as ap
    >>> scores = {"trec": {"metric": "accuracy", "base": 0.2, "final": 0.8, "samples": 250}}
    >>> numbers = {"average": 0.8, "average_base": 0.2, "pi_mean": 0.01, "ledger": {}, "seconds": {}}
    >>> ap.Summary(method="airpfed", rounds=9, tasks=scores, exit="completed", **numbers).tasks["trec"].final
    0.8
    """

    method: str = Field(description="adapters.method")
    rounds: Count = Field(description="completed rounds")
    tasks: dict[str, TaskSummary] = Field(description="task -> scores")
    average: Number | None = Field(
        description="mean of the tasks' final metrics; null if the run was interrupted or does not score them"
    )
    average_base: Number = Field(description="mean of the tasks' base metrics")
    pi_mean: Number | None = Field(description="mean over rounds of the measured Pi")
    ledger: Ledger = Field(description="cost of the whole run")
    seconds: dict[str, Number] = Field(description="phase -> wall-clock seconds of the whole run")
    exit: str = Field(description='"completed", or "interrupted" (resume with --resume)')


class AdapterTask(Record):
    """task.json beside an adapter or merged weights: all that is needed to answer a text as the run did."""

    format: Literal[1] = Field(1, description="version of this file")
    name: str = Field(description="name of the task")
    kind: Literal["classify", "generate", "chat"] = Field(description="classify, generate text, or reply in a chat")
    prompt: str = Field(
        description="template; {column} stands for a column's text without white space at its ends, {{ and }} for "
        "braces"
    )
    text_column: str = Field(description="the template's column that a bare text is for")
    max_chars: int | None = Field(
        description="characters at which a column's text is cut, or a message that is no reply; null: it is not cut"
    )
    max_tokens: int = Field(
        ge=1, description="longer prompts lose their middle: the last max_tokens // 3 tokens and the first ones stay"
    )
    labels: dict[str, str] = Field(
        description="class -> word after the prompt, in the order of a classifier's outputs; else empty"
    )
    label_score: Literal["first_token", "words", "head", ""] = Field(
        description="what the scores of the classes are: logits of the first tokens in which the words differ, "
        "log-probabilities of whole words, or a classifier's outputs; else empty"
    )
    label_tokens: list[list[int]] = Field(
        [], description="tokens of each word, with the end token that tells it from a longer word (words)"
    )
    label_normalised: bool = Field(False, description="whether a word's score is divided by its number of tokens")
    id2label: dict[str, str] = Field(description="number of a class -> class, as transformers' config has it")
    label2id: dict[str, int] = Field(description="class -> its number")
    max_new_tokens: int | None = Field(description="largest number of tokens of an answer; null for classify")
    end_tokens: list[int] = Field(description="tokens that end an answer; empty for a classifier")
    messages: str | None = Field(None, description="column of a conversation (chat)")
    system: str = Field("", description="system message before conversations that have none (chat)")
    template: str = Field("", description="form of conversations (chat); empty: the tokenizer's own")
    turn_end: str = Field("", description="text that ends a reply where no token of its own does (chat)")
    base: str = Field(description="model.base")
    base_dtype: str = Field("float32", description="model.dtype")
    base_quantization: str = Field("none", description="model.quantization")
    base_revision: str | None = Field(description="commit of a base from the hub")
    base_sha256: str = Field(description="hash of the base's files, as in environment.json")


def append_record(path: Path, record: RoundRecord) -> None:
    """Append a line and flush it to the disk."""
    with name_file_in_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(record.model_dump_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def load_records(path: Path) -> list[RoundRecord]:
    """Read a records file. A last line that a crash cut short is dropped; any other invalid line is a UserError."""
    lines = (read_bytes(path) or b"").split(b"\n")
    records: list[RoundRecord] = []
    for number, line in enumerate(lines, 1):
        try:
            if line or number < len(lines):
                records.append(RoundRecord.model_validate_json(line))
        except ValidationError:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not a round's record of this version") from None
    return records


def write_records(path: Path, records: Iterable[RoundRecord]) -> None:
    """Replace the whole records file atomically."""
    write_atomic(path, "".join(record.model_dump_json() + "\n" for record in records))


def write_json(path: Path, value: Record | dict[str, object]) -> None:
    """Write a JSON file atomically, with indentation."""
    tree = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_atomic(path, json.dumps(to_json_tree(tree), indent=2, allow_nan=False) + "\n")


def to_json_tree(tree: Any) -> Any:
    """Replace infinite numbers and NaN in a tree by None, because JSON cannot hold them."""
    if isinstance(tree, dict):
        return {key: to_json_tree(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [to_json_tree(value) for value in tree]
    return None if isinstance(tree, float) and not isfinite(tree) else tree


Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path, model: type[Model]) -> Model | None:
    """Read a JSON file of a run or a sweep as a pydantic model. Returns None if the file does not exist.

    Raises UserError that names the file if it cannot be read or does not fit the model.
    """
    data = read_bytes(path)
    if data is None:
        return None
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise UserError(f"{path}: damaged, or of another version: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Describe the first problem that pydantic reports, in a few printable words."""
    item = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    return "".join(c if c.isprintable() else "?" for c in f"{key}: {message}".removeprefix(": "))[:160]


class Environment(RootModel[dict[str, JsonValue]]):
    """environment.json: an object with any keys."""


def load_summary(path: Path) -> Summary:
    """Read the summary of a finished run. Raises UserError if there is none."""
    summary = read_json(path, Summary)
    if summary is None:
        raise UserError(f"{path}: no summary here; has this run finished?")
    return summary


def load_layout(path: Path) -> NetworkLayout | None:
    """Read layout.json. Returns None if the file does not exist."""
    return read_json(path, NetworkLayout)


def load_probe(path: Path) -> Probe | None:
    """Read theory.json. Returns None if the file does not exist; raises UserError if it is of another version."""
    return read_json(path, Probe)


@contextmanager
def require_consistent(*folders: Path) -> Iterator[None]:
    """Turn arithmetic and lookup errors of the block into a UserError: files of these runs contradict each other."""
    try:
        yield
    except (ArithmeticError, LookupError, AssertionError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__} {error}".split())[:120]
        raise UserError(f"{', '.join(map(str, folders))}: the files here do not fit together ({reason})") from None


def check_rounds(folder: Path, summary: Summary | None, records: Sequence[RoundRecord]) -> None:
    """Raise UserError unless the records hold each round of the summary once, in order.

    A resumed run that was killed may have more records than rounds in its summary. An unfinished run has no summary.
    """
    rounds, min_rounds = [row.round for row in records], summary.rounds if summary else 0
    if rounds != list(range(1, len(rounds) + 1)) or len(rounds) < min_rounds:
        raise UserError(
            f"{folder / 'records.jsonl'}: should hold rounds 1 to {max(min_rounds, len(rounds))}, as summary.json "
            "says, each once; restore it, or start a new run with another --out"
        )


def format_metric(value: float | None) -> str:
    """Format a metric with three decimals; a dash stands for None."""
    return "-" if value is None else f"{value:.3f}"
