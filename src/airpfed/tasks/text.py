"""Equality of texts, and of class names, as a reader sees it."""

import unicodedata
from functools import cache

_BLANK = frozenset(map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0)))
"""Invisible characters of categories whose other characters are visible."""

_SELECTORS = (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
"""Variation selectors, which choose a glyph of the character before them."""


def fold_case(text: str) -> str:
    """A key that is equal for texts that differ only in case, white space, Unicode form or invisible characters.

    Unicode form: composed or decomposed, full width, ligatures and other compatibility forms (NFKC with full case
    folding).
    """
    if not text.isascii():
        text = _drop_invisible(text)
        for _ in range(2):  # case folding can undo the normal form, and the normal form the folding
            text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", text).casefold())
    text = _drop_invisible(text.casefold())
    return " ".join(text.split())


def is_blank(text: str) -> bool:
    """Whether a text has no visible character."""
    return all(char.isspace() or _is_invisible(char) for char in text)


def normalize_name(text: str) -> str:
    """The name of a class or device: composed (NFC), without white space or invisible characters at its ends."""
    text = unicodedata.normalize("NFC", text)
    first, last = 0, len(text)
    while first < last and (text[first].isspace() or _is_invisible(text[first])):
        first += 1
    while first < last and (text[last - 1].isspace() or _is_invisible(text[last - 1])):
        last -= 1
    return text[first:last]


def _drop_invisible(text: str) -> str:
    return text if text.isprintable() and text.isascii() else "".join(char for char in text if not _is_invisible(char))


@cache
def _is_invisible(char: str) -> bool:
    """Whether a character is invisible without being white space: controls, formats, fillers, variation selectors."""
    if char.isspace():
        return False
    return (
        unicodedata.category(char) in ("Cc", "Cf") or char in _BLANK or any(ord(char) in block for block in _SELECTORS)
    )
