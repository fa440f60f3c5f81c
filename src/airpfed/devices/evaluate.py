"""What a task's model answers on a split."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from airpfed.devices.fleet import Fleet
from airpfed.devices.prefix import stack
from airpfed.model.encode import Encoded, collate
from airpfed.model.passes import adapted, inputs, logits
from airpfed.model.vector import Factors

ROWS = 32
"""Samples a forward pass of the evaluation."""


def classify(
    fleet: Fleet, factors: Factors | None, shelf: str, samples: Sequence[Encoded], choices: Sequence[int]
) -> list[int]:
    """Index of the best of `choices` (label tokens, or classes) for each sample.

    factors: of one model (K = 1); None is the base model. shelf: name under which the prefix cache keeps these samples.
    """
    answers: list[int] = []
    for rows in _by_length(samples):
        with torch.no_grad(), adapted(fleet.backbone, factors):
            scores = _scores(fleet, shelf, samples, rows)[:, -1, list(choices)]
        answers += scores.argmax(1).tolist()
    return _restore(answers, [i for rows in _by_length(samples) for i in rows])


def _scores(fleet: Fleet, shelf: str, samples: Sequence[Encoded], rows: Sequence[int]) -> Tensor:
    batch = collate([samples[i] for i in rows], fleet.backbone.tokenizer.pad_token_id, fleet.backbone.causal)
    kept = fleet.cache.rows(shelf, samples, rows)
    hidden = None if kept is None else stack(kept, fleet.backbone.causal)
    return logits(fleet.backbone, batch.ids, batch.mask, 1, hidden)


def _by_length(samples: Sequence[Encoded]) -> list[list[int]]:
    """Batches of samples of like length, so that little padding is computed."""
    order = sorted(range(len(samples)), key=lambda i: len(samples[i].ids))
    return [order[start : start + ROWS] for start in range(0, len(order), ROWS)]


def _restore(values: list[int], order: list[int]) -> list[int]:
    placed = [0] * len(values)
    for index, value in zip(order, values, strict=True):
        placed[index] = value
    return placed


def complete(
    fleet: Fleet, factors: Factors | None, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> list[str]:
    """Greedy completions of tokenised prompts by one model (K = 1), without special tokens."""
    backbone, tokenizer = fleet.backbone, fleet.backbone.tokenizer
    samples = [Encoded(ids, (0,)) for ids in prompts]
    texts: list[str] = []
    for rows in _by_length(samples):
        batch = collate([samples[i] for i in rows], tokenizer.pad_token_id, left=True)
        fields: dict[str, Any] = {
            k: v for k, v in inputs(backbone, batch.ids, batch.mask).items() if k != "position_ids"
        }
        fields |= {"use_cache": True, "pad_token_id": tokenizer.pad_token_id, "do_sample": False}
        with torch.no_grad(), adapted(backbone, factors):
            out = backbone.model.generate(**fields, max_new_tokens=max_new_tokens)
        texts += tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)
    order = [i for rows in _by_length(samples) for i in rows]
    return [text for _, text in sorted(zip(order, texts, strict=True))]
