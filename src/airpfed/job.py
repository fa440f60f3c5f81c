"""A run from its settings file to its report: what the command line does, step by step."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from airpfed import build, outputs, reading, record
from airpfed.errors import UserError
from airpfed.report import page
from airpfed.rounds import checkpoint
from airpfed.rounds.run import Experiment, play
from airpfed.rounds.state import State
from airpfed.settings import Settings
from airpfed.tasks.sample import Task
from airpfed.terminal import Screen, open_screen
from airpfed.tracker import TRACKERS

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended after a whole round, as shells count signals."""


def run_job(file: Path, overrides: list[str], out: Path | None, resume: bool, command: str) -> int:
    """Run an experiment into `out`; returns the exit code."""
    settings = reading.read(file, overrides)
    runs = Path("runs")
    if out is None:
        out = outputs.newest_folder(runs, file.stem) if resume else outputs.fresh_folder(runs, file.stem)
    outputs.claim(out, resume)
    track = TRACKERS[settings.run.tracker](out)
    with open_screen(settings.server.rounds) as screen, interruptible(screen) as stopping:
        screen.say("loading tasks and base model")
        tasks = build.load_tasks(settings)
        for task in tasks:
            screen.say(size_line(task))
        experiment = build.experiment(settings, tasks)
        if resume and checkpoint.exists(out / "checkpoint"):  # refuse another run's before its settings are replaced
            same_settings(out / "experiment.toml", settings)
            checkpoint.read(out / "checkpoint", experiment.initial, experiment.fingerprint)
        outputs.begin(settings, experiment, {task.name: task.source_sha256 for task in tasks}, command, out)

        def watch(row: record.RoundRecord) -> None:
            screen.round(row)
            track(row)

        outcome = play(experiment, out, resume, watch, stopping, screen.say)
        record.write_json(out / "summary.json", outcome.summary)
        track(outcome.summary)
        if outcome.completed and (why := outputs.no_adapter(settings)):
            screen.say(why)
        elif outcome.completed:
            screen.say("exporting adapters")
            outputs.adapters(settings, experiment, outcome.state, out, merged=False)
        page.write(out)
        screen.summary(outcome.summary, out)
        if outcome.completed and not overrides:
            screen.expected(outcome.summary, reading.expected(file))
    if outcome.completed:
        return 0
    called = Path(sys.argv[0])
    program = str(called) if called.name == "airpfed" and not shutil.which("airpfed") else "airpfed"
    again = [program, "run", str(file), *(part for item in overrides for part in ("--set", item)), "--out", str(out)]
    screen.say(f"stopped after round {outcome.state.round}; go on with: {shlex.join([*again, '--resume'])}")
    return INTERRUPTED


def size_line(task: Task) -> str:
    """How many samples a task's devices really hold; fewer than asked for where the source has no more."""
    sizes = [len(shard) for shard in task.train]
    each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    return f"task {task.name}: {len(sizes)} devices x {each} samples, dev {len(task.dev)}, test {len(task.test)}"


def same_settings(written: Path, settings: Settings) -> None:
    """UserError naming what differs from the run that is to be resumed, but for what a resumed run may change."""
    changed = reading.differences(reading.read(written), settings, build.UNSHAPING)
    if changed:
        raise UserError(
            f"{written.parent}: cannot be resumed with {changed[0]}; resume as it was, or use another --out"
        )


@contextmanager
def interruptible(screen: Screen) -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends the run after the round it falls into; a second one ends it at once."""
    asked: list[bool] = []

    def ask(_number: int, _frame: object) -> None:
        asked.append(True)
        signal.signal(signal.SIGINT, before)
        screen.say("stopping after this round (Ctrl-C again: at once; the last round's checkpoint stays)")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def export_job(run: Path, merged: bool) -> list[Path]:
    """Export the adapters of a run from its checkpoint."""
    settings, experiment, state = reopen(run)
    return outputs.adapters(settings, experiment, state, run, merged)


def reopen(run: Path) -> tuple[Settings, Experiment, State]:
    """A run's settings, objects and last state, from its directory."""
    if not (run / "experiment.toml").is_file():
        raise UserError(f"{run}: not a run's directory (no experiment.toml in it)")
    settings = reading.read(run / "experiment.toml")
    experiment = build.experiment(settings, build.load_tasks(settings))
    return settings, experiment, checkpoint.read(run / "checkpoint", experiment.initial, experiment.fingerprint)


def catalogue() -> list[str]:
    """Lines that list tasks and models by name."""
    from airpfed.model.catalog import MODELS
    from airpfed.tasks.catalog import CATALOG

    lines = ["tasks"]
    lines += [f"  {name:<14} {entry.kind:<9} {entry.title} ({entry.origin})" for name, entry in CATALOG.items()]
    lines += ["  gym:NAME       generate  any task of reasoning-gym, e.g. gym:basic_arithmetic", "", "base models"]
    lines += [f"  {name:<14} {model.title} ({model.licence})" for name, model in MODELS.items()]
    lines += [
        "",
        'or your own: source = "data.csv" (.jsonl, .parquet), "hf:OWNER/NAME"; base = a directory, .gguf, hub name',
    ]
    return lines
