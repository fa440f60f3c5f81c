"""Rows of text columns from the user's own files and from Hugging Face data sets."""

import csv
import io
import json
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from airpfed.core.errors import UserError
from airpfed.core.paths import HUB, MAX_BYTES, MAX_CELLS

Row = dict[str, str]

_BATCH = 1 << 14
"""Rows of Arrow data that are turned into texts at a time."""

_HUB_NAME = re.compile(r"hf:(?P<path>[^@]+?)(:(?P<config>[^@:/\\]+))?(@(?P<split>.+))?")
_HUB_REST = re.compile(r"(:(?P<config>[^@:/\\]+))?(@(?P<split>.+))?")

_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""First bytes of text in another encoding than UTF-8."""


class NoText(str):
    """Nothing, in place of a value that is no text; `why` says what stands there."""

    why: str

    def __new__(cls, why: str) -> "NoText":
        """Make an empty text that knows why it is."""
        made = super().__new__(cls, "")
        made.why = why
        return made


def read_file(path: Path) -> list[Row]:
    """Rows of a .csv, .jsonl, .json (a list of objects) or .parquet file; text is UTF-8. Values come out as text.

    Raises UserError that names the file when it is missing, not a regular file, of another kind, damaged, not UTF-8,
    larger than what is read, or empty.
    """
    return _read(path, path.suffix.lower())


def _read(path: Path, ending: str, delimiter: str = ",") -> list[Row]:
    """`read_file` of a file of the kind that `ending` says."""
    try:
        _checked_size(path, ending)
        rows = _rows(_csv(path, delimiter) if ending == ".csv" else READERS[ending](path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text at byte {error.start}; save the file as UTF-8") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}{_looked(path)}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a well-formed {ending} file: nested too deeply") from error
    except MemoryError as error:
        raise UserError(f"{path}: does not fit into memory; keep the rows and columns that are needed") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # pyarrow raises many kinds, OSError without a reason among them
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path}: {error.strerror}; give the path of a readable file") from error
        raise UserError(f"{path}: not a well-formed {ending} file: {_one_line(error)}") from error
    if not rows:
        raise UserError(f"{path}: the file holds no rows; it needs at least one")
    return rows


def _checked_size(path: Path, ending: str) -> None:
    """Raise UserError unless a path is a regular file of a known kind that is small enough to be read."""
    if path.is_dir():
        raise UserError(f"a folder; write hf:{path} for a folder of data files, or name a file")
    if ending not in READERS:
        what = f"{ending} is not read" if ending else "the name has no ending"
        raise UserError(f"unknown kind of file; known are {KINDS} ({what}): save or unpack it as one of these")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError("not a regular file; data is read from files only")
    if status.st_size > MAX_BYTES:
        raise UserError(
            f"{status.st_size:,} bytes; at most {MAX_BYTES:,} are read: keep the rows and columns that are needed"
        )


def read_hub(source: str) -> list[Row]:
    """Rows of `hf:owner/name[:config][@split]`, a local folder may stand for owner/name; the split is train by default.

    Class numbers come out as their names where the data set knows them; CSV and JSON files are read as by `read_file`.
    Raises UserError when it cannot be loaded.
    """
    path, config, split = hub_parts(source)
    local = path.startswith(("/", "./", "../")) or path in (".", "..")
    if local and not Path(path).is_dir():
        raise UserError(f"source {source!r}: no such folder{_looked(Path(path))}")
    if not local and Path(path).exists():
        raise UserError(
            f"source {source!r}: the working directory holds {path!r}, which would be taken for the data set; a "
            f"settings file takes the folder beside it that it calls hf:./{path}"
        )
    try:
        import datasets

        rows = _as_written(datasets.load_dataset_builder(path, config), split) if local else None
        if rows is None:
            data = datasets.load_dataset(path, config, split=split)
            if data.info.builder_name in ("csv", "json"):
                rows = _as_written(datasets.load_dataset_builder(path, config), split)
        if rows is None:
            names = {key: feature.names for key, feature in data.features.items() if hasattr(feature, "names")}
            tables = data.with_format("arrow").iter(_BATCH)
            rows = _rows(_of_arrow((batch for table in tables for batch in table.to_batches()), names))
    except UserError as error:
        raise UserError(f"source {source!r}: {error}") from error
    except Exception as error:  # the library raises its own, the network's and the file system's kinds alike
        raise UserError(f"source {source!r} could not be loaded: {_one_line(error)}") from error
    if not rows:
        raise UserError(f"source {source!r} holds no rows; it needs at least one")
    return rows


def hub_parts(source: str) -> tuple[str, str | None, str]:
    """Path or name, configuration and split of `hf:...`; the path of a folder that is there may hold `:` and `@`."""
    whole = source.removeprefix(HUB)
    ends = [len(whole), *(at.start() for at in re.finditer("[:@]", whole))]
    for end in sorted(ends, reverse=True) if whole.startswith(("/", ".")) else []:
        rest = _HUB_REST.fullmatch(whole, end)
        if rest and Path(whole[:end]).is_dir():
            return whole[:end], rest["config"], rest["split"] or "train"
    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise UserError(f"source {source!r}: a Hugging Face data set is written hf:owner/name[:config][@split]")
    return match["path"], match["config"], match["split"] or "train"


def _as_written(builder: Any, split: str) -> list[Row] | None:
    """Rows of a data set as they stand in its CSV, JSON or Parquet files; None where its library has to interpret them.

    The library guesses types: 01 becomes 1, the word None nothing, a text that looks like a date a date.
    """
    import datasets

    config = builder.config
    usual, free = type(config)(), {"name", "version", "data_dir", "data_files", "description", "sep", "delimiter"}
    files = {str(name): [str(file) for file in some] for name, some in (config.data_files or {}).items()}
    endings = {Path(file).suffix.lower() for some in files.values() for file in some}
    said = builder.info.features or any(vars(config)[key] != vars(usual)[key] for key in vars(config).keys() - free)
    if said or not files or not endings <= _WRITTEN.keys():
        return None
    split = "+".join(files) if split == "all" else split
    parts: dict[str, list[Row]] = {name: [] for name in files}
    for name in parts.keys() & set(re.split(r"[^\w.-]+", split)):
        for file in files[name]:
            here = Path(datasets.DownloadManager().download(file) if "://" in file else file)
            ending = _WRITTEN[Path(file).suffix.lower()]
            if ending == ".json" and not _begins_a_list(here):
                ending = ".jsonl"
            if ending == ".parquet" and _is_described(here):
                return None
            parts[name] += _read(here, ending, getattr(config, "sep", ","))
    chosen = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in parts.items()})
    return [row for one in chosen for row in parts[one.splitname][one.from_ : one.to]]


def _begins_a_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _is_described(path: Path) -> bool:
    """Whether a Parquet file says what the columns mean (the names of classes, say) as the `datasets` library does."""
    import pyarrow.parquet

    _checked_size(path, ".parquet")
    return b"huggingface" in (pyarrow.parquet.read_schema(path).metadata or {})


def _csv(path: Path, delimiter: str = ",") -> Iterator[Mapping[str, Any]]:
    text = _text(path)
    csv.field_size_limit(max(len(text), csv.field_size_limit()))  # the file's size is the limit
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        names = list(reader.fieldnames or ())
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"column {twice[0]!r} stands twice in the header")
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more fields than the header")
            yield row
    except csv.Error as error:
        raise ValueError(f"{error}{parted(text.partition(chr(10))[0])}") from error


def parted(header: str) -> str:
    """What to say where a header line seems to be parted by something else than commas."""
    other = max(";\t|", key=header.count)
    return "; fields should be separated by commas" if header.count(other) > header.count(",") else ""


def _jsonl(path: Path) -> Iterable[Mapping[str, Any]]:
    lines = _text(path).split("\n")  # not splitlines(): a JSON string may hold other line ends as they are
    return (_object(line, number) for number, line in enumerate(lines, start=1) if line.strip())


def _text(path: Path) -> str:
    """A file's text; the mark that spreadsheet programs put in front goes. UserError where it is no UTF-8 text."""
    data = path.read_bytes()
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise UserError(f"{name} text, as its first bytes say; save the file as UTF-8")
    if (at := data.find(b"\0")) >= 0:
        raise UserError(f"not UTF-8 text: a zero byte at byte {at} (it may be UTF-16); save the file as UTF-8")
    return data.decode("utf-8-sig")


