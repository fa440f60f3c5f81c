"""The probe: a few looks at F before the first round, and the constants that every round's bounds will use."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from airpfed.devices.curvature import Curvature, curvature
from airpfed.devices.fleet import batches, gradients
from airpfed.devices.sweep import Sweep, sweep
from airpfed.record import Constants, Point, Probe
from airpfed.rounds.meter import Meter, Played, draw, gradients_row, place
from airpfed.rounds.state import State, vectors
from airpfed.rounds.step import step
from airpfed.theory import bound
from airpfed.theory.constants import envelope, secant
from airpfed.theory.space import Direction, Stack, alike, averaged, square

AHEAD = 1_000_000
"""Samples that the pilot's cursors are ahead of the run's: it draws other mini-batches than the run will."""


@dataclass(frozen=True)
class Looked:
    """A point with what the next one needs of it: where it is, and the gradient there."""

    point: Point
    place: Direction
    gradient: Direction


def probe(meter: Meter, initial: State) -> Probe:
    """Look at the start, and along an error-free pilot of `pilot_rounds` at half its way and at its end.

    The pilot steps by the rule with the start's own beta, or as far in all as the run's own rate would go, if that is
    less; Adam by its rate. Nothing of the run moves.
    """
    cursors = initial.devices.cursors + AHEAD
    state = replace(initial, devices=replace(initial.devices, cursors=cursors))
    seconds: dict[str, float] = {}
    looks: list[Looked] = []
    lr = 1.0
    for played in range(meter.pilot_rounds + 1):
        if played in {0, meter.pilot_rounds // 2, meter.pilot_rounds}:
            looks.append(look(meter, initial, state, (played, played * lr), looks[-1:], seconds))
            lr = pilot_step(meter, looks[0].point)
        if played < meter.pilot_rounds:
            with clocked(seconds, "pilot"):
                found, cursors = one_batch(meter, state)
                state, _, _ = step(state, found, cursors, meter.exact, meter.optimizer, lr)
    for phase, count in (("gradients", len(looks)), ("link", len(looks))):
        seconds[phase] /= count
    return concluded(meter, [one.point for one in looks], seconds)


@contextmanager
def clocked(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to a phase."""
    begin = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - begin


def one_batch(meter: Meter, state: State) -> tuple[dict, Tensor]:  # type: ignore[type-arg]
    """The devices' gradients of one round from a state, and their cursors after it."""
    plan, cursors = batches(meter.fleet, state.devices.cursors, meter.batch_size, meter.local_steps)
    return gradients(meter.fleet, vectors(state), plan, meter.local_lr, meter.chunk)[0], cursors


def pilot_step(meter: Meter, start: Point) -> float:
    """The pilot's step size."""
    if meter.optimizer == "adam":
        assert meter.lr is not None
        return meter.lr
    rule = 1 / meter.given.get("beta", meter.safety * start.beta)
    if meter.lr is None or not meter.pilot_rounds:
        return rule
    return min(rule, meter.lr * meter.rounds / meter.pilot_rounds)


def look(
    meter: Meter, initial: State, state: State, at: tuple[int, float], last: list[Looked], seconds: dict[str, float]
) -> Looked:
    """One point: full-data gradients, the Hessian's largest eigenvalue, one round's uplink over the channel draws.

    at: pilot rounds and time before it; last: the point before, if there is one. Seconds are added to.
    """
    weights, fleet, values = meter.weights, meter.fleet, vectors(state)
    with clocked(seconds, "sweeps"):
        seen = sweep(fleet, values, meter.batch_size, meter.chunk)
        here, gradient = place(values), averaged(weights, seen.gradient)
    with clocked(seconds, "hessians"):
        bent = bending(meter, state)
    with clocked(seconds, "gradients"):
        found, cursors = one_batch(meter, state)
    with clocked(seconds, "link"):
        everyone = torch.ones(len(fleet.shards), dtype=torch.bool)
        drawn = draw(meter, Played(state, state, found, cursors, everyone), 1.0)
    rise = 0.0
    for one in last:
        apart = square(weights, here - one.place) ** 0.5
        rise = secant(square(weights, gradient - one.gradient) ** 0.5, apart)
    point = Point(
        **gradients_row(weights, seen, gradient),
        **profile(meter, seen),
        rounds=at[0],
        time=at[1],
        distance=square(weights, here - place(vectors(initial))) ** 0.5,
        beta=bent.beta,
        beta_low=bent.low,
        beta_high=bent.high,
        secant=rise,
        gain=drawn.gain,
        deviation=drawn.deviation,
        channel=float(drawn.claimed.mean()),
    )
    return Looked(point, here, gradient)


