"""The frozen-prefix cache: a kept value is what the layers would give, whoever asked for it first."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from airpfed.config import settings_file
from airpfed.devices.clients import Clients
from airpfed.devices.evaluate import classify
from airpfed.devices.prefix_cache import PAGE, PrefixCache, stack
from airpfed.model.forward import logits, prefix_output, with_adapters
from airpfed.model.tokens import Encoding, batches_by_length, collate
from airpfed.training.evaluate import model_of
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import vectors
from support.experiments import experiment_of

KINDS = pytest.mark.parametrize("kind", ["llama", "bert"])


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    settings = settings_file.read_settings(
        file, ["adapters.layers=last-4", "tasks.*.samples_per_device=20", *overrides]
    )
    return experiment_of(settings)


@pytest.fixture
def made(kind: str, request: pytest.FixtureRequest) -> TrainingSetup:
    return experiment(request.getfixturevalue(f"{kind}_settings"))


def kept(clients: Clients, requests: list[list[int]]) -> dict[int, Tensor]:
    """What a fresh cache gives when its shelf is asked for these batches, one after another."""
    cache = PrefixCache(clients.backbone)
    found: dict[int, Tensor] = {}
    for rows in requests:
        found |= dict(zip(rows, cache.rows("device 0", clients.shards[0], rows) or (), strict=True))
    return found


@KINDS
def test_values_do_not_depend_on_which_batch_asked(made: TrainingSetup) -> None:
    count = len(made.clients.shards[0])
    assert count > PAGE, "more than one page"
    whole = kept(made.clients, [list(range(count))])
    single = kept(made.clients, [[i] for i in reversed(range(count))])
    mixed = kept(made.clients, [[3, 1], [count - 1, 3, 0], list(range(count))])
    for index in range(count):
        assert torch.equal(whole[index], single[index]) and torch.equal(whole[index], mixed[index])


def test_memory_limit_changes_where_values_lie_and_nothing_else(llama_settings: Path) -> None:
    clients = experiment(llama_settings).clients
    shard, every = clients.shards[0], list(range(len(clients.shards[0])))
    whole = PrefixCache(clients.backbone).rows("device 0", shard, every) or []
    some = sum(value.nbytes for value in whole) / 2
    for room in (0.0, some / 1e9):
        limited = PrefixCache(clients.backbone, room)
        for _ in range(2):
            for index in reversed(every):
                (found,) = limited.rows("device 0", shard, [index]) or []
                assert torch.equal(found, whole[index])
        held = sum(value.nbytes for value in limited._in_memory.values())
        assert held <= room * 1e9 and bool(limited._in_memory) == (room > 0) and limited._in_file


def test_bfloat16_rounds_each_entry_by_its_last_place(llama_settings: Path) -> None:
    clients = experiment(llama_settings).clients
    shard, every = clients.shards[0], list(range(8))
    exact = PrefixCache(clients.backbone).rows("device 0", shard, every) or []
    for room in (1.0, 0.0):
        rounded = PrefixCache(clients.backbone, room, "bfloat16").rows("device 0", shard, every) or []
        for a, b in zip(exact, rounded, strict=True):
            assert b.dtype == torch.float32 and ((a - b).abs() <= 2**-8 * a.abs()).all() and not torch.equal(a, b)
            assert torch.equal(b, a.bfloat16().float())


@KINDS
def test_a_kept_value_is_the_layers_own(made: TrainingSetup) -> None:
    """Each sample alone, without padding, through the layers below the lowest adapter, one after another."""
    base, shard = made.clients.backbone, made.clients.shards[0]
    assert len(base.prefix) == 8
    found = kept(made.clients, [list(range(len(shard)))])
    for index, sample in enumerate(shard):
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            seen = []
            handle = base.prefix[-1].base.register_forward_hook(lambda _m, _a, out, s=seen: s.append(out))
            base.model(input_ids=ids)
            handle.remove()
        alone = seen[0] if isinstance(seen[0], Tensor) else seen[0][0]
        torch.testing.assert_close(found[index], alone[0], rtol=1e-5, atol=1e-5)
        again = prefix_output(base, ids, torch.ones_like(ids, dtype=torch.bool))
        torch.testing.assert_close(again, alone, rtol=0, atol=0)


@KINDS
def test_the_model_goes_on_from_a_kept_value_as_from_its_own(made: TrainingSetup) -> None:
    clients, rng = made.clients, torch.Generator().manual_seed(0)
    values = {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}
    rows = [0, 5, 2, 7]
    samples = [clients.shards[0][i] for i in rows]
    batch = collate(samples, clients.backbone.tokenizer.pad_token_id, clients.backbone.causal)
    hidden = stack(clients.cache.rows("device 0", clients.shards[0], rows) or [], clients.backbone.causal)
    with torch.no_grad(), with_adapters(clients.backbone, model_of(clients, values, 0, 0)):
        plain = logits(clients.backbone, batch.ids, batch.mask, 1)
        resumed = logits(clients.backbone, batch.ids, batch.mask, 1, hidden)
        again = logits(clients.backbone, batch.ids, batch.mask, 1)
    torch.testing.assert_close(resumed, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(plain, again), "a kept value leaves nothing behind"


class NoCache(PrefixCache):
    def rows(self, shelf: str, samples: object, indices: object) -> None:
        return None


@KINDS
def test_evaluation_agrees_with_and_without_the_cache(made: TrainingSetup) -> None:
    clients, rng = made.clients, torch.Generator().manual_seed(0)
    values = {s: 0.2 * torch.randn(v.shape, generator=rng) for s, v in vectors(made.initial).items()}
    bare = Clients(**{**vars(clients), "cache": NoCache(clients.backbone)})
    answers: list[int] = []
    for n, task in enumerate(made.tasks):
        for factors in (None, model_of(clients, values, n, 0)):
            shelf = f"test {task.name}"
            found = [classify(one, factors, shelf, task.test.prompts, task.choices) for one in (clients, bare)]
            assert found[0] == found[1]
            answers += found[0]
    assert len(set(answers)) > 1


def test_there_is_no_cache_where_the_lowest_layer_has_an_adapter(llama_settings: Path) -> None:
    clients = experiment(llama_settings, "adapters.layers=all").clients
    assert clients.cache.rows("device 0", clients.shards[0], [0]) is None


def test_pages_hold_each_sample_once_in_the_order_of_length() -> None:
    samples = [Encoding(tuple(range(1 + (7 * i) % 11)), (0,)) for i in range(2 * PAGE + 3)]
    found = batches_by_length(samples, PAGE)
    assert [len(page) for page in found] == [PAGE, PAGE, 3]
    order = [i for page in found for i in page]
    assert sorted(order) == list(range(len(samples)))
    lengths = [len(samples[i].ids) for i in order]
    assert lengths == sorted(lengths)
