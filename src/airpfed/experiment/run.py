"""The life of a run: from a settings file, or from objects, to its records, summary, adapters and report."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from airpfed.config import settings_file
from airpfed.config.applicability import settings_notes
from airpfed.config.choice import KINDS
from airpfed.config.plugins import load_installed, load_plugins, plugin_hash
from airpfed.config.schema import Settings, choices_of
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import exclusive_run
from airpfed.experiment import REOPEN, artifacts, build
from airpfed.experiment.console import INTERRUPTED, RunConsole, interruptible, open_console, resume_line
from airpfed.experiment.data_report import data_lines, report_data
from airpfed.experiment.loggers import Tracker, open_tracker
from airpfed.report import page
from airpfed.tasks.sample import Task
from airpfed.training import checkpoint
from airpfed.training.loop import Outcome, play, read_records
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import State


def run_file(file: Path, overrides: list[str], out: Path | None, resume: bool, command: str) -> int:
    """Run the experiment of a settings file in the folder `out`, and return the exit code.

    out: the run's folder; by default a new folder below `runs/`, or the newest run of the file to resume. command: the
    command line, stored with the run.
    """
    notes: list[str] = []
    if resume:
        settings = settings_file.read_settings(file, overrides, notes)
    else:
        settings = settings_file.read_new_settings(file, overrides, notes=notes)
    out = artifacts.claim_folder(out, file.stem, resume)
    with open_console(settings.server.rounds) as console:
        outcome = run_settings(settings, command, out, resume, console, notes)
        if outcome.completed and not overrides:
            console.compare_with_expected(outcome.summary, settings_file.read_expected(file))
    if outcome.completed:
        return 0
    console.log(resume_line("run", file, overrides, out, outcome.state.round))
    return INTERRUPTED


def run_settings(
    settings: Settings,
    command: str,
    out: Path,
    resume: bool,
    console: RunConsole,
    notes: Sequence[str] = (),
    load: Callable[[Settings], tuple[tuple[Task, ...], TrainingSetup]] | None = None,
) -> Outcome:
    """Run the experiment of settings in the folder `out`, up to its last round or to Ctrl-C.

    notes: lines about how the settings were read. load: gives the tasks and the objects of the settings; by default
    they are built. Raises UserError as `run_experiment`.
    """
    with exclusive_folder(out, resume), interruptible(console) as stopping:
        track = open_tracker(settings.run.tracker, out)
        for line in [*notes, *settings_notes(settings)]:
            console.log(line)
        console.log("loading tasks and base model")
        tasks, experiment = (load or load_experiment)(settings)
        if not resume:
            build.check_head_scope(settings, experiment.clients.backbone)
        return run_experiment(settings, experiment, tasks, command, out, resume, console, track, stopping)


def load_experiment(settings: Settings) -> tuple[tuple[Task, ...], TrainingSetup]:
    """Load the tasks of settings, and build all that their run needs."""
    tasks = build.load_tasks(settings)
    return tasks, build.build_experiment(settings, tasks)


@contextmanager
def exclusive_folder(out: Path, resume: bool) -> Iterator[None]:
    """Lock a run's folder, then check it again, because another process may have written there before the lock."""
    with exclusive_run(out):
        artifacts.check_folder(out, resume)
        artifacts.clean_up(out)
        yield


def run_experiment(
    settings: Settings,
    experiment: TrainingSetup,
    tasks: tuple[Task, ...],
    command: str,
    out: Path,
    resume: bool,
    console: RunConsole,
    track: Tracker,
    stopping: Callable[[], bool],
) -> Outcome:
    """Run an experiment in the folder `out`, then write its report and adapters. Used by simulator and federation.

    The run ends early after the round in which `stopping` becomes true. track: a tracker, opened before tasks and model
    are loaded, so that a missing library is reported at once. Raises UserError if a run cannot be resumed with these
    settings, data and base model.
    """
    hashes = {task.name: task.source_sha256 for task in tasks}
    if resume:  # compared before the files of the old run are replaced
        artifacts.check_plugins(out, settings)
        artifacts.check_functions(out, settings)
        artifacts.check_files(out, settings)
        check_same_settings(out / "experiment.toml", settings, console.log)
        artifacts.check_unchanged(out, experiment, hashes)
        for line in artifacts.damaged_files(out):
            console.log(line)
    if resume and checkpoint.exists(out / "checkpoint"):
        state = checkpoint.load_state(out / "checkpoint", experiment.initial, experiment.fingerprint)
        read_records(out / "records.jsonl", state.round)
        if state.round > settings.server.rounds:
            raise UserError(f"server.rounds = {settings.server.rounds}: {state.round} rounds are done already in {out}")

    def follow(row: run_files.RoundRecord | run_files.Summary) -> None:
        if isinstance(row, run_files.RoundRecord):
            console.round(row)
        track(row)

    outcome = train_run(settings, experiment, tasks, command, out, resume, follow, stopping, console.log)
    page.write_page(out)  # before the export, which refuses a diverged model
    if outcome.completed and (reason := artifacts.reason_without_adapter(settings)):
        console.log(reason)
    elif outcome.completed:
        console.log("exporting adapters")
        artifacts.export_adapters(settings, experiment, outcome.state, out, merged=False)
    console.summary(outcome.summary, out)
    return outcome


