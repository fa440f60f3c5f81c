"""Data files, whole and damaged, and what has to become of them: samples that can be trained on, or one line."""

import csv
import io
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from airpfed.core.errors import UserError
from airpfed.tasks.sources import Source, load_source
from airpfed.tasks.text import fold_case

LETTERS = st.text(st.characters(codec="utf-8"), max_size=12)
ODD = st.sampled_from(
    ["", " ", "\u200b", "e\u0301", "\u00e9", "\u00a0x", "\u3000", "ß", "\ufeffa", "01", "NA", "None", "nan", "a,b",
     'q"q', "two\nlines", "\u2028", "{text}", "ﬁ", "1e400", "2020-01-01", "True", "[]"]
) | st.integers(131_000, 132_000).map(lambda count: "x" * count)  # fmt: skip
HARD = st.sampled_from(["\ud800", "\0"])
CLASSES = st.sampled_from(["pos", "neg", "pos ", "Pos", "é", "e\u0301", "1", "1.0", ""])
VALUES = st.one_of(
    LETTERS, ODD, st.integers(), st.integers(1, 3).map(lambda count: 10 ** (1400 * count)), st.floats(), st.booleans(),
    st.none(), st.lists(st.none()), st.dictionaries(st.sampled_from("ab"), st.integers(), max_size=1),
)  # fmt: skip
JUNK = st.sampled_from(
    [b"", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xff", b'"', b"\n", b"\r", b",", b";", b"{", b"]", b"PAR1",
     b"\xed\xa0\x80", b"NaN", b"1e999", b"\\ud800", b'"text":1,', b"//"]
) | st.sampled_from(b"9[{").map(lambda byte: bytes([byte]) * 5000)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file. ending: which with the dot. hub: whether it is read as a data set's folder. kind: of the task."""

    ending: str
    content: bytes
    hub: bool = False
    kind: str = "classify"

    def __repr__(self) -> str:
        shown = self.content if len(self.content) < 300 else self.content[:100] + b"..."
        return f"Case({self.ending!r}, {shown!r}, {self.hub}, {self.kind!r})"


def strategy() -> st.SearchStrategy[Case]:
    """Tables of all kinds of values as files of all kinds, most of them damaged."""
    usual = st.fixed_dictionaries({"text": LETTERS | ODD, "label": CLASSES | st.sampled_from(["pos", "neg"])})
    any_row = st.dictionaries(st.sampled_from(["text", "label", "who", "té", "\ud800"]), VALUES | HARD, max_size=4)
    plain = st.integers(0, 40).map(
        lambda count: [{"text": f"no {i}", "label": ("pos", "neg")[i % 2]} for i in range(count)]
    )
    tables = st.builds(list.__add__, plain, st.lists(usual, max_size=8)) | st.lists(usual | any_row, max_size=6)
    files = st.one_of(
        st.tuples(st.just(".csv"), tables.map(as_csv), st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"])),
        st.tuples(st.just(".jsonl"), tables.map(as_jsonl), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])),
        st.tuples(st.just(".json"), tables.map(json.dumps), st.sampled_from(["utf-8", "utf-8-sig", "utf-16-le"])),
    ).map(lambda part: (part[0], part[1].encode(part[2], "replace")))
    parquet = st.tuples(
        st.just(".parquet"), st.one_of(tables.map(as_columns), st.lists(arrays(), max_size=3)).map(as_parquet)
    )
    garbage = st.tuples(
        st.sampled_from([".csv", ".jsonl", ".json", ".parquet", ".tsv", ".txt", ""]), st.binary(max_size=400)
    )
    whole = files | parquet | garbage
    damaged = st.builds(
        damage, whole, st.lists(st.tuples(st.floats(0, 1), JUNK | st.binary(max_size=4), st.booleans()))
    )
    return st.builds(
        lambda file, hub, kind: Case(*file, hub, kind),
        st.one_of(files, whole, damaged),
        st.sampled_from([False] * 4 + [True]),
        st.sampled_from(["classify", "generate"]),
    )


