"""Timing of variants that take turns in one process, and what is said of it: quartiles, ratios with intervals, JSON."""

import contextlib
import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

DRAWS = 4000
"""Bootstrap draws of an interval."""


@dataclass(frozen=True)
class Spent:
    """One turn of a variant: wall seconds, CPU seconds of all threads, peak resident MB while it ran."""

    wall: float
    cpu: float
    peak_mb: float


@dataclass(frozen=True)
class Ratio:
    """Median over pairs of A's figure over B's in the same pair, and the bootstrap's 95 % interval of that median."""

    median: float
    low: float
    high: float


def take_part(items: Sequence[Item], part: str) -> Sequence[Item]:
    """Every N-th item from the I-th on, for part "I/N". Raises SystemExit unless 1 <= I <= N."""
    first, _, step = part.partition("/")
    if not (first.isdigit() and step.isdigit() and 1 <= int(first) <= int(step)):
        raise SystemExit(f'--part {part}: should be I/N with 1 <= I <= N, such as "2/10"')
    return items[int(first) - 1 :: int(step)]


def spent(work: Callable[[], object], cpu: Callable[[], float] = time.process_time) -> Spent:
    """What one call of `work` takes. cpu: the clock of CPU seconds, by default this process's."""
    start_peak()
    wall, used = time.perf_counter(), cpu()
    work()
    return Spent(time.perf_counter() - wall, cpu() - used, peak_mb())


def start_peak() -> None:
    """Set the process's peak resident memory back to what is resident now, where the system lets us (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Peak resident memory since `start_peak`, MB; of the whole process where there is no /proc."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def interleaved(
    variants: Mapping[str, Callable[[int], object]],
    pairs: int,
    warm_up: int = 1,
    cpu: Callable[[], float] = time.process_time,
) -> dict[str, list[Spent]]:
    """Every variant in turn, `pairs` times over: A, B, A, B, ... Each is told the number of its pair.

    Whatever slows the machine for longer than a turn slows all variants of a pair. warm_up: rounds of turns before the
    first that counts, told the numbers -1, -2, ...
    """
    turns: dict[str, list[Spent]] = {name: [] for name in variants}
    for pair in range(-warm_up, pairs):
        for name, work in variants.items():
            one = spent(lambda work=work, pair=pair: work(pair), cpu)  # type: ignore[misc]
            if pair >= 0:
                turns[name].append(one)
    return turns


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
    return {"q1": float(low), "median": float(middle), "q3": float(high)}


def ratio(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Ratio:
    """Median of the pairs' ratios, and its interval by resampling pairs (percentiles 2.5 and 97.5 of DRAWS medians)."""
    pairs = np.asarray(above, dtype=float) / np.asarray(below, dtype=float)
    chosen = np.random.default_rng(seed).integers(len(pairs), size=(DRAWS, len(pairs)))
    low, high = np.quantile(np.median(pairs[chosen], axis=1), [0.025, 0.975])
    return Ratio(float(np.median(pairs)), float(low), float(high))


def summary(turns: Mapping[str, Sequence[Spent]], against: str) -> dict[str, dict[str, object]]:
    """Of each variant: quartiles of wall and CPU seconds, the most memory, and ratios to the variant `against`."""
    found: dict[str, dict[str, object]] = {}
    for name, own in turns.items():
        row: dict[str, object] = {"turns": len(own), "peak_mb": max(one.peak_mb for one in own)}
        for clock in ("wall", "cpu"):
            values = [getattr(one, clock) for one in own]
            row[clock] = quartiles(values)
            if name != against:
                row[f"{clock}_ratio"] = asdict(ratio(values, [getattr(one, clock) for one in turns[against]]))
        found[name] = row
    return found


def machine() -> dict[str, object]:
    """What the figures stand on: processor, cores, threads, versions, commit."""
    import torch
    import transformers

    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": commit(),
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def commit() -> str:
    """The commit of this tree, with a + where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude", "*", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "no commit"


def keep(out: Path, case: str, quick: bool, found: Mapping[str, object]) -> None:
    """Write a case's result, with the machine's, to OUT/CASE.json."""
    out.mkdir(parents=True, exist_ok=True)
    whole = {"case": case, "quick": quick, "machine": machine(), **found}
    (out / f"{case}.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
