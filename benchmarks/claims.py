"""Claimed over measured error with real gradients: `python benchmarks/claims.py experiments/quickstart.toml`.

Plays the file's experiment over the error-free link and sends every round's gradients over each design's uplink too, so
that all designs see the same gradients, fading and noise. Prints, per design and per belief about the symbols'
correlation, the mean over rounds of claimed Pi over measured Pi (receiver's claim, and the genie's, who knows the
symbols' true Gram matrix), its spread over rounds, and the measured Pi.
"""

import argparse
import statistics
from pathlib import Path

import torch

from airpfed.air.schedule import Updates, Uplink
from airpfed.air.uplink import Aggregate, initial_statistics, pi_of, uplink
from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.experiment import build
from airpfed.training.experiment import Experiment
from airpfed.training.round import local_gradients, round_step

WAYS = [(design, belief) for design in ("uniform_forcing", "mmse", "channel_inversion", "naive_ao")
        for belief in ("none", "estimated")]  # fmt: skip


def links(settings: Settings, experiment: Experiment, snr_db: float | None) -> dict[tuple[str, str], Uplink]:
    """The radio side of every way, and of the error-free link."""
    found = {}
    for way in [("error_free", "none"), *WAYS]:
        changes = {"design": way[0], "correlation": way[1]} | ({} if snr_db is None else {"snr_db": snr_db})
        radio = settings.radio.model_copy(update=changes)
        found[way] = build.client_uplink(settings.model_copy(update={"radio": radio}), experiment.clients)
    return found


def ratios(link: Uplink, received: Aggregate, d_s: int) -> tuple[float, float, float]:
    """Claimed and genie's Pi over the measured one, and the measured one."""
    every = torch.ones(len(link.samples), dtype=torch.bool)
    pi = [pi_of(link, received.mse, d_s, every, key) or 0.0 for key in ("claimed", "claimed_genie", "measured")]
    return pi[0] / pi[2], pi[1] / pi[2], pi[2]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--snr", type=float, nargs="+", default=[-10.0, 10.0], help="median SNR, dB")
    arguments.add_argument("--set", action="append", default=[])
    chosen = arguments.parse_args()
    settings = settings_file.read_settings(chosen.file, chosen.set)
    experiment = build.build_experiment(settings, build.load_tasks(settings))
    ways = {snr: links(settings, experiment, snr) for snr in chosen.snr}
    correlation_statistics = {
        (snr, way): initial_statistics(link) for snr, each in ways.items() for way, link in each.items()
    }
    rows: dict[tuple[float, tuple[str, str]], list[tuple[float, float, float]]] = {
        key: [] for key in correlation_statistics
    }
    state = experiment.initial
    exact = next(iter(ways.values()))["error_free", "none"]
    for t in range(1, chosen.rounds + 1):
        found, _, cursors = local_gradients(
            experiment.clients, state, experiment.local_training, experiment.devices_per_pass
        )
        state, _, present = round_step(
            state, found, cursors, lambda *given: uplink(exact, *given), experiment.server_step
        )
        for snr, each in ways.items():
            for way in WAYS:
                updates = Updates(found["global"], found["task"], present)
                received = uplink(each[way], t, updates, correlation_statistics[snr, way])
                correlation_statistics[snr, way] = received.correlation_statistics
                rows[snr, way].append(ratios(each[way], received, found["global"].shape[1]))
        print(f"round {t} of {chosen.rounds}", flush=True)
    print("\n| SNR dB | design | correlation | claimed / measured | min to max | genie / measured | measured Pi |")
    print("|---|---|---|---|---|---|---|")
    for (snr, way), values in rows.items():
        if values:
            claimed, genie, pi = zip(*values, strict=True)
            print(
                f"| {snr:g} | {way[0]} | {way[1]} | {statistics.mean(claimed):.3f} | {min(claimed):.3f} to "
                f"{max(claimed):.3f} | {statistics.mean(genie):.4f} | {statistics.mean(pi):.2e} |"
            )


if __name__ == "__main__":
    main()
