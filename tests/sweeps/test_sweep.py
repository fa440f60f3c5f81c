"""A sweep does what is missing and nothing twice, survives being killed, and keeps the test split for the end."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from airpfed import cli
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import acquire_lock
from airpfed.experiment import run as run_module
from airpfed.sweeps import executors, figures, job, worker
from airpfed.sweeps.console import SweepConsole
from airpfed.sweeps.job import SweepRequest, run_sweep
from airpfed.sweeps.tables import ScoredRun
from airpfed.sweeps.trials import is_finished, summary_of, trials_of
from airpfed.training import evaluate
from airpfed.training import summary as run_summary
from fuzz import kills
from support import forks
from support.sweeps import QUICK, summary

pytestmark = pytest.mark.usefixtures("shared_bases")

GRID = ("adapters.method=airpfed,fedit", "radio.snr_db=0:20:20")


def plan(file: Path, home: Path, *overrides: str, grid: tuple[str, ...] = GRID, **fields: object) -> SweepRequest:
    known = {
        "tune": (),
        "tune_seeds": None,
        "seeds": 2,
        "reference": (),
        "reuse": (),
        "workers": 1,
        "ray": None,
        "command": "airpfed sweep",
    }
    return SweepRequest(file=file, overrides=(*QUICK, *overrides), grid=grid, folder=home, **(known | fields))


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than cells here; one test draws them."""
    monkeypatch.setattr(figures, "FIGURES", ())


