"""A run's rounds against the theory: violations, slack, Psi_T and its shares over T."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from typing import Literal

from airpfed.core.run_files import MeanSquaredErrors, Probe, RoundRecord, Theory
from airpfed.theory import bounds
from airpfed.theory.bounds import Average


@dataclass(frozen=True)
class Account:
    """What metered rounds add up to.

    bound_violations: of the bound that applies, (41) for an unbiased design, ours for a biased one; of (41) whether or
    not it applies: unbiased_violations. slack: median of bound minus measured change, nats. gradient: mean Lambda.
    None where nothing was judged. failed: assumption -> rounds.
    """

    rounds: int
    descent_violations: int
    bound_violations: int | None
    unbiased_violations: int | None
    slack: float | None
    psi: Average | None
    gradient: float | None
    loss_end: float | None
    failed: dict[str, list[int]]


def energy(mse: MeanSquaredErrors, shares: dict[str, float], key: Literal["claimed", "measured"]) -> float | None:
    """A round's E||Ghat - G||^2 in the weights of F: sum over slots of share, sigma^2 d and MSE; None: no claim."""
    groups = [(1.0, mse.s.scale, getattr(mse.s, key))] if mse.s else []
    groups += [(shares[name], error.scale, getattr(error, key)) for name, error in mse.p.items()]
    if any(value is None for _, _, value in groups):
        return None
    return bounds.channel_energy(groups)


def judged(row: Theory, probe: Probe) -> float | None:
    """The bound that applies to a metered round: (41), or ours where the design is biased."""
    return row.bounds.one_round if probe.unbiased else row.bounds.one_round_ours


def psis(
    records: Sequence[RoundRecord], probe: Probe, key: Literal["claimed", "measured"] = "claimed"
) -> list[Average | None]:
    """Psi_T for T = 1, 2, ...: (43), or ours where the design is biased; None where nothing is proved."""
    eta, start = eta_of(records, probe), probe.points[0].loss
    if not probe.plain or (probe.unbiased and not bounds.within_rule(eta, probe.constants)):
        return [None] * len(records)
    of = bounds.average if probe.unbiased else bounds.average_ours
    each = [energy(row.mse, probe.tasks, key) for row in records]
    known = [one for one in each if one is not None]
    if len(known) < len(each):
        return [None] * len(records)
    spent = accumulate(known)
    return [of(eta, probe.constants, start, count, total / count) for count, total in enumerate(spent, 1)]


def eta_of(records: Sequence[RoundRecord], probe: Probe) -> float:
    """The step size of the run: as metered, else as set, else the rule's."""
    set_ = probe.eta if probe.lr is None else probe.lr
    return next((row.theory.eta for row in records if row.theory), set_)


def account(records: Sequence[RoundRecord], probe: Probe) -> Account:
    """The whole run. Psi_T needs plain SGD: None where no round could be judged."""
    rows = [(record.round, record.theory) for record in records if record.theory]
    slacks = [found - row.change_mean for _, row in rows if (found := judged(row, probe)) is not None]
    plain = [row.bounds.one_round - row.change_mean for _, row in rows if row.bounds.one_round is not None]
    failed: dict[str, list[int]] = {}
    for number, row in rows:
        for name in row.failed:
            failed.setdefault(name, []).append(number)
    return Account(
        rounds=len(rows),
        descent_violations=sum(row.change > row.bounds.descent for _, row in rows),
        bound_violations=sum(slack < 0 for slack in slacks) if slacks else None,
        unbiased_violations=sum(slack < 0 for slack in plain) if plain else None,
        slack=median(slacks) if slacks else None,
        psi=psis(records, probe)[-1] if records and (slacks or not rows) else None,
        gradient=sum(row.gradient for _, row in rows) / len(rows) if rows else None,
        loss_end=rows[-1][1].loss + rows[-1][1].change if rows else None,
        failed=failed,
    )


def as_json(found: Account, probe: Probe) -> dict[str, object]:
    """What `airpfed bound --json` prints."""
    empty = dict.fromkeys(("gap", "sgd", "heterogeneity", "channel"))
    return {
        "rounds": found.rounds,
        "descent_violations": found.descent_violations,
        "bound_violations": found.bound_violations,
        "slack_median": found.slack,
        "psi": found.psi.total if found.psi else None,
        "shares": found.psi.shares if found.psi else empty,
        "constants": probe.constants.model_dump(),
        "loss_start": probe.points[0].loss,
        "loss_end": found.loss_end,
    }
