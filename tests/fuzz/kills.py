"""Commands killed at every event of the disk, or on a disk that is full from there on, and run again.

    python -m fuzz.kills [COUNT]            # so many events of each program, evenly (default: all of them)
    python -m fuzz.kills --processes COUNT  # whole processes, kill -9 at random times

An event is an open for writing, fsync, rename, remove, mkdir or rmdir below the folder or the cache. Each is met in a
forked child of this process, which has loaded everything: `os._exit` before it; right after a file was opened; after a
part of what was to be pushed to the disk; Ctrl-C twice before it; a disk that is full from there on. What the same
command with `--resume` (or once more) then leaves is what an undisturbed one leaves, bit for bit but for wall-clock
times, and no other file.
"""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from support.commands import Done, command, contents, timeless
from support.settings import save_settings

How = Literal["count", "before", "opened", "torn", "full", "interrupt"]
WRITING = os.O_WRONLY | os.O_RDWR
KILLED = 137


class Watch:
    """Counts events below some folders; ends the process at the n-th, from 1, or lets it and all later ones fail."""

    def __init__(self, folders: Sequence[Path], how: How, at: int) -> None:
        """In force from now on, to the end of the process."""
        self.folders, self.how, self.at = [str(folder) + os.sep for folder in folders], how, at
        self.events: list[str] = []
        self.busy = False
        real = os.fsync

        def fsync(descriptor: int) -> None:
            self.event("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink()), descriptor)
            real(descriptor)

        os.fsync = fsync
        sys.addaudithook(self.audit)

    def audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Python tells of a call that it is about to make."""
        if self.busy or name not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"):
            return
        self.busy = True
        try:
            path = arguments[0]
            if not isinstance(path, (str, bytes, os.PathLike)):
                return
            if name == "open" and not (arguments[2] & WRITING):
                return
            self.event(name.removeprefix("os."), str(Path(os.fsdecode(path)).absolute()), arguments[-1])
        finally:
            self.busy = False

    def event(self, name: str, path: str, detail: Any) -> None:
        """One more event."""
        if not any((path + os.sep).startswith(folder) for folder in self.folders):
            return
        self.events.append(f"{name} {path}")
        number = len(self.events)
        if self.how == "full" and number >= self.at and name in ("open", "fsync", "mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if self.how == "count" or number != self.at or self.how == "full":
            return
        if self.how == "interrupt":  # Ctrl-C twice: the first asks the run to stop, the second ends it here
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return
        if self.how == "opened" and name == "open":
            os.open(path, detail | os.O_CREAT, 0o666)
        if self.how == "torn" and name == "fsync":
            os.ftruncate(detail, max(0, os.fstat(detail).st_size - 25))
        os._exit(KILLED)


def forked(words: Sequence[str | Path], watched: Sequence[Path], how: How, at: int) -> tuple[Done, list[str]]:
    """How `airpfed WORDS` ended in a child of this process, and its events."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            watch = Watch(watched, how, at)
            done = command(*words)
            watch.busy = True
            told = json.dumps([vars(done), watch.events]).encode()
            while told:
                told = told[os.write(write, told) :]
            code = done.code
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if told:
        found, events = json.loads(told)
        return Done(**found), events
    return Done(os.waitstatus_to_exitcode(status), "", ""), []


@dataclass(frozen=True)
class Program:
    """A command and what is typed after it was killed. start: the folder it begins from, or none."""

    name: str
    words: tuple[str | Path, ...]
    again: tuple[str | Path, ...]
    start: Path | None = None


class Killing:
    """A program in a home of its own: what it leaves undisturbed, and after a kill."""

    def __init__(self, program: Program, home: Path) -> None:
        """Run it undisturbed."""
        self.program, self.out, self.cache, self.whole_home = program, home / "out", home / "cache", home
        os.environ["AIRPFED_CACHE"] = str(self.cache)
        self.reset()
        done, self.events = self.played(program.words, "count", 0)
        assert done.code == 0 and not done.traceback, (done.err, done.traceback)
        self.whole = self.left()

    def reset(self) -> None:
        for folder in (self.out, self.cache):
            shutil.rmtree(folder, ignore_errors=True)
        self.cache.mkdir(parents=True)
        if self.program.start:
            shutil.copytree(self.program.start, self.out)

    def played(self, words: Sequence[str | Path], how: How, at: int) -> tuple[Done, list[str]]:
        return forked(words, (self.out, self.cache), how, at)

    def left(self) -> dict[str, bytes]:
        return {f"{name}/{key}": data for name in ("out", "cache")
                for key, data in contents(self.whole_home / name).items()}  # fmt: skip

    def hows(self, at: int) -> list[How]:
        """The ways in which event `at` (from 1) can go wrong."""
        name = self.events[at - 1].split()[0]
        found: list[How] = ["before"]
        found += {"open": ["opened"], "fsync": ["torn"], "rename": ["interrupt"]}.get(name, [])
        return [*found, "full"] if name in ("open", "fsync", "mkdir") else found

    def check(self, how: How, at: int) -> None:
        """AssertionError unless the program ends as undisturbed after this."""
        self.reset()
        done, _ = self.played(self.program.words, how, at)
        event = f"{how} event {at} ({self.events[at - 1]})"
        why = f"{self.program.name} {event}: exit {done.code}: {done.err[-500:]}{done.traceback[-1500:]}"
        if how == "full":
            lines = [line for line in done.err.splitlines() if line.startswith("airpfed: ")]
            assert not done.traceback and "Traceback" not in done.err, why
            full = done.code == 2 and len(lines) == 1 and "No space left" in lines[0]
            assert full or done.code == 0, why  # a cache that cannot be written only costs time
        elif how == "interrupt":
            assert done.code == 130 and not done.traceback, why
        else:
            assert done.code == KILLED, why
        again = self.program.again if self.out.exists() else self.program.words
        resumed, _ = self.played(again, "count", 0)
        assert resumed.code == 0 and not resumed.traceback, f"{why}: again: {resumed.err[-500:]}{resumed.traceback}"
        same(self.whole, self.left(), why)


STATS = "cache/hashes/"
"""What the cache knows of files by inode and time of change, which are another file's each time."""


def same(whole: dict[str, bytes], left: dict[str, bytes], why: str) -> None:
    """AssertionError unless the same files hold the same, but for wall-clock times and the command."""
    left, whole = ({n: data for n, data in one.items() if not n.startswith(STATS)} for one in (left, whole))
    assert left.keys() == whole.keys(), f"{why}: {sorted(left.keys() ^ whole.keys())}"
    for name, data in whole.items():
        if name.endswith("environment.json"):
            ours, theirs = ({**json.loads(one), "command": "", "commit": ""} for one in (left[name], data))
            assert ours == theirs, f"{why}: {name}"
        elif name.endswith((".json", ".jsonl")):
            assert timeless(left[name]) == timeless(data), f"{why}: {name}"
        elif name.endswith("report.html"):
            assert len(left[name]) > 1_000_000, f"{why}: {name}"
        elif not name.endswith(".lock"):
            assert left[name] == data, f"{why}: {name}"


def programs(home: Path, file: Path) -> Iterator[Program]:
    """What is killed: a run with its export and report, both again by their commands, a sweep that copies a cell."""
    out = home / "killed" / "out"
    few = ("--set", "server.rounds=2")
    yield Program("run", ("run", file, "--out", out, *few), ("run", file, "--out", out, *few, "--resume"))
    whole = home / "whole"
    if not whole.exists():
        done, _ = forked(("run", file, "--out", whole, *few), (), "count", 0)
        assert done.code == 0, (done.err, done.traceback)
    again: tuple[str | Path, ...] = ("export", out, "--merged")
    yield Program("export", again, again, whole)
    yield Program("report", ("report", out), ("report", out), whole)
    words: tuple[str | Path, ...] = ("sweep", file, "--workers", "1", "--set", "server.rounds=1", "--out")
    if not (home / "sweep").exists():
        done, _ = forked((*words, home / "sweep"), (), "count", 0)
        assert done.code == 0, (done.err, done.traceback)
    both = (*words, out, "--seeds", "2", "--reuse", home / "sweep")
    yield Program("sweep", both, both)


def spread(total: int, count: int | None) -> list[int]:
    """So many of 1, ..., total, evenly; all of them by default."""
    if count is None or count >= total:
        return list(range(1, total + 1))
    return sorted({1 + round(i * (total - 1) / (count - 1)) for i in range(count)})


def main(count: int | None, say: Callable[[str], None] = print) -> int:
    """Kill every program at so many events; the number of failures. say: what takes each line."""
    preload()
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="airpfed-kills-") as place:
        home = Path(place)
        os.environ["AIRPFED_CACHE"] = str(home / "cache")
        (home / "settings").mkdir()
        file = save_settings(home / "settings", check_round=False)
        for program in programs(home, file):
            killing = Killing(program, home / "killed")
            chosen = spread(len(killing.events), count)
            done: Counter[str] = Counter()
            for at in chosen:
                hows = killing.hows(at)
                for how in hows if count is None else [hows[at % len(hows)]]:
                    done[how] += 1
                    try:
                        killing.check(how, at)
                    except AssertionError as error:
                        failed.append(str(error))
                        say(str(error))
            told = ", ".join(f"{n} {how}" for how, n in sorted(done.items()))
            say(f"{program.name}: {len(chosen)} of {len(killing.events)} events ({told})")
    say(f"{len(failed)} failed")
    return len(failed)


