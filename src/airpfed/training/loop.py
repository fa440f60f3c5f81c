"""The loop of a run, on one page."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean as mean
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, ValidationError
from torch import Tensor

from airpfed.analysis.check_round import check_round, due
from airpfed.analysis.monitor import BoundMonitor, RoundTrace
from airpfed.analysis.probe import probe as look_around
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, Probe, RoundRecord, Summary, TaskSummary
from airpfed.devices.compression import Payload, all_bytes, rounded
from airpfed.devices.gradients import Clients, batches, gradients
from airpfed.model.layout import Vectors
from airpfed.training import checkpoint
from airpfed.training.evaluate import Score, TaskView, score, score_elsewhere, score_task
from airpfed.training.factor_averaging import Merge, merge
from airpfed.training.round import Aggregator, finite, step
from airpfed.training.state import Optimizer, State, vectors


@dataclass(frozen=True)
class RoundGradients:
    """What servers have of the devices after a round's work, a row a device, NaN where there is nothing.

    gradients: scope -> (K, d_scope). loss: nats. cursors: places in the data after the round. samples: D_k. cost: what
    the messages took.
    """

    gradients: Vectors
    loss: Float[Tensor, " K"]
    cursors: Int[Tensor, " K"]
    samples: Float[Tensor, " K"]
    cost: Ledger


@dataclass(frozen=True)
class Experiment:
    """Everything a run needs, as objects and plain values.

    fingerprint: of settings, data and base model; base_key: of what the untouched model's scores depend on. merge: the
    rule in the link's place, where the method has one. air_seconds: budget of the run. score: the final models' split.
    lr: None where the probe decides it. monitor: None where nothing of the theory is asked for.
    payload: how gradients travel. notes: lines for the user about how this base is computed. collect, rate: the
    devices' work in a round, and a task's score; a federation asks real devices.
    """

    method: str
    clients: Clients
    tasks: tuple[TaskView, ...]
    aggregate: Aggregator
    initial: State
    optimizer: Optimizer
    lr: float | None
    rounds: int
    batch_size: int
    local_steps: int
    local_lr: float
    chunk: int
    eval_every: int
    seed: int
    fingerprint: str
    monitor: BoundMonitor | None = None
    merge: Merge | None = None
    air_seconds: float | None = None
    score: Literal["test", "dev", "both"] = "test"
    cross_eval: bool = False
    base_key: str = ""
    payload: Payload = "float32"
    notes: tuple[str, ...] = ()
    collect: "Collect" = field(default_factory=lambda: simulated)
    rate: "Rate" = field(default_factory=lambda: simulated_score)


Metric = Annotated[float, Field(ge=0, le=1)]


class BaseScores(run_files.Row):
    """base.json: what the scores depend on, and a task's (metric, balanced) each."""

    key: str
    scores: list[tuple[Metric, Metric | None]]


Collect = Callable[[Experiment, State], RoundGradients]
Rate = Callable[[Experiment, State, int, Literal["dev", "test"]], Score | None]
"""(experiment, state, number of a task, split) -> the task's score; None where no device could be asked."""


@dataclass(frozen=True)
class Final:
    """Scores after the last round, a task each; None where not asked for. others: task -> metric on its test split."""

    test: list[Score] | list[None]
    dev: list[float | None]
    others: list[dict[str, float | None]]


@dataclass(frozen=True)
class Outcome:
    """The state a run ended in, its summary, and whether all rounds are done."""

    state: State
    summary: Summary
    completed: bool


Watch = Callable[[RoundRecord], None]


def play(
    experiment: Experiment, out: Path, resume: bool, watch: Watch, stop: Callable[[], bool], say: Callable[[str], None]
) -> Outcome:
    """Run all rounds that are missing, or up to the round in which `stop` turns true; everything is kept in `out`.

    After every round its record is on disk, then its checkpoint: a run that is killed anywhere and resumed ends in the
    same state, bit for bit (same machine and threads). Raises OSError if the disk fails; the last checkpoint is then
    good.
    """
    saved = out / "checkpoint"
    resumed = resume and checkpoint.exists(saved)
    state = checkpoint.read(saved, experiment.initial, experiment.fingerprint) if resumed else experiment.initial
    records = recorded(out / "records.jsonl", state.round) if resumed else []
    run_files.rewrite(out / "records.jsonl", records)
    if resumed:
        checkpoint.clear(saved, checkpoint.name_of(state.round))
    else:
        checkpoint.write(saved, state, experiment.seed, experiment.fingerprint)
    probe = probed(experiment, out / "theory.json", resumed, say)
    base = base_scores(experiment, saved / "base.json", say)
    while goes_on(experiment, records) and not stop():
        state, row = play_round(experiment, state, probe)
        run_files.append(out / "records.jsonl", row)
        checkpoint.write(saved, state, experiment.seed, experiment.fingerprint)
        records.append(row)
        watch(row)
    completed = not goes_on(experiment, records)
    final = final_scores(experiment, state, records, say) if completed else None
    return Outcome(state, summarise(experiment, records, base, final), completed)


