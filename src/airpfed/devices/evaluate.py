"""Answers of a task's model: classes by the best logit or the most probable words, and greedy completions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from airpfed.devices.clients import Clients
from airpfed.devices.gradients import sample_losses
from airpfed.devices.parallel import run_parallel, worker_count
from airpfed.devices.prefix_cache import stack
from airpfed.model.backbone import Backbone
from airpfed.model.compatibility import vocabulary_size
from airpfed.model.forward import logits, model_inputs, with_adapters
from airpfed.model.layout import Factors
from airpfed.model.tokens import IGNORED, Encoding, batched, batches_by_length, collate, pad_targets

BATCH_ROWS = 32
"""Samples computed at the same time."""

LOGIT_BYTES = 1 << 28
"""Size of the float32 logits of a batch, where more than the last position is read."""

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


def classify_words(
    clients: Clients,
    factors: Factors | None,
    cache_key: str,
    samples: Sequence[Encoding],
    words: Sequence[tuple[int, ...]],
    normalised: bool = False,
) -> list[int]:
    """Index of the label word of the largest score for each sample; NO_ANSWER where a score is not finite.

    words: tokens of each label word. normalised: as in `word_scores`. The rest as in `classify`.
    """
    scores = word_scores(clients, factors, cache_key, samples, words, normalised)
    best: list[int] = scores.argmax(1).where(scores.isfinite().all(1), NO_ANSWER).tolist()
    return best


def word_scores(
    clients: Clients,
    factors: Factors | None,
    cache_key: str,
    samples: Sequence[Encoding],
    words: Sequence[tuple[int, ...]],
    normalised: bool = False,
) -> Float[Tensor, "n C"]:
    """Log-probability of each label word after each prompt in nats, the sum over the word's tokens.

    words: tokens of each label word. normalised: divide by the number of the word's tokens. A prompt is computed once
    for every beginning of words that no other beginning continues, and once in all where every word is one token.
    """
    contexts = word_contexts(words)
    rows = [Encoding((*sample.ids, *context), (0,) * (len(context) + 1)) for sample in samples for context in contexts]
    readers = [_WordReader.of_context(words, context, contexts) for context in contexts]
    scores = torch.empty(len(samples), len(words))

    def work(backbone: Backbone, indices: list[int]) -> None:
        local = replace(clients, backbone=backbone)
        last = max(len(rows[index].targets) for index in indices)
        values = log_probabilities(last_logits(local, factors, f"{cache_key} words", rows, indices, last)).cpu()
        for index, row in zip(indices, values, strict=True):
            sample, number = divmod(index, len(contexts))
            reader = readers[number]
            scores[sample, reader.members] = reader.read(row[last - len(rows[index].targets) :], normalised)

    _run_in_batches(clients, f"{cache_key} words", rows, work)
    return scores


@dataclass(frozen=True)
class _WordReader:
    """Which entries of the log-probabilities after a prompt and a context give the scores of some words.

    members: indices of the words. tokens: their tokens, padded with 0 at the end. mask: False on padding.
    """

    members: list[int]
    tokens: Int[Tensor, "m L"]
    mask: Bool[Tensor, "m L"]

    @classmethod
    def of_context(
        cls, words: Sequence[tuple[int, ...]], context: tuple[int, ...], contexts: Sequence[tuple[int, ...]]
    ) -> "_WordReader":
        """The words that are read after a context: those whose tokens without the last begin this context first."""
        begins = [next(c for c in contexts if c[: len(word) - 1] == word[:-1]) for word in words]
        members = [n for n, begin in enumerate(begins) if begin == context]
        width = max((len(words[n]) for n in members), default=0)
        tokens = torch.tensor([(*words[n], *(0,) * (width - len(words[n]))) for n in members]).reshape(-1, width)
        mask = torch.tensor([[j < len(words[n]) for j in range(width)] for n in members]).reshape(-1, width)
        return cls(members, tokens, mask)

    def read(self, row: Float[Tensor, "t V"], normalised: bool) -> Float[Tensor, " m"]:
        """Sums of log-probabilities, or their means. row: those after the prompt, position by position."""
        values = row[torch.arange(self.tokens.shape[1]), self.tokens].where(self.mask, 0.0)
        return values.sum(1) / self.mask.sum(1) if normalised else values.sum(1)


def log_probabilities(scores: Float[Tensor, "rows last C"]) -> Float[Tensor, "rows last C"]:
    """Log-probabilities of logits, in float32 or wider."""
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    shifted = wide - wide.amax(-1, keepdim=True)
    return shifted - shifted.logsumexp(-1, keepdim=True)


def word_contexts(words: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The beginnings of words, without the last token, that no other beginning continues."""
    beginnings = sorted({word[:-1] for word in words})  # a beginning is followed by those that continue it
    pairs = zip(beginnings, [*beginnings[1:], None], strict=True)
    return [context for context, following in pairs if following is None or following[: len(context)] != context]


