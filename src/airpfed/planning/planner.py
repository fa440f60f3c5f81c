"""`airpfed plan`: one probe, a prediction for many candidate settings, and the cheapest that keeps the limit."""

import itertools
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
from airpfed.config.grid import axes_of, check_count, grid_points, overrides_of
from airpfed.config.schema import Settings
from airpfed.config.settings_file import flatten_settings
from airpfed.core.errors import UserError
from airpfed.core.files import write_atomic
from airpfed.core.run_files import Ledger, Probe
from airpfed.devices.clients import draw_batches
from airpfed.experiment import build
from airpfed.planning.channel_study import read_points
from airpfed.planning.predict import Candidate, predict_candidate
from airpfed.training.round import local_gradients
from airpfed.training.setup import TrainingSetup

GRID_SECTION = "radio."
"""Section of the keys that a plan can vary with a single probe; ranks at a fixed total are varied by splits."""
MAX_ROWS = 24
"""Candidates that the table on a terminal shows."""


@dataclass(frozen=True)
class Plan:
    """The candidates of a plan, the cheapest of those within the limit, and the numbers that all share.

    cheapest: index into `candidates`, or None. limit: largest allowed share of the channel in Psi_T. loss_start: F
    before round 1, nats. memory_gb: of the base model and one pass. wall_seconds: of a run on this machine.
    """

    candidates: list[Candidate]
    cheapest: int | None
    limit: float
    rounds: int
    loss_start: float
    memory_gb: float
    wall_seconds: float
    probe: Probe


def make_plan(
    file: Path, overrides: Sequence[str], grid: Sequence[str], splits: Sequence[str], limit: float, draws: int
) -> Plan:
    """Probe once, then predict every candidate.

    limit: the largest allowed share of the channel in Psi_T, in (0, 1]. draws: how many channels to draw for each
    candidate, for the run's own device positions. Raises UserError before the probe if `limit`, `draws` or the settings
    of any candidate are wrong.
    """
    check_count("--draws", draws)
    if not 0 < limit <= 1:
        raise UserError(f"--limit {100 * limit:g}: should be a percentage above 0, at most 100")
    base = settings_file.read_new_settings(file, overrides, training=False)
    settings_by_change = read_candidates(file, overrides, base, grid, splits)
    experiment = build.build_experiment(base, build.load_tasks(base), probing=True)
    assert isinstance(experiment.monitor, BoundMonitor)
    probed = probe(experiment.monitor, experiment.initial)
    computing = computing_cost(experiment)
    candidates = [
        predict_candidate(settings, change, experiment.clients, probed, draws, base, computing)
        for change, settings in settings_by_change
    ]
    feasible = [i for i, candidate in enumerate(candidates) if keeps_limit(candidate, limit)]
    costs = [(candidate.joules, candidate.air_seconds) for candidate in candidates]
    return Plan(
        candidates=candidates,
        cheapest=min(feasible, key=costs.__getitem__, default=None),
        limit=limit,
        rounds=base.server.rounds,
        loss_start=probed.points[0].loss,
        memory_gb=memory_gb(base, experiment),
        wall_seconds=base.server.rounds * round_seconds(experiment),
        probe=probed,
    )


def read_candidates(
    file: Path, overrides: Sequence[str], base: Settings, grid: Sequence[str], splits: Sequence[str]
) -> list[tuple[dict[str, Any], Settings]]:
    """The candidates as (changed keys, settings): the grid times the splits R_S:R_P of the ranks.

    Raises UserError if a key cannot be varied or the settings of any candidate are wrong.
    """
    axes = axes_of(grid or default_grid(base))
    for key in (key for axis in axes for key in axis.split("/")):
        if not key.startswith(GRID_SECTION):
            raise UserError(f"--grid {key}: a plan varies radio settings; ranks by --split R_S:R_P")
    candidates = []
    for point, split in itertools.product(grid_points(axes), splits or default_splits(base)):
        shared, personal = ranks_of(split, base)
        candidates.append((point, [f"adapters.rank_shared={shared}", f"adapters.rank_personal={personal}"]))
    result = []
    every_settings = read_points(file, overrides, candidates, check_plan_settings)
    for (point, ranks), settings in zip(candidates, every_settings, strict=True):
        tree = flatten_settings(settings.model_dump(mode="json"))
        keys = [".".join(change.split("=", 1)[0].split(".")[:2]) for change in [*overrides_of(point), *ranks]]
        result.append(({key: tree[key] for key in keys}, settings))
    return result


