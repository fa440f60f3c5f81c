"""A source of text, whatever its kind, as distinct samples: prompt filled in, answer in words."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from unicodedata import normalize

from airpfed.core.errors import UserError, hint
from airpfed.core.paths import HUB, TABLES
from airpfed.core.wheels import cached_text
from airpfed.tasks import catalog
from airpfed.tasks.sample import Counts, Kind, Sample
from airpfed.tasks.table_files import NoText, Row, parted, read_file, read_hub
from airpfed.tasks.text import folded, is_blank, name_of

_HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclass(frozen=True)
class Source:
    """Where a task's samples come from; None takes the catalogue's value, or the default named here.

    source: a catalogue name, `gym:<name>`, a .csv/.jsonl/.json/.parquet file, or `hf:owner/name[:config][@split]`.
    kind: classify by default. prompt: template with {column} for any column, and {{ }} for braces; by default the text
    column and "Label:" or "Answer:". text_column: used by the default prompt only. label_column: the class, or the
    answer to generate. A catalogue task has the columns text and label. labels: class -> word, in the order of the
    label indices; by default the class names, sorted. A space is put before each. max_chars: every column is cut there
    when it is put into the prompt; by default nowhere. classes: only rows of these, by default all. max_empty_share: of
    the rows, those that may be skipped for want of text or label.
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


@dataclass(frozen=True)
class Loaded:
    """Distinct samples in the source's order; labels and names as in Task; sha256 of the rows kept; counts of all."""

    kind: Kind
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    sha256: str
    names: tuple[str, ...]
    counts: Counts

    @property
    def removed(self) -> int:
        """How many duplicates went."""
        return self.counts.duplicates


def load(source: Source, want: int) -> Loaded:
    """Read a source, skip rows without text or label, and remove duplicates: of prompts alike the first one stays.

    Alike: `text.folded`, that is, but for case, white space, unseen characters and Unicode form. want: how many rows to
    generate when the source is a generator; of any other source all rows are taken. Nothing is random. What a package
    carries never changes: it is read once and kept in the cache. Raises UserError of one line that names the task and
    the file or setting at fault.
    """
    try:
        return _load(settled(source), want)
    except UserError as error:
        raise UserError(_shown(str(error), 1000)) from error


def _load(plan: Source, want: int) -> Loaded:
    wheel = None if is_external(plan.source) else catalog.entry(plan.source).wheel
    if wheel is None:
        return _read(plan, want)
    key = [wheel.sha256, _code(), {**vars(plan), "name": "", "labels": list((plan.labels or {}).items())}]
    kept = cached_text("loaded", key, lambda: json.dumps(asdict(_read(plan, want))))
    with suppress(ValueError, TypeError, KeyError, RecursionError):  # a damaged file in the cache
        parts = json.loads(kept)
        samples = tuple(Sample(**one) for one in parts.pop("samples"))
        counts = Counts(**parts.pop("counts") | {"notes": ()})
        words = {key: tuple(parts[key]) for key in ("labels", "names")}
        return Loaded(**parts | words, samples=samples, counts=counts)
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
    rows, skipped = _filled(plan, template, rows)
    if plan.classes:
        plan, rows = _only(plan, rows)
    spelling = _spelling(row[plan.label_column] for row in rows) if kind == "classify" else {}

    def meant(row: Row) -> str:
        return name_of(row[plan.label_column])

    kept, others = _distinct([(fill(template, row, plan.max_chars), row) for row in rows])
    if kind == "classify" and others:
        _still_differ(plan, rows, [row for _, row in kept])
    labels = _labels(plan, {key: spelling[key] for key in map(meant, (row for _, row in kept))}) if spelling else {}
    index = {key: position for position, key in enumerate(labels)}
    samples = tuple(
        Sample(
            prompt,
            labels.get(meant(row)) or _answer(prompt, row[plan.label_column]),
            index.get(meant(row), -1),
            name_of(row.get(plan.device_column or "", "")),
        )
        for prompt, row in kept
    )
    counts = Counts(
        rows=len(rows) + (0 if plan.classes else skipped),
        skipped=skipped,
        duplicates=len(others),
        contradictions=sum(meant(row) != meant(first) for row, first in others),
        notes=_alike(spelling),
    )
    names = tuple(_shown(spelling.get(key, key), 60) for key in labels)
    return Loaded(kind, tuple(labels.values()), samples, _digest(row for _, row in kept), names, counts)


