"""The frozen base: fresh adapters change nothing, each row has its own device's factors, wrong names are named."""

import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from airpfed.core.errors import UserError
from airpfed.core.rng import stream
from airpfed.model import backbone, export, layout
from airpfed.model.backbone import Backbone, FastPaths
from airpfed.model.forward import logits, model_inputs, with_adapters
from airpfed.model.layout import Factors
from airpfed.model.methods import blocks_of
from airpfed.model.tokens import Batch, Encoding, collate
from support.models import WORDS, save_tokenizer

MODULES = {"llama": ("q_proj", "down_proj"), "bert": ("query", "value")}
SAMPLES = [Encoding(ids, (0,)) for ids in ((20, 21, 22, 23, 24), (30,), (40, 41, 42), (50, 51))]


def made(
    folder: Path, kind: str, layers: str | tuple[int, ...] = "all", modules: tuple[str, ...] | str = ()
) -> Backbone:
    return backbone.build_backbone(
        str(folder), "auto", 3, modules or MODULES[kind], layers, 4.0, "cpu", stream(0, "head")
    )


def start(base: Backbone, devices: int) -> Factors:
    """Fresh factors of several devices."""
    shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in base.heads.items()}
    order = layout.arrange_layout(base.target_layers, blocks_of("airpfed", 2, 2), shapes, (3,) if shapes else (0,))
    values = layout.initial_vectors(order, base.heads, stream(0, "adapters"))
    zeros = torch.zeros(devices, dtype=torch.long)
    return layout.gather(values, order, zeros, zeros)


def batch_of(base: Backbone) -> Batch:
    return collate(SAMPLES, base.tokenizer.pad_token_id, base.causal)


def answer(base: Backbone, factors: Factors | None) -> Tensor:
    batch = batch_of(base)
    with torch.no_grad(), with_adapters(base, factors):
        return logits(base, batch.ids, batch.mask, 2 if base.causal else 1)


def same_as(plain: Any, base: Backbone) -> None:
    """Fresh adapters give what a model without any gives: bit for bit in the same pass, and nearly in its own."""
    found = answer(base, start(base, 2))
    torch.testing.assert_close(found, answer(replace(base, model=plain, layers={}, prefix=()), None), rtol=0, atol=0)
    with torch.no_grad():
        scores = plain(**model_inputs(base, batch_of(base).ids, batch_of(base).mask)).logits
    torch.testing.assert_close(found, scores[:, -2:] if base.causal else scores[:, None], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_fresh_adapters_change_nothing_at_all(kind: str, devices: int, request: pytest.FixtureRequest) -> None:
    base = made(request.getfixturevalue(f"tiny_{kind}"), kind)
    torch.testing.assert_close(answer(base, start(base, devices)), answer(base, None), rtol=0, atol=0)


def test_without_factors_the_model_is_the_one_on_disk(tiny_llama: Path) -> None:
    base = made(tiny_llama, "llama")
    plain = AutoModelForCausalLM.from_pretrained(tiny_llama).eval().requires_grad_(False)
    same_as(plain, base)


def test_a_classifier_keeps_its_encoder_and_is_given_a_head(tiny_bert: Path) -> None:
    base = made(tiny_bert, "bert")
    assert {name: tuple(weight.shape) for name, weight in base.heads.items()} == {"classifier": (3, 17)}
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_bert, num_labels=3).eval().requires_grad_(False)
    plain.classifier.weight.data, plain.classifier.bias.data = (
        base.heads["classifier"][:, :-1].clone(), base.heads["classifier"][:, -1].clone()
    )  # fmt: skip
    same_as(plain, base)


def test_the_head_is_drawn_from_the_stream_and_nothing_else_is(tiny_bert: Path) -> None:
    torch.manual_seed(1)
    one = made(tiny_bert, "bert")
    after = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(one.heads["classifier"], made(tiny_bert, "bert").heads["classifier"])
    torch.manual_seed(1)
    assert torch.equal(after, torch.get_rng_state()), "the global generator is left where it was"


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_each_row_has_its_own_devices_factors(kind: str, request: pytest.FixtureRequest) -> None:
    base = made(request.getfixturevalue(f"tiny_{kind}"), kind)
    rng = torch.Generator().manual_seed(0)
    factors = {key: 0.3 * torch.randn(tensor.shape, generator=rng) for key, tensor in start(base, 2).items()}
    together = answer(base, factors)
    for device, rows in ((0, slice(0, 2)), (1, slice(2, 4))):
        alone = answer(base, {key: tensor[device : device + 1] for key, tensor in factors.items()})
        torch.testing.assert_close(together[rows], alone[rows], rtol=1e-4, atol=1e-5)
        others = [i for i in range(4) if not rows.start <= i < rows.stop]
        assert (together - alone).abs().amax((1, 2))[others].min() > 0.01


