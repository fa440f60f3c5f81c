"""Texts that a reader takes for the same are the same, whatever their Unicode form; others stay apart."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airpfed.tasks.text import fold_case, is_blank, normalize_name


@given(st.text())
def test_folding_is_the_same_for_every_form_case_and_spacing(text: str) -> None:
    plain = fold_case(text)
    assert fold_case(plain) == plain
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert fold_case(unicodedata.normalize(form, text)) == plain
    assert fold_case(text.casefold()) == plain and fold_case(f"\u3000\u200b{text}\u00a0\n") == plain


@pytest.mark.parametrize("plane", range(0, sys.maxunicode + 1, 0x10000))
def test_every_character_folds_alike_in_every_form(plane: int) -> None:
    for code in range(plane, plane + 0x10000, 7):
        if not 0xD800 <= code < 0xE000:
            text = f"a{chr(code)}b"
            assert {fold_case(unicodedata.normalize(form, text)) for form in ("NFC", "NFD", "NFKC")} == {
                fold_case(text)
            }


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("STRASSE", "straße"),
        ("good\u00a0film", "good film"),
        ("good\u3000 film", "good film"),
        ("go\u200bod", "good"),
        ("\ufeffgood", "good"),
        ("ｇｏｏｄ", "good"),
        ("ﬁlm", "film"),
        ("so\u00adft", "soft"),
        ("❤\ufe0f", "❤"),
        ("ΟΔΟΣ", "οδος"),
    ],
)
def test_twins(one: str, two: str) -> None:
    assert fold_case(one) == fold_case(two)


@pytest.mark.parametrize(("one", "two"), [("ı", "i"), ("a b", "ab"), ("é", "e"), ("no. 1", "no. 2"), ("и", "й")])
def test_no_twins(one: str, two: str) -> None:
    assert fold_case(one) != fold_case(two)


@given(st.text(st.characters(max_codepoint=126)))
def test_plain_text_is_compared_as_ever(text: str) -> None:
    visible = "".join(char for char in text if char.isspace() or char.isprintable())
    assert fold_case(text) == " ".join(visible.casefold().split())


def test_blank_texts_and_names() -> None:
    assert all(map(is_blank, ("", " \n", "\u200b", "\ufeff\u3000", "\u2800", "\0")))
    assert not any(map(is_blank, ("a", "\u200ba", "0", ".")))
    assert (
        normalize_name(" e\u0301 \u200b") == "\u00e9"
        and normalize_name("Spam") != normalize_name("spam")
        and normalize_name(" \u200b ") == ""
    )
