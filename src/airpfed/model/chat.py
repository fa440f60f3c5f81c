"""Conversations as token ids: a chat template writes them, and the loss reads the assistant's tokens only.

Where a template marks what the assistant generates, the marks are used. Elsewhere a reply is what the conversation up
to its end has beyond the conversation before it with the prompt for a reply, if the one text begins with the other.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from airpfed.core.errors import UserError, one_line
from airpfed.model.tokens import IGNORED, Encoding, affix_ids, control_ids, cut_middle

ChatMessage = tuple[str, str]
"""Role and content."""
Replies = Literal["all", "last"]

TEMPLATES: Mapping[str, str] = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + (eos_token or '') + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "alpaca": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
        "{% elif m['role'] == 'user' %}{{ '### Instruction:\n' + m['content'] + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + m['content'] + (eos_token or '') + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}{{ m['role'].capitalize() + ': ' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
}
"""Name -> chat template for bases without one, in Jinja as transformers reads it."""

PROBE = (("user", "Zq1"), ("assistant", "Zq2"))
"""A conversation of texts that no template writes."""
MARKER = re.compile(r"<\|\w+\|>")
"""A mark of a role or of the end of a turn, which a template writes and no message may."""


@dataclass(frozen=True)
class TurnEnd:
    """What ends the assistant's turn: a text, and the tokens that a generation stops at. Empty where nothing does."""

    text: str = ""
    tokens: tuple[int, ...] = ()

    def cut(self, text: str) -> str:
        """A generated text up to the end of the turn."""
        return text.partition(self.text)[0] if self.text else text


@dataclass(frozen=True)
class ChatFormat:
    """How conversations become tokens. jinja: the template. begin: tokens before a named template's text.

    end: token that the last reply ends with where the template writes nothing after a reply. controls: control tokens
    and marks of the template as texts, which no message may spell. task: for errors.
    """

    tokenizer: Any
    jinja: str
    begin: tuple[int, ...]
    end: tuple[int, ...]
    turn_end: TurnEnd
    controls: tuple[str, ...]
    task: str

    @property
    def marked(self) -> bool:
        """Whether the template marks what the assistant generates."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.jinja) is not None


@dataclass(frozen=True)
class ChatEncoding:
    """A conversation as input and targets, and what did not fit.

    exchanges_dropped: messages of the user with their replies that were left out at the beginning. replies_dropped: how
    many replies with a loss this cost. tokens: number of tokens of the remaining messages before a cut. reply_tokens:
    of the reply alone. prompt_cut: whether the prompt lost its middle. reply_cut: whether the reply lost its end.
    """

    encoding: Encoding
    exchanges_dropped: int = 0
    replies_dropped: int = 0
    tokens: int = 0
    reply_tokens: int = 0
    prompt_cut: bool = False
    reply_cut: bool = False


def chat_format(tokenizer: Any, template: str, task: str, end_tokens: Sequence[int] = ()) -> ChatFormat:
    """The format of a task's conversations. template: a name of TEMPLATES; empty for the tokenizer's own.

    end_tokens: of the base, first the one that answers end with. Raises UserError where there is no template, or one
    that cannot write a message and its reply, and where the tokenizer does not say where its tokens stand in a text.
    """
    if not template and not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"tasks.{task}.template: the base's tokenizer has no chat template; should be one of {', '.join(TEMPLATES)}"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"tasks.{task}.kind: chats need a tokenizer that knows the positions of its tokens in a text (a "
            "tokenizer.json), and this base has none"
        )
    try:
        jinja = TEMPLATES[template] if template else str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UserError(f"tasks.{task}.template: {one_line(error)}") from None
    begin = affix_ids(tokenizer)[0] if template else ()
    controls = dict.fromkeys((*control_texts(tokenizer), *MARKER.findall(jinja)))
    bare = ChatFormat(tokenizer, jinja, begin, (), TurnEnd(), tuple(controls), task)
    text, spans = reply_spans(bare, PROBE)
    reply = text[spans[-1][0] : spans[-1][1]]
    tail = reply.rpartition(PROBE[1][1])[2].strip() if PROBE[1][1] in reply else ""
    ids = tokenizer(tail, add_special_tokens=False).input_ids if tail else []
    stops = tuple(ids) if len(ids) == 1 and ids[0] in control_ids(tokenizer) else ()
    return replace(bare, end=() if tail else tuple(end_tokens[:1]), turn_end=TurnEnd(tail, stops))


def exported_template(chat: ChatFormat) -> str:
    """The template with the tokens before a named template's text, as a tokenizer's own template writes them."""
    begin = _begin_text(chat)
    return f"{{{{ {begin!r} }}}}{chat.jinja}" if begin else chat.jinja


def _begin_text(chat: ChatFormat) -> str:
    return "".join(chat.tokenizer.convert_ids_to_tokens(list(chat.begin)))


def is_export_exact(chat: ChatFormat) -> bool:
    """Whether a text of `exported_template` gives the tokens that training read.

    A tokenizer may read the first word after a begin token otherwise where both are in one text.
    """
    text = render_chat(chat, PROBE)
    plain = (*chat.begin, *chat.tokenizer(text, add_special_tokens=False).input_ids)
    return tuple(chat.tokenizer(_begin_text(chat) + text, add_special_tokens=False).input_ids) == plain


def render_chat(chat: ChatFormat, messages: Sequence[ChatMessage], with_cue: bool = False) -> str:
    """A conversation as the template writes it. with_cue: with the prompt for the assistant's next reply.

    Texts that spell a control token are broken up by a space. Raises UserError where the template refuses.
    """
    tree = _message_tree(chat, messages)
    try:
        return str(
            chat.tokenizer.apply_chat_template(
                tree, chat_template=chat.jinja, tokenize=False, add_generation_prompt=with_cue
            )
        )
    except Exception as error:  # a template may raise anything
        raise _refusal(chat, messages, error) from None


def _refusal(chat: ChatFormat, messages: Sequence[ChatMessage], error: Exception) -> UserError:
    roles = ", ".join(role for role, _ in messages[:6]) + (", ..." if len(messages) > 6 else "")
    return UserError(
        f"tasks.{chat.task}.template: the chat template refuses a conversation of {roles}: {one_line(error)}; "
        "another template may take it"
    )


def _message_tree(chat: ChatFormat, messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    return [{"role": role, "content": break_up(content, chat.controls)} for role, content in messages]


def control_texts(tokenizer: Any) -> tuple[str, ...]:
    """The control tokens as texts, the longest first. Single characters and words are left out: they are ordinary."""
    texts = {str(tokenizer.convert_ids_to_tokens(token)) for token in control_ids(tokenizer)}
    return tuple(sorted((text for text in texts if len(text) > 1 and not text.isalnum()), key=lambda t: (-len(t), t)))


def break_up(text: str, tokens: Sequence[str]) -> str:
    """A text whose spelled control tokens have a space after the first character, so that they are read as text."""
    for token in tokens:
        while token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def reply_spans(chat: ChatFormat, messages: Sequence[ChatMessage]) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as text, and the first and last character (exclusive) of each reply with the end of its turn.

    White space that the template writes after the end of a turn does not belong to the reply; spaces before a reply do,
    because they belong to its first token. Raises UserError where a template without marks writes an earlier part of a
    conversation otherwise than alone.
    """
    if chat.marked:
        return _marked_spans(chat, messages)
    text = render_chat(chat, messages)
    spans = []
    for number, (role, content) in enumerate(messages):
        if role != "assistant":
            continue
        before, after = render_chat(chat, messages[:number], with_cue=True), render_chat(chat, messages[: number + 1])
        if not after.startswith(before) or not text.startswith(after):
            raise UserError(
                f"tasks.{chat.task}.template: the chat template has no generation marks, and writes a conversation "
                "otherwise when it goes on, so the assistant's tokens cannot be found; another template, or "
                'replies = "last" may do'
            )
        length = _reply_length(after[len(before) :], break_up(content, chat.controls))
        spans.append((_begin(text, len(before)), len(before) + length))
    return text, spans


