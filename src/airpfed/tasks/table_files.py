"""Tables of text from local files: every row is a dict from column to text."""

import csv
import io
import json
import re
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

DELIMITERS = (",", ";", "\t", "|")
"""Delimiters of CSV fields that are found; any other is given."""
COMMON_ENCODINGS = ("windows-1252", "windows-1251", "mac-roman")
"""Encodings in which a message shows how a text would read. None of them can be told from the bytes alone."""


@dataclass(frozen=True)
class TextForm:
    """How the text of a data file is written.

    delimiter: between the fields of a CSV file; empty to find it. encoding: a name that Python knows; empty to find it:
    UTF-8, or UTF-16 or UTF-32 if its first bytes say so. Other encodings cannot be told apart safely, and are given.
    nested: columns whose lists and objects become JSON texts; in other columns they are no text.
    """

    delimiter: str = ""
    encoding: str = ""
    nested: tuple[str, ...] = ()


UNKNOWN_FORM = TextForm()
"""Delimiter and encoding are found."""


class NotText(str):
    """An empty text in place of a value that is no text, with a description of that value."""

    description: str

    def __new__(cls, description: str) -> "NotText":
        """Make an empty text with a description."""
        text = super().__new__(cls, "")
        text.description = description
        return text


def read_file(path: Path, form: TextForm = UNKNOWN_FORM, notes: list[str] | None = None) -> list[Row]:
    """Rows of a .csv, .tsv, .jsonl, .json (a list of objects) or .parquet file, with all values as text.

    notes: a list that receives a line on each delimiter and encoding that was found and is not the usual one. Raises
    UserError that names the file where it is missing, not a regular file, of another kind, damaged, of an unknown
    encoding, too large, or empty.
    """
    return read_as(path, path.suffix.lower(), form, notes)


def read_as(path: Path, ending: str, form: TextForm = UNKNOWN_FORM, notes: list[str] | None = None) -> list[Row]:
    """`read_file` with the reader of another ending."""
    found: list[str] = []
    try:
        check_file(path, ending)
        text_file = ending in TEXT_READERS
        rows = (
            parse_text(path.read_bytes(), ending, form, found)
            if text_file
            else to_rows(_parquet(path, form.nested), form.nested)
        )
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
    if notes is not None:
        notes += [f"{path.name}: {line}" for line in found]
    return rows


def parse_text(data: bytes, ending: str, form: TextForm, notes: list[str]) -> list[Row]:
    """Rows of the bytes of a text file. ending: a key of `TEXT_READERS`. notes: as in `read_file`.

    Raises UserError or ValueError where the bytes are no such text.
    """
    return to_rows(TEXT_READERS[ending](decode_text(data, form.encoding, notes), form.delimiter, notes), form.nested)


def json_values(path: Path, ending: str) -> list[dict[str, Any]]:
    """The rows of a .json or .jsonl file that `read_as` reads, with the values as they are in the file.

    A value that JSON cannot write, such as NaN, is its text.
    """
    rows = TEXT_READERS[ending](decode_text(path.read_bytes()), "", [])
    return [{_column_name(key): _json_value(value) for key, value in row.items()} for row in rows]


def _json_value(value: Any) -> Any:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # also half a surrogate pair
        return str(_to_text(value))
    return value


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


