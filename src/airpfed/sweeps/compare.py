"""`airpfed compare`: finished runs from any folders, side by side by the settings in which they differ."""

from collections.abc import Callable, Sequence
from pathlib import Path

from airpfed.config import settings_file
from airpfed.config.schema import Settings, TaskSettings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import TEMPORARY_NAME
from airpfed.core.run_files import Summary
from airpfed.sweeps.tables import Coordinates, ScoredRun
from airpfed.sweeps.trials import NOT_TRAINED

ABSENT = "-"


def read_runs(folders: Sequence[Path], log: Callable[[str], None]) -> tuple[list[ScoredRun], dict[str, list[str]]]:
    """Read all scored runs in the folders and below them, and the settings in which they differ.

    Settings that do not change what is trained, and the seed, are no differences. log: a function that receives a line
    about unfinished runs, which are left out. Returns the runs, and setting -> its values in order of appearance.
    Raises UserError if a folder holds no finished run.
    """
    scored: list[tuple[Path, Settings, Summary]] = []
    for folder in folders:
        parents = {path.parent for name in ("summary.json", "experiment.toml") for path in folder.rglob(name)}
        complete = [parent for parent in sorted(parents) if not any(map(TEMPORARY_NAME.fullmatch, parent.parts))]
        summaries = [(run, scored_summary(run)) for run in complete]
        if all(summary is None for _, summary in summaries):
            raise UserError(f"{folder}: no finished run here (no summary.json with scores)")
        if unfinished := [run for run, summary in summaries if summary is None]:
            log(f"{len(unfinished)} without final scores left out: {', '.join(map(str, unfinished[:3]))}")
        scored += [
            (run, settings_file.read_stored(run / "experiment.toml"), summary)
            for run, summary in summaries
            if summary is not None
        ]
    flat = [comparable_settings(settings) for _, settings, _ in scored]
    varying = settings_file.varying_keys(flat, ABSENT)
    axes = {key: list(dict.fromkeys(values)) for key, values in varying.items()}
    runs = [
        ScoredRun(
            point=tuple((axis, run_values.get(axis, ABSENT)) for axis in axes),
            seed=settings.run.seed,
            summary=summary,
            folder=str(folder),
        )
        for (folder, settings, summary), run_values in zip(scored, flat, strict=True)
    ]
    return sort_runs(runs), axes


def scored_summary(folder: Path) -> Summary | None:
    """A run's summary, or None if it has no final scores.

    Raises UserError if it cannot be read or does not agree with the records.
    """
    summary = run_files.read_json(folder / "summary.json", Summary)
    if summary is None or summary.average is None:
        return None
    records = run_files.load_records(folder / "records.jsonl")
    run_files.check_rounds(folder, summary, records)
    if len(records) > summary.rounds:
        raise UserError(
            f"{folder}: {len(records)} rounds are done, but summary.json is of {summary.rounds}; finish the run with "
            "--resume"
        )
    return summary


def sort_runs(runs: Sequence[ScoredRun]) -> list[ScoredRun]:
    """The runs by point in order of appearance, then by seed. Raises UserError if two have the same point and seed."""
    first: dict[tuple[Coordinates, int], ScoredRun] = {}
    for run in runs:
        if (duplicate := first.setdefault((run.point, run.seed), run)) is not run:
            raise UserError(f"{run.folder}: the same settings and seed as {duplicate.folder}; name only one of them")
    order = list(dict.fromkeys(run.point for run in runs))
    return sorted(runs, key=lambda run: (order.index(run.point), run.seed))


def comparable_settings(settings: Settings) -> dict[str, str]:
    """The settings that runs are compared by, as text: `server.lr`, the names of the tasks, `tasks.NAME.devices`.

    A key on whose value all tasks agree is `tasks.*.devices`.
    """
    tree = settings_file.spelled_out(settings).model_dump(
        mode="json", exclude={**NOT_TRAINED, "tasks": True} | ({} if settings.node else {"node": True})
    )
    tree["run"].pop("seed")
    flat = {key: str(value) for key, value in settings_file.flatten_settings(tree).items()}
    flat["tasks"] = "+".join(task.name for task in settings.tasks)
    for key in (key for key in TaskSettings.model_fields if key != "name"):
        values = {task.name: str(getattr(task, key)) for task in settings.tasks}
        shared = len(set(values.values())) == 1
        flat |= {f"tasks.{'*' if shared else name}.{key}": value for name, value in values.items()}
    return flat
