"""Experiments beside which the theory runs: plain descent of adapters near the output."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from airpfed.air.uplink import uplink_over_seeds
from airpfed.analysis.probe import load_or_probe
from airpfed.training.setup import TrainingSetup
from support import experiments

PLAIN = (
    "server.optimizer=sgd", "server.rounds=2", "radio.coherence_symbols=5000", "run.eval_every=0",
    "adapters.layers=last-2", "tasks.*.samples_per_device=4", "devices.batch_size=2", "theory.pilot_rounds=2",
    "theory.lanczos_steps=3", "theory.hessian_samples=2",
)  # fmt: skip
METERED = ("server.lr=theory", "theory.meter_every=1")
DRAWS = 6
"""Settings ask for 20 at least; here fewer do."""


def experiment(file: Path, *overrides: str) -> TrainingSetup:
    """An experiment whose theory draws the channel a few times."""
    made = experiments.experiment(file, *PLAIN, *overrides)
    if made.monitor is None:
        return made
    radio, seeds = made.monitor.draws.args  # type: ignore[attr-defined]
    assert len(seeds) == 20
    monitor = replace(made.monitor, draws=partial(uplink_over_seeds, radio, seeds[:DRAWS]))
    return replace(made, monitor=monitor, probe=partial(load_or_probe, monitor))
