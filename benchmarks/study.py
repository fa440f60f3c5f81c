"""The tables of docs/results.md: each is one `airpfed sweep`, kept below docs/results, drawn and checked by this file.

    python benchmarks/study.py                      # every table: sweep what is missing, then write page and figures
    python benchmarks/study.py conflict split       # these alone
    python benchmarks/study.py --check              # one small cell of each again, against the page's intervals
    python benchmarks/study.py --commands           # what is run

A sweep that was stopped goes on with the same command; its cells are in OUT/NAME, with the CPU seconds of every call,
of which the page says the sum. A cell of the same settings as one in OUT already is copied from there. `--check` plays
the first seed of a table's cheapest method anew and asks that its average lies where one more run is expected with
probability 0.95: mean +- t s sqrt(1 + 1/n) over the table's seeds, and at least SLACK either way. The exit code tells.
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

from tables import around, table

from airpfed.sweeps.tables import confidence_interval

HOME = Path(__file__).parents[1]
KEPT = HOME / "docs/results"
PAGE = HOME / "docs/results.md"
METHODS = "adapters.method=airpfed,fedit,per_task_fedit"
RATES = "server.lr=1e-3,2e-3,5e-3,1e-2,2e-2"
SLACK = 0.02
"""Machines round differently; a test split has some hundreds of samples a task."""

UNREAD = ("run.cross_eval=false", "run.eval_every=0")
"""What `--check` leaves out: scores that it does not compare and that no round depends on."""

COST = "cpu_seconds.txt"
"""A line a call of the sweep: what it took, whether it was stopped or not."""


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

    def words(self, out: Path, workers: int) -> list[str]:
        """Arguments of `airpfed`."""
        tuned = ["--tune", self.tune, "--tune-seeds", "2"] if self.tune else []
        grid = [word for one in self.grid for word in ("--grid", one)]
        changed = [word for one in self.overrides for word in ("--set", one)]
        whole = ["sweep", self.file, *grid, *changed, "--seeds", str(self.seeds), *tuned, "--out", str(out)]
        return [*whole, "--workers", str(workers)] if workers else whole


def suite(name: str, seeds: int, *overrides: str) -> Study:
    """Three methods of the same total rank on a suite of tasks, each at its own rate."""
    figures = ("final-task", "average-method")
    return Study(f"experiments/{name}.toml", (METHODS,), seeds, {"adapters.method": "fedit"}, RATES, overrides, figures)


def at_equal_air(name: str, seconds: float, **rates: str) -> Study:
    """Three methods with the same seconds on air, which are those of airpfed's 40 rounds; each at its own rate."""
    axis = "adapters.method/server.lr"
    points = [f"{method}/{rate}" for method, rate in rates.items()]
    overrides = ("server.rounds=200", f"server.air_seconds={seconds}", "run.eval_every=5")
    return Study(
        f"experiments/{name}.toml", (f"{axis}={','.join(points)}",), 5, {axis: points[2]}, overrides=overrides,
        figures=("dev-seconds_on_air",),
    )  # fmt: skip


FIRST = 5
"""Seeds of the first look; suites with more were gone on with, and later seeds are told apart."""

