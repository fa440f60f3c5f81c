"""Over the air against the digital rival, both at their best: seconds and joules, the winner, and where it changes.

`python benchmarks/rival.py minilm --devices 1 4 16 64 --snr -10 0 10 --seeds 5`. A candidate is a list of overrides of
the settings, such as "radio.design=mmse radio.access=concurrent"; " x4" at its end sends every sum four times and takes
the mean. Both sides have the same number of candidates. In each cell (devices a task, SNR) all are tried on dev seeds,
the fastest that reaches the target is chosen on each side, and both chosen ones are run on other seeds: ratios are
those of the rival to the link over the air in the same seed, medians with the bootstrap's 95 % interval. The whole
search is printed.

The target is an error of the received sums, ||Ghat - G||^2 / ||G||^2 over all vectors of a round (--nmse, several at
once): no learning, so that it is cheap. Gradients are synthetic: --entries a vector, normal times log-normal sizes
(--spread), devices alike (--correlation). `--learning`: the target is the dev accuracy of the error-free link less
0.02 (`digital.py`), the cost that of all rounds up to it; only this shows what biased candidates are worth, such as
`digital(quantizer=sign)` with `devices.memory=true`. Runs in the output file are not run again.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digital import MARGIN, course, rounds_to
from harness import ratio

from airpfed.air.schedule import Updates, Uplink
from airpfed.air.uplink import Aggregate, initial_statistics, uplink, uplink_over_seeds
from airpfed.config import settings_file
from airpfed.config.experiment_files import settings_path
from airpfed.config.schema import Settings
from airpfed.core.rng import stream
from airpfed.core.run_files import Ledger
from airpfed.experiment import build
from airpfed.planning.link_study import link_of
from airpfed.testing.links import exact_means

FORCING, MMSE = "radio.design=uniform_forcing", "radio.design=mmse"
AIR = (
    FORCING,
    MMSE,
    "radio.design=debiased_mmse",
    f"{FORCING} radio.access=concurrent",
    f"{MMSE} radio.access=concurrent",
    f"{FORCING} x2",
    f"{FORCING} x4",
    f"{FORCING} x16",
    f"{MMSE} x4",
    f"{FORCING} radio.access=concurrent x4",
)
"""The candidates over the air, unless others are given."""
RIVAL = (
    *(
        f"radio.scheme=digital(bits={bits}, quantizer=eden, access={access})"
        for access in ("ofdma", "spatial")
        for bits in (1, 2, 3, 4)
    ),
    *(f"radio.scheme=digital(bits={bits}, quantizer=uniform, entropy=true, access=spatial)" for bits in (4, 8)),
)
"""The candidates of the rival, unless others are given."""
APART = 100_003
"""Seeds of the repetitions of a sum lie so far apart."""
DEV_SEED = 1000
"""The first dev seed; the others follow, and those of the verdict begin with 0."""


@dataclass(frozen=True)
class Trial:
    """A candidate in one cell with one seed: its error or its rounds to the target, seconds on air, joules.

    joules: of the device that radiates most. error: NMSE of a sum; nan with learning. rounds: until the target; None if
    it was never reached, or without learning.
    """

    seconds: float
    joules: float
    error: float = math.nan
    rounds: int | None = None

    def reaches(self, target: float | None) -> bool:
        """Whether the target is reached. target: an NMSE; None with learning."""
        return self.rounds is not None if target is None else self.error <= target


def parse(candidate: str) -> tuple[list[str], int]:
    """The overrides of a candidate and how often it sends a sum."""
    words, _, times = candidate.rpartition(" x")
    if not words or not times.isdigit():
        words, times = candidate, "1"
    return [part for part in split_overrides(words) if part], int(times)


def split_overrides(text: str) -> list[str]:
    """Words at blanks outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == " " and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def synthetic(link: Uplink, entries: int, spread: float, correlation: float, seed: int) -> Updates:
    """Gradients of all devices: normal entries, alike among devices, times log-normal sizes that all devices share."""
    rng, K = stream(seed, "gradients"), len(link.samples)

    def vectors() -> torch.Tensor:
        size = (spread * torch.randn(entries, generator=rng)).exp()
        common, each = torch.randn(1, entries, generator=rng), torch.randn(K, entries, generator=rng)
        return size * (correlation**0.5 * common + (1 - correlation) ** 0.5 * each)

    return Updates(vectors(), vectors(), torch.ones(K, dtype=torch.bool))


