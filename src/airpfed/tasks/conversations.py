"""Conversations from the forms in which data sets store them: messages of a role and a content, in turns.

Known are lists of objects with role and content (OpenAI) or from and value (ShareGPT), an object with lists of roles
and contents, lists of pairs of a role and a content or of a message and its reply, and lists of texts by turns; each
also inside an object, and as JSON in a text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airpfed.tasks.sample import Message
from airpfed.tasks.text import is_blank

ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
}
"""Name of a speaker in a data set, in lower case -> the role that chat templates know."""

LIST_KEYS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns")
"""Keys of an object that hold its list of messages."""

ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text")

CALL_KEYS = ("tool_calls", "function_call")
"""Keys of what a message does beside its text."""

MAX_DEPTH = 5
"""Objects and texts around a list of messages."""

LATE = "has a system message after other messages; only the first message can be one"
"""What an error says of a conversation whose system message is not the first."""


class NoMessageError(ValueError):
    """A conversation has no message of a user that is not blank."""


@dataclass(frozen=True)
class Conversation:
    """A conversation that begins with a system message or the user and ends with a reply of the assistant.

    joined: messages that were joined to the one before, which had the same role. dropped: messages left out at the
    beginning, before the user's first, and at the end, after the last reply.
    """

    messages: tuple[Message, ...]
    joined: int = 0
    dropped: int = 0


def read_conversation(value: Any, system: str = "", max_chars: int | None = None) -> Conversation | None:
    """Read a conversation; None where it has no reply to a user.

    value: JSON text, or what it holds. system: a message before conversations that have no system message. max_chars:
    length at which every message but the assistant's is cut. Raises ValueError, in a few words, where the form is not
    known.
    """
    read, late = _read_turns(value, system, max_chars)
    last = max((n for n, (role, _) in enumerate(read.messages) if role == "assistant"), default=-1)
    if last < 0:
        return None
    if late:
        raise ValueError(LATE)
    return Conversation(read.messages[: last + 1], read.joined, read.dropped + len(read.messages) - 1 - last)


def read_prompt(value: Any, system: str = "", max_chars: int | None = None) -> list[Message]:
    """The messages up to the user's last, which a model is to answer, as `read_conversation` has them before a reply.

    Arguments and errors as there; ValueError, too, where the user's message is not the last, and `NoMessageError` where
    there is none.
    """
    read, late = _read_turns(value, system, max_chars)
    messages = read.messages
    if not any(role == "user" for role, _ in messages):
        raise NoMessageError("holds no message of a user")
    if late:
        raise ValueError(LATE)
    if messages[-1][0] != "user":
        raise ValueError(f"ends with a message of {messages[-1][0]}; the user's should be the last")
    return list(messages)


def _read_turns(value: Any, system: str, max_chars: int | None) -> tuple[Conversation, bool]:
    """The messages from the user's first on, after a system message if there is one; replies may follow or not.

    Also returned is whether a system message stands after other messages.
    """
    messages: list[Message] = []
    joined = dropped = 0
    for role, whole in list_messages(value):
        content = whole if role == "assistant" else whole[:max_chars].strip()
        if is_blank(content):
            dropped += 1
        elif messages and messages[-1][0] == role:
            messages[-1] = (role, f"{messages[-1][1]}\n{content}")
            joined += 1
        else:
            messages.append((role, content))
    heads = [message for message in messages if message[0] == "system"]
    turns = [message for message in messages if message[0] != "system"]
    first = next((n for n, (role, _) in enumerate(turns) if role == "user"), len(turns))
    late = len(heads) > 1 or (len(heads) == 1 and messages[0] != heads[0])
    if not heads and system:
        heads = [("system", system)]
    return Conversation((*heads, *turns[first:]), joined, dropped + first), late


def list_messages(value: Any, depth: int = 0) -> list[Message]:
    """The messages of a value in their order, roles as chat templates name them. Raises ValueError for other forms."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        try:
            tree = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"is no JSON: {value[:40]!r}") from None
        return list_messages(tree, depth + 1)
    if isinstance(value, Mapping):
        roles, contents = (
            next((value[key] for key in keys if key in value), None) for keys in (ROLE_KEYS, CONTENT_KEYS)
        )
        if isinstance(roles, list) and isinstance(contents, list) and len(roles) == len(contents) > 0:
            columns = zip(roles, contents, strict=True)
            return [_read_message({"role": role, "content": content}) for role, content in columns]
        keys = [key for key in LIST_KEYS if key in value]
        if not keys:
            raise ValueError(f"is an object without {', '.join(LIST_KEYS[:3])} or the like")
        return list_messages(value[keys[0]], depth + 1)
    if not isinstance(value, Sequence) or not value:
        raise ValueError("is no list of messages")
    if all(isinstance(item, str) for item in value):
        return [(("user", "assistant")[n % 2], item.strip()) for n, item in enumerate(value)]
    if all(isinstance(item, list) and len(item) == 2 and all(isinstance(t, str) for t in item) for item in value):
        if all(role.strip().lower() in ROLES for role, _ in value):
            return [_read_message({"role": role.strip(), "content": content}) for role, content in value]
        return [(role, text.strip()) for pair in value for role, text in zip(("user", "assistant"), pair, strict=True)]
    return [_read_message(item) for item in value]


def _read_message(item: Any) -> Message:
    """Read one message with a role and a content."""
    if not isinstance(item, Mapping):
        raise ValueError(f"holds {type(item).__name__} in place of a message")
    role = next((item[key] for key in ROLE_KEYS if key in item), None)
    content = next((item[key] for key in CONTENT_KEYS if key in item), None)
    if not isinstance(role, str):
        raise ValueError(f"holds a message without a role ({', '.join(ROLE_KEYS)})")
    if role.lower() not in ROLES:
        raise ValueError(f"holds a message of {role[:40]!r}; known roles are {', '.join(ROLES)}")
    if calls := [key for key in CALL_KEYS if item.get(key)]:
        raise ValueError(f"holds a message with {calls[0]}, which no text says; leave such conversations out")
    return ROLES[role.lower()], _content_text(content).strip()


def _content_text(content: Any) -> str:
    """The text of a content: a text, nothing, or a list of parts whose texts are joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
    raise ValueError("holds a message whose content is no text")


def dialogue_text(messages: Sequence[Message]) -> str:
    """Messages as text, a line each at least: what is compared to find duplicates."""
    return "\n".join(f"{role}: {content}" for role, content in messages)
