"""From a file to a task: duplicates never cross the split, and the seed fixes everything."""

import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from airpfed.core.errors import UserError
from airpfed.tasks.sample import Task
from airpfed.tasks.sources import Source, load_source
from airpfed.tasks.split import Shares, build_tasks, build_test_task

SHARES = Shares(devices=4, samples_per_device=10, dev_samples=15, test_samples=25)


def build(source: Source, shares: Shares, seed: int) -> Task:
    (task,) = build_tasks([(source, shares)], seed)
    return task


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


def test_groups_are_in_one_part_and_told(source: Source) -> None:
    """Also across tasks of one shuffle, whose own groups could fall otherwise."""
    source = replace(source, group_column="who")
    task = build(source, replace(SHARES, dev_samples=5, test_samples=15), 1)
    who = [{s.group for s in part} for part in ([s for d in task.train for s in d], task.dev, task.test)]
    assert [len(part) for part in who] == [3, 1, 1] and len(set().union(*who)) == 5
    (note,) = task.counts.notes
    assert note == (
        "groups in train, dev and test: 3, 1 and 1, none in two of them; 20 samples are in none, because the other "
        "samples of their group fill dev or test"
    )
    with pytest.raises(UserError, match=r"tasks.mine.group names 'whom', but .* did you mean 'who'"):
        build(replace(source, group_column="whom"), SHARES, 1)
    other = replace(source, name="other", classes=("a", "b"), label_column="label")
    tasks = build_tasks([(source, replace(SHARES, test_samples=15, dev_samples=5)),
                         (other, replace(SHARES, test_samples=25, dev_samples=5, split_as="mine"))], 1)  # fmt: skip
    held_out = {s.group for task in tasks for s in (*task.dev, *task.test)}
    assert not held_out & {s.group for task in tasks for device in task.train for s in device}


def test_strata(source: Source) -> None:
    task = build(source, replace(SHARES, stratify=True), 1)
    assert [sum(s.label for s in part) for part in (task.dev, task.test)] in ([7, 12], [7, 13], [8, 12], [8, 13])
    assert build_test_task(source, replace(SHARES, stratify=True), 1).test == task.test != build(source, SHARES, 1).test


def test_column(source: Source) -> None:
    source, shares = (
        replace(source, device_column="who"),
        replace(SHARES, split="column", split_options={"column": "who"}, devices=0),
    )
    assert [{s.device for s in device} for device in build(source, shares, 1).train] == [{f"w{i}"} for i in range(5)]
    with pytest.raises(UserError, match="devices = 4: the device column has 5 values"):
        build(source, replace(shares, devices=4), 1)


def test_a_value_that_the_split_takes_away_is_reported(source: Source) -> None:
    source = replace(source, device_column="text")
    with pytest.raises(UserError, match="devices = 100: the device column has 60 values"):
        build(source, replace(SHARES, split="column", split_options={"column": "who"}, devices=0), 1)


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


TEXTS = st.sampled_from(
    ["caf\u00e9", "cafe\u0301", "CAF\u00c9", "tea", " TEA", "t\u200bea", "ｔｅａ", "milk\u00a0x", "milk x", "wine"]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.builds("{} {}".format, TEXTS, st.integers(0, 6)),
            "one": st.sampled_from(["a", "b", "a ", ""]),
            "two": st.sampled_from(["x", "y", "", ""]),
        }
    ),
    min_size=30,
    max_size=80,
)


def plain(prompt: str) -> str:
    shown = "".join(char for char in prompt if unicodedata.category(char) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", shown).casefold().split())


@settings(
    max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(ROWS, st.integers(0, 9), st.sampled_from([0, 4, 6]), st.booleans())
def test_no_text_is_tested_on_and_trained_on(
    tmp_path: Path, rows: list[dict[str, str]], seed: int, cut: int, apart: bool
) -> None:
    """Whatever its spelling, in its own task or one that splits alike; their columns need not have the same gaps."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sources = [
        Source(name, str(path), "generate", "{text}:", label_column=name, max_chars=cut or None, max_empty_share=1.0)
        for name in ("one", "two")
    ]
    shares = Shares(devices=1, samples_per_device=50, dev_samples=1, test_samples=2)
    second = shares if apart else replace(shares, split_as="one")
    try:
        tasks = build_tasks([(sources[0], shares), (sources[1], second)], seed)
    except UserError as error:
        assert re.search("no text in column|distinct samples|samples left to train on", str(error))
        return
    for task in tasks:
        held = [plain(s.prompt) for other in ([task] if apart else tasks) for s in (*other.dev, *other.test)]
        trained = [plain(s.prompt) for device in task.train for s in device]
        assert not set(held) & set(trained) and len(set(trained)) == len(trained)
        source = sources[task.name == "two"]
        assert task.counts.rows == task.counts.skipped + task.counts.duplicates + len(load_source(source, 0).samples)


def test_what_another_task_tests_on_is_kept_from_training_and_counted(tmp_path: Path) -> None:
    """Its rows without a label are not the other's, so that the shuffles of the two differ."""
    rows = [{"text": f"t{i}", "one": "ab"[i % 2], "two": "xy"[i % 2] if i % 10 else ""} for i in range(100)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one = Source("one", str(tmp_path / "rows.jsonl"), label_column="one", prompt="{text}")
    two = replace(one, name="two", label_column="two", max_empty_share=0.1)
    shares = Shares(devices=1, samples_per_device=100, dev_samples=10, test_samples=20)
    first, second = build_tasks([(one, shares), (two, replace(shares, split_as="one"))], 1)
    assert second.counts.skipped == 10 and first.counts.barred > 0 and second.counts.barred > 0
    assert len(first.train[0]) == 70 - first.counts.barred
    held = {s.prompt for s in (*second.dev, *second.test)}
    assert held and not held & {s.prompt for s in first.train[0]}
    assert build(one, shares, 1).counts.barred == 0 and build(one, shares, 1).test == first.test


def test_the_server_holds_out_what_the_simulator_does(source: Source) -> None:
    for shares in (SHARES, replace(SHARES, split_as="another")):
        task, held = build(source, shares, 1), build_test_task(source, shares, 1)
        assert (task.dev, task.test, task.names, task.counts) == (held.dev, held.test, held.names, held.counts)
