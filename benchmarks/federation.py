"""Seconds a round and the server's memory of a federation on this machine: MiniLM, 3 devices over TLS.

    python benchmarks/federation.py --rounds 40

Prints the median and the spread of the rounds' seconds, CPU seconds a round of all processes together, and the resident
memory of the server's processes (SuperLink, the run's own process) as rounds go by. Run it on an idle machine.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

SETTINGS = """
[model]
base = "minilm"

[adapters]
target_modules = ["query", "value"]

[[tasks]]
name = "trec"
devices = 1
dev_samples = 0
test_samples = 40

[[tasks]]
name = "movies"
devices = 2
dev_samples = 0
test_samples = 40

[devices]
chunk = 1

[server]
rounds = {rounds}

[radio]
scheme = "error_free"

[run]
threads = 1
"""

SERVER = {"SuperLink": "airpfed.federation.superlink", "run": "flwr-serverapp"}
"""Processes of the server by a word of their command line."""


def processes() -> dict[int, list[str]]:
    """Command lines of all processes that can be seen."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(entry.parent.name)] = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
    return found


def resident(word: str, folder: Path) -> float:
    """MB of the process whose command line has this word and a path in `folder`; 0 if there is none."""
    for pid, words in processes().items():
        if any(word in one for one in words) and any(str(folder) in one for one in words):
            try:
                return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            except OSError:
                return 0.0
    return 0.0


def started(home: Path, environment: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    with (home.parent / f"{home.name}.log").open("ab") as log:
        return subprocess.Popen([home / "start.sh", *words], stdout=log, stderr=log, env=environment)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="airpfed-bench-") as name:
        folder = Path(name)
        site, out, file = folder / "site", folder / "out", folder / "bench.toml"
        file.write_text(SETTINGS.format(rounds=rounds))
        words = ["federate", "init", site, "--settings", file, "--deal", "--address", f"localhost:{port}"]
        subprocess.run(
            [Path(sys.executable).parent / "airpfed", *words], check=True, env=environment, stdout=sys.stderr
        )
        before = os.times()
        running = [started(site / f"device-{k}", environment) for k in range(3)]
        server = started(site / "server", environment, "--out", str(out))
        try:
            memory = watched(server, out, site, rounds)
        finally:
            for process in running:
                process.terminate()
            for process in [*running, server]:
                process.wait()
        after = os.times()
        rows = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    report(rows, memory, after.children_user + after.children_system - before.children_user - before.children_system)


def watched(server: subprocess.Popen[bytes], out: Path, site: Path, rounds: int) -> dict[int, dict[str, float]]:
    """Memory of the server's processes after some rounds, until the server has ended."""
    memory: dict[int, dict[str, float]] = {}
    wanted = {round(rounds * share) for share in (0.1, 0.25, 0.5, 0.75, 0.95)}
    while server.poll() is None:
        done = len((out / "records.jsonl").read_text().splitlines()) if (out / "records.jsonl").exists() else 0
        if done in wanted and done not in memory:
            memory[done] = {name: resident(word, site) for name, word in SERVER.items()}
        time.sleep(0.3)
    return memory


def report(rows: list[dict], memory: dict[int, dict[str, float]], cpu: float) -> None:
    seconds = [sum(row["seconds"].values()) for row in rows]
    later = sorted(seconds[1:])
    print(f"rounds {len(rows)}, first {seconds[0]:.1f} s, then median {median(later):.2f} s")
    print(f"least {later[0]:.2f} s, most {later[-1]:.2f} s; absent: {[row['absent'] for row in rows if row['absent']]}")
    print(f"CPU of all processes, start and end included: {cpu / len(rows):.2f} s a round")
    ledger = rows[-1]["ledger"]
    print(f"bytes a round: payload computed {ledger['payload_bytes']}, arrived {ledger['uplink_bytes']}, "
          f"sent {ledger['downlink_bytes']}")  # fmt: skip
    for number, sizes in sorted(memory.items()):
        print(f"after round {number:4d}: " + ", ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