def deliver(settings: Settings, times: int, options: argparse.Namespace) -> Trial:
    """Send one round's sums `times` times, after a round from which receivers know the correlation; no learning."""
    columns = ((0, options.entries),)
    link = link_of(settings)
    link = replace(
        link,
        shared_groups=columns,
        personal_groups=columns,
        personal_rows=(0,),
        lengths=(options.entries,) * len(link.lengths),
    )
    updates = synthetic(link, options.entries, options.spread, options.correlation, settings.run.seed)
    exact = torch.cat([part.flatten() for part in exact_means(link, updates)])
    statistics_after = uplink(link, 1, updates, initial_statistics(link)).correlation_statistics
    received = send_times(link, times, 2, updates, statistics_after)
    sums = torch.cat([received.shared, received.personal.flatten()]).double()
    error = (sums - exact).square().sum() / exact.square().sum()
    return Trial(received.ledger.air_seconds, received.ledger.joules_max, float(error))


def send_times(link: Uplink, times: int, t: int, updates: Updates, before: torch.Tensor) -> Aggregate:
    """The mean of the sums of a round that is sent several times, each with fading and noise of its own, each charged.

    before: the correlation statistics.
    """
    received = uplink_over_seeds(link, [link.seed + APART * number for number in range(times)], t, updates, before)
    shared, personal = (
        torch.stack([getattr(got, part) for got in received]).mean(0) for part in ("shared", "personal")
    )
    return replace(received[0], shared=shared, personal=personal, ledger=sum((r.ledger for r in received), Ledger()))


def learn(settings: Settings, times: int, error_free: Sequence[float] | None) -> tuple[Trial, list[float]]:
    """Train with a candidate: the cost up to the target, and dev accuracies. error_free: those of the exact link."""
    experiment = build.build_experiment(settings, build.load_tasks(settings))
    if times > 1:
        if settings.devices.memory:
            raise SystemExit("a sum that is sent several times has no error memory: what was lost once may come next")
        link = build.client_uplink(settings, experiment.clients)
        experiment = replace(experiment, aggregate=partial(send_times, link, times))
    accuracy, ledgers = course(experiment)
    rounds = None if error_free is None else rounds_to(accuracy, statistics.mean(error_free[-3:]) - MARGIN)
    counted = ledgers[:rounds]
    joules = sum(ledger.joules_max for ledger in counted)
    return Trial(sum(ledger.air_seconds for ledger in counted), joules, rounds=rounds), accuracy


