"""Claimed over measured error of real gradients under each impairment: `python benchmarks/honest.py minilm`.

Runs the file's experiment over the error-free link with adapters on the last layer, and sends the gradients of some of
its rounds over the air `--draws` times, each time with new channels, mixing, noise and impairments. Prints the ratio of
the means of claimed and measured Pi with its standard error: of the receivers' claim, and of the claim that knows the
symbols' correlation. A ratio is marked where it is off by more than 3 % plus 3 standard errors. `--out FILE` keeps the
rows as CSV.

    python benchmarks/honest.py minilm --summary FILE    # a file of --out as tables: ranges over rounds, each round
    python benchmarks/honest.py minilm --peaks      # the largest OFDM symbols, before and after mixing
    python benchmarks/honest.py minilm --price      # what each assumption hides: decibels, and seconds of a round
    python benchmarks/honest.py minilm --cost       # CPU time of a round with blocks as set, and derived
"""

import argparse
import csv
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from links import gradients_of_rounds, link_of

from airpfed.air.correlation import INDEPENDENT
from airpfed.air.grouping import round_grouping
from airpfed.air.schedule import Updates, Uplink, schedule
from airpfed.air.segments import split_slots
from airpfed.air.symbols import pack_symbols
from airpfed.air.uplink import initial_statistics, pi_of, uplink, uplink_over_seeds
from airpfed.config import settings_file
from airpfed.config.experiment_files import settings_path
from airpfed.config.schema import Settings
from airpfed.experiment import build
from airpfed.training.setup import TrainingSetup

COMMON = {"mixing": "full", "power_over": "symbol", "coherence_symbols": 500, "pilots": "perfect"}
JAMMERS = [{"x_m": 400.0, "y_m": 0.0}, {"x_m": -300.0, "y_m": 300.0, "load": 0.5}]
CASES = {
    "none": {},
    "pilots": {"pilots": 4},
    "ageing": {"csi_age_correlation": 0.95},
    "phase": {"phase_error_deg": 15.0},
    "carrier": {"carrier_offset_hz": 2000.0},
    "timing": {"timing_drift_s": 8e-9},
    "ADC": {"adc_bits": 3},
    "clipping": {"clipping_db": 2.0},
    "interference": {"interferers": JAMMERS},
    "pilots, carrier, clipping": {"pilots": 4, "carrier_offset_hz": 1000.0, "clipping_db": 3.0},
    "ageing, timing, interference": {"csi_age_correlation": 0.97, "timing_drift_s": 5e-9, "interferers": JAMMERS},
}
"""Impairment -> its keys of the radio."""
DESIGNS = ("uniform_forcing", "mmse")


def ratio(claimed: torch.Tensor, measured: torch.Tensor) -> tuple[float, float]:
    """The ratio of two means over the same draws, and its standard error."""
    value = float(claimed.mean() / measured.mean())
    deviation = (claimed - value * measured).std() / len(claimed) ** 0.5 / measured.mean()
    return value, float(deviation)


Ratio = tuple[float, float] | None
"""The ratio of two means with its standard error; None where nothing is claimed."""
CLAIMS = ("claimed", "claimed_genie")
COLUMNS = (
    "round",
    "snr_db",
    "impairment",
    "design",
    "draws",
    *(f"{key}{end}" for key in CLAIMS for end in ("", "_error")),
)
"""Columns of the file of `--out`."""


def ratios(link: Uplink, t: int, updates: Updates, statistics: torch.Tensor, draws: int) -> list[Ratio]:
    """Each claim over the measured error in a round of a link."""
    received = uplink_over_seeds(link, range(1000, 1000 + draws), t, updates, statistics)
    d_s, result = updates.shared.shape[1], []
    measured = torch.tensor([pi_of(link, each.mse, d_s, updates.present, "measured") for each in received])
    for key in CLAIMS:
        values = [pi_of(link, each.mse, d_s, updates.present, key) for each in received]
        result.append(None if None in values else ratio(torch.tensor(values), measured))
    return result


def is_off(value: Ratio) -> bool:
    """Whether a claim is off by more than 3 % plus 3 standard errors."""
    return value is not None and abs(value[0] - 1) > 0.03 + 3 * value[1]


