"""Sources of text of every kind as distinct samples, with filled-in prompts and answers in words."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from unicodedata import normalize

from airpfed.core.errors import UserError, hint, one_line
from airpfed.core.paths import HUB, TABLES
from airpfed.core.rows import RowDict, parse_call
from airpfed.core.wheels import cached_text
from airpfed.tasks import catalog
from airpfed.tasks.conversations import Conversation, dialogue_text, read_conversation, read_prompt
from airpfed.tasks.hub import read_hub, stream_hub
from airpfed.tasks.packages import package
from airpfed.tasks.sample import Counts, Kind, Message, Sample
from airpfed.tasks.table_files import UNKNOWN_FORM, NotText, Row, TextForm, read_file, separator_hint, to_rows
from airpfed.tasks.text import fold_case, is_blank, normalize_name

_COLUMN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
"""A column in a template, or an escaped brace."""


@dataclass(frozen=True)
class Source:
    """The source of a task's samples; None stands for the catalogue's value, or for the default named here.

    source: a catalogue name, `gym:<name>`, a .csv/.jsonl/.json/.parquet file, or `hf:owner/name[:config][@split]`.
    kind: `classify` (the default), `generate` or `chat`. prompt: template with {column} for any column, and {{ }} for
    braces; by default the text column, and "Label:" (classify) or "Answer:" (generate). text_column: the text's column,
    for the default prompt only. label_column: the column of the class, of the answer to generate, or of the reply. A
    catalogue task has the columns text and label. labels: class -> word, in the order of the label indices; by default
    the class names, sorted. A space is put before each word. max_chars: length at which columns are cut in a prompt; by
    default they are not cut. classes: use only rows of these classes; by default all rows. max_empty_share: largest
    share of rows without text or label, which are skipped. messages_column: column of the conversations (chat); None
    for pairs, a message of the user from the prompt and the reply in the label column. system: message before
    conversations without one. group_column: column of what may not be on two sides of a split,
    such as a person. form: how a text file is written. streaming: whether a hub data set is read only as far as it is
    needed.
    """

    name: str
    source: str
    kind: Kind | None = None
    prompt: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    device_column: str | None = None
    labels: Mapping[str, str] | None = None
    max_chars: int | None = None
    classes: tuple[str, ...] = ()
    max_empty_share: float = 0.05
    group_column: str | None = None
    form: TextForm = UNKNOWN_FORM
    streaming: bool = False
    messages_column: str | None = None
    system: str = ""


@dataclass(frozen=True)
class SourceData:
    """Distinct samples in the source's order; labels, names and counts as in `Task`, sha256 of the remaining rows."""

    kind: Kind
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    sha256: str
    names: tuple[str, ...]
    counts: Counts


def load_source(source: Source, num_rows: int) -> SourceData:
    """Read a source, skip rows without text or label, and remove duplicates: the first of equal prompts stays.

    Prompts are equal if they differ only in case, white space, invisible characters or Unicode form (`text.fold_case`).
    num_rows: rows to generate for a generated task, and distinct prompts to read of a streamed data set; other sources
    are read completely. Nothing is random. Data inside a
    package never changes, so its samples stay in the cache. Raises UserError with one line that names the task and the
    wrong file or setting.
    """
    try:
        source = with_defaults(source)
        wheel = None if is_external(source.source) else catalog.find_task(source.source).wheel
        if wheel is None:
            return _read(source, num_rows)
        settings = {**vars(source), "form": vars(source.form), "name": "", "labels": [*(source.labels or {}).items()]}
        key = [wheel.sha256, _code(), settings]
        text = cached_text("loaded", key, lambda: json.dumps(asdict(_read(source, num_rows))))
        with suppress(ValueError, TypeError, KeyError, RecursionError):  # a damaged file in the cache
            tree = json.loads(text)
            samples = tuple(_sample_of(sample) for sample in tree.pop("samples"))
            counts = Counts(**tree.pop("counts") | {"notes": ()})
            words = {key: tuple(tree[key]) for key in ("labels", "names")}
            return SourceData(**tree | words, samples=samples, counts=counts)
        return _read(source, num_rows)
    except UserError as error:
        raise UserError(_shorten(str(error), 1000)) from error