def preload() -> None:
    """Load what a run loads, so that a child begins at once; figures of sweeps are not drawn."""
    import peft.peft_model
    import torch
    import transformers.models.llama.modeling_llama

    import airpfed.experiment.run
    import airpfed.report.page
    import airpfed.sweeps.job
    from airpfed.sweeps import figures

    torch.set_num_threads(1)
    figures.FIGURES = ()
    assert peft and transformers and airpfed


START = "from airpfed.cli import main; main()"


def killed_processes(count: int, file: Path, home: Path, seed: int = 0) -> int:
    """Kill -9 a whole `airpfed run` at random times until it ends, then hold it against an undisturbed one.

    Returns how often it was killed: `count` times at least, in as many runs as that takes. What is not killed runs in
    forked children of this process.
    """
    rng, kills, runs = random.Random(seed), 0, 0
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "AIRPFED_CACHE": str(home / "cache")}
    words = ["run", str(file), "--out"]

    def started(out: Path) -> subprocess.Popen[bytes]:
        more = ["--resume"] if out.is_dir() else []
        command = [sys.executable, "-c", START, *words, str(out), *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def ended(process: subprocess.Popen[bytes]) -> None:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err.decode()[-2000:]

    def undisturbed(out: Path, *more: str) -> None:
        done, _ = forked([*words, out, *more], (), "count", 0)
        assert done.code == 0, done.err[-2000:] + done.traceback

    undisturbed(home / "whole")
    whole = contents(home / "whole")
    while kills < count:
        out, runs = home / f"run-{runs}", runs + 1
        for _ in range(count - kills):
            process = started(out)
            while process.poll() is None and not out.is_dir():  # imports touch nothing: wait for the run itself
                time.sleep(0.02)
            wait = rng.uniform(0.0, 4.0)
            begun = time.monotonic()
            while process.poll() is None and time.monotonic() - begun < wait:
                time.sleep(0.01)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                continue
            ended(process)
            break
        undisturbed(out, *(["--resume"] if out.is_dir() else []))
        same(whole, contents(out), f"{out} after {kills} kills")
    return kills


def processes(count: int) -> int:
    """`killed_processes` in a home of its own; 0 where all was well."""
    preload()
    with tempfile.TemporaryDirectory(prefix="airpfed-kills-") as place:
        home = Path(place)
        (home / "settings").mkdir()
        file = save_settings(home / "settings", check_round=False)
        print(f"{killed_processes(count, file, home)} processes killed, each run resumed to the same bytes")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--processes"]:
        sys.exit(processes(int(sys.argv[2])))
    sys.exit(bool(main(int(sys.argv[1]) if len(sys.argv) > 1 else None)))
