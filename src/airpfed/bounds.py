"""`airpfed bound`: a run's rounds against the theory, from what the run left in its directory."""

import json
from collections.abc import Iterator
from pathlib import Path

from airpfed import record
from airpfed.errors import UserError
from airpfed.record import Constants, Probe, RoundRecord
from airpfed.theory.account import Account, account


def load(run: Path) -> tuple[list[RoundRecord], Probe]:
    """Records and probe of a run; UserError where there is no run or it has nothing of the theory."""
    if not (run / "experiment.toml").is_file():
        raise UserError(f"{run}: not a run's directory (no experiment.toml in it)")
    probe = record.load_probe(run / "theory.json")
    if probe is None:
        raise UserError(f'{run}: no theory.json; run with --set theory.meter_every=5, or server.lr = "theory"')
    return record.load(run / "records.jsonl"), probe


def lines(records: list[RoundRecord], probe: Probe) -> Iterator[str]:
    """The account for a reader."""
    found = account(records, probe)
    end = "-" if found.loss_end is None else f"{found.loss_end:.4f}"
    yield f"F on the training data {probe.points[0].loss:.4f} -> {end}, {found.rounds} of {len(records)} rounds metered"
    yield from verdicts(found, probe)
    if found.psi:
        name = "(43)" if probe.unbiased else "ours"
        seen = "-" if found.gradient is None else f"{found.gradient:.4g}"
        parts = ", ".join(f"{key} {100 * value:.3g} %" for key, value in found.psi.shares.items())
        yield f"Psi_{len(records)} ({name}) {found.psi.total:.4g}, mean Lambda measured {seen}; {parts}"
    eta = next((row.theory.eta for row in records if row.theory), probe.eta)
    yield f"step size {eta:.4g}, the rule's {probe.eta:.4g}"
    yield "constants " + ", ".join(f"{key} {value:.4g}" for key, value in constants_of(probe.constants).items())
    for name, rounds in found.failed.items():
        yield f"assumption {name} failed in rounds {', '.join(map(str, rounds))}"


def verdicts(found: Account, probe: Probe) -> Iterator[str]:
    """Violations of (38), and of the bound that applies."""
    yield f"(38) violated in {found.descent_violations} of {found.rounds} metered rounds"
    if found.bound_violations is None or found.slack is None:
        yield "(41) not judged: it speaks of plain SGD with every device present, and of metered rounds"
        return
    name = "(41)" if probe.unbiased else "our bound for biased sums"
    yield f"{name} violated in {found.bound_violations}, slack {found.slack:.4g} nats (median)"
    if not probe.unbiased:
        gain, rho = probe.constants.gain, probe.constants.deviation
        yield (
            f"(41) does not apply: the design is biased (gain {gain:.3g}, deviation {rho:.3g}); "
            f"it would have been violated in {found.unbiased_violations}"
        )


def constants_of(constants: Constants) -> dict[str, float]:
    """The constants by name."""
    found: dict[str, float] = constants.model_dump()
    return found


def read_plan(path: Path) -> dict[str, object]:
    """A plan that `airpfed plan --out` wrote."""
    try:
        found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such plan; `airpfed plan FILE.toml --out {path}` writes one") from None
    except ValueError:
        raise UserError(f"{path}: not a plan") from None
    return found
