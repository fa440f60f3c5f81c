"""Mutated messages, in both directions; what once failed stays."""

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz.messages import Case, cases, check

FAILED = {
    "an empty head stopped the server": Case("devices", "server", "answer", (("head", 0, None),)),
    "1e999 is JSON": Case("tasks", "server", "train", (("fact", "loss", "\x00raw:1e999"),)),
    "a gradient that overflows had been written down": Case("tasks", "device", "train", (("float", "global", 3e38),)),
    "a loss that fills float32": Case("tasks", "server", "train", (("fact", "loss", 3e38),)),
    "a class that there is not": Case("words", "server", "answer", (("fact", "said.0", 3),)),
    "a class below none": Case("words", "server", "answer", (("fact", "said.1", -2),)),
    "true as a class": Case("words", "server", "answer", (("fact", "said.1", True),)),
    "a text of a megabyte": Case("devices", "server", "answer", (("fact", "said.0", "x" * 10**6),)),
    "a count beyond 64 bits": Case("tasks", "device", "train", (("fact", "counted", 2**62),)),
    "a deep table": Case("tasks", "server", "hello", (("fact", "agreement", "\x00raw:" + "[" * 2000),)),
}


@pytest.mark.parametrize("name", FAILED)
def test_what_once_failed_is_refused(name: str) -> None:
    assert check(FAILED[name]) == "refused"


HARMLESS = {
    "something new": ("fact", "new", "x"),
    "a loss of nothing": ("fact", "loss", 0.0),
    "a loss that is large": ("fact", "loss", 999_999.0),
    "another duration": ("fact", "seconds", 3),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("to", ["device", "server"])
@pytest.mark.parametrize("kind", ["train", "answer", "finish"])
def test_what_does_no_harm_is_taken(name: str, to: str, kind: str) -> None:
    assert check(Case("devices", to, kind, (HARMLESS[name],))) == "accepted"  # type: ignore[arg-type]


def test_a_diverged_model_answers_none() -> None:
    assert check(Case("words", "server", "answer", (("fact", "said.0", -1),))) == "accepted"


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases)
def test_every_message_is_used_or_refused_in_a_line(case: Case) -> None:
    assert check(case) in ("accepted", "refused")
