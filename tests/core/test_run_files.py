"""Records on disk, and sums of ledgers."""

import errno
import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, MeanSquaredErrors, RoundRecord, SlotError


def row(number: int) -> RoundRecord:
    error = SlotError(claimed=0.1, measured=0.2, bias=0.05, variance=0.15, silence=1.0, scale=3e-17)
    return RoundRecord(
        round=number, loss={"a": 0.5}, mse=MeanSquaredErrors(s=error, p={"a": error}), pi=0.2, pi_claimed=0.1,
        ledger=Ledger(channel_uses=3), seconds={"air": 0.1},
    )  # fmt: skip


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "records.jsonl"
    for number in (1, 2, 3):
        run_files.append_record(path, row(number))
    return path


def test_what_is_appended_is_loaded(file):
    assert run_files.load_records(file) == [row(1), row(2), row(3)]


def test_no_file_is_no_record(tmp_path):
    assert run_files.load_records(tmp_path / "records.jsonl") == []


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_last_line_cut_short_is_dropped(file, cut):
    text = file.read_text()
    file.write_text(text[: -1 - cut])
    assert run_files.load_records(file) == [row(1), row(2)]


def test_a_last_line_without_its_newline_is_whole(file):
    file.write_text(file.read_text().rstrip("\n"))
    assert run_files.load_records(file) == [row(1), row(2), row(3)]


def test_a_bad_line_in_the_middle_is_refused(file):
    first, second, third = file.read_text().splitlines()
    file.write_text("\n".join([first, second[:-5], third]) + "\n")
    with pytest.raises(UserError, match=rf"{file}: line 2 is not a round's record"):
        run_files.load_records(file)


def test_rewriting_replaces_all_lines(file):
    run_files.write_records(file, [row(1)])
    assert run_files.load_records(file) == [row(1)]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_failed_write_leaves_the_old_file_and_no_part(file, monkeypatch):
    before = file.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run_files.write_records(file, [row(1)])
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_ledgers_add_entry_by_entry():
    one = Ledger(channel_uses=1, pilot_uses=2, ofdm_symbols=3, air_seconds=0.5, joules_mean=1e-6, joules_max=2e-6,
                 side_bits=64, downlink_bits=7)  # fmt: skip
    twice = one + one
    assert twice.model_dump() == {key: 2 * value for key, value in one.model_dump().items()}
    assert one + Ledger() == one


def test_rows_are_frozen_and_refuse_unknown_keys():
    with pytest.raises(ValidationError):
        Ledger(joules=1.0)
    with pytest.raises(ValidationError):
        row(1).round = 2


def test_every_key_has_a_meaning():
    """The reference page and the report are made from them."""
    for kind in (SlotError, MeanSquaredErrors, Ledger, RoundRecord, run_files.TaskSummary, run_files.Summary):
        assert all(field.description for field in kind.model_fields.values())


def test_a_missing_or_foreign_summary_is_one_line(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(UserError, match="no summary here"):
        run_files.load_summary(path)
    path.write_text("{}")
    with pytest.raises(UserError, match=f"{path}: damaged, or of another version"):
        run_files.load_summary(path)


ANY = st.floats() | st.sampled_from([1e100, -1e100, 1.1e100, 1e308, math.inf, -math.inf, math.nan, 5e-324])


def likely(values: st.SearchStrategy) -> st.SearchStrategy:
    """What a round may come to: mostly ordinary, with numbers of every kind among them."""
    error = st.builds(SlotError, **dict.fromkeys(SlotError.model_fields, values))
    spent = {key: values for key, field in Ledger.model_fields.items() if isinstance(field.default, float)}
    return st.builds(
        RoundRecord,
        round=st.integers(1, 9), loss=st.dictionaries(st.sampled_from("ab"), values), pi=values | st.none(),
        accuracy=st.dictionaries(st.sampled_from("ab"), values), pi_claimed=values | st.none(),
        mse=st.builds(MeanSquaredErrors, s=error | st.none(), p=st.dictionaries(st.sampled_from("ab"), error)),
        correlation=st.lists(st.tuples(values, values), max_size=2), ledger=st.builds(Ledger, **spent),
        absent=st.just([]), theory=st.none(), seconds=st.dictionaries(st.just("air"), values),
    )  # fmt: skip


@given(likely(ANY))
@settings(max_examples=200, deadline=None)
def test_whatever_a_round_comes_to_is_written_as_finite_numbers_and_read_again(tmp_path_factory, row_):
    path = tmp_path_factory.mktemp("r") / "records.jsonl"
    run_files.append_record(path, row_)

    def finite(tree):
        if isinstance(tree, float):
            return math.isfinite(tree) and abs(tree) <= run_files.MAX_NUMBER
        parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
        return all(finite(part) for part in parts)

    def refused(text):
        raise AssertionError(f"{text} is no JSON")

    assert finite(json.loads(path.read_text(), parse_constant=refused))
    (read,) = run_files.load_records(path)
    assert read.model_dump_json() == row_.model_dump_json() == path.read_text().rstrip()
    run_files.write_records(path, [read])
    assert run_files.load_records(path)[0].model_dump_json() == row_.model_dump_json()
    run_files.write_json(path.with_name("ledger.json"), row_.ledger)
    ledger = run_files.read_json(path.with_name("ledger.json"), Ledger)
    assert ledger.model_dump_json() == row_.ledger.model_dump_json()


@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "1e308", "NaN", "Infinity", "1" * 400, '"x"', "[1]", "{}", "true?"]
)
def test_a_number_that_no_round_writes_is_refused(file, number):
    text = file.read_text().replace('"pi":0.2', f'"pi":{number}', 1)
    file.write_text(text)
    with pytest.raises(UserError, match=rf"{file}: line 1 is not a round's record"):
        run_files.load_records(file)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"method": "\\ud800"}', b"9" * 5000, b"null", b"[1]", b"\0"]
)
def test_a_damaged_file_is_one_line_that_names_it(content, tmp_path):
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        run_files.load_summary(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("place", ["a folder", "a loop", "below a file"])
def test_what_is_no_file_is_one_line(place, tmp_path):
    path = tmp_path / "summary.json"
    if place == "a folder":
        path.mkdir()
    elif place == "a loop":
        path.symlink_to(path)
    else:
        path.touch()
        path = path / "summary.json"
    with pytest.raises(UserError, match=rf"{path}: "):
        run_files.load_summary(path)
    with pytest.raises((UserError, OSError), match=str(tmp_path)):
        run_files.load_records(path)


def test_records_belong_to_their_summary(file, tmp_path):
    run_files.check_rounds(tmp_path, None, run_files.load_records(file))
    for rows in ([row(1), row(3)], [row(1), row(1)], [row(2)]):
        with pytest.raises(UserError, match="should hold rounds"):
            run_files.check_rounds(tmp_path, None, rows)