def _sample_of(tree: dict[str, Any]) -> Sample:
    """A sample from JSON, which has lists in place of tuples."""
    messages = tuple((str(role), str(content)) for role, content in tree.pop("messages"))
    return Sample(**tree, messages=messages)


@cache
def _code() -> str:
    """sha256 of the code that turns sources into samples."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(source: Source, num_rows: int) -> SourceData:
    """`load_source` for a source with all defaults, without the cache."""
    template, kind = source.prompt or "", source.kind or "classify"
    if kind == "chat":
        return _read_chat(source, num_rows)
    notes: list[str] = []
    rows, skipped = _drop_empty(source, template, _read_rows(source, num_rows, notes))

    def class_of(row: Row) -> str:
        return normalize_name(row[source.label_column])

    if source.classes:
        present, requested = {class_of(row) for row in rows}, {normalize_name(name) for name in source.classes}
        if missing := [name for name in source.classes if normalize_name(name) not in present]:
            raise UserError(
                f"tasks.{source.name}.classes: {source.source!r} has no class {missing[0]!r}"
                f"{_nearest(missing[0], present)}"
            )
        rows = [row for row in rows if class_of(row) in requested]
        if source.labels is not None:
            labels = {name: word for name, word in source.labels.items() if normalize_name(name) in requested}
            source = replace(source, labels=labels)
    spelling: dict[str, str] = {}  # class -> its first spelling in the file
    if kind == "classify":
        for row in rows:
            spelling.setdefault(class_of(row), row[source.label_column])
    distinct: dict[str, tuple[str, Row]] = {}
    duplicates: list[tuple[Row, Row]] = []  # with the first row of the same prompt
    for row in rows:
        prompt = fill_template(template, row, source.max_chars)
        first = distinct.setdefault(fold_case(prompt), (prompt, row))[1]
        if first is not row:
            duplicates.append((row, first))
    remaining = list(distinct.values())
    classes = dict.fromkeys(class_of(row) for _, row in remaining)
    if lost := sorted(spelling.keys() - classes):
        raise UserError(
            f"tasks.{source.name}.source: the {len(rows)} rows of {source.source!r} make {len(remaining)} distinct "
            f"prompts; the first of equal prompts is kept, and none is left of class {lost[0]!r}; make prompts differ "
            "(text, prompt, max_chars)"
        )
    words = _label_words(source, {name: spelling[name] for name in classes}) if spelling else {}
    index = {name: position for position, name in enumerate(words)}
    samples = tuple(
        Sample(
            prompt,
            words.get(class_of(row)) or _add_space(prompt, row[source.label_column]),
            index.get(class_of(row), -1),
            normalize_name(row[source.device_column]) if source.device_column is not None else "",
            normalize_name(row[source.group_column]) if source.group_column is not None else "",
        )
        for prompt, row in remaining
    )
    counts = Counts(
        rows=len(rows) + (0 if source.classes else skipped),
        skipped=skipped,
        duplicates=len(duplicates),
        contradictions=sum(class_of(row) != class_of(first) for row, first in duplicates),
        notes=(*notes, *_similar_classes(spelling)),
    )
    lines = (json.dumps(row, sort_keys=True) for _, row in remaining)
    sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    names = tuple(_shorten(spelling.get(name, name), 60) for name in words)
    return SourceData(kind, tuple(words.values()), samples, sha256, names, counts)


def _read_chat(source: Source, num_rows: int) -> SourceData:
    """`_read` for conversations: the first of those that are equal up to the last reply stays."""
    template, column = source.prompt or "", source.messages_column
    reading: list[str] = []
    raw_rows = _read_rows(source, num_rows, reading)
    rows, skipped = _drop_empty(source, template, raw_rows)
    distinct: dict[str, tuple[Conversation, Row]] = {}
    duplicates = contradictions = unanswered = 0
    numbers = {id(row): number for number, row in enumerate(raw_rows, 1)}
    for row in rows:
        conversation = _conversation(source, template, numbers[id(row)], row)
        if conversation is None:
            unanswered += 1
            continue
        prompt = fold_case(dialogue_text(conversation.messages[:-1]))
        first, _ = distinct.setdefault(prompt, (conversation, row))
        if first is not conversation:
            duplicates += 1
            contradictions += fold_case(first.messages[-1][1]) != fold_case(conversation.messages[-1][1])
    skipped += unanswered
    if not distinct or skipped > source.max_empty_share * len(raw_rows):
        raise UserError(
            f"tasks.{source.name}.source: {skipped:,} of the {len(raw_rows):,} rows of {source.source!r} hold no "
            f"message of a user with a reply, and tasks.{source.name}.max_empty_share = {source.max_empty_share:g} of "
            "them may be skipped; raise it, or name other columns"
        )
    samples = tuple(
        Sample(
            dialogue_text(conversation.messages[:-1]),
            conversation.messages[-1][1],
            device=normalize_name(row.get(source.device_column or "", "")),
            group=normalize_name(row.get(source.group_column or "", "")),
            messages=conversation.messages,
        )
        for conversation, row in distinct.values()
    )
    joined = sum(conversation.joined for conversation, _ in distinct.values())
    dropped = sum(conversation.dropped for conversation, _ in distinct.values())
    notes = [
        f"{joined:,} messages follow one of the same role and are joined to it" if joined else "",
        f"{dropped:,} messages left out: empty, before the user's first, or after the last reply" if dropped else "",
    ]
    counts = Counts(
        rows=len(raw_rows),
        skipped=skipped,
        duplicates=duplicates,
        contradictions=contradictions,
        notes=(*reading, *(note for note in notes if note)),
    )
    named = [column] if column else [source.label_column, *template_columns(template)]
    lines = (json.dumps({key: row.get(key, "") for key in named}) for _, row in distinct.values())
    sha256 = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return SourceData("chat", (), samples, sha256, (), counts)


def _conversation(source: Source, template: str, number: int, row: Row) -> Conversation | None:
    """The conversation of a row; None where it has no reply to a user. Raises UserError for other forms."""
    column = source.messages_column
    try:
        if column is not None:
            return read_conversation(row[column], source.system, source.max_chars)
        prompt = fill_template(template, row, source.max_chars)
        return read_conversation(
            [_message("user", prompt), _message("assistant", row[source.label_column])], source.system
        )
    except ValueError as error:
        raise UserError(
            f"tasks.{source.name}.messages: row {number:,} of {source.source!r} {error} (column {column!r})"
        ) from None


def messages_of(text: Any, source: Source) -> list[Message]:
    """The messages that a chat task's model replies to: those of a text, of columns, or of the column of messages.

    They are prepared as those that the task trained on. text: a list is one of messages. source: with all defaults.
    Raises ValueError, in a few words, where a column is missing, or the messages have another form or do not end with
    the user's.
    """
    if not isinstance(text, str | Mapping):
        return read_prompt(text, source.system, source.max_chars)
    row = {source.text_column: text} if isinstance(text, str) else dict(text)
    if source.messages_column is not None and source.messages_column in row and not isinstance(text, str):
        return read_prompt(row[source.messages_column], source.system, source.max_chars)
    columns = template_columns(source.prompt or "")
    if missing := [column for column in columns if column not in row]:
        others = "" if source.messages_column is None else f", or {source.messages_column!r} with its messages"
        raise ValueError(f"has no column {missing[0]!r}{others}")
    if other := [column for column in columns if not isinstance(row[column], str)]:
        raise ValueError(f"has no text in column {other[0]!r}: {row[other[0]]!r:.60}")
    return read_prompt([_message("user", fill_template(source.prompt or "", row, source.max_chars))], source.system)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def fill_template(template: str, row: Row, max_chars: int | None) -> str:
    """The template with every {column} replaced by the column's text, stripped and then cut; {{ and }} give braces.

    max_chars: length at which texts are cut; None for no limit. Braces inside a text stay as they are. Raises KeyError
    where there is no such column.
    """

    def fill(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else row[normalize("NFC", match[1])].strip()[:max_chars]

    return _COLUMN.sub(fill, template)


def template_columns(template: str) -> list[str]:
    """The columns that a template names, each once, in their order."""
    names = (match[1] for match in _COLUMN.finditer(template))
    return list(dict.fromkeys(normalize("NFC", name) for name in names if name is not None))


TextRows = Iterable[Mapping[str, Any]]
"""The rows of a data set: column -> text, number or truth value; None for an empty cell."""

SOURCES: RowDict[Callable[..., TextRows]] = RowDict(
    "source", {"package": package}, wrap=lambda function: function, function=lambda row: row
)
"""Data sources by name, and those of the user's own: a function `(*, options) -> rows`. `tasks.source` names it:
`source = "mine"`, or `source = "mine(year=2024)"` with options.
"""


def row_source(source: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the options of a source in `SOURCES`; None for any other source."""
    try:
        options = parse_call(source)
    except ValueError:
        return None
    name = str(options.pop("name"))
    return (name, options) if name in SOURCES else None