def check_plan_settings(settings: Settings) -> None:
    """Raise UserError if no error can be claimed for the link, or its devices' power cannot be predicted."""
    if not settings.radio.scheme.row.superposes and settings.radio.scheme.name != "error_free":
        raise UserError(
            f'radio.scheme = "{settings.radio.scheme.label}": a plan does not model this scheme; use a design over the '
            "air"
        )
    if settings.radio.scheme.row.superposes and settings.radio.mixing == "none" and settings.radio.has_symbol_limit:
        raise UserError(
            'radio.mixing = "none": a plan knows the largest OFDM symbols of Gaussian signals only; use "full", or '
            'power_over = "slot"'
        )
    if settings.radio.clipping_db != "off":
        raise UserError(
            'radio.clipping_db: a plan needs claimed errors, and no design claims any with clipping; use "off"'
        )


def default_grid(base: Settings) -> list[str]:
    """Power (or SNR, if it is set) 10 dB up and down, one and two times the antennas, designs, two accesses.

    The designs are two of the package, and the settings' own if it is another. The channels of a file are those of its
    antennas.
    """
    radio = base.radio
    key, middle = ("power_dbm", radio.power_dbm) if radio.snr_db is None else ("snr_db", radio.snr_db)
    return [
        f"radio.{key}={middle - 10:g},{middle:g},{middle + 10:g}",
        *([] if radio.has_recorded_channel else [f"radio.antennas={radio.antennas},{2 * radio.antennas}"]),
        f"radio.design={','.join(dict.fromkeys(['uniform_forcing', 'mmse', radio.design.label]))}",
        "radio.access=tdma,concurrent",
    ]


