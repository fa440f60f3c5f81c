"""The same gradients on other simulators, turn by turn in one process: a loop with PEFT, pfl, Flower, and ours.

    make bench-peers            # makes .venv-peers and runs this in it
    .venv-peers/bin/python benchmarks/peers/run.py --devices 20 --turns 3

Writes OUT/peers.json and the last table of docs/performance.md. The sums of gradients are compared first; an engine
that fails or differs is left out, and its row says why. CPU seconds count all processes of the engines.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

HOME = Path(__file__).parents[2]
PLACES = [str(Path(__file__).parent), str(HOME / "benchmarks")]
sys.path[:0] = PLACES
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "GOMP_SPINCOUNT": "20000",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}  # fmt: skip
ROWS = ((20, 8, 32, 9), (500, 1, 32, 3))
"""(devices, samples, tokens, turns): few devices with real work, many with little."""
ENGINES = ("loop", "pfl", "flower")
ALIKE = 1e-4
"""Sums that differ by more, relative, are not the same work."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--docs", type=Path, default=HOME / "docs/performance.md")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--devices", default="", help="rows of these numbers of devices only, with commas between")
    parser.add_argument("--turns", type=int, default=0, help="turns of every engine; 0: each row's own")
    parser.add_argument("--without", default="", help="engines to leave out, with commas between")
    parser.add_argument("--timeout-s", type=float, default=1800.0, help="seconds that a row may take")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.update({key: os.environ.get(key, value) for key, value in QUIET.items()})
    os.environ["PYTHONPATH"] = os.pathsep.join([*PLACES, *filter(None, [os.environ.get("PYTHONPATH")])])
    if asked.row:
        Path(asked.out).write_text(json.dumps(row(json.loads(asked.row))), encoding="utf-8")
        return 0
    from harness import keep
    from tables import regenerate

    wanted = {int(word) for word in asked.devices.split(",") if word}
    rows, load = [], os.getloadavg()[0]
    for devices, batch, tokens, turns in ROWS:
        if not wanted or devices in wanted:
            spec = {"base": asked.base, "devices": devices, "batch": batch, "tokens": tokens}
            without = [word for word in asked.without.split(",") if word]
            rows.append(apart(spec | {"turns": asked.turns or turns, "without": without}, asked.timeout_s))
            keep(asked.out, "peers", False, {"rows": rows, "load": load})
            regenerate(asked.docs, asked.out)
    return 0


def apart(spec: dict[str, Any], limit_s: float) -> dict[str, Any]:
    """A row in a process of its own, since an engine's actors stay; one that takes too long says so instead."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "row.json"
        command = [sys.executable, __file__, "--row", json.dumps(spec), "--out", str(kept)]
        with subprocess.Popen(command, start_new_session=True) as row_process:
            try:
                if row_process.wait(limit_s) != 0:
                    raise RuntimeError(
                        f"{spec['devices']} devices: the row's process ended with {row_process.returncode}"
                    )
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(row_process.pid, signal.SIGKILL)  # an engine's actors too
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                return {**spec, "variants": {}, "differences": {}, "notes": [f"Stopped after {limit_s:.0f} s"]}
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def tree_cpu() -> float:
    """CPU seconds of this process and of all below it."""
    import psutil

    total, here = 0.0, psutil.Process()
    for one in [here, *here.children(recursive=True)]:
        try:
            times = one.cpu_times()
            total += times.user + times.system
        except psutil.Error:
            continue
    return total


def row(spec: dict[str, Any]) -> dict[str, Any]:
    """All engines at one number of devices, Flower's simulation around the whole where it is in."""
    from work import loop, ours, world

    warnings.simplefilter("ignore", FutureWarning)
    place = (spec["base"], spec["devices"], spec["batch"], spec["tokens"])
    here, notes = world(*place), []
    engines = {"ours": lambda turn: ours(here, turn), "loop": lambda turn: loop(here, turn)}
    if "pfl" not in spec["without"]:
        try:
            from pfl_engine import engine

            engines["pfl"] = engine(here)
        except Exception as error:
            notes.append(f"pfl: left out, {type(error).__name__}: {error}")
    begin = time.time()

    def together(flower: Any) -> dict[str, Any]:
        return compared(here, {**engines, **({"flower": flower} if flower else {})}, spec["turns"], begin)

    if "flower" in spec["without"]:
        found = together(None)
    else:
        try:
            from flower_engine import within

            found = within(place, here, together)
        except Exception as error:
            notes.append(f"Flower: left out, {type(error).__name__}: {error}")
            found = together(None)
    return {**spec, **found, "notes": notes + found["notes"]}


def compared(here: Any, engines: dict[str, Any], turns: int, begin: float) -> dict[str, Any]:
    """Agreement with the loop's sum, then turns of all that agree."""
    import torch
    from harness import interleaved, summary
    from work import difference

    wanted = engines["ours"](0)
    differences = {name: difference(here, play(0), wanted) for name, play in engines.items() if name != "ours"}
    notes = [
        f"{name}: left out, its sum differs by {value:.1e}" for name, value in differences.items() if value > ALIKE
    ]
    if "flower" in engines:
        notes.append(
            f"Flower: {time.time() - begin:.1f} s until its first round was back, here with the first of all others"
        )
    alike = {name: play for name, play in engines.items() if differences.get(name, 0.0) <= ALIKE}
    found = interleaved(alike, turns, cpu=tree_cpu)
    return {
        "threads": torch.get_num_threads(),
        "differences": differences,
        "notes": notes,
        "variants": summary(found, against="ours"),
    }


if __name__ == "__main__":
    sys.exit(main())
