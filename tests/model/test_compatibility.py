"""What a base cannot do is found before round 1, in a line; what it is, by what it does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import nn

from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.core.rng import stream
from airpfed.model import backbone, compatibility, export, layout
from airpfed.model.backbone import Backbone
from airpfed.model.layout import Factors
from airpfed.model.methods import blocks_of
from airpfed.model.tokens import Encoding
from support.experiments import experiment_of
from support.models import WORDS, save_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
DECODER: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "eos_token_id": 4, "bos_token_id": 4}
DISTIL: dict[str, Any] = {
    "vocab_size": len(WORDS), "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
XLNET: dict[str, Any] = {
    "vocab_size": len(WORDS), "d_model": 16, "n_layer": 2, "n_head": 4, "d_inner": 24, "pad_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": len(WORDS), "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "eos_token_id": 4,
    "bos_token_id": 4,
}  # fmt: skip
NEO: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 1]], "eos_token_id": 4, "bos_token_id": 4,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0,
    "eos_token_id": 4, "bos_token_id": 4,
}  # fmt: skip
SAMPLES = [Encoding(ids, (0,)) for ids in ((20, 21, 22, 23, 24), (30, 31), (40, 41, 42))]

Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Save a model with a tokenizer; `without`: tensors left out of the file."""

    def save(model: Any, without: str = "nothing", tokens: bool = True) -> Path:
        model.save_pretrained(tmp_path / "base")
        file = tmp_path / "base" / "model.safetensors"
        save_file({k: v for k, v in load_file(file).items() if without not in k}, file, {"format": "pt"})
        if tokens:
            save_tokenizer(tmp_path / "base")
        return tmp_path / "base"

    torch.manual_seed(0)
    return save


def built(base: Path, *targets: str, kind: str = "auto", tokens: int = 16, classes: int = 3) -> Backbone:
    made = backbone.build_backbone(
        str(base), kind, classes, targets or ("query",), "all", 2.0, "cpu", stream(0, "head"), tokens
    )
    export.check_adapter(made, 4, 8.0)
    return made


def refused(base: Path, *targets: str, **given: Any) -> str:
    with pytest.raises(UserError) as caught:
        built(base, *targets, **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def drawn(base: Backbone, classes: int = 3) -> Factors:
    """Factors of one model, all of them moved."""
    shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in base.heads.items()}
    order = layout.arrange_layout(
        base.target_layers, blocks_of("airpfed", 2, 2), shapes, (classes,) if shapes else (0,)
    )
    rng = torch.Generator().manual_seed(0)
    values = layout.initial_vectors(order, base.heads, rng)
    moved = {scope: value + 0.2 * torch.randn(value.shape, generator=rng) for scope, value in values.items()}
    zero = torch.zeros(1, dtype=torch.long)
    return layout.gather(moved, order, zero, zero)


CLASSIFIERS = [
    (lambda: hf.BertModel(hf.BertConfig(**SIZES)), ("query",), ["classifier"]),
    (lambda: hf.BertModel(hf.BertConfig(**SIZES), add_pooling_layer=False), ("query",),
     ["bert.pooler.dense", "classifier"]),
    (lambda: hf.AlbertModel(hf.AlbertConfig(**SIZES, embedding_size=8), add_pooling_layer=False), ("query",),
     ["albert.pooler", "classifier"]),
    (lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZES, num_labels=3)), ("query",), ["classifier"]),
    (lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**DISTIL, num_labels=3)), ("q_lin",),
     ["pre_classifier", "classifier"]),
    (lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**DISTIL, num_labels=2)), ("q_lin",),
     ["pre_classifier", "classifier"]),
    (lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**SIZES, num_labels=3)), ("query",),
     ["classifier.dense", "classifier.out_proj"]),
    (lambda: hf.XLNetModel(hf.XLNetConfig(**XLNET)), ("layer_1",), ["sequence_summary.summary", "logits_proj"]),
    (lambda: hf.GPTNeoModel(hf.GPTNeoConfig(**NEO)), ("q_proj",), ["score"]),
    (lambda: hf.LlamaModel(hf.LlamaConfig(**{**DECODER, "pad_token_id": None})), ("q_proj",), ["score"]),
    (lambda: hf.ModernBertModel(hf.ModernBertConfig(**{**SIZES, "cls_token_id": 2, "sep_token_id": 3})), ("Wo",),
     ["head.dense", "classifier"]),
]  # fmt: skip


