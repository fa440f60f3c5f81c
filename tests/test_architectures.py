"""Every architecture, shrunk and held against PEFT: the rule, the rows, and faults that are seen."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace

import architectures
import pytest
import torch
from architectures import Case, Row, cases, page, run_cases, select_cases
from shrink import LAYERS, SCALES, VOCABULARY, shrink_config
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from airpfed.model.layout import Vectors
from support.forks import forked

HANDFUL = ["llama", "mixtral", "deepseek_v3", "gemma3_text", "jamba", "gpt2", "bert", "deberta-v2"]


def rows_of(*models: str, held: Sequence[str] = ()) -> list[Row]:
    """Played in children, with the faults that are planted here."""
    architectures.preload()
    todo = [case for case in cases() if case.model in models]
    assert len(todo) == len(models)
    return list(run_cases(todo, jobs=2, seconds=120, gigabytes=16.0, held=lambda _: held))


@pytest.mark.parametrize("name", HANDFUL)
def test_any_config_is_shrunk_by_one_rule(name: str) -> None:
    config = shrink_config(CONFIG_MAPPING[name](), SCALES[0])
    assert type(config) is CONFIG_MAPPING[name]
    assert config.vocab_size == VOCABULARY and config.num_hidden_layers == LAYERS
    assert config.hidden_size == 32 and config.num_attention_heads == 4
    assert max(value for value in config.to_dict().values() if type(value) is int) <= 128


def test_every_kind_of_layer_stays() -> None:
    large = CONFIG_MAPPING["gemma3_text"]()
    assert len(large.layer_types) > LAYERS
    small = shrink_config(large, replace(SCALES[0], unset="set"))
    assert len(small.layer_types) == LAYERS and set(small.layer_types) == set(large.layer_types)


def test_parts_are_all_of_them_once() -> None:
    whole = cases()
    parts = [case for part in range(1, 11) for case in select_cases(f"{part}/10", [])]
    assert sorted(parts, key=str) == sorted(whole, key=str) and len(set(whole)) == len(whole) > 250
    assert {case.model for case in select_cases("1/1", ["xlnet"])} == {
        "XLNetLMHeadModel",
        "XLNetForSequenceClassification",
    }


@forked
def test_a_decoder_and_an_encoder_are_right() -> None:
    found = rows_of("LlamaForCausalLM", "BertForSequenceClassification")
    for row in found:
        assert row.result == "right and fast" and 0 < row.error < 1e-5, row
        assert len(row.modes) == 10 and not row.note


@forked
def test_what_has_no_linear_layer_is_refused_in_one_line() -> None:
    [row] = rows_of("SqueezeBertForSequenceClassification")
    assert row.result == "refused" and "adapters.target_modules" in row.note and "\n" not in row.note


@forked
def test_what_only_real_passes_tell_is_right_or_a_line() -> None:
    """Tokens that tie in a model's choice of the best, weights that a pass changes, random passes, heads that cut."""
    found = {row.model: row for row in rows_of(
        "DogeForSequenceClassification", "RwkvForCausalLM", "ReformerForSequenceClassification",
        "ReformerModelWithLMHead", "BioGptForSequenceClassification", "GraniteMoeHybridForCausalLM",
    )}  # fmt: skip
    doge = found.pop("DogeForSequenceClassification")
    assert doge.result == "right and slow" and "batching" in doge.note
    for model, line in (
        ("RwkvForCausalLM", "a pass changes its weights"),
        ("ReformerForSequenceClassification", "gives other numbers when it reads a text again"),
        ("ReformerModelWithLMHead", "no adapter has a gradient"),
    ):
        row = found.pop(model)
        assert row.result == "refused" and line in row.note, row
    assert {row.result for row in found.values()} == {"right and slow"} and len(found) == 2


@forked
def test_other_kinds_are_refused_by_design() -> None:
    [row] = rows_of("BartForSequenceClassification")
    assert row.result == architectures.OTHER


