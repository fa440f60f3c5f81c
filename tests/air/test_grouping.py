"""Which tasks share a p-slot: partitions, the greedy merge, and what a limit on slots chooses."""

import pytest
import torch

from airpfed.air.grouping import merge_greedily, partitions, round_grouping
from support.uplinks import everyone, make_air, send


@pytest.mark.parametrize(
    ("tasks", "most", "count"), [(1, 1, 1), (3, 3, 5), (4, 4, 15), (4, 2, 8), (4, 1, 1), (5, 5, 52)]
)
def test_every_partition_comes_once(tasks, most, count):
    """Bell numbers, and Stirling numbers under a limit on the groups."""
    found = [frozenset(map(frozenset, grouping)) for grouping in partitions(tuple(range(tasks)), most)]
    assert len(found) == len(set(found)) == count
    assert all(sorted(n for group in one for n in group) == list(range(tasks)) and len(one) <= most for one in found)


def test_no_tasks_have_one_empty_grouping():
    assert list(partitions((), 3)) == [()]


def test_the_greedy_merge_puts_friends_together():
    """Tasks of equal parity do not disturb each other; a slot of both kinds costs 10 a pair."""

    def cost(group):
        return sum(1 if (a - b) % 2 == 0 else 10 for a in group for b in group if a < b)

    found = list(merge_greedily(tuple(range(8)), 8, cost))
    assert len(found[0]) == 8 and len(found[-1]) == 1
    assert ((0, 2, 4, 6), (1, 3, 5, 7)) in found
    assert [len(one) for one in merge_greedily(tuple(range(8)), 2, cost)] == [2, 1]


def test_a_task_without_anything_personal_has_no_slot():
    link = make_air("mmse", access="auto", lengths=(0, 37))
    assert round_grouping(link, 1, everyone(link)) == ((1,),)
    assert round_grouping(link, 1, link.task_of == 0) == ()


def test_without_anything_personal_there_is_no_p_slot():
    """A method without p-adapters over `auto`: the round of `tdma`."""
    received = []
    for access in ("auto", "tdma"):
        link = make_air("mmse", access=access, lengths=(0, 0), personal_groups=())
        if access == "auto":
            assert round_grouping(link, 1, everyone(link)) == ()
        shared = torch.randn(5, 41, generator=torch.Generator().manual_seed(3))
        received.append(send(link, 1, shared, torch.zeros(5, 0), everyone(link)))
    assert torch.equal(received[0].shared, received[1].shared) and not received[0].mse.p
