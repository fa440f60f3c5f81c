"""The probe: F at a few points before round 1, and the constants of A1 to A3 that every round's bounds use.

Constants: docs/theory.md. They minimise Psi_T of (43) among all that hold at the observed points.
"""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from airpfed.analysis.monitor import BoundMonitor, channel_statistics, direction_of, gradient_fields
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import Constants, Point, Probe
from airpfed.devices.full_gradients import FullGradients
from airpfed.devices.hessian import Curvature, curvature
from airpfed.theory import bounds
from airpfed.theory.constants import envelope, secant
from airpfed.theory.inner_product import Direction, Stack, gradient_correlation, squared_norm, weighted_average
from airpfed.training.loop import time_phase
from airpfed.training.round import local_gradients, round_step
from airpfed.training.setup import Log, RoundTrace
from airpfed.training.state import State, vectors

CURSOR_OFFSET = 1_000_000
"""Samples by which the pilot's cursors are ahead of the run's: it draws other mini-batches than the run will."""


@dataclass(frozen=True)
class ProbePoint:
    """An observed point, with its parameters and its gradient, which the next point needs."""

    point: Point
    parameters: Direction
    gradient: Direction


def load_or_probe(monitor: BoundMonitor, initial: State, path: Path, resumed: bool, log: Log) -> Probe:
    """The probe of a run: read from its file if the run is resumed, else computed and written.

    path: the path of theory.json. A file that cannot be read is written again. Raises UserError if a constant is not
    finite.
    """
    if resumed:
        try:
            written = run_files.load_probe(path)
            if written is not None:
                return written
        except UserError as error:
            log(f"{error}; made again")
    log("probing the theory's constants")
    try:
        result = probe(monitor, initial)
    except ValidationError as error:
        raise UserError(
            f"theory: the probe failed ({run_files.first_problem(error)}); is the base model's loss finite?"
        ) from None
    run_files.write_json(path, result)
    return result