def fill(template: str, row: Row, max_chars: int | None) -> str:
    """The template with every {column} replaced by that column's text, stripped, then cut; {{ and }} give braces.

    max_chars: where to cut, None for nowhere. One pass: braces inside a text are left alone. Raises KeyError on a name
    that is no column.
    """

    def filled(hole: re.Match[str]) -> str:
        return hole[0][0] if hole[1] is None else row[normalize("NFC", hole[1])].strip()[:max_chars]

    return _HOLE.sub(filled, template)


def _only(plan: Source, rows: Sequence[Row]) -> tuple[Source, list[Row]]:
    """The rows of the classes that are wanted, and their label words. Raises UserError where one does not occur."""
    seen = {name_of(row[plan.label_column]) for row in rows}
    wanted = {name_of(name) for name in plan.classes}
    if missing := [name for name in plan.classes if name_of(name) not in seen]:
        raise UserError(
            f"tasks.{plan.name}.classes: {plan.source!r} has no class {missing[0]!r}{_near(missing[0], seen)}"
        )
    labels = None if plan.labels is None else {k: word for k, word in plan.labels.items() if name_of(k) in wanted}
    return replace(plan, labels=labels), [row for row in rows if name_of(row[plan.label_column]) in wanted]


def is_external(source: str) -> bool:
    """Whether a source is data of the user's or the hub's: no task of the catalogue, none that is generated."""
    return source.startswith(HUB) or "/" in source or Path(source).suffix.lower() in TABLES


def _rows(source: Source, want: int) -> list[Row]:
    try:
        if source.source.startswith(HUB):
            return read_hub(source.source)
        if is_external(source.source):
            return read_file(Path(source.source))
    except UserError as error:
        raise UserError(f"tasks.{source.name}.source: {error}") from None
    return [{"text": text, "label": label} for text, label in catalog.rows(source.source, want)]


def settled(source: Source) -> Source:
    """The source with what was left open filled in; labels stay open for data whose classes are not known yet.

    Raises UserError where kind and labels do not go with the source.
    """
    source = replace(
        source,
        text_column=normalize("NFC", source.text_column),
        label_column=normalize("NFC", source.label_column),
        device_column=None if source.device_column is None else normalize("NFC", source.device_column),
    )
    if is_external(source.source):
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


def _filled(plan: Source, template: str, rows: Sequence[Row]) -> tuple[list[Row], int]:
    """The rows that hold something in every column that is named, and how many do not.

    Raises UserError where a column does not exist, where one holds what is no text, and where too many rows, or all,
    hold nothing in one.
    """
    holes = [hole[1] for hole in _HOLE.finditer(template) if hole[1] is not None]
    if not holes:
        raise UserError(f"tasks.{plan.name}.prompt {template!r} names no column; write for example {{text}}")
    wanted = [("label", plan.label_column), *(("prompt", normalize("NFC", name)) for name in holes)]
    if plan.device_column is not None:
        wanted.append(("device_column", plan.device_column))
    known = dict.fromkeys(name for row in rows for name in row)
    for setting, name in wanted:
        if name not in known:
            columns = ", ".join(_shown(one, 60) for one in islice(known, 20)) + (", ..." if len(known) > 20 else "")
            raise UserError(
                f"tasks.{plan.name}.{setting} names {name!r}, but {plan.source!r} has the columns {columns}"
                f"{(len(known) == 1 and parted(next(iter(known)))) or _near(name, known)}"
            )
    cut = {name for setting, name in wanted if setting == "prompt"}
    kept: list[Row] = []
    first: tuple[int, str] | None = None
    for number, row in enumerate(rows, start=1):
        for _, name in wanted:
            value = row.get(name, "")
            if isinstance(value, NoText):
                raise UserError(
                    f"tasks.{plan.name}.source: row {number} of {plan.source!r} holds {value.why} in column {name!r}; "
                    "a text, a number or a truth value is needed"
                )
            if is_blank(value.strip()[: plan.max_chars] if name in cut else value):
                first = first or (number, name)
                break
        else:
            kept.append(row)
    skipped = len(rows) - len(kept)
    if first and (not kept or skipped > plan.max_empty_share * len(rows)):
        more = f"; so it is with {skipped:,} of {len(rows):,} rows" if skipped > 1 else f"; it has {len(rows):,} rows"
        raise UserError(
            f"tasks.{plan.name}.source: row {first[0]} of {plan.source!r} has no text in column {first[1]!r}{more}, "
            f"and tasks.{plan.name}.max_empty_share = {plan.max_empty_share:g} of them may be skipped; fill them in "
            "or raise it"
        )
    return kept, skipped


