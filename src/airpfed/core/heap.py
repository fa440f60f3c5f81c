"""The process's heap: what a round frees is kept for the next one, and nothing is looked through for garbage too early.

By default glibc gives large blocks back to the system at once, and every round pays again for each page it is given: on
virtual machines that can cost more than the arithmetic done in them.
"""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

TRIM_THRESHOLD = -1
MMAP_MAX = -4
ARENA_MAX = -8
"""Parameters of `mallopt`, as in malloc.h."""


def keep_freed() -> None:
    """Ask glibc never to give freed memory back; other systems stay as they are."""
    with suppress(OSError, TypeError, AttributeError):  # no C library to be found, or none with mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(TRIM_THRESHOLD, -1)
        mallopt(MMAP_MAX, 0)
        mallopt(ARENA_MAX, 1)  # one heap for all threads: what one frees another may use


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage in the block, nor later in what is there at its end; of several blocks, in the first.

    Importing packages and loading a model leave half a million objects, all in use, and walking through them again and
    again takes a while. For a later model the packages are there already.
    """
    if not gc.isenabled() or gc.get_freeze_count():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
