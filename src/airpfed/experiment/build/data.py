"""Settings to tasks: sources, splits, and the hashes of settings, data and base model."""

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from airpfed.config.plugins import code_hashes
from airpfed.config.schema import Settings, TaskSettings, choices_of
from airpfed.config.settings_file import spelled_out
from airpfed.config.user_rows import user_functions
from airpfed.core.errors import UserError
from airpfed.model.backbone import Backbone
from airpfed.model.origin import origin_of
from airpfed.tasks.sample import Task
from airpfed.tasks.sources import Source
from airpfed.tasks.split import Shares, build_tasks
from airpfed.tasks.table_files import TextForm

CHANGEABLE_ON_RESUME: dict[str, Any] = {
    "plugins": True,  # the fingerprint covers their contents, wherever they lie
    "model": {"base", "trust_remote_code"},  # the fingerprint covers the base's files, wherever they lie
    "devices": {"cache_gb", "gradients_gb"},
    "server": {"rounds", "air_seconds", "air_seconds_of", "seconds"},
    "run": {"eval_every", "threads", "score", "cross_eval", "tracker"},
    "theory": {"meter_every"},
    "federation": {"min_devices", "wait_seconds", "deadline_seconds", "address", "listen", "folder"},
}
"""Settings that a resumed run may change. The results of earlier rounds do not depend on them."""


def changeable_on_resume(settings: Settings) -> dict[str, Any]:
    """Return `CHANGEABLE_ON_RESUME`, without the number of rounds if the learning rate of each round depends on it."""
    if settings.server.schedule.name == "constant" or settings.adapters.method.row.averages:
        return CHANGEABLE_ON_RESUME
    return CHANGEABLE_ON_RESUME | {"server": CHANGEABLE_ON_RESUME["server"] - {"rounds"}}


def load_tasks(settings: Settings) -> tuple[Task, ...]:
    """Load all tasks, split them and distribute their samples over the devices."""
    sources = [source_of(task) for task in settings.tasks]
    return build_tasks(list(zip(sources, all_shares(settings), strict=True)), settings.run.seed)


def source_of(task: TaskSettings) -> Source:
    """Return the source of a task. Empty settings leave the source's own values."""
    return Source(
        name=task.name,
        source=task.source or task.name,
        kind=None if task.kind == "auto" else task.kind,
        prompt=task.prompt or None,
        text_column=task.text,
        label_column=task.label,
        device_column=task.split.options.get("column") if task.split.name == "column" else None,
        labels=task.labels or None,
        max_chars=task.max_chars or None,
        classes=task.classes,
        max_empty_share=task.max_empty_share,
        group_column=task.group or None,
        form=TextForm(task.delimiter, task.encoding),
        streaming=task.streaming,
        messages_column=task.messages or None,
        system=task.system,
    )


def shares_of(task: TaskSettings) -> Shares:
    """Return how the samples of a task are split and distributed over the devices."""
    return Shares(
        devices=task.devices,
        samples_per_device=task.samples_per_device,
        dev_samples=task.dev_samples,
        test_samples=task.test_samples,
        split=task.split.name,
        split_options=task.split.options,
        sizes=task.sizes,
        sizes_sigma=task.sizes_sigma,
        split_as=task.split_as,
        stratify=task.stratify,
    )


def all_shares(settings: Settings) -> list[Shares]:
    """Return `shares_of` every task. Tasks linked by `split_as`, also through other tasks, share one shuffle."""
    links = {task.name: task.split_as for task in settings.tasks}

    def root(name: str) -> str:
        path = [name]
        while links.get(path[-1]) and links[path[-1]] not in path:
            path.append(links[path[-1]])
        following = links.get(path[-1])  # a ring of tasks has no end, so the first of them by name is its root
        return min(path[path.index(following) :]) if following else path[-1]

    return [replace(shares_of(task), split_as=root(task.name) if task.split_as else "") for task in settings.tasks]


def fingerprint(settings: Settings, data: Sequence[str], base: str) -> str:
    """Hash everything that the results of a run depend on, functions given from Python included.

    data, base: hashes of the tasks' data and of the base model.
    """
    parts: list[object] = [
        spelled_out(settings).model_dump(mode="json", exclude=changeable_on_resume(settings)), list(data), base,
    ]  # fmt: skip
    if code := {**code_hashes(settings), **option_files(settings)}:
        parts.append(code)
    if functions := fixed_functions(settings):
        parts.append(functions)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()  # unsorted, because the order of labels matters


def option_files(settings: Settings, keys: Collection[str] | None = None) -> dict[str, str]:
    """Map each option of a choice that names a file, by its absolute path, to the hash of that file.

    keys: only the options of these settings, such as "adapters.method"; all by default.
    """
    hashes = {}
    for setting, choice in choices_of(settings).items():
        if keys is not None and setting not in keys:
            continue
        for key, value in choice.options.items():
            if isinstance(value, str) and Path(value).is_absolute() and Path(value).is_file():
                with Path(value).open("rb") as file:
                    hashes[f"{setting}.{key}"] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def fixed_functions(settings: Settings) -> dict[str, dict[str, str]]:
    """Map each setting that a resumed run may not change to its function, if it is not the package's."""
    sections = {section: keys for section, keys in CHANGEABLE_ON_RESUME.items() if isinstance(keys, set)}
    changeable = {f"{section}.{key}" for section, keys in sections.items() for key in keys}
    return {key: function for key, function in user_functions(settings).items() if key not in changeable}


def base_hash(base: Backbone) -> str:
    """Return the hash of the files of a base model."""
    return base.origin.identity


def current_fingerprints() -> Callable[[Settings], str | None]:
    """Return a function that gives the fingerprint of a run of some settings, without loading the base model.

    The function returns None if the data or the base model is not available. It reads each source once.
    """
    data: dict[str, list[str]] = {}
    bases: dict[str, str] = {}

    def current_fingerprint(settings: Settings) -> str | None:
        base = settings.model.base
        key = settings.model_dump_json(include={"tasks": True, "run": {"seed"}})
        try:
            data[key] = data.get(key) or [task.source_sha256 for task in load_tasks(settings)]
            bases[base] = bases.get(base) or origin_of(base, settings.model.trust_remote_code).identity
        except UserError:
            return None
        return fingerprint(settings, data[key], bases[base])

    return current_fingerprint
