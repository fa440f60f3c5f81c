"""`airpfed federate FILE.toml`: from a settings file to a run on either of Flower's engines."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.core.locks import alone, ended_holder
from airpfed.experiment import artifacts
from airpfed.experiment.console import INTERRUPTED, Screen, go_on, interruptible, open_screen
from airpfed.federation import server_process
from airpfed.federation.addresses import check_federable, task_of_devices


def federate(
    file: Path,
    overrides: list[str],
    out: Path | None,
    resume: bool,
    backend: Literal["simulation", "deployment"],
    command: str,
) -> int:
    """Run an experiment as a federation into `out`. Returns the exit code."""
    settings = (settings_file.read if resume else settings_file.asked)(file, overrides)
    check_federable(settings)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    out = artifacts.claimed(out, file.stem, resume)
    with open_screen(settings.server.rounds) as screen, interruptible(screen) as stopping:
        if backend == "simulation":
            done, completed = run_simulated(settings, out.resolve(), resume, command, screen, stopping)
        else:
            plan = {"file": str(file.resolve()), "overrides": overrides, "resume": resume, "command": command}
            screen.progress.stop()  # the server process prints the lines
            done, completed = run_deployed(settings, file, out.resolve(), plan, stopping)
    if completed:
        return 0
    print(go_on(f"federate --backend {backend}", file, overrides, out, done))
    return INTERRUPTED


def run_simulated(
    settings: Settings, out: Path, resume: bool, command: str, screen: Screen, stopping: Callable[[], bool]
) -> tuple[int, bool]:
    """Run on Flower's simulation; devices keep their state below `out`. Returns the rounds played, and whether the run
    is complete.
    """
    from airpfed.federation.server_app import serve
    from airpfed.federation.simulation import simulate

    work = partial(
        serve, settings=settings, out=out, resume=resume, command=command, device_of_node=None, screen=screen
    )
    outcome = simulate(settings, out / "devices", partial(work, stopping=stopping))
    return outcome.state.round, outcome.completed


def run_deployed(
    settings: Settings, file: Path, out: Path, plan: dict[str, object], stopping: Callable[[], bool]
) -> tuple[int, bool]:
    """Run on real devices. Returns the rounds played, and whether the run is complete."""
    site = server_process.site_of(settings, file, out)
    places = {name: str(site.work / name) for name in ("stop", "lock")}
    # One file per launch, because the process of an earlier, killed launch may still report its failure.
    places["ended"] = str(site.work / f"ended-{os.getpid()}")
    plan = {**plan, **places, "out": str(out), "log": str(out / "federation.log")}
    show = partial(print, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # like Ctrl-C twice; nothing is left behind
    with alone(site.work / "launcher", 5.0):
        try:
            ended = server_process.deploy(site, len(task_of_devices(settings)), plan, show, stopping)
        finally:
            ended_holder(site.work / "lock", 5.0)  # the run's own process
    if "error" in ended:
        raise UserError(str(ended["error"]))
    return int(ended["round"]), bool(ended["completed"])
