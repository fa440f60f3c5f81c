"""The one exception a user is meant to read, and help with misspelt names."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: a setting, a file, a name.

    Its text is one line that names the setting or file, what was wrong and what would be right. The command line prints
    that line and exits with code 2; it never prints a traceback for it.
    """


def hint(name: str, known: Iterable[str]) -> str:
    """Text behind an error about an unknown name: `; did you mean 'x'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
