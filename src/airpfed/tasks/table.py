"""Rows of text columns from the user's own files and from Hugging Face data sets."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from airpfed.errors import UserError

Row = dict[str, str]

HUB = "hf:"
"""Prefix of the names of Hugging Face data sets."""

_HUB_NAME = re.compile(r"hf:(?P<path>[^@]+?)(:(?P<config>[^@:/\\]+))?(@(?P<split>.+))?")


def read_file(path: Path) -> list[Row]:
    """Rows of a .csv, .jsonl, .json (a list of objects) or .parquet file; text is UTF-8. Values come out as text.

    Raises UserError that names the file when it is missing, of another kind, damaged, not UTF-8, or empty.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: unknown kind of file; known are {', '.join(READERS)}")
    try:
        rows = [_as_text(row) for row in reader(path)]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or _one_line(error)}; give the path of a readable file") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}: not a well-formed {path.suffix.lower()} file: {_one_line(error)}") from error
    if not rows:
        raise UserError(f"{path}: the file holds no rows; it needs at least one")
    return rows


def read_hub(source: str) -> list[Row]:
    """Rows of `hf:owner/name[:config][@split]`, a local folder may stand for owner/name; the split is train by default.

    Class numbers come out as their names where the data set knows them. Raises UserError when it cannot be loaded.
    """
    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise UserError(f"source {source!r}: a Hugging Face data set is written hf:owner/name[:config][@split]")
    try:
        import datasets

        data = datasets.load_dataset(match["path"], match["config"], split=match["split"] or "train")
        rows = [_named(row, data.features) for row in data]
    except Exception as error:  # the library raises its own, the network's and the file system's kinds alike
        raise UserError(f"source {source!r} could not be loaded: {_one_line(error)}") from error
    if not rows:
        raise UserError(f"source {source!r} holds no rows; it needs at least one")
    return rows


def _csv(path: Path) -> Iterable[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    names = list(reader.fieldnames or ())
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"column {twice[0]!r} stands twice in the header")
    for row in reader:
        if None in row:
            raise ValueError(f"line {reader.line_num} has more fields than the header")
        yield row


def _jsonl(path: Path) -> Iterable[Mapping[str, Any]]:
    lines = _text(path).split("\n")  # not splitlines(): a JSON string may hold other line ends as they are
    return (_object(line, number) for number, line in enumerate(lines, start=1) if line.strip())


def _text(path: Path) -> str:
    # utf-8-sig also takes the mark that spreadsheet programs put in front
    return path.read_bytes().decode("utf-8-sig")


def _object(line: str, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error.msg}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not an object")
    return row


def _json(path: Path) -> Iterable[Mapping[str, Any]]:
    rows = json.loads(_text(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected a list of objects")
    return rows


def _parquet(path: Path) -> Iterable[Mapping[str, Any]]:
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.ParquetFile(path).read().to_pylist()
    return rows


READERS: dict[str, Callable[[Path], Iterable[Mapping[str, Any]]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
"""Readers by the end of the file name."""


def _named(row: Mapping[str, Any], features: Mapping[str, Any]) -> Row:
    """A row with class numbers replaced by class names; a negative number stands for no class."""
    names = {key: features[key].names for key in row if hasattr(features[key], "names")}
    return _as_text({key: _name(value, names[key]) if key in names else value for key, value in row.items()})


def _name(value: int | None, names: list[str]) -> str | None:
    return None if value is None or value < 0 else names[value]


def _as_text(row: Mapping[str, Any]) -> Row:
    return {str(key): _text_of(value) for key, value in row.items()}


def _text_of(value: Any) -> str:
    """A text, number or truth value as text; nothing for what is none of them, or no number."""
    return "" if value is None or isinstance(value, dict | list) or value != value else str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