@pytest.fixture(scope="module")
def whole(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep left alone: two methods at two SNRs with two seeds, one after another."""
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "FIGURES", ())
        assert run_sweep(plan(file, home), SweepConsole()).failures == []
    return home


def tables(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_a_cell_is_a_run_of_its_own(whole: Path) -> None:
    cells = sorted(path.name for path in (whole / "cells").iterdir())
    assert len(cells) == 8
    assert cells[0].startswith("method=airpfed_snr_db=0_seed=0-") and len(cells[0].rsplit("-", 1)[1]) == 8
    for cell in (whole / "cells").iterdir():
        names = {path.name for path in cell.iterdir() if not path.name.startswith(".")}
        files = {"experiment.toml", "environment.json", "layout.json", "records.jsonl", "summary.json"}
        assert names == files | {"checkpoint"}
        assert run_files.load_summary(cell / "summary.json").exit == "completed"


def test_the_tables_hold_every_cell_task_and_round(whole: Path) -> None:
    cells, rounds, means = (rows(whole / f"{name}.csv") for name in ("cells", "rounds", "means"))
    assert len(cells) == 16 and len(rounds) == 48
    for line in cells:
        summary = run_files.load_summary(whole / line["run"] / "summary.json")
        assert float(line["final"]) == summary.tasks[line["task"]].final
        assert float(line["air_seconds"]) == summary.ledger.air_seconds
        assert f"method={line['adapters.method']}_snr_db={line['radio.snr_db']}_seed={line['seed']}-" in line["run"]
    last = [line for line in rounds if line["round"] == "3"]
    assert sorted({float(line["air_seconds"]) for line in last}) == sorted(
        {float(line["air_seconds"]) for line in cells}
    )
    for line in (line for line in means if line["measure"] == "average"):
        mine = [c for c in cells if all(c[key] == line[key] for key in ("adapters.method", "radio.snr_db"))]
        assert float(line["mean"]) == pytest.approx(sum(float(c["final"]) for c in mine) / len(mine))
        assert (line["difference_mean"] == "") == (line["adapters.method"] == "airpfed")
    text = b"".join(tables(whole)[name] for name in ("cells.csv", "rounds.csv", "means.csv", "sweep.json"))
    assert b"seconds" in text and b"gradients" not in text, "no wall-clock time in any"


def test_what_is_there_is_not_done_again(
    whole: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more seed: only its cells; the tables of the first two seeds come back to the byte without any cell."""
    whole = Path(shutil.copytree(whole, tmp_path / "copy"))
    before, played = tables(whole), []
    real = run_module.play
    monkeypatch.setattr(run_module, "play", lambda *args: played.append(args[1].name) or real(*args))
    run_sweep(plan(file, whole), SweepConsole())
    assert played == [] and tables(whole) == before
    run_sweep(plan(file, whole, seeds=3), SweepConsole())
    assert len(played) == 4 and all("_seed=2-" in name for name in played)
    run_sweep(plan(file, whole), SweepConsole())
    assert tables(whole) == before


def test_cells_of_another_sweep_are_copied_by_their_settings(
    whole: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Axes in another order name the folders otherwise; a cell of other settings, or begun here, is computed."""
    played = []
    real = run_module.play
    monkeypatch.setattr(run_module, "play", lambda *args: played.append(args[1].name) or real(*args))
    grid = tuple(reversed(GRID))
    begun = trials_of(file, QUICK, [("radio.snr_db=20", "adapters.method=fedit")], 1)[0]
    (tmp_path / "here/cells" / begun.folder).mkdir(parents=True)
    run_sweep(plan(file, tmp_path / "here", grid=grid, reuse=(whole,)), SweepConsole())
    assert played == [begun.folder]
    mine, theirs = ([{**line, "run": ""} for line in rows(home / "cells.csv")] for home in (tmp_path / "here", whole))
    assert len(mine) == 16 and all(line in theirs for line in mine)
    assert not list((tmp_path / "here/cells").glob(".*")), "nothing half copied is left"
    played.clear()
    run_sweep(plan(file, tmp_path / "other", "server.lr=0.5", reuse=(whole,), seeds=1), SweepConsole())
    assert len(played) == 4


def test_a_folder_to_reuse_must_be_a_sweep(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--reuse {tmp_path}: should be the directory of a sweep"):
        run_sweep(plan(file, tmp_path / "here", reuse=(tmp_path,)), SweepConsole())


def test_a_cell_that_cannot_be_copied_is_told_in_a_line(whole: Path, file: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    cell = next((broken / "cells").iterdir())
    (cell / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"{cell.name}: .*No such file") as told:
        run_sweep(plan(file, tmp_path / "here", reuse=(broken,)), SweepConsole())
    assert "\n" not in str(told.value)


def test_killed_twice_and_resumed_it_gives_the_same_tables(whole: Path, file: Path, tmp_path: Path) -> None:
    """kill -9 with two workers at work, which die with it; then with one, amid a cell; the rest is done here."""
    home = tmp_path / "out"
    options = [part for item in QUICK for part in ("--set", item)] + [p for axis in GRID for p in ("--grid", axis)]
    words = ["sweep", str(file), *options, "--seeds", "2", "--out", str(home), "--workers"]
    with (tmp_path / "errors.txt").open("w") as errors:  # a pipe would stay open as long as a worker lives
        process = subprocess.Popen(
            [sys.executable, "-m", "airpfed.cli", *words, "2"], stdout=subprocess.DEVNULL, stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    deadline = time.monotonic() + 120
    while rounds_in(home) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    children = children_of(process.pid)
    process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "errors.txt").read_text()[-2000:]
    died = gone(children)
    for child in children:
        if alive(child):
            os.kill(child, signal.SIGKILL)
    assert len(children) >= 2 and died, "a worker would go on writing"
    before = rounds_in(home)
    done, _ = forks.call(kills.forked, [*words, "1"], [home], "before", 150)
    assert done.code == kills.KILLED, "a sweep of one worker is one process"
    assert not (home / "sweep.json").exists() and before < rounds_in(home) < 24
    finished = [is_finished(summary_of(path), cell_settings(file).run) for path in (home / "cells").iterdir()]
    assert not all(finished)
    run_sweep(plan(file, home), SweepConsole())
    assert tables(home) == tables(whole)


def cell_settings(file: Path):
    return trials_of(file, QUICK, [()], 1)[0].settings


def rounds_in(home: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (home / "cells").glob("*/records.jsonl"))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pids: list[int]) -> bool:
    """Whether all are dead within a few seconds."""
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_two_processes_at_one_cell_do_it_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the lock, then finds the cell done."""
    (cell,) = trials_of(file, QUICK, [()], 1)
    job_ = (cell.settings.model_dump_json(), tmp_path / "cells" / cell.folder, "x")
    with acquire_lock(job_[1] / ".lock", 0.0):
        second = threading.Thread(target=lambda: ended.append(worker.run_trial(*job_)))
        ended: list[worker.Result] = []
        second.start()
        second.join(0.5)
        assert second.is_alive() and ended == []
        assert worker._train(cell.settings, *job_[1:], lambda: False).end == "done"
        monkeypatch.setattr(run_module, "play", None)
    second.join(20)
    assert ended == [worker.Result("done")]


def test_ctrl_c_ends_after_a_whole_round_and_the_same_command_goes_on(
    file: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []
    real = executors.wait

    def interrupted(*args: object):
        if len(rounds) < 1 and rounds_in(tmp_path):
            rounds.append(1)
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(executors, "wait", interrupted)
    monkeypatch.setattr(executors, "TICK", 0.01)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan(file, tmp_path), SweepConsole())
    (stopped,) = (tmp_path / "cells").iterdir()
    left = summary_of(stopped)
    assert left is not None and (left.exit, left.rounds < 3) in {("interrupted", True), ("completed", False)}
    run_sweep(plan(file, tmp_path), SweepConsole())
    assert tables(tmp_path) == tables(whole)


def test_the_untouched_model_is_scored_once_a_seed(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    real = run_summary.score
    monkeypatch.setattr(run_summary, "score", lambda *args: counted.append(args[2].name) or real(*args))
    run_sweep(plan(file, tmp_path, "server.rounds=1", grid=("server.lr=0.01,0.02,0.03",)), SweepConsole())
    assert counted == ["colours", "moods"] * 2
    assert len({summary.average_base for c in (tmp_path / "cells").iterdir() if (summary := summary_of(c))}) == 2


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(task, split) of every score of a trained model."""
    found: list[tuple[str, str]] = []
    real = evaluate.score

    def score(clients, factors, task, which):
        if factors is not None:
            found.append((task.name, which))
        return real(clients, factors, task, which)

    monkeypatch.setattr(evaluate, "score", score)
    return found


def test_values_are_chosen_on_dev_and_only_the_chosen_are_tested(
    file: Path, tmp_path: Path, asked: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Per method its own rate: every trial is scored on dev, the best of each method alone on test."""
    one = plan(file, tmp_path, grid=GRID[:1], tune=("server.lr=0.001,0.05",))
    done = run_sweep(one, SweepConsole())
    assert "edge" not in capsys.readouterr().err, "two values have no inside"
    methods, rates, seeds, tasks = 2, 2, 2, 2
    assert [which for _, which in asked].count("dev") == (methods * rates + methods) * seeds * tasks
    assert [which for _, which in asked].count("test") == methods * seeds * tasks
    trials = rows(tmp_path / "tuning.csv")
    assert [line["chosen"] for line in trials].count("true") == 2 and len(trials) == 4
    for method in ("airpfed", "fedit"):
        mine = [line for line in trials if line["adapters.method"] == method]
        best = max(mine, key=lambda line: float(line["dev"]))
        assert best["chosen"] == "true" and best["count"] == "2"
        reached = [line for line in rows(tmp_path / "cells.csv") if line["adapters.method"] == method]
        assert {line["server.lr"] for line in reached} == {best["server.lr"]} and all(line["final"] for line in reached)
        dev = [float(line["dev"]) for line in reached]
        assert sum(dev) / len(dev) == pytest.approx(float(best["dev"]))
    untested = [s for c in (tmp_path / "cells").iterdir() if (s := summary_of(c)) and s.average is None]
    assert len(untested) == 4 and all(task.final is None for s in untested for task in s.tasks.values())
    assert {axis for mean in done.means for axis, _ in mean.point} == {"adapters.method"}
    before, asked[:] = tables(tmp_path), []
    run_sweep(one, SweepConsole())
    assert asked == [] and tables(tmp_path) == before


def test_fewer_seeds_may_choose_than_are_tested(file: Path, tmp_path: Path) -> None:
    """The seeds beyond those that choose are trained with the chosen value alone."""
    one = plan(file, tmp_path, "server.rounds=1", grid=(), tune=("server.lr=0.001,0.05",), tune_seeds=1, seeds=3)
    run_sweep(one, SweepConsole())
    assert {line["count"] for line in rows(tmp_path / "tuning.csv")} == {"1"}
    made = sorted(folder.name.rsplit("-", 1)[0] for folder in (tmp_path / "cells").iterdir())
    (best,) = {line["server.lr"] for line in rows(tmp_path / "cells.csv")}
    assert made == sorted([f"lr={lr}_seed=0" for lr in ("0.001", "0.05")] + [f"lr={best}_seed={n}" for n in (1, 2)])


def test_a_cell_that_fails_is_told_and_the_others_are_done(file: Path, tmp_path: Path) -> None:
    """What the settings cannot tell beforehand: the model has no layer 13."""
    grid = ("adapters.layers=last-2,last-13",)
    done = run_sweep(plan(file, tmp_path, "server.rounds=1", grid=grid, seeds=1), SweepConsole())
    assert len(done.failures) == 1 and 'adapters.layers = "last-13": the model has 4 layers' in done.failures[0]
    assert [dict(mean.point)["adapters.layers"] for mean in done.means if mean.measure == "average"] == ["last-2"]
    assert done.tree["failed"] == done.failures


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["airpfed", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "radio.snr_db=0,1", "--seeds", "0"], "--seeds 0: should be at least 1"),
        (["--grid", "radio.snr_db=0,x"], "--grid at radio.snr_db=x: "),
        (
            ["--grid", "radio.snr_db=0,1", "--against", "radio.snr_db=2"],
            "--against radio.snr_db=2: should be one of 0, 1",
        ),
        (
            ["--grid", "radio.snr_db=0,1", "--against", "radio.snr=1"],
            "--against radio.snr=1: radio.snr is not varied; did",
        ),
        (["--tune", "server.lr=1,2", "--set", "tasks.*.dev_samples=0"], "--tune: tasks.colours.dev_samples = 0: "),
        (["--grid", "server.lr=1,2", "--tune", "server.lr=1,2"], "--tune server.lr: is in --grid too"),
        (["--tune-seeds", "1"], "--tune-seeds 1: has no effect without --tune"),
        (["--tune", "server.lr=1,2", "--tune-seeds", "2"], "--tune-seeds 2: should be 1 to --seeds 1"),
        (["--grid", "server.lr/run.eval_every=1/1", "--tune", "server.lr=1,2"], "--tune server.lr: is in --grid too"),
        (["--grid", "run.seed=1,2"], "--grid run.seed: should be --seeds"),
        (["--grid", "run.score=dev,test"], "run.score: a sweep scores the test splits"),
        (["--set", "run.score=dev"], "run.score: a sweep scores the test splits"),
        (["--grid", "adapters.method=fedit,fedex"], "--grid at adapters.method=fedex: "),
        (["--grid", "server.lr=1,2", "--ray", "local"], "--ray: Ray is not installed"),
    ],
)
def test_wrong_options_are_one_line_before_anything_is_computed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", None)
    assert command(monkeypatch, "sweep", file, "--out", tmp_path / "out", *options) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"airpfed: {message}") and shown.err.count("\n") == 1, shown.err
    assert shown.out == "" and not list(tmp_path.rglob("records.jsonl"))


