"""Sweeps in Python: the numbers of the command line, as a table."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import airpfed as ap
from airpfed.air.designs import DESIGNS, channel_inversion
from airpfed.config.settings_file import read_settings
from airpfed.core.errors import UserError
from airpfed.sweeps import figures, worker
from airpfed.sweeps.console import SweepConsole
from airpfed.sweeps.job import SweepRequest, run_sweep
from support.sweeps import QUICK

pytestmark = pytest.mark.usefixtures("shared_bases")

SHORT = [*QUICK, "server.rounds=1"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No figures, which take longer than trials here, and the designs of before."""
    monkeypatch.setattr(figures, "FIGURES", ())
    before = dict(DESIGNS)
    yield
    DESIGNS.data.clear()
    DESIGNS.data.update(before)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the trials that are computed."""
    names: list[str] = []
    train = worker._train

    def counted(settings: Any, folder: Path, *more: Any) -> Any:
        names.append(folder.name)
        return train(settings, folder, *more)

    monkeypatch.setattr(worker, "_train", counted)
    return names


def test_the_table_has_the_numbers_of_the_command_line(file: Path, tmp_path: Path) -> None:
    grid = {"adapters.method": ["airpfed", "fedit"], "radio.snr_db": [0, 20.5]}
    table = ap.sweep(file, grid, seeds=2, overrides=SHORT, out=tmp_path / "python")
    request = SweepRequest(
        file=file, overrides=tuple(SHORT), grid=("adapters.method=airpfed,fedit", "radio.snr_db=0,20.5"), tune=(),
        tune_seeds=None, seeds=2, reference=(), folder=tmp_path / "command", reuse=(), workers=1, ray=None, command="",
    )  # fmt: skip
    run_sweep(request, SweepConsole())
    for name in ("cells.csv", "rounds.csv", "means.csv", "sweep.json"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    with (tmp_path / "command" / "cells.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(table) == len(rows) == 2 * 2 * 2 * 2
    for (_, line), row in zip(table.iterrows(), rows, strict=True):
        assert (line["adapters.method"], line["task"], line["seed"]) == (
            row["adapters.method"],
            row["task"],
            int(row["seed"]),
        )
        assert line["radio.snr_db"] == float(row["radio.snr_db"])
        for key in ("final", "base", "pi_mean", "joules_mean"):
            assert line[key] == pytest.approx(float(row[key]))
        assert ap.load_run(line["run"]).summary.tasks[line["task"]].final == line["final"]
    assert table["radio.snr_db"].dtype.kind == "f" and table["final"].dtype.kind == "f"
    means = table.groupby("radio.snr_db")["final"].mean()
    assert list(means.index) == [0, 20.5]


def test_finished_trials_are_not_run_again(file: Path, tmp_path: Path, trained: list[str]) -> None:
    first = ap.sweep(file, {"radio.snr_db": [0]}, overrides=SHORT, out=tmp_path)
    assert len(trained) == 1
    second = ap.sweep(file, {"radio.snr_db": [0, 10]}, overrides=SHORT, out=tmp_path)
    assert len(trained) == 2
    assert second[second["radio.snr_db"] == 0].equals(first)


def test_a_sweep_without_a_grid_or_a_file(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings(file, SHORT)
    table = ap.sweep(settings, seeds=2)
    assert table[["seed", "task"]].values.tolist() == [[0, "colours"], [0, "moods"], [1, "colours"], [1, "moods"]]
    assert (tmp_path / "runs" / "sweep" / "sweep.json").exists()
    same = ap.sweep(file, seeds=2, overrides=SHORT)
    assert (tmp_path / "runs" / "tiny-sweep" / "sweep.json").exists()
    assert same.drop(columns="run").equals(table.drop(columns="run"))


def test_functions_are_values_of_the_grid_or_of_all_trials(file: Path, tmp_path: Path, trained: list[str]) -> None:
    def receiver(cut: float) -> Any:
        def mine(problem, *, truncation: float = 0.2):
            return channel_inversion(problem, truncation=cut)

        return mine

    grid = {"radio.design": [receiver(0.5), "channel_inversion"]}
    table = ap.sweep(file, grid, overrides=SHORT, out=tmp_path / "a")
    assert table["radio.design"].tolist() == ["mine", "mine", "channel_inversion", "channel_inversion"]
    assert table["pi_mean"].nunique() == 2
    for cut, count in ((0.5, 3), (0.5, 3), (0.9, 4)):  # a trial with another source counts as not done
        again = ap.sweep(
            file, {"radio.snr_db": [10]}, overrides=SHORT[:2] + SHORT[3:], out=tmp_path / "b", design=receiver(cut)
        )
        assert len(trained) == count
    assert again["pi_mean"].iloc[0] != table["pi_mean"].iloc[0]


def test_values_of_every_kind(file: Path, tmp_path: Path) -> None:
    grid = {
        "adapters.rank_shared/adapters.rank_personal": [(2, 0), (1, 1)],
        "tasks.colours.prompt": ["{text} Label :", "Label : {text}, it is"],
    }
    table = ap.sweep(file, grid, overrides=SHORT, out=tmp_path)
    assert table["adapters.rank_shared/adapters.rank_personal"].tolist() == ["2/0"] * 4 + ["1/1"] * 4
    assert table["tasks.colours.prompt"].tolist()[1:3] == ["{text} Label :", "Label : {text}, it is"]
    settings = ap.load_run(table["run"].iloc[-1]).settings
    assert (settings.adapters.rank_shared, settings.tasks[0].prompt) == (1, "Label : {text}, it is")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": {"radio.snr": [0, 1]}}, "radio.snr: unknown key"),
        ({"grid": {"radio.snr_db": "0:20:10"}}, "values should be a list, not the text '0:20:10'"),
        ({"grid": {"radio.snr_db": []}}, "should be section.key=a,b,c"),
        ({"grid": {"radio.snr_db": [None]}}, "None is no value"),
        ({"seeds": 0}, "should be at least 1"),
        ({"design": channel_inversion, "overrides": {"radio.design": "mmse"}}, "radio.design: is set twice"),
    ],
)
def test_wrong_sweeps_are_one_line(file: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        ap.sweep(file, out=tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("records.jsonl"))


def test_functions_stay_in_their_process(file: Path, tmp_path: Path) -> None:
    def mine(problem):
        return channel_inversion(problem)

    for options in ({"design": mine}, {"grid": {"radio.design": [mine, "mmse"]}}):
        with pytest.raises(UserError, match="workers = 2: the function mine is known to this process alone"):
            ap.sweep(file, out=tmp_path, workers=2, **options)


def test_a_trial_that_fails_is_said(file: Path, tmp_path: Path) -> None:
    def mine(problem):
        raise UserError("mine: no solution")

    with pytest.raises(UserError, match=r"1 of the trials failed, the first: design=mine.*: no solution"):
        ap.sweep(file, {"radio.design": [mine, "mmse"]}, overrides=[*QUICK[:2], *QUICK[4:]], out=tmp_path)


def test_nothing_is_printed_unless_asked(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ap.sweep(file, overrides=SHORT, out=tmp_path)
    assert capsys.readouterr() == ("", "")
    ap.sweep(file, overrides=SHORT, out=tmp_path, verbose=True)
    assert "finished already" in capsys.readouterr().err
