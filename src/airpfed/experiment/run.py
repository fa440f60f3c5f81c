"""A run from its settings file to its report: what the command line does, step by step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from airpfed.config import settings_file
from airpfed.config.applicability import notes
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.core.locks import only
from airpfed.experiment import artifacts, build
from airpfed.experiment.conduct import conduct
from airpfed.experiment.console import INTERRUPTED, go_on, interruptible, open_screen
from airpfed.experiment.loggers import TRACKERS
from airpfed.training import checkpoint
from airpfed.training.experiment import Experiment
from airpfed.training.state import State


def run_job(file: Path, overrides: list[str], out: Path | None, resume: bool, command: str) -> int:
    """Run an experiment into `out`; returns the exit code."""
    settings = (settings_file.read if resume else settings_file.asked)(file, overrides)
    out = artifacts.claimed(out, file.stem, resume)
    with (
        alone_in(out, resume),
        open_screen(settings.server.rounds) as screen,
        interruptible(screen) as stopping,
    ):
        track = TRACKERS[settings.run.tracker](out)
        for line in notes(settings):
            screen.say(line)
        screen.say("loading tasks and base model")
        tasks = build.load_tasks(settings)
        experiment = build.experiment(settings, tasks)
        if not resume:
            build.head_applies(settings, experiment.clients.backbone)
        outcome = conduct(settings, experiment, tasks, command, out, resume, screen, track, stopping)
        if outcome.completed and not overrides:
            screen.expected(outcome.summary, settings_file.expected(file))
    if outcome.completed:
        return 0
    screen.say(go_on("run", file, overrides, out, outcome.state.round))
    return INTERRUPTED


@contextmanager
def alone_in(out: Path, resume: bool) -> Iterator[None]:
    """The only process in a run's folder, which is claimed again now that nobody else can write there."""
    with only(out):
        artifacts.claim(out, resume)
        artifacts.tidied(out)
        yield


def export_job(run: Path, merged: bool) -> list[Path]:
    """Export the adapters of a run from its checkpoint."""
    if not run.is_dir():
        raise UserError(f"{run}: not a run's directory (no experiment.toml in it)")
    with only(run):
        settings, experiment, state = reopen(run)
        artifacts.tidied(run)
        written = artifacts.adapters(settings, experiment, state, run, merged)
    if not written:
        raise UserError(f"{run}: each device has a model of its own here, and has exported it to its own state folder")
    return written


def reopen(run: Path) -> tuple[Settings, Experiment, State]:
    """A run's settings, objects and last state, from its directory."""
    if not (run / "experiment.toml").is_file():
        raise UserError(f"{run}: not a run's directory (no experiment.toml in it)")
    settings = settings_file.read(run / "experiment.toml")
    if (run / "checkpoint" / "run.json").is_file():
        from airpfed.federation import build_federation

        experiment = build_federation.reopen(settings, run / "checkpoint")
        artifacts.unchanged(run, experiment, {})
    else:
        tasks = build.load_tasks(settings)
        experiment = build.experiment(settings, tasks)
        artifacts.unchanged(run, experiment, {task.name: task.source_sha256 for task in tasks})
    return settings, experiment, checkpoint.load_state(run / "checkpoint", experiment.initial, experiment.fingerprint)


def catalogue() -> list[str]:
    """Lines that list tasks and models by name."""
    from airpfed.model.zoo import MODELS
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
