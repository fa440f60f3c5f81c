"""Intervals hold what they promise, differences are paired by seed, and a value is chosen on the dev split alone."""

import math
import random
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from airpfed.sweeps.console import interval_text
from airpfed.sweeps.tables import Interval, ScoredRun, choose_tuned, means, measures, t_interval, t_quantile
from support.sweeps import summary


def run(seed: int, average: float, **where: str) -> ScoredRun:
    return ScoredRun(tuple(where.items()), seed, summary({"a": average}), f"cells/{seed}")


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706205), (2, 4.302653), (9, 2.262157), (100, 1.983972)])
def test_the_quantile_is_students(freedom: int, quantile: float) -> None:
    """Values of a printed table."""
    assert t_quantile(freedom) == pytest.approx(quantile, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_an_interval_is_scipys(values: list[float]) -> None:
    found = t_interval(values)
    wide = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    assert found.mean == pytest.approx(fmean(values)) and found.count == len(values)
    assert (found.low, found.high) == pytest.approx((found.mean - wide, found.mean + wide))


def test_intervals_hold_the_truth_in_95_percent() -> None:
    """5 values of a normal law, 4000 times: the share's standard error is 0.34 %."""
    rng = random.Random(0)
    found = [t_interval([rng.gauss(3.0, 2.0) for _ in range(5)]) for _ in range(4000)]
    share = fmean(one.low < 3.0 < one.high for one in found)  # type: ignore[operator]
    assert abs(share - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 4000)


def test_one_seed_has_no_interval() -> None:
    one = t_interval([0.5])
    assert (one.mean, one.low, one.high, one.count) == (0.5, None, None, 1)


def test_differences_are_paired_over_common_seeds_at_the_same_other_axes() -> None:
    """Seeds differ by 0.1 each and methods by 0.02 and 0.03: only pairing sees it. Seed 3 has no partner."""
    rows = [
        run(s, 0.5 + 0.1 * s + (0.02 + 0.01 * (s == 1)) * (m == "ours") + 0.3 * (snr == "20"), method=m, snr=snr)
        for m in ("ours", "theirs")
        for snr in ("0", "20")
        for s in range(4)
        if not (m == "theirs" and s == 3)
    ]
    found = {(dict(o.point)["method"], dict(o.point)["snr"]): o for o in means(rows, {"method": "theirs"})
             if o.measure == "average"}  # fmt: skip
    assert found["theirs", "0"].difference is None, "nothing is compared with itself"
    for snr in ("0", "20"):
        gap, wanted = found["ours", snr].difference, t_interval([0.02, 0.03, 0.02])
        assert gap is not None and gap.count == 3
        assert (gap.mean, gap.low, gap.high) == pytest.approx((wanted.mean, wanted.low, wanted.high))
        assert found["ours", snr].value.count == 4 and found["ours", snr].seeds == (0, 1, 2, 3)
    assert found["ours", "20"].value.mean == pytest.approx(found["ours", "0"].value.mean + 0.3)


def test_without_a_reference_nothing_is_compared() -> None:
    assert all(one.difference is None for one in means([run(0, 0.5, method="a"), run(0, 0.6, method="b")], {}))


def test_the_order_of_points_is_kept_and_that_of_seeds_does_not_matter() -> None:
    rows = [run(s, 0.1 * s, method=m) for s in (2, 0, 1) for m in ("b", "a")]
    assert means(rows, {"method": "b"}) == means(
        sorted(rows, key=lambda r: (r.point[0][1] != "b", r.seed)), {"method": "b"}
    )
    assert list(dict.fromkeys(one.point for one in means(rows, {}))) == [(("method", "b"),), (("method", "a"),)]


MODELLED = {"air_seconds", "downlink_seconds", "compute_seconds", "total_seconds"}
"""Seconds of the model, which are the same on every machine."""


def test_measures_are_the_metrics_and_what_they_cost() -> None:
    one = summary({"a": 0.9, "b": 0.5, "c": None})
    tasks = {**one.tasks, "a": one.tasks["a"].model_copy(update={"others": {"b": 0.3, "c": None}})}
    found = measures(one.model_copy(update={"tasks": tasks}))
    assert (found["average"], found["worst"], found["others"]) == (pytest.approx(0.7), 0.5, 0.3)
    assert (found["task a"], found["task c"], found["air_seconds"]) == (0.9, None, 2.0)
    assert not any("second" in key and key not in MODELLED for key in found), "no wall-clock time"
    assert measures(summary({"a": 0.9}))["others"] is None


def test_the_best_on_dev_is_chosen_whatever_test_says() -> None:
    rows = [
        ScoredRun((("method", "m"), ("lr", lr)), seed, summary({"a": 1 - dev}, dev=dev), "")
        for lr, devs in (("1", (0.2, 0.8)), ("2", (0.7, 0.5)), ("3", (0.6, 0.6)))
        for seed, dev in enumerate(devs)
    ]
    (choice,) = choose_tuned(rows, ["lr"]).values()
    assert choice.best == (("lr", "2"),), "means over seeds are 0.5, 0.6, 0.6: the first of equals"
    assert [(v[0][1], pytest.approx(d), n) for v, d, n in choice.tried] == [("1", 0.5, 2), ("2", 0.6, 2), ("3", 0.6, 2)]
    assert set(choose_tuned(rows, ["lr"])) == {(("method", "m"),)}


@pytest.mark.parametrize(
    ("count", "text"), [(1, "+0.500"), (2, "+0.500"), (3, "+0.500 [+0.400, +0.600]"), (9, "+0.500 [+0.400, +0.600]")]
)
def test_an_interval_is_printed_from_three_seeds_on(count: int, text: str) -> None:
    low, high = (None, None) if count == 1 else (0.4, 0.6)
    assert interval_text(Interval(0.5, low, high, count), "+") == text
