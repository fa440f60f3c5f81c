"""Over the air against the digital rival: seconds on air to equal accuracy, as markdown.

`python benchmarks/digital.py minilm --devices 1 4 16 --snr 10 --seeds 2`. Band, power limit,
data, start and channels are the same; only the link differs. A link reaches the target when the mean of its last three
dev accuracies is within 0.02 of the final accuracy of the error-free link. The rival sends each device's gradients in
1, 2, 4 or 8 bits an entry, devices one after another or in groups that the antennas separate (of the best size): both
learn the same and take different times. Pilots, side information and feedback count on both sides. Runs in the output
file are not run again. `--air-only`: no learning, only the seconds of one round.
"""

import argparse
import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from links import link_of

from airpfed.air.schedule import Updates, Uplink
from airpfed.air.uplink import initial_statistics, uplink
from airpfed.config import settings_file
from airpfed.config.experiment_files import settings_path
from airpfed.config.schema import Settings
from airpfed.core.run_files import Ledger
from airpfed.experiment import build
from airpfed.training.loop import play_round
from airpfed.training.setup import TrainingSetup

EVAL_EVERY = 3
"""Rounds between evaluations."""
MARGIN = 0.02
"""Loss of accuracy against the error-free link at which a link has reached the target."""


def round_seconds(link: Uplink, experiment: TrainingSetup) -> float:
    """Mean seconds on air of a round; they do not depend on what is sent."""
    order = experiment.clients.layout
    empty = [torch.zeros(len(link.samples), order.size(scope)) for scope in ("global", "task")]
    updates = Updates(*empty, torch.ones(len(link.samples), dtype=torch.bool))
    rounds = [uplink(link, t, updates, initial_statistics(link)).ledger.air_seconds for t in (1, 2, 3)]
    return statistics.mean(rounds)


def grouped_seconds(settings: Settings, experiment: TrainingSetup, name: str, snr_db: float) -> float:
    """`round_seconds` of a digital link with groups separated by the antennas; nan for another link."""
    if not name.startswith("digital"):
        return float("nan")
    return round_seconds(link_of(settings, experiment.clients, name, "spatial", snr_db=snr_db), experiment)


def air_only(options: argparse.Namespace) -> None:
    """Seconds on air of one round over K and bits, and their ratio to the first link's; mean over seeds."""
    print("| devices a task | SNR dB | link | s a round | ratio | s a round, grouped | ratio |")
    print("|---|---|---|---|---|---|---|")
    cells = [(d, snr) for d in options.devices for snr in options.snr]
    for devices, snr in cells:
        seconds: dict[str, list[tuple[float, float]]] = {}
        for seed in range(options.seeds):
            few_samples = ["tasks.*.samples_per_device=1", "tasks.*.dev_samples=0", "tasks.*.test_samples=1"]
            varied = [f"tasks.*.devices={devices}", f"run.seed={seed}"]
            settings = settings_file.read_settings(options.file, [*options.set, *few_samples, *varied])
            experiment = build.build_experiment(settings, build.load_tasks(settings))
            for name in options.links:
                link = link_of(settings, experiment.clients, name, snr_db=snr)
                grouped = grouped_seconds(settings, experiment, name, snr)
                seconds.setdefault(name, []).append((round_seconds(link, experiment), grouped))
        base = statistics.mean(plain for plain, _ in seconds[options.links[0]])
        for name, pairs in seconds.items():
            plain, grouped = (statistics.mean(values) for values in zip(*pairs, strict=True))
            columns = f"{plain:.4f} | {plain / base:.2f} | {grouped:.4f} | {grouped / base:.2f}".replace("nan", "")
            print(f"| {devices} | {snr:g} | {name} | {columns} |", flush=True)


def curve(experiment: TrainingSetup, settings: Settings, name: str, snr_db: float) -> dict[str, Any]:
    """Dev accuracy every EVAL_EVERY rounds, and seconds on air a round."""
    link = link_of(settings, experiment.clients, name, snr_db=snr_db)
    accuracy, ledgers = course(replace(experiment, aggregate=partial(uplink, link)))
    seconds = statistics.mean(ledger.air_seconds for ledger in ledgers)
    grouped = grouped_seconds(settings, experiment, name, snr_db) if name.startswith("digital") else None
    return {"accuracy": accuracy, "seconds": seconds, "grouped": grouped}


