"""Tiny models with real architectures, made on the spot: nothing is downloaded."""

import csv
import random
import string
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "Label", ":", "good", "bad", "red", "blue", "is", "it", "\n"]
WORDS += [a + b for a in string.ascii_lowercase for b in "aeiou"]
LAYERS = 12
"""More than ten: an order that sorts layer 10 before layer 2 in one place only must show."""


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>", padding_side="left"
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM of 12 layers with random weights."""
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=4, bos_token_id=4,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of 12 layers with random weights and no head."""
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def write_rows(path: Path, rows: int, classes: tuple[str, ...], seed: int) -> Path:
    """A CSV whose class shows in its words."""
    rng = random.Random(seed)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        for number in range(rows):
            index = number % len(classes)
            words = [rng.choice(WORDS[14 + 8 * index : 14 + 8 * index + 8]) for _ in range(rng.randint(3, 9))]
            out.writerow([" ".join([*words, rng.choice(WORDS[60:])]), classes[index]])
    return path


SETTINGS = """
[model]
base = "{base}"
max_tokens = 24

[adapters]
rank_shared = 2
rank_personal = 2
target_modules = {modules}

[[tasks]]
name = "colours"
source = "{folder}/colours.csv"
prompt = "{{text}} Label :"
labels = {{ red = " red", blue = " blue" }}
devices = 2
samples_per_device = 10
dev_samples = 6
test_samples = 12

[[tasks]]
name = "moods"
source = "{folder}/moods.csv"
prompt = "{{text}} Label :"
labels = {{ good = " good", bad = " bad", it = " it" }}
devices = 3
samples_per_device = 8
dev_samples = 6
test_samples = 12

[devices]
batch_size = 3

[server]
lr = 0.02
rounds = 4

[radio]
antennas = 8
coherence_symbols = 100
snr_db = 10.0

[run]
eval_every = 2
threads = 1
"""


def make_settings(folder: Path, base: Path, causal: bool = True) -> Path:
    """A settings file of two tiny tasks over five devices."""
    write_rows(folder / "colours.csv", 80, ("red", "blue"), 1)
    write_rows(folder / "moods.csv", 90, ("good", "bad", "it"), 2)
    modules = '["q_proj", "v_proj", "down_proj"]' if causal else '["query", "value"]'
    file = folder / "tiny.toml"
    file.write_text(SETTINGS.format(base=base, folder=folder, modules=modules))
    return file


@pytest.fixture
def llama_settings(tmp_path: Path, tiny_llama: Path) -> Path:
    return make_settings(tmp_path, tiny_llama)


@pytest.fixture
def bert_settings(tmp_path: Path, tiny_bert: Path) -> Path:
    return make_settings(tmp_path, tiny_bert, causal=False)
