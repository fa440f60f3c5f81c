"""The user's own files and folders become samples; every way to get them wrong is one line that names it."""

import csv
import gc
import json
import os
import uuid
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airpfed.core.errors import UserError
from airpfed.tasks import table_files
from airpfed.tasks.hub import hub_parts, read_hub
from airpfed.tasks.sample import Sample
from airpfed.tasks.sources import SOURCES, Source, fill_template, load_source, read_row_source
from airpfed.tasks.table_files import READERS, TextForm, arrow_rows, read_file

ROWS = [
    {"text": "good film, café", "label": "pos", "who": "ann"},
    {"text": "bad\nfilm", "label": "neg", "who": "bob"},
    {"text": "  Good  FILM, café ", "label": "neg", "who": "ann"},
    {"text": 'so "so" {label}', "label": "pos", "who": "bob"},
]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
        case ".jsonl":
            path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source("mine", str(write(tmp_path / "data.csv", ROWS)))


def message(source: Source) -> str:
    with pytest.raises(UserError) as caught:
        load_source(source, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", READERS)
def test_every_kind_of_file_gives_the_same(tmp_path: Path, source: Source, ending: str) -> None:
    found = load_source(replace(source, source=str(write(tmp_path / f"other{ending}", ROWS))), 0)
    assert found == load_source(source, 0)
    assert found.labels == (" neg", " pos") and found.kind == "classify" and found.counts.duplicates == 1
    assert found.samples == (
        Sample("good film, café\nLabel:", " pos", 1),
        Sample("bad\nfilm\nLabel:", " neg", 0),
        Sample('so "so" {label}\nLabel:', " pos", 1),
    )


def test_sha256_is_of_the_rows_that_stay(tmp_path: Path, source: Source) -> None:
    without = write(tmp_path / "three.csv", [ROWS[0], ROWS[1], ROWS[3]])
    assert load_source(replace(source, source=str(without)), 0).sha256 == load_source(source, 0).sha256
    changed = write(tmp_path / "other.csv", [ROWS[0] | {"label": "neg"}, ROWS[1], ROWS[3]])
    assert load_source(replace(source, source=str(changed)), 0).sha256 != load_source(source, 0).sha256


def test_prompt_of_several_columns_words_devices_and_cut(source: Source) -> None:
    found = load_source(
        replace(
            source,
            prompt="{{{who}}} says {text}:",
            labels={"pos": "good", "neg": " bad"},
            device_column="who",
            max_chars=4,
        ),
        0,
    )
    assert found.labels == (" good", " bad")
    assert found.samples[0] == Sample("{ann} says good:", " good", 0, "ann")
    assert found.samples[1] == Sample("{bob} says bad\n:", " bad", 1, "bob")


def test_texts_equal_after_the_cut_are_duplicates(source: Source) -> None:
    assert load_source(replace(source, max_chars=1), 0).counts.duplicates == 1
    assert load_source(replace(source, prompt="{who}"), 0).counts.duplicates == 2


def test_generate_takes_the_answer_column(source: Source) -> None:
    found = load_source(replace(source, kind="generate", label_column="who"), 0)
    assert found.labels == () and found.samples[0] == Sample("good film, café\nAnswer:", " ann")
    assert (
        load_source(replace(source, kind="generate", label_column="who", prompt="{text} "), 0).samples[0].answer
        == "ann"
    )


def test_fill_is_one_pass() -> None:
    assert fill_template("{a}{b} {{a}}", {"a": "{b}", "b": "{{"}, None) == "{b}{{ {a}"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"label_column": "lable"}, r"label names 'lable', .*columns text, label, who; did you mean 'label'?"),
        ({"text_column": "review"}, "prompt names 'review', but"),
        ({"prompt": "{txt}"}, "prompt names 'txt', but"),
        ({"prompt": "say"}, "prompt 'say' names no column; write for example {text}"),
        ({"device_column": "whom"}, "did you mean 'who'?"),
        ({"labels": {"pos": "good", "negg": "bad"}}, "class 'neg', which labels gives no word; did you mean 'negg'?"),
        (
            {"labels": {"pos": "good", "neg": " good"}},
            "the word of 'pos' and 'neg' is 'good' in '",
        ),
        ({"kind": "generate", "labels": {"a": "b"}}, "labels belong to kind 'classify'"),
        ({"source": "trek"}, "source 'trek' is no catalogue task, "),
        ({"source": "trek"}, "did you mean 'trec'?"),
        ({"source": "data.cvs"}, "source 'data.cvs' is no catalogue task"),
        ({"source": "trec", "kind": "generate"}, "kind is 'generate', but 'trec' is 'classify'"),
        ({"source": "no/such/file.csv"}, "no/such/file.csv: No such file or directory"),
    ],
)
def test_settings_errors(source: Source, change: dict[str, object], named: str) -> None:
    text = message(replace(source, **change))  # type: ignore[arg-type]
    parts = named.split(", .*")
    assert all(part in text for part in parts) and ("tasks.mine" in text or "source" in change)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", "text,label\ncafé,x\n".encode("latin-1"), "not UTF-8 text at byte 14"),
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"text,label\n", "holds no rows"),
        ("a.csv", b"text,label\na,b,c\n", "line 2 has more fields than the header"),
        ("a.csv", b'text,label\n"a,b\n', "not a well-formed .csv file"),
        ("a.csv", b"text,label\na\n", "row 1 of"),
        ("a.csv", b"text,label\na,x\n ,y\n", "has no text in column 'text'"),
        ("a.csv", b"text,label\na,x\nb,x\n", "the one class 'x'"),
        ("a.csv", b"text,label\na,x\nA ,y\n", "the 2 rows of"),
        (
            "a.csv",
            b"text,label\na,x\nA ,y\n",
            "make 1 distinct prompts; the first of equal prompts is kept, and none is left of class 'y'",
        ),
        ("a.csv", b"text,label\na,x\nb, x\n", "the one class 'x'"),
        ("a.csv", b"text,label,text\na,x,b\n", "column 'text' occurs twice in the header"),
        ("a.csv", b"text:label\na:x\n", "has the columns text:label"),
        ("a.csv", b"text;label,b\na;x,c\n", "has the columns text;label, b; did you mean 'text;label'?"),
        ("a.csv", b'text,b;c;label\n"a" x,y;z\n', "if fields are separated by ';', delimiter should say so"),
        ("a.jsonl", b'{"text": {"a": 1}, "label": "b"}\n', "row 1 of"),
        ("a.jsonl", b'{"text": "a", "label": NaN}\n', "has no text in column 'label'"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text"\n', "line 2: "),
        ("a.jsonl", b"[1]\n", "line 1 is not an object"),
        ("a.jsonl", b"\n", "holds no rows"),
        ("a.json", b'{"text": "a"}', "expected a list of objects"),
        ("a.json", b"[]", "holds no rows"),
        ("a.parquet", b"no parquet", "not a well-formed .parquet file"),
        ("a.parquet", b"", "not a well-formed .parquet file"),
    ],
)
def test_file_errors_name_the_file(tmp_path: Path, name: str, content: bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content)
    text = message(Source("mine", str(tmp_path / name)))
    assert named in text and name in text


