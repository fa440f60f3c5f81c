"""Figures of the theory from rows written by hand."""

import pytest

from airpfed.report.figures import THEORY_FIGURES, average_figure, decrease_figure, share_figure
from support.theory_records import make_probe, make_record, make_theory


def records() -> list:
    return [make_record(1), make_record(2, make_theory(failed=["A2"])), make_record(3), make_record(4, make_theory())]


def test_measured_change_stands_beside_its_bounds_and_failures_are_open() -> None:
    traces = {trace["name"]: trace for trace in decrease_figure(records(), make_probe())["data"]}
    assert traces["measured"]["x"] == [2, 4] and traces["measured"]["y"] == [-0.2, -0.2]
    assert traces["measured"]["marker"]["symbol"] == ["circle-open", "circle"]
    assert traces["measured"]["text"] == ["failed: A2", "assumptions held"]
    assert traces["(41)"]["y"] == [-0.05, -0.05] and traces["(38), E1 + E2 + E3 + E4"]["y"] == [-0.1, -0.1]
    biased = {trace["name"] for trace in decrease_figure(records(), make_probe(unbiased=False))["data"]}
    assert "ours, for biased sums" in biased and "(41)" not in biased


def test_shares_are_stacked_to_one() -> None:
    traces = share_figure(records(), make_probe())["data"]
    assert len(traces) == 4 and all(trace["stackgroup"] == "all" and trace["x"] == [1, 2, 3, 4] for trace in traces)
    assert all(sum(trace["y"][i] for trace in traces) == pytest.approx(1) for i in range(4))


def test_the_average_bound_is_above_the_mean_gradient_here() -> None:
    traces = {trace["name"]: trace for trace in average_figure(records(), make_probe())["data"]}
    assert len(traces["Ψ_T"]["y"]) == 4 and traces["mean of metered Λ"]["y"] == [1.0, 1.0]
    assert set(THEORY_FIGURES) == {"theory-decrease", "theory-shares", "theory-average"}