SUITES = ("conflict", "related", "few", "skewed", "mixed")
CONFLICT = "experiments/conflict.toml"
STUDIES: dict[str, Study] = {
    **{name: suite(name, 10) for name in ("conflict", "few")},
    "related": suite("related", 5),
    **{name: suite(name, 5, "tasks.*.devices=2") for name in ("skewed", "mixed")},
    "smollm2": Study(
        "experiments/conflict-smollm2.toml", (METHODS,), 5, {"adapters.method": "fedit"}, RATES,
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
    """Play what is missing of a table, then keep what the page and the check need."""
    begin = spent()
    there = [out / other for other in STUDIES if other != name and (out / other / "cells").is_dir()]
    try:
        play([*study.words(out / name, workers), *(word for other in there for word in ("--reuse", str(other)))])
    finally:
        if (out / name).is_dir():
            with (out / name / COST).open("a") as file:
                file.write(f"{spent() - begin:.1f}\n")
    keep(out / name, KEPT / name, study.figures)


def spent() -> float:
    """CPU seconds of all processes that this one has waited for, and of those that they have."""
    return sum(os.times()[2:4])


def play(words: Sequence[str]) -> None:
    """The command with these words; its tables are in files, so nothing is shown of them."""
    command = Path(sys.executable).parent / "airpfed"
    subprocess.run([str(command), *words], check=True, cwd=HOME, stdout=subprocess.DEVNULL)


def keep(made: Path, kept: Path, figures: Sequence[str]) -> None:
    """Numbers, and figures with theirs."""
    kept.mkdir(parents=True, exist_ok=True)
    names = ["sweep.json", "tuning.csv", COST, *(f"{one}.{kind}" for one in figures for kind in ("csv", "svg"))]
    for name in names:
        if (made / name).is_file():
            shutil.copy(made / name, kept / name)
    wanted = ("seed", "server.lr", "task", "base", "final", "dev", "pi_mean", "rounds", "air_seconds", "joules_mean")
    rows = lines_of(made / "cells.csv")
    axes = [key for key in rows[0] if "." in key and key not in wanted]
    columns = [*axes, *(key for key in wanted if key in rows[0])]
    with (kept / "cells.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def lines_of(path: Path) -> list[dict[str, str]]:
    """A CSV file's lines by the names of its columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def averages(rows: Sequence[Mapping[str, str]], point: Mapping[str, str]) -> dict[int, float]:
    """Seed -> mean final metric over tasks at a point of the grid."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if matches(row, point):
            found.setdefault(int(row["seed"]), []).append(float(row["final"]))
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def matches(row: Mapping[str, str], point: Mapping[str, str]) -> bool:
    """Whether a line is of a point of the grid."""
    return all(same(row[key], value) for key, value in point.items())


def same(one: str, other: str) -> bool:
    """Whether two settings say the same; -10 is -10.0."""
    try:
        return float(one) == float(other)
    except ValueError:
        return one == other


def expected(values: Sequence[float]) -> tuple[float, float]:
    """Where one more run is expected, with probability 0.95."""
    one = confidence_interval(values)
    half = SLACK if one.high is None else max((one.high - one.mean) * (one.count + 1) ** 0.5, SLACK)
    return one.mean - half, one.mean + half


def check(name: str, study: Study) -> str | None:
    """Play one cell of a table again; what is wrong with it, or None."""
    rows = lines_of(KEPT / name / "cells.csv")
    known = averages(rows, study.check)
    seed = min(known)
    rates = {row["server.lr"] for row in rows if study.tune and matches(row, study.check)}
    values = {**study.check, **({"server.lr": rates.pop()} if rates else {})}
    joined = [zip(key.split("/"), value.split("/"), strict=True) for key, value in values.items()]
    changes = [*study.overrides, *(f"{key}={value}" for pair in joined for key, value in pair), f"run.seed={seed}"]
    once = Study(study.file, (), 1, {}, overrides=(*changes, *UNREAD))
    with tempfile.TemporaryDirectory() as folder:
        play(once.words(Path(folder), 1))
        tree = json.loads((Path(folder) / "sweep.json").read_text())
    got = tree["points"][0]["measures"]["average"]["mean"]
    low, high = expected(list(known.values()))
    told = (
        f"{name}: {' '.join(changes)}: average {got:.3f}, expected {low:.3f} to {high:.3f} (it was {known[seed]:.3f})"
    )
    print(told, flush=True)
    return None if low <= got <= high else told


def compared(tree: Mapping[str, Any], lr: Mapping[str, str]) -> str:
    """A sweep as markdown: a line a point, means with 95 % intervals, differences paired by seed."""
    points = tree["points"]
    axes = list(points[0]["set"])
    against = " ".join(tree["against"].values())
    more = [title for key, (title, _, _) in COLUMNS.items() if key != "average" and key in points[0]["measures"]]
    head = [
        *("/".join(key.split(".")[-1] for key in axis.split("/")) for axis in axes),
        *(["lr"] if lr else []),
        "average",
        f"minus {against}",
        *more,
    ]
    lines = []
    for point in points:
        place, measures = list(point["set"].values()), point["measures"]
        gap = measures["average"]["difference"]
        cells = [shown(measures[key], form, by) for key, (_, form, by) in COLUMNS.items() if key in measures]
        apart = shown(gap, "{:+.3f}", 1) if gap else ""
        lines.append([*place, *([lr[" ".join(place)]] if lr else []), cells[0], apart, *cells[1:]])
    return table(head, lines)


def shown(one: Mapping[str, float | None], form: str, by: float) -> str:
    """A mean, with its interval where that is not a point."""
    mean, low, high = (None if one[key] is None else float(one[key]) * by for key in ("mean", "low", "high"))  # type: ignore[arg-type]
    text = form.format(mean)
    if low is None or high is None or form.format(low) == form.format(high):
        return text
    return f"{text} [{form.format(low)}, {form.format(high)}]"


def section(name: str, study: Study) -> str:
    """A table with its command and figures."""
    tree = json.loads((KEPT / name / "sweep.json").read_text())
    rates: dict[str, str] = {}
    if study.tune:
        rows, axes = lines_of(KEPT / name / "tuning.csv"), list(tree["points"][0]["set"])
        rates = {" ".join(row[axis] for axis in axes): row["server.lr"] for row in rows if row["chosen"] == "true"}
    call = shlex.join(["airpfed", *study.words(Path("runs/study") / name, 0)])
    pictures = [
        f"![{name}: {one}](results/{name}/{one}.svg)" for one in study.figures if (KEPT / name / f"{one}.svg").is_file()
    ]
    seeds = " or ".join(str(count) for count in sorted({len(point["seeds"]) for point in tree["points"]}))
    used = hours(name)
    took = "" if used is None else f"; {used:.2f} CPU hours"
    said = f"{seeds} seeds a point{later(name) if name in SUITES else ''}{took}; [numbers](results/{name})."
    return "\n\n".join([f"    {call}", compared(tree, rates), said, *pictures])


def hours(name: str) -> float | None:
    """CPU hours that a table took, all calls together; None where they were not kept."""
    path = KEPT / name / COST
    return sum(map(float, path.read_text().split())) / 3600 if path.is_file() else None


def costs() -> str:
    """What all tables took, in a line."""
    found = {name: hours(name) for name in STUDIES}
    missing = [name for name, used in found.items() if used is None]
    rest = f"; not kept for {', '.join(missing)}" if missing else ""
    counted = f"{len(found) - len(missing)} tables of {len(found)}"
    return f"CPU hours of {counted}: {sum(filter(None, found.values())):.2f}{rest}."


def by_seed(name: str) -> dict[str, dict[int, float]]:
    """Method -> seed -> mean over a suite's tasks; the whole first."""
    rows = lines_of(KEPT / name / "cells.csv")
    return {method: averages(rows, {"adapters.method": method}) for method in METHODS.partition("=")[2].split(",")}


def apart(found: Mapping[str, Mapping[int, float]], method: str, seeds: Iterable[int]) -> str:
    """A method minus the whole, paired by seed."""
    whole = next(iter(found.values()))
    return shown(vars(confidence_interval([found[method][seed] - whole[seed] for seed in seeds])), "{:+.3f}", 1)


def later(name: str) -> str:
    """The differences that the seeds after the first show by themselves."""
    found = by_seed(name)
    whole, *halves = found
    seeds = [seed for seed in found[whole] if seed >= FIRST]
    if not seeds:
        return ""
    gaps = ", ".join(f"{method} {apart(found, method, seeds)}" for method in halves)
    return f" (seeds {FIRST} to {max(seeds)} alone, minus {whole}: {gaps})"


def overall() -> str:
    """All suites together on the seeds that all have: the mean over suites, differences paired by seed, as markdown."""
    suites = [by_seed(name) for name in SUITES]
    seeds = sorted(set.intersection(*(set(values) for one in suites for values in one.values())))
    found = {
        method: {seed: statistics.fmean(one[method][seed] for one in suites) for seed in seeds} for method in suites[0]
    }
    whole = next(iter(found))
    lines = [
        [
            method,
            shown(vars(confidence_interval(list(values.values()))), "{:.3f}", 1),
            "" if method == whole else apart(found, method, seeds),
        ]
        for method, values in found.items()
    ]
    return table(["method", f"average over the five suites, {len(seeds)} seeds", f"minus {whole}"], lines)


def write() -> None:
    """Put every table that is kept between its markers of the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, study in STUDIES.items():
        if (KEPT / name / "sweep.json").is_file():
            text = put(text, name, section(name, study))
    if all((KEPT / name / "cells.csv").is_file() for name in SUITES):
        text = put(text, "overall", overall())
    text = put(text, "costs", costs())
    PAGE.write_text(text, encoding="utf-8")


def put(text: str, name: str, content: str) -> str:
    """The page with a table made anew."""
    head, tail = around(text, "study", name, PAGE)
    return f"{head}{content}{tail}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(STUDIES)}; default all")
    parser.add_argument("--out", type=Path, default=HOME / "runs/study", help="where the sweeps are")
    parser.add_argument("--workers", type=int, default=0, help="cells at once; 0: one a core")
    parser.add_argument("--check", action="store_true", help="play one cell of each table again")
    parser.add_argument("--commands", action="store_true", help="print the commands and do nothing")
    parser.add_argument("--page", action="store_true", help="write the page from what is kept, play nothing")
    asked = parser.parse_args()
    wrong = [name for name in asked.names if name not in STUDIES]
    if wrong:
        parser.error(f"no table {wrong[0]}; there are {', '.join(STUDIES)}")
    chosen = {name: STUDIES[name] for name in asked.names or STUDIES}
    if asked.commands:
        for name, study in chosen.items():
            print(shlex.join(["airpfed", *study.words(asked.out / name, asked.workers)]))
        return 0
    if asked.check:
        there = {name: study for name, study in chosen.items() if (KEPT / name / "cells.csv").is_file()}
        with ThreadPoolExecutor(asked.workers or os.cpu_count()) as pool:
            told = list(pool.map(check, there, there.values()))
        return 1 if any(told) else 0
    for name, study in () if asked.page else chosen.items():
        sweep(name, study, asked.out, asked.workers)
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
