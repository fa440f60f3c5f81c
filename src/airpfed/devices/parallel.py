"""Several passes over the model at the same time, each on its own CPU cores.

Two small passes keep two cores busier than one large pass: a matrix product on two cores waits for the slower core, and
most work between products runs on one core.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import heappop, heappush
from queue import SimpleQueue
from typing import TypeVar

import torch

from airpfed.model.backbone import Backbone

MAX_WORKERS = 4
"""Passes at the same time. More passes would wait for each other, because every operation needs Python's lock."""

Part = TypeVar("Part")
Result = TypeVar("Result")


def worker_count(backbone: Backbone, parts: int) -> int:
    """Passes at the same time for `parts` parts of work.

    One on a GPU, where a single pass is enough, and one where replicas of the model give other numbers.
    """
    parallel = backbone.paths.parallel and backbone.device.type == "cpu"
    return max(1, min(torch.get_num_threads(), parts, MAX_WORKERS)) if parallel else 1


def run_parallel(
    backbone: Backbone, work: Callable[[Backbone, Part], Result], parts: Sequence[Part], workers: int
) -> list[Result]:
    """Results of work(backbone, part), in the order of `parts`; `workers` calls run at the same time, in any order.

    Each running call has its own replica of the backbone (same weights, other modules) and an equal share of torch's
    threads. The first error is raised after the running calls have ended; no further call starts.
    """
    if workers == 1:
        return [work(backbone, part) for part in parts]
    threads, free = torch.get_num_threads(), SimpleQueue[Backbone]()
    for replica in backbone.replicas(workers):
        free.put(replica)

    def run(part: Part) -> Result:
        replica = free.get()
        try:
            return work(replica, part)
        finally:
            free.put(replica)

    share = max(1, threads // workers)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            return list(pool.map(run, parts))
    finally:
        torch.set_num_threads(threads)  # a thread's setting is the default of later threads


def balance(weights: Sequence[int], count: int, max_length: int) -> list[list[int]]:
    """Indices of `weights` in at most `count` lists of similar total weight; the heaviest list first.

    The heaviest index goes first, and each index goes to the lightest list with fewer than `max_length` entries.
    Needs count * max_length >= len(weights).
    """
    lists: list[list[int]] = [[] for _ in range(count)]
    queue, totals = [(0, n) for n in range(count)], [0] * count
    for index in sorted(range(len(weights)), key=lambda i: -weights[i]):
        _, n = heappop(queue)
        lists[n].append(index)
        totals[n] += weights[index]
        if len(lists[n]) < max_length:
            heappush(queue, (totals[n], n))
    order = sorted(range(count), key=lambda n: -totals[n])
    return [sorted(lists[n]) for n in order if lists[n]]