def read_row_source(name: str, options: Mapping[str, Any], nested: Collection[str] = ()) -> list[Row]:
    """Read the rows of a source in `SOURCES`; numbers and truth values become texts, as those of a file do.

    nested: columns whose lists and objects become JSON texts. Raises UserError if an option or what the function gives
    is wrong.
    """
    try:
        function = SOURCES.bind(name, options)
    except UserError as error:
        raise UserError(f"source {name}: {str(error).lstrip('.')}") from None
    try:
        rows = to_rows((dict(row) for row in function()), nested)
    except (TypeError, ValueError, OSError) as error:
        raise UserError(
            f"source {name}: {one_line(error)}; should give rows, each a mapping of column to text"
        ) from None
    except UserError as error:
        raise UserError(f"source {name}: {error}") from None
    if not rows:
        raise UserError(f"source {name}: gives no rows")
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column, "") for column in columns} for row in rows]


def is_external(source: str) -> bool:
    """Whether a source is a file, a hub data set or a row of `SOURCES`, not a catalogue task or a generated task."""
    return (
        row_source(source) is not None
        or source.startswith(HUB)
        or "/" in source
        or Path(source).suffix.lower() in TABLES
    )


def _read_rows(source: Source, num_rows: int, notes: list[str]) -> list[Row]:
    """The rows of a source. notes: a list that receives lines for the user on how they were read."""
    try:
        if (row := row_source(source.source)) is not None:
            return read_row_source(*row, source.form.nested)
        if source.source.startswith(HUB) and source.streaming:
            rows = to_rows(_first_rows(source, stream_hub(source.source, source.form), num_rows))
            notes.append(
                f"streamed: the first {len(rows):,} rows, in the source's order; classes and duplicates are those among"
                " them"
            )
            return rows
        if source.source.startswith(HUB):
            return read_hub(source.source, source.form)
        if is_external(source.source):
            return read_file(Path(source.source), source.form, notes)
    except UserError as error:
        raise UserError(f"tasks.{source.name}.source: {error}") from None
    return [{"text": text, "label": label} for text, label in catalog.read_rows(source.source, num_rows)]


