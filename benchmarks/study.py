"""The tables of docs/results.md: each is one `airpfed sweep`, stored in docs/results.

    python benchmarks/study.py                      # every table: sweep what is missing, then write page and figures
    python benchmarks/study.py conflict split       # these alone
    python benchmarks/study.py --check              # one small cell of each again, against the page's intervals
    python benchmarks/study.py --commands           # print the commands

The same command continues a sweep that was stopped. Its trials are in OUT/NAME, with the CPU seconds of every call; the
page states their sum. A trial with the settings of a finished one in OUT is copied. `--check` repeats the first seed of
a table's cheapest method. Its average has to lie where one more run is expected with probability 0.95, at mean +- t s
sqrt(1 + 1/n) over the table's seeds, and at least SLACK either way; the exit code is 1 otherwise.
"""

import argparse
import csv
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import take_part
from tables import around, table

from airpfed.sweeps.tables import t_interval

HOME = Path(__file__).parents[1]
RESULTS = HOME / "docs/results"
PAGE = HOME / "docs/results.md"
METHODS = "adapters.method=airpfed,fedit,per_task_fedit"
RATES = "server.lr=1e-3,2e-3,5e-3,1e-2,2e-2"
SLACK = 0.02
"""Smallest half-width of an expected range: machines round differently, and a test split has some hundred samples."""

UNREAD = ("run.cross_eval=false", "run.eval_every=0")
"""Settings that `--check` turns off: scores that it does not compare and that no round depends on."""

COST = "cpu_seconds.txt"
"""File with the CPU seconds of each call of the sweep, stopped calls included."""


@dataclass(frozen=True)
class Study:
    """A table. check: the point of the grid that `--check` plays. figures: files of the sweep that the page shows."""

    file: str
    grid: tuple[str, ...]
    seeds: int
    check: Mapping[str, str]
    tune: str = ""
    overrides: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()

    def arguments(self, out: Path, workers: int) -> list[str]:
        """Arguments of `airpfed`."""
        tuned = ["--tune", self.tune, "--tune-seeds", "2"] if self.tune else []
        grid = [word for axis in self.grid for word in ("--grid", axis)]
        overrides = [word for override in self.overrides for word in ("--set", override)]
        arguments = ["sweep", self.file, *grid, *overrides, "--seeds", str(self.seeds), *tuned, "--out", str(out)]
        return [*arguments, "--workers", str(workers)] if workers else arguments


def suite(name: str, seeds: int, *overrides: str) -> Study:
    """Three methods of the same total rank on a suite of tasks, each at its own rate."""
    figures = ("final-task", "average-method")
    return Study(name, (METHODS,), seeds, {"adapters.method": "fedit"}, RATES, overrides, figures)


def at_equal_air(name: str, seconds: float, **rates: str) -> Study:
    """Three methods with the same seconds on air, which are those of airpfed's 40 rounds; each at its own rate."""
    axis = "adapters.method/server.lr"
    points = [f"{method}/{rate}" for method, rate in rates.items()]
    overrides = ("server.rounds=200", f"server.air_seconds={seconds}", "run.eval_every=5")
    return Study(
        name, (f"{axis}={','.join(points)}",), 5, {axis: points[2]}, overrides=overrides,
        figures=("dev-seconds_on_air",),
    )  # fmt: skip


FIRST = 5
"""Seeds of the first study; the page states the results of later seeds separately."""

