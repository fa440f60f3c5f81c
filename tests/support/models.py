"""Tiny models with real architectures and random weights, and their tokenizer: nothing is downloaded."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "Label", ":", "good", "bad", "red", "blue", "is", "it", "\n"]
WORDS += [a + b for a in string.ascii_lowercase for b in "aeiou"]

LAYERS = 12
"""More than ten: an order that sorts layer 10 before layer 2 at one point only must show."""

SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
"""Sizes of a base that plays a round in a tenth of a second."""


def save_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    """Save a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>", padding_side="left"
    ).save_pretrained(folder)


def sizes(**changes: Any) -> dict[str, Any]:
    """Sizes that Llama and BERT share, of 12 layers unless changed."""
    return {
        "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, **changes,
    }  # fmt: skip


def save_llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Save a causal LM and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = sizes(**changes)
    groups = {"num_key_value_heads": size["num_attention_heads"] // 2}
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(eos_token_id=4, bos_token_id=4, **(groups | size))).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_bert(folder: Path, seed: int = 1, words: Sequence[str] = WORDS, **changes: Any) -> Path:
    """Save an encoder without a head, and its tokenizer, which knows these words."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    BertModel(BertConfig(**sizes(vocab_size=len(words), **changes))).save_pretrained(folder)
    save_tokenizer(folder, words)
    return folder