def test_unknown_ending_and_byte_order_mark(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.txt: unknown kind of file; known are \.csv"):
        read_file(tmp_path / "a.txt")
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\nhello\n")
    assert read_file(tmp_path / "a.csv") == [{"text": "hello"}]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def test_local_folder_as_a_data_set(hub: Path, source: Source) -> None:
    write(hub / "train.jsonl", ROWS)
    write(hub / "test.jsonl", ROWS[:2])
    assert load_source(replace(source, source=f"hf:{hub}"), 0) == load_source(source, 0)
    assert len(load_source(replace(source, source=f"hf:{hub}@test"), 0).samples) == 2
    text = message(replace(source, source=f"hf:{hub}@trian"))
    assert "could not be loaded" in text and "trian" in text and "train" in text


def test_class_numbers_become_names(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, split: asked.append((*a, split)) or data)
    assert [row["label"] for row in read_hub("hf:owner/name:config@train[:5]")] == ["pos", "neg", ""]
    read_hub("hf:owner/name")
    assert asked == [("owner/name", "config", "train[:5]"), ("owner/name", None, "train")]


def streamed(hub: Path, count: int, **options: object) -> Any:
    """A task that reads `count` distinct prompts of a folder."""
    return load_source(Source("mine", f"hf:{hub}", streaming=True, **options), count)


def test_a_stream_is_read_until_there_are_enough_prompts(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the source's order, past duplicates, empty rows and other classes; what is behind is not converted."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    texts = [f"Text {i // 2}" if i % 10 else " " for i in range(5000)]
    data = datasets.Dataset.from_dict({"text": texts, "label": [i % 3 % 2 for i in range(5000)]}, features=features)
    data.to_parquet(hub / "train.parquet", batch_size=500)
    converted: list[int] = []
    monkeypatch.setattr(
        "airpfed.tasks.hub.arrow_rows",
        lambda *parts: (converted.append(1) or row for row in arrow_rows(*parts)),
    )
    part = streamed(hub, 40, max_empty_share=0.2)
    assert [sample.prompt for sample in part.samples] == [f"Text {i}\nLabel:" for i in range(40)]
    assert part.names == ("neg", "pos") and len(converted) < 1000
    assert part.counts.rows == 79 and part.counts.skipped == 8 and part.counts.duplicates == 31
    assert part.counts.notes[0].startswith("streamed: the first 79 rows, in the source's order; ")
    whole = load_source(Source("mine", f"hf:{hub}", max_empty_share=0.2), 40)
    assert whole.counts.rows == 5000 and whole.samples[:40] == part.samples
    everything = streamed(hub, 10**6, max_empty_share=0.2)
    assert everything.samples == whole.samples and "the first 5,000 rows" in everything.counts.notes[0]
    assert [s.label for s in streamed(hub, 30, max_empty_share=0.2, classes=("pos", "neg")).samples].count(1) > 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the library leaves its file open
def test_a_stream_of_csv_is_text_and_a_wrong_column_ends_it(hub: Path) -> None:
    write(hub / "train.csv", [{"text": f"{i:02}", "label": ("None", "01")[i % 2]} for i in range(60)])
    assert [s.prompt for s in streamed(hub, 5).samples] == [f"{i:02}\nLabel:" for i in range(5)]
    assert streamed(hub, 5).names == ("01", "None")
    with pytest.raises(UserError, match=r"label names 'labl', but .* has the columns text, label"):
        streamed(hub, 5, label_column="labl")
    with pytest.raises(UserError, match=r"could not be streamed: .*trian"):
        load_source(Source("mine", f"hf:{hub}@trian", streaming=True), 5)
    gc.collect()  # so that the files that the library leaves open are warned about here


def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert message(replace(source, source="hf:owner/name")).endswith("could not be loaded: no route to the hub")
    assert "is written hf:owner/name" in message(replace(source, source="hf:"))


def test_only_the_classes_asked_for(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "abcd"[i % 4]} for i in range(12)]
    source = Source("mine", str(write(tmp_path / "data.csv", rows)), classes=("d", "b"))
    found = load_source(source, 0)
    assert found.labels == (" b", " d") and [sample.label for sample in found.samples] == [0, 1] * 3
    worded = load_source(replace(source, labels={"d": "delta", "a": "alpha", "b": "beta"}), 0)
    assert worded.labels == (" delta", " beta"), "in the order of the labels given"
    assert found.sha256 != load_source(replace(source, classes=()), 0).sha256
    assert message(replace(source, classes=("b", "e"))).startswith(
        f"tasks.mine.classes: {source.source!r} has no class 'e'"
    )
    assert "belong to kind 'classify'" in message(replace(source, kind="generate"))
    assert "needs two or more" in message(replace(source, classes=("b",)))


def rows_of(texts: str, labels: str) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in zip(texts.split("|"), labels.split("|"), strict=True)]


