"""A run from its objects to its report: what the simulator and a federation share."""

import os
from collections.abc import Callable
from pathlib import Path

from airpfed import build, outputs, reading, record
from airpfed.data_report import data_lines, data_report
from airpfed.errors import UserError
from airpfed.report import page
from airpfed.rounds import checkpoint
from airpfed.rounds.run import Experiment, Outcome, play, recorded
from airpfed.settings import Settings
from airpfed.tasks.sample import Task
from airpfed.terminal import Screen
from airpfed.tracker import Track


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
        outputs.unchanged(out, experiment, {task.name: task.source_sha256 for task in tasks})
        for line in outputs.renewed(out):
            screen.say(line)
    if resume and checkpoint.exists(out / "checkpoint"):
        state = checkpoint.read(out / "checkpoint", experiment.initial, experiment.fingerprint)
        recorded(out / "records.jsonl", state.round)
        if state.round > settings.server.rounds:
            raise UserError(f"server.rounds = {settings.server.rounds}: {state.round} rounds are done already in {out}")
    reports = data_report(settings, tasks, experiment)
    for line in [*data_lines(reports), *experiment.notes]:
        screen.say(line)
    outputs.begin(settings, experiment, {task.name: task.source_sha256 for task in tasks}, command, out, reports)

    def watch(row: record.RoundRecord) -> None:
        screen.round(row)
        track(row)

    outcome = play(experiment, out, resume, watch, stopping, screen.say)
    record.write_json(out / "summary.json", outcome.summary)
    track(outcome.summary)
    page.write(out)  # before the export, which refuses a model that diverged
    if outcome.completed and (why := outputs.no_adapter(settings)):
        screen.say(why)
    elif outcome.completed:
        screen.say("exporting adapters")
        outputs.adapters(settings, experiment, outcome.state, out, merged=False)
    screen.summary(outcome.summary, out)
    return outcome


def same_settings(written: Path, settings: Settings, say: Callable[[str], None]) -> None:
    """UserError naming what differs from the run that is to be resumed; what it may change is said.

    Settings that cannot be read are written again: the checkpoint's fingerprint tells whether they are the same.
    """
    try:
        before = reading.read(written)
    except UserError as error:
        if os.path.lexists(written):
            say(f"{' '.join(str(error).split())[:300]}; written again, if the checkpoint is of these settings")
        return
    changed = reading.differences(before, settings, build.UNSHAPING)
    if changed:
        raise UserError(
            f"{written.parent}: cannot be resumed with {changed[0]}; resume as it was, or use another --out"
        )
    for line in reading.differences(before, settings, {}):
        say(f"resumed with {line}")
