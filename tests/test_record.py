"""Records on disk, and sums of ledgers."""

import errno
import os

import pytest
from pydantic import ValidationError

from airpfed import record
from airpfed.errors import UserError
from airpfed.record import Ledger, MeanSquaredErrors, RoundRecord, SlotError


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
        record.append(path, row(number))
    return path


def test_what_is_appended_is_loaded(file):
    assert record.load(file) == [row(1), row(2), row(3)]


def test_no_file_is_no_record(tmp_path):
    assert record.load(tmp_path / "records.jsonl") == []


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_last_line_cut_short_is_dropped(file, cut):
    text = file.read_text()
    file.write_text(text[: -1 - cut])
    assert record.load(file) == [row(1), row(2)]


def test_a_last_line_without_its_newline_is_whole(file):
    file.write_text(file.read_text().rstrip("\n"))
    assert record.load(file) == [row(1), row(2), row(3)]


def test_a_bad_line_in_the_middle_is_refused(file):
    first, second, third = file.read_text().splitlines()
    file.write_text("\n".join([first, second[:-5], third]) + "\n")
    with pytest.raises(UserError, match=rf"{file}: line 2 is not a round's record"):
        record.load(file)


def test_rewriting_replaces_all_lines(file):
    record.rewrite(file, [row(1)])
    assert record.load(file) == [row(1)]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_failed_write_leaves_the_old_file_and_no_part(file, monkeypatch):
    before = file.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        record.rewrite(file, [row(1)])
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
    for kind in (SlotError, MeanSquaredErrors, Ledger, RoundRecord, record.TaskSummary, record.Summary):
        assert all(field.description for field in kind.model_fields.values())


def test_a_missing_or_foreign_summary_is_one_line(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(UserError, match="no summary here"):
        record.load_summary(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="not a summary of this version"):
        record.load_summary(path)
