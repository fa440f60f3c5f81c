"""One-target transceiver designs against their goals, as markdown: `python benchmarks/transceivers.py [--quick]`.

Rayleigh fading, distances U[10, 200] m with exponent 3, SNR at 100 m per antenna, shares U[0.5, 1.5], perfect CSI.
Times are medians, of the process where a table has no wall time. Set OMP_NUM_THREADS=1. The first table needs cvxpy and
is left out without it. `--quick` draws fewer instances and smaller slots, and takes less than half a minute.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from airpfed.air.channels.fading import rayleigh
from airpfed.air.designs import DESIGNS
from airpfed.air.designs.alternating import naive_ao
from airpfed.air.designs.error_bound import lower_bound
from airpfed.air.designs.forcing import uniform_forcing
from airpfed.air.designs.least_error import mmse
from airpfed.air.problem import TransceiverProblem, mse, objective
from airpfed.core.rng import stream

SEED = 0
KNOWN_NORMS_DB = {
    (20, 1): 15.52,
    (20, 2): 7.67,
    (20, 4): 3.02,
    (20, 6): 0.93,
    (20, 10): -1.22,
    (10, 4): 0.70,
    (50, 4): 6.45,
    (100, 4): 9.40,
}
"""Mean 10 log10 min ||m||^2 by (devices, antennas) for i.i.d. Rayleigh fading.

