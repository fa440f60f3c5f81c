"""Every file of a run's folder, damaged in every way, under every command that reads it.

    python -m fuzz.folders [COUNT] [SEED]     # so many cases (default: all), counts at the end

Nothing ends in a traceback; what is refused is one line that names the folder and leaves everything as it was; what is
accepted gives what the undamaged folder gives, and a damaged file that can be made again is made again.
"""

import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest import mock

from airpfed.sweeps import figures
from support.commands import Done, command, contents, good, stopping_after, timeless
from support.settings import save_settings

Outcome = Literal["accepted", "refused", "made again"]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def garbage(data: bytes) -> bytes:
    return random.Random(len(data)).randbytes(max(40, min(len(data), 4000)))


def foreign(data: bytes) -> bytes:
    """Letters of an 8-bit code in the middle of a text."""
    middle = len(data) // 2
    return data[:middle] + b"\xe9\xff" + data[middle:]


def number(text: bytes) -> Callable[[bytes], bytes]:
    """The first number behind a colon or equals sign becomes this text."""
    import re

    return lambda data: re.sub(rb"([:=] ?)-?[0-9][0-9.e+-]*", rb"\g<1>" + text, data, count=1)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "half": half,
    "garbage": garbage,
    "not UTF-8": foreign,
    "a list": lambda data: b"[1, 2]\n",
    "a table": lambda data: b'{"a": {"b": 1}}\n',
    "text": lambda data: b'"text"\n',
    "1e999": number(b"1e999"),
    "NaN": number(b"NaN"),
    "a long number": number(b"9" * 5000),
    "deep": lambda data: b"[" * 100_000 + b"]" * 100_000,
    "a surrogate": lambda data: b'{"command": "\\ud800", "a": "\xed\xa0\x80"}',
    "twice": lambda data: data + data,
    "a folder": lambda data: data,
    "a loop": lambda data: data,
}
"""What happens to a file's content; None: it is gone. The last two put something else in its place."""

RUN = (
    "experiment.toml", "environment.json", "records.jsonl", "summary.json", "layout.json", "theory.json", "report.html",
    "checkpoint/latest.json", "checkpoint/base.json", "checkpoint/round-*.safetensors", "checkpoint/run.json",
    "adapters/colours/adapter_config.json", "adapters/colours/adapter_model.safetensors", "adapters/moods",
    "adapters", "checkpoint",
)  # fmt: skip
STOPPED = tuple(name for name in RUN if not name.startswith(("adapters", "checkpoint/run")))
CELL = ("experiment.toml", "environment.json", "records.jsonl", "summary.json", "layout.json", "checkpoint/latest.json",
        "checkpoint/base.json", "checkpoint/round-*.safetensors", "checkpoint", ".lock")  # fmt: skip
SWEEP = (
    *(f"cells/0/{name}" for name in CELL),
    "cells/0", "base/0.json", "base", "cells.csv", "rounds.csv", "means.csv", "sweep.json",
)  # fmt: skip

COMMANDS = {
    "finished": ("run --resume", "run", "export", "report", "compare", "bound", "bound --plan"),
    "stopped": ("run --resume", "run", "report", "export"),
    "sweep": ("sweep", "compare", "sweep --reuse", "report"),
    "plan": ("bound --plan",),
}


@dataclass(frozen=True)
class Case:
    """kind: which folder. file: of it; `only` has this one left and all others gone. damage: one of DAMAGES."""

    kind: str
    file: str
    damage: str
    command: str


def cases() -> list[Case]:
    """All of them, in a fixed order."""
    files = {"finished": RUN, "stopped": STOPPED, "sweep": SWEEP, "plan": ("plan.json",)}
    found = [
        Case(kind, file, damage, command)
        for kind, names in files.items()
        for file in names
        for damage in DAMAGES
        for command in COMMANDS[kind]
    ]
    found += [
        Case("finished", file, "all others missing", command)
        for file in RUN
        if file != "checkpoint/run.json"
        for command in ("run --resume", "run", "export", "report", "compare", "bound")
    ]
    return found