def test_spellings_of_a_text_are_duplicates_and_contradictions_are_counted(tmp_path: Path) -> None:
    """The first row stays, whatever the others say."""
    texts = "caf\u00e9|cafe\u0301|CAF\u00c9 |c\u200bafé|tea|ｔｅａ|milk"
    found = load_source(Source("mine", str(write(tmp_path / "a.csv", rows_of(texts, "x|x|y|x|y|x|x")))), 0)
    assert [(sample.prompt, sample.answer) for sample in found.samples] == [
        ("caf\u00e9\nLabel:", " x"), ("tea\nLabel:", " y"), ("milk\nLabel:", " x"),
    ]  # fmt: skip
    assert (found.counts.rows, found.counts.duplicates, found.counts.contradictions) == (7, 4, 2)


def test_spellings_of_a_class_are_one_class(tmp_path: Path) -> None:
    """As the file spells it first; labels, classes and devices of the settings are found in any spelling."""
    rows = [
        row | {"who": who}
        for row, who in zip(rows_of("a|b|c|d", "e\u0301|\u00e9 |z|z"), ["e\u0301", "\u00e9", "o", "o"], strict=True)
    ]
    source = Source("mine", str(write(tmp_path / "a.csv", rows)), device_column="who")
    found = load_source(source, 0)
    assert found.labels == (" e\u0301", " z") and [sample.label for sample in found.samples] == [0, 0, 1, 1]
    assert {sample.device for sample in found.samples} == {"\u00e9", "o"} and found.names == ("e\u0301", "z")
    words = load_source(replace(source, labels={"z": "no", "\u00e9": "yes"}, classes=("e\u0301", "z")), 0)
    assert words.labels == (" no", " yes") and [sample.label for sample in words.samples] == [1, 1, 0, 0]
    assert "occurs twice, in two spellings" in message(
        replace(source, labels={"z": "1", "\u00e9": "2", "e\u0301": "3"})
    )


