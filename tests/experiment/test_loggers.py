"""The tracker's seam: every number of every record and of the summary, once; what is not installed is told at once."""

import json
import sys
import time
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


def record(t: int) -> RoundRecord:
    """A record of a task whose name has a colon, with one number that is none."""
    numbers = {"mse": {}, "pi": 0.1 * t, "pi_claimed": None, "ledger": {"air_seconds": 0.2}, "seconds": {"air": 1.0}}
    return RoundRecord(round=t, loss={"gym:sums": 1.0 / t, "b": float("nan")}, **numbers)


SUMMARY = Summary(
    method="airpfed",
    rounds=2,
    tasks={"gym:sums": {"metric": "accuracy", "base": 0.2, "final": 0.8, "samples": 250}},
    average=0.8,
    average_base=0.2,
    pi_mean=0.01,
    ledger={},
    seconds={},
    exit="completed",
)


@pytest.mark.filterwarnings("ignore")  # of the library
def test_mlflow_holds_every_number_without_a_network(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    out = tmp_path / "a run"
    for _ in range(2):  # the second as after --resume
        track = loggers.mlflow(out, experiment="mine")
        for row in (record(1), record(2), SUMMARY):
            track(row)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert [run.info.run_name for run in runs] == ["a run"] * 2
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    history = client.get_metric_history(runs[0].info.run_id, "loss/gym_sums")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5)]
    metrics = runs[0].data.metrics
    assert metrics["summary/average"] == 0.8 and metrics["ledger/air_seconds"] == 0.2
    assert len(metrics) == len(loggers.scalars(record(1))) + len(loggers.scalars(SUMMARY))


@pytest.mark.filterwarnings("ignore")
def test_wandb_holds_every_number_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    track = loggers.wandb(tmp_path, project="mine")
    for row in (record(1), record(2), SUMMARY):
        track(row)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + 60
    while b"summary/average" not in file.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)  # another process of the library writes it
    content = file.read_bytes()
    names = [*loggers.scalars(record(1)), *(f"summary/{name}" for name in loggers.scalars(SUMMARY))]
    assert all(name.encode() in content for name in names)


@pytest.mark.parametrize(("name", "extra"), [("mlflow", "mlflow"), ("wandb", "wandb")])
def test_a_missing_tracker_names_its_extra(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf'^run.tracker = "{name}": .* is not installed; .*"airpfed\[{extra}\]"'):
        loggers.TRACKERS.bind(name, {})(tmp_path)


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
