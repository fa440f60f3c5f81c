"""Which constants the probe concludes from what it saw, on points written by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from airpfed.analysis.monitor import BoundMonitor
from airpfed.analysis.probe import conclude, pilot_step
from airpfed.core.run_files import Point
from airpfed.theory import bounds
from airpfed.training.state import ServerStep
from support.metered import METERED, experiment
from support.settings import make_settings
from support.theory_records import make_point


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> BoundMonitor:
    made = experiment(make_settings(tmp_path_factory.mktemp("settings"), small_llama), *METERED)
    assert made.monitor is not None
    return replace(made.monitor, rounds=10, pilot_rounds=20, safety=2.0)


def pilot(**last: float) -> list[Point]:
    """The start, half the way, the end."""
    start = make_point(beta=1.0, loss=2.0, gradient=1.0, power=1.5, sgd=0.5)
    half = make_point(beta=1.5, loss=1.5, gradient=0.4, power=0.8, sgd=0.4, time=2.0, distance=0.3, secant=1.0)
    end = {"beta": 2.0, "loss": 1.0, "gradient": 0.3, "power": 0.9, "sgd": 0.6, "time": 4.0, "distance": 0.7, **last}
    return [start, half, make_point(**end)]


def holds(fixed, points) -> bool:  # type: ignore[no-untyped-def]
    """A2 and A3 at the points with the safety factor in hand, beta above all that was seen."""
    return all(
        p.sgd <= fixed.c * p.power + fixed.sigma_sgd2 / 2 + 1e-12
        and p.power <= fixed.lam * p.gradient + fixed.sigma_dif2 / 2 + 1e-12
        and p.power <= fixed.lam_printed * p.gradient_printed + fixed.sigma_dif2_printed / 2 + 1e-12
        and fixed.beta >= 2 * max(p.beta, p.secant)
        for p in points
    )


def test_constants_cover_what_is_used_and_the_rule_stays_within_the_pilots_time(monitor: BoundMonitor) -> None:
    found = conclude(monitor, pilot(), {})
    assert found.used in (2, 3) and holds(found.constants, found.points[: found.used])
    assert found.eta == bounds.step_size(found.constants)
    assert 10 * found.eta <= found.points[found.used - 1].time * (1 + 1e-9)
    assert found.reach == pytest.approx(2 * found.points[found.used - 1].distance)
    assert found.constants.sigma_sgd2 >= 2 * 0.4, "noise is not taken to vanish with the gradient"
    assert found.constants.sigma_dif2 >= 2 * min(p.power - p.gradient for p in found.points[: found.used])


def test_a_steep_end_is_left_out_where_that_promises_more(monitor: BoundMonitor) -> None:
    assert conclude(monitor, pilot(beta=2000.0), {}).used == 2
    far = conclude(replace(monitor, rounds=10_000), pilot(beta=1.5, sgd=0.4, power=0.7), {})
    assert far.used == 3, "a long run needs the time"


def test_a_secant_counts_as_curvature(monitor: BoundMonitor) -> None:
    assert conclude(monitor, pilot(beta=0.1, secant=50.0, sgd=0.4, power=0.7, time=4000.0), {}).constants.beta >= 3.0
    only = conclude(replace(monitor, pilot_rounds=0), [make_point(secant=7.0)], {})
    assert only.constants.beta == 14.0 and only.used == 1


def test_a_given_rate_takes_the_points_it_needs(monitor: BoundMonitor) -> None:
    """T lr up to 2: half the pilot; more: all of it; farther than it went: all of it, and the step may be too long."""
    for lr, used in ((0.1, 2), (0.3, 3), (5.0, 3)):
        found = conclude(replace(monitor, server_step=ServerStep("sgd", lr)), pilot(), {})
        assert found.used == used and holds(found.constants, found.points[:used]), lr
        assert found.constants.beta == 2 * max(p.beta for p in found.points[:used]), "no time limit raises beta"


def test_given_constants_are_taken_as_they_are(monitor: BoundMonitor) -> None:
    given = {"beta": 3.0, "c": 0.25, "sigma_sgd2": 1.0, "lam": 1.5, "sigma_dif2": 0.125}
    fixed = conclude(replace(monitor, given=given), pilot(), {}).constants
    assert {key: getattr(fixed, key) for key in given} == given
    assert (fixed.lam_printed, fixed.sigma_dif2_printed) == (1.5, 0.125)


def test_a_biased_design_gets_the_gain_and_deviation_that_cover_all_points(monitor: BoundMonitor) -> None:
    points = [make_point(gain=0.6, deviation=0.1, time=0.0), make_point(gain=0.8, deviation=0.05, time=4.0)]
    fixed = conclude(replace(monitor, unbiased=False), points, {}).constants
    assert fixed.gain == pytest.approx(0.7) and fixed.deviation == pytest.approx(2 * (0.1**2 + 0.1**2) ** 0.5)
    assert conclude(monitor, points, {}).constants.gain == 1


def test_the_pilot_goes_no_farther_than_it_has_to(monitor: BoundMonitor) -> None:
    start = make_point(beta=4.0)
    assert pilot_step(monitor, start) == 1 / 8
    assert pilot_step(replace(monitor, server_step=ServerStep("sgd", 0.01)), start) == pytest.approx(0.01 * 10 / 20)
    assert pilot_step(replace(monitor, server_step=ServerStep("sgd", 50.0)), start) == 1 / 8
    assert pilot_step(replace(monitor, given={"beta": 2.0}), start) == 0.5
    assert pilot_step(replace(monitor, server_step=ServerStep("adam", 0.02)), start) == 0.02


@pytest.mark.parametrize("method", ["airpfed", "feddpa", "local"])
def test_what_a_device_keeps_is_in_no_sum(
    method: str, tmp_path_factory: pytest.TempPathFactory, small_llama: Path
) -> None:
    """A step of SGD along what devices keep, mini-batches far apart: E||G||^2 counts each device's noise whole."""
    file = make_settings(tmp_path_factory.mktemp("settings"), small_llama)
    made = experiment(file, *METERED, f"adapters.method={method}")
    assert made.monitor is not None
    share = float(made.monitor.weights.in_task.max())
    assert share < 1
    assert conclude(made.monitor, pilot(), {}).constants.largest == (share if method == "airpfed" else 1.0)
