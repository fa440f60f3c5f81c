"""The tracker's seam: every number of every record and of the summary, once; what is not installed is told at once."""

import json
import sys
import types
from pathlib import Path

import pytest

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import RoundRecord, Summary
from airpfed.experiment import loggers, run

pytestmark = pytest.mark.usefixtures("shared_bases")

FEW = ("adapters.layers=last-2", "server.rounds=3", "radio.design=channel_inversion", "tasks.*.test_samples=8")


class Writer:
    """TensorBoard's writer, as far as it is used."""

    made: list["Writer"]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.rows, self.closed = folder, purge_step, [], False
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.rows.append((name, value, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def writers(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    Writer.made = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    return Writer.made


def test_a_run_feeds_it_every_record_and_the_summary(
    small_settings: Path, tmp_path: Path, writers: list[Writer]
) -> None:
    out = tmp_path / "run"
    assert run.run_file(small_settings, [*FEW, "run.tracker=tensorboard"], out, False, "x") == 0
    (writer,) = writers
    assert writer.folder == str(out / "tensorboard") and writer.closed and writer.purge_step == 1
    for row in run_files.load_records(out / "records.jsonl"):
        mine = {
            name: value for name, value, step in writer.rows if step == row.round and not name.startswith("summary/")
        }
        assert mine == loggers.scalars(row)
        assert mine["loss/moods"] == row.loss["moods"] and mine["mse/s/measured"] == row.mse.s.measured
        assert mine["ledger/air_seconds"] == row.ledger.air_seconds and "seconds/gradients" in mine
    summary = json.loads((out / "summary.json").read_text())
    assert ("summary/average", summary["average"], 3) in writer.rows
    assert ("summary/tasks/moods/final", summary["tasks"]["moods"]["final"], 3) in writer.rows


def test_a_resumed_run_replaces_the_rounds_it_plays_again(
    small_settings: Path, tmp_path: Path, writers: list[Writer]
) -> None:
    options = [*FEW, "run.tracker=tensorboard"]
    assert run.run_file(small_settings, [*options, "server.rounds=1"], tmp_path / "run", False, "x") == 0
    assert run.run_file(small_settings, options, tmp_path / "run", True, "x") == 0
    assert [writer.purge_step for writer in writers] == [1, 2]
    assert {step for name, _, step in writers[1].rows if not name.startswith("summary/")} == {2, 3}


def test_without_tensorboard_it_is_one_line_before_the_run(
    small_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(run.build, "load_tasks", lambda _settings: pytest.fail("told after loading"))
    with pytest.raises(
        UserError,
        match=r'^run.tracker = "tensorboard": TensorBoard is not installed; run pip install .airpfed.trackers',
    ):
        run.run_file(small_settings, ["run.tracker=tensorboard"], tmp_path / "run", False, "x")
    assert not (tmp_path / "run" / "records.jsonl").exists()


def test_event_files_read_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track = loggers.tensorboard(tmp_path)
    empty = {"mse": {}, "pi": None, "pi_claimed": None, "ledger": {}, "seconds": {}}
    for t, loss in ((1, 2.0), (2, 1.5)):
        track(RoundRecord.model_validate({"round": t, "loss": {"a": loss}, **empty}))
    task = {"metric": "accuracy", "base": 0.25, "final": 0.5, "samples": 4}
    summary = {"method": "fedit", "rounds": 2, "tasks": {"a": task}, "average": 0.5, "average_base": 0.25,
               "pi_mean": None, "ledger": {}, "seconds": {}, "exit": "completed"}  # fmt: skip
    track(Summary.model_validate(summary))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/a")] == [(1, 2.0), (2, 1.5)]
    assert [(event.step, event.value) for event in events.Scalars("summary/tasks/a/final")] == [(2, 0.5)]
