"""`airpfed plan`: before a run, its Psi_T and its price over power, antennas, design, access and split."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from rich.table import Table
from torch import Tensor

from airpfed import build, reading
from airpfed.air import ledger, link
from airpfed.air.channel import estimated
from airpfed.air.grouping import best_grouping
from airpfed.air.pieces import Piece
from airpfed.air.plan import Air, Job, grouping_of, groups_of, plan
from airpfed.air.slot import Transceiver, gains
from airpfed.air.symbols import uses_of
from airpfed.air.uplink import round_cost
from airpfed.errors import UserError
from airpfed.model import vector
from airpfed.model.adapters import blocks_of
from airpfed.record import Ledger, Probe, write_atomic
from airpfed.rounds.probe import one_batch, probe
from airpfed.rounds.run import Experiment
from airpfed.settings import Settings
from airpfed.study import at, axes_of, points
from airpfed.theory import bound
from airpfed.theory import plan as numbers
from airpfed.theory.plan import Part

ENTRIES = 64
"""Random real entries sent through each channel: a plan needs what is claimed, not what is measured."""
FAINT = 1e-30
"""Mean square of entries that the probe saw as zeros."""
VARIED = ("radio.",)
"""What a plan may vary without another probe; ranks at fixed R by splits."""


@dataclass(frozen=True)
class Candidate:
    """One setting of the run: what Psi_T is predicted to be, and its price over all rounds.

    set: key -> value. psi: (43), None where the design is biased; psi_ours: our bound's, None where it proves nothing.
    shares: of psi, or else of psi_ours; none where both are None. channel: mean energy of a round's errors. joules:
    mean over devices.
    """

    set: dict[str, Any]
    psi: float | None
    psi_ours: float | None
    shares: dict[str, float]
    eta: float
    channel: float
    gain: float
    deviation: float
    air_seconds: float
    joules: float
    channel_uses: int


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
    if draws < 1:
        raise UserError(f"--draws {draws}: should be at least 1")
    if not 0 < limit <= 1:
        raise UserError(f"--limit {100 * limit:g}: should be a percentage above 0, at most 100")
    base = reading.read(file, overrides)
    every = list(choices(file, overrides, base, grid, splits))
    tasks = build.load_tasks(base)
    experiment = build.experiment(base, tasks, probing=True)
    assert experiment.meter is not None
    seen = probe(experiment.meter, experiment.initial)
    found = [predicted(settings, changes, experiment, seen, draws, base) for changes, settings in every]
    return Plan(
        candidates=found,
        cheapest=cheapest(found, limit),
        limit=limit,
        rounds=base.server.rounds,
        loss_start=seen.points[0].loss,
        memory_gb=memory(base, experiment),
        wall_seconds=base.server.rounds * round_seconds(experiment),
        probe=seen,
    )


def choices(
    file: Path, overrides: Sequence[str], base: Settings, grid: Sequence[str], splits: Sequence[str]
) -> Iterator[tuple[dict[str, Any], Settings]]:
    """(what is set, settings) of every candidate: the grid times the splits R_s:R_p."""
    axes = grid or default_grid(base)
    for key in axes_of(axes):
        if not key.startswith(VARIED):
            raise UserError(f"--grid {key}: a plan varies radio settings; ranks by --split R_S:R_P")
    for point, split in itertools.product(points(axes), splits or default_splits(base)):
        ranks = ranks_of(split, base)
        extra = [f"adapters.rank_shared={ranks[0]}", f"adapters.rank_personal={ranks[1]}"]
        with at(point):
            settings = reading.read(file, [*overrides, *point, *extra])
        keys = [change.split("=", 1)[0] for change in [*point, *extra]]
        tree = settings.model_dump(mode="json")
        yield {key: tree[key.split(".")[0]][key.split(".")[1]] for key in keys}, settings


def default_grid(base: Settings) -> list[str]:
    """Power (or SNR, where that is set) 10 dB either way, antennas once and twice, both good designs, both accesses."""
    radio = base.radio
    key, middle = ("power_dbm", radio.power_dbm) if radio.snr_db is None else ("snr_db", radio.snr_db)
    return [
        f"radio.{key}={middle - 10:g},{middle:g},{middle + 10:g}",
        f"radio.antennas={radio.antennas},{2 * radio.antennas}",
        "radio.design=uniform_forcing,mmse",
        "radio.access=tdma,concurrent",
    ]


def default_splits(base: Settings) -> list[str]:
    """A quarter, a half and three quarters of R shared, and the settings' own split."""
    shared, total = base.adapters.rank_shared, base.adapters.rank_shared + base.adapters.rank_personal
    if base.adapters.method != "airpfed":
        return [f"{shared}:{total - shared}"]
    return [f"{s}:{total - s}" for s in sorted({shared, *(total * part // 4 for part in (1, 2, 3))})]


def ranks_of(split: str, base: Settings) -> tuple[int, int]:
    """R_s and R_p of `R_S:R_P`, which must add up to the settings' R."""
    total = base.adapters.rank_shared + base.adapters.rank_personal
    try:
        shared, personal = (int(part) for part in split.split(":"))
    except ValueError:
        raise UserError(f"--split {split}: should be R_S:R_P, e.g. --split {total // 2}:{total - total // 2}") from None
    if shared + personal != total or min(shared, personal) < 0:
        raise UserError(f"--split {split}: should add up to R = {total}")
    if base.adapters.method != "airpfed" and shared != base.adapters.rank_shared:
        raise UserError(f'--split {split}: adapters.method = "{base.adapters.method}" has one block, no split')
    return shared, personal


def predicted(
    settings: Settings, changes: dict[str, Any], experiment: Experiment, seen: Probe, draws: int, base: Settings
) -> Candidate:
    """One candidate: its channel energy over random channels, its Psi_T, its cost."""
    fleet, ranks = experiment.fleet, settings.adapters
    heads = {name: (weight.shape[0], weight.shape[1]) for name, weight in fleet.backbone.heads.items()}
    blocks = blocks_of(ranks.method, ranks.rank_shared, ranks.rank_personal)
    order = vector.layout(fleet.backbone.sites, blocks, heads, fleet.classes)
    samples = torch.tensor([float(len(shard)) for shard in fleet.shards], dtype=torch.float64)
    groups = order.groups("global"), order.groups("task")
    air = build.radio_side(settings, fleet.task_of, samples, tuple(seen.tasks), groups, order.task_lengths)
    jobs = jobs_of(air, order, draws)
    parts, cost = studied(air, jobs, spectra(fleet.layout, order, seen), seen, draws)
    share = ranks.rank_shared / (ranks.rank_shared + ranks.rank_personal)
    own = ranks.rank_shared == base.adapters.rank_shared
    fixed = seen.constants if own else numbers.at_split(seen, share, settings.theory.sigma_dif2 is not None)
    unbiased = settings.radio.design in build.UNBIASED
    gain, deviation = (1.0, 0.0) if unbiased else numbers.bias(parts)
    fixed = fixed.model_copy(update={"gain": gain, "deviation": seen.safety * deviation})
    eta = bound.step_size(fixed) if isinstance(settings.server.lr, str) else settings.server.lr
    energy = numbers.channel_energy(parts)
    given = eta, fixed, seen.points[0].loss, settings.server.rounds, energy
    psi, ours = bound.average(*given) if unbiased else None, bound.average_ours(*given)
    return Candidate(
        set=changes,
        psi=psi.total if psi else None,
        psi_ours=ours.total if ours else None,
        shares=shares_of(psi or ours),
        eta=eta,
        channel=energy,
        gain=gain,
        deviation=fixed.deviation,
        air_seconds=settings.server.rounds * cost.air_seconds,
        joules=settings.server.rounds * cost.joules_mean,
        channel_uses=settings.server.rounds * cost.channel_uses,
    )


def shares_of(psi: bound.Average | None) -> dict[str, float]:
    """Each cause's part; empty where nothing is proved."""
    return psi.shares if psi else {}


def jobs_of(air: Air, order: vector.Layout, draws: int) -> list[Job]:
    """The slots of a round with every device there."""
    count = len(air.samples)
    present = torch.ones(count, dtype=torch.bool)
    grouping = grouping_of(air, present)
    if air.access == "auto":
        known, _ = estimated(air.gain.expand(draws, -1), air.antennas, air.csi_error, air.seed, 0, range(draws))
        grouping = best_grouping(air, known, air.csi_error * air.gain, present)
    shared, personal = (torch.zeros(count, order.size(scope)) for scope in ("global", "task"))
    return plan(air, shared, personal, present, grouping)


Spectrum = list[tuple[tuple[int, int], Float[Tensor, " K"]]]
"""(columns, variance of an entry in them, device by device)."""


def spectra(probed: vector.Layout, order: vector.Layout, seen: Probe) -> dict[str, Spectrum]:
    """Mean square of a gradient's entries by scope and kind over the pilot, for another split of the ranks.

    Entries of a kind are alike whoever shares them: a kind that the probe did not see in a scope is taken from the
    other.
    """
    points = seen.points[: seen.used]
    found: dict[tuple[str, str], Tensor] = {}
    for scope in ("global", "task"):
        for kind, (a, b) in probed.kinds(scope).items():
            rows = [point.energy[f"{scope}.{kind}"] for point in points]
            means = [numbers.over_time(points, [row[k] for row in rows]) for k in range(len(rows[0]))]
            found[scope, kind] = torch.tensor(means, dtype=torch.float64) / (b - a)
    other = {"global": "task", "task": "global"}
    return {
        scope: [
            (span, found[scope, kind] if (scope, kind) in found else found[other[scope], kind])
            for kind, span in order.kinds(scope).items()
        ]
        for scope in ("global", "task")
    }


def studied(
    air: Air, jobs: Sequence[Job], spectrum: dict[str, Spectrum], seen: Probe, draws: int
) -> tuple[list[Part], Ledger]:
    """Channel studies of all slots and normaliser groups, and the ledger of one round."""
    count = sum(b - a for a, b in air.shared_groups)
    if air.design is None:
        return [], round_cost(air, jobs, [torch.zeros(len(job.devices), dtype=torch.float64) for job in jobs], count)
    pieces: list[Piece] = []
    scales: list[Tensor] = []
    slots: list[int] = []
    top = loudest(jobs, spectrum) if air.normalizer == "common" else None
    for index, job in enumerate(jobs):
        rho = likeness(job, seen)
        for first, last in groups_of(air, job):
            variance = variance_of(job, spectrum, first, last)
            if not float(variance.sum()):  # A at B = 0: from the second round on it is sent, at next to no energy
                variance = torch.full_like(variance, FAINT)
            weights, square = numbers.normalised(job.weights, variance)
            if top is not None:
                weights, square = job.weights, torch.full_like(square, top)
            part = replace(job, weights=weights, vectors=job.vectors[:, first:last], name=f"{job.name}/{first}")
            pieces.append(link.draw(air, part, air.gain.expand(draws, -1), ENTRIES, rho))
            lengths = torch.stack([job.lengths[row > 0].amax() for row in job.weights])
            share = torch.tensor([1.0 if task is None else list(seen.tasks.values())[task] for task in job.targets])
            scales.append(share.double() * square * (lengths - first).clamp(0, last - first))
            slots.append(index)
    found, made, _ = link.study(air, pieces)
    parts = [
        Part(float(scale[i]), piece.job.weights[i], gain[i], piece.expected.double(), float(one.claimed[:, i].mean()))
        for piece, scale, one, gain in zip(pieces, scales, found, map(mean_gains, pieces, made), strict=True)
        for i in range(len(scale))
    ]
    joules = [torch.zeros(len(job.devices), dtype=torch.float64) for job in jobs]
    for index, piece, how in zip(slots, pieces, made, strict=True):
        uses = uses_of(piece.job.vectors.shape[1], air.packing)
        joules[index] += how.transmit.abs().square().mean(0) * uses * ledger.use_seconds(air.bandwidth_hz)
    return parts, round_cost(air, jobs, joules, count)


def variance_of(job: Job, spectrum: dict[str, Spectrum], first: int, last: int) -> Float[Tensor, " J"]:
    """Mean square of every stream's entries in some columns."""
    streams = [("global" if job.targets[i] is None else "task") for i in job.group_of.tolist()]
    out = torch.zeros(len(streams), dtype=torch.float64)
    for j, (scope, k) in enumerate(zip(streams, job.devices.tolist(), strict=True)):
        for (a, b), variance in spectrum[scope]:
            out[j] += variance[k] * max(0, min(b, last) - max(a, first)) / (last - first)
    return out


def loudest(jobs: Sequence[Job], spectrum: dict[str, Spectrum]) -> float:
    """sigma_t^2 of the common normaliser: the largest mean square of any device's vector in any slot."""
    return max(float(variance_of(job, spectrum, 0, job.vectors.shape[1]).max()) for job in jobs)


def likeness(job: Job, seen: Probe) -> float:
    """Correlation of a slot's symbols: as the probe saw it over the pilot, the mean over its tasks."""
    points = seen.points[: seen.used]
    names = ["s" if task is None else list(seen.tasks)[task] for task in job.targets]
    means = [numbers.over_time(points, [point.alike[name] for point in points]) for name in names]
    return min(1.0, max(0.0, sum(means) / len(means)))


def mean_gains(piece: Piece, made: Transceiver) -> Tensor:
    """m^H h b of every target and stream, mean over channels."""
    return gains(piece.asked.h, made).mean(0)


def cheapest(found: Sequence[Candidate], limit: float) -> int | None:
    """The candidate of least joules, then air time, whose channel share keeps the limit."""
    within = [i for i, one in enumerate(found) if one.shares and one.shares["channel"] <= limit]
    return min(within, key=lambda i: (found[i].joules, found[i].air_seconds), default=None)


def memory(settings: Settings, experiment: Experiment) -> float:
    """GB of the base model and of one stacked pass."""
    model = sum(p.numel() * p.element_size() for p in experiment.fleet.backbone.model.parameters())
    return float(model + experiment.chunk * build.device_bytes(settings, experiment.fleet)) / 1e9


def round_seconds(experiment: Experiment) -> float:
    """Wall-clock seconds of one round here: gradients, and the settings' own link."""
    assert experiment.meter is not None
    begin = time.perf_counter()
    found, _ = one_batch(experiment.meter, experiment.initial)
    present = torch.ones(len(experiment.fleet.shards), dtype=torch.bool)
    experiment.link(1, found["global"], found["task"], present, experiment.initial.server.memory)
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
    order = sorted(
        range(len(made.candidates)),
        key=lambda i: (not kept_by(made, i), made.candidates[i].joules, made.candidates[i].air_seconds),
    )
    columns = [key.split(".")[-1] for key in keys]
    shown = Table(
        *columns, "Psi_T (43)", "ours", "channel %", "step", "air s", "J a device", title=f"{len(order)} candidates"
    )
    for i in order[:most]:
        one = made.candidates[i]
        share = f"{100 * one.shares['channel']:.3g}" if one.shares else "-"
        shown.add_row(
            *(str(one.set[key]) for key in keys),
            *("-" if value is None else f"{value:.4g}" for value in (one.psi, one.psi_ours)),
            share,
            f"{one.eta:.3g}",
            f"{one.air_seconds:.3g}",
            f"{one.joules:.3g}",
            style="bold" if i == made.cheapest else None,
        )
    return shown


def kept_by(made: Plan, index: int) -> bool:
    """Whether a candidate's channel share keeps the limit."""
    one = made.candidates[index]
    return bool(one.shares) and one.shares["channel"] <= made.limit


def lines(made: Plan) -> Iterator[str]:
    """What stands below the table."""
    constants = made.probe.constants
    yield f"F at the start {made.loss_start:.4f}; beta {constants.beta:.4g}, admissible step {made.probe.eta:.4g}"
    yield f"memory about {made.memory_gb:.2g} GB, wall time about {made.wall_seconds:.0f} s for {made.rounds} rounds"
    limit = f"channel share up to {100 * made.limit:g} %"
    if made.cheapest is None:
        yield f"no candidate has a {limit}"
    else:
        settings = " ".join(f"--set {key}={value}" for key, value in made.candidates[made.cheapest].set.items())
        yield f"cheapest with a {limit}: {settings}"
