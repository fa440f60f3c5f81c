"""Named tensors and flat vectors: inverse for every method, one order whatever the dict's, contiguous groups."""

import random

import pytest
import torch
from torch import Tensor

from airpfed.model.layout import (
    KINDS,
    Layout,
    Vectors,
    arrange_layout,
    flatten,
    gather,
    initial_vectors,
    num_copies,
    trained_factors,
)
from airpfed.model.methods import METHODS, SCOPES, Scope, blocks_of

SITES = {f"model.layers.{i}.{name}": shape for i in range(12) for name, shape in (("q", (5, 7)), ("down", (7, 9)))}
HEADS = {"dense": (6, 7), "out": (4, 7)}
CLASSES = (4, 2, 3)
TASK_OF = torch.tensor([0, 0, 1, 2, 2])
DEVICE = torch.arange(5)
RANKS = [(2, 3), (5, 0), (0, 5)]

every_method = pytest.mark.parametrize("method", METHODS)
every_split = pytest.mark.parametrize("ranks", RANKS)


def made(method: str, ranks: tuple[int, int] = (2, 3), heads: dict[str, tuple[int, int]] = HEADS) -> Layout:
    return arrange_layout(SITES, blocks_of(method, *ranks), heads, CLASSES if heads else (0, 0, 0))


def random_vectors(order: Layout) -> Vectors:
    rng = torch.Generator().manual_seed(0)
    return {s: torch.randn(num_copies(s, 3, 5), order.size(s), generator=rng) for s in SCOPES}


def own_rows(vectors: Vectors) -> Vectors:
    """Each device's row of every scope."""
    row = {"global": torch.zeros_like(DEVICE), "frozen": torch.zeros_like(DEVICE), "task": TASK_OF, "device": DEVICE}
    return {scope: vectors[scope][row[scope]] for scope in SCOPES}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@every_method
@every_split
@pytest.mark.parametrize("heads", [HEADS, {}], ids=["heads", "no heads"])
def test_flatten_undoes_gather(method: str, ranks: tuple[int, int], heads: dict[str, tuple[int, int]]) -> None:
    order = made(method, ranks, heads)
    vectors = random_vectors(order)
    assert same(flatten(gather(vectors, order, TASK_OF, DEVICE), order), own_rows(vectors))


@every_method
@every_split
def test_gather_undoes_flatten(method: str, ranks: tuple[int, int]) -> None:
    order = made(method, ranks)
    shapes = gather(random_vectors(order), order, TASK_OF, DEVICE)
    rng = torch.Generator().manual_seed(1)
    factors = {key: torch.randn(tensor.shape, generator=rng) for key, tensor in shapes.items()}
    flat = flatten(factors, order)
    for k in range(5):
        one = {scope: rows[k : k + 1] for scope, rows in flat.items()}
        again = gather(one, order, torch.tensor([0]), torch.tensor([0]))
        assert same(again, {key: tensor[k : k + 1] for key, tensor in factors.items()})


@every_method
def test_every_factor_has_the_total_rank(method: str) -> None:
    order = made(method)
    factors = gather(random_vectors(order), order, TASK_OF, DEVICE)
    assert factors.keys() == {f"{n}.{k}" for n in SITES for k in "AB"} | {f"{n}.head" for n in HEADS}
    for name, (out, width) in SITES.items():
        assert factors[f"{name}.A"].shape == (5, 5, width) and factors[f"{name}.B"].shape == (5, out, 5)


@every_method
def test_order_does_not_depend_on_the_order_of_the_layers_given(method: str) -> None:
    names = list(SITES)
    for seed in range(5):
        random.Random(seed).shuffle(names)
        assert arrange_layout({n: SITES[n] for n in names}, blocks_of(method, 2, 3), HEADS, CLASSES) == made(method)


def test_layers_lie_in_sorted_order_within_kind_and_block() -> None:
    """The order is the format of checkpoints: as strings sort, so layer 10 lies before layer 2."""
    entries = [e for e in made("fedit").entries if e.kind == "A" and e.layer.endswith(".q")]
    assert [e.layer.split(".")[2] for e in entries] == ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9"]


@every_method
@every_split
def test_groups_are_contiguous_and_cover_their_scope(method: str, ranks: tuple[int, int]) -> None:
    order = made(method, ranks)
    for scope in SCOPES:
        edges = [0, *(edge for group in order.groups(scope) for edge in group), order.size(scope)]
        assert edges[0::2] == edges[1::2], f"{scope}: a gap or an overlap in {order.groups(scope)}"
        kinds = [e.kind for e in order.entries if e.scope == scope]
        assert kinds == sorted(kinds, key=KINDS.index)
        assert len(order.groups(scope)) == len(set(kinds))
        for start, stop in order.groups(scope):
            inside = {e.kind for e in order.entries if e.scope == scope and start <= e.start and e.stop <= stop}
            assert len(inside) == 1, "a normaliser group holds one kind"


