"""Commands of airpfed in this process, and what they leave in a folder."""

import contextlib
import io
import itertools
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from airpfed import cli
from airpfed.experiment import run


@dataclass(frozen=True)
class Done:
    """How a command ended. traceback: of what no command may raise."""

    code: int
    out: str
    err: str
    traceback: str = ""


def command(*words: str | Path) -> Done:
    """`airpfed WORDS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    trace, code = "", 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["airpfed", *map(str, words)]),
    ):
        try:
            cli.main()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0
        except BaseException:
            trace = traceback.format_exc()
    return Done(code, out.getvalue(), err.getvalue(), trace)


@contextlib.contextmanager
def stopping_after(rounds: int) -> Iterator[None]:
    """Runs of this process stop after so many rounds, as by Ctrl-C."""

    @contextlib.contextmanager
    def interruptible(_screen: object) -> Iterator[object]:
        asked = itertools.count()
        yield lambda: next(asked) >= rounds

    with mock.patch.object(run, "interruptible", interruptible):
        yield


def good(done: Done) -> Done:
    """The same, if it went well."""
    assert done.code == 0 and not done.traceback, (done.code, done.err, done.traceback)
    return done


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, byte by byte; where a link points."""
    found = {}
    for below, _, names in os.walk(folder):
        for name in names:
            path = Path(below) / name
            found[str(path.relative_to(folder))] = (
                str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
            )
    return found


TIMES = ("seconds", "ms")


def timeless(data: bytes) -> object:
    """JSON, or JSON lines, without the wall-clock times in it."""

    def without(tree: object) -> object:
        if isinstance(tree, dict):
            return {key: without(value) for key, value in tree.items() if key not in TIMES}
        return [without(value) for value in tree] if isinstance(tree, list) else tree

    try:
        return without(json.loads(data))
    except ValueError:
        return [without(json.loads(line)) for line in data.splitlines()]
