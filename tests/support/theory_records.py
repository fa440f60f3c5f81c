"""Rows of a run written by hand."""

from typing import Any

from airpfed.core.run_files import (
    Bounds,
    Constants,
    Ledger,
    MeanSquaredErrors,
    Point,
    Probe,
    RoundRecord,
    SlotError,
    Theory,
)

CONSTANTS = Constants(beta=2.0, c=0.0, sigma_sgd2=0.4, lam=1.0, sigma_dif2=0.2, lam_printed=1.0, sigma_dif2_printed=0.5)


def make_point(**changes: Any) -> Point:
    values: dict[str, Any] = {
        "loss": 1.5,
        "gradient": 1.0,
        "gradient_printed": 0.5,
        "power": 1.2,
        "sgd": 0.3,
        "sgd_error": 0.1,
        "rounds": 0,
        "time": 0.0,
        "distance": 0.0,
        "beta": 1.0,
        "beta_low": 0.9,
        "beta_high": 1.2,
        "secant": 0.0,
        "energy": {},
        "alike": {"s": 0.0, "a": 0.0},
        "as_shared": 0.4,
        "as_personal": 0.9,
        "head": 0.1,
        "gain": 1.0,
        "deviation": 0.0,
        "channel": 0.1,
    }
    return Point(**{**values, **changes})


def make_probe(points: list[Point] | None = None, **changes: Any) -> Probe:
    values: dict[str, Any] = {
        "constants": CONSTANTS,
        "eta": 0.5,
        "reach": 1.0,
        "unbiased": True,
        "tasks": {"a": 0.25, "b": 0.75},
        "points": points or [make_point()],
        "used": len(points or [0]),
        "safety": 1.5,
        "seconds": {"pilot": 1.0},
    }
    return Probe(**{**values, **changes})


def make_theory(**changes: Any) -> Theory:
    bounds = Bounds(
        descent=-0.1, first_order=-0.3, second_order=0.2, one_round=-0.05, one_round_printed=0.1, one_round_ours=-0.08
    )
    values: dict[str, Any] = {
        "loss": 1.5,
        "gradient": 1.0,
        "gradient_printed": 0.5,
        "power": 1.2,
        "sgd": 0.3,
        "sgd_error": 0.1,
        "change": -0.2,
        "e1": -0.1,
        "e2": -0.2,
        "e3": 0.1,
        "e4": 0.1,
        "draws": 20,
        "change_mean": -0.2,
        "first_mean": -0.3,
        "second_mean": 0.2,
        "channel": 0.1,
        "channel_measured": 0.1,
        "gain": 1.0,
        "deviation": 0.0,
        "distance": 0.1,
        "curvature": 0.5,
        "eta": 0.5,
        "bounds": bounds,
        "constants": CONSTANTS,
        "failed": [],
    }
    return Theory(**{**values, **changes})


def make_record(number: int, theory: Theory | None = None, claimed: float = 0.1) -> RoundRecord:
    def error(scale: float) -> SlotError:
        return SlotError(claimed=claimed, measured=2 * claimed, bias=0, variance=claimed, silence=1, scale=scale)

    return RoundRecord(
        round=number,
        loss={"a": 1.0, "b": 1.0},
        pi=0.1,
        pi_claimed=0.1,
        theory=theory,
        mse=MeanSquaredErrors(s=error(2.0), p={"a": error(4.0), "b": error(8.0)}),
        ledger=Ledger(air_seconds=0.5, joules_mean=0.25),
        seconds={"gradients": 1.0},
    )
