"""Answers of a model that PEFT loaded, to prompts as text; one prompt at a time, without padding."""

from collections.abc import Sequence
from typing import Any

import torch

from airpfed.model.chat import ChatFormat, ChatMessage, conversation_prompt
from airpfed.model.compatibility import end_tokens, no_cache_option
from airpfed.model.tokens import LabelScore, cut_middle, encode_labels, strip_prompt, tokenize


def choose_classes(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    words: Sequence[str],
    task: str,
    max_tokens: int,
    label_score: LabelScore = "auto",
    normalised: bool = False,
) -> list[int]:
    """Index of the class with the largest score, for each prompt.

    words: label words of the classes, which a causal LM would write. task: name of the task in messages. max_tokens:
    longer prompts lose their middle. label_score, normalised: as in `word_log_probabilities` and `encode_labels`.
    """
    plain = model.get_base_model()
    causal = model.active_peft_config.task_type == "CAUSAL_LM"
    if causal:
        end = next(iter(end_tokens(tokenizer, plain)), None)
        labels = encode_labels(tokenizer, prompts, words, task, label_score, end)
        ids, choices = labels.prompts, tuple(word[0] for word in labels.words)
        if not labels.first_tokens or label_score == "words":
            room = max_tokens + 1 - max(map(len, labels.words))
            rows = [word_log_probabilities(model, cut_middle(row, room), labels.words, normalised) for row in ids]
            return [max(range(len(words)), key=row.__getitem__) for row in rows]
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


def word_log_probabilities(
    model: Any, prompt: tuple[int, ...], words: Sequence[tuple[int, ...]], normalised: bool
) -> list[float]:
    """Log-probability of each word after a prompt, the sum over its tokens, in nats. normalised: the mean in its place.

    words: their tokens.
    """
    option = no_cache_option(model.get_base_model())
    scores = []
    with torch.no_grad():
        for word in words:
            logits = model(input_ids=torch.tensor([prompt + word[:-1]]), **option).logits[0, len(prompt) - 1 :]
            values = logits.float().log_softmax(-1).gather(1, torch.tensor(word)[:, None])
            scores.append(float(values.mean() if normalised else values.sum()))
    return scores


def complete_prompts(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_tokens: int, max_new_tokens: int
) -> list[str]:
    """Greedy completion of each prompt, without special tokens. max_tokens: longer prompts lose their middle."""
    rows = tokenize(tokenizer, [strip_prompt(prompt) for prompt in prompts])
    return [_complete(model, tokenizer, cut_middle(row, max_tokens), max_new_tokens) for row in rows]


def reply(
    model: Any, chat: ChatFormat, conversations: Sequence[Sequence[ChatMessage]], max_tokens: int, max_new_tokens: int
) -> list[str]:
    """Greedy reply to each conversation, without special tokens. max_tokens: of the conversation; see
    `chat.conversation_prompt` for what longer ones lose.
    """
    rows = [conversation_prompt(chat, conversation, max_tokens) for conversation in conversations]
    ends = chat.turn_end.tokens
    return [chat.turn_end.cut(_complete(model, chat.tokenizer, row, max_new_tokens, ends)) for row in rows]


def _complete(
    model: Any, tokenizer: Any, row: Sequence[int], max_new_tokens: int, further_ends: Sequence[int] = ()
) -> str:
    """Greedy completion of token ids. further_ends: tokens that end it, besides those of the base."""
    inputs = torch.tensor([list(row)])
    ends = (*end_tokens(tokenizer, model.get_base_model()), *further_ends)
    options = {"eos_token_id": list(dict.fromkeys(ends))} if further_ends else {}
    with torch.no_grad():
        out = model.generate(
            input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_new_tokens, **options
        )
    return str(tokenizer.decode(out[0, inputs.shape[1] :], skip_special_tokens=True))
