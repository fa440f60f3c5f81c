"""The loop of a run, on one page."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean as mean
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed import record
from airpfed.devices.fleet import Fleet, batches, gradients
from airpfed.devices.payload import Payload, all_bytes, rounded
from airpfed.errors import UserError
from airpfed.model.vector import Vectors
from airpfed.record import Ledger, RoundRecord, Summary, TaskSummary
from airpfed.rounds import checkpoint
from airpfed.rounds.evaluate import Score, TaskView, score, score_task
from airpfed.rounds.state import Optimizer, State, vectors
from airpfed.rounds.step import Link, finite, step


@dataclass(frozen=True)
class Collected:
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

    payload: how gradients travel. fingerprint: of settings, data and base model. collect, rate: the devices' work in a
    round, and a task's score; a federation asks real devices.
    """

    method: str
    fleet: Fleet
    tasks: tuple[TaskView, ...]
    link: Link
    initial: State
    optimizer: Optimizer
    lr: float
    rounds: int
    batch_size: int
    local_steps: int
    local_lr: float
    chunk: int
    eval_every: int
    seed: int
    fingerprint: str
    payload: Payload = "float32"
    collect: "Collect" = field(default_factory=lambda: simulated)
    rate: "Rate" = field(default_factory=lambda: simulated_score)


Collect = Callable[[Experiment, State], Collected]
Rate = Callable[[Experiment, State, int, Literal["dev", "test"]], Score | None]
"""(experiment, state, number of a task, split) -> the task's score; None where no device could be asked."""


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
    records = [row for row in record.load(out / "records.jsonl") if row.round <= state.round] if resumed else []
    record.rewrite(out / "records.jsonl", records)
    if not resumed:
        checkpoint.write(saved, state, experiment.seed, experiment.fingerprint)
    base = base_scores(experiment, saved / "base.json", resumed, say)
    while state.round < experiment.rounds and not stop():
        state, row = play_round(experiment, state)
        record.append(out / "records.jsonl", row)
        checkpoint.write(saved, state, experiment.seed, experiment.fingerprint)
        records.append(row)
        watch(row)
    final: list[Score] | None = None
    if state.round >= experiment.rounds:
        say("scoring the tasks' models on the test splits")
        final = [final_score(experiment, state, number) for number in range(len(experiment.tasks))]
    return Outcome(state, summarise(experiment, records, base, final), final is not None)


def base_scores(experiment: Experiment, path: Path, kept: bool, say: Callable[[str], None]) -> list[Score]:
    """Test scores of the untouched model: computed once, kept in the checkpoint's folder for a resumed run."""
    if kept and path.is_file():
        with suppress(KeyError, TypeError, ValueError):  # a damaged file is made again
            return [Score(*pair) for pair in json.loads(path.read_text(encoding="utf-8"))["scores"]]
    say("scoring the untouched model on the test splits")
    scores = [score(experiment.fleet, None, task, "test") for task in experiment.tasks]
    record.write_json(path, {"scores": [[one.value, one.balanced] for one in scores]})
    return scores


def final_score(experiment: Experiment, state: State, number: int) -> Score:
    """A task's score on its test split; UserError if there is nobody to ask: the run can then be resumed."""
    found = experiment.rate(experiment, state, number, "test")
    if found is None:
        raise UserError(f"no device of task {experiment.tasks[number].name} is there to be scored; go on with --resume")
    return found


def play_round(experiment: Experiment, state: State) -> tuple[State, RoundRecord]:
    """One round: gradients, uplink and update, evaluation where it is due; the next state and its record."""
    seconds: dict[str, float] = {}
    with timed(seconds, "gradients"):
        found = experiment.collect(experiment, state)
    with timed(seconds, "air"):
        state, received, present = step(
            state, found.gradients, found.cursors, experiment.link, experiment.optimizer, experiment.lr
        )
    with timed(seconds, "evaluate"):
        due = experiment.eval_every and state.round % experiment.eval_every == 0
        tasks = [(n, task) for n, task in enumerate(experiment.tasks) if due and task.dev.prompts]
        scores = {task.name: experiment.rate(experiment, state, n, "dev") for n, task in tasks}
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
        seconds=seconds,
    )


def simulated(experiment: Experiment, state: State) -> Collected:
    """All devices' work in this process; gradients as they come out of their payload."""
    fleet = experiment.fleet
    plan, cursors = batches(fleet, state.devices.cursors, experiment.batch_size, experiment.local_steps)
    found, loss = gradients(fleet, vectors(state), plan, experiment.local_lr, experiment.chunk)
    samples = torch.tensor([float(len(shard)) for shard in fleet.shards])
    cost = Ledger(payload_bytes=all_bytes(fleet.layout, fleet.task_of, experiment.payload))
    sent = rounded(found, finite(found), fleet.layout, fleet.task_of, experiment.payload, fleet.seed, state.round + 1)
    return Collected(sent, loss, cursors, samples, cost)


def simulated_score(experiment: Experiment, state: State, number: int, which: Literal["dev", "test"]) -> Score:
    """A task's score, computed in this process."""
    return score_task(experiment.fleet, vectors(state), number, experiment.tasks[number], which)


def task_losses(experiment: Experiment, found: Collected, present: Tensor) -> dict[str, float]:
    """F_n of the round's batches: the D_k-weighted mean over a task's devices that were present.

    Tasks with none are left out.
    """
    losses = {}
    for n, task in enumerate(experiment.tasks):
        weight = found.samples * present * (experiment.fleet.task_of == n)
        if weight.sum() > 0:
            losses[task.name] = float((weight * found.loss.nan_to_num() / weight.sum()).sum())
    return losses


def summarise(
    experiment: Experiment, records: list[RoundRecord], base: list[Score], final: list[Score] | None
) -> Summary:
    """The summary of the rounds so far; `final` is None where the run was interrupted."""
    after: list[Score] | list[None] = final or [None] * len(base)
    rows = {
        task.name: TaskSummary(
            metric=task.metric,
            base=start.value,
            final=end.value if end else None,
            base_balanced=start.balanced,
            final_balanced=end.balanced if end else None,
            samples=len(task.test.prompts),
        )
        for task, start, end in zip(experiment.tasks, base, after, strict=True)
    }
    pis = [row.pi for row in records if row.pi is not None]
    phases = {phase: sum(row.seconds.get(phase, 0.0) for row in records) for phase in ("gradients", "air", "evaluate")}
    return Summary(
        method=experiment.method,
        rounds=len(records),
        tasks=rows,
        average=mean(score.value for score in final) if final else None,
        average_base=mean(score.value for score in base),
        pi_mean=mean(pis) if pis else None,
        ledger=sum((row.ledger for row in records), Ledger()),
        seconds=phases,
        exit="completed" if final else "interrupted",
    )


@contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Put the wall-clock seconds of the block under `phase`."""
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start
