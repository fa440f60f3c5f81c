"""What a run left behind, loaded for a page."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airpfed.config.settings_file import flatten_settings, varying_keys
from airpfed.core import files, run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import NetworkLayout, Probe, RoundRecord, Summary

LONG = 24
"""Letters of a folder's name above which runs beside each other are called by the settings in which they differ."""
MOST = 3
"""The most settings in a name."""


@dataclass(frozen=True)
class Run:
    """A run's files. name: told apart from the other runs' of the page. settings: experiment.toml as it stands."""

    name: str
    summary: Summary
    records: list[RoundRecord]
    environment: dict[str, Any]
    settings: str
    place: NetworkLayout | None
    probe: Probe | None


def load(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders; UserError names one that holds none, or that is named twice."""
    if twice := next((folder for i, folder in enumerate(folders) if folder in folders[:i]), None):
        raise UserError(f"{twice}: named twice")
    found = [load_one(folder) for folder in folders]
    names = names_of(folders, [run.settings for run in found])
    return [replace(run, name=name) for run, name in zip(found, names, strict=True)]


def names_of(folders: Sequence[Path], settings: Sequence[str]) -> list[str]:
    """What to call the runs: by their folders, where these are short and tell them apart; else by what differs."""
    names = [folder.resolve().name for folder in folders]
    if len(names) == 1 or (len(set(names)) == len(names) and max(map(len, names)) <= LONG):
        return names
    rows = differing(settings)
    said = [", ".join(told(key, values[i]) for key, values in rows.items()) for i in range(len(names))]
    if len(set(said)) == len(said) and len(rows) <= MOST:
        return said
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def told(key: str, value: str) -> str:
    """A setting in a name: a word alone, a number with the last part of its key."""
    return value.strip('"') if value.startswith('"') else f"{key.split('.')[-1]} {value}"


def load_one(folder: Path) -> Run:
    """One run."""
    settings = settings_text(folder / "experiment.toml")
    summary, records = run_files.load_summary(folder / "summary.json"), run_files.load_records(folder / "records.jsonl")
    run_files.check_rounds(folder, summary, records)
    environment = run_files.read_json(folder / "environment.json", run_files.Environment)
    return Run(
        name=folder.absolute().name,
        summary=summary,
        records=records,
        environment=environment.root if environment else {},
        settings=settings,
        place=run_files.load_layout(folder / "layout.json"),
        probe=run_files.load_probe(folder / "theory.json"),
    )


def settings_text(path: Path) -> str:
    """A run's settings as they stand; UserError where they are no TOML."""
    data = files.read_bytes(path)
    if data is None:
        raise UserError(f"{path.parent}: not a run's directory (no experiment.toml in it)")
    try:
        tomllib.loads(text := data.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid TOML: {' '.join(str(error).split())[:160]}") from None
    return text


def differing(texts: Sequence[str]) -> dict[str, list[str]]:
    """Key -> a value a settings file, of the keys in which they differ; a dash where one has no such key."""
    trees = [flatten_settings(tomllib.loads(text)) for text in texts]
    rows = [{key: json.dumps(value, ensure_ascii=False, default=str) for key, value in tree.items()} for tree in trees]
    return varying_keys(rows)