class Folders:
    """Sound folders to copy, and what every command says of them."""

    def __init__(self, home: Path) -> None:
        """Make them below `home`."""
        self.home = home
        (home / "settings").mkdir(parents=True)
        self.file = save_settings(home / "settings", check_round=True)
        self.plan = home / "plan.json"
        good(command("run", self.file, "--out", home / "finished"))
        with stopping_after(2):
            assert command("run", self.file, "--out", home / "stopped").code == 130
        with mock.patch.object(figures, "FIGURES", ()):
            good(command(*self.sweep_words(home / "sweep")))
        good(
            command(
                "plan", self.file, "--draws", "2", "--out", self.plan, "--grid", "radio.snr_db=10", "--split", "1:1"
            )
        )
        for kind in ("finished", "stopped"):
            (home / kind / "notes.txt").write_text("the user's own")
            (home / kind / "checkpoint" / "notes.txt").write_text("the user's own")
        self.said: dict[tuple[str, str], str] = {}
        for kind in ("finished", "stopped", "sweep"):
            for words in COMMANDS[kind]:
                if words in ("compare", "bound", "bound --plan"):
                    copy = Path(shutil.copytree(home / kind, home / "copy"))
                    self.said[kind, words] = good(self.ran(words, copy, self.plan)).out
                    shutil.rmtree(copy)
        self.whole = contents(home / "finished")
        copy = Path(shutil.copytree(home / "stopped", home / "copy"))
        good(command("export", copy))
        self.exported = {"finished": self.whole, "stopped": contents(copy)}
        shutil.rmtree(copy)

    def sweep_words(self, out: Path) -> list[str | Path]:
        return ["sweep", self.file, "--set", "theory.meter_every=0", "--set", "server.rounds=2", "--seeds", "2",
                "--workers", "1", "--out", out]  # fmt: skip

    def ran(self, words: str, folder: Path, plan: Path) -> Done:
        """One of COMMANDS on a folder; no pictures are drawn."""
        with mock.patch.object(figures, "FIGURES", ()):
            return self.ran_so(words, folder, plan)

    def ran_so(self, words: str, folder: Path, plan: Path) -> Done:
        match words:
            case "run":
                return command("run", self.file, "--out", folder)
            case "run --resume":
                return command("run", self.file, "--out", folder, "--resume")
            case "export":
                return command("export", folder)
            case "report":
                return command("report", cell(folder) or folder)
            case "compare":
                return command("compare", folder, "--json")
            case "bound":
                return command("bound", folder)
            case "bound --plan":
                return command("bound", folder, "--plan", plan)
            case "sweep":
                return command(*self.sweep_words(folder))
            case "sweep --reuse":
                return command(*self.sweep_words(folder.with_name("reusing")), "--reuse", folder)
        raise AssertionError(words)


def cell(folder: Path) -> Path | None:
    """The first cell of a sweep."""
    found = sorted(path for path in (folder / "cells").glob("[!.]*") if path.is_dir())
    return found[0] if found else None


def place(folder: Path, file: str) -> Path | None:
    """The file that a case names: `0` is the first name in its folder, `*` the first that fits."""
    path = folder
    for part in file.split("/"):
        names = sorted(path.glob("[!.]*" if part == "0" else part.replace("0.json", "*.json")))
        if not names:
            return None
        path = names[0]
    return path


def damaged(path: Path, damage: str) -> None:
    """Damage a file or folder."""
    data = path.read_bytes() if path.is_file() else b""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    changed = DAMAGES[damage](data)
    if damage == "a folder":
        path.mkdir()
        (path / "notes.txt").write_text("the user's own")
    elif damage == "a loop":
        path.symlink_to(path)
    elif changed is not None:
        path.write_bytes(changed)


def only(folder: Path, left: Path) -> None:
    """Remove everything of a run but one file or folder; the user's own stays."""
    for below, _, names in os.walk(folder):
        for name in names:
            path = Path(below) / name
            if not path.is_relative_to(left) and name != "notes.txt":
                path.unlink()
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()


WRITTEN = {"environment.json", "layout.json", "summary.json", "report.html"}
"""What a run that goes on writes anew in any case."""
REMADE = WRITTEN | {"theory.json", "checkpoint/base.json"}
"""What a run that goes on makes again where it is damaged."""
TABLES = {"cells.csv", "rounds.csv", "means.csv"}


