"""The probe: a few looks at F before the first round, and the constants that every round's bounds will use."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from airpfed.analysis.monitor import BoundMonitor, RoundTrace, draw, gradients_row, place
from airpfed.core.run_files import Constants, Point, Probe
from airpfed.devices.full_gradients import Sweep, sweep
from airpfed.devices.gradients import batches, gradients
from airpfed.devices.hessian import Curvature, curvature
from airpfed.theory import bounds
from airpfed.theory.constants import envelope, secant
from airpfed.theory.inner_product import Direction, Stack, alike, averaged, square
from airpfed.training.round import step
from airpfed.training.state import State, vectors

AHEAD = 1_000_000
"""Samples that the pilot's cursors are ahead of the run's: it draws other mini-batches than the run will."""


@dataclass(frozen=True)
class ProbePoint:
    """A point with what the next one needs of it: where it is, and the gradient there."""

    point: Point
    place: Direction
    gradient: Direction


def probe(monitor: BoundMonitor, initial: State) -> Probe:
    """Look at the start, and along an error-free pilot of `pilot_rounds` at half its way and at its end.

    The pilot steps by the rule with the start's own beta, or as far in all as the run's own rate would go, if that is
    less; Adam by its rate. Nothing of the run moves.
    """
    cursors = initial.devices.cursors + AHEAD
    state = replace(initial, devices=replace(initial.devices, cursors=cursors))
    seconds: dict[str, float] = {}
    looks: list[ProbePoint] = []
    lr = 1.0
    for played in range(monitor.pilot_rounds + 1):
        if played in {0, monitor.pilot_rounds // 2, monitor.pilot_rounds}:
            looks.append(look(monitor, initial, state, (played, played * lr), looks[-1:], seconds))
            lr = pilot_step(monitor, looks[0].point)
        if played < monitor.pilot_rounds:
            with clocked(seconds, "pilot"):
                found, cursors = one_batch(monitor, state)
                state, _, _ = step(state, found, cursors, monitor.exact, monitor.optimizer, lr)
    for phase, count in (("gradients", len(looks)), ("link", len(looks))):
        seconds[phase] /= count
    return concluded(monitor, [one.point for one in looks], seconds)


@contextmanager
def clocked(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Add the wall-clock seconds of the block to a phase."""
    begin = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - begin


def one_batch(monitor: BoundMonitor, state: State) -> tuple[dict, Tensor]:  # type: ignore[type-arg]
    """The devices' gradients of one round from a state, and their cursors after it."""
    plan, cursors = batches(monitor.clients, state.devices.cursors, monitor.batch_size, monitor.local_steps)
    return gradients(monitor.clients, vectors(state), plan, monitor.local_lr, monitor.chunk)[0], cursors


def pilot_step(monitor: BoundMonitor, start: Point) -> float:
    """The pilot's step size."""
    if monitor.optimizer == "adam":
        assert monitor.lr is not None
        return monitor.lr
    rule = 1 / monitor.given.get("beta", monitor.safety * start.beta)
    if monitor.lr is None or not monitor.pilot_rounds:
        return rule
    return min(rule, monitor.lr * monitor.rounds / monitor.pilot_rounds)


