"""The check of a round: the measured change of F beside E1 to E4 of (38), the bounds (38) to (41) and ours, and which
of their assumptions failed.

A monitor reads a round and changes nothing of the run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air.schedule import Updates
from airpfed.air.uplink import Aggregate
from airpfed.core.errors import UserError
from airpfed.core.run_files import Bounds, Probe, Theory
from airpfed.devices.clients import Clients
from airpfed.devices.full_gradients import FullGradients, full_gradients, full_losses, mean_loss
from airpfed.model.layout import Vectors
from airpfed.theory import bounds
from airpfed.theory.constants import step_curvature
from airpfed.theory.inner_product import (
    Direction,
    Stack,
    Weights,
    dot,
    dot_parts,
    mean_power_of,
    printed_squared_norm,
    squared_norm,
    weighted_average,
    weights_of,
)
from airpfed.theory.verification import error_energy
from airpfed.training.round import Aggregator, LocalTraining, round_step
from airpfed.training.setup import RoundTrace
from airpfed.training.state import ServerStep, State, vectors

Draws = Callable[[int, Updates, Tensor], list[Aggregate]]
"""An `Aggregator` that returns the result of each of several channel draws."""

MAX_GAIN_ERROR = 0.05
"""A design that claims to be unbiased counts as biased if its gain is off 1 by more than this and 5 standard errors."""


@dataclass(frozen=True)
class ChannelStatistics:
    """A round's uplink over several channel draws.

    gain, deviation: gain of the mean Ghat on G, and relative deviation of the mean Ghat from gain times G. gain_error:
    standard error of the gain. claimed, measured: E||Ghat - G||^2 of each draw. states: the state after the round for
    each draw.
    """

    gain: float
    gain_error: float
    deviation: float
    claimed: Float[Tensor, " m"]
    measured: Float[Tensor, " m"]
    states: list[State]


@dataclass(frozen=True)
class BoundMonitor:
    """All that the probe and the checks of rounds need of a run.

    names: names of the tasks. draws: the round's uplink over other channels, noise and scrambling, all draws at once.
    exact: the error-free uplink. unbiased: whether the design claims E Ghat = G. server_step: the servers' optimizer;
    its lr is None if the probe sets it. period: rounds from one checked round to the next (0: none). hessian_samples:
    samples of each device for the Hessian (0: all). safety: factor on constants that are estimated. given: name ->
    value of constants that the settings fix.
    """

    clients: Clients
    names: tuple[str, ...]
    draws: Draws
    exact: Aggregator
    unbiased: bool
    server_step: ServerStep
    local_training: LocalTraining
    rounds: int
    devices_per_pass: int
    period: int
    hessian_samples: int
    lanczos_steps: int
    pilot_rounds: int
    safety: float
    given: dict[str, float]

    @property
    def weights(self) -> Weights:
        """The weights of devices and tasks in F."""
        samples = torch.tensor([float(len(shard)) for shard in self.clients.shards], dtype=torch.float64)
        return weights_of(samples, self.clients.task_of, len(self.names))

    @property
    def plain(self) -> bool:
        """Whether the update is that of (39) to (43): SGD at one rate, without momentum, on mini-batch gradients."""
        step, local = self.server_step, self.local_training
        plain = step.optimizer == "sgd" and not any(step.options.values()) and not step.has_schedule
        return plain and local.steps == 1 and not local.max_norm

    def is_due(self, t: int) -> bool:
        """Whether round t is to be checked."""
        return self.period > 0 and t % self.period == 0

    def check_round(self, probe: Probe, initial: State, trace: RoundTrace, eta: float) -> Theory:
        """Compare a round with its bounds: a pure function of the round and of what was fixed before it.

        initial: the state before round 1. eta: step size. Takes three passes over the data: gradients before the round,
        losses after it, and losses averaged over the channel draws, where each sample is computed at one draw.
        """
        weights, constants = self.weights, probe.constants
        start, end = vectors(trace.previous), vectors(trace.next_state)
        observed = self.full_gradients(start)
        gradient = weighted_average(weights, observed.gradient)
        step = direction_of(end) - direction_of(start)
        statistics = channel_statistics(self, trace, eta)
        ends = [vectors(state) for state in statistics.states]
        steps = [direction_of(values) - direction_of(start) for values in ends]
        slopes = [dot(weights, item, gradient) for item in steps]
        squares = [squared_norm(weights, item) for item in steps]

        def change(points: Sequence[Vectors]) -> float:
            """F after minus F before: sample by sample, then averaged, in float64."""
            losses = full_losses(self.clients, points, self.local_training.batch_size, self.devices_per_pass)
            pairs = zip(observed.losses, losses, strict=True)
            means = torch.stack([(new.double() - old.double()).mean() for old, new in pairs])
            return float(weights.device @ means)

        (e1, e2), (shared, other) = dot_parts(weights, step, gradient), dot_parts(weights, step, step)
        half_beta, change_of_f = constants.beta / 2, change([end])
        row = Theory(
            **gradient_fields(weights, observed, gradient),
            change=change_of_f, e1=e1, e2=e2, e3=half_beta * shared, e4=half_beta * other,
            draws=len(ends),
            change_mean=change(ends),
            first_mean=sum(slopes) / len(slopes),
            second_mean=half_beta * sum(squares) / len(squares),
            channel=float(statistics.claimed.mean()),
            channel_measured=float(statistics.measured.mean()),
            gain=statistics.gain,
            deviation=statistics.deviation,
            distance=squared_norm(weights, direction_of(start) - direction_of(vectors(initial))) ** 0.5,
            curvature=step_curvature(change_of_f, e1 + e2, shared + other),
            eta=eta,
            bounds=Bounds(descent=e1 + e2 + half_beta * (shared + other)),
            constants=constants,
            failed=[],
        )  # fmt: skip
        if self.plain and bool(trace.present.all()):
            row = row.model_copy(update={"bounds": bounds_of(row)})
        return row.model_copy(update={"failed": failures(probe, row, statistics)})

    def full_gradients(self, values: Vectors) -> FullGradients:
        """Losses and gradients of the full training data at some parameters."""
        return full_gradients(self.clients, values, self.local_training.batch_size, self.devices_per_pass)


def bounds_of(row: Theory) -> Bounds:
    """All bounds of a round of plain SGD with every device present. row: `bounds.descent` must be filled in."""
    eta, constants, gradient, channel = row.eta, row.constants, row.gradient, row.channel
    printed = constants.model_copy(update={"lam": constants.lam_printed, "sigma_dif2": constants.sigma_dif2_printed})
    return Bounds(
        descent=row.bounds.descent,
        first_order=bounds.first_order(eta, gradient, gradient),
        second_order=bounds.second_order(eta, constants, gradient, channel),
        one_round=bounds.one_round(eta, constants, gradient, channel),
        one_round_printed=bounds.one_round(eta, printed, gradient, channel),
        one_round_ours=bounds.one_round_ours(eta, constants, gradient, channel),
    )


def failures(probe: Probe, row: Theory, statistics: ChannelStatistics) -> list[str]:
    """The assumptions that did not hold: A1 along the step, A2, A3 (ours and printed), step, region, claim, bias."""
    constants, slack = probe.constants, 1 + 1e-9
    excess = statistics.measured - statistics.claimed
    checks = {
        "A1": row.change <= row.bounds.descent,
        "A2": row.sgd <= (constants.c * row.power + constants.sigma_sgd2) * slack,
        "A3": row.power <= (constants.lam * row.gradient + constants.sigma_dif2) * slack,
        "A3 printed": row.power
        <= (constants.lam_printed * row.gradient_printed + constants.sigma_dif2_printed) * slack,
        "step": row.bounds.one_round is None or bounds.within_rule(row.eta, constants),
        "region": row.distance <= probe.reach * slack,
        "claim": float(excess.mean()) <= 5 * float(excess.std()) / len(excess) ** 0.5 + 1e-12 * row.power,
    }
    if probe.unbiased:
        checks["unbiased"] = abs(statistics.gain - 1) <= max(MAX_GAIN_ERROR, 5 * statistics.gain_error)
    else:
        bias = statistics.deviation**2 + (statistics.gain - constants.gain) ** 2
        checks["bias"] = bias <= constants.deviation**2 * slack
    return [name for name, holds in checks.items() if not holds]


def direction_of(values: Vectors) -> Direction:
    """A run's parameters in float64 as a `Direction`, whose inner product has the weights of F."""
    return Direction(values["global"][0].double(), values["task"].double(), values["device"].double())


