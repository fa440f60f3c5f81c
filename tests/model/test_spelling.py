"""What a model reads is what its tokenizer makes of the whole text, of every kind of tokenizer."""

from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.experiment import run
from airpfed.model.tokens import affix_ids, cut_middle, encode_choices, encode_completion, tokenize
from support.tokenizers import real, tokenizer

KINDS = ["bytes", "metaspace", "legacy", "unigram", "wordpiece"]
PROMPTS = ["the film was good\nLabel:", "bad\nLabel:", "a sad story\nLabel:"]
PAIRS = [
    ("a sad story\nAnswer:", " 42 is it"),
    ("one\nAnswer: ", "two"),
    ("bad\n", "story"),
    ("three\nAnswer:", " red"),
]


@pytest.mark.parametrize("around", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_is_the_whole_text_and_an_end(kind: str, around: tuple[bool, bool]) -> None:
    """No stray space, no end token before the answer, whatever the tokenizer adds by itself."""
    made = tokenizer(kind, *around)
    for prompt, answer in PAIRS:
        sample = encode_completion(made, prompt, answer, 100)
        text = made(prompt + answer, add_special_tokens=False).input_ids
        begin = [made.bos_token_id] if around[0] else []
        assert [*sample.ids, sample.targets[-1]] == [*begin, *text, made.eos_token_id]
        assert made.decode(sample.targets[:-1]).strip() == made.decode(made(answer).input_ids, True).strip()
        asked = tokenize(made, [prompt.rstrip(" ")])[0]
        assert sample.ids[: len(asked)] == asked and len(asked) + len(sample.targets) == len(sample.ids) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_words_token_is_the_one_that_follows_the_prompt(kind: str) -> None:
    made = tokenizer(kind, True, True)
    words = (" good", " bad", " red") if kind != "unigram" else (" bad", " two", " is")
    prompts, choices = encode_choices(made, PROMPTS, words, "x")
    for text, ids in zip(PROMPTS, prompts, strict=True):
        for word, choice in zip(words, choices, strict=True):
            assert (*ids, choice) == tuple(made(text + word).input_ids[: len(ids) + 1])


def test_what_all_words_begin_with_is_the_prompts() -> None:
    """SentencePiece writes a digit behind a space as two tokens; only the second tells one from another."""
    made = tokenizer("unigram")
    prompts, choices = encode_choices(made, PROMPTS, (" 4", " 2"), "x")
    assert made.convert_ids_to_tokens(prompts[0][-1]) == "▁"
    assert made.convert_ids_to_tokens(choices) == ["4", "2"]


def test_words_that_cannot_be_told_apart_name_the_remedy() -> None:
    with pytest.raises(UserError) as caught:
        encode_choices(tokenizer("bytes"), PROMPTS, (" good", " good film", " bad"), "moods")
    assert str(caught.value).startswith("tasks.moods.labels: label word ' good film' and ' good' start with the same")
    assert "set words here that differ in their first token" in str(caught.value)


def test_a_prompt_that_melts_into_its_label_is_refused() -> None:
    made = tokenizer("bytes")
    with pytest.raises(UserError, match=r"^tasks\.x\.prompt: the tokens of label words depend on how a prompt ends"):
        encode_choices(made, ["a st", "the fi"], ("ory", "lm"), "x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_spells_control_tokens_is_text(kind: str) -> None:
    made = tokenizer(kind, True, True)
    plain, control = tokenize(made, ["good </s> bad <s> <pad> story"]), set(made.all_special_ids) - {made.unk_token_id}
    begin, end = affix_ids(made)
    assert (begin, end) == ((made.bos_token_id,), (made.eos_token_id,))
    assert plain[0][:1] == begin and control.isdisjoint(plain[0][1:])
    (whole,) = tokenize(made, ["good </s> bad"], causal=False)
    assert whole[-1:] == end and control.isdisjoint(whole[1:-1]) and len(whole) > 4


def test_a_classifier_keeps_what_the_tokenizer_adds() -> None:
    made = tokenizer("wordpiece", True, True)
    assert tokenize(made, PROMPTS, causal=False) == [tuple(made(text).input_ids) for text in PROMPTS]


def test_a_cut_keeps_both_ends() -> None:
    assert cut_middle(tuple(range(10)), 7) == (0, 1, 2, 3, 4, 8, 9) and cut_middle((1, 2), 7) == (1, 2)


@pytest.mark.parametrize("name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_real_sentencepiece_tokenizers_classify_and_generate(name: str, tmp_path: Path) -> None:
    made = real(name, tmp_path)
    words = (" positive", " negative", " neutral")
    prompts, choices = encode_choices(made, ["What a film!\nSentiment:", "</s>[INST] bad\nSentiment:"], words, "x")
    assert made.convert_ids_to_tokens(choices) == ["▁positive", "▁negative", "▁neutral"]
    assert made.convert_ids_to_tokens(prompts[0][-4:]) == ["<0x0A>", "Sent", "iment", ":"]
    assert prompts[1].count(made.bos_token_id) == 1 and made.eos_token_id not in prompts[1]
    assert made.convert_ids_to_tokens(encode_choices(made, ["a\nLabel:"], (" 1", " 2"), "x")[1]) == ["1", "2"]
    sample = encode_completion(made, "17 + 25 = ", "42", 40)
    assert made.convert_ids_to_tokens(sample.targets) == ["▁", "4", "2", "</s>"]
    sample = encode_completion(made, "Name a colour:", " dark red", 40)
    assert made.convert_ids_to_tokens(sample.targets) == ["▁dark", "▁red", "</s>"]
    assert made.decode(sample.targets[:-1]) == "dark red"


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer of its family."""
    made = tokenizer("legacy", begin=True)
    config = LlamaConfig(
        vocab_size=len(made), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=3, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data *= 20  # as drawn it could not say anything with conviction
    model.save_pretrained(tmp_path / "base")
    made.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


SETTINGS = """
[model]
base = "{base}"
[[tasks]]
name = "moods"
source = "{folder}/moods.csv"
devices = 2
samples_per_device = 20
dev_samples = 0
test_samples = 20
[[tasks]]
name = "answers"
source = "{folder}/moods.csv"
kind = "generate"
label = "answer"
devices = 2
samples_per_device = 20
dev_samples = 0
test_samples = 20
max_new_tokens = 8
[server]
lr = 0.03
rounds = 60
[radio]
scheme = "error_free"
[run]
eval_every = 0
threads = 1
"""
ANSWERS = {"good": "42", "bad": "one film"}
WORDS = {"good": ("film", "story", "one"), "bad": ("sad", "two", "red")}


def test_a_llama_with_its_familys_tokenizer_learns_both_kinds(llama: Path, tmp_path: Path) -> None:
    """Every class has words of its own: what the model should say is in reach, if it is asked for the right tokens."""
    lines = ["text,label,answer"]
    for words in product(*[range(3)] * 4):
        label = ("good", "bad")[sum(words) % 2]
        lines.append(f"{' '.join(WORDS[label][w] for w in words)},{label},{ANSWERS[label]}")
    (tmp_path / "moods.csv").write_text("\n".join(lines))
    (tmp_path / "x.toml").write_text(SETTINGS.format(base=llama, folder=tmp_path))
    assert run.run_file(tmp_path / "x.toml", [], tmp_path / "run", False, "") == 0
    summary = run_files.load_summary(tmp_path / "run" / "summary.json")
    assert {name: task.final for name, task in summary.tasks.items()} == {"moods": 1.0, "answers": 1.0}