def look(
    monitor: BoundMonitor,
    initial: State,
    state: State,
    at: tuple[int, float],
    last: list[ProbePoint],
    seconds: dict[str, float],
) -> ProbePoint:
    """One point: full-data gradients, the Hessian's largest eigenvalue, one round's uplink over the channel draws.

    at: pilot rounds and time before it; last: the point before, if there is one. Seconds are added to.
    """
    weights, clients, values = monitor.weights, monitor.clients, vectors(state)
    with clocked(seconds, "sweeps"):
        seen = sweep(clients, values, monitor.batch_size, monitor.chunk)
        here, gradient = place(values), averaged(weights, seen.gradient)
    with clocked(seconds, "hessians"):
        bent = bending(monitor, state)
    with clocked(seconds, "gradients"):
        found, cursors = one_batch(monitor, state)
    with clocked(seconds, "link"):
        everyone = torch.ones(len(clients.shards), dtype=torch.bool)
        drawn = draw(monitor, RoundTrace(state, state, found, cursors, everyone), 1.0)
    rise = 0.0
    for one in last:
        apart = square(weights, here - one.place) ** 0.5
        rise = secant(square(weights, gradient - one.gradient) ** 0.5, apart)
    point = Point(
        **gradients_row(weights, seen, gradient),
        **profile(monitor, seen),
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
    return ProbePoint(point, here, gradient)


def bending(monitor: BoundMonitor, state: State) -> Curvature:
    """beta at a point; where it was given nothing is computed."""
    if "beta" in monitor.given:
        return Curvature(*[monitor.given["beta"]] * 3)
    values, chunk = vectors(state), max(1, monitor.chunk // 3)  # a second gradient keeps about three times as much
    return curvature(monitor.clients, values, monitor.samples, monitor.batch_size, monitor.lanczos_steps, chunk)


def profile(monitor: BoundMonitor, seen: Sweep) -> dict[str, object]:
    """What a plan needs to know of the gradients: their energies and correlations, and Lambda for other splits."""
    weights, every = monitor.weights, torch.arange(len(monitor.clients.shards))
    rows, own = {"global": seen.gradient.shared, "task": seen.gradient.personal}, seen.gradient.own
    total = {s: sum((e for (scope, _), e in seen.energy.items() if scope == s), torch.zeros(len(every))) for s in rows}
    mean_correlation = {"s": alike(rows["global"], total["global"], every)}
    for n, name in enumerate(monitor.names):
        mean_correlation[name] = alike(rows["task"], total["task"], every[monitor.clients.task_of == n])
    kinds = {scope: monitor.clients.layout.kinds(scope) for scope in ("global", "task")}
    none = rows["global"][:, :0]

    def columns(scopes: tuple[str, ...], head: bool) -> Tensor:
        spans = [(s, span) for s in scopes for kind, span in kinds[s].items() if (kind == "head") == head]
        return torch.cat([none, *(rows[s][:, a:b] for s, (a, b) in spans)], 1)

    def part(shared: Tensor, personal: Tensor, own: Tensor = none) -> float:
        return square(weights, averaged(weights, Stack(shared, personal, own)))

    adapters = columns(("global", "task"), head=False)

    return {
        "energy": {f"{scope}.{kind}": values.tolist() for (scope, kind), values in seen.energy.items()},
        "alike": mean_correlation,
        "as_shared": part(adapters, none),
        "as_personal": part(none, adapters),
        "head": part(columns(("global",), head=True), columns(("task",), head=True), own),
    }


def concluded(monitor: BoundMonitor, points: list[Point], seconds: dict[str, float]) -> Probe:
    """The constants of least Psi_T: over how much of the pilot they cover, and over the corners of A2 and A3.

    The channel is left out of that choice, so that runs over different radios have the same constants and step.
    """
    covers: Callable[[int], bool] = lambda used: reaches(monitor, points[:used])  # noqa: E731
    first = next(filter(covers, range(1, len(points) + 1)), len(points))
    last = len(points) if monitor.lr is None else first
    choices = [(used, one) for used in range(first, last + 1) for one in candidates(monitor, points[:used])]

    def promised(choice: tuple[int, Constants]) -> float:
        eta = bounds.step_size(choice[1]) if monitor.lr is None else monitor.lr
        return bounds.average(eta, choice[1], points[0].loss, monitor.rounds, 0.0).total

    used, constants = min(choices, key=promised)
    return Probe(
        constants=constants,
        eta=bounds.step_size(constants),
        reach=monitor.safety * max(point.distance for point in points[:used]),
        unbiased=monitor.unbiased,
        plain=monitor.plain,
        lr=monitor.lr,
        tasks=dict(zip(monitor.names, monitor.weights.task.tolist(), strict=True)),
        points=points,
        used=used,
        safety=monitor.safety,
        seconds=seconds,
    )


def reaches(monitor: BoundMonitor, points: list[Point]) -> bool:
    """Whether some points cover a run at the given rate; the rule's step is fitted to what they cover instead."""
    if monitor.lr is None:
        return len(points) > 1 or not monitor.pilot_rounds
    return monitor.optimizer == "sgd" and points[-1].time >= monitor.lr * monitor.rounds * (1 - 1e-9)


def candidates(monitor: BoundMonitor, points: list[Point]) -> list[Constants]:
    """Constants that hold at all these points, with the safety factor on all but C and lambda.

    Noise and disagreement are not expected to vanish with the gradient: A2 and A3 also have to hold at a gradient of 0
    with the least of either that was seen.
    beta is the largest seen, of eigenvalues and secants. Where the probe sets the step, beta is also at least so large
    that T rounds of the rule go no farther (rounds times step) than the pilot went: A1 stays true.
    """
    safety, given = monitor.safety, monitor.given
    steep = given.get("beta", safety * max(max(p.beta, p.secant) for p in points))
    least = min(p.sgd for p in points), min(p.power - p.gradient for p in points)
    noise = envelope([0.0, *(p.power for p in points)], [least[0], *(p.sgd for p in points)], 0.0)
    spread = envelope([0.0, *(p.gradient for p in points)], [least[1], *(p.power for p in points)], 1.0)
    way = points[-1].time if monitor.lr is None and "beta" not in given else 0.0
    found = []
    for (c, sgd), (lam, dif) in product(noise, spread):
        c, lam = given.get("c", c), given.get("lam", lam)
        apart = max(0.0, *(p.power - lam * p.gradient_printed for p in points))
        found.append(
            Constants(
                beta=max(steep, monitor.rounds / (lam * (c + 1) * way) if way > 0 else 0.0),
                c=c,
                sigma_sgd2=given.get("sigma_sgd2", safety * sgd),
                lam=lam,
                sigma_dif2=given.get("sigma_dif2", safety * dif),
                lam_printed=lam,
                sigma_dif2_printed=given.get("sigma_dif2", safety * apart),
                largest=largest(monitor),
                **bias_of(monitor, points),
            )
        )
    return found


def largest(monitor: BoundMonitor) -> float:
    """omega: the largest weight of a device in a sum; what a device keeps to itself is in no sum, and counts whole."""
    return 1.0 if monitor.clients.layout.size("device") else float(monitor.weights.within.max())


def bias_of(monitor: BoundMonitor, points: list[Point]) -> dict[str, float]:
    """Gain and deviation that cover what all points saw; 1 and 0 of a design that claims to be unbiased.

    Ghat = c_i G + r_i seen at a point, r_i orthogonal to G, is c G + r with ||r||^2 = ||r_i||^2 + (c_i - c)^2 ||G||^2.
    """
    if monitor.unbiased:
        return {"gain": 1.0, "deviation": 0.0}
    gain = sum(point.gain for point in points) / len(points)
    worst = max(point.deviation**2 + (point.gain - gain) ** 2 for point in points)
    return {"gain": gain, "deviation": monitor.safety * worst**0.5}
