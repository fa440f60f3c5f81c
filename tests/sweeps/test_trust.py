"""A cell is taken as done only if it is whole, and of the data and base model that are there today."""

import json
import shutil
from pathlib import Path

import pytest

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.experiment import run as run_module
from airpfed.sweeps import figures, job, worker
from airpfed.sweeps.console import SweepConsole
from airpfed.sweeps.job import SweepRequest, run_sweep
from airpfed.sweeps.trials import trials_of
from support.settings import make_settings
from support.sweeps import QUICK

pytestmark = pytest.mark.usefixtures("shared_bases")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", ())


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cells that are computed, and whether they went on from a checkpoint."""
    found: list[str] = []
    real = run_module.play

    def play(experiment, folder, resume, *rest):
        found.append(f"{folder.name.split('-')[0]} {'resumed' if resume else 'anew'}")
        return real(experiment, folder, resume, *rest)

    monkeypatch.setattr(run_module, "play", play)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> Path:
    """Settings with data and a base of their own, and a sweep of two seeds."""
    home = tmp_path_factory.mktemp("trust")
    file = make_settings(home, Path(shutil.copytree(small_llama, home / "llama")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "FIGURES", ())
        run_sweep(plan(file, home / "sweep"), SweepConsole())
    return home


def plan(file: Path, home: Path, **fields: object) -> SweepRequest:
    known = {"tune": (), "tune_seeds": None, "seeds": 2, "reference": (), "reuse": (), "workers": 1, "ray": None}
    return SweepRequest(file=file, overrides=QUICK, grid=(), folder=home, command="airpfed sweep", **(known | fields))


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "sweep", tmp_path / "sweep"))


def tables(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}


def first(home: Path) -> Path:
    return next(path for path in (home / "cells").iterdir() if path.name.startswith("seed=0"))


def cut(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def other_fingerprint(path: Path) -> None:
    run_files.write_json(path, {**json.loads(path.read_text()), "fingerprint": "0" * 64})


DAMAGES = {
    "a lost record": (
        "records.jsonl",
        cut,
        "anew",
        "each once; restore it, or start a new run with another --out; started again",
    ),
    "no records": (
        "records.jsonl",
        Path.unlink,
        "anew",
        "each once; restore it, or start a new run with another --out; started again",
    ),
    "a damaged environment": ("environment.json", lambda path: path.write_text("{"), "resumed", "written again"),
    "other data": ("environment.json", other_fingerprint, "resumed", ""),
    "no environment": ("environment.json", Path.unlink, "resumed", ""),
    "no summary": ("summary.json", Path.unlink, "resumed", ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_cell_that_is_not_whole_is_made_whole_and_told(
    damage: str, made: Path, home: Path, played: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name, spoil, how, told = DAMAGES[damage]
    before = tables(home)
    spoil(first(home) / name)
    run_sweep(plan(made / "tiny.toml", home), SweepConsole())
    assert played == [f"seed=0 {how}"]
    assert tables(home) == before and told in capsys.readouterr().err
    played.clear()
    run_sweep(plan(made / "tiny.toml", home), SweepConsole())
    assert played == []


@pytest.mark.parametrize("what", ["data", "base"])
def test_a_sweep_over_other_data_or_weights_is_played_again(
    what: str, made: Path, home: Path, played: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    """In place, and where another sweep is to reuse it."""
    path = made / ("moods.csv" if what == "data" else "llama/model.safetensors")
    good = path.read_bytes()
    try:
        path.write_bytes(good.replace(b" ba", b" be", 1) if what == "data" else good[:-4] + b"\x00\x00\x00\x00")
        worker._preparations.clear()
        run_sweep(plan(made / "tiny.toml", tmp_path / "other", reuse=(home,), seeds=1), SweepConsole())
        assert played == ["seed=0 anew"], "a cell of other data is not copied"
        played.clear()
        before = (first(home) / "records.jsonl").read_bytes()
        run_sweep(plan(made / "tiny.toml", home, seeds=1), SweepConsole())
        assert played == ["seed=0 anew"]
        assert "other settings, data or base model" in capsys.readouterr().err
        assert (first(home) / "records.jsonl").read_bytes() != before
    finally:
        path.write_bytes(good)
        worker._preparations.clear()


def test_where_data_is_gone_what_is_done_still_gives_its_tables(made: Path, home: Path, played: list[str]) -> None:
    path, before = made / "moods.csv", tables(home)
    good = path.read_bytes()
    path.unlink()
    try:
        run_sweep(plan(made / "tiny.toml", home), SweepConsole())
    finally:
        path.write_bytes(good)
    assert played == [] and tables(home) == before


def test_compare_refuses_a_run_whose_records_are_not_its_summarys(home: Path) -> None:
    cut(first(home) / "records.jsonl")
    with pytest.raises(UserError, match=r"records.jsonl: should hold rounds 1 to 3") as caught:
        job.compare_runs([home], [], None, SweepConsole())
    assert "\n" not in str(caught.value)


def test_compare_says_which_runs_are_not_finished(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first(home) / "summary.json").unlink()
    assert len(job.compare_runs([home], [], None, SweepConsole()).means[0].seeds) == 1
    assert f"1 without final scores left out: {first(home)}" in capsys.readouterr().err


def test_a_long_name_of_any_letters_fits_a_folder(made: Path) -> None:
    point = (f"tasks.colours.prompt={{text}} {'é' * 300} Label :",)
    (cell,) = trials_of(made / "tiny.toml", QUICK, [point], 1)
    assert len(cell.folder.encode()) < 200 and cell.folder.isascii()
