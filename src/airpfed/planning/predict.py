"""The prediction for one candidate of a plan: the channel's energy over random channels, Psi_T, and costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air import link_level, resources
from airpfed.air.correlation import Correlation, correlation_matrix
from airpfed.air.distortion import distortion_of
from airpfed.air.link_level import Drops
from airpfed.air.problem import Transceiver, gains
from airpfed.air.round_cost import round_ledger
from airpfed.air.schedule import SlotPlan, Uplink, normalizer_groups
from airpfed.air.segments import Segment
from airpfed.air.symbols import uses_of
from airpfed.config.schema import Settings
from airpfed.core.run_files import Constants, Ledger, Probe
from airpfed.devices.clients import Clients
from airpfed.experiment import build
from airpfed.experiment.build.uplink import build_uplink, check_channel_memory
from airpfed.model import layout
from airpfed.planning.channel_study import draw_channels, schedule_full_round
from airpfed.theory import bounds, predictions
from airpfed.theory.predictions import StudiedGroup

ENTRIES = 64
"""Random real entries sent through each channel. Few are enough, because a plan uses claimed errors only."""
MIN_VARIANCE = 1e-30
"""Mean square of entries for which the probe measured zero."""

NO_COST = Ledger()

EntryVariance = dict[str, list[tuple[tuple[int, int], Float[Tensor, " K"]]]]
"""Scope -> (columns, mean square of an entry in them by device)."""


@dataclass(frozen=True)
class Candidate:
    """The prediction for one choice of settings: Psi_T, and the costs of all rounds.

    set: key -> value. psi: Psi_T of (43), None if the design is biased or the step exceeds the rule's. psi_ours: Psi_T
    of our bound, None where it proves nothing. Both are None unless SGD is plain. shares: shares of the causes in psi,
    or else in psi_ours; empty if both are None. channel: mean energy of a round's errors. joules: energy radiated for
    gradients, mean over devices. total_seconds, total_joules: of uplink, downlink and computing, the energy as the mean
    over devices.
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
    downlink_seconds: float
    total_seconds: float
    total_joules: float


def predict_candidate(
    settings: Settings,
    changes: dict[str, Any],
    clients: Clients,
    probe: Probe,
    draws: int,
    base: Settings,
    computing: Ledger = NO_COST,
) -> Candidate:
    """Predict one candidate.

    base: the settings of the probe. draws: how many channels to draw, for the run's own device positions. computing:
    what a round's computing costs.
    """
    order = build.experiment_layout(settings, clients.backbone, clients.classes)
    samples = torch.tensor([float(len(shard)) for shard in clients.shards], dtype=torch.float64)
    kinds = order.kinds("global"), order.kinds("task")
    link = build_uplink(settings, clients.task_of, samples, kinds, order.task_lengths)
    check_channel_memory(settings.radio, len(samples), len(settings.tasks), draws)
    drops = draw_channels(link, [(link.network, 1.0)], draws, settings.radio.has_recorded_channel)
    variance = entry_variance(clients.layout, order, probe, clients.task_of)
    parts, cost = study_round(link, schedule_full_round(link, drops), variance, probe, drops)
    unbiased = build.is_unbiased(settings)
    bias = (1.0, 0.0) if unbiased else predictions.bias(parts)
    constants = planned_constants(settings, probe, base, bias)
    eta = bounds.step_size(constants) if isinstance(settings.server.lr, str) else settings.server.lr
    energy, rounds = predictions.predicted_energy(parts), rounds_within(settings, cost + computing)
    arguments = eta, constants, probe.points[0].loss, rounds, energy
    psi = bounds.average_bound(*arguments) if unbiased and probe.plain and bounds.within_rule(eta, constants) else None
    psi_ours = bounds.average_bound_ours(*arguments) if probe.plain else None
    best = psi or psi_ours
    return Candidate(
        set=changes,
        psi=psi.total if psi else None,
        psi_ours=psi_ours.total if psi_ours else None,
        shares=best.shares if best else {},
        eta=eta,
        channel=energy,
        gain=constants.gain,
        deviation=constants.deviation,
        air_seconds=rounds * cost.air_seconds,
        joules=rounds * cost.joules_mean,
        channel_uses=rounds * cost.channel_uses,
        downlink_seconds=rounds * cost.downlink_seconds,
        total_seconds=rounds * (cost + computing).total_seconds,
        total_joules=rounds * (cost + computing).total_joules_mean,
    )


