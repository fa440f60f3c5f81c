"""One round's uplink: from the devices' gradients to the sums at the servers, their errors and their cost."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from airpfed.air.alternating_factors import alternating_phases
from airpfed.air.correlation import Correlation, NormalEquations, discounted_sum, estimate_correlation
from airpfed.air.error_memory import Silence, UnsentScope, silences, unsent_updates
from airpfed.air.grouping import round_grouping
from airpfed.air.problem import Transceiver
from airpfed.air.round_cost import round_ledger
from airpfed.air.schedule import (
    SlotPlan,
    Updates,
    Uplink,
    num_statistics_rows,
    reason_without_any_claim,
    reason_without_claim,
    schedule,
    statistics_rows,
)
from airpfed.air.segments import Segment, split_slots
from airpfed.air.slot_errors import ReceivedSums, join_segments
from airpfed.air.transceivers import design
from airpfed.air.transmit import transmit
from airpfed.core.run_files import Ledger, MeanSquaredErrors, SlotError


@dataclass(frozen=True)
class Aggregate:
    """The result of a round's uplink at the servers.

    shared: Ghat^s. personal: Ghat_n^p, one row per task. `training.factor_averaging` puts parameters into these two
    fields instead of gradients. active_tasks: tasks with a present device.
    correlation: (rho_w, rho_x), the correlation within a task and between tasks that the receivers assumed in this
    round, for each kind of normaliser group.
    correlation_statistics: normal equations of the correlation after the round, see `initial_statistics`.
    active_columns: with alternating factors (number, (first, last + 1)): the number of the phase and its columns of
    `shared`; otherwise None. unsent: scope -> (K, d_scope), float32, what every device knows that it did not send of
    its gradient, in the active columns; empty unless `Uplink.memory_bytes` asks for it. silences: present device ->
    where it was silent; empty unless `Uplink.tells_silence` asks for it.
    """

    shared: Float[Tensor, " d_s"]
    personal: Float[Tensor, "N d_p"]
    active_tasks: Bool[Tensor, " N"]
    mse: MeanSquaredErrors
    pi: float | None
    pi_claimed: float | None
    ledger: Ledger
    correlation: tuple[tuple[float, float], ...]
    correlation_statistics: Float[Tensor, "G 7"]
    active_columns: tuple[int, tuple[int, int]] | None = None
    unsent: Mapping[UnsentScope, Float[Tensor, "K d"]] = field(default_factory=dict)
    silences: Mapping[int, tuple[Silence, ...]] = field(default_factory=dict)


def uplink(link: Uplink, t: int, updates: Updates, statistics: Float[Tensor, "G 7"]) -> Aggregate:
    """Send the updates of the present devices in round t.

    statistics: normal equations of the symbols' correlation from earlier rounds, at first `initial_statistics`.
    Random: fading, CSI error, noise, scrambling and rounding, each with its own stream, fixed by seed and round.
    """
    return uplink_over_seeds(link, [link.seed], t, updates, statistics)[0]


def uplink_over_seeds(
    link: Uplink, seeds: Sequence[int], t: int, updates: Updates, statistics: Float[Tensor, "G 7"]
) -> list[Aggregate]:
    """Send the same updates with each seed in place of the link's; one call of the design serves all seeds.

    Arguments and randomness as in `uplink`.
    """
    if link.alternating:
        return _send_active_columns(link, seeds, t, updates, statistics)
    links = [replace(link, seed=seed) for seed in seeds]
    # Who sends when, for which targets, with which weights.
    slots_by_seed = [schedule(each, updates, round_grouping(each, t, updates.present)) for each in links]
    # One normaliser group of a slot over its coherence blocks, with channels and channel estimates.
    assumed = [assumed_correlation(link, row) for row in statistics]
    segments_by_seed = [split_slots(each, slots, t, assumed) for each, slots in zip(links, slots_by_seed, strict=True)]
    # A design for each segment; then the power shared by slots; then the correlation gain.
    transceivers_by_seed = design(link, segments_by_seed)
    # The radio signal, and the sums with their errors, their cost, and the next statistics.
    aggregates = []
    for each, slots, segments, transceivers in zip(
        links, slots_by_seed, segments_by_seed, transceivers_by_seed, strict=True
    ):
        sums = transmit_slots(each, slots, segments, transceivers, t)
        aggregate = assemble(each, t, updates, slots, sums, assumed, statistics)
        if each.memory_bytes is not None:
            unsent = unsent_updates(each, each.memory_bytes, updates, slots, segments, transceivers)
            aggregate = replace(aggregate, unsent=unsent)
        if each.tells_silence:
            aggregate = replace(aggregate, silences=silences(each, updates, slots, segments, transceivers))
        aggregates.append(aggregate)
    return aggregates


def transmit_slots(
    link: Uplink, slots: Sequence[SlotPlan], segments: Sequence[Segment], transceivers: Sequence[Transceiver], t: int
) -> list[ReceivedSums]:
    """Send each slot as its scheme does: by the scheme's function, or segment by segment over the air."""
    if link.send is not None:
        return [link.send(link, slot, t) for slot in slots]
    received = [transmit(link, *pair, t) for pair in zip(segments, transceivers, strict=True)]
    # `is`: every segment holds the slot object that it was split from, and tensors have no equality as one bool.
    return [
        join_segments(slot, [sums for segment, sums in zip(segments, received, strict=True) if segment.slot is slot])
        for slot in slots
    ]