def bending(meter: Meter, state: State) -> Curvature:
    """beta at a point; where it was given nothing is computed."""
    if "beta" in meter.given:
        return Curvature(*[meter.given["beta"]] * 3)
    values, chunk = vectors(state), max(1, meter.chunk // 3)  # a second gradient keeps about three times as much
    return curvature(meter.fleet, values, meter.samples, meter.batch_size, meter.lanczos_steps, chunk)


def profile(meter: Meter, seen: Sweep) -> dict[str, object]:
    """What a plan needs to know of the gradients: their energies and correlations, and Lambda for other splits."""
    weights, every = meter.weights, torch.arange(len(meter.fleet.shards))
    rows, own = {"global": seen.gradient.shared, "task": seen.gradient.personal}, seen.gradient.own
    total = {s: sum((e for (scope, _), e in seen.energy.items() if scope == s), torch.zeros(len(every))) for s in rows}
    likeness = {"s": alike(rows["global"], total["global"], every)}
    for n, name in enumerate(meter.names):
        likeness[name] = alike(rows["task"], total["task"], every[meter.fleet.task_of == n])
    kinds = {scope: meter.fleet.layout.kinds(scope) for scope in ("global", "task")}
    none = rows["global"][:, :0]

    def columns(scopes: tuple[str, ...], head: bool) -> Tensor:
        spans = [(s, span) for s in scopes for kind, span in kinds[s].items() if (kind == "head") == head]
        return torch.cat([none, *(rows[s][:, a:b] for s, (a, b) in spans)], 1)

    def part(shared: Tensor, personal: Tensor, own: Tensor = none) -> float:
        return square(weights, averaged(weights, Stack(shared, personal, own)))

    adapters = columns(("global", "task"), head=False)

    return {
        "energy": {f"{scope}.{kind}": values.tolist() for (scope, kind), values in seen.energy.items()},
        "alike": likeness,
        "as_shared": part(adapters, none),
        "as_personal": part(none, adapters),
        "head": part(columns(("global",), head=True), columns(("task",), head=True), own),
    }


def concluded(meter: Meter, points: list[Point], seconds: dict[str, float]) -> Probe:
    """The constants of least Psi_T: over how much of the pilot they cover, and over the corners of A2 and A3.

    The channel is left out of that choice, so that runs over different radios have the same constants and step.
    """
    covers: Callable[[int], bool] = lambda used: reaches(meter, points[:used])  # noqa: E731
    first = next(filter(covers, range(1, len(points) + 1)), len(points))
    last = len(points) if meter.lr is None else first
    choices = [(used, one) for used in range(first, last + 1) for one in candidates(meter, points[:used])]

    def promised(choice: tuple[int, Constants]) -> float:
        eta = bound.step_size(choice[1]) if meter.lr is None else meter.lr
        return bound.average(eta, choice[1], points[0].loss, meter.rounds, 0.0).total

    used, constants = min(choices, key=promised)
    return Probe(
        constants=constants,
        eta=bound.step_size(constants),
        reach=meter.safety * max(point.distance for point in points[:used]),
        unbiased=meter.unbiased,
        plain=meter.plain,
        lr=meter.lr,
        tasks=dict(zip(meter.names, meter.weights.task.tolist(), strict=True)),
        points=points,
        used=used,
        safety=meter.safety,
        seconds=seconds,
    )


def reaches(meter: Meter, points: list[Point]) -> bool:
    """Whether some points cover a run at the given rate; the rule's step is fitted to what they cover instead."""
    if meter.lr is None:
        return len(points) > 1 or not meter.pilot_rounds
    return meter.optimizer == "sgd" and points[-1].time >= meter.lr * meter.rounds * (1 - 1e-9)


def candidates(meter: Meter, points: list[Point]) -> list[Constants]:
    """Constants that hold at all these points, with the safety factor on all but C and lambda.

    Noise and disagreement are not expected to vanish with the gradient: A2 and A3 also have to hold at a gradient of 0
    with the least of either that was seen.
    beta is the largest seen, of eigenvalues and secants. Where the probe sets the step, beta is also at least so large
    that T rounds of the rule go no farther (rounds times step) than the pilot went: A1 stays true.
    """
    safety, given = meter.safety, meter.given
    steep = given.get("beta", safety * max(max(p.beta, p.secant) for p in points))
    least = min(p.sgd for p in points), min(p.power - p.gradient for p in points)
    noise = envelope([0.0, *(p.power for p in points)], [least[0], *(p.sgd for p in points)], 0.0)
    spread = envelope([0.0, *(p.gradient for p in points)], [least[1], *(p.power for p in points)], 1.0)
    way = points[-1].time if meter.lr is None and "beta" not in given else 0.0
    found = []
    for (c, sgd), (lam, dif) in product(noise, spread):
        c, lam = given.get("c", c), given.get("lam", lam)
        apart = max(0.0, *(p.power - lam * p.gradient_printed for p in points))
        found.append(
            Constants(
                beta=max(steep, meter.rounds / (lam * (c + 1) * way) if way > 0 else 0.0),
                c=c,
                sigma_sgd2=given.get("sigma_sgd2", safety * sgd),
                lam=lam,
                sigma_dif2=given.get("sigma_dif2", safety * dif),
                lam_printed=lam,
                sigma_dif2_printed=given.get("sigma_dif2", safety * apart),
                largest=largest(meter),
                **bias_of(meter, points),
            )
        )
    return found


def largest(meter: Meter) -> float:
    """omega: the largest weight of a device in a sum; what a device keeps to itself is in no sum, and counts whole."""
    return 1.0 if meter.fleet.layout.size("device") else float(meter.weights.within.max())


def bias_of(meter: Meter, points: list[Point]) -> dict[str, float]:
    """Gain and deviation that cover what all points saw; 1 and 0 of a design that claims to be unbiased.

    Ghat = c_i G + r_i seen at a point, r_i orthogonal to G, is c G + r with ||r||^2 = ||r_i||^2 + (c_i - c)^2 ||G||^2.
    """
    if meter.unbiased:
        return {"gain": 1.0, "deviation": 0.0}
    gain = sum(point.gain for point in points) / len(points)
    worst = max(point.deviation**2 + (point.gain - gain) ** 2 for point in points)
    return {"gain": gain, "deviation": meter.safety * worst**0.5}
