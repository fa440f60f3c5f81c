"""Prompts and answers as token ids, and batches of them: padded, in length buckets, or packed end to end."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from airpfed.core.errors import UserError

IGNORED = -100
"""Target of a position that no loss reads."""


@dataclass(frozen=True)
class Encoding:
    """One sample: the token ids that the model reads, and the targets of its last len(targets) positions.

    classify: one target, the token of the label word (causal LM) or the class index (classifier). generate: the tokens
    of the completion and the end token; ids then hold the prompt and all of these tokens except the last.
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
class PackedBatch:
    """Samples of some devices end to end, T tokens in all; a common beginning of one device's samples is stored once.

    ids, positions: of each of the T stored tokens; positions count within a sample, from 0. targets: IGNORED where a
    sample has fewer. target_index: position of the token whose logits predict each target; the sample's first token
    where the target is IGNORED. lengths: of the samples. token_of: index into the T stored tokens for every token of
    every sample, sample by sample. first_use: for each stored token, where it first occurs in `token_of`.
    tokens_per_device: stored tokens of each device.

    Example: a device's samples (5, 6, 7) and (5, 6, 8) are stored as ids = (5, 6, 7, 8), positions = (0, 1, 2, 2),
    with token_of = (0, 1, 2, 0, 1, 3) and first_use = (0, 1, 2, 5).
    """

    ids: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    target_index: Int[Tensor, "n last"]
    targets: Int[Tensor, "n last"]
    lengths: tuple[int, ...]
    token_of: Int[Tensor, " whole"]
    first_use: Int[Tensor, " T"]
    tokens_per_device: tuple[int, ...]


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The tokenizer's control tokens (begin, end, separators, chat roles), which no text should become.

    The token for unknown words is not one of them, nor is an ordinary word used as padding.
    """
    kinds = ("bos", "eos", "cls", "sep", "mask")
    named = [getattr(tokenizer, f"{kind}_token_id", None) for kind in kinds]
    special = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    return frozenset(token for token in (*named, *special) if token is not None and token != tokenizer.unk_token_id)


def affix_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens that the tokenizer adds before and after a text."""
    full, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    extra = len(full) - len(plain)
    start = next((begin for begin in range(extra + 1) if full[begin : begin + len(plain)] == plain), extra)
    return tuple(full[:start]), tuple(full[start + len(plain) :])


def tokenize(tokenizer: Any, texts: Sequence[str], causal: bool = True) -> list[tuple[int, ...]]:
    """Token ids of texts, with the tokens that the tokenizer adds before a text, and after it for a classifier.

    A causal LM continues a text, so an end token that the tokenizer would append is removed. A text that spells a
    control token is read as text; where the vocabulary cannot write it otherwise, it becomes the unknown token, or
    nothing where there is none.
    """
    if not texts:
        return []
    num_prefix, num_suffix = map(len, affix_ids(tokenizer))
    control, unknown = control_ids(tokenizer), tokenizer.unk_token_id
    results = []
    for ids in tokenizer(list(texts), split_special_tokens=True, verbose=False).input_ids:
        last = len(ids) - num_suffix
        text = ids[num_prefix:last]
        if not control.isdisjoint(text):
            text = [
                unknown if token in control else token for token in text if token not in control or unknown is not None
            ]
        results.append((*ids[:num_prefix], *text, *(() if causal else ids[last:])))
    return results


def cut_middle(ids: tuple[int, ...], limit: int) -> tuple[int, ...]:
    """At most `limit` tokens of a prompt. The middle is removed, so the instruction and the cue at the end stay."""
    tail = limit // 3
    return ids if len(ids) <= limit else ids[: limit - tail] + ids[-tail:]


def prompt_ids(tokenizer: Any, prompt: str, limit: int, causal: bool = True) -> tuple[int, ...]:
    """Token ids of a prompt, at most `limit`."""
    return cut_middle(tokenize(tokenizer, [prompt], causal)[0], limit)


def strip_prompt(prompt: str) -> str:
    """A prompt as a causal LM reads it: spaces at its end belong to the first token of the answer."""
    return prompt.rstrip(" ")


