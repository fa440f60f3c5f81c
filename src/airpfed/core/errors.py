"""The exception for faults that the user can correct, and suggestions for misspelt names."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A fault in a setting, a file or a name that the user can correct.

    The text is one line. It names the setting or file, what is wrong and what would be right. The command line prints
    the line without a traceback and exits with code 2. Characters that do not print are escaped, because quoted text
    must not move the cursor.

    >>> import airpfed as ap
    >>> ap.single_cell(antenas=8)
    Traceback (most recent call last):
    airpfed.core.errors.UserError: single_cell: radio.antenas: unknown key; did you mean 'antennas'?
    """

    def __init__(self, text: str) -> None:
        """Take the line. Several problems may have a line each."""
        super().__init__(printable(text))


def printable(text: str) -> str:
    """Escape every character that does not print, as Python would. Line breaks stay."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def hint(name: str, valid_names: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for an unknown name, or an empty text if no valid name is close."""
    near = difflib.get_close_matches(name, list(valid_names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an exception's text, cut at `limit` characters, or its type's name without a text."""
    lines = str(error).strip().splitlines()
    return lines[0][:limit] if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    """Return an exception's text as a single line, or its type's name without a text."""
    return " ".join(str(error).split()) or type(error).__name__
