"""Prompts and answers as token ids, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from airpfed.errors import UserError

IGNORED = -100
"""Target of a position that no loss reads."""


@dataclass(frozen=True)
class Encoded:
    """One sample: what the model reads, and what its last len(targets) positions should predict.

    classify: one target, the label word's token (causal LM) or the class index (classifier). generate: the completion's
    tokens and the end token; ids then hold all but the last of them after the prompt.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Padded samples. mask is False on padding; targets are IGNORED where a sample has fewer."""

    ids: Int[Tensor, "rows t"]
    mask: Bool[Tensor, "rows t"]
    targets: Int[Tensor, "rows last"]


@dataclass(frozen=True)
class Packed:
    """Samples of some devices end to end, except that what samples of one device begin with alike is there once.

    positions: of each token in its sample, from 0. at: the tokens whose predictions the targets are for (where a sample
    has fewer targets, its first). lengths: of the samples. token: which of T each of their tokens is, sample by sample.
    first: of those, the first that is it. spans: tokens of each device.
    """

    ids: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    at: Int[Tensor, "n last"]
    targets: Int[Tensor, "n last"]
    lengths: tuple[int, ...]
    token: Int[Tensor, " whole"]
    first: Int[Tensor, " T"]
    spans: tuple[int, ...]


def prompt_ids(tokenizer: Any, prompt: str, limit: int) -> tuple[int, ...]:
    """Token ids of a prompt, at most `limit`.

    Of a longer one the middle goes, so that instruction and cue both stay.
    """
    ids = tuple(tokenizer(prompt).input_ids)
    tail = limit // 3
    return ids if len(ids) <= limit else ids[: limit - tail] + ids[-tail:]


def completion(tokenizer: Any, prompt: str, answer: str, limit: int) -> Encoded:
    """A prompt with the answer that should follow it and the end token; the prompt makes room for the answer."""
    answer_ids = (*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id)[: limit // 2]
    ids = prompt_ids(tokenizer, prompt, limit - len(answer_ids) + 1)
    return Encoded(ids + answer_ids[:-1], answer_ids)


def label_tokens(tokenizer: Any, words: Sequence[str], where: str) -> tuple[int, ...]:
    """The first token of each label word.

    UserError where two words share one (a position can only tell tokens apart).
    """
    firsts = [tokenizer(word, add_special_tokens=False).input_ids[:1] for word in words]
    seen: dict[int, str] = {}
    for word, first in zip(words, firsts, strict=True):
        if not first or first[0] in seen:
            other = f"and {seen[first[0]]!r} start with the same token" if first else "has no token"
            raise UserError(f"{where}: label word {word!r} {other}; words should differ in their first token")
        seen[first[0]] = word
    return tuple(first[0] for first in firsts)


def targets_of(samples: Sequence[Encoded]) -> Int[Tensor, "rows last"]:
    """Targets of samples, ending at the last column; IGNORED where a sample has fewer."""
    last = max(len(sample.targets) for sample in samples)
    targets = torch.full((len(samples), last), IGNORED, dtype=torch.long)
    for row, sample in enumerate(samples):
        targets[row, last - len(sample.targets) :] = torch.tensor(sample.targets)
    return targets


def collate(samples: Sequence[Encoded], pad: int, left: bool) -> Batch:
    """Pad samples to the longest of them; targets always end at the last column."""
    width = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), width), pad, dtype=torch.long)
    mask = torch.zeros(len(samples), width, dtype=torch.bool)
    for row, sample in enumerate(samples):
        columns = slice(width - len(sample.ids), width) if left else slice(0, len(sample.ids))
        ids[row, columns] = torch.tensor(sample.ids)
        mask[row, columns] = True
    return Batch(ids, mask, targets_of(samples))


def pack(samples: Sequence[Encoded], counts: Sequence[int]) -> Packed:
    """Samples one behind the other, nothing between them; counts: of each device, one behind the other too.

    What a causal LM makes of a token depends on the tokens up to it and on the device's adapters alone.
    """
    targets, lengths = targets_of(samples), [len(sample.ids) for sample in samples]
    ends = torch.tensor(lengths).cumsum(0)[:, None]
    begin = ends - torch.tensor(lengths)[:, None]
    at = torch.maximum(ends - torch.arange(targets.shape[1], 0, -1), begin)  # what lies before a sample is ignored
    known: dict[tuple[int, int], int] = {}  # (token before it, id) -> token
    token, first, spans = list[int](), list[int](), list[int]()
    rest = iter(samples)
    for count in counts:
        there = len(known)
        for sample in islice(rest, count):
            one = -len(spans) - 1  # nothing before it, on this device
            for each in sample.ids:
                one = known.setdefault((one, each), len(known))
                if one == len(first):
                    first.append(len(token))
                token.append(one)
        spans.append(len(known) - there)
    ids, positions = torch.tensor([each for _, each in known]), torch.cat([torch.arange(one) for one in lengths])
    which, firsts = torch.tensor(token), torch.tensor(first)
    return Packed(ids, positions[firsts], which[at], targets, tuple(lengths), which, firsts, tuple(spans))
