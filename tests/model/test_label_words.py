"""Which tokens a label's score reads: first tokens where these differ, else whole words with what tells them apart."""

from pathlib import Path
from typing import Any

import pytest

from airpfed.core.errors import UserError
from airpfed.model.tokens import encode_choices, encode_labels, tokenize
from support.tokenizers import real, tokenizer

PROMPTS = ["the film was good\nLabel:", "bad\nLabel:"]
CLASSES = (" New York", " New Delhi", " 0", " 1", " good", " good enough")
END = 2


@pytest.fixture(params=["bytes", "sentencepiece"])
def any_tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return real("tokenizer.model.v1", tmp_path) if request.param == "sentencepiece" else tokenizer(request.param)


def test_where_first_tokens_differ_auto_is_the_path_of_first_tokens() -> None:
    made, words = tokenizer("bytes"), (" good", " bad film", " red")
    labels = encode_labels(made, PROMPTS, words, "x", "auto", None)
    prompts, choices = encode_choices(made, PROMPTS, words, "x")
    assert labels.first_tokens and labels.prompts == prompts
    assert tuple(word[0] for word in labels.words) == choices
    whole = encode_labels(made, PROMPTS, words, "x", "words", None)
    assert not whole.first_tokens and [word[0] for word in whole.words] == list(choices)


def test_a_common_first_token_belongs_to_the_prompt_and_the_first_that_differ_are_scored() -> None:
    """New York and New Delhi alone need no whole words."""
    made = tokenizer("metaspace")
    labels = encode_labels(made, PROMPTS, (" good film", " good story"), "x", "auto", None)
    assert labels.first_tokens and labels.prompts[0] != tokenize(made, PROMPTS)[0]


def test_whole_words_are_the_text_that_follows_the_prompt(any_tokenizer: Any) -> None:
    labels = encode_labels(any_tokenizer, PROMPTS, CLASSES, "x", "auto", END)
    assert not labels.first_tokens
    for text, prompt in zip(PROMPTS, labels.prompts, strict=True):
        for word, tokens in zip(CLASSES, labels.words, strict=True):
            read = (*prompt, *tokens)
            joined = tokenize(any_tokenizer, [text + word])[0]
            assert read == ((*joined, END) if word == " good" else joined)


def test_no_word_begins_as_another_does(any_tokenizer: Any) -> None:
    """Without the end token, good enough could never be more probable than good."""
    words = encode_labels(any_tokenizer, PROMPTS, CLASSES, "x", "words", END).words
    assert not [(a, b) for a in words for b in words if a != b and b[: len(a)] == a]
    assert words[4][-1] == END and END not in words[5]


def test_without_an_end_token_the_words_are_named() -> None:
    with pytest.raises(UserError, match=r"^tasks\.x\.labels: label word ' good enough' begins with ' good', and the"):
        encode_labels(tokenizer("bytes"), PROMPTS, CLASSES, "x", "auto", None)


def test_words_of_equal_tokens_are_refused() -> None:
    made = tokenizer("wordpiece")  # unknown characters become one token
    with pytest.raises(UserError, match=r"label words ' \u4e00' and ' \u4e8c' have the same tokens"):
        encode_labels(made, PROMPTS, (" \u4e00", " \u4e8c", " good"), "x", "auto", END)


def test_words_that_depend_on_the_prompt_are_refused() -> None:
    made = tokenizer("bytes")
    with pytest.raises(UserError, match=r"^tasks\.x\.prompt: the tokens of label words depend on how a prompt ends"):
        encode_labels(made, ["a st", "the fi"], ("ory", "lm"), "x", "words", END)