def _object(line: str, number: int) -> Mapping[str, Any]:
    try:
        row = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error.msg}") from error
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is not an object")
    return row


def _json(path: Path) -> Iterator[Mapping[str, Any]]:
    """The objects of a list one by one, so that reading may stop."""
    text = _text(path)
    at = _after_space(text, 0)
    if text[at : at + 1] != "[":
        raise ValueError("expected a list of objects")
    at = _after_space(text, at + 1)
    while text[at : at + 1] != "]":
        row, at = _DECODER.raw_decode(text, at)
        if not isinstance(row, dict):
            raise ValueError("expected a list of objects")
        yield row
        at = _after_space(text, at)
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
            if text[at : at + 1] == "]":
                raise ValueError(f"a comma before the end of the list, at character {at}")
        elif text[at : at + 1] != "]":
            raise ValueError(f"expected a comma or the end of the list at character {at}")
    if _after_space(text, at + 1) < len(text):
        raise ValueError(f"more than one list, at character {at + 1}")


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. ValueError where a name stands in it twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in an object")
    return found


def _whole(digits: str) -> int:
    if len(digits) > 4000:  # Python converts no more than 4,300
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_int=_whole)


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    """Batch by batch; a value is held once, however many rows it stands in. UserError where they are too many."""
    import pyarrow as pa
    import pyarrow.parquet

    plain = [field.name for field in pyarrow.parquet.read_schema(path) if not pa.types.is_nested(field.type)]
    with pyarrow.parquet.ParquetFile(path, read_dictionary=plain) as file:
        about, names = file.metadata, file.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"column {twice[0]!r} stands twice")
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        size = sum(one.total_byte_size for one in groups)  # a look at a damaged column's own would end the process
        rows = sum(one.num_rows for one in groups)
        if size > MAX_BYTES:
            raise UserError(f"{size:,} bytes when unpacked; at most {MAX_BYTES:,} are read: keep the rows and columns "
                            "that are needed")  # fmt: skip
        if rows * len(names) > MAX_CELLS:
            raise UserError(_too_many(rows * len(names)))
        rest = {field.name: NoText(_kind(field.type)) for field in file.schema_arrow if field.name not in plain}
        if not plain:
            yield from ({**rest} for _ in range(rows))
            return
        for row in _of_arrow(file.iter_batches(_BATCH, columns=plain), {}):
            yield {**row, **rest}


