"""`airpfed federate FILE.toml`: from a settings file to a run on either of Flower's engines."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from airpfed import outputs, reading
from airpfed.flower.server_app import serve
from airpfed.flower.simulation import simulate
from airpfed.rounds.run import Outcome
from airpfed.settings import Settings
from airpfed.terminal import INTERRUPTED, go_on, interruptible, open_screen


def federate(
    file: Path,
    overrides: list[str],
    out: Path | None,
    resume: bool,
    backend: Literal["simulation", "deployment"],
    command: str,
) -> int:
    """Run an experiment as a federation into `out`; returns the exit code."""
    settings = reading.read(file, overrides)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    folder = outputs.claimed(out, file.stem, resume).resolve()
    outcome = simulated(settings, folder, resume, command)
    if outcome.completed:
        return 0
    print(go_on(f"federate --backend {backend}", file, overrides, folder, outcome.state.round))
    return INTERRUPTED


def simulated(settings: Settings, out: Path, resume: bool, command: str) -> Outcome:
    """A run on Flower's simulation; devices keep their own state below `out`."""
    with open_screen(settings.server.rounds) as screen, interruptible(screen) as stopping:
        work = partial(serve, settings=settings, out=out, resume=resume, command=command, owners=None, screen=screen)
        return simulate(settings, out / "devices", partial(work, stopping=stopping))