@every_method
def test_sizes_add_up_to_the_parameters_of_the_adapters(method: str) -> None:
    order = made(method)
    adapters = sum(5 * (out + width) for out, width in SITES.values())
    assert sum(order.size(scope) for scope in SCOPES) == adapters + sum(rows * row for rows, row in HEADS.values())


@every_method
def test_a_task_with_fewer_classes_misses_exactly_the_tail(method: str) -> None:
    order = made(method)
    widest, row = HEADS["out"]
    assert order.task_lengths == tuple(order.size("task") - (widest - c) * row for c in CLASSES)
    for c, length in zip(CLASSES, order.task_lengths, strict=True):
        vectors = {s: torch.zeros(num_copies(s, 3, 5), order.size(s)) for s in SCOPES}
        vectors["task"][:, length:] = 1.0
        factors = gather(vectors, order, TASK_OF, DEVICE)
        head = factors.pop("out.head")
        assert (head[:, c:] == 1).all() and (head[:, :c] == 0).all()
        assert all((tensor == 0).all() for tensor in factors.values())


def test_without_a_head_all_tasks_have_one_length() -> None:
    order = made("airpfed", heads={})
    assert order.task_lengths == (order.size("task"),) * 3


def test_all_methods_of_one_total_rank_start_from_the_same_factors() -> None:
    heads = {name: torch.randn(shape, generator=torch.Generator().manual_seed(2)) for name, shape in HEADS.items()}
    starts = []
    for method in METHODS:
        for ranks in RANKS:
            order = made(method, ranks)
            begin = initial_vectors(order, heads, torch.Generator().manual_seed(3))
            starts.append(gather(begin, order, torch.tensor([0]), torch.tensor([0])))
    assert all(same(one, starts[0]) for one in starts)
    assert all((starts[0][f"{name}.B"] == 0).all() for name in SITES)
    assert all(torch.equal(starts[0][f"{name}.head"][0], heads[name]) for name in HEADS)


def test_fresh_a_is_uniform_within_one_over_the_root_of_the_width() -> None:
    sites = {f"layers.{i}": (8, 100) for i in range(12)}
    order = arrange_layout(sites, blocks_of("airpfed", 2, 3), {}, (0,))
    begin = initial_vectors(order, {}, torch.Generator().manual_seed(4))
    factors = gather(begin, order, torch.tensor([0]), torch.tensor([0]))
    a = torch.cat([factors[f"{name}.A"].flatten() for name in sites]) * 100**0.5
    assert a.abs().max() <= 1
    count = len(a)
    assert abs(a.mean()) < 5 * (1 / 3 / count) ** 0.5
    assert abs(a.square().mean() - 1 / 3) < 5 * (4 / 45 / count) ** 0.5
    assert len(a.unique()) > 0.99 * count, "no two layers or blocks share their draw"


@pytest.mark.parametrize("head", SCOPES)
def test_a_head_lies_last_in_whatever_scope_it_has(head: Scope) -> None:
    """Only a task's own head can be cut to its classes; `initial` puts the model's head where it belongs."""
    order = arrange_layout(SITES, blocks_of("airpfed", 2, 3), HEADS, CLASSES, head)
    vectors = random_vectors(order)
    assert same(flatten(gather(vectors, order, TASK_OF, DEVICE), order), own_rows(vectors))
    assert [e.kind for e in order.entries if e.scope == head][-2:] == ["head", "head"]
    size = order.size("task")
    assert order.task_lengths == ((size, size - 2 * 7, size - 7) if head == "task" else (size,) * 3)
    rng = torch.Generator().manual_seed(1)
    heads = {name: torch.randn(shape, generator=rng) for name, shape in HEADS.items()}
    tail = torch.cat([weight.flatten() for weight in heads.values()])
    assert torch.equal(initial_vectors(order, heads, rng)[head][0, -len(tail) :], tail)


@pytest.mark.parametrize("head", ["task", "global"])
def test_turns_are_the_factors_and_cover_the_scope(head: Scope) -> None:
    order = arrange_layout(SITES, blocks_of("rolora", 2, 3), HEADS, CLASSES, head)
    groups, (b, a) = order.groups("global"), order.phases()
    assert a == groups[0] and b == (groups[1][0], order.size("global"))
    assert made("fedit").phases() == ((0, made("fedit").size("global")),)
    assert [order.active_columns(t) for t in (1, 2, 3)] == [b, a, b], "B in odd rounds, A in even rounds"
    assert made("fedit").active_columns(1) == made("fedit").active_columns(2) == (0, made("fedit").size("global"))


def test_what_a_server_added_is_cut_layer_by_layer() -> None:
    order = made("fedex")
    plain = gather(random_vectors(order), order, TASK_OF, DEVICE)
    rng = torch.Generator().manual_seed(3)
    added = torch.randn(1, sum(out * width for out, width in SITES.values()), generator=rng)
    factors = gather(random_vectors(order) | {"added": added}, order, TASK_OF, DEVICE)
    place = 0
    for name in sorted(SITES):
        out, width = SITES[name]
        assert torch.equal(factors[f"{name}.W"], added[0, place : place + out * width].view(out, width))
        place += out * width
    assert place == added.shape[1] and same(trained_factors(factors), plain)
