"""One candidate of a plan: its channel's energy over random channels, its Psi_T and its price."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air import link_level, resources
from airpfed.air.correlation import Correlation, correlation_matrix
from airpfed.air.grouping import best_grouping, fixed_grouping
from airpfed.air.link_level import Drops
from airpfed.air.network import csi_variance
from airpfed.air.problem import Transceiver, gains
from airpfed.air.round_cost import round_ledger
from airpfed.air.schedule import SlotPlan, Updates, Uplink, normalizer_groups, schedule
from airpfed.air.segments import Segment
from airpfed.air.symbols import uses_of
from airpfed.config.schema import Settings
from airpfed.core.run_files import Constants, Ledger, Probe
from airpfed.devices.clients import Clients
from airpfed.experiment import build
from airpfed.experiment.build.uplink import build_uplink, check_channel_memory
from airpfed.model import layout
from airpfed.theory import bounds
from airpfed.theory import predictions as numbers
from airpfed.theory.predictions import StudiedGroup

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
    settings: Settings, changes: dict[str, Any], clients: Clients, seen: Probe, draws: int, base: Settings
) -> Candidate:
    """One candidate. base: the settings that were probed; draws: channels of the run's own drop of devices."""
    order = build.build_layout(settings, clients.backbone, clients.classes)
    samples = torch.tensor([float(len(shard)) for shard in clients.shards], dtype=torch.float64)
    kinds = order.kinds("global"), order.kinds("task")
    link = build_uplink(settings, clients.task_of, samples, kinds, order.task_lengths)
    check_channel_memory(settings.radio, len(samples), len(settings.tasks), draws)
    drops = drops_of(link, draws)
    parts, cost = studied(link, slots_of(link, order, drops), spectrum_of(clients.layout, order, seen), seen, drops)
    unbiased = build.is_unbiased(settings)
    fixed = constants_of(settings, seen, base, (1.0, 0.0) if unbiased else numbers.bias(parts))
    eta = bounds.step_size(fixed) if isinstance(settings.server.lr, str) else settings.server.lr
    energy, rounds = numbers.predicted_energy(parts), settings.server.rounds
    given = eta, fixed, seen.points[0].loss, rounds, energy
    psi = bounds.average_bound(*given) if unbiased and seen.plain and bounds.within_rule(eta, fixed) else None
    ours = bounds.average_bound_ours(*given) if seen.plain else None
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


def drops_of(link: Uplink, draws: int) -> Drops:
    """Channels of the run's own drop, in the blocks of a round before its first."""
    h_est, h = link.channels(0, draws)
    return Drops(
        h_est=h_est,
        h=h,
        csi_variance=csi_variance(link.network, link.csi_error).expand(draws, -1, -1),
        gain=link.network.gain.expand(draws, -1, -1),
    )


def slots_of(link: Uplink, order: layout.Layout, drops: Drops) -> list[SlotPlan]:
    """The slots of a round with every device there."""
    count = len(link.samples)
    present = torch.ones(count, dtype=torch.bool)
    grouping = fixed_grouping(link, present)
    if link.access == "auto":
        grouping = best_grouping(link, drops.h_est, drops.csi_variance, present)
    shared, personal = torch.zeros(count, order.size("global")), torch.zeros(count, order.size("task"))
    return schedule(link, Updates(shared, personal, present), grouping)


def spectrum_of(probed: layout.Layout, order: layout.Layout, seen: Probe) -> Spectrum:
    """Mean square of a gradient's entries by scope and kind, mean over the pilot's time, in the columns of `order`.

    Entries of a kind are alike whoever shares them: a kind that the probe did not see in a scope is taken from the
    other.
    """
    points, found = seen.points[: seen.used], dict[tuple[str, str], Tensor]()
    for scope, block_ranges in (("global", probed.kinds("global")), ("task", probed.kinds("task"))):
        for kind, (a, b) in block_ranges.items():
            rows = zip(*(point.energy[f"{scope}.{kind}"] for point in points), strict=True)
            means = [numbers.mean_over_time(points, row) for row in rows]
            found[scope, kind] = torch.tensor(means, dtype=torch.float64) / (b - a)
    for kind in {kind for _, kind in found}:
        for scope, other in (("global", "task"), ("task", "global")):
            if (scope, kind) not in found:
                found[scope, kind] = found[other, kind]
    wanted = {"global": order.kinds("global"), "task": order.kinds("task")}
    return {
        scope: [(span, found[scope, kind]) for kind, span in block_ranges.items()]
        for scope, block_ranges in wanted.items()
    }


