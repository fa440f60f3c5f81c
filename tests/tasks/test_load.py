"""The user's own files and folders become samples; every way to get them wrong is one line that names it."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airpfed.errors import UserError
from airpfed.tasks.load import Source, fill, load
from airpfed.tasks.sample import Sample
from airpfed.tasks.table import READERS, read_file, read_hub

ROWS = [
    {"text": "good film, café", "label": "pos", "who": "ann"},
    {"text": "bad\nfilm", "label": "neg", "who": "bob"},
    {"text": "  Good  FILM, café ", "label": "neg", "who": "ann"},
    {"text": 'so "so" {label}', "label": "pos", "who": "bob"},
]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    match path.suffix:
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
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
        load(source, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", READERS)
def test_every_kind_of_file_gives_the_same(tmp_path: Path, source: Source, ending: str) -> None:
    found = load(replace(source, source=str(write(tmp_path / f"other{ending}", ROWS))), 0)
    assert found == load(source, 0)
    assert found.labels == (" neg", " pos") and found.kind == "classify" and found.removed == 1
    assert found.samples == (
        Sample("good film, café\nLabel:", " pos", 1),
        Sample("bad\nfilm\nLabel:", " neg", 0),
        Sample('so "so" {label}\nLabel:', " pos", 1),
    )


def test_sha256_is_of_the_rows_that_stay(tmp_path: Path, source: Source) -> None:
    without = write(tmp_path / "three.csv", [ROWS[0], ROWS[1], ROWS[3]])
    assert load(replace(source, source=str(without)), 0).sha256 == load(source, 0).sha256
    changed = write(tmp_path / "other.csv", [ROWS[0] | {"label": "neg"}, ROWS[1], ROWS[3]])
    assert load(replace(source, source=str(changed)), 0).sha256 != load(source, 0).sha256


def test_prompt_of_several_columns_words_devices_and_cut(source: Source) -> None:
    found = load(
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
    assert load(replace(source, max_chars=1), 0).removed == 1
    assert load(replace(source, prompt="{who}"), 0).removed == 2


def test_generate_takes_the_answer_column(source: Source) -> None:
    found = load(replace(source, kind="generate", label_column="who"), 0)
    assert found.labels == () and found.samples[0] == Sample("good film, café\nAnswer:", " ann")
    assert load(replace(source, kind="generate", label_column="who", prompt="{text} "), 0).samples[0].answer == "ann"


def test_fill_is_one_pass() -> None:
    assert fill("{a}{b} {{a}}", {"a": "{b}", "b": "{{"}, None) == "{b}{{ {a}"


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
        ("a.csv", b"text,label\na,x\nA ,y\n", "make 1 distinct prompts, the first of each kept, and none of class 'y'"),
        ("a.csv", b"text,label\na,x\nb, x\n", "the one class 'x'"),
        ("a.csv", b"text,label,text\na,x,b\n", "column 'text' stands twice in the header"),
        ("a.csv", b"text;label\na;x\n", "has the columns text;label; fields should be separated by commas"),
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
    assert load(replace(source, source=f"hf:{hub}"), 0) == load(source, 0)
    assert len(load(replace(source, source=f"hf:{hub}@test"), 0).samples) == 2
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


def test_hub_failures_are_one_line(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    assert message(replace(source, source="hf:owner/name")).endswith("could not be loaded: no route to the hub")
    assert "is written hf:owner/name" in message(replace(source, source="hf:"))


def test_only_the_classes_asked_for(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "abcd"[i % 4]} for i in range(12)]
    source = Source("mine", str(write(tmp_path / "data.csv", rows)), classes=("d", "b"))
    found = load(source, 0)
    assert found.labels == (" b", " d") and [sample.label for sample in found.samples] == [0, 1] * 3
    worded = load(replace(source, labels={"d": "delta", "a": "alpha", "b": "beta"}), 0)
    assert worded.labels == (" delta", " beta"), "in the order of the labels given"
    assert found.sha256 != load(replace(source, classes=()), 0).sha256
    assert message(replace(source, classes=("b", "e"))).startswith(
        f"tasks.mine.classes: {source.source!r} has no class 'e'"
    )
    assert "belong to kind 'classify'" in message(replace(source, kind="generate"))
    assert "needs two or more" in message(replace(source, classes=("b",)))
