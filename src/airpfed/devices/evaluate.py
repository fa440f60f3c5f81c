"""Answers of a task's model: classes by the best logit, and greedy completions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.devices.clients import Clients
from airpfed.devices.parallel import run_parallel, worker_count
from airpfed.devices.prefix_cache import stack
from airpfed.model.backbone import Backbone
from airpfed.model.forward import logits, model_inputs, with_adapters
from airpfed.model.layout import Factors
from airpfed.model.tokens import Encoding, batches_by_length, collate

BATCH_ROWS = 32
"""Samples computed at the same time."""

NO_ANSWER = -1
"""Answer of a model whose logits are not finite; it counts as wrong."""


def classify(
    clients: Clients, factors: Factors | None, cache_key: str, samples: Sequence[Encoding], choices: Sequence[int]
) -> list[int]:
    """Index of the best of `choices` for each sample; NO_ANSWER where a logit is not finite.

    factors: factors of one model (K = 1); None for the base model. cache_key: name of these samples in the prefix
    cache. choices: token ids of the label words, or class indices.
    """
    workers = worker_count(clients.backbone, len(samples))
    size = BATCH_ROWS // workers if clients.backbone.paths.batching else 1
    batches = batches_by_length(samples, size, longest_first=True)
    clients.cache.fill(cache_key, samples, range(len(samples)))

    def work(backbone: Backbone, rows: list[int]) -> list[int]:
        scores = last_scores(replace(clients, backbone=backbone), factors, cache_key, samples, rows)[:, list(choices)]
        best: list[int] = scores.argmax(1).where(scores.isfinite().all(1), NO_ANSWER).tolist()
        return best

    answers = [0] * len(samples)
    for rows, part in zip(batches, run_parallel(clients.backbone, work, batches, workers), strict=True):
        for index, answer in zip(rows, part, strict=True):
            answers[index] = answer
    return answers


def last_scores(
    clients: Clients, factors: Factors | None, cache_key: str, samples: Sequence[Encoding], rows: Sequence[int]
) -> Float[Tensor, "rows C"]:
    """Logits of samples[i] for i in rows by one model, in one pass: of the last position, or of the classes."""
    backbone = clients.backbone
    batch = collate([samples[i] for i in rows], backbone.tokenizer.pad_token_id, backbone.paths.pad_left)
    states = clients.cache.rows(cache_key, samples, rows)
    hidden = None if states is None else stack(states, backbone.paths.pad_left)
    with torch.no_grad(), with_adapters(backbone, factors):
        return logits(backbone, batch.ids, batch.mask, 1, hidden)[:, -1]


def complete(
    clients: Clients, factors: Factors | None, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> list[str]:
    """Greedy completions of tokenised prompts by one model (K = 1), without special tokens.

    The base's own decoding options were removed when it was loaded, except its end tokens.
    """
    backbone, tokenizer = clients.backbone, clients.backbone.tokenizer
    samples = [Encoding(ids, (0,)) for ids in prompts]
    texts = [""] * len(samples)
    size = BATCH_ROWS if backbone.paths.batching else 1
    for rows in batches_by_length(samples, size, longest_first=True):
        batch = collate([samples[i] for i in rows], tokenizer.pad_token_id, left=True)
        fields: dict[str, Any] = {
            k: v for k, v in model_inputs(backbone, batch.ids, batch.mask).items() if k != "position_ids"
        }
        fields["use_cache"] = backbone.paths.decoding
        with torch.no_grad(), with_adapters(backbone, factors):
            out = backbone.model.generate(**fields, max_new_tokens=max_new_tokens)
        answers = tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)
        for index, text in zip(rows, answers, strict=True):
            texts[index] = text
    return texts
