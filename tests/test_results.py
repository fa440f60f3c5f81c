"""The study: its page holds every table, a table comes from its sweep, and a cell that is off is told."""

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import study
from typer.testing import CliRunner

from airpfed.cli import app
from airpfed.config.experiment_files import settings_path
from airpfed.config.settings_file import read_expected

pytestmark = pytest.mark.usefixtures("shared_bases")

HOME = Path(__file__).parents[1]
TWO = study.Study("", ("server.lr=0.01,0.02",), 3, {"server.lr": "0.02"}, overrides=("server.rounds=2",))


def in_process(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{done.output}{done.exception}"


@pytest.fixture
def made(tmp_path: Path, small_settings: Path, monkeypatch: pytest.MonkeyPatch) -> "study.Study":
    """A table of two rates and three seeds, kept below `tmp_path`."""
    monkeypatch.setattr(study, "run_airpfed", in_process)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr("airpfed.sweeps.figures.FIGURES", ("average",))
    one = replace(TWO, file=str(small_settings), figures=("average-lr",))
    study.sweep("two", one, tmp_path / "runs", 1)
    return one


def test_a_table_comes_from_its_sweep_and_a_cell_that_is_off_is_told(made: "study.Study", tmp_path: Path) -> None:
    kept = tmp_path / "kept/two"
    names = {"sweep.json", "cells.csv", "average-lr.csv", "average-lr.svg", study.COST}
    assert names == {path.name for path in kept.iterdir()}
    lines = study.section("two", made).splitlines()
    assert lines[0].startswith("    airpfed sweep") and sum(line.startswith("|") for line in lines) == 2 + 2
    assert study.check("two", made) is None
    text = (kept / "cells.csv").read_text().splitlines()
    final = text[0].split(",").index("final")
    off = [line.split(",") for line in text[1:]]
    for row in off:
        row[final] = str(float(row[final]) + 2)
    (kept / "cells.csv").write_text("\n".join([text[0], *(",".join(row) for row in off)]) + "\n")
    told = study.check("two", made)
    assert told is not None and "expected 2." in told.replace("expected 1.", "expected 2.")


@pytest.mark.parametrize("name", ["conflict", "related", "few", "smollm2"])
def test_what_a_suites_file_expects_is_what_its_table_says(name: str) -> None:
    one, values = study.STUDIES[name], study.by_seed(name)["airpfed"].values()
    assert read_expected(settings_path(one.file))["average"] == pytest.approx(study.expected(list(values)), abs=0.011)


def test_cpu_hours_are_of_all_calls_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stopped call took counts too, and tables without a record are named."""

    def stopped(_words: object) -> None:
        code = "import time\nwhile time.process_time() < 0.3: pass"
        subprocess.run([sys.executable, "-S", "-c", code], check=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_airpfed", stopped)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(study, "STUDIES", {"one": TWO, "other": TWO})
    (tmp_path / "runs/one").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            study.sweep("one", TWO, tmp_path / "runs", 1)
    told = [float(line) for line in (tmp_path / "runs/one" / study.COST).read_text().split()]
    assert len(told) == 2 and all(seconds > 0.2 for seconds in told)
    (tmp_path / "kept/one").mkdir(parents=True)
    (tmp_path / "kept/one" / study.COST).write_text("1800\n5400\n")
    assert study.hours("one") == 2 and study.hours("other") is None
    assert study.costs() == "CPU hours of 1 tables of 2: 2.00; not kept for other."


def test_one_more_run_is_expected_where_runs_were() -> None:
    low, high = study.expected([0.4, 0.5, 0.6])
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(4.302653 * 0.1 * (4 / 3) ** 0.5, rel=1e-5)
    assert study.expected([0.5, 0.5]) == pytest.approx((0.48, 0.52))


def test_points_are_found_however_numbers_are_written() -> None:
    rows = [{"a": "x", "b": "-10.0", "seed": "0", "final": "0.5"}, {"a": "x", "b": "0", "seed": "0", "final": "1"}]
    assert study.averages(rows, {"a": "x", "b": "-10"}) == {0: 0.5}


@pytest.mark.parametrize("name", study.STUDIES)
def test_every_table_is_on_the_page_with_its_files(name: str) -> None:
    """The command of the page is the table's own, its experiment is there, and its numbers are kept."""
    one, page = study.STUDIES[name], (HOME / "docs/results.md").read_text()
    match = re.search(f"<!-- study: {name} -->\n(.*?)<!-- end: {name} -->", page, re.DOTALL)
    assert match is not None and settings_path(one.file).is_file()
    assert match[1].strip("\n") == study.section(name, one)
    with (HOME / "docs/results" / name / "cells.csv").open(newline="") as file:
        seeds = study.averages(list(csv.DictReader(file)), one.check)
    assert len(seeds) == one.seeds, "what --check plays is in the table"


def test_later_seeds_are_told_apart_and_the_whole_is_of_the_seeds_that_all_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made-up suites: the first has seven seeds, the second five; the halves lose 0.1 and 0.2, later twice that."""
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "SUITES", ("long", "short"))
    loses = {"airpfed": 0.0, "fedit": 0.1, "per_task_fedit": 0.2}
    for name, count in {"long": 7, "short": 5}.items():
        (tmp_path / name).mkdir()
        with (tmp_path / name / "cells.csv").open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["adapters.method", "seed", "task", "final"])
            for method, less in loses.items():
                for seed in range(count):
                    twice = 1 + (seed >= study.FIRST)
                    out.writerows([method, seed, task, 0.9 - 0.01 * seed - less * twice] for task in ("a", "b"))
    assert study.later("long") == " (seeds 5 to 6 alone, minus airpfed: fedit -0.200, per_task_fedit -0.400)"
    assert study.later("short") == ""
    head, _, *lines = study.overall().splitlines()
    assert "5 seeds" in head
    assert [line.split("|")[3].strip() for line in lines] == ["", "-0.100", "-0.200"]
