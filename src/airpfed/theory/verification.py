"""A run's rounds held against (38), (41), (43) and our bound: violations, slack, Psi_T and its shares over T."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Literal

from airpfed.core.run_files import MeanSquaredErrors, Probe, RoundRecord, Theory
from airpfed.theory import bounds
from airpfed.theory.bounds import AverageBound


@dataclass(frozen=True)
class Verification:
    """The totals over the checked rounds of a run.

    rounds: number of checked rounds. descent_violations: rounds that violate (38). bound_violations: rounds that
    violate the bound that applies, (41) for an unbiased design and ours for a biased one. unbiased_violations: rounds
    that violate (41), whether or not it applies. slack: median of bound minus measured change, nats. gradient: mean
    Lambda. failed: assumption -> rounds. A number is None if no round has it.
    """

    rounds: int
    descent_violations: int
    bound_violations: int | None
    unbiased_violations: int | None
    slack: float | None
    psi: AverageBound | None
    gradient: float | None
    loss_end: float | None
    failed: dict[str, list[int]]


def error_energy(mse: MeanSquaredErrors, shares: dict[str, float], key: Literal["claimed", "measured"]) -> float | None:
    """A round's E||Ghat - G||^2 in the weights of F: the sum over slots of share, sigma^2 d and MSE.

    shares: task -> D_n/D. Returns None if a slot has no claim.
    """
    groups = [(1.0, mse.s.scale, getattr(mse.s, key))] if mse.s else []
    groups += [(shares[name], error.scale, getattr(error, key)) for name, error in mse.p.items()]
    if any(value is None for _, _, value in groups):
        return None
    return bounds.channel_energy(groups)


def applicable_bound(row: Theory, probe: Probe) -> float | None:
    """The bound that applies to a checked round: (41), or ours if the design is biased."""
    return row.bounds.one_round if probe.unbiased else row.bounds.one_round_ours


def average_bounds(
    records: Sequence[RoundRecord], probe: Probe, key: Literal["claimed", "measured"] = "claimed"
) -> list[AverageBound | None]:
    """Psi_T for T = 1, 2, ... from (43), or from our bound if the design is biased; None if nothing is proved."""
    eta, gap = eta_of(records, probe), probe.points[0].loss
    if not probe.plain or (probe.unbiased and not bounds.within_rule(eta, probe.constants)):
        return [None] * len(records)
    bound = bounds.average_bound if probe.unbiased else bounds.average_bound_ours
    energies = [error_energy(record.mse, probe.tasks, key) for record in records]
    claimed = [energy for energy in energies if energy is not None]
    if len(claimed) < len(energies):
        return [None] * len(records)
    totals = enumerate(accumulate(claimed), 1)
    return [bound(eta, probe.constants, gap, rounds, total / rounds) for rounds, total in totals]


def eta_of(records: Sequence[RoundRecord], probe: Probe) -> float:
    """The step size of a run: the one of its first checked round, else the setting, else the rule's."""
    default = probe.eta if probe.lr is None else probe.lr
    return next((record.theory.eta for record in records if record.theory), default)


def verify_run(records: Sequence[RoundRecord], probe: Probe) -> Verification:
    """Hold a whole run against the theory. Psi_T is None if rounds were checked and no bound applied to any."""
    rows = [(record.round, record.theory) for record in records if record.theory]
    slacks = [bound - row.change_mean for _, row in rows if (bound := applicable_bound(row, probe)) is not None]
    slacks_41 = [row.bounds.one_round - row.change_mean for _, row in rows if row.bounds.one_round is not None]
    failed: dict[str, list[int]] = {}
    for number, row in rows:
        for name in row.failed:
            failed.setdefault(name, []).append(number)
    return Verification(
        rounds=len(rows),
        descent_violations=sum(row.change > row.bounds.descent for _, row in rows),
        bound_violations=sum(slack < 0 for slack in slacks) if slacks else None,
        unbiased_violations=sum(slack < 0 for slack in slacks_41) if slacks_41 else None,
        slack=median(slacks) if slacks else None,
        psi=average_bounds(records, probe)[-1] if records and (slacks or not rows) else None,
        gradient=sum(row.gradient for _, row in rows) / len(rows) if rows else None,
        loss_end=rows[-1][1].loss + rows[-1][1].change if rows else None,
        failed=failed,
    )


def as_json(verification: Verification, probe: Probe) -> dict[str, object]:
    """The tree that `airpfed bound --json` prints."""
    empty = dict.fromkeys(("gap", "sgd", "heterogeneity", "channel"))
    return {
        "rounds": verification.rounds,
        "descent_violations": verification.descent_violations,
        "bound_violations": verification.bound_violations,
        "slack_median": verification.slack,
        "psi": verification.psi.total if verification.psi else None,
        "shares": verification.psi.shares if verification.psi else empty,
        "constants": probe.constants.model_dump(),
        "loss_start": probe.points[0].loss,
        "loss_end": verification.loss_end,
    }