def _first_rows(source: Source, rows: Iterable[Row], count: int) -> Iterator[Row]:
    """Yield rows until `count` of them are usable and have distinct prompts.

    A row without the columns that the settings name ends the stream, because `_drop_empty` will say so.
    """
    template, classes = source.prompt or "", {normalize_name(name) for name in source.classes}
    columns = {name for _, name in _required_columns(source, template)}
    prompts: set[str] = set()
    for row in rows:
        yield row
        if not columns <= row.keys():
            return
        if all(not is_blank(row[name]) for name in columns) and (
            not classes or normalize_name(row.get(source.label_column, "")) in classes
        ):
            conversation = source.messages_column if source.kind == "chat" else None
            text = fill_template(template, row, source.max_chars) if conversation is None else row[conversation]
            prompts.add(fold_case(text))
        if len(prompts) >= count:
            return


def _required_columns(source: Source, template: str) -> list[tuple[str, str]]:
    """(setting, column) of every column in which a row needs a text. Raises UserError if the prompt names none."""
    prompt_columns = template_columns(template)
    if source.kind == "chat" and source.messages_column is not None:
        columns = [("messages", source.messages_column)]
        others = (("device_column", source.device_column), ("group", source.group_column))
        return columns + [(setting, name) for setting, name in others if name is not None]
    if not prompt_columns:
        raise UserError(f"tasks.{source.name}.prompt {template!r} names no column; write for example {{text}}")
    columns = [("label", source.label_column), *(("prompt", name) for name in prompt_columns)]
    for setting, name in (("device_column", source.device_column), ("group", source.group_column)):
        columns += [(setting, name)] if name is not None else []
    return columns