READERS: dict[str, Callable[[Path], Iterable[Mapping[str, Any]]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}
"""Readers by the end of the file name."""

KINDS = ".csv (UTF-8, commas), .jsonl, .json (a list of objects), .parquet"
"""What is read, in words."""

_WRITTEN = {".csv": ".csv", ".tsv": ".csv", ".json": ".json", ".jsonl": ".jsonl", ".ndjson": ".jsonl",
            ".parquet": ".parquet"}  # fmt: skip
"""Endings of files of a data set that are read as they are written, and the reader's."""


def _of_arrow(batches: Iterable[Any], names: Mapping[str, list[str]]) -> Iterator[Row]:
    """Rows of Arrow record batches. names: column of class numbers -> the classes; a negative number is no class."""
    for batch in batches:
        columns = {
            name: [_class(value, names[name]) for value in column.to_pylist()] if name in names else _texts(column)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _class(value: int | None, names: list[str]) -> str:
    return "" if value is None or not 0 <= value < len(names) else names[value]


def _texts(column: Any) -> list[str]:
    """The values of an Arrow array as texts; numbers by the shortest digits that their own precision needs."""
    import pyarrow as pa
    from pyarrow import compute, types

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _texts(column.storage)
    if types.is_dictionary(kind):
        used = compute.unique(column.indices).drop_null()
        known = dict(zip(used.to_pylist(), _texts(column.dictionary.take(used)), strict=True))
        return ["" if index is None else known[index] for index in column.indices.to_pylist()]
    if types.is_string(kind) or types.is_large_string(kind):
        column = column.cast(pa.large_binary())  # whose values need not be UTF-8 to be looked at
    if types.is_nested(kind) or types.is_run_end_encoded(kind) or types.is_interval(kind):
        return [NoText(_kind(kind)) if there else "" for there in column.is_valid().to_pylist()]
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, ArithmeticError):  # times beyond what Python counts
        return [NoText(f"a {kind} out of range") if there else "" for there in column.is_valid().to_pylist()]
    if types.is_float16(kind) or types.is_float32(kind):
        narrow = np.float16 if types.is_float16(kind) else np.float32
        values = [None if value is None else float(str(narrow(value))) for value in values]
    if types.is_decimal(kind):
        values = [None if value is None else format(value, "f") for value in values]
    return [_text_of(value) for value in values]


def _kind(kind: Any) -> str:
    """An Arrow type for a message."""
    return f"a {str(kind).partition('<')[0]}"


def _rows(found: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Rows as texts. Raises UserError where they are more than what is read."""
    rows: list[Row] = []
    cells = letters = 0
    for one in found:
        row = {_column(key): _text_of(value) for key, value in one.items()}
        if len(row) < len(one):
            raise UserError("two columns have names that read alike")
        rows.append(row)
        cells += max(len(row), 1)
        letters += sum(map(len, row.values()))
        if cells > MAX_CELLS:
            raise UserError(_too_many(cells))
        if letters > MAX_BYTES:
            raise UserError(f"more than {MAX_BYTES:,} letters; keep the rows and columns that are needed")
    return rows


def _too_many(cells: int) -> str:
    return f"{cells:,} cells or more; at most {MAX_CELLS:,} are read: keep the rows and columns that are needed"


@lru_cache(maxsize=10_000)
def _column(name: Any) -> str:
    """The name of a column, in composed form (NFC). UserError where it is no text."""
    text = unicodedata.normalize("NFC", str(name))
    if _halved(text):
        raise UserError(f"column {text!r} has a name with half a surrogate pair; rename it")
    return text


def _halved(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which no encoding can write."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _text_of(value: Any) -> str:
    """A text, number or truth value as text; nothing for no value; `NoText` for what is none of them."""
    match value:
        case NoText():
            return value
        case str():
            return NoText("half a surrogate pair") if _halved(value) else str(value)
        case None:
            return ""
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return NoText("bytes that are not UTF-8 text")
        case list():
            return NoText("a list")
        case dict():
            return NoText("an object")
        case float() if value != value:
            return ""
        case float() if value in (float("inf"), float("-inf")):
            return NoText("a number that is not finite")
        case _:
            return str(value)


def _looked(path: Path) -> str:
    """Where a file was looked for, where its name alone does not say."""
    other = Path(path.name)
    here = path.is_absolute() and path.parent != Path.cwd() and other.exists()
    there = f"; {other.absolute()} is in the working directory, which is not looked at" if here else ""
    return f"; give the path of a readable file (paths are relative to the settings file, also with --set){there}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