def as_text(value: Ratio) -> str:
    """A ratio, marked where it is off."""
    return "none" if value is None else f"{value[0]:.3f} +- {value[1]:.3f}{' (!)' if is_off(value) else ''}"


def print_claims(settings: Settings, experiment: TrainingSetup, options: argparse.Namespace) -> None:
    """The table of claims; rows that the file of `--out` already has are not run again."""
    links = {
        (snr, case, design): link_of(settings, experiment.clients, design, snr_db=snr, **COMMON | changes)
        for snr in options.snr
        for case, changes in CASES.items()
        for design in DESIGNS
        if not options.cases or case in options.cases
    }
    done = {key for key, _ in rows_of(options.out)} if options.out and options.out.exists() else set()
    statistics = {key: initial_statistics(link) for key, link in links.items()}
    print(f"{options.draws} draws. claimed / measured, then the claim with the true correlation / measured.\n")
    print("| round | SNR dB | impairment | design | claimed / true correlation, over measured |")
    print("|---|---|---|---|---|")
    for t, updates in gradients_of_rounds(settings, experiment, max(options.rounds)):
        for (snr, case, design), link in links.items():
            if t in options.rounds and (t, snr, case, design) not in done:
                values = ratios(link, t, updates, statistics[snr, case, design], options.draws)
                text = " / ".join(as_text(value) for value in values)
                print(f"| {t} | {snr:g} | {case} | {design} | {text} |", flush=True)
                if options.out:
                    append_row(options.out, [t, f"{snr:g}", case, design, options.draws], values)
            received = uplink(link, t, updates, statistics[snr, case, design])
            statistics[snr, case, design] = received.correlation_statistics


def append_row(path: Path, begin: Sequence[object], values: Sequence[Ratio]) -> None:
    """Add a row to the file of `--out`."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow([*begin, *(f"{x:.5f}" for value in values for x in value or (math.nan, math.nan))])


def rows_of(path: Path) -> Iterator[tuple[tuple[int, float, str, str], list[Ratio]]]:
    """(round, SNR, impairment, design) -> the ratios of `CLAIMS`, of each row of a file of `--out`."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            pairs = [(float(row[key]), float(row[f"{key}_error"])) for key in CLAIMS]
            key = int(row["round"]), float(row["snr_db"]), row["impairment"], row["design"]
            yield key, [None if math.isnan(pair[0]) else pair for pair in pairs]


def print_summary(path: Path) -> None:
    """The ratios of a file of `--out`: least and largest over its rounds by SNR, then all of them, round by round."""
    rows = dict(rows_of(path))
    rounds, snrs = (sorted({key[i] for key in rows}) for i in (0, 1))
    print_table(rows, [f"{snr:g} dB" for snr in snrs], [[(t, snr) for t in rounds] for snr in snrs])
    for t in rounds:
        print(f"\nRound {t}:\n")
        print_table(rows, [f"{snr:g} dB" for snr in snrs], [[(t, snr)] for snr in snrs])


def print_table(
    rows: Mapping[tuple[int, float, str, str], Sequence[Ratio]],
    heads: Sequence[str],
    columns: Sequence[Sequence[tuple[int, float]]],
) -> None:
    """A row for each impairment and design, a column for each group of (round, SNR)."""
    print("| impairment | design | " + " | ".join(heads) + " |")
    print("|---|---|" + "---|" * len(heads))
    for case in CASES:
        for design in DESIGNS:
            cells = []
            for column in columns:
                found = [rows[(*place, case, design)] for place in column if (*place, case, design) in rows]
                own, true = ([pair[i] for pair in found if pair[i] is not None] for i in (0, 1))
                cells.append(ratios_text(own) + (f" ({ratios_text(true)})" if true else ""))
            print(f"| {case} | `{design}` | " + " | ".join(cells) + " |")


def ratios_text(values: Sequence[tuple[float, float]]) -> str:
    """A ratio with its standard error, or the range of several, marked with how many are off; empty for none."""
    pairs = sorted(values)
    off = sum(map(is_off, pairs))
    if not pairs:
        return ""
    if len(pairs) == 1:
        return f"{pairs[0][0]:.3f} ± {pairs[0][1]:.3f}{' **!**' if off else ''}"
    mark = f" **! in {off} of {len(pairs)}**" if off else ""
    return f"{pairs[0][0]:.3f} to {pairs[-1][0]:.3f}{mark}"


