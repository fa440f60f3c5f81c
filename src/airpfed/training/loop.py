"""The loop of a run, on one page."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, Probe, RoundRecord, Summary
from airpfed.training import checkpoint
from airpfed.training.downlink import broadcast
from airpfed.training.factor_averaging import average_factors
from airpfed.training.round import round_step
from airpfed.training.setup import Log, RoundGradients, RoundTrace, TrainingSetup
from airpfed.training.state import State
from airpfed.training.summary import base_scores, final_scores, summarise


@dataclass(frozen=True)
class Outcome:
    """The state in which a run ended, its summary, and whether all rounds are done."""

    state: State
    summary: Summary
    completed: bool


def play(
    experiment: TrainingSetup,
    out: Path,
    resume: bool,
    on_round: Callable[[RoundRecord], None],
    should_stop: Callable[[], bool],
    log: Log,
) -> Outcome:
    """Run all rounds that are missing in the folder `out`, or up to the round in which `should_stop` turns true.

    Each round's record is on the disk before its checkpoint: a run that is killed anywhere and resumed ends in the same
    state, bit for bit (same machine and threads). Raises OSError if the disk fails; the last checkpoint is then good.
    """
    folder, records_file = out / "checkpoint", out / "records.jsonl"
    resumed = resume and checkpoint.exists(folder)
    state, records = experiment.initial, list[RoundRecord]()
    if resumed:
        state = checkpoint.load_state(folder, experiment.initial, experiment.fingerprint)
        records = read_records(records_file, state.round)
    # Records first: rounds past the checkpoint are dropped, and they are played again. `clear` then removes tensors
    # that a kill during a save left behind. Neither step changes the checkpoint, so a kill in between can be resumed.
    run_files.write_records(records_file, records)
    if resumed:
        checkpoint.clear(folder, checkpoint.tensor_file(state.round))
    else:
        checkpoint.save_state(folder, state, experiment.seed, experiment.fingerprint)
    probe = experiment.probe(experiment.initial, out / "theory.json", resumed, log) if experiment.probe else None
    base = base_scores(experiment, folder / "base.json", log)
    while has_round_left(experiment, records) and not should_stop():
        state, record = play_round(experiment, state, probe)
        run_files.append_record(records_file, record)
        checkpoint.save_state(folder, state, experiment.seed, experiment.fingerprint)
        records.append(record)
        on_round(record)
    completed = not has_round_left(experiment, records)
    final = final_scores(experiment, state, records, log) if completed else None
    return Outcome(state, summarise(experiment, records, base, final), completed)


def play_round(experiment: TrainingSetup, state: State, probe: Probe | None = None) -> tuple[State, RoundRecord]:
    """One round: gradients, uplink and update, dev scores and theory if they are due. Returns the next state.

    probe: the theory's probe; required if it sets the step size, and for the monitor.
    """
    seconds: dict[str, float] = {}
    server_step = experiment.server_step.resolve(probe.eta if probe else None).of_round(state.round + 1)
    eta = server_step.step_size
    with time_phase(seconds, "gradients"):
        devices = experiment.collect(experiment, state)
    with time_phase(seconds, "air"):
        if experiment.factor_averaging:
            next_state, received, present = average_factors(
                experiment.factor_averaging, state, devices.gradients, devices.cursors
            )
        else:
            next_state, received, present = round_step(
                state, devices.gradients, devices.cursors, experiment.aggregate, server_step
            )
        if experiment.downlink_bits is not None:
            next_state = broadcast(next_state, experiment.clients.layout, experiment.downlink_bits)
    t = next_state.round
    accuracy: dict[str, float] = {}
    with time_phase(seconds, "evaluate"):
        if experiment.eval_every and t % experiment.eval_every == 0:
            for n, task in enumerate(experiment.tasks):
                score = experiment.evaluate_task(experiment, next_state, n, "dev") if task.dev.prompts else None
                if score:
                    accuracy[task.name] = score.value
    theory = None
    if experiment.monitor and probe and experiment.monitor.is_due(t):
        with time_phase(seconds, "theory"):
            trace = RoundTrace(state, next_state, devices.gradients, devices.cursors, present)
            theory = experiment.monitor.check_round(probe, experiment.initial, trace, eta)
    return next_state, RoundRecord(
        round=t,
        loss=task_losses(experiment, devices, present),
        accuracy=accuracy,
        mse=received.mse,
        pi=received.pi,
        pi_claimed=received.pi_claimed,
        correlation=list(received.correlation),
        absent=(~present).nonzero().flatten().tolist(),
        late=list(devices.late),
        lr=eta if experiment.server_step.has_schedule else None,
        clipped=devices.clipped,
        ledger=received.ledger + devices.cost,  # the air + the messages
        theory=theory,
        seconds=seconds,
    )


def read_records(path: Path, rounds: int) -> list[RoundRecord]:
    """The records of the rounds up to a checkpoint.

    rounds: number of rounds done. Raises UserError unless each has one record.
    """
    records = [record for record in run_files.load_records(path) if record.round <= rounds]
    if [record.round for record in records] != list(range(1, rounds + 1)):
        raise UserError(
            f"{path}: should hold rounds 1 to {rounds}, as the checkpoint does, each once; restore it, or start a new "
            "run with another --out"
        )
    return records


def has_round_left(experiment: TrainingSetup, records: Sequence[RoundRecord]) -> bool:
    """Whether fewer than T rounds are done, and one more round fits into the budgets of time.

    The next round counts as the longest round so far does.
    """

    def air_seconds(ledger: Ledger) -> float:
        both = experiment.air_seconds_of == "both"
        return ledger.air_seconds + ledger.downlink_seconds if both else ledger.air_seconds

    budgets = (air_seconds, experiment.air_seconds), (lambda ledger: ledger.total_seconds, experiment.seconds)
    if len(records) >= experiment.rounds:
        return False
    for seconds_of, budget in budgets:
        seconds = [seconds_of(record.ledger) for record in records]
        if budget is not None and sum(seconds) + max(seconds, default=0.0) > budget:
            return False
    return True


def task_losses(experiment: TrainingSetup, devices: RoundGradients, present: Bool[Tensor, " K"]) -> dict[str, float]:
    """F_n of the round's mini-batches: the D_k-weighted mean over a task's devices that were present.

    Losses that are not finite are left out, and tasks without a finite loss.
    """
    losses = {}
    for n, task in enumerate(experiment.tasks):
        weight = devices.samples * present * (experiment.clients.task_of == n) * devices.loss.isfinite()
        if weight.sum() > 0:
            loss = devices.loss.nan_to_num(posinf=0.0, neginf=0.0)
            losses[task.name] = float((weight * loss / weight.sum()).sum())
    return losses


@contextmanager
def time_phase(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall-clock seconds spent in the `with` block to seconds[phase]."""
    begin = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - begin