def default_splits(base: Settings) -> list[str]:
    """The splits with 1/4, 1/2 and 3/4 of R shared, plus the settings' own split."""
    shared, total = base.adapters.rank_shared, base.adapters.rank_shared + base.adapters.rank_personal
    if base.adapters.method.name != "airpfed":
        return [f"{shared}:{total - shared}"]
    return [f"{s}:{total - s}" for s in sorted({shared, *(total * part // 4 for part in (1, 2, 3))})]


def ranks_of(split: str, base: Settings) -> tuple[int, int]:
    """R_s and R_p of `R_S:R_P`. Raises UserError if they do not add up to the settings' R."""
    total = base.adapters.rank_shared + base.adapters.rank_personal
    try:
        shared, personal = (int(part) for part in split.split(":"))
    except ValueError:
        raise UserError(f"--split {split}: should be R_S:R_P, e.g. --split {total // 2}:{total - total // 2}") from None
    if shared + personal != total or min(shared, personal) < 0:
        raise UserError(f"--split {split}: should add up to R = {total}")
    if base.adapters.method.name != "airpfed" and shared != base.adapters.rank_shared:
        raise UserError(f'--split {split}: adapters.method = "{base.adapters.method.name}" has one block, no split')
    return shared, personal


def keeps_limit(candidate: Candidate, limit: float) -> bool:
    """Whether a candidate's channel share is at most the limit; never where Psi_T is not known."""
    return bool(candidate.shares) and candidate.shares["channel"] <= limit


def memory_gb(settings: Settings, experiment: TrainingSetup) -> float:
    """GB of the base model and of the devices of one pass."""
    model = sum(p.numel() * p.element_size() for p in experiment.clients.backbone.model.parameters())
    return float(model + experiment.devices_per_pass * build.device_pass_bytes(settings, experiment.clients)) / 1e9


def computing_cost(experiment: TrainingSetup) -> Ledger:
    """What computing costs the devices in a round, with the layers below the adapters cached.

    The mini-batches are those after the first epoch. A device that is late by `server.deadline_seconds` counts as late.
    """
    clients, compute, local = experiment.clients, experiment.compute, experiment.local_training
    if compute is None:
        return Ledger()
    cursors = torch.tensor([len(shard) for shard in clients.shards])
    plan, _ = draw_batches(clients, cursors, local.batch_size, local.steps)
    flops = compute.flops(clients, cursors.tolist(), plan)
    return compute.cost(flops, ~compute.is_late(flops))


def round_seconds(experiment: TrainingSetup) -> float:
    """Wall-clock seconds of one round on this machine: gradients, and the link of the settings."""
    begin = time.perf_counter()
    gradients, _, _ = local_gradients(
        experiment.clients, experiment.initial, experiment.local_training, experiment.devices_per_pass
    )
    present = torch.ones(len(experiment.clients.shards), dtype=torch.bool)
    statistics = experiment.initial.server.correlation_statistics
    experiment.aggregate(1, Updates(gradients["global"], gradients["task"], present), statistics)
    return time.perf_counter() - begin


def as_json(plan: Plan) -> dict[str, Any]:
    """The tree that `--json` prints and `--out` writes."""
    tree = {key: value for key, value in vars(plan).items() if key not in ("candidates", "probe")}
    candidates = [asdict(candidate) for candidate in plan.candidates]
    return {**tree, "candidates": candidates, "probe": plan.probe.model_dump(mode="json")}


def save_plan(plan: Plan, path: Path) -> None:
    """Write the plan for `airpfed bound RUN_DIR --plan`."""
    write_atomic(path, json.dumps(as_json(plan), indent=2) + "\n")


def candidate_table(plan: Plan) -> Table:
    """At most MAX_ROWS candidates as a table for a terminal: the cheapest that keep the limit, then the others."""
    keys = list(plan.candidates[0].set)
    ordered = sorted(plan.candidates, key=lambda c: (not keeps_limit(c, plan.limit), c.joules, c.air_seconds))
    title = f"{len(ordered)} candidates" + (f", the first {MAX_ROWS}" if len(ordered) > MAX_ROWS else "")
    columns = [key.split(".")[-1] for key in keys]
    table = Table(
        *columns, "Psi_T (43)", "ours", "channel %", "step", "air s", "J a device", "all s", "all J", title=title
    )
    best = None if plan.cheapest is None else plan.candidates[plan.cheapest]
    for candidate in ordered[:MAX_ROWS]:
        table.add_row(
            *(str(candidate.set[key]) for key in keys),
            *("-" if value is None else f"{value:.4g}" for value in (candidate.psi, candidate.psi_ours)),
            f"{100 * candidate.shares['channel']:.3g}" if candidate.shares else "-",
            *(f"{value:.3g}" for value in (candidate.eta, candidate.air_seconds, candidate.joules)),
            *(f"{value:.3g}" for value in (candidate.total_seconds, candidate.total_joules)),
            style="bold" if candidate is best else None,
        )
    return table


def summary_lines(plan: Plan) -> Iterator[str]:
    """Yield the lines below the table."""
    constants = plan.probe.constants
    yield f"F at the start {plan.loss_start:.4f}; beta {constants.beta:.4g}, admissible step {plan.probe.eta:.4g}"
    yield f"memory about {plan.memory_gb:.2g} GB, wall time about {plan.wall_seconds:.0f} s for {plan.rounds} rounds"
    limit = f"channel share up to {100 * plan.limit:g} %"
    if not plan.probe.plain:
        yield "no Psi_T: (43) and ours hold for plain SGD with one local step only"
    elif plan.cheapest is None:
        yield f"no candidate has a {limit}"
    else:
        settings = " ".join(f"--set {key}={value}" for key, value in plan.candidates[plan.cheapest].set.items())
        yield f"cheapest with a {limit}: {settings}"