SUITES = ("conflict", "related", "few", "skewed", "mixed")
CONFLICT = "conflict"
STUDIES: dict[str, Study] = {
    **{name: suite(name, 10) for name in ("conflict", "few")},
    "related": suite("related", 5),
    **{name: suite(name, 5, "tasks.*.devices=2") for name in ("skewed", "mixed")},
    "smollm2": Study(
        "conflict-smollm2", (METHODS,), 5, {"adapters.method": "fedit"}, RATES,
        figures=("average-method",),
    ),
    "split": Study(
        CONFLICT, ("adapters.rank_shared/adapters.rank_personal=0/8,2/6,4/4,6/2,8/0",), 3,
        {"adapters.rank_shared/adapters.rank_personal": "2/6"}, figures=("average-rank_shared-rank_personal",),
    ),
    "power": Study(
        CONFLICT, ("radio.design=mmse,uniform_forcing,channel_inversion", "radio.snr_db=-20,-10,0"), 3,
        {"radio.design": "uniform_forcing", "radio.snr_db": "-10"}, figures=("average-snr_db",),
    ),
    "antennas": Study(
        CONFLICT, ("radio.antennas=1,4,16",), 3, {"radio.antennas": "4"}, overrides=("radio.snr_db=-10",),
        figures=("average-antennas",),
    ),
    "devices": Study(
        CONFLICT, (METHODS, "tasks.*.devices=1,2,4"), 3, {"adapters.method": "fedit", "tasks.*.devices": "1"},
        figures=("average-devices",),
    ),
    "air_conflict": at_equal_air("conflict", 0.1066, airpfed="5e-3", fedit="5e-3", per_task_fedit="5e-3"),
    "air_related": at_equal_air("related", 0.156, airpfed="5e-3", fedit="2e-3", per_task_fedit="2e-3"),
}  # fmt: skip
"""A row here is a table of the page, between `<!-- study: NAME -->` and `<!-- end: NAME -->`."""

COLUMNS: dict[str, tuple[str, str, float]] = {
    "average": ("average", "{:.3f}", 1),
    "worst": ("worst task", "{:.3f}", 1),
    "others": ("on other tasks' data", "{:.3f}", 1),
    "pi_mean": ("Pi", "{:.1e}", 1),
    "air_seconds": ("ms on air", "{:.1f}", 1e3),
    "rounds": ("rounds", "{:.0f}", 1),
}
"""Measure -> (head, format, factor)."""


def sweep(name: str, study: Study, out: Path, workers: int) -> None:
    """Run the missing trials of a table, then store the numbers and figures that the page and the check need."""
    begin = cpu_seconds()
    finished = [out / other for other in STUDIES if other != name and (out / other / "cells").is_dir()]
    try:
        run_airpfed(
            [*study.arguments(out / name, workers), *(word for other in finished for word in ("--reuse", str(other)))]
        )
    finally:
        if (out / name).is_dir():
            with (out / name / COST).open("a") as file:
                file.write(f"{cpu_seconds() - begin:.1f}\n")
    store_results(out / name, RESULTS / name, study.figures)


def cpu_seconds() -> float:
    """CPU seconds of all processes that this one has waited for, and of those that they have."""
    return sum(os.times()[2:4])


def run_airpfed(arguments: Sequence[str]) -> None:
    """Run the command with these arguments, without its output."""
    command = Path(sys.executable).parent / "airpfed"
    subprocess.run([str(command), *arguments], check=True, cwd=HOME, stdout=subprocess.DEVNULL)