def test_positions_count_from_the_first_real_token(tiny_llama: Path) -> None:
    """A model with absolute positions would notice padding on the left otherwise; a rotary one hides the slip."""
    base = made(tiny_llama, "llama").with_paths(FastPaths(batching=True, pad_left=True))
    fields = model_inputs(base, batch_of(base).ids, batch_of(base).mask)
    assert fields["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 0], [0, 0, 0, 1, 2], [0, 0, 0, 0, 1]]
    alone = model_inputs(base, batch_of(base).ids[:1], batch_of(base).mask[:1])
    assert "position_ids" not in alone, "a model that begins elsewhere than at 0 counts by itself"


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [("all", set(range(12))), ("last-3", {9, 10, 11}), ((0, 10), {0, 10}), ((-1,), {11}), ("last-12", set(range(12)))],
)
def test_layers_choose_where_adapters_sit(tiny_llama: Path, layers: str | tuple[int, ...], numbers: set[int]) -> None:
    base = made(tiny_llama, "llama", layers)
    assert {int(name.split(".")[2]) for name in base.target_layers} == numbers
    assert len(base.prefix) == min(numbers)


def test_an_unknown_module_names_the_nearest(tiny_llama: Path) -> None:
    expected = "adapters.target_modules = \"qproj\": no such nn.Linear in the model's layers; did you mean 'q_proj'?"
    with pytest.raises(UserError, match=f"^{re.escape(expected)}$"):
        made(tiny_llama, "llama", modules=("v_proj", "qproj"))
    with pytest.raises(UserError, match="it has down_proj, gate_proj"):
        made(tiny_llama, "llama", modules=("xyz",))


@pytest.mark.parametrize("layers", [(12,), (0, -13), ()])
def test_layers_out_of_range_are_refused(tiny_llama: Path, layers: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="from 0 to 11"):
        made(tiny_llama, "llama", layers)


def test_more_last_layers_than_there_are_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match='"last-99": the model has 12 layers'):
        made(tiny_llama, "llama", "last-99")


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [("llama", "all-linear"), ("bert", "all-linear"), ("bert", "All-Linear"),
     ("llama", r".*\.[0-4]\.(mlp|self_attn)\.\w*[vn]_proj"),
     ("bert", r".*(pooler\.dense|layer\.1[01]\..*value)")],
)  # fmt: skip
def test_a_text_chooses_what_peft_chooses(kind: str, pattern: str, request: pytest.FixtureRequest) -> None:
    import peft

    base = made(request.getfixturevalue(f"tiny_{kind}"), kind, modules=pattern)
    task = peft.TaskType.CAUSAL_LM if kind == "llama" else peft.TaskType.SEQ_CLS
    config = peft.LoraConfig(target_modules=pattern, task_type=task)
    theirs = peft.get_peft_model(deepcopy(base.meta_model), config, low_cpu_mem_usage=True)
    names = {n for n, m in theirs.base_model.model.named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    assert set(base.target_layers) == names and len(names) >= 3
    assert base.prefix == (), "a layer before the first one, or outside of the list, is adapted"
    export.check_adapter(base, 4, 8.0)


def test_a_text_keeps_to_the_chosen_layers(tiny_bert: Path) -> None:
    base = made(tiny_bert, "bert", "last-2", "all-linear")
    assert {name.split(".")[3] for name in base.target_layers} == {"10", "11"} and len(base.target_layers) == 12
    assert len(base.prefix) == 10 and list(base.heads) == ["classifier"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("q_proj", 'names go into a list, ["q_proj"]; names are like model.layers.11.mlp.down_proj'),
     ("*.q_proj", "no regular expression: nothing to repeat"), ("lm_head", "no linear layer's whole name matches")],
)  # fmt: skip
def test_a_text_that_matches_nothing_is_one_line(pattern: str, words: str, tiny_llama: Path) -> None:
    with pytest.raises(UserError) as refusal:
        made(tiny_llama, "llama", modules=pattern)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_base_of_images_and_text_has_adapters_on_its_text_layers(tmp_path: Path) -> None:
    size = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "eos_token_id": 4}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    vision = {"depth": 3, "embed_dim": 16, "num_heads": 2, "hidden_size": 16}
    torch.manual_seed(0)
    config = hf.Qwen2VLConfig(text_config={**size, "rope_parameters": rope}, vision_config=vision)
    hf.Qwen2VLForConditionalGeneration(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    base = made(tmp_path, "llama", modules="all-linear")
    assert {".".join(name.split(".")[:4]) for name in base.target_layers} == {
        "model.language_model.layers.0", "model.language_model.layers.1"
    } and len(base.target_layers) == 14  # fmt: skip
    assert base.causal and "its text layers get the adapters" in base.notes[0]
    export.check_adapter(base, 4, 8.0)
    plain = hf.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        right = plain(input_ids=torch.tensor([SAMPLES[0].ids])).logits[:, -2:]
    batch = collate([SAMPLES[0]], 0, True)
    with torch.no_grad(), with_adapters(base, start(base, 1)):
        torch.testing.assert_close(logits(base, batch.ids, batch.mask, 2), right, rtol=1e-5, atol=1e-6)