def train_run(
    settings: Settings,
    experiment: TrainingSetup,
    tasks: tuple[Task, ...],
    command: str,
    out: Path,
    resume: bool,
    track: Tracker,
    stopping: Callable[[], bool],
    log: Callable[[str], None],
) -> Outcome:
    """Write the settings and the environment of a run, run its rounds, and write its summary.

    track: a function that receives every record and the summary. log: a function that receives lines for the user. All
    runs go through this function, including the cells of a sweep, which need no report and no adapters.
    """
    reports = report_data(settings, tasks, experiment)
    for line in [*data_lines(reports), *experiment.notes]:
        log(line)
    hashes = {task.name: task.source_sha256 for task in tasks}
    artifacts.write_start(settings, experiment, hashes, command, out, reports)
    outcome = play(experiment, out, resume, track, stopping, log)
    run_files.write_json(out / "summary.json", outcome.summary)
    track(outcome.summary)
    return outcome


def check_same_settings(file: Path, settings: Settings, log: Callable[[str], None]) -> None:
    """Raise UserError if settings differ from those of the run to be resumed. Allowed changes are logged.

    A settings file that cannot be read is written again: the fingerprint of the checkpoint detects other settings.
    """
    try:
        previous = settings_file.read_stored(file)
    except UserError as error:
        if os.path.lexists(file):
            log(f"{' '.join(str(error).split())[:300]}; written again, if the checkpoint is of these settings")
        return
    changed = settings_file.differences(previous, settings, build.changeable_on_resume(settings))
    if changed:
        first = min(changed, key=lambda line: line.startswith("radio.channel"))  # its default depends on other keys
        raise UserError(f"{file.parent}: cannot be resumed with {first}; resume as it was, or use another --out")
    for line in settings_file.differences(previous, settings, {"plugins": True}):  # the run's folder has copies
        log(f"resumed with {line}")


def export_run(
    run: Path,
    merged: bool,
    plugins: Sequence[Path] = (),
    trust: bool = False,
    log: Callable[[str], None] = print,
    gguf: bool = False,
) -> list[Path]:
    """Export the adapters of a run from its checkpoint, and return their folders.

    merged: also write merged weights. gguf: also write adapters for llama.cpp. plugins, trust, log: as in
    `open_settings`.
    """
    if not run.is_dir():
        raise UserError(f"{run}: not a run's directory (no experiment.toml in it)")
    with exclusive_run(run):
        settings, experiment, state = reopen_run(run, plugins, trust, log)
        artifacts.clean_up(run)
        folders = artifacts.export_adapters(settings, experiment, state, run, merged, gguf)
    if not folders:
        raise UserError(f"{run}: each device of this run has its own model, and exported it to its own state folder")
    return folders


NOT_FOR_MODELS = {
    "radio.scheme": "",
    "radio.design": "",
    "radio.channel": "",
    "server.aggregator": "",
    "server.optimizer": "sgd",
    "run.tracker": "",
    "metric": "",
}
"""Settings on which the models of a finished run do not depend, each with what may stand for it; "": the default."""


def missing_functions(run: Path, stored: Settings) -> dict[str, str]:
    """Map each setting whose function from Python this process lacks, and a model can do without, to its stand-in.

    stored: the settings of the run, as `settings_file.read_stored` gives them.
    """
    functions = artifacts.stored_functions(run)
    kinds = {key: key.rpartition(".")[2] if key.startswith("tasks.") else key for key in functions}
    return {
        key: NOT_FOR_MODELS[kinds[key]]
        for key, choice in choices_of(stored).items()
        if key in functions and choice.find_row() is None and kinds[key] in NOT_FOR_MODELS
    }


