"""Readers of the catalogue's files.

Each reader takes {file name: bytes} and returns rows (text, class name or reply) in file order. Every text becomes one
line: runs of white space become one space.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import PurePosixPath

Rows = list[tuple[str, str]]


def trec(files: Mapping[str, bytes]) -> Rows:
    """Lines `COARSE:fine question`; the class is COARSE."""
    lines = [line for data in files.values() for line in data.decode("latin-1").splitlines() if line.strip()]
    return [(_one_line(line.split(" ", 1)[1]), line.split(":", 1)[0]) for line in lines]


def sms(files: Mapping[str, bytes]) -> Rows:
    """CSV with the columns spam (0 or 1) and text; the class is ham or spam."""
    # The file was written with stray quotes read as fields over many lines: eight of its messages hold 737 other
    # messages, each after a line end, with its own class and a tab. Split again, these are the original 5,574 messages.
    rows = [row for data in files.values() for row in csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""))]
    lines = [line for row in rows for line in f"{('ham', 'spam')[int(row['spam'])]}\t{row['text']}".split("\n")]
    return [(_one_line(text), name) for name, text in (line.split("\t", 1) for line in lines)]


def movies(files: Mapping[str, bytes]) -> Rows:
    """Tab-separated id, sentiment from -4 to 4, text; snippets with a sentiment between -0.5 and 0.5 are left out."""
    lines = [line for data in files.values() for line in data.decode("utf-8").split("\n")[1:] if line.strip()]
    rated = [(float(score), text) for _, score, text in (line.split("\t", 2) for line in lines)]
    return [(_one_line(text), "positive" if score > 0 else "negative") for score, text in rated if abs(score) >= 0.5]


def bbc(files: Mapping[str, bytes]) -> Rows:
    """One text file per article; the class is the name of its folder."""
    texts = {PurePosixPath(name): data for name, data in files.items() if name.endswith(".txt")}
    return [(_one_line(data.decode("latin-1")), path.parent.name) for path, data in texts.items()]


def reuters(files: Mapping[str, bytes]) -> Rows:
    """Tab-separated class and text after three header rows."""
    lines = [line for data in files.values() for line in data.decode("utf-8").split("\n")[3:] if line.strip()]
    return [(_one_line(text), name) for name, text in (line.split("\t", 1) for line in lines)]


def dialogue(files: Mapping[str, bytes]) -> Rows:
    """CSV with the columns statement and reply; pairs without one of the two are left out."""
    rows = [row for data in files.values() for row in csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""))]
    pairs = [(_one_line(row["statement"]), _one_line(row["reply"])) for row in rows]
    return [(statement, reply) for statement, reply in pairs if statement and reply]


def _one_line(text: str) -> str:
    return " ".join(text.split())
