"""Passes side by side: the numbers of passes one after another, and nothing left behind."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from airpfed.config import settings_file
from airpfed.devices.clients import draw_batches
from airpfed.devices.evaluate import classify
from airpfed.devices.gradients import gradients
from airpfed.devices.parallel import MAX_WORKERS, balance, run_parallel, worker_count
from airpfed.model.backbone import Backbone
from airpfed.training.evaluate import model_of
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import vectors
from support.experiments import experiment_of


@pytest.fixture
def threads() -> Iterator[None]:
    """Three of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["small_settings", "bert_settings"])
def settings(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def experiment(settings: Path, *changes: str) -> TrainingSetup:
    read = settings_file.read_settings(settings, ["run.threads=3", *changes])
    return experiment_of(read)


def alone(work: object, *given: object) -> object:
    torch.set_num_threads(1)
    try:
        return work(*given)  # type: ignore[operator]
    finally:
        torch.set_num_threads(3)


@pytest.mark.parametrize("layers", ["all", "last-2"])
@pytest.mark.parametrize("cache_gb", ["4", "1e-6"])
@pytest.mark.usefixtures("threads")
def test_gradients_and_answers_are_those_of_one_after_another(settings: Path, layers: str, cache_gb: str) -> None:
    made = experiment(settings, f"adapters.layers={layers}", f"devices.cache_gb={cache_gb}")
    clients, rng = made.clients, torch.Generator().manual_seed(0)
    values = {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}
    plan, _ = draw_batches(clients, made.initial.devices.cursors, 4, 2)
    assert worker_count(clients.backbone, 3) == 3
    wanted, losses = alone(gradients, clients, values, plan, 0.1, 3)  # type: ignore[misc]
    for _ in range(5):
        found, loss = gradients(clients, values, plan, 0.1, 3)
        torch.testing.assert_close(loss, losses, rtol=1e-5, atol=1e-6)
        for scope, rows in wanted.items():
            assert not rows.numel() or (found[scope] - rows).norm() <= 1e-5 * rows.norm()
    answers = list[int]()
    for n, task in enumerate(made.tasks):
        words = clients, model_of(clients, values, n, 0), f"test {task.name}", task.test.prompts, task.choices
        found_answers = classify(*words)
        assert found_answers == alone(classify, *words)
        answers += found_answers
    assert len(set(answers)) > 1 or layers == "all", "a tiny BERT takes all alike"
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("threads")
def test_every_pass_has_a_backbone_of_its_own_with_the_same_weights(settings: Path) -> None:
    backbone = experiment(settings, "adapters.layers=last-2").clients.backbone
    at_once, seen = threading.Barrier(3), list[tuple[Backbone, int, int]]()

    def work(own: Backbone, part: int) -> int:
        at_once.wait(10)
        seen.append((own, torch.get_num_threads(), part))
        return part * part

    assert run_parallel(backbone, work, range(6), 3) == [0, 1, 4, 9, 16, 25]
    own = {id(one.model): one for one, _, _ in seen}
    assert len(own) == 3 and {count for _, count, _ in seen} == {1}
    modules = [{id(module) for module in one.model.modules()} for one in own.values()]
    assert not set.intersection(*modules)
    tensors = [[p.data_ptr() for p in one.model.parameters()] for one in own.values()]
    assert tensors[0] == tensors[1] == tensors[2]
    for one in own.values():
        inside = {id(module) for module in one.model.modules()}
        assert (
            len(one.prefix) == len(backbone.prefix) > 1
            and {id(part) for part in [*one.layers.values(), *one.prefix]} <= inside
        )


@pytest.mark.usefixtures("threads")
def test_an_error_in_one_pass_ends_them_all(llama_settings: Path) -> None:
    backbone = experiment(llama_settings).clients.backbone
    begun = list[int]()

    def work(_own: Backbone, part: int) -> None:
        begun.append(part)
        if part == 0:
            raise ArithmeticError("no more")

    with pytest.raises(ArithmeticError, match="no more"):
        run_parallel(backbone, work, range(1000), 2)
    assert len(begun) < 1000
    counts = list[int]()
    later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert [torch.get_num_threads(), *counts] == [3, 3]


@pytest.mark.usefixtures("threads")
def test_passes_at_once_are_no_more_than_threads_or_parts(llama_settings: Path) -> None:
    backbone = experiment(llama_settings).clients.backbone
    assert [worker_count(backbone, parts) for parts in (1, 2, 3, 9)] == [1, 2, 3, 3]
    torch.set_num_threads(MAX_WORKERS + 2)
    assert worker_count(backbone, 99) == MAX_WORKERS


def test_the_heaviest_are_dealt_first_and_no_list_is_longer_than_allowed() -> None:
    assert balance([1, 9, 4, 4, 1], 2, 5) == [[1, 4], [0, 2, 3]]
    assert balance([100, 1, 1, 1, 1], 2, 3) == [[0, 4], [1, 2, 3]]
    assert balance([1, 1, 1], 5, 1) == [[0], [1], [2]]
