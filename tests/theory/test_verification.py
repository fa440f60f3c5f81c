"""A run's account from rows written by hand."""

import pytest

from airpfed.theory import bounds
from airpfed.theory.verification import as_json, average_bounds, error_energy, verify_run
from support.theory_records import CONSTANTS, make_probe, make_record, make_theory


def bounds_of(**changes: float | None) -> dict:
    return {"bounds": make_theory().bounds.model_copy(update=changes)}


def test_energy_weighs_slots_as_f_does() -> None:
    mse = make_record(1).mse
    assert error_energy(mse, {"a": 0.25, "b": 0.75}, "claimed") == pytest.approx(0.1 * (2 + 0.25 * 4 + 0.75 * 8))
    assert error_energy(mse, {"a": 0.25, "b": 0.75}, "measured") == pytest.approx(0.2 * 9)


def test_violations_slack_and_psi_of_an_unbiased_run() -> None:
    """Round 2 breaks (38), round 4 breaks (41); rounds 1 and 3 are not metered."""
    records = [
        make_record(1),
        make_record(2, make_theory(change=-0.05, failed=["A1", "region"])),
        make_record(3, claimed=0.4),
        make_record(4, make_theory(change_mean=-0.01, gradient=3.0, loss=1.2, failed=["A1"])),
    ]
    found = verify_run(records, make_probe())
    assert (found.rounds, found.descent_violations, found.bound_violations) == (2, 1, 1)
    assert found.slack == pytest.approx((0.15 - 0.04) / 2) and found.gradient == 2.0
    assert found.failed == {"A1": [2, 4], "region": [2]}
    assert found.loss_end == pytest.approx(1.0)
    assert found.psi is not None
    mean = 9 * (0.1 + 0.1 + 0.4 + 0.1) / 4
    assert found.psi.total == pytest.approx(bounds.average_bound(0.5, CONSTANTS, 1.5, 4, mean).total)
    over = average_bounds(records, make_probe())
    assert [round(one.gap, 9) for one in over if one] == [6.0, 3.0, 2.0, 1.5]
    assert over[2] is not None and over[2].channel == pytest.approx(9 * 0.2)


def test_json_has_the_promised_keys_and_no_others() -> None:
    probe = make_probe()
    tree = as_json(verify_run([make_record(1, make_theory())], probe), probe)
    assert set(tree) == {
        "rounds", "descent_violations", "bound_violations", "slack_median", "psi", "shares", "constants", "loss_start",
        "loss_end",
    }  # fmt: skip
    shares = tree["shares"]
    assert isinstance(shares, dict) and list(shares) == ["gap", "sgd", "heterogeneity", "channel"]
    assert sum(shares.values()) == pytest.approx(1)
    assert tree["loss_start"] == 1.5 and tree["loss_end"] == pytest.approx(1.3)


def test_a_biased_design_is_judged_by_our_bound() -> None:
    """(41) would be violated in both rounds, ours is in one; Psi_T is ours too."""
    biased = CONSTANTS.model_copy(update={"gain": 0.5, "deviation": 0.05})
    probe = make_probe(unbiased=False, constants=biased)
    rows = [make_theory(change_mean=0.0, **bounds_of(one_round=-0.05, one_round_ours=limit)) for limit in (0.01, -0.01)]
    found = verify_run([make_record(1, rows[0]), make_record(2, rows[1])], probe)
    assert (found.bound_violations, found.unbiased_violations) == (1, 2)
    ours = bounds.average_bound_ours(0.5, biased, 1.5, 2, 0.9)
    assert found.psi is not None and ours is not None and found.psi.total == pytest.approx(ours.total)


def test_rounds_that_are_not_plain_sgd_are_not_judged() -> None:
    row = make_theory(**bounds_of(one_round=None, one_round_ours=None))
    probe = make_probe()
    found = verify_run([make_record(1, row)], probe)
    assert found.bound_violations is None and found.slack is None and found.psi is None
    assert as_json(found, probe)["psi"] is None
    nothing = verify_run([], probe)
    assert nothing.rounds == 0 and nothing.psi is None and nothing.loss_end is None


def test_psi_is_not_stated_where_43_proves_nothing() -> None:
    """Above the rule's step, and for Adam or several local steps; a rate that was set is the run's without a meter."""
    records = [make_record(1), make_record(2)]
    rule = bounds.step_size(CONSTANTS)
    stated = verify_run(records, make_probe(lr=rule / 2)).psi
    assert stated is not None and stated.gap == pytest.approx(2 * 1.5 / (rule / 2 * 2))
    assert verify_run(records, make_probe(lr=rule)).psi is not None
    assert verify_run(records, make_probe(lr=1.1 * rule)).psi is None
    assert verify_run(records, make_probe(plain=False)).psi is None
    assert verify_run(records, make_probe(unbiased=False, lr=1.1 * rule)).psi is not None, "ours holds for any step"
