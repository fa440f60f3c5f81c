"""One candidate of a plan: its channel's energy over random channels, its Psi_T and its price."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed import build, radio
from airpfed.air import ledger, link
from airpfed.air.correlation import Correlation, matrix
from airpfed.air.cost import round_ledger
from airpfed.air.grouping import best_grouping
from airpfed.air.link import Drops
from airpfed.air.pieces import Piece
from airpfed.air.plan import Air, Job, grouping_of, groups_of, plan
from airpfed.air.slot import Transceiver, gains
from airpfed.air.symbols import uses_of
from airpfed.air.uplink import sounded
from airpfed.air.world import csi_variance
from airpfed.devices.fleet import Fleet
from airpfed.model import vector
from airpfed.record import Constants, Ledger, Probe
from airpfed.settings import Settings
from airpfed.theory import bound
from airpfed.theory import plan as numbers
from airpfed.theory.plan import Part

ENTRIES = 64
"""Random real entries sent through each channel: a plan needs what is claimed, not what is measured."""
FAINT = 1e-30
"""Mean square of entries that the probe saw as zeros."""

Spectrum = dict[str, list[tuple[tuple[int, int], Float[Tensor, " K"]]]]
"""Scope -> (columns, mean square of an entry in them, device by device)."""


@dataclass(frozen=True)
class Candidate:
    """One setting of the run: what Psi_T is predicted to be, and its price over all rounds.

    set: key -> value. psi: (43), None where the design is biased or the step above the rule's; psi_ours: our bound's,
    None where it proves nothing; both None unless SGD is plain. shares: of psi, or else of psi_ours; none where both
    are None. channel: mean energy of a round's errors. joules: mean over devices.
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


def predicted(
    settings: Settings, changes: dict[str, Any], fleet: Fleet, seen: Probe, draws: int, base: Settings
) -> Candidate:
    """One candidate. base: the settings that were probed; draws: channels of the run's own drop of devices."""
    order = build.layout_of(settings, fleet.backbone, fleet.classes)
    samples = torch.tensor([float(len(shard)) for shard in fleet.shards], dtype=torch.float64)
    kinds = order.kinds("global"), order.kinds("task")
    air = radio.air(settings, fleet.task_of, samples, kinds, order.task_lengths)
    radio.room(settings.radio, len(samples), len(settings.tasks), draws)
    drops = drops_of(air, draws)
    parts, cost = studied(air, jobs_of(air, order, drops), spectrum_of(fleet.layout, order, seen), seen, drops)
    unbiased = build.unbiased(settings)
    fixed = constants_of(settings, seen, base, (1.0, 0.0) if unbiased else numbers.bias(parts))
    eta = bound.step_size(fixed) if isinstance(settings.server.lr, str) else settings.server.lr
    energy, rounds = numbers.channel_energy(parts), settings.server.rounds
    given = eta, fixed, seen.points[0].loss, rounds, energy
    psi = bound.average(*given) if unbiased and seen.plain and bound.within_rule(eta, fixed) else None
    ours = bound.average_ours(*given) if seen.plain else None
    best = psi or ours
    return Candidate(
        set=changes,
        psi=psi.total if psi else None,
        psi_ours=ours.total if ours else None,
        shares=best.shares if best else {},
        eta=eta,
        channel=energy,
        gain=fixed.gain,
        deviation=fixed.deviation,
        air_seconds=rounds * cost.air_seconds,
        joules=rounds * cost.joules_mean,
        channel_uses=rounds * cost.channel_uses,
    )


def constants_of(settings: Settings, seen: Probe, base: Settings, bias: tuple[float, float]) -> Constants:
    """The probe's constants for a candidate's split and bias."""
    ranks, fixed = settings.adapters, seen.constants
    if ranks.rank_shared != base.adapters.rank_shared:
        share = ranks.rank_shared / (ranks.rank_shared + ranks.rank_personal)
        fixed = numbers.at_split(seen, share, settings.theory.sigma_dif2 is not None)
    return fixed.model_copy(update={"gain": bias[0], "deviation": seen.safety * bias[1]})


def drops_of(air: Air, draws: int) -> Drops:
    """Channels of the run's own drop, in the blocks of a round before its first."""
    known, true = sounded(air, 0, draws)
    return Drops(
        known, true, csi_variance(air.world, air.csi_error).expand(draws, -1, -1), air.world.gain.expand(draws, -1, -1)
    )


def jobs_of(air: Air, order: vector.Layout, drops: Drops) -> list[Job]:
    """The slots of a round with every device there."""
    count = len(air.samples)
    present = torch.ones(count, dtype=torch.bool)
    grouping = grouping_of(air, present)
    if air.access == "auto":
        grouping = best_grouping(air, drops.known, drops.csi_variance, present)
    shared, personal = torch.zeros(count, order.size("global")), torch.zeros(count, order.size("task"))
    return plan(air, shared, personal, present, grouping)