def stack_of(gradients: Vectors) -> Stack:
    """The devices' gradients in all parameters that are trained."""
    return Stack(gradients["global"], gradients["task"], gradients["device"])


def gradient_fields(weights: Weights, observed: FullGradients, gradient: Direction) -> dict[str, float]:
    """The fields of `run_files.Gradients`. gradient: grad F."""
    return {
        "loss": mean_loss(observed.losses, weights.device),
        "gradient": squared_norm(weights, gradient),
        "gradient_printed": printed_squared_norm(weights, gradient),
        "power": mean_power_of(weights, observed.gradient),
        "sgd": float(weights.device @ observed.sgd),
        "sgd_error": float((weights.device @ observed.sgd_error.square().diag() @ weights.device).sqrt()),
    }


def channel_statistics(monitor: BoundMonitor, trace: RoundTrace, eta: float) -> ChannelStatistics:
    """The round's gradients through the channel draws: gain, deviation and errors of the sums, and the next states."""
    weights = monitor.weights
    shares = dict(zip(monitor.names, weights.task.tolist(), strict=True))
    stack = stack_of(trace.gradients)
    exact = weighted_average(weights, Stack(*(part.nan_to_num() for part in vars(stack).values())))
    server_step = replace(monitor.server_step, lr=eta)
    total, squares, projections, claimed, measured, states = exact * 0.0, [], [], [], [], []
    updates = Updates(trace.gradients["global"], trace.gradients["task"], trace.present)
    for received in monitor.draws(trace.previous.round + 1, updates, trace.previous.server.correlation_statistics):
        states.append(
            round_step(trace.previous, trace.gradients, trace.cursors, lambda *_, r=received: r, server_step)[0]
        )
        estimate = Direction(received.shared.double(), received.personal.double(), exact.local)
        total = total + estimate
        squares.append(squared_norm(weights, estimate))
        projections.append(dot(weights, exact, estimate))
        energy = error_energy(received.mse, shares, "claimed")
        if energy is None:
            raise UserError("theory: the bounds need a claimed error of every sum, and radio.scheme claims none")
        claimed.append(energy)
        measured.append(squared_norm(weights, estimate - exact))
    count = len(states)
    mean = total * (1 / count)
    noise = max(0.0, (sum(squares) - count * squared_norm(weights, mean)) / max(1, count - 1))
    square = squared_norm(weights, exact)
    gain, gain_error = gain_of(projections, square)
    # The residual is orthogonal to G, so it holds only the part of the mean's noise that is not in the gain.
    residual = max(0.0, squared_norm(weights, mean - exact * gain) - (noise / count - gain_error**2 * square))
    return ChannelStatistics(
        gain=gain,
        gain_error=gain_error,
        deviation=(residual / square) ** 0.5 if square > 0 else 0.0,
        claimed=torch.tensor(claimed, dtype=torch.float64),
        measured=torch.tensor(measured, dtype=torch.float64),
        states=states,
    )


def gain_of(projections: Sequence[float], square: float) -> tuple[float, float]:
    """Mean of <G, Ghat> / ||G||^2 over draws and its standard error; 1 and 0 if G is 0.

    projections: <G, Ghat> of each draw. square: ||G||^2.
    """
    if square <= 0:
        return 1.0, 0.0
    gains = torch.tensor(projections, dtype=torch.float64) / square
    return float(gains.mean()), float(gains.std()) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
