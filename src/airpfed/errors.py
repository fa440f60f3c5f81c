"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can put right: a setting, a file, a name.

    Its text is one line that names the setting or file, what was wrong and what would be right. The command line prints
    that line and exits with code 2; it never prints a traceback for it.
    """
