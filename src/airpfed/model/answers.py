"""Answers of a model that PEFT loaded, to prompts as text; one prompt at a time, without padding."""

from collections.abc import Sequence
from typing import Any

import torch

from airpfed.model.compatibility import no_cache_option
from airpfed.model.tokens import cut_middle, encode_choices, strip_prompt, tokenize


def choose_classes(
    model: Any, tokenizer: Any, prompts: Sequence[str], words: Sequence[str], task: str, max_tokens: int
) -> list[int]:
    """Index of the class with the largest logit, for each prompt.

    words: label words of the classes, which a causal LM would write. task: name of the task in messages. max_tokens:
    longer prompts lose their middle.
    """
    plain = model.get_base_model()
    causal = model.active_peft_config.task_type == "CAUSAL_LM"
    if causal:
        ids, choices = encode_choices(tokenizer, prompts, words, task)
    else:
        ids, choices = tokenize(tokenizer, prompts, causal=False), tuple(range(len(words)))
    option = no_cache_option(plain)
    answers = []
    with torch.no_grad():
        for row in ids:
            inputs = torch.tensor([cut_middle(row, max_tokens)])
            logits = model(input_ids=inputs, **option).logits
            answers.append(int((logits[0, -1] if causal else logits[0])[list(choices)].argmax()))
    return answers


def complete_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_tokens: int, max_new_tokens: int
) -> list[str]:
    """Greedy completion of each prompt, without special tokens. max_tokens: longer prompts lose their middle."""
    answers = []
    for row in tokenize(tokenizer, [strip_prompt(prompt) for prompt in prompts]):
        inputs = torch.tensor([cut_middle(row, max_tokens)])
        with torch.no_grad():
            out = model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_new_tokens
            )
        answers.append(str(tokenizer.decode(out[0, inputs.shape[1] :], skip_special_tokens=True)))
    return answers
