"""Prompts and answers as token ids, and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from airpfed.core.errors import UserError

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


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The tokenizer's control tokens (begin, end, separators, roles of a chat), which no text should become.

    Not the one for unknown words, and no ordinary word that was made the padding.
    """
    kinds = ("bos", "eos", "cls", "sep", "mask")
    named = [getattr(tokenizer, f"{kind}_token_id", None) for kind in kinds]
    special = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    return frozenset(one for one in (*named, *special) if one is not None and one != tokenizer.unk_token_id)


def added(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer puts before and behind a text by itself."""
    whole, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    more = len(whole) - len(plain)
    at = next((begin for begin in range(more + 1) if whole[begin : begin + len(plain)] == plain), more)
    return tuple(whole[:at]), tuple(whole[at + len(plain) :])


def read(tokenizer: Any, texts: Sequence[str], causal: bool = True) -> list[tuple[int, ...]]:
    """Token ids of texts, with what the tokenizer puts before them; behind them, too, for a classifier.

    A causal LM goes on from a text, so an end token that the tokenizer would append is left away. A text that spells a
    control token is read as what it is, text; where a vocabulary has no other way to write it, it is an unknown word.
    """
    if not texts:
        return []
    before, behind = map(len, added(tokenizer))
    control, unknown = control_ids(tokenizer), tokenizer.unk_token_id
    found = []
    for ids in tokenizer(list(texts), split_special_tokens=True, verbose=False).input_ids:
        last = len(ids) - behind
        text = ids[before:last]
        if not control.isdisjoint(text):
            text = [unknown if one in control else one for one in text if one not in control or unknown is not None]
        found.append((*ids[:before], *text, *(() if causal else ids[last:])))
    return found


def cut(ids: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """At most `limit` tokens of a prompt: of a longer one the middle goes, so that instruction and cue both stay."""
    tail = limit // 3
    return ids if len(ids) <= limit else ids[: limit - tail] + ids[-tail:]


def prompt_ids(tokenizer: Any, prompt: str, limit: int, causal: bool = True) -> tuple[int, ...]:
    """Token ids of a prompt, at most `limit`."""
    return cut(read(tokenizer, [prompt], causal)[0], limit)


def before_answer(prompt: str) -> str:
    """A prompt as a causal LM is given it: spaces at its end belong to the answer's first token."""
    return prompt.rstrip(" ")


def answer_ids(tokenizer: Any, prompt: str, answer: str) -> tuple[int, ...]:
    """The tokens of an answer as they follow a prompt.

    Where prompt and answer would share a token, those that the answer has behind a text that it shares none with.
    """
    start = before_answer(prompt)
    text = prompt[len(start) :] + answer
    for begin in (start, "\n", ":", "."):
        alone, both = read(tokenizer, [begin, begin + text])
        if both[: len(alone)] == alone:
            return both[len(alone) :]
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def completion(tokenizer: Any, prompt: str, answer: str, limit: int, end: int | None = None) -> Encoded:
    """A prompt with the answer that should follow it and the end token; the prompt makes room for the answer.

    end: the end token, by default the tokenizer's.
    """
    last = tokenizer.eos_token_id if end is None else end
    targets = (*answer_ids(tokenizer, prompt, answer), last)[: limit // 2]
    ids = prompt_ids(tokenizer, before_answer(prompt), limit - len(targets) + 1)
    return Encoded(ids + targets[:-1], targets)


def labelled(
    tokenizer: Any, prompts: Sequence[str], words: Sequence[str], task: str
) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Prompts as a causal LM reads them, and of each label word the token that follows them.

    A prompt ends where the words part: a token that a word would share with it (a space at its end) is the word's, and
    tokens that all words begin with alike (the space before digits, of SentencePiece) are the prompt's. Raises
    UserError where two words begin with one token (a position can only tell tokens apart), or where the token depends
    on the prompt.
    """
    alone = read(tokenizer, prompts)
    # What a prompt ends with from its last line on decides; the texts above are not read again for every word.
    kinds = [(prompt[max(prompt.rfind("\n"), 0) :], ids[-2:]) for prompt, ids in zip(prompts, alone, strict=True)]
    shown = {kind: n for n, kind in enumerate(kinds)}
    tries = [list(words)]
    if any(prompt[-1:].isspace() for prompt in prompts):  # its space is enough
        tries.append([word.lstrip() for word in words])
    for chosen in tries:
        both = iter(read(tokenizer, [prompts[n] + word for n in shown.values() for word in chosen]))
        parts = {kind: list(islice(both, len(words))) for kind in shown}
        ends = {kind: min(shared(alone[n], one) for one in parts[kind]) for kind, n in shown.items()}
        if all(ends[kind] == len(alone[n]) for kind, n in shown.items()):
            break
    begun = {kind: common([one[ends[kind] :] for one in part]) for kind, part in parts.items()}
    told = {
        (begun[kind], *(one[ends[kind] + len(begun[kind]) :][:1] for one in part)): kind for kind, part in parts.items()
    }
    if len(told) > 1 or 0 in ends.values():
        raise UserError(
            f"tasks.{task}.prompt: the tokens of label words depend on how a prompt ends (as in "
            f"{list(told.values())[-1][0][-20:]!r}); end it with a cue such as '\\nLabel:'"
        )
    ((start, *firsts),) = told
    seen: dict[tuple[int, ...], str] = {}
    for word, first in zip(words, firsts, strict=True):
        if not first:
            raise UserError(f"tasks.{task}.labels: label word {word!r} has no token; another word should stand for it")
        if first in seen:
            raise UserError(
                f"tasks.{task}.labels: label word {word!r} and {seen[first]!r} start with the same token; set words "
                "here that differ in their first token, such as A, B, C"
            )
        seen[first] = word
    over = {kind: len(alone[n]) - ends[kind] for kind, n in shown.items()}
    asked = [ids[: len(ids) - over[kind]] + start for ids, kind in zip(alone, kinds, strict=True)]
    return asked, tuple(first[0] for first in firsts)


def common(parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all label words begin with alike, if each goes on behind them: they tell nothing."""
    length = min(shared(parts[0], one) for one in parts)
    return parts[0][:length] if length < min(map(len, parts)) else ()


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


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
