"""When two texts, or two names of a class, are the same to a reader."""

import unicodedata
from functools import cache

_BLANK = frozenset(map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0)))
"""Letters and marks that show nothing although their category says otherwise."""

_SELECTORS = (range(0x180B, 0x1810), range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))
"""Variation selectors: they choose a glyph of the character before them."""


def folded(text: str) -> str:
    """What texts have in common that differ in case, white space, Unicode form or unseen characters only.

    Unicode form: composed or not, full width, ligatures and other compatibility forms (NFKC with full case folding).
    """
    if not text.isascii():
        text = _drop_unseen(text)
        for _ in range(2):  # folding can undo the form, and the form the folding
            text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", text).casefold())
    text = _drop_unseen(text.casefold())
    return " ".join(text.split())


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen."""
    return all(char.isspace() or _unseen(char) for char in text)


def name_of(text: str) -> str:
    """The name of a class or a device: composed (NFC), without white space or unseen characters at its ends."""
    text = unicodedata.normalize("NFC", text)
    first, last = 0, len(text)
    while first < last and (text[first].isspace() or _unseen(text[first])):
        first += 1
    while first < last and (text[last - 1].isspace() or _unseen(text[last - 1])):
        last -= 1
    return text[first:last]


def _drop_unseen(text: str) -> str:
    return text if text.isprintable() and text.isascii() else "".join(char for char in text if not _unseen(char))


@cache
def _unseen(char: str) -> bool:
    """Whether a character shows nothing and is no white space: controls, formats, fillers, variation selectors."""
    if char.isspace():
        return False
    return (
        unicodedata.category(char) in ("Cc", "Cf") or char in _BLANK or any(ord(char) in block for block in _SELECTORS)
    )
