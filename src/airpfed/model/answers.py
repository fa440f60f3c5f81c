"""Answers of a model that PEFT or transformers loaded: scores of labels, and completions.

Texts of equal length are computed together, so nothing is padded: the numbers are those of one text at a time, whatever
a model makes of padding.
"""

from collections.abc import Iterator, Sequence
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.model.chat import ChatFormat, ChatMessage, conversation_prompt
from airpfed.model.compatibility import end_tokens, no_cache_option, vocabulary_size
from airpfed.model.tokens import batched

BATCH_ROWS = 32
"""Most texts in a pass."""
LOGITS = 1 << 28
"""Most logits of a pass, for models that compute those of every token: 1 GB in float32."""

Ids = tuple[int, ...]


def label_scores(
    model: Any, prompts: Sequence[Ids], words: Sequence[Ids], normalised: bool = False
) -> Float[Tensor, "n C"]:
    """Score of each label after each prompt, by a causal LM.

    words: the tokens of each label. Labels of one token are scored by their logits. Otherwise a score is the sum of the
    log-probabilities of a label's tokens, in nats; normalised: their mean.
    """
    if all(len(word) == 1 for word in words):
        tokens = [word[0] for word in words]
        return _in_batches(model, prompts, lambda ids: causal_logits(model, ids, 1)[:, 0, tokens])

    def score(word: Ids) -> Tensor:
        def continued(ids: Tensor) -> Tensor:
            rows = torch.cat([ids, torch.tensor([word[:-1]] * len(ids), dtype=torch.long, device=ids.device)], 1)
            logs = causal_logits(model, rows, len(word)).log_softmax(-1)
            values = logs[:, range(len(word)), list(word)]
            return (values.mean if normalised else values.sum)(1, keepdim=True)

        return _in_batches(model, prompts, continued)

    return torch.cat([score(word) for word in words], 1)


def class_scores(model: Any, texts: Sequence[Ids]) -> Float[Tensor, "n C"]:
    """Logits of a classifier's classes for each text."""
    option = no_cache_option(plain_model(model))
    return _in_batches(model, texts, lambda ids: model(input_ids=ids, **option).logits)


def complete_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[Ids], max_new_tokens: int, further_ends: Sequence[int] = ()
) -> list[str]:
    """Greedy completion of each prompt, without special tokens.

    further_ends: tokens that end it, besides those of the base.
    """
    ends = (*end_tokens(tokenizer, plain_model(model)), *further_ends)
    options = {"eos_token_id": list(dict.fromkeys(ends))} if further_ends else {}
    answers = [""] * len(prompts)
    for rows in equal_lengths(prompts, BATCH_ROWS):
        inputs = torch.tensor([prompts[row] for row in rows], device=weights_device(model))
        with torch.no_grad():
            out = model.generate(
                input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_new_tokens, **options
            )
        texts = tokenizer.batch_decode(out[:, inputs.shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = str(text)
    return answers


def reply(
    model: Any, chat: ChatFormat, conversations: Sequence[Sequence[ChatMessage]], max_tokens: int, max_new_tokens: int
) -> list[str]:
    """Greedy reply to each conversation, without special tokens. max_tokens: of the conversation; see
    `chat.conversation_prompt` for what longer ones lose.
    """
    rows = [tuple(conversation_prompt(chat, conversation, max_tokens)) for conversation in conversations]
    texts = complete_prompts(model, chat.tokenizer, rows, max_new_tokens, chat.turn_end.tokens)
    return [chat.turn_end.cut(text) for text in texts]


def causal_logits(model: Any, ids: Tensor, count: int) -> Float[Tensor, "rows {count} vocabulary"]:
    """A causal LM's logits at the last `count` tokens of texts of equal length."""
    plain = plain_model(model)
    option: dict[str, Any] = dict(no_cache_option(plain))
    if "logits_to_keep" in signature(plain.forward).parameters:
        option["logits_to_keep"] = count
    logits: Tensor = model(input_ids=ids, **option).logits
    return logits[:, -count:]


def equal_lengths(texts: Sequence[Ids], size: int) -> Iterator[tuple[int, ...]]:
    """Indices of texts of equal length, at most `size` together, the shortest first."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for _, group in groupby(order, key=lambda index: len(texts[index])):
        yield from batched(group, size)


def plain_model(model: Any) -> Any:
    """The model of transformers that PEFT has wrapped, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def weights_device(model: Any) -> torch.device:
    """The device of a model's weights."""
    device: torch.device = next(model.parameters()).device
    return device


def _in_batches(model: Any, texts: Sequence[Ids], compute: Any) -> Tensor:
    """The rows that `compute` gives for each text, on the CPU. compute: token ids (rows, length) -> (rows, C)."""
    limit = LOGITS // (vocabulary_size(plain_model(model)) * max(map(len, texts), default=1))
    results: dict[int, Tensor] = {}
    with torch.no_grad():
        for rows in equal_lengths(texts, max(1, min(BATCH_ROWS, limit))):
            scores = compute(torch.tensor([texts[row] for row in rows], device=weights_device(model)))
            results.update(zip(rows, scores.float().cpu(), strict=True))
    return torch.stack([results[row] for row in range(len(texts))])