def last_reply_span(chat: ChatFormat, messages: Sequence[ChatMessage]) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as text, and the span of its last reply, as `reply_spans` finds it."""
    if chat.marked:
        text, spans = _marked_spans(chat, messages)
        return text, spans[-1:]
    text, before = render_chat(chat, messages), render_chat(chat, messages[:-1], with_cue=True)
    if not text.startswith(before):
        raise UserError(
            f"tasks.{chat.task}.template: the chat template has no generation marks, and does not continue its prompt "
            "for a reply with the reply, so the assistant's tokens cannot be found; another template may do"
        )
    content = break_up(messages[-1][1], chat.controls)
    return text, [(_begin(text, len(before)), len(before) + _reply_length(text[len(before) :], content))]


def _begin(text: str, start: int) -> int:
    """The first character of a reply at `start`, with the spaces before it."""
    return len(text[:start].rstrip(" "))


def _reply_length(region: str, content: str) -> int:
    """Number of characters of a reply with the end of its turn. region: all that the template writes for it."""
    stripped = region.rstrip()
    return len(region if stripped.endswith(content.rstrip()) else stripped)


def _marked_spans(chat: ChatFormat, messages: Sequence[ChatMessage]) -> tuple[str, list[tuple[int, int]]]:
    """A conversation as text, and what the template marks as generated."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, indices = render_jinja_template(
            [_message_tree(chat, messages)],
            chat_template=chat.jinja,
            return_assistant_tokens_mask=True,
            **chat.tokenizer.special_tokens_map,
        )
    except Exception as error:  # a template may raise anything
        raise _refusal(chat, messages, error) from None
    spans = [(_begin(str(texts[0]), int(start)), int(end)) for start, end in indices[0] if end > start]
    if not spans:
        raise UserError(f"tasks.{chat.task}.template: the chat template marks no text as the assistant's")
    return str(texts[0]), spans