def recorded(path: Path, done: int) -> list[RoundRecord]:
    """The records of the rounds that a checkpoint stands behind; UserError unless all are there."""
    records = [row for row in run_files.load(path) if row.round <= done]
    if [row.round for row in records] != list(range(1, done + 1)):
        raise UserError(
            f"{path}: should hold rounds 1 to {done}, as the checkpoint does, each once; restore it, or begin anew "
            "elsewhere"
        )
    return records


def probed(experiment: Experiment, path: Path, kept: bool, say: Callable[[str], None]) -> Probe | None:
    """What is known before the first round: looked at once, kept beside the records for a resumed run."""
    if experiment.monitor is None:
        return None
    found = None
    try:
        found = run_files.load_probe(path) if kept else None
    except UserError as error:
        say(f"{error}; made again")
    if found is None:
        say("probing the theory's constants")
        try:
            found = look_around(experiment.monitor, experiment.initial)
        except ValidationError as error:
            raise UserError(
                f"theory: the probe failed ({run_files.first_problem(error)}); is the base model's loss finite?"
            ) from None
        run_files.write_json(path, found)
    return found


def goes_on(experiment: Experiment, records: Sequence[RoundRecord]) -> bool:
    """Whether a round is left: T is not reached, and one like the longest so far fits into the time on air."""
    if len(records) >= experiment.rounds or experiment.air_seconds is None:
        return len(records) < experiment.rounds
    spent = [row.ledger.air_seconds for row in records]
    return sum(spent) + max(spent, default=0.0) <= experiment.air_seconds


def final_scores(
    experiment: Experiment, state: State, records: Sequence[RoundRecord], say: Callable[[str], None]
) -> Final:
    """The models' scores after the last round: on test, on dev (or as the last round's record has it), elsewhere."""
    clients, tasks = experiment.clients, experiment.tasks
    known = records[-1].accuracy if records else {}
    dev = [known.get(task.name) for task in tasks]
    if experiment.score != "test":
        asked = [n for n, task in enumerate(tasks) if task.name not in known and task.dev.prompts]
        found = {n: experiment.rate(experiment, state, n, "dev") for n in asked}
        dev = [one.value if (one := found.get(n)) else value for n, value in enumerate(dev)]
    if experiment.score == "dev":
        return Final([None] * len(tasks), dev, [{}] * len(tasks))
    say("scoring the tasks' models on the test splits")
    test = [final_score(experiment, state, n) for n in range(len(tasks))]
    values, every = vectors(state), range(len(tasks))
    others = [score_elsewhere(clients, values, n, tasks) if experiment.cross_eval else {} for n in every]
    return Final(test, dev, others)


def base_scores(experiment: Experiment, path: Path, say: Callable[[str], None]) -> list[Score]:
    """Test scores of the untouched model: computed once, kept in a file for every run of the same base and splits."""
    try:
        kept = run_files.read_json(path, BaseScores)
        if kept and kept.key == experiment.base_key and len(kept.scores) == len(experiment.tasks):
            return [Score(*pair) for pair in kept.scores]
    except UserError as error:
        say(f"{error}; made again")
    say("scoring the untouched model on the test splits")
    scores = [score(experiment.clients, None, task, "test") for task in experiment.tasks]
    pairs = [[one.value, one.balanced] for one in scores]
    run_files.write_json(path, {"key": experiment.base_key, "scores": pairs})
    return scores


def final_score(experiment: Experiment, state: State, number: int) -> Score:
    """A task's score on its test split; UserError if there is nobody to ask: the run can then be resumed."""
    found = experiment.rate(experiment, state, number, "test")
    if found is None:
        raise UserError(f"no device of task {experiment.tasks[number].name} is there to be scored; go on with --resume")
    return found


def play_round(experiment: Experiment, state: State, probe: Probe | None = None) -> tuple[State, RoundRecord]:
    """One round: gradients, uplink and update, evaluation and meter where they are due; the next state and its record.

    probe: needed where its step size or the meter is asked for.
    """
    seconds: dict[str, float] = {}
    before = state
    lr = step_size(experiment, probe)
    with timed(seconds, "gradients"):
        found = experiment.collect(experiment, state)
    with timed(seconds, "air"):
        if experiment.merge:
            state, received, present = merge(experiment.merge, state, found.gradients, found.cursors)
        else:
            state, received, present = step(
                state, found.gradients, found.cursors, experiment.aggregate, experiment.optimizer, lr
            )
    with timed(seconds, "evaluate"):
        scored = experiment.eval_every and state.round % experiment.eval_every == 0
        tasks = [(n, task) for n, task in enumerate(experiment.tasks) if scored and task.dev.prompts]
        scores = {task.name: experiment.rate(experiment, state, n, "dev") for n, task in tasks}
    theory = None
    if experiment.monitor and probe and due(experiment.monitor, state.round):
        with timed(seconds, "theory"):
            played = RoundTrace(before, state, found.gradients, found.cursors, present)
            theory = check_round(experiment.monitor, probe, experiment.initial, played, lr)
    return state, RoundRecord(
        round=state.round,
        loss=task_losses(experiment, found, present),
        accuracy={name: score.value for name, score in scores.items() if score},
        mse=received.mse,
        pi=received.pi,
        pi_claimed=received.pi_claimed,
        correlation=list(received.correlation),
        absent=(~present).nonzero().flatten().tolist(),
        ledger=received.ledger + found.cost,
        theory=theory,
        seconds=seconds,
    )


