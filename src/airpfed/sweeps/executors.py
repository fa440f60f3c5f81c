"""Cells to workers: processes of this machine, or a Ray cluster; progress is read off the cells' own files."""

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
from airpfed.sweeps.trials import Trial, place_of
from airpfed.sweeps.worker import Result

TICK = 0.5
"""Seconds between two looks at what has been done."""

Done = tuple[Trial, Result]


def workers_of(wanted: int, settings: Settings) -> int:
    """How many cells are computed at once: as wanted, or one a core; on a GPU two, so that one fills the other's gaps.

    A thread a cell: separate cells never wait for each other, threads of one cell do at every layer.
    """
    from airpfed.experiment.build import torch_device

    if wanted:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 2 if torch_device(settings.run.device) == "cuda" else cores


def local(cells: Sequence[Trial], home: Path, command: str, workers: int, tick: Callable[[], None]) -> Iterator[Done]:
    """Compute cells, passing each on when it is done; `tick` is called every now and then.

    One worker computes in this process, several in their own. Ctrl-C lets the cells at work finish their round, passes
    them on as stopped, and is raised again at the end. Raises UserError if a worker was killed.
    """
    one = workers == 1 or len(cells) == 1
    context = multiprocessing.get_context("spawn")
    stop: Any = threading.Event() if one else context.Event()
    executor = (
        ThreadPoolExecutor(1)
        if one
        else ProcessPoolExecutor(min(workers, len(cells)), context, worker.begin, (Stopping(stop),))
    )
    jobs = [(cell.settings.model_dump_json(), place_of(cell, home), command) for cell in cells]
    try:
        waiting: dict[Future[Result], Trial] = {
            executor.submit(worker.work, *job, stop.is_set if one else None): cell
            for job, cell in zip(jobs, cells, strict=True)
        }
        yield from _gathered(waiting, stop, tick)
    finally:
        stop.set()  # whoever asked for the cells does not want the rest
        executor.shutdown(cancel_futures=True)


class Stopping:
    """`stop.is_set` as something that reaches another process."""

    def __init__(self, stop: Any) -> None:
        """Of an event."""
        self.stop = stop

    def __call__(self) -> bool:
        """Whether the event has come."""
        return bool(self.stop.is_set())


def _gathered(waiting: dict[Future[Result], Trial], stop: Any, tick: Callable[[], None]) -> Iterator[Done]:
    """Cells as they end, until none is left."""
    interrupted = False
    while waiting:
        try:
            ended, _ = wait(waiting, TICK, FIRST_COMPLETED)
            tick()
        except KeyboardInterrupt:
            if interrupted:
                os._exit(130)  # at once; workers end with their parent, each cell's last checkpoint stays
            interrupted = True
            stop.set()
            for future in list(waiting):
                if future.cancel():
                    del waiting[future]
            continue
        for future in ended:
            try:
                yield waiting.pop(future), future.result()
            except BrokenProcessPool:
                raise UserError(
                    "a worker process was killed (out of memory? --workers 1 needs least); "
                    "what is done stays, the same command goes on"
                ) from None
    if interrupted:
        raise KeyboardInterrupt


def on_ray(cells: Sequence[Trial], home: Path, command: str, address: str, tick: Callable[[], None]) -> Iterator[Done]:
    """Compute cells on a Ray cluster, a core each; `home` must be the same folder on every machine.

    address: as `ray.init` takes it, "local" starts one here. A cell whose machine dies is begun again elsewhere, from
    its last checkpoint. Raises UserError if Ray is not installed or not to be reached.
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
        remote = ray.remote(num_cpus=1, max_retries=3)(worker.work)
        place = home.resolve()
        waiting = {
            remote.remote(cell.settings.model_dump_json(), place_of(cell, place), command): cell for cell in cells
        }
        while waiting:
            ended, _ = ray.wait(list(waiting), num_returns=1, timeout=TICK)
            tick()
            for one in ended:
                yield waiting.pop(one), ray.get(one)
    finally:
        ray.shutdown()