def assemble(
    link: Uplink,
    t: int,
    updates: Updates,
    slots: Sequence[SlotPlan],
    received: Sequence[ReceivedSums],
    assumed: Sequence[Correlation],
    statistics: Float[Tensor, "G 7"],
) -> Aggregate:
    """The slots' sums as one aggregate: with their errors and Pi, the ledger, and the next statistics."""
    d_s, d_p, tasks = updates.shared.shape[1], updates.personal.shape[1], len(link.task_names)
    shared, personal = torch.zeros(d_s), torch.zeros(tasks, d_p)
    for slot, sums in zip(slots, received, strict=True):
        for row, task in enumerate(slot.targets):
            if task is None:
                shared = sums.sums[row, :d_s].float()
            else:
                width = min(d_p, sums.sums.shape[1])
                personal[task, :width] = sums.sums[row, :width].float()
    mse = error_records(link, slots, received)
    pi, pi_claimed = (pi_of(link, mse, d_s, updates.present, key) for key in ("measured", "claimed"))
    ledger = round_ledger(link, slots, [sums.joules for sums in received], t, d_s)
    if link.colocated:
        mse, pi, pi_claimed, ledger = MeanSquaredErrors(), None, None, Ledger()
    return Aggregate(
        shared=shared,
        personal=personal,
        active_tasks=torch.tensor([bool((updates.present & (link.task_of == n)).any()) for n in range(tasks)]),
        mse=mse,
        pi=pi,
        pi_claimed=pi_claimed,
        ledger=ledger,
        correlation=tuple((correlation.within_task, correlation.between_tasks) for correlation in assumed),
        correlation_statistics=next_statistics(link, slots, received, statistics),
    )


def error_records(link: Uplink, slots: Sequence[SlotPlan], received: Sequence[ReceivedSums]) -> MeanSquaredErrors:
    """The errors of the slots as they are recorded; a claim is None where `reason_without_claim` gives a reason."""
    records: dict[int | None, SlotError] = {}
    unclaimed = bool(reason_without_claim(link))  # no claim for the s-sum
    nothing = bool(reason_without_any_claim(link))  # none for the p-sums either, nor with the true Gram matrix
    for slot, sums in zip(slots, received, strict=True):
        mse = sums.errors / sums.errors.scale
        # Several targets in a slot, and no stream radiates any energy.
        silent_superposed = len(slot.targets) > 1 and not bool(sums.joules.any())
        for row, task in enumerate(slot.targets):
            # A p-sum keeps its claim where only the s-sum has none, but not in a silent slot of several targets.
            without_claim = unclaimed if task is None else nothing or (unclaimed and silent_superposed)
            records[task] = SlotError(
                claimed=None if without_claim else claim_of(mse.claimed[row]),
                claimed_genie=None if nothing else claim_of(mse.claimed_genie[row]),
                measured=float(mse.measured[row]),
                bias=float(mse.bias[row]),
                variance=float(mse.variance[row]),
                silence=float(mse.zero_estimate_error[row]),
                scale=float(mse.scale[row]),
            )
    shared = records.pop(None, None)
    return MeanSquaredErrors(s=shared, p={link.task_names[n]: row for n, row in records.items() if n is not None})


