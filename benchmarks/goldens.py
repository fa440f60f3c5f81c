"""Runs of the present source held against the same runs of an older commit, bit by bit, on the same machine.

    python benchmarks/goldens.py                           all cases, two at a time
    python benchmarks/goldens.py --cases minilm,link       some of them
    python benchmarks/goldens.py --list                    their names

Both sides play the same short commands with one thread, each in a process of its own: the old source with the old
settings files, the present source with the present ones. Compared are records, summaries, theory, layouts, adapters,
checkpoints, tables, the names of all files and exit codes; only wall-clock seconds are left out. Results of the old
side are kept in a cache folder, by commit, command, library versions and processor.
"""

import argparse
import contextlib
import csv
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from airpfed.config.upgrade import upgrade_file

ROOT = Path(__file__).resolve().parents[1]
OLD = "393eb786824d1fb218f34511f4ec16c82c839e9c"
"""The commit whose behaviour the present source should have."""

TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
CASES = {
    name: tuple(command.format(**TABLE["parts"], out="{out}", data="{data}") for command in commands)
    for name, commands in TABLE["cases"].items()
}
"""Name -> commands of `airpfed`, in turn. {out}: a folder of this side; {data}: one that both sides share."""

SECONDS = {"seconds", "wall_seconds", "ms"}
"""Keys whose values are wall-clock times."""
UNLIKE = {"environment.json", "experiment.toml", "report.html", "sha256", "fingerprint"}
"""Files and keys that hold paths, times, or hashes of settings and of tensors that are compared themselves."""
HASH = re.compile(r"\b[0-9a-f]{32}\b|(?<=-)[0-9a-f]{8}(?=/|$)")
"""In names: the random name of a federation's run, and the hash of its settings in a cell's name."""
FLOOR = 1e-18
"""Sizes below this count as this in relative differences: what rounding leaves of a zero is no difference."""


@dataclass(frozen=True)
class Side:
    """One of the two sources. experiments: folder of its settings files. number: 0 for the old one, 1 for this."""

    tree: Path
    experiments: Path
    number: int


