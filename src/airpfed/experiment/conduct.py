"""A run from its objects to its report: what the simulator and a federation share."""

import os
from collections.abc import Callable
from pathlib import Path

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.experiment import artifacts, build
from airpfed.experiment.console import Screen
from airpfed.experiment.data_report import data_lines, data_report
from airpfed.experiment.loggers import Track
from airpfed.report import page
from airpfed.tasks.sample import Task
from airpfed.training import checkpoint
from airpfed.training.experiment import Experiment
from airpfed.training.loop import Outcome, play, read_records


def conduct(
    settings: Settings,
    experiment: Experiment,
    tasks: tuple[Task, ...],
    command: str,
    out: Path,
    resume: bool,
    screen: Screen,
    track: Track,
    stopping: Callable[[], bool],
) -> Outcome:
    """Play all rounds into `out`, or up to the round in which `stopping` turns true, and write what a run leaves.

    track: opened before anything was loaded, so that what is not installed is told at once.
    """
    if resume:  # refuse another run's before its settings are replaced
        same_settings(out / "experiment.toml", settings, screen.say)
        artifacts.unchanged(out, experiment, {task.name: task.source_sha256 for task in tasks})
        for line in artifacts.renewed(out):
            screen.say(line)
    if resume and checkpoint.exists(out / "checkpoint"):
        state = checkpoint.load_state(out / "checkpoint", experiment.initial, experiment.fingerprint)
        read_records(out / "records.jsonl", state.round)
        if state.round > settings.server.rounds:
            raise UserError(f"server.rounds = {settings.server.rounds}: {state.round} rounds are done already in {out}")
    reports = data_report(settings, tasks, experiment)
    for line in [*data_lines(reports), *experiment.notes]:
        screen.say(line)
    artifacts.begin(settings, experiment, {task.name: task.source_sha256 for task in tasks}, command, out, reports)

    def watch(row: run_files.RoundRecord) -> None:
        screen.round(row)
        track(row)

    outcome = play(experiment, out, resume, watch, stopping, screen.say)
    run_files.write_json(out / "summary.json", outcome.summary)
    track(outcome.summary)
    page.write(out)  # before the export, which refuses a model that diverged
    if outcome.completed and (why := artifacts.no_adapter(settings)):
        screen.say(why)
    elif outcome.completed:
        screen.say("exporting adapters")
        artifacts.adapters(settings, experiment, outcome.state, out, merged=False)
    screen.summary(outcome.summary, out)
    return outcome


def same_settings(written: Path, settings: Settings, say: Callable[[str], None]) -> None:
    """UserError naming what differs from the run that is to be resumed; what it may change is said.

    Settings that cannot be read are written again: the checkpoint's fingerprint tells whether they are the same.
    """
    try:
        before = settings_file.read(written)
    except UserError as error:
        if os.path.lexists(written):
            say(f"{' '.join(str(error).split())[:300]}; written again, if the checkpoint is of these settings")
        return
    changed = settings_file.differences(before, settings, build.UNSHAPING)
    if changed:
        raise UserError(
            f"{written.parent}: cannot be resumed with {changed[0]}; resume as it was, or use another --out"
        )
    for line in settings_file.differences(before, settings, {}):
        say(f"resumed with {line}")
