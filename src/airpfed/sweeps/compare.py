"""`airpfed compare`: finished runs side by side, wherever they are, by the settings in which they differ."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from airpfed.config import settings_file
from airpfed.config.schema import Settings, TaskSettings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import TEMPORARY_NAME
from airpfed.core.run_files import Summary
from airpfed.sweeps.tables import Run
from airpfed.sweeps.trials import UNNAMED

ABSENT = "-"


def runs_of(folders: Sequence[Path], say: Callable[[str], None]) -> tuple[list[Run], dict[str, list[str]]]:
    """All scored runs in the folders and below them, and what differs: setting -> its values, in the order met.

    Settings that change nothing of what is trained, and the seed, are no difference. say: told of runs that are not
    finished, and left out. Raises UserError where a folder holds none that is.
    """
    found = []
    for folder in folders:
        places = sorted({path.parent for name in ("summary.json", "experiment.toml") for path in folder.rglob(name)})
        read = [(place, whole(place)) for place in places if not any(map(TEMPORARY_NAME.fullmatch, place.parts))]
        scored = [(place, summary) for place, summary in read if summary is not None]
        if not scored:
            raise UserError(f"{folder}: no finished run here (no summary.json with scores)")
        if unfinished := [place for place, summary in read if summary is None]:
            say(f"{len(unfinished)} without final scores left out: {', '.join(map(str, unfinished[:3]))}")
        found += [(place, settings_file.read_settings(place / "experiment.toml"), summary) for place, summary in scored]
    flat = [flat_settings(settings) for _, settings, _ in found]
    varying = settings_file.varying_keys(flat, ABSENT)
    axes = {key: list(dict.fromkeys(values)) for key, values in varying.items()}
    runs = [
        Run(tuple((axis, one.get(axis, ABSENT)) for axis in axes), settings.run.seed, summary, str(place))
        for (place, settings, summary), one in zip(found, flat, strict=True)
    ]
    return unique(runs), axes


def whole(folder: Path) -> Summary | None:
    """A run's summary if it is scored; UserError where it cannot be read, or the records are of other rounds."""
    summary = run_files.read_json(folder / "summary.json", Summary)
    if summary is None or summary.average is None:
        return None
    records = run_files.load_records(folder / "records.jsonl")
    run_files.check_rounds(folder, summary, records)
    if len(records) > summary.rounds:
        raise UserError(
            f"{folder}: {len(records)} rounds are done, summary.json is of {summary.rounds}; end it (--resume)"
        )
    return summary


def unique(runs: Sequence[Run]) -> list[Run]:
    """The runs in the order of their points; UserError where two of one point have the same seed."""
    seen: dict[Any, Run] = {}
    for run in runs:
        if (run.where, run.seed) in seen:
            first = seen[run.where, run.seed].folder
            raise UserError(f"{run.folder}: the same settings and seed as {first}; name only one of them")
        seen[run.where, run.seed] = run
    order = list(dict.fromkeys(run.where for run in runs))
    return sorted(runs, key=lambda run: (order.index(run.where), run.seed))


def flat_settings(settings: Settings) -> dict[str, str]:
    """Map the keys of settings to values, with a task's key as `tasks.*.key` if all tasks agree on it."""
    tree = settings.model_dump(
        mode="json", exclude={**UNNAMED, "tasks": True} | ({} if settings.node else {"node": True})
    )
    tree["run"].pop("seed")
    flat = {key: str(value) for key, value in settings_file.flatten_settings(tree).items()}
    flat["tasks"] = "+".join(task.name for task in settings.tasks)
    for key in (key for key in TaskSettings.model_fields if key != "name"):
        values = {task.name: str(getattr(task, key)) for task in settings.tasks}
        is_equal = len(set(values.values())) == 1
        flat |= {f"tasks.{'*' if is_equal else name}.{key}": value for name, value in values.items()}
    return flat
