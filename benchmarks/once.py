"""What needs a fresh process: `scale` plays rounds of many devices, `start` computes a first gradient; prints JSON.

    python benchmarks/once.py scale --base minilm --devices 1000 --tokens 16 --rank 1
    python benchmarks/once.py start quickstart

Used by benchmarks/speed.py. A process that runs out of the memory it was given (--memory-gb) ends with a MemoryError or
torch's message.
"""

import argparse
import json
import os
import resource
import time
from dataclasses import replace

if __name__ == "__main__":  # before torch is loaded, as the command line sets it
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from harness import peak_mb


def scale(words: argparse.Namespace) -> dict[str, object]:
    """Rounds of many devices on random tokens: the first warms up where there are more."""
    from fleets import random_tokens

    from airpfed.training.loop import play_round

    adapters = {"rank_shared": words.rank, "rank_personal": words.rank}
    _, made = random_tokens(
        words.base, words.devices, 1, words.tokens, {"adapters": adapters, "radio": {"antennas": words.antennas}}
    )
    built, state, rows = peak_mb(), made.initial, []
    for _ in range(words.rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        state, row = play_round(made, state)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "phases": row.seconds}
        rows.append(spent | {"pi": row.pi})
    return {"entries": made.clients.layout.size("global") + made.clients.layout.size("task"), "rounds": rows,
            "built_mb": built, "peak_mb": peak_mb()}  # fmt: skip


def start(words: argparse.Namespace) -> dict[str, object]:
    """From nothing to one device's gradient, as a run would begin."""
    import torch
    from fleets import from_file

    from airpfed.devices.clients import draw_batches
    from airpfed.devices.gradients import gradients
    from airpfed.training.state import vectors

    imported = time.time()
    _, made = from_file(words.file, words.set)
    built = time.time()
    clients = replace(made.clients, shards=made.clients.shards[:1], task_of=made.clients.task_of[:1])
    plan, _ = draw_batches(clients, torch.zeros(1, dtype=torch.long), made.local_training.batch_size, 1)
    _, loss = gradients(clients, vectors(made.initial), plan, 1.0, 1)
    assert loss.isfinite().all()
    return {"imported": imported, "built": built, "first_gradient": time.time(), "peak_mb": peak_mb()}


def main() -> None:
    from airpfed.config.experiment_files import settings_path

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("scale")
    one.set_defaults(work=scale)
    one.add_argument("--base", default="minilm")
    for name, default in {"devices": 100, "tokens": 16, "rank": 1, "antennas": 16, "rounds": 1}.items():
        one.add_argument(f"--{name}", type=int, default=default)
    two = parts.add_parser("start")
    two.set_defaults(work=start)
    two.add_argument("file", type=settings_path)
    two.add_argument("--set", action="append", default=[])
    for part in (one, two):
        part.add_argument("--memory-gb", type=float, default=0.0)
    words = parser.parse_args()
    if words.memory_gb:
        limit = int(words.memory_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(json.dumps(words.work(words)))


if __name__ == "__main__":
    main()
