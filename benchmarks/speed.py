"""Speed and scale, measured by variants that take turns in one process: JSON, and the tables of docs/performance.md.

    python benchmarks/speed.py                                  # all cases: 25 minutes on two cores, and the real data
    python benchmarks/speed.py --cases start,overhead --pairs 5
    python benchmarks/speed.py --quick                          # small; leaves the page alone

Every case writes OUT/CASE.json. A case that fails is written down as failed, and the exit code is 1. Run it on an idle
machine; ratios of a pair stand some noise, seconds do not.
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # before torch is loaded, as the command line sets it: waiting threads sleep soon
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from cases import Options, compiled, full_length, overhead, real_data
from children import scale, start
from harness import keep
from tables import regenerate

from airpfed.config.experiment_files import settings_path

HOME = Path(__file__).parents[1]
CASES = {
    "start": start, "overhead": overhead, "full_length": full_length, "real_data": real_data, "compiled": compiled,
    "scale": scale,
}  # fmt: skip


def words(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few turns, few devices, few tokens")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="where CASE.json go")
    parser.add_argument("--docs", type=Path, help="page whose tables are made anew; default docs/performance.md, or "
                        "none with --quick")  # fmt: skip
    parser.add_argument("--cases", default=",".join(CASES), help="which, with commas between")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of every comparison; 0: each case's own")
    parser.add_argument("--base", default="", help="base model instead of each case's own")
    parser.add_argument("--file", type=settings_path, default="quickstart", help="experiment of real data")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as many as torch chooses")
    parser.add_argument("--max-devices", type=int, default=10_000, help="scale: no more devices than these")
    parser.add_argument("--memory-gb", type=float, default=12.0, help="scale: memory a process may take; 0: any")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="start, scale: seconds a process may take")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    asked = words(given)
    if asked.threads:
        torch.set_num_threads(asked.threads)
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    options = Options(
        asked.quick, asked.base, asked.file, asked.pairs, asked.max_devices, asked.memory_gb, asked.timeout_s
    )
    failed = []
    for name in asked.cases.split(","):
        if name not in CASES:
            sys.exit(f'--cases: no case "{name}"; there are {", ".join(CASES)}')
        print(name, flush=True)
        load = os.getloadavg()[0]
        try:
            found = CASES[name](options)
        except Exception as error:  # one case's failure is a result too, and the others go on
            found = {"failed": f"{type(error).__name__}: {error}"}
        if "failed" in found:
            failed.append(name)
            print(f"  {found['failed']}", flush=True)
        keep(asked.out, name, asked.quick, {**found, "load": load})
    page = asked.docs or (None if asked.quick else HOME / "docs/performance.md")
    if page is not None:
        regenerate(page, asked.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
