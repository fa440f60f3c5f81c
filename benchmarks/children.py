"""What is measured from outside, in processes of their own: start-up, and rounds of very many devices."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from cases import Options
from harness import quartiles

ONCE = Path(__file__).parent / "once.py"
SCALE = (
    ("minilm", 100, 16, 1, 12),
    ("minilm", 1_000, 16, 1, 3),
    ("minilm", 10_000, 16, 1, 1),
    ("smollm2-135m", 1_000, 16, 4, 1),
)
"""(base model, devices, tokens of the one sample of each, R_s = R_p, rounds; of several the first does not count)."""
QUICK_SCALE = (("minilm", 20, 16, 1, 2), ("minilm", 60, 16, 1, 2))


def child(words: list[str], timeout_s: float) -> dict[str, Any]:
    """What a process printed as JSON, with its wall and CPU seconds; `failed` says why there is none."""
    begin, before = time.time(), os.times()
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {timeout_s:g} s"}
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    facts: dict[str, Any] = {"begin": begin, "wall": time.time() - begin, "cpu": cpu, "output": done.stdout}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return facts | {"failed": f"exit {done.returncode}: {last[:300]}"}
    return facts


def answer(words: list[str], options: Options) -> dict[str, Any]:
    """The JSON that once.py printed, with the process's own figures."""
    limit = ["--memory-gb", str(options.memory_gb)] if options.memory_gb else []
    facts = child([sys.executable, str(ONCE), *words, *limit], options.timeout_s)
    output = facts.pop("output", "")
    return facts if "failed" in facts else facts | json.loads(output.splitlines()[-1])


def start(options: Options) -> dict[str, Any]:
    """Seconds from the start of a process to its first gradient, and of the command's help; caches warm."""
    turns, warm_up = (1, 0) if options.quick else (options.turns(5), 1)
    first = [answer(["start", str(options.file)], options) for _ in range(turns + warm_up)][warm_up:]
    command = Path(sys.executable).parent / "airpfed"
    words = [str(command)] if command.is_file() else [sys.executable, "-m", "airpfed.cli"]
    helps = [child([*words, "--help"], options.timeout_s) for _ in range(turns + warm_up)][warm_up:]
    wrong = [one["failed"] for one in [*first, *helps] if "failed" in one]
    if wrong:
        return {"failed": wrong[0]}
    seconds = {
        "imported": quartiles([one["imported"] - one["begin"] for one in first]),
        "objects built": quartiles([one["built"] - one["begin"] for one in first]),
        "first gradient": quartiles([one["first_gradient"] - one["begin"] for one in first]),
        "airpfed --help": quartiles([one["wall"] for one in helps]),
    }
    cpu = {"first gradient": quartiles([one["cpu"] for one in first])}
    cpu["airpfed --help"] = quartiles([one["cpu"] for one in helps])
    goals = {"first gradient": 6.0, "airpfed --help": 0.5}
    return {"file": options.file.name, "turns": turns, "wall": seconds, "cpu": cpu, "goals": goals}


def scale(options: Options) -> dict[str, Any]:
    """A round of ever more devices, each figure from a process of its own; one that fails says why."""
    rows = []
    for base, devices, tokens, rank, rounds in QUICK_SCALE if options.quick else SCALE:
        if devices > options.max_devices:
            continue
        words = ["scale", "--base", options.base or base]
        for name, value in {"devices": devices, "tokens": tokens, "rank": rank, "rounds": rounds}.items():
            words += [f"--{name}", str(value)]
        found = answer(words, options)
        if "failed" not in found:
            counted = found["rounds"][1:] or found["rounds"]
            found |= {f"{c}_ms_a_device": 1e3 * median(r[c] for r in counted) / devices for c in ("wall", "cpu")}
        rows.append({"base": options.base or base, "devices": devices, "tokens": tokens, "rank": rank} | found)
        print(f"  {base}, {devices} devices: {found.get('failed') or found['wall_ms_a_device']}", flush=True)
    return {"rows": rows}