def test_classes_that_read_alike_are_two_and_told(tmp_path: Path) -> None:
    found = load_source(Source("mine", str(write(tmp_path / "a.csv", rows_of("a|b|c|d", "spam|Spam|1|1.0")))), 0)
    assert len(found.labels) == 4
    assert found.counts.notes == (
        "classes 'spam' and 'Spam' read alike, but are two", "classes '1' and '1.0' read alike, but are two",
    )  # fmt: skip


def test_columns_are_found_however_their_names_are_composed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("te\u0301,label\na,x\nb,y\n")
    found = load_source(Source("mine", str(tmp_path / "a.csv"), text_column="t\u00e9"), 0)
    assert found == load_source(Source("mine", str(tmp_path / "a.csv"), prompt="{te\u0301}\nLabel:"), 0)
    (tmp_path / "a.csv").write_text("te\u0301,t\u00e9,label\na,b,x\n")
    assert "two columns have names that look the same" in message(Source("mine", str(tmp_path / "a.csv")))


def test_rows_without_text_or_label_are_skipped_and_counted(tmp_path: Path) -> None:
    def table(empty: int) -> Source:
        rows = [{"text": f"t{i}", "label": "xy"[i % 2]} for i in range(100 - empty)]
        lacking = [{"text": ("\u200b ", "a")[i % 2], "label": ("x", " ")[i % 2]} for i in range(empty)]
        return Source("mine", str(write(tmp_path / "a.csv", [*rows[:7], *lacking, *rows[7:]])))

    found = load_source(table(5), 0)
    assert len(found.samples) == 95 and found.counts.rows == 100 and found.counts.skipped == 5
    text = message(table(6))
    assert "row 8 of" in text and "has no text in column 'text'; so it is with 6 of 100 rows" in text
    assert "tasks.mine.max_empty_share = 0.05 of them" in text
    assert load_source(replace(table(6), max_empty_share=0.06), 0).counts.skipped == 6
    blank = str(write(tmp_path / "b.csv", rows_of("| | |", "x|y|x|y")))
    assert "4 of 4 rows" in message(Source("mine", blank, max_empty_share=1.0))
    rest = [{"text": sample.prompt.partition("\n")[0], "label": sample.answer.strip()} for sample in found.samples]
    assert found.sha256 == load_source(Source("mine", str(write(tmp_path / "c.csv", rest))), 0).sha256


