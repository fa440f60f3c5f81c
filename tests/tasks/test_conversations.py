"""Conversations from every form that data sets store them in, from files of every kind to samples."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airpfed.core.errors import UserError
from airpfed.core.paths import CHAT_TASKS
from airpfed.tasks.catalog import CATALOG
from airpfed.tasks.conversations import list_messages, read_conversation
from airpfed.tasks.sources import SOURCES, Source, load_source, messages_of, with_defaults

TURNS = [("user", "hi"), ("assistant", "hello"), ("user", "how?"), ("assistant", "so")]
OPENAI = [{"role": role, "content": content} for role, content in TURNS]
SHAREGPT = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": content} for role, content in TURNS]
FORMS = {
    "openai": OPENAI,
    "sharegpt": SHAREGPT,
    "parts": [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in OPENAI],
    "nested": {"id": 3, "conversations": SHAREGPT},
    "text": json.dumps(OPENAI),
    "text in an object": {"messages": json.dumps(OPENAI)},
    "columns": {"from": ["human", "gpt"] * 2, "value": [content for _, content in TURNS]},
    "pairs": [["hi", "hello"], ["how?", "so"]],
    "turns": [content for _, content in TURNS],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_conversation(form: str) -> None:
    assert list_messages(FORMS[form]) == TURNS


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hello", "is no JSON: 'hello'"),
        ([], "is no list of messages"),
        ({"id": 3}, "is an object without messages"),
        ([{"content": "x"}], "a message without a role"),
        ([{"role": "oracle", "content": "x"}], "a message of 'oracle'; known roles are system, developer, user"),
        ([{"role": "user", "content": {"a": 1}}], "whose content is no text"),
        ([{"role": "user", "content": "x"}, 3], "holds int in place of a message"),
        (json.dumps(json.dumps(json.dumps(json.dumps(json.dumps(json.dumps([])))))), "nested too deeply"),
        ([OPENAI[0], {"role": "system", "content": "late"}, OPENAI[1]], "has a system message after other messages"),
    ],
)
def test_another_form_is_refused_in_words(value: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_conversation(value)
    assert words in str(caught.value)


def test_a_conversation_begins_with_the_user_and_ends_with_a_reply() -> None:
    messy = [
        {"role": "system", "content": "be kind"},
        {"role": "assistant", "content": "welcome"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": " "},
        {"role": "user", "content": "bye"},
    ]
    read = read_conversation(messy)
    assert read is not None
    assert read.messages == (("system", "be kind"), ("user", "a\nb"), ("assistant", "c"))
    assert (read.joined, read.dropped) == (1, 3)
    assert read_conversation(messy[:4]) is None
    system = read_conversation(OPENAI, "be kind")
    assert system is not None and system.messages == (("system", "be kind"), *TURNS)


def rows() -> list[dict[str, Any]]:
    other = [{"role": "user", "content": "two"}, {"role": "assistant", "content": "yes"}]
    return [{"chat": OPENAI, "n": 1}, {"chat": other, "n": 2}, {"chat": [*OPENAI[:3], other[1]], "n": 3}]


def write(path: Path) -> str:
    match path.suffix:
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows())))
        case ".json":
            path.write_text(json.dumps(rows()))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows()), path)
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["chat", "n"])
                writer.writerows([json.dumps(row["chat"]), row["n"]] for row in rows())
    return str(path)


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".json", ".parquet", "hf", "row"])
def test_files_of_every_kind_give_the_same_samples(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "hf":
        (tmp_path / "set").mkdir()
        write(tmp_path / "set" / "train.jsonl")
        name = f"hf:{tmp_path / 'set'}"
    elif kind == "row":
        monkeypatch.setitem(SOURCES.data, "mine", rows)
        name = "mine"
    else:
        name = write(tmp_path / f"chats{kind}")
    data = load_source(Source("x", name, kind="chat", messages_column="chat"), 0)
    assert [sample.messages for sample in data.samples] == [tuple(TURNS), (("user", "two"), ("assistant", "yes"))]
    first = data.samples[0]
    assert (first.prompt, first.answer, first.label) == ("user: hi\nassistant: hello\nuser: how?", "so", -1)
    assert (data.counts.rows, data.counts.duplicates, data.counts.contradictions) == (3, 1, 1)


def test_pairs_of_columns_are_a_message_and_its_reply(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label,who\nhi {you},hello,ann\na,b,bob\n")
    file = str(tmp_path / "x.csv")
    data = load_source(Source("x", file, kind="chat", system="be kind", device_column="who"), 0)
    assert data.samples[0].messages == (("system", "be kind"), ("user", "hi {you}"), ("assistant", "hello"))
    assert [sample.device for sample in data.samples] == ["ann", "bob"]
    short = Source("x", file, kind="chat", prompt="Say: {text}", system="be kind", max_chars=2)
    data = load_source(short, 0)
    assert data.samples[0].messages == (("system", "be kind"), ("user", "Say: hi"), ("assistant", "hello")), (
        "the column"
    )
    assert messages_of({"text": "hi {you}"}, with_defaults(short)) == list(data.samples[0].messages[:2])


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ('{"chat": [{"role": "oracle", "content": "x"}]}', {}, "tasks.x.messages: row 1 of"),
        ('{"chat": [{"role": "user", "content": "x"}]}', {}, "1 of the 1 rows"),
        ('{"talk": []}', {}, "tasks.x.messages names 'chat', but"),
        ('{"chat": 3}', {}, "is no list of messages"),
        ('{"chat": [{"role": "user", "content": "x"}]}', {"labels": {"a": "b"}}, "leave them out for 'chat'"),
    ],
)
def test_what_is_no_conversation_is_one_line(text: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError) as caught:
        load_source(Source("x", str(tmp_path / "x.jsonl"), kind="chat", messages_column="chat", **changes), 0)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_list_in_another_column_is_still_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": OPENAI, "label": "a"}))
    with pytest.raises(UserError, match="holds a list in column 'text'"):
        load_source(Source("x", str(tmp_path / "x.jsonl")), 0)


def test_a_model_is_asked_with_a_text_columns_or_messages() -> None:
    source = with_defaults(Source("x", "x.csv", kind="chat", messages_column="chat", system="be kind"))
    assert messages_of("hi", source) == [("system", "be kind"), ("user", "hi")]
    assert messages_of({"chat": OPENAI[:3]}, source) == [("system", "be kind"), *TURNS[:3]]
    assert messages_of(OPENAI[:3], source) == [("system", "be kind"), *TURNS[:3]]
    for wrong, words in (
        ({"chat": OPENAI}, "ends with a message of assistant"),
        ({"talk": OPENAI}, "has no column 'text', or 'chat' with its messages"),
        ({"text": 3}, "has no text in column 'text': 3"),
        (3, "is no list of messages"),
        ([{"role": "system", "content": "be kind"}], "holds no message of a user"),
    ):
        with pytest.raises(ValueError, match=words):
            messages_of(wrong, source)  # type: ignore[arg-type]


def test_a_text_is_a_message_though_the_messages_column_has_the_texts_name() -> None:
    source = with_defaults(Source("x", "x.csv", kind="chat", messages_column="text"))
    assert messages_of("hello", source) == [("user", "hello")]
    assert messages_of({"text": OPENAI[:3]}, source) == list(TURNS[:3])


def test_a_late_system_message_matters_only_where_a_reply_is_read() -> None:
    assert read_conversation(say(("user", "a"), ("system", "b"))) is None


def say(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("max_chars", [None, 5])
@pytest.mark.parametrize(
    "turns",
    [
        [("user", "I am in Chad."), ("user", "Its capital?")],
        [("assistant", "Welcome!"), ("user", "Capital of Chad?")],
        [("system", " "), ("user", "Capital of Chad?")],
        [("system", "a"), ("system", "b"), ("user", "Capital of Chad?")],
        [("user", "a"), ("assistant", "b"), ("user", " "), ("user", "Capital?")],
        [("user", "Four is"), ("assistant", "a number"), ("user", "x")],
    ],
)
def test_a_model_is_asked_what_it_was_trained_on(turns: list[tuple[str, str]], max_chars: int | None) -> None:
    source = with_defaults(
        Source("x", "x.csv", kind="chat", messages_column="chat", system="be kind", max_chars=max_chars)
    )
    trained = read_conversation(say(*turns, ("assistant", "N'Djamena")), "be kind", max_chars)
    assert trained is not None
    assert messages_of({"chat": say(*turns)}, source) == list(trained.messages[:-1])


def test_pairs_of_a_role_and_a_content_are_messages() -> None:
    read = read_conversation([["user", "Capital of Italy?"], ["Assistant", "Rome."]])
    assert read is not None and read.messages == (("user", "Capital of Italy?"), ("assistant", "Rome."))
    read = read_conversation([["user", "a person"], ["who?", "me"]])
    assert read is not None and read.messages[0] == ("user", "user"), "a message and its reply"


def test_a_call_of_a_tool_is_refused() -> None:
    called = [*OPENAI[:1], {"role": "assistant", "content": "Let me look.", "tool_calls": [{"id": "x"}]}]
    with pytest.raises(ValueError, match="holds a message with tool_calls"):
        read_conversation(called)
    assert read_conversation([*OPENAI[:1], {"role": "assistant", "content": "hello", "tool_calls": None}]) is not None


def test_chats_of_the_catalogue_are_known_without_loading_it() -> None:
    assert {name for name, task in CATALOG.items() if task.kind == "chat"} == set(CHAT_TASKS)