def test_json_and_the_table_show_the_same_means(
    whole: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [part for item in QUICK for part in ("--set", item)] + [p for axis in GRID for p in ("--grid", axis)]
    home = shutil.copytree(whole, whole.parent / "shown")
    arguments = ("sweep", file, *options, "--seeds", "2", "--out", home, "--against", "adapters.method=fedit")
    assert not command(monkeypatch, *arguments, "--json")
    shown = json.loads(capsys.readouterr().out)
    assert not command(monkeypatch, *arguments)
    text = capsys.readouterr().out
    assert shown["against"] == {"adapters.method": "fedit"} and len(shown["points"]) == 4
    for point in shown["points"]:
        average = point["measures"]["average"]
        assert f"{average['mean']:.3f}" in text and average["low"] <= average["mean"] <= average["high"]
        assert f"{average['mean']:.3f} [" not in text, "two seeds give no interval in a table"
        assert (average["difference"] is None) == (point["set"]["adapters.method"] == "fedit")


def test_compare_finds_the_axes_and_the_pairs_by_itself(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sweep's folder as a whole gives the sweep's means; some of its runs give a table of their own."""
    assert not command(monkeypatch, "compare", whole, "--json")
    shown = json.loads(capsys.readouterr().out)
    swept = json.loads((whole / "sweep.json").read_text())
    assert [p["measures"] for p in shown["points"]] == [p["measures"] for p in swept["points"]]
    assert [p["set"]["radio.snr_db"] for p in shown["points"]] == ["0.0", "20.0"] * 2
    few = sorted(path for path in (whole / "cells").iterdir() if "snr_db=20" in path.name and "seed=1" in path.name)
    assert not command(monkeypatch, "compare", *few, "--json", "--against", "adapters.method=fedit")
    shown = json.loads(capsys.readouterr().out)
    assert [point["set"] for point in shown["points"]] == [{"adapters.method": m} for m in ("airpfed", "fedit")]
    averages = [run_files.load_summary(path / "summary.json").average for path in few]
    gap = shown["points"][0]["measures"]["average"]["difference"]
    assert gap["mean"] == pytest.approx(averages[0] - averages[1]) and gap["low"] is None and gap["count"] == 1


def test_compare_says_what_it_cannot_do(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = sorted((whole / "cells").iterdir())[0]
    for folders, message in (
        ([tmp_path], f"{tmp_path}: no finished run here"),
        ([one, one], f"{one}: the same settings"),
    ):
        assert command(monkeypatch, "compare", *folders) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"airpfed: {message}") and err.count("\n") == 1


def test_figures_lie_beside_their_numbers(whole: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FIGURES", ("average",))
    home = Path(shutil.copytree(whole, whole.parent / "drawn"))
    run_sweep(plan(file, home), SweepConsole())
    assert {path.name for path in home.glob("average-*")} == {
        f"average-{key}.{ending}" for key in ("method", "snr_db") for ending in ("csv", "svg", "png", "pdf")
    }
    drawn = {tuple(line.values()) for line in rows(home / "average-snr_db.csv")}
    keys = ("adapters.method", "radio.snr_db", "mean", "low", "high", "count")
    assert drawn == {tuple(line[k] for k in keys) for line in rows(home / "means.csv") if line["measure"] == "average"}


def test_compare_writes_the_sweeps_tables_and_figures(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "FIGURES", ("pi",))
    out = tmp_path / "deep" / "figures"
    assert not command(monkeypatch, "compare", whole, "--figures", out)
    names = {f"pi-round.{end}" for end in ("csv", "svg", "png", "pdf")}
    assert {path.name for path in out.iterdir()} == {"cells.csv", "rounds.csv", "means.csv"} | names
    compared, swept = ([float(line["mean"]) for line in rows(folder / "means.csv")] for folder in (out, whole))
    assert compared == swept
    (tmp_path / "file").touch()
    assert command(monkeypatch, "compare", whole, "--figures", tmp_path / "file") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"airpfed: {tmp_path / 'file'}: cannot be made: ")


@pytest.mark.loopback
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray leaves its processes to the system
def test_a_ray_cluster_gives_the_same_tables(whole: Path, file: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    home = tmp_path / "ray"
    shutil.copytree(whole, home)
    for cell in sorted((home / "cells").iterdir())[:2]:
        shutil.rmtree(cell)
    run_sweep(plan(file, home, ray="local"), SweepConsole())
    assert tables(home) == tables(whole)


@pytest.mark.loopback
def test_a_ray_cluster_that_is_not_there_is_one_line(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=r"^--ray nowhere: "):
        run_sweep(plan(file, tmp_path, ray="nowhere"), SweepConsole())


def test_a_choice_at_the_edge_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows_ = [
        ScoredRun((("method", m), ("lr", lr)), 0, summary({"a": 0.5}, dev=dev), "")
        for m, devs in (("m", (0.1, 0.2, 0.3)), ("n", (0.1, 0.3, 0.2)))
        for lr, dev in zip(("1", "0.5", "2"), devs, strict=True)
    ]
    spread = job.tune(rows_, {"method": ["m", "n"]}, {"lr": ["1", "0.5", "2"]}, tmp_path, SweepConsole())
    assert spread == [("method=m", "lr=2"), ("method=n", "lr=0.5")]
    said = capsys.readouterr().err.splitlines()
    edge = "is at the edge of what was tried"
    assert said == [f"tuning: method=m: the best lr = 2 {edge}", f"tuning: method=n: the best lr = 0.5 {edge}"]
