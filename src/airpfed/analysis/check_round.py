"""The theory beside a round: what F really did, E1 to E4, the bounds and which of their assumptions held."""

from collections.abc import Sequence

import torch
from torch import Tensor

from airpfed.analysis.monitor import BoundMonitor, ChannelStatistics, RoundTrace, draw, gradients_row, place
from airpfed.core.run_files import Bounds, Constants, Probe, Theory
from airpfed.devices.full_gradients import full_losses, sweep
from airpfed.model.layout import Vectors
from airpfed.theory import bounds
from airpfed.theory.constants import step_curvature
from airpfed.theory.inner_product import Weights, averaged, dot, inner, square
from airpfed.training.state import State, vectors

BIAS_SEEN = 0.05
"""A sum that claims to be unbiased counts as biased if its gain is off 1 by more than this and 5 standard errors."""


def due(monitor: BoundMonitor | None, t: int) -> bool:
    """Whether round t is metered."""
    return monitor is not None and monitor.every > 0 and t % monitor.every == 0


def check_round(monitor: BoundMonitor, probe: Probe, start: State, played: RoundTrace, eta: float) -> Theory:
    """One round's row: a pass of gradients and losses before it, losses after it, losses over the channel draws.

    A pure function of the round and of what was fixed before it: nothing of the run moves. Losses over the draws are
    taken once a sample: samples are dealt over the draws.
    """
    weights, clients, fixed = monitor.weights, monitor.clients, probe.constants
    begin, end = vectors(played.before), vectors(played.after)
    seen = sweep(clients, begin, monitor.batch_size, monitor.chunk)
    gradient, moved = averaged(weights, seen.gradient), place(end) - place(begin)
    drawn = draw(monitor, played, eta)
    ends = [vectors(state) for state in drawn.states]
    ways = [place(where) - place(begin) for where in ends]
    slopes, squares = [dot(weights, way, gradient) for way in ways], [square(weights, way) for way in ways]

    def change(points: Sequence[Vectors]) -> float:
        return changed(weights, seen.losses, full_losses(clients, points, monitor.batch_size, monitor.chunk))

    (e1, e2), (l3, l4) = inner(weights, moved, gradient), inner(weights, moved, moved)
    bend, found = fixed.beta / 2, change([end])
    row = Theory(
        **gradients_row(weights, seen, gradient),
        change=found, e1=e1, e2=e2, e3=bend * l3, e4=bend * l4,
        draws=len(ends),
        change_mean=change(ends),
        first_mean=sum(slopes) / len(slopes),
        second_mean=bend * sum(squares) / len(squares),
        channel=float(drawn.claimed.mean()),
        channel_measured=float(drawn.measured.mean()),
        gain=drawn.gain,
        deviation=drawn.deviation,
        distance=square(weights, place(begin) - place(vectors(start))) ** 0.5,
        curvature=step_curvature(found, e1 + e2, l3 + l4),
        eta=eta,
        bounds=Bounds(descent=e1 + e2 + bend * (l3 + l4)),
        constants=fixed,
        failed=[],
    )  # fmt: skip
    if monitor.plain and bool(played.present.all()):
        row = row.model_copy(update={"bounds": bounds_of(row)})
    return row.model_copy(update={"failed": failures(probe, row, drawn)})


def changed(weights: Weights, before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """F after minus F before: sample by sample, then averaged, in float64."""
    each = [(b.double() - a.double()).mean() for a, b in zip(before, after, strict=True)]
    return float(weights.device @ torch.stack(each))


def bounds_of(row: Theory) -> Bounds:
    """All bounds of a round of plain SGD with every device present; the descent lemma's is there already."""
    eta, fixed, gradient, channel = row.eta, row.constants, row.gradient, row.channel
    return Bounds(
        descent=row.bounds.descent,
        first_order=bounds.first_order(eta, gradient, gradient),
        second_order=bounds.second_order(eta, fixed, gradient, channel),
        one_round=bounds.one_round(eta, fixed, gradient, channel),
        one_round_printed=bounds.one_round(eta, as_printed(fixed), gradient, channel),
        one_round_ours=bounds.one_round_ours(eta, fixed, gradient, channel),
    )


def as_printed(fixed: Constants) -> Constants:
    """The constants with those of A3 as printed."""
    return fixed.model_copy(update={"lam": fixed.lam_printed, "sigma_dif2": fixed.sigma_dif2_printed})


def failures(probe: Probe, row: Theory, drawn: ChannelStatistics) -> list[str]:
    """Which assumptions did not hold: A1 along the step, A2, A3 (both readings), the step, region, bias, claim."""
    fixed, slip = probe.constants, 1 + 1e-9
    excess = drawn.measured - drawn.claimed
    checks = {
        "A1": row.change <= row.bounds.descent,
        "A2": row.sgd <= (fixed.c * row.power + fixed.sigma_sgd2) * slip,
        "A3": row.power <= (fixed.lam * row.gradient + fixed.sigma_dif2) * slip,
        "A3 printed": row.power <= (fixed.lam_printed * row.gradient_printed + fixed.sigma_dif2_printed) * slip,
        "step": row.bounds.one_round is None or bounds.within_rule(row.eta, fixed),
        "region": row.distance <= probe.reach * slip,
        "claim": float(excess.mean()) <= 5 * float(excess.std()) / len(excess) ** 0.5 + 1e-12 * row.power,
    }
    if probe.unbiased:
        checks["unbiased"] = abs(drawn.gain - 1) <= max(BIAS_SEEN, 5 * drawn.gain_error)
    else:
        checks["bias"] = drawn.deviation**2 + (drawn.gain - fixed.gain) ** 2 <= fixed.deviation**2 * slip
    return [name for name, held in checks.items() if not held]