def with_defaults(source: Source) -> Source:
    """The source with its defaults filled in; labels stay None for data whose classes are not known yet.

    Raises UserError where kind, labels or classes do not fit the source.
    """
    source = replace(
        source,
        text_column=normalize("NFC", source.text_column),
        label_column=normalize("NFC", source.label_column),
        device_column=None if source.device_column is None else normalize("NFC", source.device_column),
        group_column=None if source.group_column is None else normalize("NFC", source.group_column),
        messages_column=None if source.messages_column is None else normalize("NFC", source.messages_column),
    )
    if source.messages_column is not None:
        source = replace(source, form=replace(source.form, nested=(source.messages_column,)))
    if is_external(source.source):
        kind = source.kind or "classify"
        cue = {"classify": "\nLabel:", "generate": "\nAnswer:", "chat": ""}[kind]
        default = f"{{{source.text_column}}}{cue}"
        result = replace(source, kind=kind, prompt=source.prompt or default)
    else:
        task = catalog.find_task(source.source)
        result = replace(
            source,
            kind=source.kind or task.kind,
            prompt=source.prompt or task.prompt,
            labels=source.labels if source.labels is not None or task.kind != "classify" else task.labels,
            max_chars=task.max_chars if source.max_chars is None else source.max_chars,
        )
        if result.kind != task.kind:
            raise UserError(f"tasks.{source.name}.kind is {source.kind!r}, but {source.source!r} is {task.kind!r}")
    if result.kind != "classify" and result.labels is not None:
        raise UserError(f"tasks.{source.name}.labels belong to kind 'classify'; leave them out for {result.kind!r}")
    if result.kind != "classify" and result.classes:
        raise UserError(f"tasks.{source.name}.classes belong to kind 'classify'; leave them out for {result.kind!r}")
    if result.messages_column is not None and result.kind == "chat" and not is_external(source.source):
        raise UserError(f"tasks.{source.name}.messages: {source.source!r} has pairs in the columns text and label")
    return result