def _distinct(rows: Iterable[tuple[str, Row]]) -> tuple[list[tuple[str, Row]], list[tuple[Row, Row]]]:
    """The rows whose prompt has not come before, but for spelling; and the others, each with the one that had."""
    first: dict[str, tuple[str, Row]] = {}
    others: list[tuple[Row, Row]] = []
    for prompt, row in rows:
        before = first.setdefault(folded(prompt), (prompt, row))[1]
        if before is not row:
            others.append((row, before))
    return list(first.values()), others


def _still_differ(plan: Source, rows: Sequence[Row], kept: Sequence[Row]) -> None:
    """Raise UserError where a class went with the duplicates."""
    before, after = ({name_of(row[plan.label_column]) for row in part} for part in (rows, kept))
    if gone := sorted(before - after):
        raise UserError(
            f"tasks.{plan.name}.source: the {len(rows)} rows of {plan.source!r} make {len(kept)} distinct prompts, the "
            f"first of each kept, and none of class {gone[0]!r}; prompts should differ (text, prompt, max_chars)"
        )


def _spelling(names: Iterable[str]) -> dict[str, str]:
    """Class, composed and without white space around it -> how the file spells it first."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name_of(name), name)
    return found


def _alike(classes: Iterable[str]) -> tuple[str, ...]:
    """A line for every class that differs from another one in case, spelling or the way a number is written only."""
    found: dict[str, str] = {}
    lines: list[str] = []
    for name in classes:
        key = folded(name)
        with suppress(ValueError):
            key = repr(float(key))
        other = found.setdefault(key, name)
        if other != name:
            lines.append(f"classes {_shown(other, 60)!r} and {_shown(name, 60)!r} read alike, but are two")
    return tuple(lines)


def _labels(plan: Source, seen: Mapping[str, str]) -> dict[str, str]:
    """Class -> word behind a space. Raises UserError unless there are two or more, each with a word of its own.

    seen: class -> the file's spelling. Given labels, a device's own file may hold fewer classes.
    """
    ordered = sorted(seen, key=lambda key: seen[key])
    if plan.labels is None:
        labels = {key: f" {seen[key].strip()}" for key in ordered}
    else:
        labels = {name_of(name): f" {word.strip()}" for name, word in plan.labels.items()}
        if len(labels) < len(plan.labels):
            twice = next(a for a in plan.labels for b in plan.labels if a != b and name_of(a) == name_of(b))
            raise UserError(f"tasks.{plan.name}.labels: the class {twice!r} stands there twice, in two spellings")
    where = f"tasks.{plan.name}.label: column {plan.label_column!r} of {plan.source!r}"
    if missing := [name for name in ordered if name not in labels]:
        raise UserError(
            f"{where} holds class {_shown(missing[0], 60)!r}, which labels gives no word{_near(missing[0], labels)}"
        )
    if len(labels) < 2:
        raise UserError(f"{where} holds the one class {_shown(ordered[0], 60)!r}; a classification needs two or more")
    words = Counter(labels.values())
    if shared := [word for word in words if words[word] > 1 or is_blank(word)]:
        alike = " and ".join(repr(_shown(name, 60)) for name, word in labels.items() if word == shared[0])
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


def _near(name: str, known: Iterable[str]) -> str:
    """A hint at the nearest known name, looked for among short names only: classes may be texts by mistake."""
    return hint(name, [one for one in islice(known, 1000) if len(one) <= 100]) if len(name) <= 100 else ""


def _shown(text: str, longest: int) -> str:
    """A text as one line that a terminal can show, at most so long."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