def reopen_run(
    run: Path, plugins: Sequence[Path] = (), trust: bool = False, log: Callable[[str], None] = print
) -> tuple[Settings, TrainingSetup, State]:
    """Return the settings, the experiment and the last state of a run, from its folder.

    plugins, trust, log: as in `open_settings`. Functions from Python on which its models do not depend may be missing.
    """
    if not (run / "experiment.toml").is_file():
        raise UserError(f"{run}: not a run's directory (no experiment.toml in it)")
    settings, folder = open_settings(run, plugins, trust, log), run / "checkpoint"
    replaced = missing_functions(run, settings_file.read_stored(run / "experiment.toml"))
    hashes: dict[str, str] = {}
    for name, rebuild in REOPEN.items():
        if (folder / name).is_file():
            experiment = rebuild(settings, folder)
            break
    else:
        tasks, experiment = load_experiment(settings)
        hashes = {task.name: task.source_sha256 for task in tasks}
    artifacts.check_plugins(run, settings)
    artifacts.check_unchanged(run, experiment, hashes)
    fingerprint = artifacts.recorded_fingerprint(run, experiment.fingerprint)
    if replaced:  # then the settings' own fingerprint cannot be computed here
        fingerprint = str(artifacts.environment_of(run).get("fingerprint"))
    return settings, experiment, checkpoint.load_state(folder, experiment.initial, fingerprint)


def open_settings(
    run: Path, plugins: Sequence[Path] = (), trust: bool = False, log: Callable[[str], None] = print
) -> Settings:
    """Read the settings of a run's folder. Its plug-ins may be a stranger's and run only if the user says so.

    plugins: the user's own copies, which should equal those of the run. trust: run the copies in the folder. log: a
    function that receives a line with the name of each copy that is run. Raises UserError, which names the plug-in, if
    a row of the settings is missing without it.
    """
    file = run / "experiment.toml"
    stored = settings_file.read_stored(file)
    copies, own = {Path(path).name: Path(path) for path in stored.plugins}, {path.name: path for path in plugins}
    for name, path in own.items():
        if name not in copies:
            names = ", ".join(copies) or "none"
            raise UserError(f"--plugin {path}: no plug-in of this run has this name; it has {names}")
        if copies[name].is_file() and plugin_hash(path) != plugin_hash(copies[name]):
            raise UserError(f"--plugin {path}: differs from the one of this run, {copies[name]}")
    used = {name: own.get(name, path).absolute() for name, path in copies.items() if trust or name in own}
    for name, path in used.items():
        if name not in own:
            log(f"{path}: running the code of this plug-in, as --trust says")
    load_plugins(used.values())
    replaced = missing_functions(run, stored)
    for key, choice in choices_of(stored).items():
        if key in replaced:
            continue
        rows = KINDS[choice.kind].rows
        origin = rows.origins.get(choice.name, "")
        if choice.name not in rows or (origin and origin not in load_installed() and Path(origin).name not in used):
            code = ", ".join(str(path) for name, path in copies.items() if name not in used) or "a notebook"
            raise UserError(
                f'{file}: {key} = "{choice.name}" needs the code of {code}; --plugin FILE uses your own copy, --trust '
                "runs the one of the folder"
            )
    settings = settings_file.read_settings(
        file, [f"{key}={name}" for key, name in replaced.items()], run_plugins=False, older=True
    )
    return settings.model_copy(update={"plugins": tuple(str(used.get(name, path)) for name, path in copies.items())})


def catalogue_lines() -> list[str]:
    """List the tasks, base models and experiments that have a name."""
    from airpfed.config.experiment_files import experiment_names, experiment_title
    from airpfed.model.zoo import MODELS
    from airpfed.tasks.catalog import CATALOG

    lines = ["tasks"]
    lines += [f"  {name:<14} {entry.kind:<9} {entry.title} ({entry.origin})" for name, entry in CATALOG.items()]
    lines += ["  gym:NAME       generate  any task of reasoning-gym, e.g. gym:basic_arithmetic", "", "base models"]
    lines += [f"  {name:<14} {model.title} ({model.licence})" for name, model in MODELS.items()]
    lines += ["", "experiments (airpfed run NAME, and wherever a command takes FILE.toml)"]
    lines += [f"  {name:<16} {experiment_title(name)}" for name in experiment_names()]
    lines += [
        "",
        'or your own: source = "data.csv" (.jsonl, .parquet), "hf:OWNER/NAME"; base = a directory, .gguf, hub name',
    ]
    return lines
