"""What the theory sees of a run: its devices and data, the rounds it plays, and its uplink over many channels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from airpfed.air.uplink import Aggregate
from airpfed.devices.full_gradients import Sweep, mean_loss
from airpfed.devices.gradients import Clients
from airpfed.model.layout import Vectors
from airpfed.theory.inner_product import (
    Direction,
    Stack,
    Weights,
    averaged,
    dot,
    power,
    printed_square,
    square,
    weights_of,
)
from airpfed.theory.verification import energy
from airpfed.training.round import Aggregator, step
from airpfed.training.state import Optimizer, State

Draws = Callable[[int, Tensor, Tensor, Tensor, Tensor], list[Aggregate]]
"""A `Aggregator` that gives what each of several channel draws would."""


@dataclass(frozen=True)
class BoundMonitor:
    """What the probe and the meter need of a run.

    every: rounds between metered ones; 0: none. draws: the round's link over other channels, noise and scrambling, all
    draws at once; exact: the error-free link. samples: of each device for the Hessian (0: all). given: constants that
    are not probed.
    """

    clients: Clients
    names: tuple[str, ...]
    draws: Draws
    exact: Aggregator
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
        samples = torch.tensor([float(len(shard)) for shard in self.clients.shards], dtype=torch.float64)
        return weights_of(samples, self.clients.task_of, len(self.names))

    @property
    def plain(self) -> bool:
        """Whether the update is the one that (39) to (43) speak of: SGD on mini-batch gradients."""
        return self.optimizer == "sgd" and self.local_steps == 1


@dataclass(frozen=True)
class RoundTrace:
    """A round as it was played: the states around it, the devices' gradients and cursors, who was there."""

    before: State
    after: State
    gradients: Vectors
    cursors: Tensor
    present: Tensor


@dataclass(frozen=True)
class ChannelStatistics:
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


def place(values: Vectors) -> Direction:
    """A run's parameters as a point of the theory's space."""
    return Direction(values["global"][0].double(), values["task"].double(), values["device"].double())


def stack_of(gradients: Vectors) -> Stack:
    """The devices' gradients in all that moves."""
    return Stack(gradients["global"], gradients["task"], gradients["device"])


def gradients_row(weights: Weights, seen: Sweep, gradient: Direction) -> dict[str, float]:
    """The fields of `record.Gradients`."""
    return {
        "loss": mean_loss(seen.losses, weights.device),
        "gradient": square(weights, gradient),
        "gradient_printed": printed_square(weights, gradient),
        "power": power(weights, seen.gradient),
        "sgd": float(weights.device @ seen.sgd),
        "sgd_error": float((weights.device @ seen.sgd_error.square().diag() @ weights.device).sqrt()),
    }


def draw(monitor: BoundMonitor, played: RoundTrace, eta: float) -> ChannelStatistics:
    """The round's gradients through the channel draws: what its sums are on average, and where the servers would be."""
    weights = monitor.weights
    shares = dict(zip(monitor.names, weights.task.tolist(), strict=True))
    rows = stack_of(played.gradients)
    wanted = averaged(weights, Stack(*(part.nan_to_num() for part in vars(rows).values())))
    total, squares, along, claimed, measured, states = wanted * 0.0, [], [], [], [], []
    everything = (
        played.gradients["global"],
        played.gradients["task"],
        played.present,
        played.before.server.correlation_statistics,
    )
    for received in monitor.draws(played.before.round + 1, *everything):
        state = stepped(monitor, played, received, eta)
        heard = Direction(received.shared.double(), received.personal.double(), wanted.own)
        total = total + heard
        squares.append(square(weights, heard))
        along.append(dot(weights, wanted, heard))
        spent = energy(received.mse, shares, "claimed")
        if spent is None:
            raise ValueError("the meter needs a claimed error; a link that claims nothing is refused at build")
        claimed.append(spent)
        measured.append(square(weights, heard - wanted))
        states.append(state)
    count = len(states)
    middle = total * (1 / count)
    noise = max(0.0, (sum(squares) - count * square(weights, middle)) / max(1, count - 1))
    whole = square(weights, wanted)
    gain, error = gain_of(along, whole)
    # The residual is orthogonal to G, so of the mean's noise only that part is in it which the gain did not take.
    left = max(0.0, square(weights, middle - wanted * gain) - (noise / count - error**2 * whole))
    return ChannelStatistics(
        gain=gain,
        gain_error=error,
        deviation=(left / whole) ** 0.5 if whole > 0 else 0.0,
        claimed=torch.tensor(claimed, dtype=torch.float64),
        measured=torch.tensor(measured, dtype=torch.float64),
        states=states,
    )


def gain_of(along: Sequence[float], whole: float) -> tuple[float, float]:
    """Mean of <G, Ghat> / ||G||^2 over draws and its standard error; 1 and 0 where G is 0."""
    if whole <= 0:
        return 1.0, 0.0
    each = torch.tensor(along, dtype=torch.float64) / whole
    return float(each.mean()), float(each.std()) / len(each) ** 0.5 if len(each) > 1 else 0.0


def stepped(monitor: BoundMonitor, played: RoundTrace, received: Aggregate, eta: float) -> State:
    """The state after the round, had the servers received this."""
    return step(played.before, played.gradients, played.cursors, lambda *_: received, monitor.optimizer, eta)[0]
