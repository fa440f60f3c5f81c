"""Executors of a sweep: processes of this machine, or a Ray cluster. Progress is read from the trials' own files."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.sweeps import worker
from airpfed.sweeps.trials import Trial, trial_folder
from airpfed.sweeps.worker import Result

TICK = 0.5
"""Seconds between two updates of the progress."""

TrialResult = tuple[Trial, Result]


def count_workers(requested: int, settings: Settings) -> int:
    """The number of trials to compute at once: the requested number, or for 0 one for each core, and two on a GPU.

    On a GPU the second trial fills the pauses of the first. A trial has one thread: the threads of one trial would wait
    for each other at every layer, while trials never do.
    """
    from airpfed.experiment.build import torch_device

    if requested:
        return requested
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if torch_device(settings.run.device) == "cuda" else cores


def run_local(
    trials: Sequence[Trial], sweep_folder: Path, command: str, workers: int, tick: Callable[[], None]
) -> Iterator[TrialResult]:
    """Compute trials on this machine and yield each when it ends; `tick` is called every TICK seconds.

    One worker computes in this process, several in processes of their own. On Ctrl-C the running trials finish their
    round and are yielded as stopped, and KeyboardInterrupt is raised at the end. Raises UserError if a worker was
    killed.
    """
    in_process = workers == 1 or len(trials) == 1
    context = multiprocessing.get_context("spawn")
    stop: Any = threading.Event() if in_process else context.Event()
    executor = (
        ThreadPoolExecutor(1)
        if in_process
        else ProcessPoolExecutor(min(workers, len(trials)), context, worker.start_worker, (StopFlag(stop),))
    )
    jobs = [(trial.settings.model_dump_json(), trial_folder(trial, sweep_folder), command) for trial in trials]
    try:
        pending: dict[Future[Result], Trial] = {
            executor.submit(worker.run_trial, *job, stop.is_set if in_process else None): trial
            for job, trial in zip(jobs, trials, strict=True)
        }
        yield from _collect(pending, stop, tick)
    finally:
        stop.set()  # the caller may have left before the last trial
        executor.shutdown(cancel_futures=True)


class StopFlag:
    """`event.is_set` in a form that can be sent to another process."""

    def __init__(self, event: Any) -> None:
        """Wrap an event of multiprocessing."""
        self.event = event

    def __call__(self) -> bool:
        """Whether the event is set."""
        return bool(self.event.is_set())


def _collect(pending: dict[Future[Result], Trial], stop: Any, tick: Callable[[], None]) -> Iterator[TrialResult]:
    """Yield trials as they end, until none is pending."""
    interrupted = False
    while pending:
        try:
            ended, _ = wait(pending, TICK, FIRST_COMPLETED)
            tick()
        except KeyboardInterrupt:
            if interrupted:
                os._exit(130)  # at once; workers end with their parent, and each trial keeps its last checkpoint
            interrupted = True
            stop.set()
            for future in list(pending):
                if future.cancel():
                    del pending[future]
            continue
        for future in ended:
            try:
                yield pending.pop(future), future.result()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed (out of memory? --workers 1 needs the least); finished trials are "
                    "kept, and the same command continues the sweep"
                ) from None
    if interrupted:
        raise KeyboardInterrupt


def run_on_ray(
    trials: Sequence[Trial], sweep_folder: Path, command: str, address: str, tick: Callable[[], None]
) -> Iterator[TrialResult]:
    """Compute trials on a Ray cluster, one core each; `sweep_folder` must be the same folder on every machine.

    address: the address for `ray.init`; "local" starts a cluster on this machine. If a machine dies, its trials resume
    elsewhere from their last checkpoints. Raises UserError if Ray is not installed or cannot be reached.
    """
    try:
        import ray
    except ImportError:
        raise UserError('--ray: Ray is not installed; run pip install "airpfed[ray]"') from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # Ray raises many kinds here
        raise UserError(f"--ray {address}: {str(error).splitlines()[0]}") from None
    try:
        remote = ray.remote(num_cpus=1, max_retries=3)(worker.run_trial)
        common_folder = sweep_folder.resolve()
        pending = {
            remote.remote(trial.settings.model_dump_json(), trial_folder(trial, common_folder), command): trial
            for trial in trials
        }
        while pending:
            ended, _ = ray.wait(list(pending), num_returns=1, timeout=TICK)
            tick()
            for reference in ended:
                yield pending.pop(reference), ray.get(reference)
    finally:
        ray.shutdown()
