"""`airpfed bound`: a run's rounds against the theory, from what the run left in its directory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, JsonValue

from airpfed.config import settings_file
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import Constants, Ledger, Number, Probe, RoundRecord
from airpfed.theory.bounds import within_rule
from airpfed.theory.verification import Verification, average_bounds, eta_of, verify_run


class Candidate(BaseModel):
    """What a plan predicts of one choice of settings, as far as it is compared."""

    set: dict[str, JsonValue]
    air_seconds: Number
    joules: Number
    shares: dict[str, Number]
    psi: Number | None
    psi_ours: Number | None


class Plan(BaseModel):
    """A plan's file, as far as it is compared."""

    candidates: list[Candidate]
    rounds: int = Field(ge=1, le=1 << 62)
    wall_seconds: Number


def load(run: Path) -> tuple[list[RoundRecord], Probe]:
    """Records and probe of a run; UserError where there is no run or it has nothing of the theory."""
    if not (run / "experiment.toml").exists():
        raise UserError(f"{run}: not a run's directory (no experiment.toml in it)")
    probe = run_files.load_probe(run / "theory.json")
    if probe is None:
        raise UserError(f'{run}: no theory.json; run with --set theory.meter_every=5, or server.lr = "theory"')
    records = run_files.load_records(run / "records.jsonl")
    run_files.check_rounds(run, run_files.read_json(run / "summary.json", run_files.Summary), records)
    return records, probe


def lines(records: list[RoundRecord], probe: Probe) -> Iterator[str]:
    """The account for a reader."""
    found = verify_run(records, probe)
    end = "-" if found.loss_end is None else f"{found.loss_end:.4f}"
    yield f"F on the training data {probe.points[0].loss:.4f} -> {end}, {found.rounds} of {len(records)} rounds metered"
    yield from verdicts(found, probe)
    eta = eta_of(records, probe)
    if found.psi:
        name = "(43)" if probe.unbiased else "ours"
        seen = "-" if found.gradient is None else f"{found.gradient:.4g}"
        parts = ", ".join(f"{key} {100 * value:.3g} %" for key, value in found.psi.shares.items())
        yield f"Psi_{len(records)} ({name}) {found.psi.total:.4g}, mean Lambda measured {seen}; {parts}"
    elif not probe.plain:
        yield "no Psi_T: (43) and ours speak of plain SGD"
    elif probe.unbiased and not within_rule(eta, probe.constants):
        yield "no Psi_T: (43) is proved for steps up to the rule's"
    yield f"step size {eta:.4g}, the rule's {probe.eta:.4g}"
    yield "constants " + ", ".join(f"{key} {value:.4g}" for key, value in constants_of(probe.constants).items())
    for name, rounds in found.failed.items():
        yield f"assumption {name} failed in rounds {', '.join(map(str, rounds))}"


def verdicts(found: Verification, probe: Probe) -> Iterator[str]:
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


def compared(run: Path, records: list[RoundRecord], probe: Probe, path: Path) -> Iterator[str]:
    """What a plan had predicted for the settings of this run, beside what came of them."""
    plan = read_plan(path)
    settings = settings_file.read_settings(run / "experiment.toml").model_dump(mode="json")
    mine = [one for one in plan.candidates if all(value_of(settings, key) == v for key, v in one.set.items())]
    if not mine:
        raise UserError(f"{path}: has no candidate with the settings of {run}; plan with --grid and --split for them")
    said, cost, rounds = mine[0], sum((row.ledger for row in records), Ledger()), len(records)
    seen = average_bounds(records, probe, "measured")[-1] if records else None
    part = rounds / plan.rounds
    pairs: dict[str, tuple[float | None, float]] = {
        "air seconds": (part * said.air_seconds, cost.air_seconds),
        "joules a device": (part * said.joules, cost.joules_mean),
        "wall seconds": (part * plan.wall_seconds, seconds_of(records)),
    }
    if said.shares and seen is not None and rounds == plan.rounds:
        pairs["Psi_T"] = said.psi if probe.unbiased else said.psi_ours, seen.total
        pairs["channel share"] = said.shares.get("channel"), seen.shares["channel"]
    for name, (predicted, measured) in pairs.items():
        if predicted is None:
            continue
        ratio = f"{predicted / measured:.3g}" if measured else "-"
        yield f"plan: {name} {predicted:.4g} predicted, {measured:.4g} measured, ratio {ratio}"


def value_of(settings: dict[str, Any], key: str) -> Any:
    """`section.key` of dumped settings."""
    section, _, name = key.partition(".")
    return (settings.get(section) or {}).get(name)


def seconds_of(records: list[RoundRecord]) -> float:
    """Wall-clock seconds of gradients and air, which a plan speaks of."""
    return sum(row.seconds.get(phase, 0.0) for row in records for phase in ("gradients", "air"))


def read_plan(path: Path) -> Plan:
    """A plan that `airpfed plan --out` wrote."""
    try:
        found = run_files.read_json(path, Plan)
    except UserError as error:
        raise UserError(f"{error}; not a plan") from None
    if found is None:
        raise UserError(f"{path}: no such plan; `airpfed plan FILE.toml --out {path}` writes one")
    return found