def check(case: Case, folders: Folders, work: Path) -> Outcome:
    """Play a case in a copy below `work`; AssertionError where something ends in a traceback, is lost, or is wrong."""
    shutil.rmtree(work, ignore_errors=True)
    kind = "finished" if case.kind == "plan" else case.kind
    folder = Path(shutil.copytree(folders.home / kind, work / "copy", symlinks=True))
    plan = Path(shutil.copy(folders.plan, work / "plan.json"))
    target = plan if case.kind == "plan" else place(folder, case.file) or folder / case.file
    if case.damage == "all others missing":
        only(folder, target)
    else:
        damaged(target, case.damage)
    before = contents(work)
    done = folders.ran(case.command, folder, plan)
    after = contents(work)
    why = f"{case}: {done.code} {done.err[-600:]} {done.traceback[-1200:]}"
    assert not done.traceback and "Traceback" not in done.err, why
    assert done.code in (0, 2), why
    assert not [name for name in after if Path(name).name.startswith(".") and not name.endswith(".lock")], why
    name = str(target.relative_to(work))
    for own in (one for one in before if one.endswith("notes.txt")):
        assert after.get(own) == before[own], f"{why}: {own} is lost"
    if done.code == 2:
        lines = [line for line in done.err.splitlines() if line.startswith("airpfed: ")]
        assert len(lines) == 1 and str(work) in lines[0], why
        remade = case.file in REMADE and case.damage not in ("a folder", "a loop", "all others missing")
        assert case.command != "run --resume" or not remade, f"{why}: could have been made again"
        assert case.command.startswith("sweep") or done.err.count("\n") == 1, why
        assert lines[0].isprintable(), why
        changed = {one for one in before if after.get(one) != before[one]}
        allowed = {f"copy/{one}" for one in WRITTEN} if case.command == "run --resume" else set()
        if case.command.startswith("sweep"):
            allowed = {one for one in before if "/cells/" in one and Path(one).name in WRITTEN}
            allowed |= {f"copy/{one}" for one in (*TABLES, "sweep.json")}
            assert len(allowed & changed) == 0 or "of the cells failed" in lines[0], why
        assert changed <= allowed, f"{why}: changed {changed - allowed}"
        return "refused"
    assert case.command != "run", f"{why}: a run was begun anew over another"
    sound(case, folders, folder, before, after, done, why)
    return "made again" if name in after and after[name] != before.get(name) else "accepted"


def sound(
    case: Case, folders: Folders, folder: Path, before: dict[str, bytes], after: dict[str, bytes], done: Done, why: str
) -> None:
    """AssertionError unless an accepted case left what the undamaged folder leaves."""
    if (case.kind, case.command) in folders.said:
        missing = case.file == "cells/0" or "left out" in done.err
        assert missing or done.out == folders.said[case.kind, case.command], f"{why}: another table"
    own = {name.removeprefix("copy/"): data for name, data in after.items()}
    match case.command:
        case "run --resume":
            kept = before.get("copy/records.jsonl", b"")
            assert case.file == "records.jsonl" or own["records.jsonl"].startswith(kept), f"{why}: rounds played again"
            for name, data in folders.whole.items():
                if name.endswith(("records.jsonl", "summary.json", "base.json", "theory.json", "layout.json")):
                    assert timeless(own[name]) == timeless(data), f"{why}: {name} differs"
                elif name.startswith(("adapters/", "checkpoint/round")) or name == "experiment.toml":
                    assert own[name] == data, f"{why}: {name} differs"
                else:
                    assert name in own, f"{why}: {name} is not there"
        case "export":
            for name, data in folders.exported[case.kind].items():
                if name.startswith("adapters/"):
                    assert own[name] == data, f"{why}: {name} differs"
        case "sweep" | "sweep --reuse":
            home = "copy" if case.command == "sweep" else "reusing"
            for name in TABLES:
                assert after.get(f"{home}/{name}") == (folders.home / "sweep" / name).read_bytes(), f"{why}: {name}"
        case "report":
            written = next(data for name, data in after.items() if name.endswith("report.html"))
            assert len(written) > 1_000_000, why
    if case.command in ("compare", "bound", "bound --plan"):
        assert after == before, why


def main(count: int | None, seed: int) -> int:
    """Play cases and print how they ended; the number of those that failed."""
    every = cases()
    chosen = every if count is None else random.Random(seed).sample(every, min(count, len(every)))
    ended: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="airpfed-fuzz-") as home:
        os.environ["AIRPFED_CACHE"] = str(Path(home) / "cache")
        folders = Folders(Path(home) / "sound")
        for case in chosen:
            try:
                ended[check(case, folders, Path(home) / "work")] += 1
            except AssertionError as error:
                ended["failed"] += 1
                print(error, flush=True)
    print(
        f"{len(chosen)} of {len(every)} damaged folders: " + ", ".join(f"{n} {how}" for how, n in sorted(ended.items()))
    )
    return ended["failed"]


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    sys.exit(bool(main(numbers[0] if numbers else None, numbers[1] if len(numbers) > 1 else 0)))