@pytest.mark.parametrize(("make", "targets", "heads"), CLASSIFIERS)
def test_a_classifiers_head_is_what_lies_outside_its_backbone_and_is_exported(
    make: Callable[[], Any], targets: tuple[str, ...], heads: list[str], saved: Saved, tmp_path: Path
) -> None:
    """Also where the base is a classifier already, has no pooler, or reads its last token: compared with PEFT alone."""
    base = built(saved(make()), *targets)
    assert list(base.heads) == heads
    assert base.heads[heads[-1]].shape[0] == 3
    fresh = export.fresh_base(base, 3)
    export.export_adapter(base, drawn(base), 3, 8.0, tmp_path / "a", fresh, SAMPLES)
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    own = sum(module.weight.numel() for module in map(base.meta_model.get_submodule, heads))
    assert sum(t.numel() for key, t in weights.items() if "lora" not in key and key.endswith("weight")) == own


@pytest.mark.parametrize("labels", [3, 2])
def test_a_head_that_the_base_brings_is_drawn_anew_and_told(labels: int, saved: Saved) -> None:
    model = hf.RobertaForSequenceClassification(hf.RobertaConfig(**SIZES, num_labels=labels))
    folder = saved(model)
    base, again = built(folder), built(folder)
    for name in base.heads:
        weight = model.get_submodule(name).weight
        assert torch.equal(base.heads[name], again.heads[name]), "from the run's own stream"
        assert base.heads[name].shape[0] != len(weight) or not torch.equal(base.heads[name][:, :-1], weight)
        assert 0.01 < base.heads[name][:, :-1].std() < 0.03, "by the model's own rule"
    (line,) = base.notes
    assert "has a head of its own" in line and "drawn at random" in line


def test_one_label_more_than_the_base_has_positions_for_is_no_limit_of_labels(saved: Saved) -> None:
    """The layer whose rows are classes is found by its width, wherever it stands."""
    base = built(saved(hf.BertModel(hf.BertConfig(**SIZES))), classes=5)
    assert list(base.heads.values())[-1].shape[0] == 5


@pytest.mark.parametrize(
    ("make", "targets", "kind", "words"),
    [
        (lambda: hf.T5ForConditionalGeneration(hf.T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)), ("q",), "auto",
         "an encoder-decoder (t5)"),
        (lambda: hf.BartForConditionalGeneration(hf.BartConfig(
            vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=0)), ("q_proj",), "causal",
         "an encoder-decoder (bart)"),
        (lambda: hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(
            text_config={k: v for k, v in DECODER.items() if k != "max_position_embeddings"},
            vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16})), ("q_proj",),
         "classifier", 'a decoder of images and text; model.kind = "causal" fits'),
        (lambda: hf.XLNetLMHeadModel(hf.XLNetConfig(**XLNET)), ("layer_1",), "auto", 'model.kind = "classifier" fits'),
        (lambda: hf.BertLMHeadModel(hf.BertConfig(**SIZES)), ("query",), "causal", "read what comes later"),
        (lambda: hf.SqueezeBertModel(hf.SqueezeBertConfig(**SIZES, embedding_size=16)), ("query",), "classifier",
         "it has none, but Conv1d"),
        (lambda: hf.MambaForCausalLM(hf.MambaConfig(**MAMBA)), ("out_proj",), "auto", "PEFT refuses them"),
        (lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**DECODER, num_local_experts=4)),
         ("q_proj", "v_proj", "up_proj"), "auto",
         'adapters.target_modules = "up_proj": no such nn.Linear in the model\'s layers; it has k_proj, o_proj, q_'),
    ],
)  # fmt: skip
def test_what_a_base_cannot_do_is_one_line(
    make: Callable[[], Any], targets: tuple[str, ...], kind: str, words: str, saved: Saved
) -> None:
    assert words in refused(saved(make()), *targets, kind=kind)


