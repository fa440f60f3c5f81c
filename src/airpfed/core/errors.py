"""The one exception a user is meant to read, and help with misspelt names."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: a setting, a file, a name.

    Its text is one line that names the setting or file, what was wrong and what would be right. The command line prints
    that line and exits with code 2; it never prints a traceback for it. Characters that do not print are spelt out, so
    that nothing it quotes can move the cursor.
    """

    def __init__(self, text: str) -> None:
        """Take the line, or several lines."""
        super().__init__(printable(text))


def printable(text: str) -> str:
    """The text with every character that does not print, line breaks aside, as Python would escape it."""
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def hint(name: str, known: Iterable[str]) -> str:
    """Text behind an error about an unknown name: `; did you mean 'x'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
