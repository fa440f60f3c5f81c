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
from airpfed.core.files import acquire_lock, end_lock_holder
from airpfed.experiment import artifacts
from airpfed.experiment.console import INTERRUPTED, RunConsole, interruptible, open_console, resume_line
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
    settings = (settings_file.read_settings if resume else settings_file.read_new_settings)(file, overrides)
    check_federable(settings)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    out = artifacts.claim_folder(out, file.stem, resume)
    with open_console(settings.server.rounds) as console, interruptible(console) as stopping:
        if backend == "simulation":
            done, completed = run_simulated(settings, out.resolve(), resume, command, console, stopping)
        else:
            plan = {"file": str(file.resolve()), "overrides": overrides, "resume": resume, "command": command}
            console.progress.stop()  # the server process prints the lines
            done, completed = run_deployed(settings, file, out.resolve(), plan, stopping)
    if completed:
        return 0
    print(resume_line(f"federate --backend {backend}", file, overrides, out, done))
    return INTERRUPTED


def run_simulated(
    settings: Settings, out: Path, resume: bool, command: str, console: RunConsole, stopping: Callable[[], bool]
) -> tuple[int, bool]:
    """Run on Flower's simulation; devices keep their state below `out`. Returns the rounds played, and whether the run
    is complete.
    """
    from airpfed.federation.server_app import serve
    from airpfed.federation.simulation import simulate

    work = partial(
        serve, settings=settings, out=out, resume=resume, command=command, device_of_node=None, console=console
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
    with acquire_lock(site.work / "launcher", 5.0):
        try:
            ended = server_process.deploy(site, len(task_of_devices(settings)), plan, show, stopping)
        finally:
            end_lock_holder(site.work / "lock", 5.0)  # the run's own process
    if "error" in ended:
        raise UserError(str(ended["error"]))
    return int(ended["round"]), bool(ended["completed"])
