"""What a task's model answers on a split."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.devices.gradients import Clients
from airpfed.devices.parallel import side_by_side, workers
from airpfed.devices.prefix_cache import stack
from airpfed.model.backbone import Backbone
from airpfed.model.buckets import batched
from airpfed.model.forward import adapted, inputs, logits
from airpfed.model.layout import Factors
from airpfed.model.tokens import Encoded, collate

ROWS = 32
"""Samples computed at once."""

NONE = -1
"""The answer of a model that has diverged: right nowhere."""


def classify(
    clients: Clients, factors: Factors | None, shelf: str, samples: Sequence[Encoded], choices: Sequence[int]
) -> list[int]:
    """Index of the best of `choices` (label tokens, or classes) for each sample; NONE where no score is a number.

    factors: of one model (K = 1); None is the base model. shelf: name under which the prefix cache keeps these samples.
    """
    count = workers(clients.backbone, len(samples))
    batches = _by_length(samples, ROWS // count if clients.backbone.paths.batching else 1)
    clients.cache.fill(shelf, samples, range(len(samples)))

    def work(backbone: Backbone, rows: list[int]) -> list[int]:
        scores = last_scores(replace(clients, backbone=backbone), factors, shelf, samples, rows)[:, list(choices)]
        found: list[int] = scores.argmax(1).where(scores.isfinite().all(1), NONE).tolist()
        return found

    answers = side_by_side(clients.backbone, work, batches, count)
    return _restore([one for part in answers for one in part], [i for rows in batches for i in rows])


def last_scores(
    clients: Clients, factors: Factors | None, shelf: str, samples: Sequence[Encoded], rows: Sequence[int]
) -> Float[Tensor, "rows C"]:
    """Logits of samples[i] for i in rows by one model, in one pass: of the last position, or of the classes."""
    backbone = clients.backbone
    batch = collate([samples[i] for i in rows], backbone.tokenizer.pad_token_id, backbone.paths.left)
    kept = clients.cache.rows(shelf, samples, rows)
    hidden = None if kept is None else stack(kept, backbone.paths.left)
    with torch.no_grad(), adapted(backbone, factors):
        return logits(backbone, batch.ids, batch.mask, 1, hidden)[:, -1]


def _by_length(samples: Sequence[Encoded], size: int) -> list[list[int]]:
    """Batches of samples of like length, so that little padding is computed; the longest first."""
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].ids))
    return [list(part) for part in batched(order, size)]


def _restore(values: list[int], order: list[int]) -> list[int]:
    placed = [0] * len(values)
    for index, value in zip(order, values, strict=True):
        placed[index] = value
    return placed


def complete(
    clients: Clients, factors: Factors | None, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
) -> list[str]:
    """Greedy completions of tokenised prompts by one model (K = 1), without special tokens.

    Plain greedy: the base's own ways of decoding were put aside when it was loaded, its end tokens apart.
    """
    backbone, tokenizer = clients.backbone, clients.backbone.tokenizer
    samples = [Encoded(ids, (0,)) for ids in prompts]
    texts: list[str] = []
    batches = _by_length(samples, ROWS if backbone.paths.batching else 1)
    for rows in batches:
        batch = collate([samples[i] for i in rows], tokenizer.pad_token_id, left=True)
        fields: dict[str, Any] = {
            k: v for k, v in inputs(backbone, batch.ids, batch.mask).items() if k != "position_ids"
        }
        with torch.no_grad(), adapted(backbone, factors):
            out = backbone.model.generate(
                **fields | {"use_cache": backbone.paths.decoding}, max_new_tokens=max_new_tokens
            )
        texts += tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)
    order = [i for rows in batches for i in rows]
    return [text for _, text in sorted(zip(order, texts, strict=True))]
