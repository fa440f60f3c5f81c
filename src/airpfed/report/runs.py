"""The files of runs, read for a report."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airpfed.config.settings_file import flatten_settings, varying_keys
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import read_bytes
from airpfed.core.run_files import NetworkLayout, Probe, RoundRecord, Summary

MAX_NAME = 24
"""Letters of a folder's name. If a name is longer, runs beside each other are named by their different settings."""
MAX_SETTINGS = 3
"""The most settings in a name."""


@dataclass(frozen=True)
class RunData:
    """A run's files. name: a name that no other run of the page has. settings: text of experiment.toml."""

    name: str
    summary: Summary
    records: list[RoundRecord]
    environment: dict[str, Any]
    settings: str
    layout: NetworkLayout | None
    probe: Probe | None


def load_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read the runs in these folders. Raises UserError if a folder holds no run or is given twice."""
    if duplicate := next((folder for i, folder in enumerate(folders) if folder in folders[:i]), None):
        raise UserError(f"{duplicate}: named twice")
    runs = [read_run(folder) for folder in folders]
    names = names_of(folders, [run.settings for run in runs])
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def names_of(folders: Sequence[Path], settings: Sequence[str]) -> list[str]:
    """Name runs by their folders if the names are short and distinct, or else by their different settings."""
    names = [folder.resolve().name for folder in folders]
    if len(names) == 1 or (len(set(names)) == len(names) and max(map(len, names)) <= MAX_NAME):
        return names
    rows = different_settings(settings)

    def label(key: str, value: str) -> str:
        return value.strip('"') if value.startswith('"') else f"{key.split('.')[-1]} {value}"

    labels = [", ".join(label(key, values[i]) for key, values in rows.items()) for i in range(len(names))]
    if len(set(labels)) == len(labels) and len(rows) <= MAX_SETTINGS:
        return labels
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def read_run(folder: Path) -> RunData:
    """Read one run. Raises UserError if the folder holds no run or a file of it cannot be read."""
    settings = load_settings_text(folder / "experiment.toml")
    summary, records = run_files.load_summary(folder / "summary.json"), run_files.load_records(folder / "records.jsonl")
    run_files.check_rounds(folder, summary, records)
    environment = run_files.read_json(folder / "environment.json", run_files.Environment)
    return RunData(
        name=folder.absolute().name,
        summary=summary,
        records=records,
        environment=environment.root if environment else {},
        settings=settings,
        layout=run_files.load_layout(folder / "layout.json"),
        probe=run_files.load_probe(folder / "theory.json"),
    )


def load_settings_text(path: Path) -> str:
    """Read the text of a run's settings. Raises UserError if there is none or it is not valid TOML."""
    data = read_bytes(path)
    if data is None:
        raise UserError(f"{path.parent}: not a run's directory (no experiment.toml in it)")
    try:
        tomllib.loads(text := data.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {' '.join(str(error).split())[:160]}") from None
    return text


def different_settings(texts: Sequence[str]) -> dict[str, list[str]]:
    """The keys whose values differ between settings files: key -> its value in each file, "-" if it is missing."""
    trees = [flatten_settings(tomllib.loads(text)) for text in texts]
    rows = [{key: json.dumps(value, ensure_ascii=False, default=str) for key, value in tree.items()} for tree in trees]
    return varying_keys(rows)