def _drop_empty(source: Source, template: str, rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The rows with a text in every column that the settings name, and the number of the other rows.

    Raises UserError where a column does not exist or holds a value that is no text, and where more rows are empty than
    `max_empty_share` allows.
    """
    columns = _required_columns(source, template)
    existing = dict.fromkeys(name for row in rows for name in row)
    for setting, name in columns:
        if name not in existing:
            names = ", ".join(_shorten(n, 60) for n in islice(existing, 20)) + (", ..." if len(existing) > 20 else "")
            raise UserError(
                f"tasks.{source.name}.{setting} names {name!r}, but {source.source!r} has the columns {names}"
                f"{(len(existing) == 1 and separator_hint(next(iter(existing)))) or _nearest(name, existing)}"
            )
    prompt_columns = {name for setting, name in columns if setting == "prompt"}
    complete: list[Row] = []
    first: tuple[int, str] | None = None
    for number, row in enumerate(rows, start=1):
        for _, name in columns:
            value = row.get(name, "")
            if isinstance(value, NotText):
                raise UserError(
                    f"tasks.{source.name}.source: row {number} of {source.source!r} holds {value.description} in "
                    f"column {name!r}; a text, a number or a truth value is needed"
                )
            if is_blank(value.strip()[: source.max_chars] if name in prompt_columns else value):
                first = first or (number, name)
                break
        else:
            complete.append(row)
    skipped = len(rows) - len(complete)
    if first and (not complete or skipped > source.max_empty_share * len(rows)):
        more = f"; so it is with {skipped:,} of {len(rows):,} rows" if skipped > 1 else f"; it has {len(rows):,} rows"
        raise UserError(
            f"tasks.{source.name}.source: row {first[0]} of {source.source!r} has no text in column {first[1]!r}{more}"
            f", and tasks.{source.name}.max_empty_share = {source.max_empty_share:g} of them may be skipped; fill them "
            "in or raise it"
        )
    return complete, skipped


def _similar_classes(classes: Iterable[str]) -> tuple[str, ...]:
    """A line for every class that differs from another class only in case, spelling or the form of a number."""
    first: dict[str, str] = {}
    lines: list[str] = []
    for name in classes:
        key = fold_case(name)
        with suppress(ValueError):
            key = repr(float(key))
        other = first.setdefault(key, name)
        if other != name:
            lines.append(f"classes {_shorten(other, 60)!r} and {_shorten(name, 60)!r} read alike, but are two")
    return tuple(lines)


def _label_words(source: Source, spelling: Mapping[str, str]) -> dict[str, str]:
    """Class -> word with a space before it. Raises UserError unless there are two or more classes with distinct words.

    spelling: class -> its spelling in the file. The labels in the settings may have more classes than the file, because
    a device's file may hold only some of them.
    """
    ordered = sorted(spelling, key=lambda name: spelling[name])
    if source.labels is None:
        labels = {name: f" {spelling[name].strip()}" for name in ordered}
    else:
        labels = {normalize_name(name): f" {word.strip()}" for name, word in source.labels.items()}
        if len(labels) < len(source.labels):
            twice = next(
                a for a in source.labels for b in source.labels if a != b and normalize_name(a) == normalize_name(b)
            )
            raise UserError(f"tasks.{source.name}.labels: the class {twice!r} occurs twice, in two spellings")
    column = f"tasks.{source.name}.label: column {source.label_column!r} of {source.source!r}"
    if missing := [name for name in ordered if name not in labels]:
        raise UserError(
            f"{column} holds class {_shorten(missing[0], 60)!r}, which labels gives no word"
            f"{_nearest(missing[0], labels)}"
        )
    if len(labels) < 2:
        raise UserError(
            f"{column} holds the one class {_shorten(ordered[0], 60)!r}; a classification needs two or more"
        )
    counts = Counter(labels.values())
    if invalid := [word for word in counts if counts[word] > 1 or is_blank(word)]:
        names = " and ".join(repr(_shorten(name, 60)) for name, word in labels.items() if word == invalid[0])
        raise UserError(
            f"tasks.{source.name}.labels: the word of {names} is {invalid[0].strip()!r} in {source.source!r}; every "
            "class needs one of its own"
        )
    return labels


def _add_space(prompt: str, answer: str) -> str:
    """The answer with the space that a causal LM writes before it, unless prompt or answer has white space there."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"


def _nearest(name: str, names: Iterable[str]) -> str:
    """A hint at the nearest name among short names; classes may be long texts by mistake."""
    return hint(name, [n for n in islice(names, 1000) if len(n) <= 100]) if len(name) <= 100 else ""


def _shorten(text: str, max_length: int) -> str:
    """A text as one printable line of at most `max_length` characters."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= max_length else f"{text[: max_length - 3]}..."
