"""Tiny models with real architectures, made on the spot: nothing is downloaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import checked
from tiny import WORDS, make_settings, save_tokenizer

LAYERS = 12
"""More than ten: an order that sorts layer 10 before layer 2 in one place only must show."""


@pytest.fixture(autouse=True)
def checks_begin_anew() -> Iterator[None]:
    checked.begin()  # wider fixtures have called functions before
    yield
    checked.begin()  # and those of the next test call them before this one does


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


@pytest.fixture
def llama_settings(tmp_path: Path, tiny_llama: Path) -> Path:
    return make_settings(tmp_path, tiny_llama)


@pytest.fixture
def bert_settings(tmp_path: Path, tiny_bert: Path) -> Path:
    return make_settings(tmp_path, tiny_bert, causal=False)
