"""A plan: one probe, many candidates, the cheapest that keeps the limit."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from airpfed.air.schedule import Updates
from airpfed.analysis.monitor import BoundMonitor
from airpfed.analysis.probe import probe
from airpfed.config import settings_file
from airpfed.config.grid import check_count
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.core.files import write_atomic
from airpfed.core.run_files import Probe
from airpfed.experiment import build
from airpfed.planning.choices import choices
from airpfed.planning.predict import Candidate, predicted
from airpfed.training.experiment import Experiment
from airpfed.training.round import local_gradients


@dataclass(frozen=True)
class Plan:
    """All candidates, the index of the cheapest that keeps the limit, and what all of them share."""

    candidates: list[Candidate]
    cheapest: int | None
    limit: float
    rounds: int
    loss_start: float
    memory_gb: float
    wall_seconds: float
    probe: Probe


def make(
    file: Path, overrides: Sequence[str], grid: Sequence[str], splits: Sequence[str], limit: float, draws: int
) -> Plan:
    """Probe once, then predict every candidate; UserError before the probe if the settings of any are wrong.

    limit: the channel's largest share of Psi_T. draws: channels of the run's own drop of devices, per candidate.
    """
    check_count("--draws", draws)
    if not 0 < limit <= 1:
        raise UserError(f"--limit {100 * limit:g}: should be a percentage above 0, at most 100")
    base = settings_file.read_new_settings(file, overrides, training=False)
    every = choices(file, overrides, base, grid, splits)
    experiment = build.build_experiment(base, build.load_tasks(base), probing=True)
    assert isinstance(experiment.monitor, BoundMonitor)
    seen = probe(experiment.monitor, experiment.initial)
    found = [predicted(settings, changes, experiment.clients, seen, draws, base) for changes, settings in every]
    return Plan(
        candidates=found,
        cheapest=cheapest(found, limit),
        limit=limit,
        rounds=base.server.rounds,
        loss_start=seen.points[0].loss,
        memory_gb=correlation_statistics(base, experiment),
        wall_seconds=base.server.rounds * round_seconds(experiment),
        probe=seen,
    )


def cheapest(found: Sequence[Candidate], limit: float) -> int | None:
    """The candidate of least joules, then air time, whose channel share keeps the limit."""
    within = [i for i, one in enumerate(found) if keeps(one, limit)]
    return min(within, key=lambda i: (found[i].joules, found[i].air_seconds), default=None)


def keeps(one: Candidate, limit: float) -> bool:
    """Whether a candidate's channel share is at most the limit."""
    return bool(one.shares) and one.shares["channel"] <= limit


def correlation_statistics(settings: Settings, experiment: Experiment) -> float:
    """GB of the base model and of one stacked pass."""
    model = sum(p.numel() * p.element_size() for p in experiment.clients.backbone.model.parameters())
    return float(model + experiment.devices_per_pass * build.device_pass_bytes(settings, experiment.clients)) / 1e9


def round_seconds(experiment: Experiment) -> float:
    """Wall-clock seconds of one round here: gradients, and the settings' own link."""
    begin = time.perf_counter()
    found, _, _ = local_gradients(
        experiment.clients, experiment.initial, experiment.local_training, experiment.devices_per_pass
    )
    present = torch.ones(len(experiment.clients.shards), dtype=torch.bool)
    updates = Updates(found["global"], found["task"], present)
    experiment.aggregate(1, updates, experiment.initial.server.correlation_statistics)
    return time.perf_counter() - begin


def as_json(made: Plan) -> dict[str, Any]:
    """The plan as `--json` prints it and `--out` keeps it."""
    tree = {key: value for key, value in vars(made).items() if key not in ("candidates", "probe")}
    return {**tree, "candidates": [asdict(one) for one in made.candidates], "probe": made.probe.model_dump(mode="json")}


def keep(made: Plan, path: Path) -> None:
    """Write the plan for `airpfed bound RUN_DIR --plan`."""
    write_atomic(path, json.dumps(as_json(made), indent=2) + "\n")


def table(made: Plan, most: int = 24) -> Table:
    """The candidates for a terminal, cheapest first among those that keep the limit; at most so many."""
    keys = list(made.candidates[0].set)
    order = sorted(made.candidates, key=lambda one: (not keeps(one, made.limit), one.joules, one.air_seconds))
    columns = [key.split(".")[-1] for key in keys]
    title = f"{len(order)} candidates" + (f", the first {most}" if len(order) > most else "")
    shown = Table(*columns, "Psi_T (43)", "ours", "channel %", "step", "air s", "J a device", title=title)
    best = None if made.cheapest is None else made.candidates[made.cheapest]
    for one in order[:most]:
        shown.add_row(
            *(str(one.set[key]) for key in keys),
            *("-" if value is None else f"{value:.4g}" for value in (one.psi, one.psi_ours)),
            f"{100 * one.shares['channel']:.3g}" if one.shares else "-",
            *(f"{value:.3g}" for value in (one.eta, one.air_seconds, one.joules)),
            style="bold" if one is best else None,
        )
    return shown


def lines(made: Plan) -> Iterator[str]:
    """What stands below the table."""
    constants = made.probe.constants
    yield f"F at the start {made.loss_start:.4f}; beta {constants.beta:.4g}, admissible step {made.probe.eta:.4g}"
    yield f"memory about {made.memory_gb:.2g} GB, wall time about {made.wall_seconds:.0f} s for {made.rounds} rounds"
    limit = f"channel share up to {100 * made.limit:g} %"
    if not made.probe.plain:
        yield "no Psi_T: (43) and ours speak of plain SGD, one local step"
    elif made.cheapest is None:
        yield f"no candidate has a {limit}"
    else:
        settings = " ".join(f"--set {key}={value}" for key, value in made.candidates[made.cheapest].set.items())
        yield f"cheapest with a {limit}: {settings}"
