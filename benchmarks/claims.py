"""Claimed over measured error with real gradients: `python benchmarks/claims.py quickstart`.

Runs the file's experiment over the error-free link and sends every round's gradients over each design's uplink too:
all designs have the same gradients, fading and noise. Prints for each design and each assumption on the symbols'
correlation the mean over rounds of claimed over measured Pi, its range over rounds, and the measured Pi. The claim is
the receiver's, or the genie's, which knows the symbols' Gram matrix.
"""

import argparse
import statistics

import torch
from links import gradients_of_rounds, link_of

from airpfed.air.schedule import Uplink
from airpfed.air.uplink import Aggregate, initial_statistics, pi_of, uplink
from airpfed.config import settings_file
from airpfed.config.experiment_files import settings_path
from airpfed.config.schema import Settings
from airpfed.experiment import build
from airpfed.training.setup import TrainingSetup

CASES = [(design, belief) for design in ("uniform_forcing", "mmse", "channel_inversion", "naive_ao")
        for belief in ("none", "estimated")]  # fmt: skip


def uplinks(settings: Settings, experiment: TrainingSetup, snr_db: float | None) -> dict[tuple[str, str], Uplink]:
    """The radio side of every case."""
    result = {}
    for case in CASES:
        changes = {"correlation": case[1]} | ({} if snr_db is None else {"snr_db": snr_db})
        result[case] = link_of(settings, experiment.clients, case[0], **changes)
    return result


def ratios(link: Uplink, received: Aggregate, d_s: int) -> tuple[float, float, float]:
    """Claimed and genie's Pi over the measured one, and the measured one."""
    present = torch.ones(len(link.samples), dtype=torch.bool)
    pi = [pi_of(link, received.mse, d_s, present, key) or 0.0 for key in ("claimed", "claimed_genie", "measured")]
    return pi[0] / pi[2], pi[1] / pi[2], pi[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=settings_path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--snr", type=float, nargs="+", default=[-10.0, 10.0], help="median SNR, dB")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    settings = settings_file.read_settings(options.file, options.set)
    experiment = build.build_experiment(settings, build.load_tasks(settings))
    links = {snr: uplinks(settings, experiment, snr) for snr in options.snr}
    estimates = {
        (snr, case): initial_statistics(link) for snr, by_case in links.items() for case, link in by_case.items()
    }
    rows: dict[tuple[float, tuple[str, str]], list[tuple[float, float, float]]] = {key: [] for key in estimates}
    for t, updates in gradients_of_rounds(settings, experiment, options.rounds):
        for snr, by_case in links.items():
            for case in CASES:
                received = uplink(by_case[case], t, updates, estimates[snr, case])
                estimates[snr, case] = received.correlation_statistics
                rows[snr, case].append(ratios(by_case[case], received, updates.shared.shape[1]))
        print(f"round {t} of {options.rounds}", flush=True)
    print("\n| SNR dB | design | correlation | claimed / measured | min to max | genie / measured | measured Pi |")
    print("|---|---|---|---|---|---|---|")
    for (snr, case), values in rows.items():
        if values:
            claimed, genie, pi = zip(*values, strict=True)
            print(
                f"| {snr:g} | {case[0]} | {case[1]} | {statistics.mean(claimed):.3f} | {min(claimed):.3f} to "
                f"{max(claimed):.3f} | {statistics.mean(genie):.4f} | {statistics.mean(pi):.2e} |"
            )


if __name__ == "__main__":
    main()
