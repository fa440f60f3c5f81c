"""Passes over the model side by side, each on cores of its own: two small ones keep two cores busier than a large one.

A matrix product on two cores waits for the slower of them, and what lies between products mostly runs on one.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import heappop, heappush
from queue import SimpleQueue
from typing import TypeVar

import torch

from airpfed.model.backbone import Backbone

MOST = 4
"""Passes at once: more would wait for each other, for between its operations each one needs Python's lock."""

Part = TypeVar("Part")
Done = TypeVar("Done")


def workers(backbone: Backbone, parts: int) -> int:
    """How many passes run at once if there are at least so many parts; one on a GPU, which is busy with one.

    One, too, where copies of the model do not compute what it computes.
    """
    at_once = backbone.paths.parallel and backbone.device.type == "cpu"
    return max(1, min(torch.get_num_threads(), parts, MOST)) if at_once else 1


def side_by_side(
    backbone: Backbone, work: Callable[[Backbone, Part], Done], parts: Sequence[Part], count: int
) -> list[Done]:
    """work(backbone, part) of every part in their order, `count` at once and in any order.

    Each of these has a backbone that no other one uses, with the same weights, and an equal share of torch's threads.
    The first error ends it all; what is running then is waited for.
    """
    if count == 1:
        return [work(backbone, part) for part in parts]
    threads, free = torch.get_num_threads(), SimpleQueue[Backbone]()
    for own in backbone.twins(count):
        free.put(own)

    def one(part: Part) -> Done:
        own = free.get()
        try:
            return work(own, part)
        finally:
            free.put(own)

    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(max(1, threads // count),)) as pool:
            return list(pool.map(one, parts))
    finally:
        torch.set_num_threads(threads)  # what was set in a thread is what later ones begin with


def dealt(weights: Sequence[int], count: int, most: int) -> list[list[int]]:
    """Indices in at most `count` lists of about equal weight, none longer than `most`; the heaviest list first.

    The heaviest index goes first, each to the list that weighs least. count * most lists take them all.
    """
    lists: list[list[int]] = [[] for _ in range(count)]
    open_ones, total = [(0, n) for n in range(count)], [0] * count
    for index in sorted(range(len(weights)), key=lambda i: -weights[i]):
        _, n = heappop(open_ones)
        lists[n].append(index)
        total[n] += weights[index]
        if len(lists[n]) < most:
            heappush(open_ones, (total[n], n))
    order = sorted(range(count), key=lambda n: -total[n])
    return [sorted(lists[n]) for n in order if lists[n]]