def play(side: Side, commands: tuple[str, ...], out: Path, data: Path) -> str:
    """Run a case's commands with one side's source into `out`, which then holds exit codes and JSON too.

    Returns wall and CPU seconds in words.
    """
    begin, cpu, work = time.perf_counter(), 0.0, out / "cache"
    shared = Path(os.environ.get("AIRPFED_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "airpfed")
    work.mkdir(parents=True)
    for name in ("wheels", "models", "hashes", "manifests"):  # what is downloaded; what is computed is done again
        (home := shared.expanduser() / name).mkdir(parents=True, exist_ok=True)
        (work / name).symlink_to(home)
    code = (
        "import sys, airpfed, pathlib; assert pathlib.Path(airpfed.__file__).is_relative_to(sys.argv.pop(1)), airpfed; "
        "from airpfed.cli import main; main()"
    )
    source = str(side.tree / "src")
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "AIRPFED_CACHE": str(work)}
    for number, command in enumerate(commands):
        words = shlex.split(words_of(command.format(out=out, data=data), side.number))
        words = [re.sub(r"^experiments(?=/)", str(side.experiments), word) for word in words]
        table = out / (f"stdout-{number}.jsonl" if "--json" in words else f"stdout-{number}.txt")
        with table.open("w") as output, (out / f"stderr-{number}.txt").open("w") as errors:
            program = [sys.executable, "-c", code, source, *words]
            child = subprocess.Popen(program, cwd=side.tree, env=environment, stdout=output, stderr=errors)
            _, status, used = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        (out / f"exit-{number}.json").write_text(json.dumps({"code": child.returncode}))
        cpu += used.ru_utime + used.ru_stime
    shutil.rmtree(work)
    for path in out.rglob("*.json*"):
        path.write_text(path.read_text().replace(str(out), "OUT"))
    return f"{time.perf_counter() - begin:.0f} s, CPU {cpu:.0f} s"


def words_of(command: str, number: int) -> str:
    """A command in the words of one side, 0 or 1: `<<old||present>>` is either."""
    return re.sub(r"<<(.*?)\|\|(.*?)>>", lambda match: match[1 + number], command, flags=re.DOTALL)


def files_of(out: Path) -> dict[str, Path]:
    """Name -> path of every file of a side; random names, and hashes of settings in names, are RUN."""
    every = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {HASH.sub("RUN", name): path for name, path in every.items()}


def content(path: Path) -> dict[str, Any]:
    """Dotted key -> number, string or tensor of a file that is compared; empty for any other."""
    if path.name in UNLIKE or path.name == "run.json":
        return {}
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix == ".json":
        return flat(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return flat([json.loads(line) for line in path.read_text().splitlines()])
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]
        if rows and "measure" in rows[0]:  # a table that may have further measures between its rows
            names = list(rows[0])[: list(rows[0]).index("measure") + 1]
            return flat({" ".join(str(row[name]) for name in names): row for row in rows})
        return flat(rows)
    return {}


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return HASH.sub("RUN", text)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree by their dotted keys, wall-clock seconds left out."""
    if not isinstance(tree, (dict, list)) or not tree:
        return {prefix.rstrip("."): tree}
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {
        name: leaf
        for key, value in pairs
        if key not in SECONDS | UNLIKE
        for name, leaf in flat(value, f"{prefix}{key}.").items()
    }


def relative_difference(old: Any, new: Any) -> float:
    """Relative difference of two values: 0 where their bits are equal, infinite where they cannot be compared."""
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            return math.inf
        if old.numpy(force=True).tobytes() == new.numpy(force=True).tobytes():
            return 0.0
        gap = (old.double() - new.double()).abs().max() / old.double().abs().max().clamp_min(FLOOR)
        return float(gap) or math.ulp(0.0) if gap.isfinite() else math.inf
    if repr(old) == repr(new):
        return 0.0
    if type(old) is type(new) and isinstance(old, (int, float)) and math.isfinite(old - new):
        return abs(old - new) / max(abs(old), abs(new), FLOOR) or math.ulp(0.0)
    return math.inf


def compare(old: Path, new: Path, names: dict[str, str], tolerance: float) -> tuple[int, str]:
    """(values compared, the first difference of two sides in words; empty where there is none).

    Every file and value of the old side should be in the new one, which may have more.
    """
    left, right = files_of(old), files_of(new)
    for missing in [name for name in left if name not in right]:
        return 0, f"names of files: {missing} is missing"
    count, first, worst, differ = 0, "", 0.0, 0
    for name, path in sorted(left.items(), key=lambda item: not item[0].endswith("records.jsonl")):  # by rounds
        before, now = content(path), content(right[name])
        renames = {".".join(names.get(part, part) for part in key.split(".")): key for key in before}
        for key in renames:
            a, b = before.get(renames.get(key, key), "absent"), now.get(key, "absent")
            if isinstance(a, torch.Tensor) and b == "absent" and not bool(a.any()):
                continue  # moments of an optimizer that has none: zeros then, and not stored now
            gap, count = relative_difference(a, b), count + 1
            if gap > tolerance:
                first = first or f"{name}: {key}: {short(a)} is now {short(b)}"
                worst, differ = max(worst, gap), differ + 1
    return count, first and f"{first}; {differ} values differ, largest relative difference {worst:.1e}"


def short(value: Any) -> str:
    """A value in a few characters."""
    if isinstance(value, torch.Tensor):
        return (
            f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} of norm {float(value.double().norm())!r}"
        )
    return repr(value)[:60]


def failure(out: Path) -> str:
    """The last line of standard error of a side's first command that failed; empty where none did."""
    for path in sorted(out.glob("exit-*.json")):
        if code := json.loads(path.read_text())["code"]:
            lines = path.with_name(path.name.replace("exit", "stderr")).with_suffix(".txt").read_text().splitlines()
            return f"exit code {code}: {lines[-1][:300] if lines else 'no message'}"
    return ""


def old_results(commands: tuple[str, ...], side: Side, commit: str, cache: Path, work: Path) -> tuple[Path, str]:
    """The old side's results of a case and the time they took, in words; played, and cached, where they are not there.

    What failed is not cached.
    """
    key = json.dumps([commit, commands, machine(), inputs(cache).read_text()])
    folder = cache / "old" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder, "cached"
    folder.parent.mkdir(parents=True, exist_ok=True)
    duration = play(side, commands, work, cache)
    if not failure(work):
        with tempfile.TemporaryDirectory(dir=folder.parent) as spare:  # another process may be as far at the same time
            shutil.copytree(work, Path(spare) / "out")
            with contextlib.suppress(OSError):
                (Path(spare) / "out").rename(folder)
    return work, duration


def machine() -> list[str]:
    """What else bits depend on: versions of libraries, model and instructions of the processor."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "numpy", "scipy", "transformers")]
    with Path("/proc/cpuinfo").open() as file:
        lines = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in file}
    return [sys.version, *versions, lines.get("model name", ""), lines.get("flags", "")]


def inputs(cache: Path) -> Path:
    """A small data set for a task that generates, at the same path for both sides; its path is in fingerprints."""
    path = cache / "letters.jsonl"
    text = "".join(json.dumps({"text": f"{n} and one is", "label": str(n + 1)}) + "\n" for n in range(60))
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        (spare := path.with_name(f"letters-{os.getpid()}")).write_text(text)
        spare.replace(path)
    return path


def with_old_defaults(text: str) -> str:
    """A settings file with the defaults that have moved since the old commit."""
    lines = text.splitlines()
    if "[radio]" not in lines:
        lines += ["", "[radio]"]
    index = lines.index("[radio]") + 1
    former = {"mixing": '"none"', "power_over": '"slot"', "coherence_symbols": "20000", "pilots": '"perfect"'}
    added = [f"{key} = {value}" for key, value in former.items() if not any(line.startswith(key) for line in lines)]
    return "\n".join([*lines[:index], *added, *lines[index:]]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="names, joined by commas; default: all")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--old", default=OLD, help=f"the commit to compare with; default {OLD[:12]}")
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest relative difference; default 0: bits")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time; default 2")
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "airpfed-goldens"
    parser.add_argument("--cache", type=Path, default=home, help=f"keeps the old side's results; default {home}")
    words = parser.parse_args()
    if words.list:
        sys.exit(print("\n".join(CASES)))
    chosen, cache = [name.strip() for name in words.cases.split(",")], words.cache.resolve()
    if unknown := [name for name in chosen if name not in CASES]:
        sys.exit(f"goldens: no case {unknown[0]}; there are {', '.join(CASES)}")
    git = ["git", "-C", str(ROOT)]
    parsed = subprocess.run(
        [*git, "rev-parse", "--verify", "-q", f"{words.old}^{{commit}}"], capture_output=True, text=True
    )
    if parsed.returncode:
        sys.exit(f"goldens: commit {words.old} is not in this clone (a shallow one? git fetch --unshallow)")
    commit, table = parsed.stdout.strip(), ROOT / "src" / "airpfed" / "config" / "renames.toml"
    renames = tomllib.loads(table.read_text()) if table.is_file() else {}
    inputs(cache)
    with tempfile.TemporaryDirectory(prefix="goldens-") as folder:
        work = Path(folder)
        (work / "old").mkdir()
        archive = subprocess.run(
            [*git, "archive", commit, "src", "experiments"], capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", str(work / "old")], input=archive, check=True)
        shutil.copytree(work / "old" / "experiments", work / "upgraded")
        for file in sorted((work / "upgraded").glob("*.toml")):
            upgrade_file(file)
            file.write_text(with_old_defaults(file.read_text()))
        old = Side(work / "old", work / "old" / "experiments", 0)
        present = Side(ROOT, work / "upgraded", 1)

        def case(name: str) -> bool:
            """Play and compare one case, say how it went, and return whether it is equal."""
            before, seconds = old_results(CASES[name], old, commit, cache, work / f"{name}-old")
            after = work / name
            times = f"old {seconds}; present {play(present, CASES[name], after, cache)}"
            count, difference = 0, failure(before) and f"the old commit fails, {failure(before)}"
            difference = difference or failure(after)
            if not difference:
                count, difference = compare(before, after, renames.get("records", {}), words.tolerance)
            result = f"differs: {difference}" if difference else f"equal, {count} values"
            print(f"{name:12} {result} ({times})", flush=True)
            return not difference

        with ThreadPoolExecutor(words.jobs) as pool:
            equal = list(pool.map(case, chosen))
    print(f"goldens: {sum(equal)} of {len(equal)} cases equal to {commit[:12]}")
    sys.exit(0 if all(equal) else 1)


if __name__ == "__main__":
    main()
