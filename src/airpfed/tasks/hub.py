"""Tables of text from Hugging Face data sets, on the hub or in a local folder."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from airpfed.core.errors import UserError, one_line
from airpfed.core.paths import HUB
from airpfed.tasks.table_files import (
    BATCH_ROWS,
    UNKNOWN_FORM,
    Row,
    TextForm,
    arrow_rows,
    check_file,
    path_hint,
    read_as,
    to_rows,
)

_HUB_NAME = re.compile(r"hf:(?P<path>[^@]+?)(:(?P<config>[^@:/\\]+))?(@(?P<split>.+))?")
_HUB_SUFFIX = re.compile(r"(:(?P<config>[^@:/\\]+))?(@(?P<split>.+))?")

_DATA_SET_ENDINGS = {
    ".csv": ".csv",
    ".tsv": ".csv",
    ".json": ".json",
    ".jsonl": ".jsonl",
    ".ndjson": ".jsonl",
    ".parquet": ".parquet",
}
"""Ending of a data set's file -> ending of its reader."""


STREAM_ROWS = 256
"""Rows of a streamed data set that are converted to text at a time."""


def read_hub(source: str, form: TextForm = UNKNOWN_FORM) -> list[Row]:
    """Rows of `hf:owner/name[:config][@split]`. A local folder may replace owner/name; the default split is train.

    Class numbers become class names where the data set has them; CSV and JSON files are read as by `read_file`, in
    `form`. Raises UserError where the data set cannot be loaded.
    """
    path, config, split, local = _located_parts(source)
    try:
        import datasets

        rows = _read_unconverted(datasets.load_dataset_builder(path, config), split, form) if local else None
        if rows is None:
            data = datasets.load_dataset(path, config, split=split)
            if data.info.builder_name in ("csv", "json"):
                rows = _read_unconverted(datasets.load_dataset_builder(path, config), split, form)
        if rows is None:
            tables = data.with_format("arrow").iter(BATCH_ROWS)
            batches = (batch for table in tables for batch in table.to_batches())
            rows = to_rows(arrow_rows(batches, _class_names(data), form.nested))
    except UserError as error:
        raise UserError(f"source {source!r}: {error}") from error
    except Exception as error:  # the library raises its own types, and those of the network and the file system
        raise UserError(f"source {source!r} could not be loaded: {one_line(error)}") from error
    if not rows:
        raise UserError(f"source {source!r} holds no rows; it needs at least one")
    return rows


def stream_hub(source: str, form: TextForm = UNKNOWN_FORM) -> Iterator[Row]:
    """Yield the rows of `read_hub` one after another, in the source's order; what is not taken is not downloaded.

    Types are those of the library `datasets`, except that CSV files are read as text. Raises UserError, also in the
    middle, where the data set cannot be loaded.
    """
    path, config, split, _ = _located_parts(source)
    try:
        import datasets

        options: dict[str, Any] = {}
        if datasets.load_dataset_builder(path, config).info.builder_name == "csv":
            given = {"sep": form.delimiter, "encoding": form.encoding}
            options = {"keep_default_na": False} | {key: text for key, text in given.items() if text}
            head = datasets.load_dataset(path, config, split=split, streaming=True, **options)
            columns: dict[str, Any] = next(iter(head), {})  # the first row: with types for its columns, none is guessed
            options["features"] = datasets.Features({name: datasets.Value("string") for name in columns})
        data = datasets.load_dataset(path, config, split=split, streaming=True, **options)
        names = _class_names(data) if data.features else {}
        for table in data.with_format("arrow").iter(STREAM_ROWS):
            yield from arrow_rows(table.to_batches(), names, form.nested)
    except UserError as error:
        raise UserError(f"source {source!r}: {error}") from error
    except Exception as error:  # as in `read_hub`
        raise UserError(f"source {source!r} could not be streamed: {one_line(error)}") from error


def _class_names(data: Any) -> dict[str, list[str]]:
    """Column of class numbers -> names of its classes."""
    return {key: feature.names for key, feature in data.features.items() if hasattr(feature, "names")}


def _located_parts(source: str) -> tuple[str, str | None, str, bool]:
    """`hub_parts`, and whether the path is a local folder. Raises UserError if it is missing or ambiguous."""
    path, config, split = hub_parts(source)
    local = path.startswith(("/", "./", "../")) or path in (".", "..")
    if local and not Path(path).is_dir():
        raise UserError(f"source {source!r}: no such folder{path_hint(Path(path))}")
    if not local and Path(path).exists():
        raise UserError(
            f"source {source!r}: the working directory holds {path!r}, which would be taken for the data set; a "
            f"settings file takes the folder beside it that it calls hf:./{path}"
        )
    return path, config, split, local


def hub_parts(source: str) -> tuple[str, str | None, str]:
    """Path or name, configuration and split of `hf:...`. The path of an existing folder may contain `:` and `@`."""
    text = source.removeprefix(HUB)
    ends = [len(text), *(match.start() for match in re.finditer("[:@]", text))]
    for end in sorted(ends, reverse=True) if text.startswith(("/", ".")) else []:
        suffix = _HUB_SUFFIX.fullmatch(text, end)
        if suffix and Path(text[:end]).is_dir():
            return text[:end], suffix["config"], suffix["split"] or "train"
    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise UserError(f"source {source!r}: a Hugging Face data set is written hf:owner/name[:config][@split]")
    return match["path"], match["config"], match["split"] or "train"


def _read_unconverted(builder: Any, split: str, form: TextForm) -> list[Row] | None:
    """Rows of a data set as written in its CSV, JSON or Parquet files; None where `datasets` has to interpret them.

    `datasets` guesses types: it turns 01 into 1, the word None into a missing value, and a text that looks like a date
    into a date.
    """
    import datasets

    config = builder.config
    defaults, ignored = type(config)(), {"name", "version", "data_dir", "data_files", "description", "sep", "delimiter"}
    files = {str(name): [str(file) for file in paths] for name, paths in (config.data_files or {}).items()}
    endings = {Path(file).suffix.lower() for paths in files.values() for file in paths}
    options = any(vars(config)[key] != vars(defaults)[key] for key in vars(config).keys() - ignored)
    if builder.info.features or options or not files or not endings <= _DATA_SET_ENDINGS.keys():
        return None
    split = "+".join(files) if split == "all" else split
    parts: dict[str, list[Row]] = {name: [] for name in files}
    for name in parts.keys() & set(re.split(r"[^\w.-]+", split)):
        for file in files[name]:
            path = Path(datasets.DownloadManager().download(file) if "://" in file else file)
            ending = _DATA_SET_ENDINGS[Path(file).suffix.lower()]
            if ending == ".json":
                with path.open("rb") as stream:
                    is_list = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
                ending = ".json" if is_list else ".jsonl"
            if ending == ".parquet" and _has_features(path):
                return None
            delimiter = form.delimiter or getattr(config, "sep", ",")
            parts[name] += read_as(path, ending, replace(form, delimiter=delimiter))
    ranges = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in parts.items()})
    return [row for part in ranges for row in parts[part.splitname][part.from_ : part.to]]


def _has_features(path: Path) -> bool:
    """Whether a Parquet file describes its columns for `datasets`, for example by the names of classes."""
    import pyarrow.parquet

    check_file(path, ".parquet")
    return b"huggingface" in (pyarrow.parquet.read_schema(path).metadata or {})
