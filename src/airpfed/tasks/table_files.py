"""Tables of text from local files: every row is a dict from column to text."""

import csv
import io
import json
import re
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from airpfed.core.errors import UserError, one_line
from airpfed.core.paths import MAX_BYTES, MAX_CELLS

Row = dict[str, str]

BATCH_ROWS = 1 << 14
"""Rows of Arrow data that are converted to text at a time."""

_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""First bytes of texts in other encodings than UTF-8."""


class NotText(str):
    """An empty text in place of a value that is no text, with a description of that value."""

    description: str

    def __new__(cls, description: str) -> "NotText":
        """Make an empty text with a description."""
        text = super().__new__(cls, "")
        text.description = description
        return text


def read_file(path: Path, nested: Collection[str] = ()) -> list[Row]:
    """Rows of a .csv, .jsonl, .json (a list of objects) or .parquet file, in UTF-8, with all values as text.

    nested: columns whose lists and objects become JSON texts; in other columns they are no text. Raises UserError that
    names the file where it is missing, not a regular file, of another kind, damaged, not UTF-8, too large, or empty.
    """
    return read_as(path, path.suffix.lower(), nested=nested)


def read_as(path: Path, ending: str, delimiter: str = ",", nested: Collection[str] = ()) -> list[Row]:
    """`read_file` with the reader of another ending, and with another delimiter of CSV fields."""
    try:
        check_file(path, ending)
        if ending == ".csv":
            rows = to_rows(_csv(path, delimiter))
        else:
            rows = to_rows(_parquet(path, nested) if ending == ".parquet" else READERS[ending](path), nested)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; save the file as UTF-8") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}{path_hint(path)}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a well-formed {ending} file: nested too deeply") from error
    except MemoryError as error:
        raise UserError(f"{path}: does not fit into memory; keep the rows and columns that are needed") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # pyarrow raises many types, also OSError without a message
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: {error.strerror}; give the path of a readable file") from error
        raise UserError(f"{path}: not a well-formed {ending} file: {one_line(error)}") from error
    if not rows:
        raise UserError(f"{path}: the file holds no rows; it needs at least one")
    return rows


def check_file(path: Path, ending: str) -> None:
    """Raise UserError unless a path is a regular file of a known kind and not too large."""
    if path.is_dir():
        raise UserError(f"a folder; write hf:{path} for a folder of data files, or name a file")
    if ending not in READERS:
        problem = f"{ending} is not read" if ending else "the name has no ending"
        raise UserError(f"unknown kind of file; known are {KINDS} ({problem}): save or unpack it as one of these")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError("not a regular file; data is read from files only")
    if status.st_size > MAX_BYTES:
        raise UserError(
            f"{status.st_size:,} bytes; at most {MAX_BYTES:,} are read: keep the rows and columns that are needed"
        )


def _csv(path: Path, delimiter: str = ",") -> Iterator[Mapping[str, Any]]:
    text = _text(path)
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # the limit is the file's size
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        names = list(reader.fieldnames or ())
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"column {twice[0]!r} occurs twice in the header")
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more fields than the header")
            yield row
    except csv.Error as error:
        raise ValueError(f"{error}{separator_hint(text.partition(chr(10))[0])}") from error


def separator_hint(header: str) -> str:
    """A hint for a header line whose fields seem to be separated by another character than commas; else empty."""
    other = max(";\t|", key=header.count)
    return "; fields should be separated by commas" if header.count(other) > header.count(",") else ""


def _text(path: Path) -> str:
    """A file's text without a byte-order mark. Raises UserError where it is not UTF-8."""
    data = path.read_bytes()
    for mark, name in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            raise UserError(f"{name} text, as its first bytes say; save the file as UTF-8")
    if (index := data.find(b"\0")) >= 0:
        raise UserError(f"not UTF-8 text: a zero byte at byte {index} (it may be UTF-16); save the file as UTF-8")
    return data.decode("utf-8-sig")


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    lines = _text(path).split("\n")  # not splitlines(): a JSON string may contain other line ends
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _DECODER.decode(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error.msg}") from error
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object")
        yield row