def test_weights_that_are_not_there_or_no_numbers_are_the_bases_fault(saved: Saved) -> None:
    config = hf.LlamaConfig(**DECODER)
    words = refused(saved(hf.LlamaForCausalLM(config), "layers.1.mlp.up_proj"), "q_proj")
    assert "its files lack 1 of the weights" in words and "model.layers.1.mlp.up_proj.weight" in words
    words = refused(saved(hf.BertModel(hf.BertConfig(**SIZES)), "layer.1.output.dense"))
    assert "its files lack 2 of the weights" in words
    for bad in (float("nan"), float("inf")):
        model = hf.LlamaForCausalLM(config)
        model.model.layers[1].mlp.up_proj.weight.data[3, 3] = bad
        words = refused(saved(model), "q_proj")
        assert "its weight model.layers.1.mlp.up_proj.weight holds NaN or infinite values" in words
    model = hf.LlamaForCausalLM(config)
    model.model.layers[1].mlp.up_proj.weight.data.fill_(3e38)  # a number, and no use
    assert "its logits are no numbers, before any training" in refused(saved(model), "q_proj")


@pytest.mark.parametrize(
    ("make", "targets", "limit"),
    [
        (lambda: hf.BertModel(hf.BertConfig(**SIZES)), ("query",), 64),
        (lambda: hf.RobertaModel(hf.RobertaConfig(**{**SIZES, "pad_token_id": 1})), ("query",), 62),
        (lambda: hf.GPTNeoForCausalLM(hf.GPTNeoConfig(**NEO)), ("q_proj",), 64),
    ],
)
def test_more_tokens_than_positions_are_refused_and_the_limit_is_named(
    make: Callable[[], Any], targets: tuple[str, ...], limit: int, saved: Saved
) -> None:
    base = saved(make())
    assert built(base, *targets, tokens=limit).notes == ()
    words = refused(base, *targets, tokens=limit + 1)
    assert words.startswith(f"model.max_tokens = {limit + 1}: the base reads at most {limit} tokens")


def test_an_answers_tokens_need_positions_too(saved: Saved) -> None:
    folder = str(saved(hf.GPTNeoForCausalLM(hf.GPTNeoConfig(**NEO))))

    def load(tokens: int, answer: int) -> object:
        return backbone.load_model(folder, "auto", 1, "cpu", torch.Generator(), tokens, answer)

    load(50, 15)  # the last of them is never read
    with pytest.raises(UserError, match=r"max_tokens = 50 with 16 tokens of an answer .* should be at most 49$"):
        load(50, 16)


def test_rotary_positions_go_on_and_it_is_told(tiny_llama: Path) -> None:
    base = built(tiny_llama, "q_proj", tokens=65)
    assert base.notes == ("model.max_tokens = 65: the base was made for 64 tokens, and reads more",)


def test_many_tokens_are_checked_by_the_last_position_alone(tiny_llama: Path, saved: Saved) -> None:
    """A million tokens are not run to see whether they could be."""
    (line,) = built(tiny_llama, "q_proj", tokens=10**6).notes
    assert line.endswith("made for 64 tokens, and reads more")
    sizes = {**SIZES, "max_position_embeddings": 5000}
    for model, limit in ((hf.BertModel(hf.BertConfig(**sizes)), 5000),
                         (hf.RobertaModel(hf.RobertaConfig(**{**sizes, "pad_token_id": 1})), 4998)):  # fmt: skip
        long = saved(model)
        assert built(long, "query", tokens=limit).notes == ()
        assert f"the base reads at most {limit} tokens" in refused(long, "query", tokens=10**6)


def test_routed_experts_stay_frozen_and_it_is_told(saved: Saved) -> None:
    (line,) = built(saved(hf.MixtralForCausalLM(hf.MixtralConfig(**DECODER, num_local_experts=4))), "q_proj").notes
    assert line.startswith(
        "4 stacked weights of the layers (mlp.experts.gate_up_proj, mlp.experts.down_proj) are no nn"
    )


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_folder_without_a_tokenizer_is_refused(kind: str, saved: Saved) -> None:
    """transformers makes one up that knows nothing but its control tokens."""
    model = hf.BertModel(hf.BertConfig(**SIZES)) if kind == "bert" else hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER))
    assert "no tokenizer in its folder" in refused(saved(model, tokens=False), "query", "q_proj")


def test_a_tokenizer_that_knows_no_word_of_the_texts_is_refused(llama_settings: Path, tmp_path: Path) -> None:
    (tmp_path / "colours.csv").write_text(
        "text,label\n" + "\n".join(f"ужин номер {n},{'red' if n % 2 else 'blue'}" for n in range(80))
    )
    settings = settings_file.read_settings(llama_settings, [])
    with pytest.raises(UserError, match=r"^tasks\.colours: the base's tokenizer knows 0% of the words in its texts"):
        experiment_of(settings)