def token_mask(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Token ids of a text, control tokens as such, and which of them hold a character of a span.

    Offsets may leave out spaces: a token that is a space alone then has no length, and stands after the space, or
    before it where the text begins.
    """
    result = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = [(max(0, end - 1), max(1, end)) if first == end else (first, end) for first, end in result.offset_mapping]
    inside = [any(first < stop and start < end for start, stop in spans) for first, end in offsets]
    return tuple(result.input_ids), tuple(inside)


def encode_conversation(
    chat: ChatFormat, messages: Sequence[ChatMessage], replies: Replies, limit: int
) -> ChatEncoding:
    """A conversation that ends with a reply as input and targets, of at most `limit` tokens.

    The targets are the tokens of the replies and of the ends of their turns; all between them is IGNORED. Where a
    conversation is too long, the first messages of the user with their replies are left out, as few as possible; where
    the last message and its reply alone are too long, the prompt loses its middle, down to half of the limit, and the
    reply its end.
    """
    exchanges = split_exchanges(messages)
    encoded: dict[int, tuple[tuple[int, ...], tuple[bool, ...]]] = {}

    def tokens_without(dropped: int) -> int:
        remaining = without_exchanges(messages, exchanges, dropped)
        spans_of = reply_spans if replies == "all" else last_reply_span
        text, spans = spans_of(chat, remaining)
        ids, inside = token_mask(chat.tokenizer, text, spans)
        last = max((n for n, flag in enumerate(inside) if flag), default=-1) + 1
        if not last:
            raise UserError(f"tasks.{chat.task}: the base's tokenizer makes no token of a reply")
        ids = (*chat.begin, *ids[:last], *chat.end)
        inside = (*(False for _ in chat.begin), *inside[:last], *(True for _ in chat.end))
        encoded[dropped] = ids, inside
        return len(ids) - 1

    dropped = _fewest(len(exchanges) - 1, lambda count: tokens_without(count) <= limit)
    ids, inside = encoded[dropped]
    lost = dropped if replies == "all" else 0
    first = max(1, inside.index(True))
    targets = tuple(token if flag else IGNORED for token, flag in zip(ids[first:], inside[first:], strict=True))
    if not targets or all(target == IGNORED for target in targets):
        raise UserError(f"tasks.{chat.task}: a reply has no token after the first of the conversation")
    if len(ids) - 1 <= limit:
        return ChatEncoding(Encoding(ids[:-1], targets), dropped, lost, len(ids), len(ids) - first)
    prompt, reply = ids[:first], ids[first:]
    room = max(limit // 2, limit + 1 - len(prompt))
    targets, reply = targets[:room], reply[:room]
    prompt = cut_middle(prompt, limit + 1 - len(reply))
    return ChatEncoding(
        Encoding((*prompt, *reply[:-1]), targets),
        dropped,
        lost,
        len(ids),
        len(ids) - first,
        prompt_cut=len(prompt) < first,
        reply_cut=len(ids) - first > room,
    )


def conversation_prompt(chat: ChatFormat, messages: Sequence[ChatMessage], limit: int) -> tuple[int, ...]:
    """Token ids of a conversation with the prompt for the next reply, at most `limit`.

    The first exchanges are left out where it is too long, and the middle where the last message alone is.
    """
    exchanges = split_exchanges(messages)
    encoded: dict[int, tuple[int, ...]] = {}

    def fits(dropped: int) -> bool:
        text = render_chat(chat, without_exchanges(messages, exchanges, dropped), with_cue=True)
        ids = chat.tokenizer(text.rstrip(" "), add_special_tokens=False, verbose=False).input_ids
        encoded[dropped] = (*chat.begin, *ids)
        return len(encoded[dropped]) <= limit

    return cut_middle(encoded[_fewest(len(exchanges) - 1, fits)], limit)


def split_exchanges(messages: Sequence[ChatMessage]) -> list[int]:
    """Indices at which the exchanges begin: every message of the user, but the system message with the first."""
    return [number for number, (role, _) in enumerate(messages) if role == "user"]


def without_exchanges(messages: Sequence[ChatMessage], exchanges: Sequence[int], count: int) -> list[ChatMessage]:
    """A conversation without its first exchanges; a system message stays."""
    return [*messages[: exchanges[0]], *messages[exchanges[count] :]]


def _fewest(maximum: int, fits: Callable[[int], bool]) -> int:
    """The smallest count from 0 to `maximum` that fits, or `maximum`; `fits` holds from some count on.

    `fits` is called with the result.
    """
    if fits(0):
        return 0
    low, high = 0, max(0, maximum)  # low does not fit
    if not high or not fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