Exact for one antenna, else the best of 4 starts of successive convex approximation.
"""


def draw(blocks: int, antennas: int, devices: int, snr_db: float) -> TransceiverProblem:
    """Draw a slot of one target whose blocks have independent distances; channels have mean power 1 at 100 m."""
    rng = stream(SEED, "transceivers", antennas, devices)
    distance = 10 + 190 * torch.rand(blocks, devices, dtype=torch.float64, generator=rng)
    share = 0.5 + torch.rand(devices, dtype=torch.float64, generator=rng)
    h = torch.stack([rayleigh((d / 100) ** -3, antennas, rng) for d in distance])
    ones = torch.ones(devices, dtype=torch.float64)
    return TransceiverProblem(h, (share / share.sum())[None], ones[:1], ones, 10 ** (-snr_db / 10), 0 * ones)


def blocks_of(problem: TransceiverProblem) -> Iterator[TransceiverProblem]:
    for h in problem.h:
        yield replace(problem, h=h[None])


def decibels(values: Tensor) -> str:
    return f"{float(values.mean()):+.2f} +- {float(values.std()) / math.sqrt(len(values)):.2f}"


def percent(values: Tensor) -> str:
    return f"{100 * float(values.mean()):.2f} +- {100 * float(values.std()) / math.sqrt(len(values)):.2f}"


def ratio(values: Tensor) -> str:
    return f"{float(values.mean()):.3f} +- {float(values.std()) / math.sqrt(len(values)):.3f}"


def median_seconds(work: Callable[[], object], runs: int) -> tuple[float, float]:
    """Median (wall, process) seconds of a call, after a first call that is not counted."""
    work()
    walls, processes = [], []
    for _ in range(runs):
        wall, process = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        processes.append(time.process_time() - process)
    return statistics.median(walls), statistics.median(processes)


def table(title: str, columns: str) -> None:
    print(f"\n**{title}**\n\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}", flush=True)


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def forcing_against_convex(quick: bool) -> None:
    """Print ||m||^2 and seconds of `uniform_forcing`, successive convex approximation and semidefinite relaxation."""
    instances = 2 if quick else 8
    table(
        f"Uniform forcing against cvxpy: ||m||^2 ours / theirs over {instances} instances, seconds an instance",
        "M, K | / SCA | / SDR, 200 samples | SCA s | SDR s | ours s, batch 64 | faster than SCA, SDR | ours s, alone",
    )
    for antennas, devices in [(16, 50)] if quick else [(16, 50), (16, 200)]:
        problem = draw(64, antennas, devices, 10.0)
        ours = uniform_forcing(problem).receiver.abs().square().sum((1, 2))[:instances]
        batch = median_seconds(partial(uniform_forcing, problem), 3)[1] / len(problem.h)
        single = median_seconds(partial(uniform_forcing, replace(problem, h=problem.h[:1])), 9)[1]
        norms, seconds = convex_programs(problem, instances)
        faster = ", ".join(f"{float(s) / batch:.0f}x" for s in seconds)
        ratios = [ratio(ours / norm) for norm in norms]
        row(f"{antennas}, {devices}", *ratios, *(f"{s:.3f}" for s in seconds), f"{batch:.5f}", faster, f"{single:.4f}")


def convex_programs(problem: TransceiverProblem, instances: int) -> tuple[Tensor, Tensor]:
    """Solve the first instances by both convex programs. Returns (||m||^2 of shape (2, instances), mean seconds)."""
    import convex

    norms, seconds = torch.zeros(2, instances, dtype=torch.float64), torch.zeros(2, instances)
    for index in range(instances):
        h = problem.h[index] / problem.weights[0]
        scale = float(h.abs().square().mean().sqrt())
        unit, rng = (h / scale).numpy(), np.random.default_rng(SEED)
        programs = partial(convex.sca, unit, convex.eigenvector(unit)), partial(convex.sdr, unit, rng)
        for row_index, program in enumerate(programs):
            start = time.process_time()
            norms[row_index, index] = float((np.abs(program()) ** 2).sum()) / scale**2
            seconds[row_index, index] = time.process_time() - start
    return norms, seconds.mean(1)


def least_norms(quick: bool) -> None:
    """Print mean least norms in i.i.d. fading beside those of convex approximation."""
    draws = 60 if quick else 400
    table(
        f"10 log10 min ||m||^2, i.i.d. Rayleigh, {draws} draws (1000 for M = 1)",
        "K, M | ours dB | known dB | above by more than 3 se",
    )
    for (devices, antennas), reference in KNOWN_NORMS_DB.items():
        count, ones = draws if antennas > 1 else 1000, torch.ones(devices, dtype=torch.float64)
        rng = stream(SEED, "least norm", devices, antennas)
        h = torch.stack([rayleigh(ones, antennas, rng) for _ in range(count)])
        problem = TransceiverProblem(h, ones[None], ones[:1], ones, 1.0, 0 * ones)
        values = 10 * objective(problem, uniform_forcing(problem)).log10()
        exceeds = float(values.mean()) > reference + 3 * float(values.std()) / math.sqrt(count)
        row(f"{devices}, {antennas}", decibels(values), reference, "yes" if exceeds else "no")


def against_alternation(quick: bool) -> None:
    """Print the advantage of `mmse` over plain alternation."""
    blocks = 8 if quick else 32
    table(f"naive_ao minus mmse, {blocks} instances", "M, K | 20 dB | 30 dB")
    for antennas, devices in [(16, 50)] if quick else [(16, 50), (16, 200), (64, 50)]:
        gains = []
        for snr_db in (20.0, 30.0):
            problem = draw(blocks, antennas, devices, snr_db)
            gains.append(10 * (objective(problem, naive_ao(problem)) / objective(problem, mmse(problem))).log10())
        row(f"{antennas}, {devices}", *(decibels(gain) for gain in gains))


def certified_gaps(quick: bool) -> None:
    """Print the largest possible distance of `mmse` from the optimum, with one start and with four."""
    blocks = 8 if quick else 32
    table(
        f"Certified gap of mmse, % ({blocks} instances; 4 starts at 10 dB)",
        "M, K | -10 dB | 0 dB | 10 dB | 10 dB, 4 starts",
    )
    shapes = [(4, 10), (16, 50)] if quick else [(4, 10), (16, 10), (64, 10), (16, 50), (64, 50), (64, 200)]
    for antennas, devices in shapes:
        cells = []
        for snr_db, starts in ((-10.0, 1), (0.0, 1), (10.0, 1), (10.0, 4)):
            problem = draw(blocks, antennas, devices, snr_db)
            cells.append(percent(mse(problem, mmse(problem, starts=starts))[:, 0] / lower_bound(problem) - 1))
        row(f"{antennas}, {devices}", *cells)


def latencies(quick: bool) -> None:
    """Print the time of every design for one instance."""
    shapes = [(16, 50), (16, 200)] if quick else [(16, 50), (16, 200), (64, 200), (64, 1000)]
    table("One instance at 10 dB, ms: wall (process)", "design | " + " | ".join(f"{m}, {k}" for m, k in shapes))
    for name, design in DESIGNS.items():
        runs = 3 if quick or name == "continued_ao" else 9
        seconds = [median_seconds(partial(design, draw(1, m, k, 10.0)), runs) for m, k in shapes]
        row(name, *(f"{1e3 * wall:.1f} ({1e3 * process:.1f})" for wall, process in seconds))


def warm_starts(quick: bool) -> None:
    """Print steps and loss of `mmse` from the receiver of the channel before.

    h' = r h + sqrt(1 - r^2) e, where e has the mean power of h.
    """
    blocks, shape = 8 if quick else 32, (16, 50)
    table(f"Warm start at M, K = {shape}, {blocks} instances one by one", "r | dB | steps cold | steps warm | loss %")
    for correlation in (0.95, 0.99, 0.999):
        for snr_db in (0.0, 10.0, 20.0):
            previous = draw(blocks, *shape, snr_db)
            spread = previous.h.abs().square().mean(1, keepdim=True).sqrt()
            rng = stream(SEED, "innovation")
            e = torch.stack([rayleigh(torch.ones(shape[1], dtype=torch.float64), shape[0], rng) for _ in range(blocks)])
            current = replace(previous, h=correlation * previous.h + math.sqrt(1 - correlation**2) * spread * e)
            cold, warm, losses = [], [], []
            for old, new in zip(blocks_of(previous), blocks_of(current), strict=True):
                first, second = mmse(new), mmse(new, start=mmse(old).receiver)
                cold.append(first.iterations)
                warm.append(second.iterations)
                losses.append(objective(new, second) / objective(new, first) - 1)
            row(correlation, snr_db, statistics.mean(cold), statistics.mean(warm), percent(torch.cat(losses)))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true")
    quick = arguments.parse_args().quick
    print(f"Seed {SEED}, torch {torch.__version__}, {torch.get_num_threads()} thread(s); +- is one standard error.")
    if find_spec("cvxpy"):
        forcing_against_convex(quick)
    for part in (least_norms, against_alternation, certified_gaps, latencies, warm_starts):
        part(quick)


if __name__ == "__main__":
    main()