def test_a_tokenizer_larger_than_the_embedding_is_refused(llama_settings: Path, saved: Saved) -> None:
    base = saved(hf.LlamaForCausalLM(hf.LlamaConfig(**{**DECODER, "vocab_size": 60})))
    settings = settings_file.read_settings(llama_settings, [f"model.base={base}"])
    with pytest.raises(UserError, match=r"^tasks\.colours: its texts have token \d+, but the base model has 60"):
        experiment_of(settings)


def test_a_token_to_pad_with_is_found(saved: Saved) -> None:
    base = saved(hf.LlamaForCausalLM(hf.LlamaConfig(**{**DECODER, "pad_token_id": None, "eos_token_id": None})))
    tree = json.loads((base / "tokenizer_config.json").read_text())
    for gone in (["pad_token"], ["pad_token", "eos_token"], ["pad_token", "eos_token", "unk_token"]):
        (base / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in tree.items() if k not in gone}))
        made = built(base, "q_proj")
        assert 0 <= made.tokenizer.pad_token_id < len(WORDS)
        assert made.end_tokens == (() if "eos_token" in gone else (4,))


def test_a_classifier_that_reads_the_last_token_but_padding_keeps_the_appended_one(saved: Saved) -> None:
    """Its tokenizer ends texts with the token that would otherwise be the padding: that one must be read."""
    from support.tokenizers import tokenizer

    made = tokenizer("wordpiece", end=True)
    model = hf.LlamaModel(hf.LlamaConfig(**{**DECODER, "vocab_size": len(made), "pad_token_id": None}))
    base = saved(model)
    made.pad_token = made.eos_token
    made.save_pretrained(base)
    found = built(base, "q_proj")
    assert found.tokenizer.pad_token_id != found.tokenizer.eos_token_id
    ids = found.tokenizer("a sad story").input_ids
    assert ids[-1] == found.tokenizer.eos_token_id
    plain = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3).eval()
    plain.score.weight.data = found.heads["score"].clone()
    with torch.no_grad():
        wanted = plain(input_ids=torch.tensor([ids])).logits
        torch.testing.assert_close(found.model(input_ids=torch.tensor([ids])).logits, wanted)


def test_the_blueprint_has_no_memory(tiny_llama: Path) -> None:
    blank = built(tiny_llama, "q_proj").meta_model
    assert all(one.device.type == "meta" for one in [*blank.parameters(), *blank.buffers()])
    assert not any(type(module).__name__ == "StackedLoRA" for module in blank.modules())


class Odd(nn.Module):
    """Says how many tokens lie before the last it can read."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, count: int) -> bool:
        return count <= self.limit


@pytest.mark.parametrize("limit", [1, 2, 3, 31, 32, 62])
def test_the_last_number_of_which_something_holds(limit: int) -> None:
    assert compatibility.last_true(Odd(limit), 1, 63) == limit


def test_a_base_whose_weights_a_pass_changes_is_refused(saved: Saved) -> None:
    """It divides them when it first runs; with no layer to divide it is like any other."""
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 4, "intermediate_size": 24,
             "eos_token_id": 4, "bos_token_id": 4}  # fmt: skip
    line = refused(saved(hf.RwkvForCausalLM(hf.RwkvConfig(**sizes, rescale_every=2))), "key")
    assert "a pass changes its weights (rwkv.blocks.0." in line and "stay as they are" in line
    assert built(saved(hf.RwkvForCausalLM(hf.RwkvConfig(**sizes, rescale_every=0))), "key").target_layers


def test_a_classifier_is_not_asked_for_the_last_tokens_logits() -> None:
    model = hf.BioGptForSequenceClassification(hf.BioGptConfig(**SIZES)).eval()
    assert compatibility.runs(model, (20, 21, 22), False) and not compatibility.runs(model, (len(WORDS),), False)


def test_no_cache_is_asked_of_what_a_head_hands_on() -> None:
    class Below(nn.Module):
        def forward(self, input_ids: Any, use_cache: Any = None) -> None: ...

    class Head(nn.Module):
        base_model = Below()

        def forward(self, input_ids: Any, **given: Any) -> None: ...

    class Closed(Head):
        def forward(self, input_ids: Any) -> None: ...

    assert (
        compatibility.no_cache_option(Head()) == {"use_cache": False} and compatibility.no_cache_option(Closed()) == {}
    )