CELLS = st.one_of(
    st.sampled_from(["01", "NA", "None", "nan", "null", "True", "2020-01-01", " a ", "é", "a,b", 'q"', "1e5", "0.10"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f\x85")),
)  # fmt: skip


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(CELLS, min_size=2, max_size=8),
    st.sampled_from([CELLS, st.integers(-99, 99), st.floats(-9, 9), st.booleans()]),
    st.data(),
)  # fmt: skip
def test_a_table_gives_the_same_samples_from_every_kind_of_file(
    hub: Path, tmp_path: Path, texts: list[str], kind: Any, data: st.DataObject
) -> None:
    """And as the folder of a data set: nothing guesses at types."""
    rows = [{"text": text, "label": data.draw(kind)} for text in texts]
    found: dict[str, object] = {}
    for ending in READERS:
        source = Source("mine", str(write(tmp_path / f"t{ending}", rows)), "generate", max_empty_share=1.0)
        home = hub / f"{uuid.uuid4().hex}"
        home.mkdir()
        (home / f"train{ending}").write_bytes(Path(source.source).read_bytes())
        for name, one in ((ending, source), (f"hf {ending}", replace(source, source=f"hf:{home}"))):
            try:
                loaded = load_source(one, 0)
                found[name] = (loaded.samples, loaded.counts, loaded.sha256)
            except UserError as error:
                assert "has no text in column" in str(error)
                found[name] = None
    assert len({repr(one) for one in found.values()}) == 1, found


@pytest.mark.parametrize("ending", READERS)
def test_a_row_of_empty_fields_is_a_row(ending: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "", "label": ""}, {"text": "b", "label": "y"}]
    counts = load_source(Source("mine", str(write(tmp_path / f"t{ending}", rows)), max_empty_share=1.0), 0).counts
    assert (counts.rows, counts.skipped) == (3, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text\n\t\nb\n", ["b"]),
        ('text\tlabel\na "q\tx\n\t\t\t\nb\ty\n', ['a "q', "b"]),
        ('text\tlabel\tc\n"1\tx\ty\n\t\n', ['"1']),
        ("\t\ntext\tlabel\na\tx\n", ["a"]),
        ("text\tlabel\na\tx\n\x0c\n", ["a"]),
        ("text\tlabel\r\na\tx\r\n\r\n", ["a"]),
    ],
)
def test_lines_of_white_space_in_a_file_of_tabs_are_no_rows(text: str, expected: list[str], tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text(text, newline="")
    assert [row["text"] for row in read_file(path)] == expected


def test_a_csv_of_a_data_set_is_read_as_it_is_written(hub: Path) -> None:
    (hub / "train.csv").write_text("text,label\n01,NA\n2020-01-01,None\n1.50,nan\nTRUE,NA\n")
    found = load_source(Source("mine", f"hf:{hub}"), 0)
    assert [sample.prompt.partition("\n")[0] for sample in found.samples] == ["01", "2020-01-01", "1.50", "TRUE"]
    assert found.labels == (" NA", " None", " nan") and found == load_source(Source("mine", str(hub / "train.csv")), 0)
    assert len(load_source(Source("mine", f"hf:{hub}@train[:2]"), 0).samples) == 2
    (hub / "test.csv").write_text("text,label\nx,a\n")
    assert len(load_source(Source("mine", f"hf:{hub}@train[1:]+test"), 0).samples) == 4
    assert len(load_source(Source("mine", f"hf:{hub}@all"), 0).samples) == 5


def test_a_tab_separated_file_and_json_lines_of_a_data_set(hub: Path) -> None:
    (hub / "train.tsv").write_text("text\tlabel\na,1\t01\nb\t1\n")
    assert load_source(Source("mine", f"hf:{hub}"), 0).labels == (" 01", " 1")
    (hub / "train.tsv").unlink()
    (hub / "train.json").write_text('{"text": "2020-01-01", "label": "01"}\n{"text": "b", "label": 1}\n')
    found = load_source(Source("mine", f"hf:{hub}"), 0)
    assert found.labels == (" 01", " 1") and found.samples[0].prompt == "2020-01-01\nLabel:"


def test_what_a_data_set_says_of_its_files_counts(hub: Path) -> None:
    """Names of classes in a Parquet file of the library's own; separators in its card."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).to_parquet(
        hub / "train.parquet"
    )
    assert [sample.answer for sample in load_source(Source("mine", f"hf:{hub}"), 0).samples] == [" yes", " no"]
    (hub / "train.parquet").unlink()
    (hub / "train.csv").write_text("text;label\na;x\nb;y\n")
    (hub / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  sep: ';'\n---\n")
    assert load_source(Source("mine", f"hf:{hub}"), 0).labels == (" x", " y")


def test_a_folder_may_hold_the_characters_that_part_a_name(tmp_path: Path) -> None:
    home = tmp_path / "me@work:x"
    home.mkdir()
    assert hub_parts(f"hf:{home}") == (str(home), None, "train")
    assert hub_parts(f"hf:{home}:conf@test[:5]") == (str(home), "conf", "test[:5]")
    assert hub_parts("hf:owner/name:conf@test") == ("owner/name", "conf", "test")


def test_the_working_directory_is_not_taken_for_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    write(tmp_path / "owner" / "name" / "train.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    text = message(Source("mine", "hf:owner/name"))
    assert "the working directory holds 'owner/name'" in text and "hf:./owner/name" in text
    assert "no such folder" in message(Source("mine", f"hf:{tmp_path}/nothing"))
    (tmp_path / "data.csv").write_text("text,label\na,x\n")
    text = message(Source("mine", str(tmp_path / "study" / "data.csv")))
    assert f"{tmp_path}/study/data.csv: No such file" in text and f"{tmp_path}/data.csv is in the working" in text


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array([b"a", "é".encode(), None]), ["a", "é", ""]),
        (pa.array([b"ab", b"cd"], pa.binary(2)), ["ab", "cd"]),
        (pa.array(["a", "b", "a", None]).dictionary_encode(), ["a", "b", "a", ""]),
        (pa.array([1, 2, 1]).dictionary_encode(), ["1", "2", "1"]),
        (pa.array(["a", None], pa.large_string()), ["a", ""]),
        (pa.array(["a", None], pa.string_view()), ["a", ""]),
        (pa.array([None, None]), ["", ""]),
        (pa.array([True, False, None]), ["True", "False", ""]),
        (pa.array([1, -(2**63), None]), ["1", str(-(2**63)), ""]),
        (pa.array([1.0, 0.1, float("nan"), None]), ["1.0", "0.1", "", ""]),
        (pa.array([0.1, 16777216.0], pa.float32()), ["0.1", "16777216.0"]),
        (pa.array([Decimal("1.50"), None], pa.decimal128(30, 2)), ["1.50", ""]),
        (pa.array([0, 18262], pa.date32()), ["1970-01-01", "2020-01-01"]),
        (pa.array([0], pa.timestamp("us", "UTC")), ["1970-01-01 00:00:00+00:00"]),
        (pa.array([0], pa.timestamp("ns")), ["1970-01-01 00:00:00"]),
        (pa.array([61], pa.time32("s")), ["00:01:01"]),
    ],
    ids=lambda value: str(value.type) if hasattr(value, "type") else "",
)
def test_columns_of_a_parquet_file_as_texts(tmp_path: Path, column: pa.Array, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert [row["text"] for row in read_file(tmp_path / "a.parquet")] == texts


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pa.array([b"\xff", b"a"]), "bytes that are not UTF-8 text"),
        (pa.array([["a"], ["b"]]), "a list"),
        (pa.array([{"a": 1}, {"a": 2}]), "a struct"),
        (pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())), "a map"),
        (pa.array([float("inf"), 1.0]), "a number that is not finite"),
        (pa.array([2**50, 1], pa.timestamp("us")), "a timestamp[us] out of range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_columns_that_are_no_text_are_named_if_they_are_used(tmp_path: Path, column: pa.Array, what: str) -> None:
    column = column if what[:11] != "a timestamp" else pa.array([2**62, 1], pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["a", "b"], "other": column, "label": ["x", "y"]}), tmp_path / "a.parquet")
    source = Source("mine", str(tmp_path / "a.parquet"))
    assert len(load_source(source, 0).samples) == 2
    text = message(replace(source, text_column="other"))
    assert f"row 1 of {source.source!r} holds {what} in column 'other'" in text


def test_cells_of_json_that_are_no_text(tmp_path: Path) -> None:
    cells = {
        '["a"]': "a list",
        '{"a": 1}': "an object",
        "1e400": "a number that is not finite",
        '"\\ud800"': "half a surrogate",
    }
    for cell, what in cells.items():
        (tmp_path / "a.jsonl").write_text(f'{{"text": "ok", "label": "x"}}\n{{"text": {cell}, "label": "y"}}\n')
        assert f"row 2 of '{tmp_path}/a.jsonl' holds {what}" in message(Source("mine", str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.csv", "text,label\na,b\n".encode("utf-16") + b"x", "not UTF-16 text at byte"),
        ("a.csv", "text,label\na,b\n".encode("utf-32-be"), "a zero byte at byte 0; if it is text, encoding should"),
        ("a.csv", b"text,label\na,\0b\n", "a zero byte at byte 13"),
        ("a.csv", "text,label\nна,b\n".encode("cp1251"), "windows-1252 'íà,b', windows-1251 'на,b', mac-roman"),
        ("a.txt", "text\tlabel\n", "known are .csv, .tsv, .jsonl, .json (a list of objects), .parquet (.txt is not"),
        ("a.tsv", "text\tlabel\n", "holds no rows"),
        ("a.tsv", "text\ttext\na\tb\n", "column 'text' occurs twice"),
        ("a.tsv", 'text\tlabel\na\tb\tc\n', "line 2 has more fields than the header"),
        ("a.csv.gz", b"\x1f\x8b", "(.gz is not read): save or unpack it as one of these"),
        ("a.XLSX", b"PK", "(.xlsx is not read)"),
        ("a", "x", "the name has no ending"),
        ("a.jsonl", '{"text": "a", "text": "b"}', "line 1: 'text' occurs twice in an object"),
        ("a.json", '[{"text": "a"}, {"text": "b"},]', "a comma before the end of the list"),
        ("a.json", '[{"text": "a"} {"text": "b"}]', "expected a comma or the end of the list"),
        ("a.json", '[{"text": "a"}] []', "more than one list"),
        ("a.json", '[{"text": "a"}', "expected a comma or the end"),
        ("a.json", '[{"text": ' + "9" * 5000 + "}]", "a number of 5,000 digits"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"a":' * 100_000, "nested too deeply"),
        ("a.jsonl", '{"\\ud800": 1}', "half a surrogate pair"),
    ],
)  # fmt: skip
def test_files_that_are_something_else(tmp_path: Path, name: str, content: str | bytes, named: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert named in message(Source("mine", str(tmp_path / name)))


PAIRS = [("Straße; ein Café", "pos"), ("“so”, na ja", "neg"), ('ein "Wort"', "pos"), ("a\tb|c", "neg")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_and_encodings_are_found_and_told(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path, notes = tmp_path / "a.csv", list[str]()
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("text", "label"), *PAIRS])
    rows = read_file(path, notes=notes)
    assert rows == [{"text": text, "label": label} for text, label in PAIRS]
    told = {",": [], "\t": ["a.csv: fields are separated by tabs"]}.get(
        delimiter, [f"a.csv: fields are separated by {delimiter!r}"]
    )
    assert [line for line in notes if "fields" in line] == told
    assert [line for line in notes if "text, as" in line] == (
        [] if encoding.startswith("utf-8") else [f"a.csv: {encoding.upper()} text, as its bytes say"]
    )
    data = load_source(Source("mine", str(path)), 0)
    assert data.counts.notes == tuple(notes) and len(data.samples) == 4


@pytest.mark.parametrize(
    ("encoding", "delimiter"), [("windows-1252", ":"), ("shift_jis", "~"), ("utf-7", ","), ("mac-roman", "")]
)
def test_what_cannot_be_found_is_given(tmp_path: Path, encoding: str, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    pairs = [(text.replace("ß", "ss").replace("é", "e").replace("“", "'").replace("”", "'"), x) for text, x in PAIRS]
    pairs += [("昨日は店に", "pos")] if encoding == "shift_jis" else [("straße où", "pos")]
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter or ",").writerows([("text", "label"), *pairs])
    form = TextForm(delimiter, encoding)
    assert read_file(path, form) == [{"text": text, "label": label} for text, label in pairs]
    assert load_source(Source("mine", str(path), form=form), 0).counts.notes == ()
    with pytest.raises(UserError, match=r"not utf-8 text at byte|no such column|should|does not"):
        read_file(path, TextForm(delimiter, "utf-16" if encoding == "utf-7" else "utf-8"))


def test_a_tab_file_with_stray_quotation_marks_keeps_its_lines(tmp_path: Path) -> None:
    """Read as CSV, the mark would swallow two rows. Quoted fields are unquoted all the same."""
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"so it begins\ta\nand goes on\tb\nuntil "here"\ta\n"""quoted"" in full"\tb\n""\tc\n')
    assert [row["text"] for row in read_file(path)] == [
        '"so it begins', "and goes on", 'until "here"', '"quoted" in full', "",
    ]  # fmt: skip
    path.write_text('text\tlabel\n"two\nlines"\ta\nb\tc\n')
    assert [row["text"] for row in read_file(path)] == ["two\nlines", "b"]


def test_only_regular_files_of_a_size_that_fits_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    (tmp_path / "folder.csv").mkdir()
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(100 << 30)
    for name, named in {
        "fifo.csv": "not a regular file",
        "zero.csv": "not a regular file",
        "folder.csv": f"a folder; write hf:{tmp_path}/folder.csv",
        "huge.csv": "107,374,182,400 bytes; at most 536,870,912 are read",
    }.items():
        assert named in message(Source("mine", str(tmp_path / name)))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").symlink_to(tmp_path / "huge.csv")
    assert "at most 536,870,912 are read" in message(Source("mine", f"hf:{tmp_path}/set"))


def test_a_table_that_grows_when_it_is_unpacked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what its metadata says, by its rows, and by what repeated values add up to; without holding it."""
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["x" * (1 << 16)])
    pq.write_table(pa.table({"text": long, "label": ["a"] * 100_000}), tmp_path / "repeated.parquet")
    pq.write_table(pa.table({"text": pa.nulls(11_000_000), "label": pa.nulls(11_000_000)}), tmp_path / "rows.parquet")
    pq.write_table(
        pa.table({"text": ["x" * (1 << 20)], "label": ["a"]}), tmp_path / "packed.parquet", compression="zstd"
    )
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 20
    assert "more than 536,870,912 letters" in message(Source("mine", str(tmp_path / "repeated.parquet")))
    assert "22,000,000 cells or more; at most 20,000,000" in message(Source("mine", str(tmp_path / "rows.parquet")))
    monkeypatch.setattr(table_files, "MAX_BYTES", 1 << 16)
    assert "bytes when unpacked; at most 65,536" in message(Source("mine", str(tmp_path / "packed.parquet")))
    monkeypatch.setattr(table_files, "MAX_CELLS", 10)
    assert "at most 10 are read" in message(Source("mine", str(write(tmp_path / "a.csv", ROWS))))


def test_a_field_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\n{'x' * 200_000},a\nb,b\n")
    assert len(load_source(Source("mine", str(tmp_path / "a.csv")), 0).samples[0].prompt) > 200_000


def test_an_error_is_one_line_whatever_the_file_holds(tmp_path: Path) -> None:
    (tmp_path / "a\nb.csv").write_text("\x1b[2J" + "x" * 5000 + ",b\n1,2\n")
    text = message(Source("mine", str(tmp_path / "a\nb.csv")))
    assert text.isprintable() and len(text) <= 1000 and "a\\nb.csv" in text
    (tmp_path / "a\nb.csv").write_text("")
    assert "a\\nb.csv: the file holds no rows" in message(Source("mine", str(tmp_path / "a\nb.csv")))
    texts = "|".join(f"{'word ' * 50}{i}" for i in range(2000))
    source = Source("mine", str(write(tmp_path / "b.csv", rows_of(texts, texts))), labels={"a": "a", "b": "b"})
    assert len(message(source)) < 400


def test_a_source_of_the_users_own_may_give_numbers_as_a_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": "one", "label": 1}, {"text": "two", "label": True}, {"text": "three", "label": None}]
    monkeypatch.setitem(SOURCES.data, "mine", lambda: rows)
    assert [row["label"] for row in read_row_source("mine", {})] == ["1", "True", ""]
    monkeypatch.setitem(SOURCES.data, "mine", lambda: [{"text": "a", "label": ["b"]}])
    with pytest.raises(UserError, match="row 1 of 'mine' holds a list in column 'label'"):
        load_source(Source("t", "mine"), 0)
    monkeypatch.setitem(SOURCES.data, "mine", lambda: [{"text": "a", "te\u0301": "1", "t\u00e9": "2"}])
    with pytest.raises(UserError, match="source mine: two columns have names that look the same"):
        read_row_source("mine", {})