def rounds_within(settings: Settings, cost: Ledger) -> int:
    """T, or the rounds of such a cost that fit into the run's budgets of seconds; the first is always run."""
    server = settings.server
    on_air = cost.air_seconds + (cost.downlink_seconds if server.air_seconds_of == "both" else 0.0)
    rounds = server.rounds
    for seconds, budget in ((on_air, server.air_seconds), (cost.total_seconds, server.seconds)):
        if budget is not None and seconds > 0:
            rounds = min(rounds, max(1, int(budget / seconds * (1 + 1e-12))))
    return rounds


def planned_constants(settings: Settings, probe: Probe, base: Settings, bias: tuple[float, float]) -> Constants:
    """The probe's constants at a candidate's split, with the (gain, deviation) of its design."""
    ranks, constants = settings.adapters, probe.constants
    if ranks.rank_shared != base.adapters.rank_shared:
        share = ranks.rank_shared / (ranks.rank_shared + ranks.rank_personal)
        constants = predictions.at_split(probe, share, settings.theory.sigma_dif2 is not None)
    return constants.model_copy(update={"gain": bias[0], "deviation": probe.safety * bias[1]})


def entry_variance(probed: layout.Layout, order: layout.Layout, probe: Probe, task_of: Tensor) -> EntryVariance:
    """The mean square of a gradient's entries by scope and kind of factor, in the columns of `order`.

    The mean is over the pilot's time, and over a device's own entries: a task's head may be narrower than the widest
    one. Entries of a kind have the same variance whatever their scope: a kind that the probe did not measure in a scope
    is taken from the other scope. task_of: task of each device, (K,).
    """
    points, measured = probe.points[: probe.used], dict[tuple[str, str], Tensor]()
    for scope, kinds in (("global", probed.kinds("global")), ("task", probed.kinds("task"))):
        for kind, (a, b) in kinds.items():
            rows = zip(*(point.energy[f"{scope}.{kind}"] for point in points), strict=True)
            means = [predictions.mean_over_time(points, row) for row in rows]
            ends = torch.tensor(probed.task_lengths)[task_of].clamp(max=b) if scope == "task" else torch.tensor(b)
            measured[scope, kind] = torch.tensor(means, dtype=torch.float64) / (ends - a).clamp(min=1)
    for kind in {kind for _, kind in measured}:
        for scope, other in (("global", "task"), ("task", "global")):
            if (scope, kind) not in measured:
                measured[scope, kind] = measured[other, kind]
    columns = {"global": order.kinds("global"), "task": order.kinds("task")}
    return {scope: [(span, measured[scope, kind]) for kind, span in kinds.items()] for scope, kinds in columns.items()}


def study_round(
    link: Uplink, slots: Sequence[SlotPlan], variance: EntryVariance, probe: Probe, drops: Drops
) -> tuple[list[StudiedGroup], Ledger]:
    """Study the channel of all slots and normaliser groups, and account for the costs of one round."""
    count = sum(b - a for a, b in link.shared_groups)
    joules = [torch.zeros(len(slot.devices), dtype=torch.float64) for slot in slots]
    if link.design is None:
        return [], round_ledger(link, slots, joules, 0, count)
    common_square = None
    if link.normalizer == "common":  # sigma_t^2: the largest mean square of any device's vector in any slot
        largest = [stream_variance(slot, variance, 0, slot.vectors.shape[1]).max() for slot in slots]
        common_square = max(float(square) for square in largest)
    drawn = [
        (index, *draw_group(link, slot, variance, span, common_square, probe, drops))
        for index, slot in enumerate(slots)
        for span in normalizer_groups(link, slot)
    ]
    transceivers = link_level.design_slots(link, [segment for _, segment, _ in drawn])
    parts = []
    for (index, segment, entries), transceiver in zip(drawn, transceivers, strict=True):
        rho = symbol_correlation(segment.slot, probe)
        segment = replace(segment, assumed_correlation=Correlation(rho, rho))  # whatever the receivers assumed
        claimed = link_level.measure(link, segment, transceiver).claimed
        uses = uses_of(segment.slot.vectors.shape[1], link.packing)
        power = transceiver.transmit_factors.abs().square().mean(0)
        joules[index] += power * uses * resources.use_seconds(link.bandwidth_hz)
        parts += theory_parts(link, segment, entries, claimed, transceiver)
    return parts, round_ledger(link, slots, joules, 0, count)


