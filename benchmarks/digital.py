"""Over the air against the digital rival: seconds on air to equal accuracy, as markdown.

`python benchmarks/digital.py experiments/minilm.toml --devices 1 4 16 --snr 10 --seeds 2`. Same band, power limit,
data, start and channels; only the link differs. A link has arrived when the mean of its last three dev accuracies is
within 0.02 of what the error-free link ends with. The rival sends each device's gradients in 1, 2, 4 or 8 bits an
entry, devices one after another or in groups that the antennas tell apart (the best group size): its learning is the
same, its time is not. Pilots, side information and feedback count on both sides. Runs that stand in the output file
already are not run again. `--air-only`: no learning, the seconds of one round only.
"""

import argparse
import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from airpfed.air.schedule import Digital, Updates, Uplink
from airpfed.air.uplink import initial_statistics, uplink
from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.experiment import build
from airpfed.training.experiment import Experiment
from airpfed.training.loop import play_round

EVERY = 3
MARGIN = 0.02


def link_of(experiment: Experiment, settings: Settings, link: str, snr_db: float) -> Uplink:
    design, _, bits = link.partition(":")
    changes: dict[str, Any] = {"design": design, "snr_db": snr_db}
    if bits:
        changes["digital_bits"] = int(bits)
    radio = settings.radio.model_copy(update=changes)
    return build.client_uplink(settings.model_copy(update={"radio": radio}), experiment.clients)


def round_seconds(link: Uplink, experiment: Experiment) -> float:
    """Mean seconds on air of a round; they do not depend on what is sent."""
    order = experiment.clients.layout
    empty = [torch.zeros(len(link.samples), order.size(scope)) for scope in ("global", "task")]
    updates = Updates(*empty, torch.ones(len(link.samples), dtype=torch.bool))
    rounds = [uplink(link, t, updates, initial_statistics(link)).ledger.air_seconds for t in (1, 2, 3)]
    return statistics.mean(rounds)


def grouped_seconds(link: Uplink, experiment: Experiment) -> float:
    """`round_seconds` of the digital link with groups told apart by the antennas."""
    assert link.digital is not None
    return round_seconds(replace(link, digital=Digital(link.digital.bits, True)), experiment)


def air_only(chosen: argparse.Namespace) -> None:
    """Seconds on air of one round over K and bits, and their ratio to the first link's; mean over seeds."""
    print("| devices a task | SNR dB | link | s a round | ratio | s a round, grouped | ratio |")
    print("|---|---|---|---|---|---|---|")
    cells = [(d, snr) for d in chosen.devices for snr in chosen.snr]
    for devices, snr in cells:
        found: dict[str, list[tuple[float, float]]] = {}
        for seed in range(chosen.seeds):
            small = ["tasks.*.samples_per_device=1", "tasks.*.dev_samples=0", "tasks.*.test_samples=1"]
            here = [f"tasks.*.devices={devices}", f"run.seed={seed}"]
            settings = settings_file.read_settings(chosen.file, [*chosen.set, *small, *here])
            experiment = build.build_experiment(settings, build.load_tasks(settings))
            for link in chosen.links:
                link = link_of(experiment, settings, link, snr)
                grouped = grouped_seconds(link, experiment) if link.digital else float("nan")
                found.setdefault(link, []).append((round_seconds(link, experiment), grouped))
        base = statistics.mean(plain for plain, _ in found[chosen.links[0]])
        for link, pairs in found.items():
            plain, grouped = (statistics.mean(values) for values in zip(*pairs, strict=True))
            cells_ = f"{plain:.4f} | {plain / base:.2f} | {grouped:.4f} | {grouped / base:.2f}".replace("nan", "")
            print(f"| {devices} | {snr:g} | {link} | {cells_} |", flush=True)


def curve(experiment: Experiment, settings: Settings, link: str, snr_db: float) -> dict[str, Any]:
    """Dev accuracy every EVERY rounds, and seconds on air a round."""
    link = link_of(experiment, settings, link, snr_db)
    played = replace(experiment, link=partial(uplink, link), eval_every=EVERY)
    state, reached, seconds = experiment.initial, [], []
    while state.round < experiment.rounds:
        state, row = play_round(played, state)
        seconds.append(row.ledger.air_seconds)
        if row.accuracy:
            reached.append(statistics.mean(row.accuracy.values()))
    grouped = grouped_seconds(link, experiment) if link.digital else None
    return {"accuracy": reached, "seconds": statistics.mean(seconds), "grouped": grouped}