def answer_ids(tokenizer: Any, prompt: str, answer: str) -> tuple[int, ...]:
    """The tokens of an answer after a prompt.

    Where prompt and answer would share a token, the tokens of the answer after another text without a shared token.
    """
    start = strip_prompt(prompt)
    text = prompt[len(start) :] + answer
    for begin in (start, "\n", ":", "."):
        begin_ids, joined = tokenize(tokenizer, [begin, begin + text])
        if joined[: len(begin_ids)] == begin_ids:
            return joined[len(begin_ids) :]
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def encode_completion(tokenizer: Any, prompt: str, answer: str, limit: int, end: int | None = None) -> Encoding:
    """A prompt with its answer and the end token, at most `limit` tokens; a long prompt is cut, then the answer.

    end: the end token; by default the tokenizer's.
    """
    last = tokenizer.eos_token_id if end is None else end
    targets = (*answer_ids(tokenizer, prompt, answer), last)[: limit // 2]
    ids = prompt_ids(tokenizer, strip_prompt(prompt), limit - len(targets) + 1)
    return Encoding(ids + targets[:-1], targets)


@dataclass(frozen=True)
class LabelTokens:
    """Prompts of a classification as token ids, and the tokens of each label word that follow them.

    words: of each label, the tokens whose log-probabilities make its score; one token each where `first_tokens`.
    """

    prompts: list[tuple[int, ...]]
    words: tuple[tuple[int, ...], ...]

    @property
    def first_tokens(self) -> bool:
        """Whether one position distinguishes all labels, so that logits are scores."""
        return all(len(word) == 1 for word in self.words)


LabelScore = Literal["auto", "words"]


def encode_labels(
    tokenizer: Any, prompts: Sequence[str], words: Sequence[str], task: str, score: LabelScore, end: int | None
) -> LabelTokens:
    """Token ids of prompts for a causal LM, and the tokens of each label word that its score reads.

    score: `auto` takes the first token where the tokens of all labels differ there, as `encode_choices` does, and else
    whole words; `words` always takes whole words. end: the base's end token, which follows a word that another word
    begins with. Raises UserError as `encode_choices` and `encode_words` do, except where whole words can stand in for
    first tokens.
    """
    continuations = label_continuations(tokenizer, prompts, words, task)
    if score == "auto" and len(set(continuations.firsts)) == len(words):
        return LabelTokens(continuations.prompts, tuple(continuations.firsts))
    return LabelTokens(continuations.prompts, whole_words(continuations, words, task, end))


def encode_choices(
    tokenizer: Any, prompts: Sequence[str], words: Sequence[str], task: str
) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """Token ids of prompts for a causal LM, and the first token of each label word that follows them.

    Raises UserError as `label_continuations` does, and where two words begin with the same token, because one position
    can only distinguish tokens.
    """
    continuations = label_continuations(tokenizer, prompts, words, task)
    word_of: dict[tuple[int, ...], str] = {}
    for word, first in zip(words, continuations.firsts, strict=True):
        if first in word_of:
            raise UserError(
                f"tasks.{task}.labels: label word {word!r} and {word_of[first]!r} start with the same token; set words "
                "here that differ in their first token, such as A, B, C"
            )
        word_of[first] = word
    return continuations.prompts, tuple(first[0] for first in continuations.firsts)


@dataclass(frozen=True)
class Continuations:
    """Prompts as token ids, and what follows them for each label word.

    firsts: the first token of each word, in a tuple. tails: all tokens of each word, by the ending of the prompts;
    usually the same for all endings.
    """

    prompts: list[tuple[int, ...]]
    firsts: list[tuple[int, ...]]
    tails: dict[tuple[tuple[int, ...], ...], str]


def label_continuations(tokenizer: Any, prompts: Sequence[str], words: Sequence[str], task: str) -> Continuations:
    """Token ids of prompts for a causal LM, and the tokens of the label words that follow them.

    A prompt ends where the words begin to differ. A token that prompt and word would share (a space at the end of the
    prompt) belongs to the word. Tokens that all words begin with (SentencePiece's space before digits) belong to the
    prompt. Raises UserError where the words' first tokens depend on the prompt, and where a word has none.
    """
    prompt_tokens = tokenize(tokenizer, prompts)
    # The tokens of words depend on a prompt's last line only, so one prompt per ending is tokenised with every word.
    endings = [
        (prompt[max(prompt.rfind("\n"), 0) :], ids[-2:]) for prompt, ids in zip(prompts, prompt_tokens, strict=True)
    ]
    examples = {ending: n for n, ending in enumerate(endings)}
    spellings = [list(words)]
    if any(prompt[-1:].isspace() for prompt in prompts):  # the prompt's own space is enough
        spellings.append([word.lstrip() for word in words])
    for spelling in spellings:
        joined = iter(tokenize(tokenizer, [prompts[n] + word for n in examples.values() for word in spelling]))
        texts = {ending: list(islice(joined, len(words))) for ending in examples}
        cuts = {
            ending: min(shared_length(prompt_tokens[n], text) for text in texts[ending])
            for ending, n in examples.items()
        }
        if all(cuts[ending] == len(prompt_tokens[n]) for ending, n in examples.items()):
            break
    starts = {ending: common_start([text[cuts[ending] :] for text in texts[ending]]) for ending in examples}
    tails = {
        ending: tuple(text[cuts[ending] + len(start) :] for text in texts[ending]) for ending, start in starts.items()
    }
    continuations = {(start, *(tail[:1] for tail in tails[ending])): ending for ending, start in starts.items()}
    if len(continuations) > 1 or 0 in cuts.values():
        raise UserError(
            f"tasks.{task}.prompt: the tokens of label words depend on how a prompt ends (as in "
            f"{list(continuations.values())[-1][0][-20:]!r}); end it with a cue such as '\\nLabel:'"
        )
    ((start, *firsts),) = continuations
    for word, first in zip(words, firsts, strict=True):
        if not first:
            raise UserError(f"tasks.{task}.labels: label word {word!r} has no token; another word should stand for it")
    excess = {ending: len(prompt_tokens[n]) - cuts[ending] for ending, n in examples.items()}
    prompts_ids = [ids[: len(ids) - excess[ending]] + start for ids, ending in zip(prompt_tokens, endings, strict=True)]
    return Continuations(prompts_ids, firsts, {tails[ending]: ending[0] for ending in examples})


def whole_words(
    continuations: Continuations, words: Sequence[str], task: str, end: int | None
) -> tuple[tuple[int, ...], ...]:
    """All tokens of each label word after a prompt; the end token follows a word that another word begins with.

    Without it, the longer word could never have the higher probability: that of the shorter word is a factor of its
    own. Raises UserError where the tokens depend on the prompt, where two words have the same tokens, and where an end
    token is needed and the base has none.
    """
    if len(continuations.tails) > 1:
        raise UserError(
            f"tasks.{task}.prompt: the tokens of label words depend on how a prompt ends (as in "
            f"{list(continuations.tails.values())[-1][-20:]!r}); end it with a cue such as '\\nLabel:'"
        )
    (tails,) = continuations.tails
    complete = list(tails)
    for number, tail in enumerate(tails):
        longer = [n for n, other in enumerate(tails) if n != number and other[: len(tail)] == tail]
        if not longer:
            continue
        if same := [n for n in longer if tails[n] == tail]:
            raise UserError(
                f"tasks.{task}.labels: label words {words[number]!r} and {words[same[0]]!r} have the same tokens in "
                "this base; set words here that its tokenizer can tell apart, such as A, B, C"
            )
        if end is None:
            raise UserError(
                f"tasks.{task}.labels: label word {words[longer[0]]!r} begins with {words[number]!r}, and the base has "
                "no end token to tell them apart; set words here of which none begins with another"
            )
        complete[number] = (*tail, end)
    return tuple(complete)


def common_start(parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Tokens that all label words begin with; none where a word has no token after them."""
    length = min(shared_length(parts[0], part) for part in parts)
    return parts[0][:length] if length < min(map(len, parts)) else ()


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens that two sequences both begin with."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def pad_targets(samples: Sequence[Encoding]) -> Int[Tensor, "rows last"]:
    """Targets of samples, ending at the last column; IGNORED where a sample has fewer."""
    last = max(len(sample.targets) for sample in samples)
    targets = torch.full((len(samples), last), IGNORED, dtype=torch.long)
    for row, sample in enumerate(samples):
        targets[row, last - len(sample.targets) :] = torch.tensor(sample.targets)
    return targets


def collate(samples: Sequence[Encoding], pad: int, left: bool) -> Batch:
    """Samples padded to the longest with the token `pad`, on the left or right; targets end at the last column."""
    width = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), width), pad, dtype=torch.long)
    mask = torch.zeros(len(samples), width, dtype=torch.bool)
    for row, sample in enumerate(samples):
        columns = slice(width - len(sample.ids), width) if left else slice(0, len(sample.ids))
        ids[row, columns] = torch.tensor(sample.ids)
        mask[row, columns] = True
    return Batch(ids, mask, pad_targets(samples))


def pack(samples: Sequence[Encoding], counts: Sequence[int]) -> PackedBatch:
    """Samples end to end, device by device. counts: samples of each device.

    A causal LM's output at a token depends only on the tokens up to it and on the device's adapters, so a common
    beginning of a device's samples is computed once.
    """
    targets, lengths = pad_targets(samples), [len(sample.ids) for sample in samples]
    ends = torch.tensor(lengths).cumsum(0)[:, None]
    begins = ends - torch.tensor(lengths)[:, None]
    target_place = torch.maximum(ends - torch.arange(targets.shape[1], 0, -1), begins)
    stored: dict[tuple[int, int], int] = {}  # (previous stored token, id) -> stored token
    token_of, first_use, tokens_per_device = list[int](), list[int](), list[int]()
    queue = iter(samples)
    for count in counts:
        begin = len(stored)
        for sample in islice(queue, count):
            token = -len(tokens_per_device) - 1  # stands for the beginning of this device's samples
            for token_id in sample.ids:
                token = stored.setdefault((token, token_id), len(stored))
                if token == len(first_use):
                    first_use.append(len(token_of))
                token_of.append(token)
        tokens_per_device.append(len(stored) - begin)
    ids = torch.tensor([token_id for _, token_id in stored])
    positions = torch.cat([torch.arange(length) for length in lengths])
    tokens, firsts = torch.tensor(token_of), torch.tensor(first_use)
    target_index = tokens[target_place]
    return PackedBatch(
        ids, positions[firsts], target_index, targets, tuple(lengths), tokens, firsts, tuple(tokens_per_device)
    )


Price = Callable[[int, int], int]
"""(rows, width) -> cost of computing so many rows of this width together."""


def length_buckets(widths: Sequence[int], rows: Sequence[int], price: Price) -> list[tuple[int, int]]:
    """The ranges [first, last) of columns to compute together at the lowest total price.

    All columns of a range are padded to its widest column. widths: widths of the columns, ascending. rows: number of
    rows of each column.
    """
    begins = [0]
    for count in rows:
        begins.append(begins[-1] + count)
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for last in range(1, len(widths) + 1):
        options = [
            (best[first][0] + price(begins[last] - begins[first], widths[last - 1]), first) for first in range(last)
        ]
        cost, first = min(options)
        best.append((cost, [*best[first][1], (first, last)]))
    return best[-1][1]


def batches_by_length(samples: Sequence[Encoding], size: int, longest_first: bool = False) -> list[list[int]]:
    """Indices of samples in order of length, `size` per batch, so that padding is short."""
    sign = -1 if longest_first else 1
    order = sorted(range(len(samples)), key=lambda index: sign * len(samples[index].ids))
    return [list(batch) for batch in batched(order, size)]


def batched(items: Iterable[int], size: int) -> Iterator[tuple[int, ...]]:
    """Consecutive tuples of at most `size` items."""
    remaining = iter(items)
    while part := tuple(islice(remaining, size)):
        yield part