def draw_group(
    link: Uplink,
    slot: SlotPlan,
    variance: EntryVariance,
    span: tuple[int, int],
    common_square: float | None,
    probe: Probe,
    drops: Drops,
) -> tuple[Segment, Float[Tensor, " U"]]:
    """Draw one normaliser group of a slot over random channels, with the weights of the design.

    span: columns of the group. common_square: sigma_t^2 of the common normaliser, None for per-device normalisers.
    Returns the segment, whose `combining_matrix` holds the receivers' sigma, and share of F times entries of each sum.
    """
    first, last = span
    square = stream_variance(slot, variance, first, last)
    if not float(square.sum()):  # A at B = 0: it is sent from the second round on, with very small gradients
        square = torch.full_like(square, MIN_VARIANCE)
    weights, square = predictions.normalise_weights(slot.weights, square)
    if common_square is not None:
        weights, square = slot.weights, torch.full_like(square, common_square)
    group = replace(
        slot,
        weights=weights,
        vectors=replace(slot.vectors, width=last - first),
        combining_matrix=slot.combining_matrix * square.sqrt(),
        name=f"{slot.name}/{first}",
    )
    segment = link_level.draw_segment(link, group, drops, ENTRIES, symbol_correlation(slot, probe))
    lengths = torch.stack(
        [slot.lengths[row > 0].amax() for row in (slot.combining_matrix != 0).double() @ slot.weights]
    )
    task_shares = list(probe.tasks.values())
    shares = [1.0 if task is None else task_shares[task] for task in slot.targets]
    return segment, torch.tensor(shares, dtype=torch.float64) * (lengths - first).clamp(0, last - first)


def theory_parts(
    link: Uplink,
    segment: Segment,
    entries: Float[Tensor, " U"],
    claimed: Float[Tensor, "B U"],
    transceiver: Transceiver,
) -> list[StudiedGroup]:
    """The numbers of a segment that the theory needs, for each of its sums."""
    slot, combining_matrix = segment.slot, segment.slot.combining_matrix
    weights = combining_matrix @ slot.weights
    distortion = distortion_of(link, segment, transceiver)
    mean_gains = distortion.mean_gains(gains(segment.problem.h, transceiver)).mean(0)
    received = combining_matrix.to(torch.complex128) @ mean_gains
    correlation = correlation_matrix(
        segment.assumed_correlation, segment.task_of, slot.target_of, len(slot.weights) > 1
    )
    return [
        StudiedGroup(
            energy=float(entries[u]),
            weights=weights[u],
            gains=received[u],
            mean_correlation=correlation,
            mse=float(claimed[:, u].mean()),
        )
        for u in range(len(entries))
    ]


def stream_variance(slot: SlotPlan, variance: EntryVariance, first: int, last: int) -> Float[Tensor, " J"]:
    """The mean square of the entries of each stream in the columns from `first` to `last`."""
    sums = (slot.combining_matrix != 0).double().argmax(0)  # of each receiver; with two_hop several have one sum
    scopes = ["global" if slot.targets[i] is None else "task" for i in sums[slot.target_of].tolist()]
    out = torch.zeros(len(scopes), dtype=torch.float64)
    for j, (scope, k) in enumerate(zip(scopes, slot.devices.tolist(), strict=True)):
        for (a, b), square in variance[scope]:
            out[j] += square[k] * max(0, min(b, last) - max(a, first)) / (last - first)
    return out


def symbol_correlation(slot: SlotPlan, probe: Probe) -> float:
    """The correlation of a slot's symbols: the probe's mean over the pilot's time, and over the slot's targets."""
    points, tasks = probe.points[: probe.used], list(probe.tasks)
    names = ["s" if task is None else tasks[task] for task in slot.targets]
    means = [predictions.mean_over_time(points, [point.alike[name] for point in points]) for name in names]
    return min(1.0, max(0.0, sum(means) / len(means)))