def answer_log_likelihoods(
    clients: Clients, factors: Factors | None, cache_key: str, samples: Sequence[Encoding]
) -> tuple[list[float], list[int]]:
    """Log-likelihood of each sample's targets in nats, and their number.

    samples: with the targets of a training loss. The other arguments as in `classify`.
    """
    results = [0.0] * len(samples)
    counts = [sum(target != IGNORED for target in sample.targets) for sample in samples]

    def work(backbone: Backbone, indices: list[int]) -> None:
        targets = pad_targets([samples[index] for index in indices])
        local = replace(clients, backbone=backbone)
        scores = last_logits(local, factors, cache_key, samples, indices, targets.shape[1])
        for index, loss in zip(indices, sample_losses(scores, targets).tolist(), strict=True):
            results[index] = -loss * counts[index]

    _run_in_batches(clients, cache_key, samples, work)
    return results, counts


def _run_in_batches(
    clients: Clients, cache_key: str, samples: Sequence[Encoding], work: Callable[[Backbone, list[int]], Any]
) -> list[Any]:
    """The results of `work` for batches of samples of similar length and targets, whose logits fit into LOGIT_BYTES."""
    workers = worker_count(clients.backbone, len(samples))
    size = BATCH_ROWS // workers if clients.backbone.paths.batching else 1
    vocabulary = vocabulary_size(clients.backbone.model)
    batches = []
    for batch in batches_by_length(samples, size, longest_first=True):
        last = max(len(samples[index].targets) for index in batch)
        batches += [list(part) for part in batched(batch, max(1, LOGIT_BYTES // (4 * last * vocabulary)))]
    clients.cache.fill(cache_key, samples, range(len(samples)))
    return run_parallel(clients.backbone, work, batches, workers)


def last_scores(
    clients: Clients, factors: Factors | None, cache_key: str, samples: Sequence[Encoding], rows: Sequence[int]
) -> Float[Tensor, "rows C"]:
    """Logits of samples[i] for i in rows by one model, in one pass: of the last position, or of the classes."""
    return last_logits(clients, factors, cache_key, samples, rows, 1)[:, -1]


def last_logits(
    clients: Clients,
    factors: Factors | None,
    cache_key: str,
    samples: Sequence[Encoding],
    rows: Sequence[int],
    last: int,
) -> Float[Tensor, "rows last C"]:
    """Logits of the last positions of samples[i] for i in rows by one model, in one pass."""
    backbone = clients.backbone
    batch = collate([samples[i] for i in rows], backbone.tokenizer.pad_token_id, backbone.paths.pad_left)
    states = clients.cache.rows(cache_key, samples, rows)
    hidden = None if states is None else stack(states, backbone.paths.pad_left)
    with torch.no_grad(), with_adapters(backbone, factors):
        return logits(backbone, batch.ids, batch.mask, last, hidden)


def complete(
    clients: Clients,
    factors: Factors | None,
    prompts: Sequence[tuple[int, ...]],
    max_new_tokens: int,
    end_tokens: Sequence[int] = (),
) -> list[str]:
    """Greedy completions of tokenised prompts by one model (K = 1), without special tokens.

    The base's own decoding options were removed when it was loaded, except its end tokens. end_tokens: further tokens
    that end a completion.
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
        if end_tokens:
            fields["eos_token_id"] = list(dict.fromkeys((*backbone.end_tokens, *end_tokens)))
        with torch.no_grad(), with_adapters(backbone, factors):
            out = backbone.model.generate(**fields, max_new_tokens=max_new_tokens)
        answers = tokenizer.batch_decode(out[:, batch.ids.shape[1] :], skip_special_tokens=True)
        for index, text in zip(rows, answers, strict=True):
            texts[index] = text
    return texts