def _json(path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a list one by one, so that too many rows are refused before all are parsed."""
    text = _text(path)
    index = _skip_space(text, 0)
    if text[index : index + 1] != "[":
        raise ValueError("expected a list of objects")
    index = _skip_space(text, index + 1)
    while text[index : index + 1] != "]":
        row, index = _DECODER.raw_decode(text, index)
        if not isinstance(row, dict):
            raise ValueError("expected a list of objects")
        yield row
        index = _skip_space(text, index)
        if text[index : index + 1] == ",":
            index = _skip_space(text, index + 1)
            if text[index : index + 1] == "]":
                raise ValueError(f"a comma before the end of the list, at character {index}")
        elif text[index : index + 1] != "]":
            raise ValueError(f"expected a comma or the end of the list at character {index}")
    if _skip_space(text, index + 1) < len(text):
        raise ValueError(f"more than one list, at character {index + 1}")


def _skip_space(text: str, index: int) -> int:
    match = _SPACE.match(text, index)
    return match.end() if match else index


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError where a key occurs twice."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs twice in an object")
    return result


def _parse_integer(digits: str) -> int:
    if len(digits) > 4000:  # Python converts no more than 4,300
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_int=_parse_integer)


def _parquet(path: Path, nested_columns: Collection[str] = ()) -> Iterator[Mapping[str, Any]]:
    """Rows, batch by batch; a repeated value is stored once. Raises UserError where the file is too large.

    nested_columns: columns of lists or objects that are read; others are described in place of their values.
    """
    import pyarrow as pa
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    flat = [field.name for field in schema if not pa.types.is_nested(field.type)]
    plain = [field.name for field in schema if field.name in flat or field.name in nested_columns]
    with pyarrow.parquet.ParquetFile(path, read_dictionary=flat) as file:
        metadata, names = file.metadata, file.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"column {twice[0]!r} occurs twice")
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        # Sizes of row groups only: reading a damaged column's own size would end the process.
        size = sum(group.total_byte_size for group in groups)
        rows = sum(group.num_rows for group in groups)
        if size > MAX_BYTES:
            raise UserError(f"{size:,} bytes when unpacked; at most {MAX_BYTES:,} are read: keep the rows and columns "
                            "that are needed")  # fmt: skip
        if rows * len(names) > MAX_CELLS:
            raise UserError(_too_many_cells(rows * len(names)))
        nested = {field.name: NotText(_describe(field.type)) for field in file.schema_arrow if field.name not in plain}
        if not plain:
            yield from ({**nested} for _ in range(rows))
            return
        for row in arrow_rows(file.iter_batches(BATCH_ROWS, columns=plain), {}, nested_columns):
            yield {**row, **nested}


READERS: dict[str, Callable[[Path], Iterable[Mapping[str, Any]]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
"""Readers by the ending of the file's name."""

KINDS = ".csv (UTF-8, commas), .jsonl, .json (a list of objects), .parquet"
"""The kinds of `READERS` in words."""


def arrow_rows(batches: Iterable[Any], names: Mapping[str, list[str]], nested: Collection[str] = ()) -> Iterator[Row]:
    """Rows of Arrow record batches. names: column of class numbers -> class names; negative numbers are no class.

    nested: columns whose lists and objects become JSON texts.
    """
    for batch in batches:
        columns = {
            name: [_class_name(value, names[name]) for value in column.to_pylist()]
            if name in names
            else [_json_text(value) for value in column.to_pylist()]
            if name in nested
            else _arrow_texts(column)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _class_name(value: int | None, names: list[str]) -> str:
    return "" if value is None or not 0 <= value < len(names) else names[value]


def _arrow_texts(column: Any) -> list[str]:
    """The values of an Arrow array as texts; numbers with the fewest digits that their own precision needs."""
    import pyarrow as pa
    from pyarrow import compute, types

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _arrow_texts(column.storage)
    if types.is_dictionary(kind):
        used = compute.unique(column.indices).drop_null()
        texts = dict(zip(used.to_pylist(), _arrow_texts(column.dictionary.take(used)), strict=True))
        return ["" if index is None else texts[index] for index in column.indices.to_pylist()]
    if types.is_string(kind) or types.is_large_string(kind):
        column = column.cast(pa.large_binary())  # values that are not UTF-8 then raise nothing
    if types.is_nested(kind) or types.is_run_end_encoded(kind) or types.is_interval(kind):
        return [NotText(_describe(kind)) if valid else "" for valid in column.is_valid().to_pylist()]
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, ArithmeticError):  # times outside Python's range
        return [NotText(f"a {kind} out of range") if valid else "" for valid in column.is_valid().to_pylist()]
    if types.is_float16(kind) or types.is_float32(kind):
        narrow = np.float16 if types.is_float16(kind) else np.float32
        values = [None if value is None else float(str(narrow(value))) for value in values]
    if types.is_decimal(kind):
        values = [None if value is None else format(value, "f") for value in values]
    return [_to_text(value) for value in values]


def _describe(kind: Any) -> str:
    """An Arrow type for a message."""
    return f"a {str(kind).partition('<')[0]}"


def to_rows(raw_rows: Iterable[Mapping[str, Any]], nested: Collection[str] = ()) -> list[Row]:
    """Rows of texts. Raises UserError where they exceed `MAX_CELLS` or `MAX_BYTES`.

    nested: columns whose lists and objects become JSON texts.
    """
    rows: list[Row] = []
    cells = letters = 0
    for raw_row in raw_rows:
        row = {
            name: _json_text(value) if name in nested else _to_text(value)
            for name, value in ((_column_name(key), value) for key, value in raw_row.items())
        }
        if len(row) < len(raw_row):
            raise UserError("two columns have names that look the same; rename one")
        rows.append(row)
        cells += max(len(row), 1)
        letters += sum(map(len, row.values()))
        if cells > MAX_CELLS:
            raise UserError(_too_many_cells(cells))
        if letters > MAX_BYTES:
            raise UserError(f"more than {MAX_BYTES:,} letters; keep the rows and columns that are needed")
    return rows


def _too_many_cells(cells: int) -> str:
    return f"{cells:,} cells or more; at most {MAX_CELLS:,} are read: keep the rows and columns that are needed"


@lru_cache(maxsize=10_000)
def _column_name(name: Any) -> str:
    """The name of a column in composed form (NFC). Raises UserError where no encoding can write it."""
    text = unicodedata.normalize("NFC", str(name))
    if _has_half_pair(text):
        raise UserError(f"column {text!r} has a name with half a surrogate pair; rename it")
    return text


def _has_half_pair(text: str) -> bool:
    """Whether a text contains half of a surrogate pair, which no encoding can write."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _json_text(value: Any) -> str:
    """A list or an object as JSON text; any other value as `_to_text` gives it."""
    if not isinstance(value, (list, tuple, dict)):
        return _to_text(value)
    try:
        return _to_text(json.dumps(value, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return NotText(f"a {type(value).__name__} that JSON cannot hold")


def _to_text(value: Any) -> str:
    """A text, number or truth value as text; an empty text for a missing value; `NotText` for all other values."""
    match value:
        case NotText():
            return value
        case str():
            return NotText("half a surrogate pair") if _has_half_pair(value) else str(value)
        case None:
            return ""
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return NotText("bytes that are not UTF-8 text")
        case list():
            return NotText("a list")
        case dict():
            return NotText("an object")
        case float() if value != value:
            return ""
        case float() if value in (float("inf"), float("-inf")):
            return NotText("a number that is not finite")
        case _:
            return str(value)


def path_hint(path: Path) -> str:
    """A hint for a missing path: which folder it is relative to, and whether the working directory holds its name."""
    other = Path(path.name)
    misplaced = path.is_absolute() and path.parent != Path.cwd() and other.exists()
    ignored = f"; {other.absolute()} is in the working directory, which is not looked at" if misplaced else ""
    return f"; give the path of a readable file (paths are relative to the settings file, also with --set){ignored}"
