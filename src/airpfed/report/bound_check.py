"""`airpfed bound`: the rounds of a run against the theory, read from the run's folder."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field, JsonValue

from airpfed.config import settings_file
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, Number, Probe, RoundRecord
from airpfed.theory.bounds import within_rule
from airpfed.theory.verification import Verification, average_bounds, eta_of, verify_run


class PlannedSettings(BaseModel):
    """A plan's prediction for one choice of settings, as far as it is compared."""

    set: dict[str, JsonValue]
    air_seconds: Number
    joules: Number
    shares: dict[str, Number]
    total_seconds: Number | None = None
    total_joules: Number | None = None
    psi: Number | None
    psi_ours: Number | None


class PlanFile(BaseModel):
    """A plan's file, as far as it is compared."""

    candidates: list[PlannedSettings]
    rounds: int = Field(ge=1, le=1 << 62)
    wall_seconds: Number


def load_monitored_run(run: Path) -> tuple[list[RoundRecord], Probe]:
    """Read the records and the probe of a run. Raises UserError if there is no run or it has no probe."""
    if not (run / "experiment.toml").exists():
        raise UserError(f"{run}: not a run's directory (no experiment.toml in it)")
    probe = run_files.load_probe(run / "theory.json")
    if probe is None:
        raise UserError(f'{run}: no theory.json; run with --set theory.meter_every=5, or server.lr = "theory"')
    records = run_files.load_records(run / "records.jsonl")
    run_files.check_rounds(run, run_files.read_json(run / "summary.json", run_files.Summary), records)
    return records, probe


def verification_lines(records: list[RoundRecord], probe: Probe) -> Iterator[str]:
    """Yield the lines that `airpfed bound` prints about a run."""
    result = verify_run(records, probe)
    end = "-" if result.loss_end is None else f"{result.loss_end:.4f}"
    start, metered = probe.points[0].loss, result.rounds
    yield f"F on the training data {start:.4f} -> {end}, {metered} of {len(records)} rounds metered"
    yield f"(38) violated in {result.descent_violations} of {metered} metered rounds"
    yield from bound_lines(result, probe)
    eta = eta_of(records, probe)
    if result.psi:
        name = "(43)" if probe.unbiased else "ours"
        gradient = "-" if result.gradient is None else f"{result.gradient:.4g}"
        parts = ", ".join(f"{key} {100 * value:.3g} %" for key, value in result.psi.shares.items())
        yield f"Psi_{len(records)} ({name}) {result.psi.total:.4g}, mean Lambda measured {gradient}; {parts}"
    elif not probe.plain:
        yield "no Psi_T: (43) and ours hold for plain SGD only"
    elif probe.unbiased and not within_rule(eta, probe.constants):
        yield "no Psi_T: (43) is proved for steps up to the rule's"
    yield f"step size {eta:.4g}, the rule's {probe.eta:.4g}"
    yield "constants " + ", ".join(f"{key} {value:.4g}" for key, value in probe.constants.model_dump().items())
    for name, rounds in result.failed.items():
        yield f"assumption {name} failed in rounds {', '.join(map(str, rounds))}"


def bound_lines(result: Verification, probe: Probe) -> Iterator[str]:
    """Yield the violations of the bound that applies to the design."""
    if result.bound_violations is None or result.slack is None:
        yield "(41) not checked: it holds for plain SGD with every device present, and no such round was metered"
        return
    name = "(41)" if probe.unbiased else "our bound for biased sums"
    yield f"{name} violated in {result.bound_violations}, slack {result.slack:.4g} nats (median)"
    if not probe.unbiased:
        gain, rho = probe.constants.gain, probe.constants.deviation
        yield (
            f"(41) does not apply: the design is biased (gain {gain:.3g}, deviation {rho:.3g}); "
            f"it would have been violated in {result.unbiased_violations}"
        )


def plan_lines(run: Path, records: list[RoundRecord], probe: Probe, path: Path) -> Iterator[str]:
    """Yield the plan's predictions for the settings of this run beside what the run measured."""
    plan = load_plan(path)
    settings = settings_file.read_stored(run / "experiment.toml").model_dump(mode="json")

    def value_of(key: str) -> object:
        section, _, name = key.partition(".")
        return (settings.get(section) or {}).get(name)

    matching = [row for row in plan.candidates if all(value_of(key) == value for key, value in row.set.items())]
    if not matching:
        raise UserError(f"{path}: has no candidate with the settings of {run}; plan with --grid and --split for them")
    planned, cost, rounds = matching[0], sum((row.ledger for row in records), Ledger()), len(records)
    seconds = sum(row.seconds.get(phase, 0.0) for row in records for phase in ("gradients", "air"))
    psi = average_bounds(records, probe, "measured")[-1] if records else None
    part = rounds / plan.rounds
    pairs: dict[str, tuple[float | None, float]] = {
        "air seconds": (part * planned.air_seconds, cost.air_seconds),
        "joules a device": (part * planned.joules, cost.joules_mean),
        "seconds in all": (part * planned.total_seconds if planned.total_seconds else None, cost.total_seconds),
        "joules in all": (part * planned.total_joules if planned.total_joules else None, cost.total_joules_mean),
        "wall seconds": (part * plan.wall_seconds, seconds),
    }
    if planned.shares and psi is not None and rounds == plan.rounds:
        pairs["Psi_T"] = planned.psi if probe.unbiased else planned.psi_ours, psi.total
        pairs["channel share"] = planned.shares.get("channel"), psi.shares["channel"]
    for name, (predicted, measured) in pairs.items():
        if predicted is not None:
            ratio = f"{predicted / measured:.3g}" if measured else "-"
            yield f"plan: {name} {predicted:.4g} predicted, {measured:.4g} measured, ratio {ratio}"


def load_plan(path: Path) -> PlanFile:
    """Read a plan that `airpfed plan --out` wrote. Raises UserError if the file holds no plan."""
    try:
        plan = run_files.read_json(path, PlanFile)
    except UserError as error:
        raise UserError(f"{error}; not a plan") from None
    if plan is None:
        raise UserError(f"{path}: no such plan; `airpfed plan FILE.toml --out {path}` writes one")
    return plan