def probe(monitor: BoundMonitor, initial: State) -> Probe:
    """Observe F at the start, and halfway and at the end of an error-free pilot of `pilot_rounds` rounds.

    The pilot, with the step of `pilot_step`, works on copies of the state, so that the run itself does not change.
    Random: the pilot's mini-batches, drawn far behind those of the run; the channel draws.
    """
    cursors = initial.devices.cursors + CURSOR_OFFSET
    state = replace(initial, devices=replace(initial.devices, cursors=cursors))
    seconds: dict[str, float] = {}
    observed: list[ProbePoint] = []
    lr = 1.0
    for rounds in range(monitor.pilot_rounds + 1):
        if rounds in {0, monitor.pilot_rounds // 2, monitor.pilot_rounds}:
            observed.append(probe_point(monitor, initial, state, rounds, rounds * lr, observed[-1:], seconds))
            lr = pilot_step(monitor, observed[0].point)
        if rounds < monitor.pilot_rounds:
            with time_phase(seconds, "pilot"):
                gradients, _, cursors = local_gradients(
                    monitor.clients, state, monitor.local_training, monitor.devices_per_pass
                )
                server_step = replace(monitor.server_step, lr=lr)
                state, _, _ = round_step(state, gradients, cursors, monitor.exact, server_step)
    for phase in ("gradients", "link"):
        seconds[phase] /= len(observed)
    return conclude(monitor, [item.point for item in observed], seconds)


def pilot_step(monitor: BoundMonitor, start: Point) -> float:
    """The pilot's step size.

    For Adam it is the run's rate. For SGD it is 1 / beta, with beta given or measured at the start times the safety
    factor. It is smaller if the pilot then still covers the run: pilot rounds times step = rounds times the run's rate.
    """
    lr = monitor.server_step.lr
    if monitor.server_step.optimizer == "adam":
        return monitor.server_step.step_size
    rule = 1 / monitor.given.get("beta", monitor.safety * start.beta)
    if lr is None or not monitor.pilot_rounds:
        return rule
    return min(rule, lr * monitor.rounds / monitor.pilot_rounds)


def probe_point(
    monitor: BoundMonitor,
    initial: State,
    state: State,
    rounds: int,
    time: float,
    previous: list[ProbePoint],
    seconds: dict[str, float],
) -> ProbePoint:
    """One point: full-data gradients, the Hessian's largest eigenvalue, one round's uplink over the channel draws.

    rounds, time: pilot rounds before the point, and their number times their step. previous: the point before it, if
    there is one. seconds: wall-clock seconds by phase, to which the probe adds its own.
    """
    weights, clients, values = monitor.weights, monitor.clients, vectors(state)
    with time_phase(seconds, "sweeps"):
        observed = monitor.full_gradients(values)
        parameters, gradient = direction_of(values), weighted_average(weights, observed.gradient)
    with time_phase(seconds, "hessians"):
        beta = curvature_at(monitor, state)
    with time_phase(seconds, "gradients"):
        gradients, _, cursors = local_gradients(clients, state, monitor.local_training, monitor.devices_per_pass)
    with time_phase(seconds, "link"):
        present = torch.ones(len(clients.shards), dtype=torch.bool)
        statistics = channel_statistics(monitor, RoundTrace(state, state, gradients, cursors, present), 1.0)
    slope = 0.0
    for other in previous:
        distance = squared_norm(weights, parameters - other.parameters) ** 0.5
        slope = secant(squared_norm(weights, gradient - other.gradient) ** 0.5, distance)
    point = Point(
        **gradient_fields(weights, observed, gradient),
        **gradient_statistics(monitor, observed),
        rounds=rounds,
        time=time,
        distance=squared_norm(weights, parameters - direction_of(vectors(initial))) ** 0.5,
        beta=beta.beta,
        beta_low=beta.low,
        beta_high=beta.high,
        secant=slope,
        gain=statistics.gain,
        deviation=statistics.deviation,
        channel=float(statistics.claimed.mean()),
    )
    return ProbePoint(point, parameters, gradient)


def curvature_at(monitor: BoundMonitor, state: State) -> Curvature:
    """beta at a point. A given beta is not computed."""
    if "beta" in monitor.given:
        return Curvature(*[monitor.given["beta"]] * 3)
    return curvature(
        monitor.clients,
        vectors(state),
        monitor.hessian_samples,
        monitor.local_training.batch_size,
        monitor.lanczos_steps,
        max(1, monitor.devices_per_pass // 3),  # a second gradient keeps about three times as much
    )


def gradient_statistics(monitor: BoundMonitor, observed: FullGradients) -> dict[str, object]:
    """The statistics of gradients that a plan needs: energies, correlations, and Lambda for other splits of ranks."""
    weights, devices = monitor.weights, torch.arange(len(monitor.clients.shards))
    rows, local = {"global": observed.gradient.shared, "task": observed.gradient.personal}, observed.gradient.local
    total = {
        s: sum((e for (scope, _), e in observed.energy.items() if scope == s), torch.zeros(len(devices))) for s in rows
    }
    correlation = {"s": gradient_correlation(rows["global"], total["global"], devices)}
    for n, name in enumerate(monitor.names):
        correlation[name] = gradient_correlation(rows["task"], total["task"], devices[monitor.clients.task_of == n])
    kinds = {scope: monitor.clients.layout.kinds(scope) for scope in ("global", "task")}
    empty = rows["global"][:, :0]

    def columns(scopes: tuple[str, ...], head: bool) -> Tensor:
        ranges = [(s, columns) for s in scopes for kind, columns in kinds[s].items() if (kind == "head") == head]
        return torch.cat([empty, *(rows[s][:, a:b] for s, (a, b) in ranges)], 1)

    def part(shared: Tensor, personal: Tensor, local: Tensor = empty) -> float:
        return squared_norm(weights, weighted_average(weights, Stack(shared, personal, local)))

    factors = columns(("global", "task"), head=False)
    return {
        "energy": {f"{scope}.{kind}": values.tolist() for (scope, kind), values in observed.energy.items()},
        "alike": correlation,
        "as_shared": part(factors, empty),
        "as_personal": part(empty, factors),
        "head": part(columns(("global",), head=True), columns(("task",), head=True), local),
    }


def conclude(monitor: BoundMonitor, points: list[Point], seconds: dict[str, float]) -> Probe:
    """The constants of the smallest Psi_T, over the points they cover and over the corners of A2 and A3.

    The channel is left out of that choice, so that runs over different radios have the same constants and step size.
    """
    lr = monitor.server_step.lr
    counts = range(1, len(points) + 1)
    first = next((used for used in counts if covers_run(monitor, points[:used])), len(points))
    last = len(points) if lr is None else first
    choices = [
        (used, constants)
        for used in range(first, last + 1)
        for constants in candidate_constants(monitor, points[:used])
    ]

    def psi(choice: tuple[int, Constants]) -> float:
        eta = bounds.step_size(choice[1]) if lr is None else lr
        return bounds.average_bound(eta, choice[1], points[0].loss, monitor.rounds, 0.0).total

    used, constants = min(choices, key=psi)
    return Probe(
        constants=constants,
        eta=bounds.step_size(constants),
        reach=monitor.safety * max(point.distance for point in points[:used]),
        unbiased=monitor.unbiased,
        plain=monitor.plain,
        lr=lr,
        tasks=dict(zip(monitor.names, monitor.weights.task.tolist(), strict=True)),
        points=points,
        used=used,
        safety=monitor.safety,
        seconds=seconds,
    )


def covers_run(monitor: BoundMonitor, points: list[Point]) -> bool:
    """Whether the points cover a run at the given rate.

    Without a given rate, any two points suffice, because the rule's step is then chosen to stay within them. With Adam
    at a given rate no points suffice, and all points are used.
    """
    lr = monitor.server_step.lr
    if lr is None:
        return len(points) > 1 or not monitor.pilot_rounds
    return monitor.server_step.optimizer == "sgd" and points[-1].time >= lr * monitor.rounds * (1 - 1e-9)


def candidate_constants(monitor: BoundMonitor, points: list[Point]) -> list[Constants]:
    """Constants that hold at all these points, with the safety factor on all but C and lambda.

    Noise and disagreement need not vanish with the gradient: A2 and A3 must also hold at a gradient of 0 with the
    smallest noise and disagreement that were observed. beta is the largest eigenvalue or secant observed. If the probe
    sets the step, beta is also so large that T rounds of the rule go no farther (rounds times step) than the pilot: A1
    stays true. omega is 1 if devices keep parameters of their own, because those are in no sum.
    """
    safety, given = monitor.safety, monitor.given
    smooth = given.get("beta", safety * max(max(p.beta, p.secant) for p in points))
    least_noise, least_spread = min(p.sgd for p in points), min(p.power - p.gradient for p in points)
    noise = envelope([0.0, *(p.power for p in points)], [least_noise, *(p.sgd for p in points)], 0.0)
    spread = envelope([0.0, *(p.gradient for p in points)], [least_spread, *(p.power for p in points)], 1.0)
    time = points[-1].time if monitor.server_step.lr is None and "beta" not in given else 0.0
    omega = 1.0 if monitor.clients.layout.size("device") else float(monitor.weights.in_task.max())
    bias = bias_constants(monitor, points)
    candidates = []
    for (c, sgd), (lam, dif) in product(noise, spread):
        c, lam = given.get("c", c), given.get("lam", lam)
        printed = max(0.0, *(p.power - lam * p.gradient_printed for p in points))
        candidates.append(
            Constants(
                beta=max(smooth, monitor.rounds / (lam * (c + 1) * time) if time > 0 else 0.0),
                c=c,
                sigma_sgd2=given.get("sigma_sgd2", safety * sgd),
                lam=lam,
                sigma_dif2=given.get("sigma_dif2", safety * dif),
                lam_printed=lam,
                sigma_dif2_printed=given.get("sigma_dif2", safety * printed),
                largest=omega,
                **bias,
            )
        )
    return candidates


def bias_constants(monitor: BoundMonitor, points: list[Point]) -> dict[str, float]:
    """Gain and deviation that cover all points; 1 and 0 if the design claims to be unbiased.

    Ghat = c_i G + r_i at point i, with r_i orthogonal to G, is c G + r with ||r||^2 = ||r_i||^2 + (c_i - c)^2 ||G||^2.
    """
    if monitor.unbiased:
        return {"gain": 1.0, "deviation": 0.0}
    gain = sum(point.gain for point in points) / len(points)
    square = max(point.deviation**2 + (point.gain - gain) ** 2 for point in points)
    return {"gain": gain, "deviation": monitor.safety * square**0.5}
