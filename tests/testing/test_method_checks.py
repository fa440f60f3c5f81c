"""The contract of methods: our rows keep it, and a method of a user that breaks it is told how."""

import random

import pytest

from airpfed import testing
from airpfed.model.methods import METHODS, Block, Method


@pytest.mark.parametrize("name", METHODS)
def test_our_methods_keep_the_contract(name):
    report = testing.check_method(name)
    assert report.ok, str(report)


def shared_a(rank_shared, rank_personal, *, frozen: bool = False):
    """A shared by all, B by the devices of a task, as a user would write it."""
    return (Block(rank_shared + rank_personal, "frozen" if frozen else "global", "task"),)


def test_a_users_function():
    report = testing.check_method(shared_a, frozen=True)
    assert report.ok, str(report)
    assert str(report).startswith("method shared_a(frozen=true): all 10 checks pass")


def forgets_a_rank(rank_shared, rank_personal):
    return (Block(rank_shared, "global", "global"),)


def unknown_scope(rank_shared, rank_personal):
    return (Block(rank_shared + rank_personal, "global", "cluster"),)


def frozen_b(rank_shared, rank_personal):
    return (Block(rank_shared + rank_personal, "global", "frozen"),)


def half_alternates(rank_shared, rank_personal):
    return Block(rank_shared, "global", "global", alternating=True), Block(rank_personal, "global", "task")


def alternates_by_task(rank_shared, rank_personal):
    return (Block(rank_shared + rank_personal, "task", "task", alternating=True),)


def a_list(rank_shared, rank_personal):
    return [Block(rank_shared + rank_personal, "global", "global")]


def half_ranks(rank_shared, rank_personal):
    return (Block((rank_shared + rank_personal) / 2, "global", "global"),)


def needs_both_ranks(rank_shared, rank_personal):
    return Block(rank_shared + rank_personal, "global", "task" if 1 / rank_personal else "global"), Block(
        0, "task", "task"
    )


def at_random(rank_shared, rank_personal):
    return (Block(rank_shared + rank_personal, "global", random.choice(("global", "task", "device"))),)


@pytest.mark.parametrize(
    ("method", "check", "words"),
    [
        (forgets_a_rank, "ranks", "ranks (2, 2): the blocks have rank 2 in all; should be 4"),
        (forgets_a_rank, "export as one adapter", "PEFT expects (4, 4)"),
        (unknown_scope, "scopes", "the scope 'cluster'; should be one of global, task, device, frozen"),
        (frozen_b, "something is trained", "block 0 has a frozen B"),
        (half_alternates, "alternating factors", "does not alternate beside one that does"),
        (alternates_by_task, "alternating factors", "should be global, global"),
        (a_list, "gives blocks", "should be a tuple of Block"),
        (half_ranks, "gives blocks", "should be a whole number"),
        (needs_both_ranks, "gives blocks", "ranks (4, 0): raises ZeroDivisionError"),
        (at_random, "deterministic", "two calls give"),
        (Method(shared_a, averages=True), "error-free link", "say so in error_free"),
        (Method(shared_a, error_free="it averages", averages=True), "error-free link", "shared_a has none"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_named(method, check, words):
    report = testing.check_method(method)
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]


def test_columns_that_the_layout_loses_are_seen(monkeypatch):
    """The layout itself is checked elsewhere; a column that is in no phase shows that the checks look."""
    from airpfed.model.layout import Layout
    from airpfed.testing import methods

    with monkeypatch.context() as patch:
        patch.setattr(
            methods, "flatten", lambda *args, flatten=methods.flatten: {s: -v for s, v in flatten(*args).items()}
        )
        assert [result.name for result in testing.check_method("fedit").failures] == ["columns of the layout"]
    phases = Layout.phases
    monkeypatch.setattr(Layout, "phases", lambda layout: tuple((a, b - 1) for a, b in phases(layout)))
    assert [result.name for result in testing.check_method("fedit").failures] == ["every column has its rounds"]