def decode_text(data: bytes, encoding: str = "", notes: list[str] | None = None) -> str:
    """The text of a file's bytes, without a byte-order mark.

    encoding, notes: as in `TextForm` and `read_file`. Raises UserError where the bytes are no text of the encoding, or
    where their encoding cannot be found.
    """
    notes = [] if notes is None else notes
    if encoding:
        try:
            return data.decode(encoding).removeprefix("\ufeff")
        except LookupError:
            raise UserError(f"encoding = {encoding!r}: no such encoding; one is, for example, windows-1252") from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"not {encoding} text at byte {error.start}; encoding should be another, or left out"
            ) from None
    mark = next((mark for mark in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    name = _BYTE_ORDER_MARKS[mark] if mark else ""
    if not name and (zeros := data.count(b"\0")):
        # In UTF-16, every second byte of Western letters is 0; binary files and UTF-32 have other patterns.
        even = data[::2].count(b"\0")
        name = (
            {0: "UTF-16-LE", zeros: "UTF-16-BE"}.get(even, "") if 4 * zeros > len(data) and len(data) % 2 == 0 else ""
        )
        if not name:
            raise UserError(
                f"not UTF-8 text: a zero byte at byte {data.find(0)}; if it is text, encoding should name its encoding"
            )
    try:
        text = data.decode(name or "utf-8-sig")
    except UnicodeDecodeError as error:
        if name:
            raise UserError(f"not {name} text at byte {error.start}, though its other bytes say so") from None
        raise UserError(f"not UTF-8 text at byte {error.start}: {_readings(data, error.start)}") from None
    if name:
        notes.append(f"{name} text, as its bytes say")
    return text


def _readings(data: bytes, index: int) -> str:
    """How the text around a byte reads in other encodings, for a message."""
    start, end = data.rfind(b"\n", 0, index) + 1, len(data)
    start, end = max(start, index - 12), min((data.find(b"\n", index) + 1 or end) - 1, index + 12)
    readings = {name: data[start:end].decode(name, "replace").strip() for name in COMMON_ENCODINGS}
    shown = ", ".join(f"{name} {text!r}" for name, text in readings.items())
    return f"give its encoding, or save it as UTF-8; it would read as {shown}"


def _csv(text: str, delimiter: str, notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """Rows of a text with delimited fields; the first row is the header.

    An empty delimiter is found: commas if they divide the header, else what divides it into the most fields.
    """
    if not delimiter:
        fields = {sign: len(_header(text, sign)) for sign in DELIMITERS}
        delimiter = "," if fields[","] > 1 else max(DELIMITERS, key=fields.__getitem__)
        if delimiter != ",":
            notes.append(f"fields are separated by {'tabs' if delimiter == chr(9) else repr(delimiter)}")
    return _tabbed(text) if delimiter == "\t" else _delimited(text, delimiter)


def _header(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error:
        return []


def _delimited(text: str, delimiter: str) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # the limit is the file's size
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        check_names(reader.fieldnames or ())
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more fields than the header")
            yield row
    except csv.Error as error:
        raise ValueError(f"{error}{separator_hint(text.partition(chr(10))[0], delimiter)}") from error


def _tsv(text: str, delimiter: str, notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """Rows of a .tsv file, whose fields are separated by tabs unless a delimiter is given."""
    return _csv(text, delimiter or "\t", notes)


def _tabbed(text: str) -> Iterator[Mapping[str, Any]]:
    """Rows of fields that tabs separate.

    Most such files quote nothing, and a stray quotation mark would swallow the lines that follow it. So where every
    line has as many tabs as the header, a line is a row (one of as many tabs and nothing else, too), and a field is
    unquoted only if it is quoted from end to end. Other lines of white space are no rows.
    Other texts, whose fields may have line ends, are read as CSV.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    header = next((row for row, line in enumerate(lines) if line.strip()), len(lines))
    tabs = lines[header].count("\t") if header < len(lines) else 0
    lines = [line for line in lines[header:] if line.strip() or (tabs and line.count("\t") == tabs)]
    if len({line.count("\t") for line in lines}) > 1:
        yield from _delimited(text, "\t")
        return
    table = [[_unquoted(field) for field in line.split("\t")] for line in lines]
    names = table[0] if table else []
    check_names(names)
    for row in table[1:]:
        yield dict(zip(names, row, strict=True))


def _unquoted(field: str) -> str:
    """A field without the quotation marks around it, if those within it are doubled."""
    if len(field) < 2 or field[0] != '"' or field[-1] != '"':
        return field
    inner = field[1:-1].replace('""', "")
    return field if '"' in inner else field[1:-1].replace('""', '"')


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError if two columns have the same name."""
    if twice := [name for name in names if list(names).count(name) > 1]:
        raise ValueError(f"column {twice[0]!r} occurs twice in the header")


def separator_hint(header: str, delimiter: str = ",") -> str:
    """A hint for a header line whose fields seem to be separated by another character; else empty."""
    other = max(DELIMITERS, key=header.count)
    if header.count(other) <= header.count(delimiter):
        return ""
    return f"; if fields are separated by {'tabs' if other == chr(9) else repr(other)}, delimiter should say so"


def _jsonl(text: str, _delimiter: str, _notes: list[str]) -> Iterator[Mapping[str, Any]]:
    lines = text.split("\n")  # not splitlines(): a JSON string may contain other line ends
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


def _json(text: str, _delimiter: str, _notes: list[str]) -> Iterator[Mapping[str, Any]]:
    """The objects of a list one by one, so that too many rows are refused before all are parsed."""
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


TEXT_READERS: dict[str, Callable[[str, str, list[str]], Iterable[Mapping[str, Any]]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".json": _json,
}
"""Readers of (text, delimiter, notes) by the ending of the file's name. A .parquet file is read without them."""

READERS = (*TEXT_READERS, ".parquet")
"""Endings of the files that are read."""

KINDS = ".csv, .tsv, .jsonl, .json (a list of objects), .parquet"
"""The kinds of files in words."""


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
