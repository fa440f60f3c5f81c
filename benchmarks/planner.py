"""Plan and outcome at several powers: the channel's share of Psi_T as predicted and as a run measures it.

python benchmarks/planner.py theory --powers 10 0 -10
"""

import argparse
from dataclasses import replace
from functools import partial

from airpfed.air.uplink import initial_statistics, uplink
from airpfed.analysis.probe import probe
from airpfed.config import settings_file
from airpfed.config.experiment_files import settings_path
from airpfed.config.schema import Settings
from airpfed.core.run_files import Probe, RoundRecord
from airpfed.experiment import build
from airpfed.planning.predict import predict_candidate
from airpfed.theory.verification import average_bounds
from airpfed.training.loop import play_round
from airpfed.training.setup import TrainingSetup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=settings_path)
    parser.add_argument("--powers", type=float, nargs="+", default=[10.0, 0.0, -10.0], help="dBm")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    base = settings_file.read_settings(options.file, options.set)
    experiment = build.build_experiment(base, build.load_tasks(base), probing=True)
    assert experiment.monitor is not None
    probed = probe(experiment.monitor, experiment.initial)
    print(f"eta {probed.eta:.4g}, {probed.constants}", flush=True)
    for power in options.powers:
        settings = settings_file.read_settings(options.file, [*options.set, f"radio.power_dbm={power}"])
        candidate = predict_candidate(settings, {}, experiment.clients, probed, options.draws, base)
        records = run(with_radio(experiment, settings), probed)
        psi = average_bounds(records, probed, "measured")[-1]
        assert psi is not None
        share, joules = psi.shares["channel"], sum(row.ledger.joules_mean for row in records)
        print(
            f"{power:g} dBm: channel share {100 * candidate.shares['channel']:.3g} % predicted, "
            f"{100 * share:.3g} % measured, ratio {candidate.shares['channel'] / share:.3f}; "
            f"Psi_T {candidate.psi:.4g}, {psi.total:.4g}; "
            f"joules a device {candidate.joules:.3g}, {joules:.3g}; air seconds {candidate.air_seconds:.4g}, "
            f"{sum(row.ledger.air_seconds for row in records):.4g}",
            flush=True,
        )


def with_radio(experiment: TrainingSetup, settings: Settings) -> TrainingSetup:
    """The experiment over another radio, without a monitor."""
    radio = build.client_uplink(settings, experiment.clients)
    server = replace(experiment.initial.server, correlation_statistics=initial_statistics(radio))
    initial = replace(experiment.initial, server=server)
    return replace(experiment, aggregate=partial(uplink, radio), initial=initial, monitor=None)


def run(experiment: TrainingSetup, probed: Probe) -> list[RoundRecord]:
    """The records of all rounds."""
    state, records = experiment.initial, []
    for _ in range(experiment.rounds):
        state, row = play_round(experiment, state, probed)
        records.append(row)
    return records


if __name__ == "__main__":
    main()
