"""What every design must keep, whatever its method."""

from dataclasses import replace

import pytest
import torch

from airpfed.air.designs import DESIGNS
from airpfed.air.problem import gains, mse, objective, silent
from airpfed.core.rng import stream
from support.designs import solved

every_design = pytest.mark.parametrize("name", DESIGNS)
every_shape = pytest.mark.parametrize(
    ("antennas", "devices", "targets"), [(4, 10, 1), (12, 8, 1), (8, 8, 2), (3, 9, 3)]
)


def finite(transceiver):
    return bool(torch.isfinite(transceiver.receiver).all() and torch.isfinite(transceiver.transmit_factors).all())


def z_scores(errors, claimed):
    return (errors.mean(0) - claimed) / (errors.std(0) / len(errors) ** 0.5)


@every_design
@pytest.mark.parametrize(("targets", "csi"), [(1, 0.0), (1, 0.1), (3, 0.0), (3, 0.1)])
def test_the_claimed_error_is_the_measured_one(make_slot, measure, name, targets, csi):
    problem = make_slot(2, 6, 9, targets, csi=csi)
    transceiver = DESIGNS[name](problem)
    errors = measure(problem, transceiver, 30_000, stream(1, name))
    claimed = mse(problem, transceiver)
    assert z_scores(errors, claimed).abs().max() < 5


def test_a_slip_of_two_percent_would_be_seen(make_slot, measure):
    problem = make_slot(4, 6, 9)
    transceiver = DESIGNS["mmse"](problem)
    errors = measure(problem, transceiver, 40_000, stream(1, "slip")).mean(1)
    assert z_scores(errors, 1.02 * mse(problem, transceiver).mean(0)).abs().max() > 5


@every_design
@every_shape
def test_power_is_kept(make_slot, name, antennas, devices, targets):
    problem = make_slot(4, antennas, devices, targets)
    transceiver = solved(name, problem)
    assert (transceiver.transmit_factors.abs().square() <= problem.power_limit * (1 + 1e-9)).all()


@every_design
@every_shape
def test_nothing_depends_on_the_scale_of_units(make_slot, name, antennas, devices, targets):
    problem = make_slot(4, antennas, devices, targets)
    watts, volts, sums = 7.0, 3e5, 11.0
    other = replace(
        problem,
        h=problem.h * volts,
        power_limit=problem.power_limit * watts,
        noise=problem.noise * watts * volts**2,
        csi_variance=problem.csi_variance * volts**2,
        weights=problem.weights * sums,
    )
    expected = objective(problem, solved(name, problem)) * sums**2
    torch.testing.assert_close(objective(other, DESIGNS[name](other)), expected, rtol=1e-3, atol=0)


@every_design
@every_shape
def test_a_block_does_not_depend_on_its_batch(make_slot, name, antennas, devices, targets):
    problem = make_slot(5, antennas, devices, targets)
    near = replace(problem, h=torch.cat([problem.h[:2], 1e4 * problem.h[2:]]))
    alone = replace(problem, h=problem.h[:1])
    batched = objective(near, DESIGNS[name](near))[:1]
    torch.testing.assert_close(batched, objective(alone, DESIGNS[name](alone)), rtol=1e-3, atol=0)


@every_design
@pytest.mark.parametrize(("targets", "noise"), [(1, 0.0), (2, 0.0), (1, 1e-13)])
@pytest.mark.parametrize(
    "case",
    ["plain", "no weight", "no channel", "no power", "duplicates", "all silent", "all deaf", "one antenna", "few"],
)
def test_degenerate_slots_stay_finite(make_slot, name, targets, noise, case, monkeypatch):
    monkeypatch.setattr(
        "airpfed.air.designs.alternating.CONTINUATION_LEVEL_STEPS", 10
    )  # finite, not good, is what is asked
    problem = replace(
        make_slot(3, 1 if case == "one antenna" else 4, targets if case == "few" else 6, targets), noise=noise
    )
    h, weights, power = problem.h.clone(), problem.weights.clone(), problem.power_limit.clone()
    match case:
        case "no weight":
            weights[:, 0] = 0
        case "no channel":
            h[0, :, 1] = 0
        case "no power":
            power[1] = 0
        case "duplicates":
            h[1] = h[1, :, :1]
        case "all silent":
            weights[:] = 0
        case "all deaf":
            h[2] = 0
    problem = replace(problem, h=h, weights=weights, power_limit=power)
    transceiver = DESIGNS[name](problem)
    assert finite(transceiver)
    assert (transceiver.transmit_factors.abs().square() <= problem.power_limit * (1 + 1e-9)).all()
    if name not in ("uniform_forcing", "debiased_mmse"):  # they do not shrink a sum to nothing
        assert (objective(problem, transceiver) <= objective(problem, silent(problem)) * (1 + 1e-6) + 1e-300).all()
    if case == "no weight":
        assert (transceiver.transmit_factors[:, 0] == 0).all()
    if case == "no channel":
        assert (gains(problem.h, transceiver)[0, :, 1] == 0).all()
