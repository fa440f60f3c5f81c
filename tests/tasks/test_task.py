"""From a file to a task: duplicates never cross the split, and the seed fixes everything."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from airpfed.errors import UserError
from airpfed.tasks.load import Source
from airpfed.tasks.split import Shares
from airpfed.tasks.task import build

SHARES = Shares(devices=4, samples_per_device=10, dev_samples=15, test_samples=25)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """100 distinct texts, each three times, in other case and spacing."""
    texts = [
        (f"text  number {i}", f"Text Number {i} ", f"TEXT number {i}")[again] for i in range(100) for again in range(3)
    ]
    rows = [
        {"text": text, "label": "ab"[int(text.split()[2]) % 2], "who": f"w{int(text.split()[2]) % 5}"} for text in texts
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Source("mine", str(path))


def test_build(source: Source) -> None:
    task = build(source, SHARES, 1)
    assert (task.name, task.kind, task.labels) == ("mine", "classify", (" a", " b"))
    assert [len(device) for device in task.train] == [10] * 4 and (len(task.dev), len(task.test)) == (15, 25)
    everything = [s for part in (*task.train, task.dev, task.test) for s in part]
    assert len({" ".join(s.prompt.lower().split()) for s in everything}) == len(everything) == 80
    assert len(task.source_sha256) == 64


def test_seed_fixes_the_task(source: Source) -> None:
    shares = replace(SHARES, split="dirichlet", sizes="lognormal", sizes_sigma=0.5)
    assert build(source, shares, 1) == build(source, shares, 1)
    assert build(source, shares, 1).test != build(source, shares, 2).test
    assert build(source, shares, 1).source_sha256 == build(source, shares, 2).source_sha256


def test_too_few_samples_counts_the_distinct_ones(source: Source) -> None:
    with pytest.raises(UserError, match="there are 100 distinct samples"):
        build(source, replace(SHARES, test_samples=90), 1)


def test_column(source: Source) -> None:
    source, shares = replace(source, device_column="who"), replace(SHARES, split="column", devices=0)
    assert [{s.device for s in device} for device in build(source, shares, 1).train] == [{f"w{i}"} for i in range(5)]
    with pytest.raises(UserError, match="devices = 4: the device column has 5 values"):
        build(source, replace(shares, devices=4), 1)


def test_a_value_that_the_split_takes_away_is_reported(source: Source) -> None:
    source = replace(source, device_column="text")
    with pytest.raises(UserError, match="devices = 100: the device column has 60 values"):
        build(source, replace(SHARES, split="column", devices=0), 1)


def test_tasks_that_split_alike_never_train_on_each_others_test_texts(source: Source) -> None:
    """Labels may disagree: only the texts decide. Training texts are dealt by each task's own name."""
    turned = replace(source, name="other", labels={"a": "b", "b": "a"})
    one, two = build(source, SHARES, 1), build(turned, replace(SHARES, split_as="mine"), 1)
    assert [s.prompt for s in one.test] == [s.prompt for s in two.test] and one.dev != two.dev
    assert [s.answer for s in one.test] != [s.answer for s in two.test]
    kept = {s.prompt for s in (*one.test, *one.dev)}
    assert not kept & {s.prompt for device in two.train for s in device}
    assert [s.prompt for s in one.train[0]] != [s.prompt for s in two.train[0]]
    alone = build(turned, SHARES, 1)
    assert kept & {s.prompt for device in alone.train for s in device}, "without it they would"
