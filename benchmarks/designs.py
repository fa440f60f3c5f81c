"""Accuracy by transceiver design and SNR, paired over seeds: `python benchmarks/designs.py FILE.toml --seeds 3`.

The cells of a seed have the same data, start, fading and noise streams; only design and SNR differ. The cell `base` is
the untouched model. Cells in the output file are not run again. Prints two tables: the mean accuracy on the test
splits, its spread over seeds and its paired difference from `error_free`; and the score of each task by seed.
"""

import argparse
import json
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from links import link_of

from airpfed.air.uplink import uplink
from airpfed.config import settings_file
from airpfed.config.experiment_files import settings_path
from airpfed.config.schema import Settings
from airpfed.experiment import build
from airpfed.training.evaluate import score_task
from airpfed.training.loop import play_round
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import vectors


def final_accuracy(experiment: TrainingSetup, rounds: int) -> tuple[dict[str, float], float]:
    """Accuracy of each task's model on its test split after `rounds` rounds, and the mean Pi."""
    state, pis = experiment.initial, [0.0]
    while state.round < rounds:
        state, row = play_round(experiment, state)
        pis.append(row.pi or 0.0)
    clients, factors = experiment.clients, vectors(state)
    scores = {task.name: score_task(clients, factors, n, task, "test").value for n, task in enumerate(experiment.tasks)}
    return scores, sum(pis) / max(rounds, 1)


def with_link(experiment: TrainingSetup, settings: Settings, design: str, snr_db: float) -> TrainingSetup:
    """The same experiment over another link."""
    link = link_of(settings, experiment.clients, design, snr_db=snr_db)
    return replace(experiment, aggregate=partial(uplink, link), eval_every=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=settings_path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", nargs="+", default=["base", "error_free:10", "uniform_forcing:10", "mmse:10"])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/designs.jsonl"))
    options = parser.parse_args()
    if not any(cell.startswith("error_free:") for cell in options.cells):
        parser.error("--cells: should hold error_free:SNR, which the others are compared with")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for seed in range(options.seeds):
        missing = [c for c in options.cells if not any(r["seed"] == seed and r["cell"] == c for r in rows)]
        settings = settings_file.read_settings(options.file, [*options.set, f"run.seed={seed}"])
        experiment = build.build_experiment(settings, build.load_tasks(settings)) if missing else None
        for cell in missing:
            assert experiment is not None
            design, _, snr = cell.partition(":")
            if cell == "base":
                scores, pi = final_accuracy(experiment, 0)
            else:
                scores, pi = final_accuracy(with_link(experiment, settings, design, float(snr)), experiment.rounds)
            accuracy = statistics.mean(scores.values())
            rows.append({"seed": seed, "cell": cell, "accuracy": accuracy, "pi": pi, "tasks": scores})
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    print_table(rows, options.cells, options.seeds)


def print_table(rows: list[dict[str, Any]], cells: list[str], seeds: int) -> None:
    by_cell = {(row["seed"], row["cell"]): row for row in rows}
    reference = next(cell for cell in cells if cell.startswith("error_free"))
    print(f"\n| design:SNR dB | accuracy, mean of {seeds} seeds | min to max | minus error_free, paired | mean Pi |")
    print("|---|---|---|---|---|")
    for cell in cells:
        values = [float(by_cell[seed, cell]["accuracy"]) for seed in range(seeds)]
        gaps = [v - float(by_cell[seed, reference]["accuracy"]) for seed, v in enumerate(values)]
        spread = f" +- {statistics.stdev(gaps) / seeds**0.5:.3f} (se)" if seeds > 1 else ""
        pi = statistics.mean(float(by_cell[seed, cell]["pi"]) for seed in range(seeds))
        print(
            f"| {cell} | {statistics.mean(values):.3f} | {min(values):.3f} to {max(values):.3f} "
            f"| {statistics.mean(gaps):+.3f}{spread} | {pi:.2e} |"
        )
    tasks = list(rows[-1]["tasks"])
    print(f"\n| design:SNR dB | {' | '.join(tasks)} |\n|---|{'---|' * len(tasks)}")
    for cell in cells:
        columns = [", ".join(f"{by_cell[seed, cell]['tasks'][name]:.3f}" for seed in range(seeds)) for name in tasks]
        print(f"| {cell}, by seed | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