class Trials:
    """The trials of a benchmark, each run once and kept in a file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        options.out.parent.mkdir(parents=True, exist_ok=True)
        lines = options.out.read_text().splitlines() if options.out.exists() else []
        self.kept: dict[str, dict[str, Any]] = {row.pop("key"): row for row in map(json.loads, lines)}

    def run(self, candidate: str, devices: int, snr_db: float, seed: int) -> Trial:
        """A trial, from the file if it is there."""
        return Trial(**self._row(candidate, devices, snr_db, seed)["trial"])

    def _row(self, candidate: str, devices: int, snr_db: float, seed: int) -> dict[str, Any]:
        options = self.options
        what = [options.learning, str(options.file), options.set, devices, snr_db, seed, candidate]
        what += [] if options.learning else [options.entries, options.spread, options.correlation]
        key = json.dumps(what)
        if key not in self.kept:
            overrides, times = parse(candidate)
            cell = [f"tasks.*.devices={devices}", f"radio.snr_db={snr_db}", f"run.seed={seed}"]
            settings = settings_file.read_settings(options.file, [*options.set, *cell, *overrides])
            if options.learning:
                is_target = candidate == ERROR_FREE
                target = None if is_target else self._row(ERROR_FREE, devices, snr_db, seed)["accuracy"]
                trial, accuracy = learn(settings, times, target)
                row: dict[str, Any] = {"trial": vars(trial), "accuracy": accuracy}
            else:
                row = {"trial": vars(deliver(settings, times, options))}
            self.kept[key] = row
            with options.out.open("a") as file:
                file.write(json.dumps({"key": key, **row}) + "\n")
        return self.kept[key]


ERROR_FREE = "radio.scheme=error_free"
"""The link whose accuracy sets the target of learning."""


def choose(tried: dict[str, list[Trial]], target: float | None) -> str | None:
    """The candidate of the least mean seconds on the dev seeds, of those that reach the target; None if none does.

    With an NMSE the mean over dev seeds counts, with learning every dev seed.
    """

    def reaches(trials: list[Trial]) -> bool:
        if target is None:
            return all(trial.reaches(None) for trial in trials)
        return statistics.mean(trial.error for trial in trials) <= target

    seconds = {
        name: statistics.mean(trial.seconds for trial in trials) for name, trials in tried.items() if reaches(trials)
    }
    return min(seconds, key=lambda name: seconds[name], default=None)


def crossing(devices: Sequence[int], ratios: Sequence[Sequence[float]], seed: int = 0) -> tuple[str, str, str]:
    """The number of devices a task at which the rival's seconds equal the other's, and the bootstrap's 95 % interval.

    ratios: of each number of devices, one a seed, paired over seeds. The median ratio is interpolated in logarithms
    between the first neighbours on both sides of 1; a curve that never crosses lies below the first number (over the
    air always wins) or above the last (the rival always does).
    """
    table = np.log(np.asarray(ratios, dtype=float))  # devices x seeds
    chosen = np.random.default_rng(seed).integers(table.shape[1], size=(2000, table.shape[1]))
    values = [zero_of(np.log(devices), np.median(table, axis=1))]
    values += [zero_of(np.log(devices), np.median(table[:, index], axis=1)) for index in chosen]
    low, high = np.quantile(values[1:], [0.025, 0.975], method="nearest")
    names = (f"under {devices[0]}", f"over {devices[-1]}")
    texts = [names[int(v > 0)] if math.isinf(v) else f"{math.exp(v):.3g}" for v in (values[0], low, high)]
    return texts[0], texts[1], texts[2]


def zero_of(x: Sequence[float], y: Sequence[float]) -> float:
    """Where a curve first passes from y <= 0 to y > 0, between its points; -inf or inf if it never does."""
    for k in range(1, len(x)):
        if y[k - 1] <= 0 < y[k]:
            return float(x[k - 1] + (x[k] - x[k - 1]) * -y[k - 1] / (y[k] - y[k - 1]))
    return -math.inf if y[0] > 0 else math.inf


def verdict(low: float, high: float) -> str:
    """Who is faster, if the interval of the ratio says so."""
    return "over the air" if low > 1 else "the rival" if high < 1 else "open"


def benchmark(options: argparse.Namespace) -> None:
    """The search of every cell, its verdict for every target, and the crossings."""
    trials, sides = Trials(options), {"over the air": options.air, "rival": options.rival}
    targets: list[float | None] = [None] if options.learning else list(options.nmse)
    dev = range(DEV_SEED, DEV_SEED + options.dev_seeds)
    ratios: dict[tuple[float | None, float], dict[int, list[float]]] = {}
    lines: list[str] = []
    print(f"{len(options.air)} candidates a side, {len(dev)} dev seeds, {options.seeds} seeds\n")
    print(
        "| devices a task | SNR dB | side | candidate | NMSE | rounds | s | J max |\n|---|---|---|---|---|---|---|---|"
    )
    for devices in options.devices:
        for snr_db in options.snr:
            tried: dict[str, dict[str, list[Trial]]] = {}
            for side, candidates in sides.items():
                tried[side] = {name: [trials.run(name, devices, snr_db, seed) for seed in dev] for name in candidates}
                for name, found in tried[side].items():
                    print(f"| {devices} | {snr_db:g} | {side} | {name} | {' | '.join(columns_of(found))} |", flush=True)
            for target in targets:
                names = {side: choose(tried[side], target) for side in sides}
                head = f"| {devices} | {snr_db:g} | {'dev accuracy' if target is None else f'{target:g}'} |"
                air, rival = names["over the air"], names["rival"]
                if air is None or rival is None:
                    missing = " and ".join(side for side, name in names.items() if name is None)
                    lines.append(f"{head} {air or '-'} | {rival or '-'} | | | | not reached by {missing} |")
                    continue
                pairs = [[trials.run(n, devices, snr_db, seed) for n in (air, rival)] for seed in range(options.seeds)]
                both = [pair for pair in pairs if target is not None or all(one.reaches(None) for one in pair)]
                reached = "/".join(str(sum(pair[side].reaches(target) for pair in pairs)) for side in (0, 1))
                if not both:
                    lines.append(f"{head} {air} | {rival} | {reached} | | | not reached |")
                    continue
                seconds, joules = (
                    ratio([getattr(b, key) for _, b in both], [getattr(a, key) for a, _ in both])
                    for key in ("seconds", "joules")
                )
                if len(both) == options.seeds:
                    ratios.setdefault((target, snr_db), {})[devices] = [b.seconds / a.seconds for a, b in both]
                text = [f"{r.median:.2f} ({r.low:.2f} to {r.high:.2f})" for r in (seconds, joules)]
                who = verdict(seconds.low, seconds.high)
                lines.append(f"{head} {air} | {rival} | {reached} | {text[0]} | {text[1]} | {who} |")
    print(
        "\n| devices a task | SNR dB | target | over the air | rival | seeds reached | s, ratio | J, ratio | faster |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    for (target, snr_db), by_devices in ratios.items():
        if len(by_devices) > 1:
            middle, low, high = crossing(list(by_devices), list(by_devices.values()))
            name = "dev accuracy" if target is None else f"NMSE {target:g}"
            print(f"\nCrossing at {snr_db:g} dB, {name}: {middle} devices a task ({low} to {high})", flush=True)


def columns_of(trials: Iterable[Trial]) -> list[str]:
    """Means over dev seeds: NMSE or rounds, seconds, joules."""
    found = list(trials)
    rounds = "/".join("never" if trial.rounds is None else str(trial.rounds) for trial in found)
    error, seconds, joules = (statistics.mean(getattr(t, key) for t in found) for key in ("error", "seconds", "joules"))
    return ["" if math.isnan(error) else f"{error:.3g}", rounds if math.isnan(error) else "", f"{seconds:.4g}",
            f"{joules:.3g}"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=settings_path)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 4, 16, 64], help="devices a task")
    parser.add_argument("--snr", type=float, nargs="+", default=[-10.0, 0.0, 10.0])
    parser.add_argument("--air", nargs="+", default=list(AIR), help="candidates over the air")
    parser.add_argument("--rival", nargs="+", default=list(RIVAL), help="candidates of the rival")
    parser.add_argument("--nmse", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dev-seeds", type=int, default=2)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument("--spread", type=float, default=1.0)
    parser.add_argument("--correlation", type=float, default=0.5)
    parser.add_argument("--learning", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/rival.jsonl"))
    options = parser.parse_args()
    if len(options.air) != len(options.rival):
        parser.error(f"--air has {len(options.air)} candidates and --rival {len(options.rival)}; should be as many")
    benchmark(options)


if __name__ == "__main__":
    main()
