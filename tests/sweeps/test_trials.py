"""Cells: named by what they are, the same directory for what trains the same, done when scored as asked."""

from pathlib import Path

import pytest

from airpfed.config import settings_file
from airpfed.config.schema import RunSettings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, MeanSquaredErrors, RoundRecord
from airpfed.sweeps.trials import axis_names, folder_name, is_finished, summary_of, trials_of
from support.sweeps import QUICK, summary


def test_every_point_with_every_seed_from_the_files_on(file: Path) -> None:
    points = [("adapters.method=fedit", "radio.snr_db=0"), ("adapters.method=ffa", "radio.snr_db=0")]
    cells = trials_of(file, ["run.seed=3"], points, 2)
    assert [(cell.seed, cell.point) for cell in cells] == [(s, p) for s in (3, 4) for p in points]
    for cell in cells:
        assert cell.settings.run.seed == cell.seed and cell.settings.run.threads == 1
        assert f"adapters.method={cell.settings.adapters.method}" == cell.point[0]
    assert len({cell.folder for cell in cells}) == 4


def test_threads_that_are_set_stay(file: Path) -> None:
    assert trials_of(file, ["run.threads=2"], [()], 1)[0].settings.run.threads == 2


def test_a_wrong_point_is_named_before_any_cell_is_made(file: Path) -> None:
    with pytest.raises(UserError, match=r"^--grid at server.lr=-1: .*server.lr = -1"):
        trials_of(file, [], [("server.lr=0.1",), ("server.lr=-1",)], 1)


def test_what_trains_the_same_has_one_folder_and_nothing_else_has(file: Path) -> None:
    """A name that cannot tell settings apart (here the same words) still has its own digits."""
    plain = settings_file.read_settings(file, QUICK)
    name = folder_name((), 0, plain)
    for same in ("run.threads=2", "run.score=dev", "run.cross_eval=true", "run.tracker=tensorboard"):
        assert folder_name((), 0, settings_file.read_settings(file, [*QUICK, same])) == name, same
    others = ("server.rounds=4", "radio.snr_db=3", "run.eval_every=1", "tasks.moods.devices=2", "adapters.alpha=3")
    turned = "tasks.colours.labels={blue=' blue', red=' red'}"
    found = {folder_name((), 0, settings_file.read_settings(file, [*QUICK, other])) for other in (*others, turned)}
    assert len(found) == 6 and name not in found
    assert all(len(one) == len("seed=0-") + 8 for one in found)


def test_names_are_the_last_parts_or_the_whole_key_where_they_clash() -> None:
    assert axis_names(["server.lr", "radio.snr_db=3"]) == ["lr", "snr_db"]
    assert axis_names(["tasks.a.devices", "tasks.b.devices"]) == ["tasks.a.devices", "tasks.b.devices"]
    assert axis_names(["adapters.rank_shared/adapters.rank_personal=4/4"]) == ["rank_shared+rank_personal"]


def test_no_character_of_a_value_leaves_the_folder(file: Path) -> None:
    name = folder_name(("tasks.a.source=../x y/z.csv",), 1, settings_file.read_settings(file))
    assert name.startswith("source=..-x-y-z.csv_seed=1-") and "/" not in name
    assert len(folder_name((f"a.b={'x' * 500}",), 1, settings_file.read_settings(file))) < 150


TESTED, ON_DEV = {"a": 0.5, "b": 0.7}, {"a": None, "b": None}
CROSSED = {"a": {"b": 0.1}, "b": {"a": None}}


@pytest.mark.parametrize(
    ("finals", "dev", "others", "done"),
    [
        (TESTED, None, {}, {"test"}),
        (TESTED, 0.5, {}, {"test", "dev", "both"}),
        (ON_DEV, 0.5, {}, {"dev"}),
        (TESTED, 0.5, CROSSED, {"test", "dev", "both", "test crossed"}),
        (TESTED, 0.5, {"a": {}, "b": {"a": 1.0}}, {"test", "dev", "both"}),
    ],
)
def test_a_cell_is_done_when_it_is_scored_as_asked(
    finals: dict[str, float | None], dev: float | None, others: dict[str, dict[str, float | None]], done: set[str]
) -> None:
    made = summary(finals, dev)
    tasks = {name: task.model_copy(update={"others": others.get(name, {})}) for name, task in made.tasks.items()}
    made = made.model_copy(update={"tasks": tasks})
    asked = {name: RunSettings(score=name) for name in ("test", "dev", "both")}  # type: ignore[arg-type]
    asked["test crossed"] = RunSettings(score="test", cross_eval=True)
    assert {name for name, run in asked.items() if is_finished(made, run)} == done
    stopped = made.model_copy(update={"exit": "interrupted"})
    assert not any(is_finished(stopped, run) for run in asked.values()) and not is_finished(None, asked["test"])


def test_an_unreadable_summary_is_none(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    assert summary_of(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"method": "fedit"')
    assert summary_of(tmp_path) is None


def test_two_points_of_the_same_settings_are_refused(file: Path) -> None:
    with pytest.raises(UserError, match=r"server.lr=1e-3 and server.lr=0.001 are the same settings"):
        trials_of(file, QUICK, [("server.lr=1e-3",), ("server.lr=0.001",)], 1)


def rows(*rounds: int) -> list[RoundRecord]:
    empty = {"loss": {}, "mse": MeanSquaredErrors(), "pi": None, "pi_claimed": None, "seconds": {}}
    return [RoundRecord(round=number, ledger=Ledger(), **empty) for number in rounds]


@pytest.mark.parametrize("rounds", [None, (), (1, 2), (1, 3), (1, 2, 2), (2, 3, 4), (1, 2, 3)])
def test_a_cell_without_the_records_of_its_rounds_is_not_done(rounds: tuple[int, ...] | None, tmp_path: Path) -> None:
    made = summary({"a": 0.5})
    run_files.write_json(tmp_path / "summary.json", made)
    if rounds is not None:
        run_files.write_records(tmp_path / "records.jsonl", rows(*rounds))
    assert summary_of(tmp_path) == (made if rounds == (1, 2, 3) else None)


def test_a_cell_whose_checkpoint_is_of_another_round_is_not_done(tmp_path: Path) -> None:
    run_files.write_json(tmp_path / "summary.json", summary({"a": 0.5}))
    run_files.write_records(tmp_path / "records.jsonl", rows(1, 2, 3))
    for done in (2, 3, 4):
        latest = {"file": f"round-{done:06d}.safetensors", "sha256": "", "round": done, "seed": 0, "fingerprint": ""}
        (tmp_path / "checkpoint").mkdir(exist_ok=True)
        run_files.write_json(tmp_path / "checkpoint" / "latest.json", latest)
        assert (summary_of(tmp_path) is not None) == (done == 3)