def step_size(experiment: Experiment, probe: Probe | None) -> float:
    """The server's learning rate: as set, or as the probe decided; ValueError where that is not at hand."""
    if experiment.lr is not None:
        return experiment.lr
    if probe is None:
        raise ValueError('server.lr = "theory": the probe decides the step size, and this round is played without it')
    return probe.eta


def simulated(experiment: Experiment, state: State) -> RoundGradients:
    """All devices' work in this process; gradients as they come out of their payload.

    Raises UserError where the untouched base gives no device a finite gradient: training cannot have diverged yet.
    """
    clients = experiment.clients
    plan, cursors = batches(clients, state.devices.cursors, experiment.batch_size, experiment.local_steps)
    turns = clients.layout.turns()
    turn = turns[state.round % len(turns)]
    found, loss = gradients(clients, vectors(state), plan, experiment.local_lr, experiment.chunk, turn)
    samples = torch.tensor([float(len(shard)) for shard in clients.shards])
    cost = (
        Ledger()
        if clients.batch_multiplier
        else Ledger(payload_bytes=all_bytes(clients.layout, clients.task_of, experiment.payload))
    )
    heard = finite(found)
    if state.round == 0 and not heard.any():
        steps = "" if experiment.local_steps == 1 else ", or devices.local_lr is too large"
        raise UserError(
            "model.base: no device has a finite gradient in round 1, before any step of the server: the base gives no "
            f"numbers for these tasks{steps}"
        )
    sent = rounded(found, heard, clients.layout, clients.task_of, experiment.payload, clients.seed, state.round + 1)
    return RoundGradients(sent, loss, cursors, samples, cost)


def simulated_score(experiment: Experiment, state: State, number: int, which: Literal["dev", "test"]) -> Score:
    """A task's score, computed in this process."""
    return score_task(experiment.clients, vectors(state), number, experiment.tasks[number], which)


def task_losses(experiment: Experiment, found: RoundGradients, present: Tensor) -> dict[str, float]:
    """F_n of the round's batches: the D_k-weighted mean over a task's devices that were present.

    Losses that are no numbers are left out, and tasks with none.
    """
    losses = {}
    for n, task in enumerate(experiment.tasks):
        weight = found.samples * present * (experiment.clients.task_of == n) * found.loss.isfinite()
        if weight.sum() > 0:
            losses[task.name] = float((weight * found.loss.nan_to_num(posinf=0.0, neginf=0.0) / weight.sum()).sum())
    return losses


def summarise(experiment: Experiment, records: list[RoundRecord], base: list[Score], final: Final | None) -> Summary:
    """The summary of the rounds so far; `final` is None where the run was interrupted."""
    count = len(base)
    last = final or Final([None] * count, [None] * count, [{}] * count)
    scored = [score.value for score in last.test if score]
    rows = {
        task.name: TaskSummary(
            metric=task.metric,
            base=start.value,
            final=end.value if end else None,
            base_balanced=start.balanced,
            final_balanced=end.balanced if end else None,
            samples=len(task.test.prompts),
            dev=dev,
            others=others,
        )
        for task, start, end, dev, others in zip(experiment.tasks, base, last.test, last.dev, last.others, strict=True)
    }
    pis = [row.pi for row in records if row.pi is not None and isfinite(row.pi)]
    phases = {phase: sum(row.seconds.get(phase, 0.0) for row in records) for phase in phases_of(records)}
    return Summary(
        method=experiment.method,
        rounds=len(records),
        tasks=rows,
        average=mean(scored) if scored else None,
        average_base=mean(score.value for score in base),
        pi_mean=mean(pis) if pis else None,
        ledger=sum((row.ledger for row in records), Ledger()),
        seconds=phases,
        exit="completed" if final else "interrupted",
    )


def phases_of(records: list[RoundRecord]) -> list[str]:
    """Phases of the rounds; the meter's only where something was metered."""
    return ["gradients", "air", "evaluate", *(["theory"] if any(row.theory for row in records) else [])]


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Put the wall-clock seconds of the block under `phase`."""
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start
