"""What a sweep's figures are made of: courses over rounds, seconds and joules; tasks; splits of the rank."""

import csv
import io
from functools import partial
from pathlib import Path

import pytest

from airpfed.core import run_files
from airpfed.core.run_files import Ledger, MeanSquaredErrors, RoundRecord
from airpfed.report import plots
from airpfed.report.charts import SPLIT, chart_of_measure
from airpfed.sweeps import figures
from airpfed.sweeps.figures import course_lines, join_ranks
from airpfed.sweeps.tables import ScoredRun, means, t_interval
from airpfed.theory.verification import average_bounds
from support.sweeps import summary
from support.theory_records import make_probe, make_record, make_theory

METHODS = {"method": ["airpfed", "fedit"]}
WHERE = {(("adapters.method", name),): {"method": name} for name in METHODS["method"]}


def rows(seed: int, count: int, slow: int = 1) -> list[RoundRecord]:
    """Rounds evaluated every second time; `slow` times the seconds on air."""
    return [
        RoundRecord(
            round=number,
            loss={"a": 1.0, "b": 2.0},
            accuracy={"a": 0.1 * number + 0.01 * seed, "b": 0.05 * number} if number % 2 == 0 else {},
            mse=MeanSquaredErrors(),
            pi=0.01 * number * (seed + 1),
            pi_claimed=0.02,
            ledger=Ledger(air_seconds=0.5 * slow, joules_mean=1e-3 * (seed + 1)),
            seconds={},
        )
        for number in range(1, count + 1)
    ]


def made(counts: tuple[int, ...] = (6, 4)) -> tuple[list[ScoredRun], dict[str, list[RoundRecord]]]:
    """Two methods with a seed for every count of rounds."""
    runs, rounds = [], {}
    for slow, name in enumerate(METHODS["method"], 1):
        for seed, count in enumerate(counts):
            folder = f"{name}-{seed}"
            runs.append(
                ScoredRun((("adapters.method", name),), seed, summary({"a": 0.5, "b": 0.6 + seed / 10}), folder)
            )
            rounds[folder] = rows(seed, count, slow)
    return runs, rounds


def test_a_course_is_the_mean_over_seeds_at_the_rounds_and_costs_that_all_have() -> None:
    runs, rounds = made()
    lines, axes = course_lines(runs, rounds, partial(figures.dev_course, Path()), WHERE, METHODS)
    assert axes == METHODS and [(one["method"], one["round"]) for one in lines] == [
        ("airpfed", 2), ("airpfed", 4), ("fedit", 2), ("fedit", 4),
    ]  # fmt: skip
    last = lines[-1]
    assert last["seconds_on_air"] == pytest.approx(4 * 0.5 * 2) and last["joules_a_device"] == pytest.approx(4 * 1.5e-3)
    expected = t_interval([(0.4 + 0.2) / 2, (0.41 + 0.2) / 2])
    assert [last[key] for key in ("mean", "low", "high")] == pytest.approx([expected.mean, expected.low, expected.high])


def test_one_point_alone_shows_its_tasks() -> None:
    runs, rounds = made()
    lines, axes = course_lines(runs[:1], rounds, partial(figures.dev_course, Path()), WHERE, {})
    assert axes == {"task": ["a", "b"]} and {line["task"] for line in lines} == {"a", "b"}
    assert [line["mean"] for line in lines if line["task"] == "b"] == pytest.approx([0.1, 0.2, 0.3])
    lines, axes = course_lines(runs[:1], rounds, partial(figures.pi_course, Path()), WHERE, {})
    assert axes == {} and [line["mean"] for line in lines] == pytest.approx([0.01 * n for n in range(1, 7)])


def test_courses_are_drawn_over_what_they_say() -> None:
    runs, rounds = made((6, 6))
    lines, axes = course_lines(runs, rounds, partial(figures.dev_course, Path()), WHERE, METHODS)
    found = dict(plots.course_files(lines, axes, "dev"))
    assert set(found) == {f"dev-{x}.{end}" for x in plots.ROUND_COLUMNS for end in ("csv", "svg", "png", "pdf")}
    table = list(csv.DictReader(io.StringIO(found["dev-seconds_on_air.csv"].decode())))
    assert [float(row["mean"]) for row in table] == [line["mean"] for line in lines]
    by_round = [{**line, "round": str(line["round"])} for line in lines]
    chart = chart_of_measure(by_round, {**axes, "round": ["2", "4", "6"]}, "round", "dev")
    for across in plots.ROUND_COLUMNS:
        figure = plots.draw_course(chart, "dev", across)
        (place,) = figure.axes
        for name, drawn in zip(METHODS["method"], place.lines, strict=True):
            mine = [line for line in lines if line["method"] == name]
            assert list(drawn.get_xdata()) == [line[across] for line in mine]
            assert list(drawn.get_ydata()) == [line["mean"] for line in mine]
        bands = [many.get_paths()[0].vertices[:, 1] for many in place.collections]
        ends = []
        for name in METHODS["method"]:
            mine = [line for line in lines if line["method"] == name]
            ends.append((min(line["low"] for line in mine), max(line["high"] for line in mine)))
        assert [(min(band), max(band)) for band in bands] == [pytest.approx(pair) for pair in ends]
        assert [text.get_text() for text in figure.legends[0].texts] == METHODS["method"]


def test_psi_is_of_metered_runs_of_plain_sgd(tmp_path: Path) -> None:
    (tmp_path / "metered").mkdir()
    probe = make_probe()
    run_files.write_json(tmp_path / "metered" / "theory.json", probe)
    check_round, adam = [make_record(1, make_theory()), make_record(2)], [make_record(1), make_record(2)]
    run = ScoredRun((), 0, summary({"a": 0.5}), "metered")
    expected = [one.total for one in average_bounds(check_round, probe) if one]
    assert list(figures.psi_course(tmp_path, run, check_round)[""].values()) == expected and len(expected) == 2
    assert figures.psi_course(tmp_path, run, adam) == {"": {}}
    assert figures.psi_course(tmp_path, ScoredRun((), 0, summary({"a": 0.5}), "other"), check_round) == {"": {}}


def test_ranks_that_go_together_are_one_axis() -> None:
    ranks = {(("s", s), ("p", p)): {"rank_shared": s, "rank_personal": p} for s, p in (("8", "0"), ("4", "4"))}
    axes = {"rank_shared": ["8", "4"], "rank_personal": ["0", "4"]}
    where, joined = join_ranks(ranks, axes)
    assert joined == {SPLIT: ["8/0", "4/4"]} and [one[SPLIT] for one in where.values()] == ["8/0", "4/4"]
    crossed = {**ranks, (("s", "8"), ("p", "4")): {"rank_shared": "8", "rank_personal": "4"}}
    assert join_ranks(crossed, axes) == (crossed, axes)


def test_final_metrics_by_task_with_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, rounds = made()
    monkeypatch.setattr(figures, "FIGURES", ("final",))
    found = dict(figures.sweep_figures(runs, means(runs, {}), METHODS, rounds, Path()))
    table = list(csv.DictReader(io.StringIO(found["final-task.csv"].decode())))
    assert [(row["method"], row["task"]) for row in table] == [(m, t) for m in METHODS["method"] for t in "ab"]
    expected = t_interval([0.6, 0.7])
    assert [float(table[1][key]) for key in ("mean", "low", "high", "untouched")] == pytest.approx(
        [expected.mean, expected.low, expected.high, 0.2]
    )
