"""Which tasks share a p-slot: the grouping of least error at equal channel uses and equal joules a device.

A grouping of fewer slots may repeat its symbols until it has used as many channel uses. Repeating r times at 1/r of the
power costs the same energy, divides the noise after averaging by r as well as the signal's power, and leaves the
interference where it was: its error is that of sending once. So groupings are compared by the errors that their designs
claim, sent once. Without interference nothing can be gained by sharing a slot; with a limit on the number of slots
the question is which tasks to put together.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from airpfed.air.problem import objective
from airpfed.air.schedule import Grouping, Uplink, plan
from airpfed.air.segments import problem_of

EXHAUSTIVE = 6
"""Up to this many tasks all partitions are compared (203 of 63 subsets); beyond, pairs of slots are merged greedily."""

Tasks = tuple[int, ...]


def best_grouping(
    link: Uplink,
    known: Complex[Tensor, "B M K"],
    csi_variance: Float[Tensor, "... K"],
    present: Bool[Tensor, " K"],
) -> Grouping:
    """The grouping of the tasks present into at most `air.personal_slots` p-slots, of least mean error over the blocks.

    known: channel estimates of all devices. Ties go to fewer slots.
    """
    tasks = tuple(sorted(set(link.task_of[present].tolist())))
    if not tasks:
        return ()
    costs: dict[Tasks, float] = {}

    def cost(group: Tasks) -> float:
        if group not in costs:
            costs[group] = error_of(link, known, csi_variance, present, group)
        return costs[group]

    most = min(link.personal_slots, len(tasks))
    candidates = partitions(tasks, most) if len(tasks) <= EXHAUSTIVE else merged(tasks, most, cost)
    return min(candidates, key=lambda grouping: (sum(map(cost, grouping)), len(grouping)))


def error_of(
    link: Uplink,
    known: Complex[Tensor, "B M K"],
    csi_variance: Float[Tensor, "... K"],
    present: Bool[Tensor, " K"],
    group: Tasks,
) -> float:
    """Mean objective of a p-slot of these tasks: errors of their sums weighed by D_n/D, devices of unit power."""
    personal = torch.zeros(len(present), max(link.lengths), dtype=torch.float32)
    slot = plan(link, personal[:, :0], personal, present, (group,))[0]
    problem = problem_of(link, slot, slot.weights, known, csi_variance)
    assert link.design is not None
    return float(objective(problem, link.design(problem)).mean())


def partitions(tasks: Tasks, most: int) -> Iterator[Grouping]:
    """All ways to put tasks into at most `most` groups, each once, groups ordered by their first task."""
    if not tasks:
        yield ()
        return
    first, rest = tasks[0], tasks[1:]
    for size in range(len(rest) + 1):
        for others in combinations(rest, size):
            left = tuple(n for n in rest if n not in others)
            if left and most == 1:
                continue
            for grouping in partitions(left, most - 1):
                yield ((first, *others), *grouping)


def merged(tasks: Tasks, most: int, cost: Callable[[Tasks], float]) -> Iterator[Grouping]:
    """From one task a slot on, the two slots whose union costs least more are merged, until one is left."""
    grouping: Sequence[Tasks] = [(n,) for n in tasks]
    while True:
        if len(grouping) <= most:
            yield tuple(grouping)
        if len(grouping) == 1:
            return
        pairs = combinations(grouping, 2)
        a, b = min(pairs, key=lambda pair: cost(tuple(sorted(pair[0] + pair[1]))) - cost(pair[0]) - cost(pair[1]))
        grouping = sorted([g for g in grouping if g not in (a, b)] + [tuple(sorted(a + b))])