def print_peaks(settings: Settings, experiment: TrainingSetup, options: argparse.Namespace) -> None:
    """The largest OFDM symbol over the mean, the share of samples above 8 dB, and the error at equal peak power."""
    print(
        "| subcarriers | mixing | largest symbol dB | samples above 8 dB | Pi dB, limit on a slot / on every symbol |"
    )
    print("|---|---|---|---|---|")
    *_, (t, updates) = gradients_of_rounds(settings, experiment, max(options.rounds))
    for subcarriers in (64, 256, 1024):
        for mixing in ("none", "permutation", "full"):
            changes = {"subcarriers": subcarriers, "mixing": mixing, "snr_db": 10.0}
            limits = {
                over: link_of(settings, experiment.clients, "uniform_forcing", power_over=over, **changes)
                for over in ("slot", "symbol")
            }
            link = limits["slot"]
            slots = schedule(link, updates, round_grouping(link, t, updates.present))
            largest, above, count = 0.0, 0, 0
            for segment in split_slots(link, slots, t, [INDEPENDENT] * len(initial_statistics(link))):
                x = pack_symbols(segment.group.entries[:], link.packing)
                if x.shape[1] < subcarriers:
                    continue  # less than a symbol
                whole = x[:, : x.shape[1] // subcarriers * subcarriers].reshape(len(x), -1, subcarriers)
                largest = max(largest, float(whole.abs().square().mean(2).max()))
                power = torch.fft.ifft(whole, norm="ortho").abs().square()
                above, count = above + int((power > 10**0.8).sum()), count + power.numel()
            errors = []
            for each in limits.values():
                received = uplink_over_seeds(each, range(20), t, updates, initial_statistics(each))
                values = [
                    pi_of(each, one.mse, updates.shared.shape[1], updates.present, "measured") for one in received
                ]
                errors.append(f"{10 * math.log10(sum(v or 0.0 for v in values) / len(values)):.2f}")
            decibel = 10 * math.log10(largest)
            print(
                f"| {subcarriers} | {mixing} | {decibel:.1f} | {above / count:.4f} | {' / '.join(errors)} |", flush=True
            )


DERIVED = {
    "channel": {"name": "rayleigh", "delay_spread_s": 50e-9},
    "coherence_symbols": "derived",
    "subcarrier_groups": "derived",
}
"""Blocks in which a channel at 3 km/h changes by at most 1 %; it does change inside of them."""
IDEAL = {"mixing": "none", "power_over": "slot", "coherence_symbols": 20_000, "pilots": "perfect"}
"""The assumptions of the literature: known channels, flat for a millisecond, exact timing, a limit on mean power."""
PRICES = {
    "as assumed": {},
    "power limit on every OFDM symbol, not mixed": {"power_over": "symbol"},
    "power limit on every OFDM symbol, mixed": {"power_over": "symbol", "mixing": "full"},
    "amplifiers that clip 3 dB above the limit, mixed": {"clipping_db": 3.0, "power_over": "symbol", "mixing": "full"},
    "channels from one pilot use, as charged": {"pilots": 1},
    "channels from 16 pilot uses": {"pilots": 16},
    "transmit factors 1 ms old at 3 km/h": {"feedback_delay_s": 1e-3},
    "transmit factors 1 ms old at 30 km/h": {"feedback_delay_s": 1e-3, "speed_kmh": 30.0},
    "feedback of 8 bits a factor": {"feedback_bits": 8},
    "feedback of 16 bits a factor": {"feedback_bits": 16},
    "blocks derived from 3 km/h and 50 ns": DERIVED,
    "the same with pilots of a tenth": DERIVED | {"pilots": "derived"},
    "the same and carrier offset 19 Hz": DERIVED | {"pilots": "derived", "carrier_offset_hz": 19.0},
    "carrier offset 19 Hz": {"carrier_offset_hz": 19.0},
    "carrier offset 350 Hz": {"carrier_offset_hz": 350.0},
    "timing drift 2 ns": {"timing_drift_s": 2e-9},
    "timing drift 10 ns": {"timing_drift_s": 1e-8},
    "ADC of 4 bits": {"adc_bits": 4},
    "two interferers, covariance known": {"interferers": JAMMERS},
    "two interferers, mean known": {"interferers": JAMMERS, "interference": "mean"},
    "these six together": DERIVED
    | {
        "power_over": "symbol",
        "mixing": "full",
        "pilots": "derived",
        "feedback_bits": 16,
        "carrier_offset_hz": 19.0,
        "timing_drift_s": 2e-9,
    },
}
"""Assumption given up -> its keys of the radio, beside `IDEAL`."""


def print_prices(settings: Settings, experiment: TrainingSetup, options: argparse.Namespace) -> None:
    """Pi and the seconds of a round for every assumption that is given up."""
    *_, (t, updates) = gradients_of_rounds(settings, experiment, max(options.rounds))
    print(f"Round {t}, {options.draws} draws, 10 dB. Pi in dB; the ledger is uniform_forcing's.\n")
    print("| given up | uniform_forcing | mmse | uplink s | of it pilots, uses | downlink s | radiated J a device |")
    print("|---|---|---|---|---|---|---|")
    for name, changes in PRICES.items():
        texts, ledger = [], None
        for design in DESIGNS:
            link = link_of(settings, experiment.clients, design, **{"snr_db": 10.0} | IDEAL | changes)
            received = uplink_over_seeds(link, range(options.draws), t, updates, initial_statistics(link))
            values = [pi_of(link, each.mse, updates.shared.shape[1], updates.present, "measured") for each in received]
            pi = torch.tensor(values, dtype=torch.float64)
            error = float(pi.std() / len(pi) ** 0.5 / pi.mean()) * 10 / math.log(10)
            texts.append(f"{10 * math.log10(float(pi.mean())):.2f} +- {error:.2f}")
            ledger = ledger or received[0].ledger
        assert ledger is not None
        print(
            f"| {name} | {' | '.join(texts)} | {ledger.air_seconds:.4f} | {ledger.pilot_uses} "
            f"| {ledger.downlink_seconds:.4f} | {ledger.radiated_joules:.2e} |",
            flush=True,
        )


def print_cost(settings: Settings, experiment: TrainingSetup, options: argparse.Namespace) -> None:
    """CPU seconds of a round's gradients and uplink, blocks as set and derived in turns, and their ratio."""
    changes = {"as set": {}, "derived": DERIVED | {"pilots": "derived"}}
    links = {
        (name, design): link_of(settings, experiment.clients, design, **{"snr_db": 10.0} | each)
        for design in DESIGNS
        for name, each in changes.items()
    }
    rounds: dict[tuple[str, str], list[float]] = {key: [] for key in links}
    begin = time.process_time()
    for t, updates in gradients_of_rounds(settings, experiment, max(options.rounds)):
        gradients = time.process_time() - begin
        for key, link in links.items():
            begin = time.process_time()
            uplink(link, t, updates, initial_statistics(link))
            rounds[key].append(gradients + time.process_time() - begin)
        begin = time.process_time()
    print(f"CPU seconds of a round, medians of {max(options.rounds)} in turns, 10 dB.\n")
    print("| design | blocks as set | derived blocks and pilots | ratio |")
    print("|---|---|---|---|")
    for design in DESIGNS:
        before, after = rounds["as set", design], rounds["derived", design]
        ratio = median(y / x for x, y in zip(before, after, strict=True))
        print(f"| {design} | {median(before):.3f} | {median(after):.3f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=settings_path)
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 3, 5, 8])
    parser.add_argument("--snr", type=float, nargs="+", default=[-10.0, 10.0, 30.0], help="median SNR, dB")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--cases", nargs="+", default=[])
    parser.add_argument("--out", type=Path, help="CSV to which the claims are added; its rows are not run again")
    parser.add_argument("--summary", type=Path, help="print a file of --out as a table")
    parser.add_argument("--peaks", action="store_true")
    parser.add_argument("--price", action="store_true")
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    if options.summary:
        print_summary(options.summary)
        return
    small = [] if options.peaks or options.price or options.cost else ["adapters.layers=last-1"]
    settings = settings_file.read_settings(options.file, [*small, *options.set])
    experiment = build.build_experiment(settings, build.load_tasks(settings))
    chosen = {print_peaks: options.peaks, print_prices: options.price, print_cost: options.cost}
    table = next((table for table, asked in chosen.items() if asked), print_claims)
    table(settings, experiment, options)


if __name__ == "__main__":
    main()