def store_results(sweep_folder: Path, folder: Path, figures: Sequence[str]) -> None:
    """Copy a sweep's numbers and the figures of the page, with the numbers of each figure."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["sweep.json", "tuning.csv", COST, *(f"{figure}.{kind}" for figure in figures for kind in ("csv", "svg"))]
    for name in names:
        if (sweep_folder / name).is_file():
            shutil.copy(sweep_folder / name, folder / name)
    keys = ("seed", "server.lr", "task", "base", "final", "dev", "pi_mean", "rounds", "air_seconds", "joules_mean")
    rows = lines_of(sweep_folder / "cells.csv")
    axes = [key for key in rows[0] if "." in key and key not in keys]
    columns = [*axes, *(key for key in keys if key in rows[0])]
    with (folder / "cells.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def lines_of(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file by the names of its columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def averages(rows: Sequence[Mapping[str, str]], point: Mapping[str, str]) -> dict[int, float]:
    """Seed -> mean final metric over tasks at a point of the grid."""
    finals: dict[int, list[float]] = {}
    for row in rows:
        if matches(row, point):
            finals.setdefault(int(row["seed"]), []).append(float(row["final"]))
    return {seed: statistics.fmean(values) for seed, values in finals.items()}


def matches(row: Mapping[str, str], point: Mapping[str, str]) -> bool:
    """Whether a line belongs to a point of the grid."""
    return all(are_equal(row[key], value) for key, value in point.items())


def are_equal(a: str, b: str) -> bool:
    """Whether two values are equal as numbers or, if they are names, as text."""
    try:
        return float(a) == float(b)
    except ValueError:
        return a == b


def expected(values: Sequence[float]) -> tuple[float, float]:
    """The range in which one more run lies with probability 0.95."""
    interval = t_interval(values)
    half = SLACK if interval.high is None else max((interval.high - interval.mean) * (interval.count + 1) ** 0.5, SLACK)
    return interval.mean - half, interval.mean + half


def check(name: str, study: Study) -> str | None:
    """Repeat one trial of a table. Returns a message if its average lies outside the expected range."""
    rows = lines_of(RESULTS / name / "cells.csv")
    seed_averages = averages(rows, study.check)
    seed = min(seed_averages)
    rates = {row["server.lr"] for row in rows if study.tune and matches(row, study.check)}
    values = {**study.check, **({"server.lr": rates.pop()} if rates else {})}
    joined = [zip(key.split("/"), value.split("/"), strict=True) for key, value in values.items()]
    changes = [*study.overrides, *(f"{key}={value}" for pair in joined for key, value in pair), f"run.seed={seed}"]
    repetition = Study(study.file, (), 1, {}, overrides=(*changes, *UNREAD))
    with tempfile.TemporaryDirectory() as folder:
        run_airpfed(repetition.arguments(Path(folder), 1))
        tree = json.loads((Path(folder) / "sweep.json").read_text())
    average = tree["points"][0]["measures"]["average"]["mean"]
    low, high = expected(list(seed_averages.values()))
    message = (
        f"{name}: {' '.join(changes)}: average {average:.3f}, expected {low:.3f} to {high:.3f} "
        f"(it was {seed_averages[seed]:.3f})"
    )
    print(message, flush=True)
    return None if low <= average <= high else message


def sweep_table(tree: Mapping[str, Any], lr: Mapping[str, str]) -> str:
    """A sweep as markdown: for each point means with 95 % intervals, and differences paired by seed."""
    points = tree["points"]
    axes = list(points[0]["set"])
    reference = " ".join(tree["against"].values())
    other_measures = [
        title for key, (title, _, _) in COLUMNS.items() if key != "average" and key in points[0]["measures"]
    ]
    head = [
        *("/".join(key.split(".")[-1] for key in axis.split("/")) for axis in axes),
        *(["lr"] if lr else []),
        "average",
        f"minus {reference}",
        *other_measures,
    ]
    lines = []
    for point in points:
        values, measures = list(point["set"].values()), point["measures"]
        gap = measures["average"]["difference"]
        texts = [mean_text(measures[key], form, by) for key, (_, form, by) in COLUMNS.items() if key in measures]
        gap_text = mean_text(gap, "{:+.3f}", 1) if gap else ""
        lines.append([*values, *([lr[" ".join(values)]] if lr else []), texts[0], gap_text, *texts[1:]])
    return table(head, lines)


def mean_text(interval: Mapping[str, float | None], form: str, by: float) -> str:
    """A mean times `by`, with its interval if that is wider than the format's last digit."""
    mean, low, high = (None if (v := interval[key]) is None else v * by for key in ("mean", "low", "high"))
    text = form.format(mean)
    if low is None or high is None or form.format(low) == form.format(high):
        return text
    return f"{text} [{form.format(low)}, {form.format(high)}]"


def section(name: str, study: Study) -> str:
    """A table with its command and figures."""
    tree = json.loads((RESULTS / name / "sweep.json").read_text())
    rates: dict[str, str] = {}
    if study.tune:
        rows, axes = lines_of(RESULTS / name / "tuning.csv"), list(tree["points"][0]["set"])
        rates = {" ".join(row[axis] for axis in axes): row["server.lr"] for row in rows if row["chosen"] == "true"}
    command = shlex.join(["airpfed", *study.arguments(Path("runs/study") / name, 0)])
    pictures = [
        f"![{name}: {figure}](results/{name}/{figure}.svg)"
        for figure in study.figures
        if (RESULTS / name / f"{figure}.svg").is_file()
    ]
    seeds = " or ".join(str(count) for count in sorted({len(point["seeds"]) for point in tree["points"]}))
    cost = hours(name)
    cost_text = "" if cost is None else f"; {cost:.2f} CPU hours"
    text = f"{seeds} seeds a point{later(name) if name in SUITES else ''}{cost_text}; [numbers](results/{name})."
    return "\n\n".join([f"    {command}", sweep_table(tree, rates), text, *pictures])


def hours(name: str) -> float | None:
    """CPU hours of all calls of a table's sweep; None if they were not stored."""
    path = RESULTS / name / COST
    return sum(map(float, path.read_text().split())) / 3600 if path.is_file() else None