def course(experiment: TrainingSetup) -> tuple[list[float], list[Ledger]]:
    """Dev accuracy every EVAL_EVERY rounds, the mean over tasks, and the ledger of every round."""
    experiment = replace(experiment, eval_every=EVAL_EVERY)
    state, accuracy, ledgers = experiment.initial, [], []
    while state.round < experiment.rounds:
        state, row = play_round(experiment, state)
        ledgers.append(row.ledger)
        if row.accuracy:
            accuracy.append(statistics.mean(row.accuracy.values()))
    return accuracy, ledgers


def rounds_to(accuracy: list[float], target: float) -> int | None:
    """Rounds until the mean of three evaluations in a row reaches the target; None: never."""
    for last in range(3, len(accuracy) + 1):
        if statistics.mean(accuracy[last - 3 : last]) >= target:
            return EVAL_EVERY * last
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=settings_path)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 4, 16], help="devices a task")
    parser.add_argument("--snr", type=float, nargs="+", default=[10.0])
    parser.add_argument(
        "--links", nargs="+", default=["uniform_forcing", *(f"digital:{bits}" for bits in (1, 2, 4, 8))]
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/digital.jsonl"))
    parser.add_argument("--air-only", action="store_true")
    options = parser.parse_args()
    if options.air_only:
        air_only(options)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    cells = [(d, snr, seed) for d in options.devices for snr in options.snr for seed in range(options.seeds)]
    for devices, snr, seed in cells:
        done = [r["link"] for r in rows if (r["devices"], r["snr"], r["seed"]) == (devices, snr, seed)]
        missing = [link for link in ["error_free", *options.links] if link not in done]
        if not missing:
            continue
        settings = settings_file.read_settings(
            options.file, [*options.set, f"tasks.*.devices={devices}", f"run.seed={seed}"]
        )
        experiment = build.build_experiment(settings, build.load_tasks(settings))
        for link in missing:
            result = curve(experiment, settings, link, snr)
            rows.append({"devices": devices, "snr": snr, "seed": seed, "link": link, **result})
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(
                f"{devices} devices a task, {snr:g} dB, seed {seed}, {link}: {result['accuracy'][-1]:.3f}", flush=True
            )
    print_table(rows, options)


def print_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """One line a link: rounds and seconds to the target by way of sending, and their ratio to the link over the air."""
    print("\n| devices a task, SNR | link | rounds | s a round | s to target | ratio | s to target, grouped | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for devices in options.devices:
        for snr in options.snr:
            selected = [r for r in rows if (r["devices"], r["snr"]) == (devices, snr) and r["seed"] < options.seeds]
            target = {
                r["seed"]: statistics.mean(r["accuracy"][-3:]) - MARGIN for r in selected if r["link"] == "error_free"
            }
            times: dict[str, dict[str, list[float]]] = {}
            for r in (r for r in selected if r["link"] in options.links):
                rounds = rounds_to(r["accuracy"], target[r["seed"]])
                lists = times.setdefault(r["link"], {"rounds": [], "seconds": [], "grouped": [], "a round": []})
                lists["rounds"].append(float("inf") if rounds is None else rounds)
                lists["a round"].append(r["seconds"])
                lists["seconds"].append(lists["rounds"][-1] * r["seconds"])
                lists["grouped"].append(lists["rounds"][-1] * r["grouped"] if r["grouped"] else float("nan"))
            base = times[options.links[0]]["seconds"]
            for link, lists in times.items():
                print(table_line(f"{devices}, {snr:g} dB", link, lists, base))


def table_line(setting: str, link: str, lists: dict[str, list[float]], base: list[float]) -> str:
    columns = [setting, link, "/".join(f"{r:g}" for r in lists["rounds"]), f"{statistics.mean(lists['a round']):.4f}"]
    for key in ("seconds", "grouped"):
        ratios = [a / b for a, b in zip(lists[key], base, strict=True)]
        columns += ["/".join(f"{s:.3f}" for s in lists[key]), "/".join(f"{ratio:.2f}" for ratio in ratios)]
    return "| " + " | ".join(columns).replace("nan/nan", "").replace("nan", "").replace("inf", "never") + " |"


if __name__ == "__main__":
    main()