def arrays() -> st.SearchStrategy[Any]:
    """Columns of two rows, of Arrow's types."""
    made: list[Callable[[], Any]] = [
        lambda: pa.array(["a", "b"]),
        lambda: pa.array(["a", None], pa.large_string()),
        lambda: pa.array([b"a", b"b"]),
        lambda: pa.array([b"a", b"\xff"]),
        lambda: pa.array([b"ab", b"cd"], pa.binary(2)),
        lambda: pa.array(["a", "b"]).dictionary_encode(),
        lambda: pa.array([1, 2]).dictionary_encode(),
        lambda: pa.array([1, None]),
        lambda: pa.array([0.1, float("nan")], pa.float32()),
        lambda: pa.array([float("inf"), 1.0]),
        lambda: pa.array([True, False]),
        lambda: pa.array([None, None]),
        lambda: pa.array([2**40, 5], pa.timestamp("s")),
        lambda: pa.array([1, 2], pa.timestamp("ns", "Europe/Paris")),
        lambda: pa.array([1, 2], pa.date32()),
        lambda: pa.array([1, 2], pa.time64("us")),
        lambda: pa.array([2**62, 2], pa.duration("ns")),
        lambda: pa.array([1, 2], pa.decimal128(20, 2)),
        lambda: pa.array([["a"], []]),
        lambda: pa.array([{"a": 1}, None]),
        lambda: pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    ]
    return st.sampled_from(made).map(lambda make: make())


def as_csv(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=len(row) % 2 == 0) + "\n" for row in rows)


def as_columns(rows: list[dict[str, Any]]) -> list[Any]:
    """Text and label, as far as Arrow can hold them."""
    try:
        return [pa.array([str(row.get(name, "")) for row in rows]) for name in ("text", "label")]
    except UnicodeEncodeError:
        return []


def as_parquet(columns: list[Any]) -> bytes:
    """The first two columns are the text and the label."""
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(zip(("text", "label", "who"), columns, strict=False))), out)
    return bytes(out.getvalue().to_pybytes())


def damage(file: tuple[str, bytes], cuts: list[tuple[float, bytes, bool]]) -> tuple[str, bytes]:
    """Put bytes into a file or over what is there; without any, cut it in half."""
    ending, content = file
    if not cuts:
        return ending, content[: len(content) // 2]
    for at, what, over in cuts:
        place = int(at * len(content))
        content = content[:place] + what + content[place + (len(what) if over else 0) :]
    return ending, content


def check(case: Case) -> str:
    """How a file is taken, "accepted" or "refused"; raises where it is neither as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set" / f"train{case.ending}"
        path.parent.mkdir()
        path.write_bytes(case.content)
        source = f"hf:{path.parent}" if case.hub else str(path)
        try:
            loaded = load_source(Source("mine", source, case.kind), 0)
        except UserError as error:
            line = str(error)
            assert line.isprintable() and 10 < len(line) <= 1000, line
            line.encode()
            return "refused"
    assert loaded.samples
    for sample in loaded.samples:
        sample.prompt.encode()
        sample.answer.encode()
        assert sample.prompt.removesuffix("Label:").removesuffix("Answer:").strip() and sample.answer.strip()
        assert sample.label in range(len(loaded.labels)) if case.kind == "classify" else sample.label == -1
    assert len({fold_case(sample.prompt) for sample in loaded.samples}) == len(loaded.samples)
    counts = loaded.counts
    assert counts.rows == counts.skipped + counts.duplicates + len(loaded.samples)
    assert counts.skipped <= 0.05 * counts.rows and counts.contradictions <= counts.duplicates
    return "accepted"


def drive(examples: int, start: int = 0) -> Counter[str]:
    """Check so many files, drawn from the seed `start`; returns how many of which kind, and what became of them."""
    counts: Counter[str] = Counter()

    @seed(start)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy())
    def run(case: Case) -> None:
        counts[check(case)] += 1
        counts[f"{case.ending or 'none'}{' as hf:' if case.hub else ''}"] += 1

    run()
    return counts


if __name__ == "__main__":
    print(dict(drive(*map(int, sys.argv[1:]))))
