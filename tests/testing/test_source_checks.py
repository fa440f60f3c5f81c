"""The contract of sources: what breaks it is told how."""

import random

import pytest

from airpfed import testing
from airpfed.tasks import packages
from airpfed.tasks.sources import SOURCES

ROWS = [{"text": f"text {n}", "label": ("good", "bad")[n % 2], "year": 2000 + n} for n in range(10)]


def years(*, since: int = 2000):
    """A source as a user would write it; rows may be made one by one."""
    for row in ROWS:
        if row["year"] >= since:
            yield dict(row)


def chats():
    return [{"messages": [{"role": "user", "content": str(n)}, {"role": "assistant", "content": "a"}]} for n in "ab"]


@pytest.mark.parametrize(("source", "options"), [(years, {}), (years, {"since": 2004}), (chats, {})])
def test_a_users_function(source, options):
    report = testing.check_source(source, **options)
    assert report.ok, str(report)
    assert ": all 7 checks pass" in str(report)


def test_a_row_of_the_dict_goes_by_its_name(monkeypatch):
    monkeypatch.setitem(SOURCES.data, "years", years)
    assert testing.check_source("years", since=2003).results[0].detail == "7 rows"


def test_our_source_keeps_the_contract(monkeypatch):
    table = b"text,label\na good day,good\na bad day,bad\n"
    monkeypatch.setattr(packages, "read_member", lambda wheel, member: table)
    report = testing.check_source("package", wheel="p", version="1.0", sha256="0" * 64, member="p/data.csv")
    assert report.ok and set(SOURCES) == {"package"}, str(report)


ONCE = iter(ROWS)


def iterator_made_once():
    return ONCE


def shuffles():
    return random.sample(ROWS, len(ROWS))


def one_dict():
    row = {}
    for number in range(10):
        row["text"] = f"text {number}"
        yield row


@pytest.mark.parametrize(
    ("source", "check", "words"),
    [
        (iterator_made_once, "every call gives all rows", "make the rows at every call"),
        (shuffles, "deterministic", "give rows a fixed order"),
        (one_dict, "rows stay as they are", "make a new dict for every row"),
        (lambda: "text", "gives rows", "returns str"),
        (lambda: [], "gives rows", "gives no rows"),
        (lambda: [("a", "b")], "gives rows", "row 1 is tuple"),
        (lambda: [{"text": "a"}, {"text": "b", "label": "x"}], "columns", "row 2 has the column 'label', which row 1"),
        (lambda: [{"text": {1, 2}}, {"text": "b"}], "values", "row 1 holds a set in column 'text'"),
        (lambda: [{"text": "a", "score": float("inf")}], "values", "a number that is not finite"),
        (lambda: [{"caf\u00e9": "a", "cafe\u0301": "b"}], "columns", "names that look the same"),
        (lambda: [{"text": "a"}] * 10, "rows differ", "only 1 of 10 rows differ"),
    ],
)
def test_a_planted_fault_is_named(source, check, words):
    report = testing.check_source(source)
    failures = {result.name: result.detail for result in report.failures}
    assert check in failures, str(report)
    assert words in failures[check]
