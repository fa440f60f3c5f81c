"""The tasks that share a p-slot: the grouping of least error at equal channel uses and equal joules per device.

A grouping of fewer slots may repeat its symbols until it has used as many channel uses. Repeating r times at 1/r of the
power costs the same energy. Averaging divides the noise by r, and signal and interference have 1/r of their power, so
that the error is that of sending once. Groupings are therefore compared by the claimed errors of sending once. Without
interference, sharing a slot never helps; with a limit on the number of slots the comparison decides which tasks share
one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from airpfed.air.alternating_factors import alternating_phases
from airpfed.air.problem import objective
from airpfed.air.schedule import Grouping, Updates, Uplink, schedule, slot_uses
from airpfed.air.segments import problem_of

EXHAUSTIVE = 6
"""Up to this many tasks all partitions are compared (203 of 63 subsets); beyond, pairs of slots are merged greedily."""

Tasks = tuple[int, ...]


def round_grouping(link: Uplink, t: int, present: Bool[Tensor, " K"]) -> Grouping:
    """The tasks of each p-slot of round t; access `auto` uses the channel estimates of the round's first block."""
    if link.access != "auto" or link.design is None:
        return fixed_grouping(link, present)
    channels = link.received_channels(t, 1)
    return best_grouping(link, channels.h_est, channels.csi_variance, present)


def fixed_grouping(link: Uplink, present: Bool[Tensor, " K"]) -> Grouping:
    """The grouping for access modes other than `auto`: all present tasks at once, or one after another."""
    tasks = tuple(sorted(set(link.task_of[present].tolist())))
    return tuple((n,) for n in tasks) if link.access == "tdma" else (tasks,) if tasks else ()


def round_blocks(link: Uplink) -> int:
    """The coherence blocks of a round in which every device sends; with access `auto`, the most that it can have.

    With alternating factors it is the longest of the phases' rounds.
    """
    if link.alternating:
        return max(round_blocks(phase.link) for phase in alternating_phases(link))
    devices, present = len(link.samples), torch.ones(len(link.samples), dtype=torch.bool)
    shared = torch.zeros(1, sum(b - a for a, b in link.shared_groups)).expand(devices, -1)
    personal = torch.zeros(1, max(link.lengths)).expand(devices, -1)
    grouping = fixed_grouping(replace(link, access="tdma") if link.access == "auto" else link, present)
    uses = sum(slot_uses(link, slot) for slot in schedule(link, Updates(shared, personal, present), grouping))
    return -(-uses // link.coherence_symbols)


def best_grouping(
    link: Uplink,
    h_est: Complex[Tensor, "B M K"],
    csi_variance: Float[Tensor, "... K"],
    present: Bool[Tensor, " K"],
) -> Grouping:
    """The grouping of the present tasks into at most `link.personal_slots` p-slots with the least mean error.

    h_est: channel estimates of all devices in the blocks that are averaged over. A tie goes to fewer slots.
    """
    tasks = tuple(n for n in sorted(set(link.task_of[present].tolist())) if link.lengths[n])
    if not tasks:
        return ()  # nobody, or nothing personal to send
    costs: dict[Tasks, float] = {}

    def cost(group: Tasks) -> float:
        if group not in costs:
            costs[group] = grouping_error(link, h_est, csi_variance, present, group)
        return costs[group]

    max_slots = min(link.personal_slots, len(tasks))
    candidates = partitions(tasks, max_slots) if len(tasks) <= EXHAUSTIVE else merge_greedily(tasks, max_slots, cost)
    return min(candidates, key=lambda grouping: (sum(map(cost, grouping)), len(grouping)))


def grouping_error(
    link: Uplink,
    h_est: Complex[Tensor, "B M K"],
    csi_variance: Float[Tensor, "... K"],
    present: Bool[Tensor, " K"],
    group: Tasks,
) -> float:
    """The mean objective of a p-slot of these tasks: errors weighted by D_n/D, for symbols of unit power."""
    personal = torch.zeros(len(present), max(link.lengths), dtype=torch.float32)
    slot = schedule(link, Updates(personal[:, :0], personal, present), (group,))[0]
    problem = problem_of(link, slot, slot.weights, h_est, csi_variance)
    assert link.design is not None
    return float(objective(problem, link.design(problem)).mean())


def partitions(tasks: Tasks, max_slots: int) -> Iterator[Grouping]:
    """Yield all partitions of the tasks into at most `max_slots` groups, ordered by the first task of a group."""
    if not tasks:
        yield ()
        return
    first, remaining = tasks[0], tasks[1:]
    for size in range(len(remaining) + 1):
        for partners in combinations(remaining, size):
            left = tuple(n for n in remaining if n not in partners)
            if left and max_slots == 1:
                continue
            for grouping in partitions(left, max_slots - 1):
                yield ((first, *partners), *grouping)


def merge_greedily(tasks: Tasks, max_slots: int, cost: Callable[[Tasks], float]) -> Iterator[Grouping]:
    """Start with one task per slot, then merge the two slots whose union adds the least cost, until one slot is left.

    Yields the groupings of at most `max_slots` slots.
    """
    grouping: Sequence[Tasks] = [(n,) for n in tasks]
    while True:
        if len(grouping) <= max_slots:
            yield tuple(grouping)
        if len(grouping) == 1:
            return
        pairs = combinations(grouping, 2)
        a, b = min(pairs, key=lambda pair: cost(tuple(sorted(pair[0] + pair[1]))) - cost(pair[0]) - cost(pair[1]))
        grouping = sorted([g for g in grouping if g not in (a, b)] + [tuple(sorted(a + b))])