def studied(
    link: Uplink, slots: Sequence[SlotPlan], spectrum: Spectrum, seen: Probe, drops: Drops
) -> tuple[list[StudiedGroup], Ledger]:
    """Channel studies of all slots and normaliser groups, and the ledger of one round."""
    count = sum(b - a for a, b in link.shared_groups)
    joules = [torch.zeros(len(slot.devices), dtype=torch.float64) for slot in slots]
    if link.design is None:
        return [], round_ledger(link, slots, joules, 0, count)
    top = loudest(slots, spectrum) if link.normalizer == "common" else None
    drawn = [
        (index, *piece_of(link, slot, spectrum, span, top, seen, drops))
        for index, slot in enumerate(slots)
        for span in normalizer_groups(link, slot)
    ]
    made = link_level.design_slots(link, [segment for _, segment, _ in drawn])
    parts = []
    for (index, segment, entries), how in zip(drawn, made, strict=True):
        alike = mean_correlation(segment.slot, seen)
        segment = replace(segment, assumed_correlation=Correlation(alike, alike))  # whatever the receivers believed
        one = link_level.measure(link, segment, how)
        uses = uses_of(segment.slot.vectors.shape[1], link.packing)
        joules[index] += how.transmit.abs().square().mean(0) * uses * resources.use_seconds(link.bandwidth_hz)
        parts += parts_of(link, segment, entries, one.claimed, how)
    return parts, round_ledger(link, slots, joules, 0, count)


def piece_of(
    link: Uplink,
    slot: SlotPlan,
    spectrum: Spectrum,
    span: tuple[int, int],
    top: float | None,
    seen: Probe,
    drops: Drops,
) -> tuple[Segment, Float[Tensor, " U"]]:
    """One normaliser group of a slot over random channels, with the design's weights; share and entries of each sum.

    Its `combining_matrix` holds the receivers' sigma.

    top: sigma_t^2 of the common normaliser, None for the devices' own.
    """
    first, last = span
    variance = variance_of(slot, spectrum, first, last)
    if not float(variance.sum()):  # A at B = 0: from the second round on it is sent, at next to no energy
        variance = torch.full_like(variance, FAINT)
    weights, square = numbers.normalise_weights(slot.weights, variance)
    if top is not None:
        weights, square = slot.weights, torch.full_like(square, top)
    name, combining_matrix = f"{slot.name}/{first}", slot.combining_matrix * square.sqrt()
    own = replace(
        slot,
        weights=weights,
        vectors=replace(slot.vectors, width=last - first),
        combining_matrix=combining_matrix,
        name=name,
    )
    segment = link_level.draw_segment(link, own, drops, ENTRIES, mean_correlation(slot, seen))
    lengths = torch.stack(
        [slot.lengths[row > 0].amax() for row in (slot.combining_matrix != 0).double() @ slot.weights]
    )
    tasks = list(seen.tasks.values())
    share = torch.tensor([1.0 if task is None else tasks[task] for task in slot.targets], dtype=torch.float64)
    return segment, share * (lengths - first).clamp(0, last - first)


def parts_of(
    link: Uplink, segment: Segment, entries: Float[Tensor, " U"], claimed: Float[Tensor, "B U"], how: Transceiver
) -> list[StudiedGroup]:
    """What the theory needs of each sum of a piece."""
    combining_matrix = segment.slot.combining_matrix
    weights, heard = (
        combining_matrix @ segment.slot.weights,
        combining_matrix.to(torch.complex128) @ (link.impairments.mean * gains(segment.problem.h, how)).mean(0),
    )
    related = correlation_matrix(
        segment.assumed_correlation, segment.task_of, segment.slot.target_of, len(segment.slot.weights) > 1
    )
    return [
        StudiedGroup(float(entries[u]), weights[u], heard[u], related, float(claimed[:, u].mean()))
        for u in range(len(entries))
    ]


def variance_of(slot: SlotPlan, spectrum: Spectrum, first: int, last: int) -> Float[Tensor, " J"]:
    """Mean square of every stream's entries in some columns."""
    streams = ["global" if slot.targets[i] is None else "task" for i in slot.target_of.tolist()]
    out = torch.zeros(len(streams), dtype=torch.float64)
    for j, (scope, k) in enumerate(zip(streams, slot.devices.tolist(), strict=True)):
        for (a, b), variance in spectrum[scope]:
            out[j] += variance[k] * max(0, min(b, last) - max(a, first)) / (last - first)
    return out


def loudest(slots: Sequence[SlotPlan], spectrum: Spectrum) -> float:
    """sigma_t^2 of the common normaliser: the largest mean square of any device's vector in any slot."""
    return max(float(variance_of(slot, spectrum, 0, slot.vectors.shape[1]).max()) for slot in slots)


def mean_correlation(slot: SlotPlan, seen: Probe) -> float:
    """Correlation of a slot's symbols: as the probe saw it over the pilot, the mean over its targets."""
    points, names = seen.points[: seen.used], list(seen.tasks)
    wanted = ["s" if task is None else names[task] for task in slot.targets]
    means = [numbers.mean_over_time(points, [point.alike[name] for point in points]) for name in wanted]
    return min(1.0, max(0.0, sum(means) / len(means)))
