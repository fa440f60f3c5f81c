"""A pass computes what is read and no more: samples end to end read themselves, the last layer is where it is read."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from airpfed.model import attention
from airpfed.model.attention import (
    RowPositions,
    copy_to_all,
    copy_to_first,
    rearrange,
    row_positions,
    sum_over_all,
    take_first,
)
from airpfed.model.backbone import Backbone, FastPaths, layer_stack
from airpfed.model.forward import logits, model_inputs, packed_logits
from airpfed.model.tokens import IGNORED, Encoding, collate, pack

DECODERS = ("gemma", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
FIRST_TOKEN = ("bert", "camembert", "electra", "roberta", "xlm-roberta")

PRICES = {"one group": lambda rows, width: rows * width + 10**6, "many": lambda rows, width: rows * width * width}

SAMPLES = [Encoding(tuple(range(a, b)), (0, 0)) for a, b in ((3, 9), (10, 12), (20, 31), (33, 38))]


def tiny(kind: str, **more: Any) -> Any:
    torch.manual_seed(0)
    wanted = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    if kind in DECODERS:
        config = AutoConfig.for_model(kind, **wanted, num_key_value_heads=2, head_dim=4, **more)
        return AutoModelForCausalLM.from_config(config).eval()
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **wanted, num_labels=3)).eval()


def base(model: Any, causal: bool) -> Backbone:
    paths = FastPaths(packing=causal, last_layer=True, batching=True, pad_left=causal)
    return Backbone(model, None, "", causal, {}, {}, {}, (), paths=paths, stack_name=layer_stack(model)[0])


def entering(module: nn.Module, seen: list[int]) -> None:
    """Tokens that a module is given, pass by pass."""
    module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].flatten(0, -2).shape[0]))


@pytest.mark.parametrize("price", ["one group", "many"])
@pytest.mark.parametrize(("kind", "window"), [*((kind, None) for kind in DECODERS), ("mistral", 4), ("phi3", 4)])
def test_samples_end_to_end_do_not_see_each_other(
    kind: str, window: int | None, price: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "price", PRICES[price])
    model = tiny(kind, **({} if window is None else {"sliding_window": window}))
    one, batch, seen = base(model, True), pack(SAMPLES, [1, 3]), list[int]()
    entering(model.model.layers[-1].mlp, seen)
    with torch.no_grad():
        found = packed_logits(one, batch, [1, 3])
        assert seen == [8], "the last layer computes what is read"
        for sample, scores in zip(SAMPLES, found, strict=True):
            alone = model(input_ids=torch.tensor([sample.ids])).logits[0, -2:]
            torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*DECODERS, *FIRST_TOKEN])
def test_the_last_layer_is_computed_where_it_is_read_and_answers_the_same(kind: str) -> None:
    causal, seen = kind in DECODERS, list[int]()
    model = tiny(kind)
    one, batch = base(model, causal), collate(SAMPLES, 0, causal)
    with torch.no_grad():
        whole = model(**model_inputs(one, batch.ids, batch.mask)).logits
    top: Any = one.last_layer
    entering(top.mlp if causal else top.intermediate, seen)
    found = logits(one, batch.ids, batch.mask, 2 if causal else 1)
    torch.testing.assert_close(found, whole[:, -2:] if causal else whole[:, None], rtol=1e-4, atol=1e-5)
    assert seen == [8 if causal else 4]
    assert "forward" not in vars(top), "the layer is as it was"


def test_a_layer_of_another_make_cannot_be_cut_and_computes_everything_where_it_is_not() -> None:
    config = AutoConfig.for_model(
        "gpt2", vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    one, batch = base(model, True), collate(SAMPLES, 0, True)
    with pytest.raises(AttributeError):
        logits(one, batch.ids, batch.mask, 2)
    whole = one.with_paths(FastPaths(batching=True, pad_left=True))
    found = logits(whole, batch.ids, batch.mask, 2)
    torch.testing.assert_close(found, model(**model_inputs(whole, batch.ids, batch.mask)).logits[:, -2:])


def test_tokens_positions_and_targets_lie_in_their_places() -> None:
    found = pack([Encoding((5, 6, 7), (8, 9)), Encoding((3,), (4,)), Encoding((1, 2), (2, 3))], [1, 2])
    assert found.ids.tolist() == [5, 6, 7, 3, 1, 2]
    assert found.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert found.target_index.tolist() == [[1, 2], [3, 3], [4, 5]]
    assert found.targets.tolist() == [[8, 9], [IGNORED, 4], [2, 3]]
    assert found.lengths == (3, 1, 2)
    assert found.token_of.tolist() == found.first_use.tolist() == list(range(6)) and found.tokens_per_device == (3, 3)


def test_what_samples_of_a_device_begin_with_alike_is_there_once() -> None:
    """The second device begins like the first, and a sample may be the beginning of another."""
    ids = (5, 6, 7), (5, 6, 8, 7), (5, 6), (5, 6, 7), (6, 7)
    found = pack([Encoding(one, (9,)) for one in ids], [3, 2])
    assert found.ids.tolist() == [5, 6, 7, 8, 7, 5, 6, 7, 6, 7] and found.tokens_per_device == (5, 5)
    assert found.positions.tolist() == [0, 1, 2, 2, 3, 0, 1, 2, 0, 1]
    assert found.token_of.tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 5, 6, 7, 8, 9]
    assert found.first_use.tolist() == [0, 1, 2, 5, 6, 9, 10, 11, 12, 13]
    assert found.target_index.tolist() == [[2], [4], [1], [7], [9]] and found.lengths == (3, 4, 2, 3, 2)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_samples_that_begin_alike_have_the_scores_and_gradients_they_have_alone(kind: str) -> None:
    model, ids = tiny(kind), [(5, 6, 7), (5, 6, 8, 7), (5, 6), (5, 6, 7)]
    one, batch = base(model, True), pack([Encoding(own, (9,)) for own in ids], [3, 1])
    assert len(batch.ids) == 8
    weight = model.model.layers[0].self_attn.k_proj.weight
    found = packed_logits(one, batch, [3, 1])[:, 0]
    alone = torch.cat([model(input_ids=torch.tensor([own])).logits[:, -1] for own in ids])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    mine, theirs = (torch.autograd.grad(out.sin().sum(), weight)[0] for out in (found, alone))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def alone(lengths: list[int], shared: list[int] | None = None) -> RowPositions:
    """Places of samples that share nothing, or these tokens."""
    return row_positions(lengths, torch.tensor(shared or range(sum(lengths))), torch.device("cpu"))


@pytest.mark.parametrize("price", PRICES)
@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_every_token_has_a_row_of_its_sample(price: str, lengths: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "price", PRICES[price])
        where = alone(lengths)
    assert len(where.groups) == (1 if price == "one group" else len(set(lengths)))
    tokens = torch.arange(1.0, sum(lengths) + 1)[:, None]
    filled = copy_to_all(tokens, where)
    sizes = [rows * width for rows, width in where.groups]
    rows = [row for part, one in zip(filled.split(sizes), where.groups, strict=True) for row in part.reshape(one)]
    found = sorted(([value for value in row.tolist() if value > 0] for row in rows), key=lambda own: own[0])
    assert found == [own[:, 0].tolist() for own in tokens.split(lengths)]
    assert all((row[: int((row > 0).sum())] > 0).all() for row in rows), "filled up at the end"
    assert torch.equal(take_first(filled, where), tokens)
    assert where.is_identity == (len(set(lengths)) == 1)


@pytest.mark.parametrize("where", [alone([3, 1, 2]), alone([3, 1, 2], [0, 1, 2, 0, 0, 1])])
def test_derivatives_of_places_are_right_twice(where: RowPositions) -> None:
    rng, tokens = torch.Generator().manual_seed(0), len(where.first)
    for way, count in (
        (copy_to_all, tokens),
        (copy_to_first, tokens),
        (take_first, len(where.token)),
        (sum_over_all, len(where.token)),
    ):
        x = torch.randn(count, 2, generator=rng, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, way=way: rearrange(x, where, way).pow(2), (x,))
        assert torch.autograd.gradgradcheck(lambda x, way=way: rearrange(x, where, way).pow(2), (x,))


@pytest.mark.parametrize("window", [None, 3])
def test_short_and_wide_rows_are_attended_alike(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 7, 4, generator=rng).requires_grad_() for heads in (6, 3, 3))
    mask = attention.causal_mask(7, window, torch.device("cpu"))
    assert mask.sum() == (28 if window is None else 18)
    found = []
    for limit in (7, 6):
        monkeypatch.setattr(attention, "SHORT", limit)
        out = attention.attend_rows(query, key, value, 0.3, mask)
        found.append((out, *torch.autograd.grad(out.square().sum(), (query, key, value))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