def rounds_to(accuracy: list[float], target: float) -> int | None:
    """Rounds until the mean of three evaluations in a row reaches the target; None: never."""
    for last in range(3, len(accuracy) + 1):
        if statistics.mean(accuracy[last - 3 : last]) >= target:
            return EVERY * last
    return None


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--devices", type=int, nargs="+", default=[1, 4, 16], help="devices a task")
    arguments.add_argument("--snr", type=float, nargs="+", default=[10.0])
    arguments.add_argument(
        "--links", nargs="+", default=["uniform_forcing", *(f"digital:{bits}" for bits in (1, 2, 4, 8))]
    )
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--set", action="append", default=[])
    arguments.add_argument("--out", type=Path, default=Path("runs/digital.jsonl"))
    arguments.add_argument("--air-only", action="store_true")
    chosen = arguments.parse_args()
    if chosen.air_only:
        air_only(chosen)
        return
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    cells = [(d, snr, seed) for d in chosen.devices for snr in chosen.snr for seed in range(chosen.seeds)]
    for devices, snr, seed in cells:
        done = [r["link"] for r in rows if (r["devices"], r["snr"], r["seed"]) == (devices, snr, seed)]
        missing = [link for link in ["error_free", *chosen.links] if link not in done]
        if not missing:
            continue
        settings = settings_file.read_settings(
            chosen.file, [*chosen.set, f"tasks.*.devices={devices}", f"run.seed={seed}"]
        )
        experiment = build.build_experiment(settings, build.load_tasks(settings))
        for link in missing:
            found = curve(experiment, settings, link, snr)
            rows.append({"devices": devices, "snr": snr, "seed": seed, "link": link, **found})
            with chosen.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{devices} devices a task, {snr:g} dB, seed {seed}, {link}: {found['accuracy'][-1]:.3f}", flush=True)
    print_table(rows, chosen)


def print_table(rows: list[dict[str, Any]], chosen: argparse.Namespace) -> None:
    """One line a link: rounds and seconds to the target by way of sending, and their ratio to the link over the air."""
    print("\n| devices a task, SNR | link | rounds | s a round | s to target | ratio | s to target, grouped | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for devices in chosen.devices:
        for snr in chosen.snr:
            mine = [r for r in rows if (r["devices"], r["snr"]) == (devices, snr) and r["seed"] < chosen.seeds]
            target = {
                r["seed"]: statistics.mean(r["accuracy"][-3:]) - MARGIN for r in mine if r["link"] == "error_free"
            }
            times: dict[str, dict[str, list[float]]] = {}
            for r in (r for r in mine if r["link"] in chosen.links):
                rounds = rounds_to(r["accuracy"], target[r["seed"]])
                each = times.setdefault(r["link"], {"rounds": [], "seconds": [], "grouped": [], "a round": []})
                each["rounds"].append(float("inf") if rounds is None else rounds)
                each["a round"].append(r["seconds"])
                each["seconds"].append(each["rounds"][-1] * r["seconds"])
                each["grouped"].append(each["rounds"][-1] * r["grouped"] if r["grouped"] else float("nan"))
            base = times[chosen.links[0]]["seconds"]
            for link, each in times.items():
                print(line(f"{devices}, {snr:g} dB", link, each, base))


def line(where: str, link: str, each: dict[str, list[float]], base: list[float]) -> str:
    cells = [where, link, "/".join(f"{r:g}" for r in each["rounds"]), f"{statistics.mean(each['a round']):.4f}"]
    for key in ("seconds", "grouped"):
        ratios = [a / b for a, b in zip(each[key], base, strict=True)]
        cells += ["/".join(f"{s:.3f}" for s in each[key]), "/".join(f"{ratio:.2f}" for ratio in ratios)]
    return "| " + " | ".join(cells).replace("nan/nan", "").replace("nan", "").replace("inf", "never") + " |"


if __name__ == "__main__":
    main()