def spectrum_of(probed: vector.Layout, order: vector.Layout, seen: Probe) -> Spectrum:
    """Mean square of a gradient's entries by scope and kind, mean over the pilot's time, in the columns of `order`.

    Entries of a kind are alike whoever shares them: a kind that the probe did not see in a scope is taken from the
    other.
    """
    points, found = seen.points[: seen.used], dict[tuple[str, str], Tensor]()
    for scope, spans in (("global", probed.kinds("global")), ("task", probed.kinds("task"))):
        for kind, (a, b) in spans.items():
            rows = zip(*(point.energy[f"{scope}.{kind}"] for point in points), strict=True)
            means = [numbers.over_time(points, row) for row in rows]
            found[scope, kind] = torch.tensor(means, dtype=torch.float64) / (b - a)
    for kind in {kind for _, kind in found}:
        for scope, other in (("global", "task"), ("task", "global")):
            if (scope, kind) not in found:
                found[scope, kind] = found[other, kind]
    wanted = {"global": order.kinds("global"), "task": order.kinds("task")}
    return {scope: [(span, found[scope, kind]) for kind, span in spans.items()] for scope, spans in wanted.items()}


def studied(air: Air, jobs: Sequence[Job], spectrum: Spectrum, seen: Probe, drops: Drops) -> tuple[list[Part], Ledger]:
    """Channel studies of all slots and normaliser groups, and the ledger of one round."""
    count = sum(b - a for a, b in air.shared_groups)
    joules = [torch.zeros(len(job.devices), dtype=torch.float64) for job in jobs]
    if air.design is None:
        return [], round_ledger(air, jobs, joules, 0, count)
    top = loudest(jobs, spectrum) if air.normalizer == "common" else None
    drawn = [
        (index, *piece_of(air, job, spectrum, span, top, seen, drops))
        for index, job in enumerate(jobs)
        for span in groups_of(air, job)
    ]
    made = link.transceivers(air, [piece for _, piece, _ in drawn])
    parts = []
    for (index, piece, entries), how in zip(drawn, made, strict=True):
        alike = likeness(piece.job, seen)
        piece = replace(piece, believed=Correlation(alike, alike))  # whatever the receivers believed
        one = link.studied(air, piece, how)
        uses = uses_of(piece.job.vectors.shape[1], air.packing)
        joules[index] += how.transmit.abs().square().mean(0) * uses * ledger.use_seconds(air.bandwidth_hz)
        parts += parts_of(air, piece, entries, one.claimed, how)
    return parts, round_ledger(air, jobs, joules, 0, count)


def piece_of(
    air: Air,
    job: Job,
    spectrum: Spectrum,
    span: tuple[int, int],
    top: float | None,
    seen: Probe,
    drops: Drops,
) -> tuple[Piece, Float[Tensor, " U"]]:
    """One normaliser group of a slot over random channels, with the design's weights; share and entries of each sum.

    Its `mix` holds the receivers' sigma.

    top: sigma_t^2 of the common normaliser, None for the devices' own.
    """
    first, last = span
    variance = variance_of(job, spectrum, first, last)
    if not float(variance.sum()):  # A at B = 0: from the second round on it is sent, at next to no energy
        variance = torch.full_like(variance, FAINT)
    weights, square = numbers.normalised(job.weights, variance)
    if top is not None:
        weights, square = job.weights, torch.full_like(square, top)
    name, mix = f"{job.name}/{first}", job.mix * square.sqrt()
    own = replace(job, weights=weights, vectors=replace(job.vectors, width=last - first), mix=mix, name=name)
    piece = link.draw(air, own, drops, ENTRIES, likeness(job, seen))
    lengths = torch.stack([job.lengths[row > 0].amax() for row in (job.mix != 0).double() @ job.weights])
    tasks = list(seen.tasks.values())
    share = torch.tensor([1.0 if task is None else tasks[task] for task in job.targets], dtype=torch.float64)
    return piece, share * (lengths - first).clamp(0, last - first)


def parts_of(
    air: Air, piece: Piece, entries: Float[Tensor, " U"], claimed: Float[Tensor, "B U"], how: Transceiver
) -> list[Part]:
    """What the theory needs of each sum of a piece."""
    mix = piece.job.mix
    weights, heard = (
        mix @ piece.job.weights,
        mix.to(torch.complex128) @ (air.harm.mean * gains(piece.asked.h, how)).mean(0),
    )
    related = matrix(piece.believed, piece.task_of, piece.job.group_of, len(piece.job.weights) > 1)
    return [
        Part(float(entries[u]), weights[u], heard[u], related, float(claimed[:, u].mean())) for u in range(len(entries))
    ]


def variance_of(job: Job, spectrum: Spectrum, first: int, last: int) -> Float[Tensor, " J"]:
    """Mean square of every stream's entries in some columns."""
    streams = ["global" if job.targets[i] is None else "task" for i in job.group_of.tolist()]
    out = torch.zeros(len(streams), dtype=torch.float64)
    for j, (scope, k) in enumerate(zip(streams, job.devices.tolist(), strict=True)):
        for (a, b), variance in spectrum[scope]:
            out[j] += variance[k] * max(0, min(b, last) - max(a, first)) / (last - first)
    return out


def loudest(jobs: Sequence[Job], spectrum: Spectrum) -> float:
    """sigma_t^2 of the common normaliser: the largest mean square of any device's vector in any slot."""
    return max(float(variance_of(job, spectrum, 0, job.vectors.shape[1]).max()) for job in jobs)


def likeness(job: Job, seen: Probe) -> float:
    """Correlation of a slot's symbols: as the probe saw it over the pilot, the mean over its targets."""
    points, names = seen.points[: seen.used], list(seen.tasks)
    wanted = ["s" if task is None else names[task] for task in job.targets]
    means = [numbers.over_time(points, [point.alike[name] for point in points]) for name in wanted]
    return min(1.0, max(0.0, sum(means) / len(means)))
