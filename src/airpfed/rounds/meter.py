"""The theory beside a round: what F really did, E1 to E4, the bounds and which of their assumptions held."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air.uplink import Received
from airpfed.devices.fleet import Fleet
from airpfed.devices.sweep import Sweep, full_losses, sweep
from airpfed.model.vector import Vectors
from airpfed.record import Bounds, Constants, Probe, Theory
from airpfed.rounds.state import Optimizer, State, vectors
from airpfed.rounds.step import Link, step
from airpfed.theory import bound, constants
from airpfed.theory.account import energy
from airpfed.theory.space import (
    Direction,
    Stack,
    Weights,
    averaged,
    dot,
    inner,
    power,
    printed_square,
    square,
    weights_of,
)

Draws = Callable[[int, Tensor, Tensor, Tensor, Tensor], list[Received]]
"""A `Link` that gives what each of several channel draws would."""

BIAS_SEEN = 0.05
"""A sum that claims to be unbiased counts as biased if its gain is off 1 by more than this and 5 standard errors."""


@dataclass(frozen=True)
class Meter:
    """What the probe and the meter need of a run.

    every: rounds between metered ones; 0: none. draws: the round's link over other channels, noise and scrambling, all
    draws at once; exact: the error-free link. samples: of each device for the Hessian (0: all). given: constants that
    are not probed.
    """

    fleet: Fleet
    names: tuple[str, ...]
    draws: Draws
    exact: Link
    unbiased: bool
    optimizer: Optimizer
    lr: float | None
    rounds: int
    batch_size: int
    local_steps: int
    local_lr: float
    chunk: int
    every: int
    samples: int
    lanczos_steps: int
    pilot_rounds: int
    safety: float
    given: dict[str, float]

    @property
    def weights(self) -> Weights:
        """How F weighs devices and tasks."""
        samples = torch.tensor([float(len(shard)) for shard in self.fleet.shards], dtype=torch.float64)
        return weights_of(samples, self.fleet.task_of, len(self.names))

    @property
    def plain(self) -> bool:
        """Whether the update is the one that (39) to (43) speak of: SGD on mini-batch gradients."""
        return self.optimizer == "sgd" and self.local_steps == 1


@dataclass(frozen=True)
class Played:
    """A round as it was played: the states around it, the devices' gradients and cursors, who was there."""

    before: State
    after: State
    gradients: Vectors
    cursors: Tensor
    present: Tensor


@dataclass(frozen=True)
class Drawn:
    """A round's uplink over several channels.

    gain, deviation: of the mean Ghat against G; gain_error: standard error of the gain; claimed, measured: energies of
    each draw. states: after the round.
    """

    gain: float
    gain_error: float
    deviation: float
    claimed: Float[Tensor, " m"]
    measured: Float[Tensor, " m"]
    states: list[State]


def due(meter: Meter | None, t: int) -> bool:
    """Whether round t is metered."""
    return meter is not None and meter.every > 0 and t % meter.every == 0


def place(values: Vectors) -> Direction:
    """A run's parameters as a point of the theory's space."""
    return Direction(values["global"][0].double(), values["task"].double(), values["device"].double())


def stack_of(gradients: Vectors) -> Stack:
    """The devices' gradients in all that moves."""
    return Stack(gradients["global"], gradients["task"], gradients["device"])


def metered(meter: Meter, probe: Probe, start: State, played: Played, eta: float) -> Theory:
    """One round's row: a pass of gradients and losses before it, losses after it, losses over the channel draws.

    A pure function of the round and of what was fixed before it: nothing of the run moves. Losses after draws are
    taken on every sample once, each at one of the draws, whose number the samples are dealt over.
    """
    weights, fleet = meter.weights, meter.fleet
    begin, end = vectors(played.before), vectors(played.after)
    seen = sweep(fleet, begin, meter.batch_size, meter.chunk)
    gradient = averaged(weights, seen.gradient)
    moved = place(end) - place(begin)
    after = full_losses(fleet, [end], meter.batch_size, meter.chunk)
    drawn = draw(meter, played, eta)
    ways = [place(vectors(state)) - place(begin) for state in drawn.states]
    dealt = full_losses(fleet, [vectors(state) for state in drawn.states], meter.batch_size, meter.chunk)
    fixed = probe.constants
    (e1, e2), (l3, l4) = inner(weights, moved, gradient), inner(weights, moved, moved)
    change = changed(weights, seen.losses, after)
    numbers = gradients_row(weights, seen, gradient)
    channel = float(drawn.claimed.mean())
    usable = meter.plain and bool(played.present.all())
    row = Theory(
        **numbers,
        change=change, e1=e1, e2=e2, e3=fixed.beta / 2 * l3, e4=fixed.beta / 2 * l4,
        draws=len(ways),
        change_mean=changed(weights, seen.losses, dealt),
        first_mean=mean([dot(weights, way, gradient) for way in ways]),
        second_mean=fixed.beta / 2 * mean([square(weights, way) for way in ways]),
        channel=channel,
        channel_measured=float(drawn.measured.mean()),
        gain=drawn.gain,
        deviation=drawn.deviation,
        distance=square(weights, place(begin) - place(vectors(start))) ** 0.5,
        curvature=constants.step_curvature(change, e1 + e2, l3 + l4),
        eta=eta,
        bounds=bounds_of(eta, fixed, numbers["gradient"], numbers["gradient_printed"], channel, usable).model_copy(
            update={"descent": e1 + e2 + fixed.beta / 2 * (l3 + l4)}
        ),
        constants=fixed,
        failed=[],
    )  # fmt: skip
    return row.model_copy(update={"failed": failures(probe, row, drawn)})