def costs() -> str:
    """A line with the CPU hours of all tables."""
    by_name = {name: hours(name) for name in STUDIES}
    missing = [name for name, cost in by_name.items() if cost is None]
    remark = f"; not kept for {', '.join(missing)}" if missing else ""
    tables = f"{len(by_name) - len(missing)} tables of {len(by_name)}"
    return f"CPU hours of {tables}: {sum(filter(None, by_name.values())):.2f}{remark}."


def by_seed(name: str) -> dict[str, dict[int, float]]:
    """Method -> seed -> mean over a suite's tasks; airpfed first."""
    rows = lines_of(RESULTS / name / "cells.csv")
    return {method: averages(rows, {"adapters.method": method}) for method in METHODS.partition("=")[2].split(",")}


def difference_text(by_method: Mapping[str, Mapping[int, float]], method: str, seeds: Iterable[int]) -> str:
    """A method minus the first method, paired by seed."""
    first = next(iter(by_method.values()))
    gaps = [by_method[method][seed] - first[seed] for seed in seeds]
    return mean_text(vars(t_interval(gaps)), "{:+.3f}", 1)


def later(name: str) -> str:
    """The differences over the seeds after those of the first study alone."""
    by_method = by_seed(name)
    first, *others = by_method
    seeds = [seed for seed in by_method[first] if seed >= FIRST]
    if not seeds:
        return ""
    gaps = ", ".join(f"{method} {difference_text(by_method, method, seeds)}" for method in others)
    return f" (seeds {FIRST} to {max(seeds)} alone, minus {first}: {gaps})"


def overall() -> str:
    """The mean over suites, on the seeds that all have, with differences paired by seed, as markdown."""
    suites = [by_seed(name) for name in SUITES]
    seeds = sorted(set.intersection(*(set(values) for suite in suites for values in suite.values())))
    by_method = {
        method: {seed: statistics.fmean(suite[method][seed] for suite in suites) for seed in seeds}
        for method in suites[0]
    }
    first = next(iter(by_method))
    lines = [
        [
            method,
            mean_text(vars(t_interval(list(values.values()))), "{:.3f}", 1),
            "" if method == first else difference_text(by_method, method, seeds),
        ]
        for method, values in by_method.items()
    ]
    return table(["method", f"average over the five suites, {len(seeds)} seeds", f"minus {first}"], lines)


def write() -> None:
    """Write every stored table between its markers of the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, study in STUDIES.items():
        if (RESULTS / name / "sweep.json").is_file():
            text = insert(text, name, section(name, study))
    if all((RESULTS / name / "cells.csv").is_file() for name in SUITES):
        text = insert(text, "overall", overall())
    text = insert(text, "costs", costs())
    PAGE.write_text(text, encoding="utf-8")


def insert(text: str, name: str, content: str) -> str:
    """The page with new content between a table's markers."""
    head, tail = around(text, "study", name, PAGE)
    return f"{head}{content}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(STUDIES)}; default all")
    parser.add_argument("--out", type=Path, default=HOME / "runs/study", help="where the sweeps are")
    parser.add_argument("--workers", type=int, default=0, help="trials at once; 0: one for each core")
    parser.add_argument("--check", action="store_true", help="repeat one trial of each table")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="of a check: every N-th table, from the I-th on")
    parser.add_argument("--commands", action="store_true", help="print the commands and do nothing")
    parser.add_argument("--page", action="store_true", help="write the page from the stored results, run nothing")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in STUDIES]
    if unknown:
        parser.error(f"no table {unknown[0]}; there are {', '.join(STUDIES)}")
    studies = {name: STUDIES[name] for name in options.names or STUDIES}
    if options.commands:
        for name, study in studies.items():
            print(shlex.join(["airpfed", *study.arguments(options.out / name, options.workers)]))
        return 0
    if options.check:
        names = take_part([name for name in studies if (RESULTS / name / "cells.csv").is_file()], options.part)
        stored = {name: studies[name] for name in names}
        with ThreadPoolExecutor(options.workers or os.cpu_count()) as pool:
            messages = list(pool.map(check, stored, stored.values()))
        return 1 if any(messages) else 0
    for name, study in () if options.page else studies.items():
        sweep(name, study, options.out, options.workers)
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