def claim_of(error: Float[Tensor, ""]) -> float | None:
    """A claimed error; None for NaN, where a scheme claims none."""
    return None if bool(error.isnan()) else float(error)


def pi_of(link: Uplink, mse: MeanSquaredErrors, d_s: int, present: Bool[Tensor, " K"], key: str) -> float | None:
    """Pi: the mean of MSE_s and the p-slots' MSEs, weighted by vector length, task n also by D_n/D.

    key: the error of `SlotError` to average. d_s: length of the s-vector. D_n/D is the share of the present devices'
    samples. Without a head, the lengths of s- and p-vectors are proportional to the ranks, so Pi then weights by
    R_s : R_p. `planning.link_study.target_share` has the same weights with all devices present. Returns None if no slot
    was sent or if a slot has no claim.
    """
    samples = link.samples * present
    share = {
        n: float(samples[link.task_of == n].sum() / samples.sum().clamp_min(1e-300)) for n in range(len(link.lengths))
    }
    terms: list[tuple[float, float | None]] = [(d_s, getattr(mse.s, key))] if mse.s else []
    for n, name in enumerate(link.task_names):
        if name in mse.p:
            terms.append((share[n] * link.lengths[n], getattr(mse.p[name], key)))
    total = sum(weight for weight, _ in terms)
    products = [weight * value for weight, value in terms if value is not None]
    return sum(products) / total if total and len(products) == len(terms) else None


# The symbols' correlation, from round to round


def initial_statistics(link: Uplink) -> Float[Tensor, "G 7"]:
    """The correlation statistics before the first round: zeros, (G, 7).

    The 7 columns are the sums of `NormalEquations`. The G rows are the kinds of normaliser group: one row each for A, B
    and head as far as they are sent; the common normaliser and superposed slots differ (see `num_statistics_rows`).
    With alternating factors every phase has rows of its own.
    """
    links = [phase.link for phase in alternating_phases(link)] if link.alternating else [link]
    rows = sum(num_statistics_rows(each) for each in links)
    return torch.zeros(rows, len(astuple(NormalEquations())), dtype=torch.float64)


def assumed_correlation(link: Uplink, row: Float[Tensor, " 7"]) -> Correlation:
    """The correlation that receivers assume for a kind of normaliser group: fixed, or estimated in earlier rounds."""
    if link.correlation is not None:
        return Correlation(link.correlation, link.correlation)
    return estimate_correlation(NormalEquations(*row.tolist()))


def next_statistics(
    link: Uplink,
    slots: Sequence[SlotPlan],
    received: Sequence[ReceivedSums],
    statistics: Float[Tensor, "G 7"],
) -> Float[Tensor, "G 7"]:
    """The statistics after a round: the discounted old ones plus the normal equations of the round's segments."""
    if link.design is None:
        return statistics
    new = [NormalEquations()] * len(statistics)
    for slot, sums in zip(slots, received, strict=True):
        for row, equations in zip(statistics_rows(link, slot), sums.normal_equations, strict=True):
            new[row] = new[row] + equations
    rows = [
        discounted_sum(NormalEquations(*row.tolist()), equations)
        for row, equations in zip(statistics, new, strict=True)
    ]
    return torch.tensor([astuple(row) for row in rows], dtype=torch.float64)


def _send_active_columns(
    link: Uplink, seeds: Sequence[int], t: int, updates: Updates, statistics: Float[Tensor, "G 7"]
) -> list[Aggregate]:
    """Send the active columns of the s-vector in round t; the received sum is 0 in the other columns."""
    phases = alternating_phases(link)
    phase = phases[(t - 1) % len(phases)]  # the phase that the devices train, see `Layout.active_columns`
    rows, width = phase.statistics, updates.shared.shape[1]
    return [
        replace(
            part,
            shared=phase.widen(part.shared, width),
            correlation_statistics=torch.cat(
                [statistics[: rows.start], part.correlation_statistics, statistics[rows.stop :]]
            ),
            active_columns=(phase.number, phase.columns),
        )
        for part in uplink_over_seeds(phase.link, seeds, t, phase.updates(updates), statistics[rows])
    ]