def mean(values: Sequence[float]) -> float:
    """Mean of some numbers."""
    return sum(values) / len(values)


def changed(weights: Weights, before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """F after minus F before: sample by sample, then averaged, in float64."""
    each = [(b.double() - a.double()).mean() for a, b in zip(before, after, strict=True)]
    return float(weights.device @ torch.stack(each))


def gradients_row(weights: Weights, seen: Sweep, gradient: Direction) -> dict[str, float]:
    """The fields of `record.Gradients`."""
    losses = torch.stack([own.mean() for own in seen.losses])
    return {
        "loss": float(weights.device @ losses),
        "gradient": square(weights, gradient),
        "gradient_printed": printed_square(weights, gradient),
        "power": power(weights, seen.gradient),
        "sgd": float(weights.device @ seen.sgd),
        "sgd_error": float((weights.device @ seen.sgd_error.square().diag() @ weights.device).sqrt()),
    }


def bounds_of(eta: float, fixed: Constants, gradient: float, printed: float, channel: float, usable: bool) -> Bounds:
    """The bounds of one round; all but the descent lemma's need plain SGD with every device present."""
    if not usable:
        return Bounds(descent=0.0, first_order=None, second_order=None, one_round=None, one_round_printed=None,
                      one_round_ours=None)  # fmt: skip
    as_printed = fixed.model_copy(update={"lam": fixed.lam_printed, "sigma_dif2": fixed.sigma_dif2_printed})
    return Bounds(
        descent=0.0,
        first_order=bound.first_order(eta, gradient, gradient),
        second_order=bound.second_order(eta, fixed, gradient, channel),
        one_round=bound.one_round(eta, fixed, gradient, channel),
        one_round_printed=bound.one_round(eta, as_printed, gradient, channel),
        one_round_ours=bound.one_round_ours(eta, fixed, gradient, channel),
    )


def draw(meter: Meter, played: Played, eta: float) -> Drawn:
    """The round's gradients through the channel draws: what its sums are on average, and where the servers would be."""
    weights = meter.weights
    shares = dict(zip(meter.names, weights.task.tolist(), strict=True))
    rows = stack_of(played.gradients)
    wanted = averaged(weights, Stack(*(part.nan_to_num() for part in vars(rows).values())))
    total, squares, along, claimed, measured, states = wanted * 0.0, [], [], [], [], []
    everything = played.gradients["global"], played.gradients["task"], played.present, played.before.server.memory
    for received in meter.draws(played.before.round + 1, *everything):
        state = stepped(meter, played, received, eta)
        heard = Direction(received.shared.double(), received.personal.double(), wanted.own)
        total = total + heard
        squares.append(square(weights, heard))
        along.append(dot(weights, wanted, heard))
        claimed.append(energy(received.mse, shares, "claimed"))
        measured.append(square(weights, heard - wanted))
        states.append(state)
    count = len(states)
    middle = total * (1 / count)
    noise = max(0.0, (sum(squares) - count * square(weights, middle)) / max(1, count - 1))
    power_of = square(weights, wanted)
    gain, error = gain_of(along, power_of)
    left = max(0.0, square(weights, middle - wanted * gain) - noise / count)
    return Drawn(
        gain=gain,
        deviation=(left / power_of) ** 0.5 if power_of > 0 else 0.0,
        gain_error=error,
        claimed=torch.tensor(claimed, dtype=torch.float64),
        measured=torch.tensor(measured, dtype=torch.float64),
        states=states,
    )


def gain_of(along: Sequence[float], power_of: float) -> tuple[float, float]:
    """Mean of <G, Ghat> / ||G||^2 over draws and its standard error; 1 and 0 where G is 0."""
    if power_of <= 0:
        return 1.0, 0.0
    each = torch.tensor(along, dtype=torch.float64) / power_of
    return float(each.mean()), float(each.std()) / len(each) ** 0.5 if len(each) > 1 else 0.0


def stepped(meter: Meter, played: Played, received: Received, eta: float) -> State:
    """The state after the round, had the servers received this."""
    return step(played.before, played.gradients, played.cursors, lambda *_: received, meter.optimizer, eta)[0]


def failures(probe: Probe, row: Theory, drawn: Drawn) -> list[str]:
    """Which assumptions did not hold: A1 along the step, A2, A3 (both readings), the step, region, bias, claim."""
    fixed, slip = probe.constants, 1 + 1e-9
    excess = drawn.measured - drawn.claimed
    checks = {
        "A1": row.change <= row.bounds.descent,
        "A2": row.sgd <= (fixed.c * row.power + fixed.sigma_sgd2) * slip,
        "A3": row.power <= (fixed.lam * row.gradient + fixed.sigma_dif2) * slip,
        "A3 printed": row.power <= (fixed.lam_printed * row.gradient_printed + fixed.sigma_dif2_printed) * slip,
        "step": row.bounds.one_round is None or row.eta <= bound.step_size(fixed) * slip,
        "region": row.distance <= probe.reach * slip,
        "claim": float(excess.mean()) <= 5 * float(excess.std()) / len(excess) ** 0.5 + 1e-12 * row.power,
    }
    if probe.unbiased:
        checks["unbiased"] = abs(drawn.gain - 1) <= max(BIAS_SEEN, 5 * drawn.gain_error)
    else:
        checks["bias"] = drawn.deviation**2 + (drawn.gain - fixed.gain) ** 2 <= fixed.deviation**2 * slip
    return [name for name, held in checks.items() if not held]