@forked
def test_conv1d_images_and_weights_in_other_types_are_right() -> None:
    names = ("bfloat16", "recomputed", *(name for name in ("nf4", "int8") if architectures.can_hold(name)))
    found = {row.model: row for row in rows_of("GPT2LMHeadModel", "LlavaForConditionalGeneration", held=names)}
    assert found["GPT2LMHeadModel"].result == "right and slow" and "without last_layer" in found["GPT2LMHeadModel"].note
    assert found["LlavaForConditionalGeneration"].result == "right and fast"
    for row in found.values():
        assert row.held.keys() == set(names)
        for name, (result, error, note) in row.held.items():
            assert result.startswith("right"), (row.model, name, note)
            assert error > 1e-4 if name == "bfloat16" else error < 1e-5, (row.model, name, error)


@forked
def test_devices_the_wrong_way_round_are_seen() -> None:
    """Behind the comparison before round 1, which would not use a way of computing that does this."""
    right = architectures.gradients

    def swapped(*words: object) -> tuple[Vectors, Tensor]:
        found, losses = right(*words)
        return {scope: rows.flip(0) for scope, rows in found.items()}, losses

    architectures.gradients = swapped
    [row] = rows_of("LlamaForCausalLM")
    assert row.result == "WRONG" and row.error > 0.1
    assert {row.modes[f"all, {mode}"][0] for mode in architectures.PASSES} == {"WRONG"}
    assert row.modes["all, answers"][0] == row.modes["all, export"][0] == "right and fast"


@forked
def test_a_child_that_dies_or_raises_is_a_row() -> None:
    def ends(case: Case, row: Row, _held: Sequence[str]) -> None:
        if case.kind == "causal":
            os.kill(os.getpid(), signal.SIGKILL)
        raise IndexError("out of\nrange")

    architectures.check_case = ends
    found = {row.kind: row for row in rows_of("LlamaForCausalLM", "BertForSequenceClassification")}
    assert {row.result for row in found.values()} == {"TRACEBACK"}
    assert "signal 9" in found["causal"].note
    assert found["classifier"].note.startswith("IndexError: range")


@forked
def test_a_child_that_hangs_is_ended() -> None:
    def spins(case: Case, row: Row, _held: Sequence[str]) -> None:
        while True:
            pass

    architectures.check_case = spins
    architectures.preload()
    todo = [case for case in cases() if case.model == "LlamaForCausalLM"]
    [row] = list(run_cases(todo, jobs=1, seconds=1, gigabytes=16.0, held=lambda _: ()))
    assert row.result == "TRACEBACK" and row.note.startswith("ended by ")


def test_page_counts_and_tells_errors_above_rounding() -> None:
    found = page([
        Row("llama", "causal", "LlamaForCausalLM", "right and fast", 3e-7),
        Row("x", "causal", "XForCausalLM", "right and slow", 2.4e-5, "without a|b"),
        Row("bert", "classifier", "BertForSequenceClassification", "refused", 0.0, "no"),
        Row("bart", "classifier", "BartForSequenceClassification", architectures.OTHER, 0.0, "no"),
        Row("y", "causal", "YForCausalLM", "not built", 0.0, "no"),
    ])  # fmt: skip
    assert "Refused of the text decoders and encoders: 1 of 3, 33.3%." in found
    assert found.index("## Other kinds, refused by design") < found.index("BartFor")
    assert found.count("BartFor") == found.count("YFor") == 1
    assert "| right and fast | 1 | 0 | 1 |" in found and "| refused | 0 | 1 | 1 |" in found
    assert "| `LlamaForCausalLM` | right and fast | <= 1e-5 |  |" in found
    assert "| `XForCausalLM` | right and slow | 2e-05 | without a\\|b |" in found


def test_random_weights_leave_padding_at_zero() -> None:
    model = nn.ModuleList([nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3)])
    architectures.randomise(model)
    assert not model[0].weight[0].any() and model[0].weight[1:].all() and torch.isfinite(model[1].bias).all()
