"""Plan against outcome: the channel's share of Psi_T that a plan predicts, and what the run then has, power by power.

python benchmarks/planner.py experiments/theory.toml --powers 10 0 -10
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from airpfed.air.uplink import initial_statistics, uplink
from airpfed.analysis.probe import probe
from airpfed.config import settings_file
from airpfed.core.run_files import RoundRecord
from airpfed.experiment import build
from airpfed.planning.predict import predicted
from airpfed.theory.verification import average_bounds
from airpfed.training.experiment import Experiment
from airpfed.training.loop import play_round


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("file", type=Path)
    options.add_argument("--powers", type=float, nargs="+", default=[10.0, 0.0, -10.0], help="dBm")
    options.add_argument("--set", action="append", default=[])
    options.add_argument("--draws", type=int, default=20)
    given = options.parse_args()
    base = settings_file.read_settings(given.file, given.set)
    experiment = build.build_experiment(base, build.load_tasks(base), probing=True)
    assert experiment.monitor is not None
    seen = probe(experiment.monitor, experiment.initial)
    print(f"eta {seen.eta:.4g}, {seen.constants}", flush=True)
    for power in given.powers:
        settings = settings_file.read_settings(given.file, [*given.set, f"radio.power_dbm={power}"])
        said = predicted(settings, {}, experiment.clients, seen, given.draws, base)
        records = run(with_radio(experiment, settings), seen)
        found = average_bounds(records, seen, "measured")[-1]
        assert found is not None
        share, joules = found.shares["channel"], sum(row.ledger.joules_mean for row in records)
        print(
            f"{power:g} dBm: channel share {100 * said.shares['channel']:.3g} % predicted, "
            f"{100 * share:.3g} % measured, ratio {said.shares['channel'] / share:.3f}; "
            f"Psi_T {said.psi:.4g}, {found.total:.4g}; "
            f"joules a device {said.joules:.3g}, {joules:.3g}; air seconds {said.air_seconds:.4g}, "
            f"{sum(row.ledger.air_seconds for row in records):.4g}",
            flush=True,
        )


def with_radio(experiment: Experiment, settings) -> Experiment:
    """The experiment over another radio, unmetered."""
    radio = build.client_uplink(settings, experiment.clients)
    server = replace(experiment.initial.server, correlation_statistics=initial_statistics(radio))
    initial = replace(experiment.initial, server=server)
    return replace(experiment, aggregate=partial(uplink, radio), initial=initial, monitor=None)


def run(experiment: Experiment, seen) -> list[RoundRecord]:
    """All rounds."""
    state, records = experiment.initial, []
    for _ in range(experiment.rounds):
        state, row = play_round(experiment, state, seen)
        records.append(row)
    return records


if __name__ == "__main__":
    main()
