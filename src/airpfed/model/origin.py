"""The origin of a base model, and its identity for resume, export, sweeps and federations."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airpfed.core.errors import UserError, first_line, hint
from airpfed.core.wheels import file_sha256, files_sha256
from airpfed.model import zoo

OTHER_FILES = (".md", ".toml", ".csv", ".jsonl", ".parquet")
"""Endings of files in a model's folder that no `from_pretrained` reads."""

RESULT_FILES = ("experiment.toml", "sweep.json")
"""Files that mark a subfolder of results, which is not a part of the model."""


@dataclass(frozen=True)
class Origin:
    """A base model for `from_pretrained`.

    folder: a local directory or a hub name. revision: the commit of a hub name. identity: hash of all files that
    numbers depend on, wherever they lie. trusted: whether Python code in the folder may run.
    """

    folder: str = ""
    revision: str | None = None
    identity: str = ""
    trusted: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of every call of `from_pretrained`."""
        return {"revision": self.revision or "main", "trust_remote_code": self.trusted}


def origin_of(base: str, trusted: bool = False, log: Callable[[str], None] = lambda _: None) -> Origin:
    """The origin of `model.base`; downloaded and converted files stay in the cache.

    trusted: the setting `model.trust_remote_code`. log: a function that receives a line for each damaged copy that is
    replaced. Raises UserError where there is no such model.
    """
    folder = zoo.resolve(base, log)
    if Path(folder).is_dir():
        return Origin(folder, None, folder_identity(Path(folder)), trusted)
    return _hub(folder, trusted)


def folder_identity(folder: Path) -> str:
    """sha256 over the paths and contents of a folder's files and its subfolders.

    Without hidden files, licences and notices, data and settings in the folder, and folders of results.
    """

    def is_part_of_model(relative: Path) -> bool:
        path = folder / relative
        if path.is_dir():
            return path.name != "__pycache__" and not any((path / name).is_file() for name in RESULT_FILES)
        notice = path.name.upper().removesuffix(".TXT") in ("LICENSE", "LICENCE", "NOTICE")
        return path.suffix.lower() not in OTHER_FILES and not notice

    return _digest(files_sha256(folder, is_part_of_model))


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def _hub(base: str, trusted: bool) -> Origin:
    """The origin of a hub name. base: OWNER/NAME, or OWNER/NAME@REVISION with a branch, a tag or a commit."""
    from transformers.utils import cached_file

    name, _, revision = base.partition("@")
    read_config(Origin(name, revision or None, "", trusted), base)
    path = cached_file(name, "config.json", revision=revision or None)
    commit = Path(path).parent.name
    return Origin(name, commit, hub_identity(name, commit), trusted)


def hub_identity(name: str, commit: str) -> str:
    """`name@commit`, plus the sha256 of files that the hub's cache does not name by their content.

    The hub's cache names a file by the sha256 or the git hash of its content. Raises UserError where a file does not
    match its name.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=commit)
    unnamed: dict[str, str] = {}
    for path in sorted(Path(config).parent.rglob("*")) if isinstance(config, str) else []:
        blob = path.resolve()
        if not path.is_file():
            continue
        if len(blob.name) not in (40, 64) or not set(blob.name) <= set("0123456789abcdef"):
            unnamed[path.relative_to(Path(str(config)).parent).as_posix()] = file_sha256(blob)
        elif blob.name not in (file_sha256(blob), _git_sha1(blob) if len(blob.name) == 40 else ""):
            raise UserError(f'model.base = "{name}": {blob} is damaged; remove it, and it is downloaded again')
    return f"{name}@{commit}" + (f"+{_digest(unnamed)[:16]}" if unnamed else "")


def _git_sha1(path: Path) -> str:
    """Git's hash of a file."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def current_identity(origin: Origin) -> str:
    """The identity of a base model's files as they are now."""
    path = Path(origin.folder)
    return folder_identity(path) if path.is_dir() else hub_identity(origin.folder, str(origin.revision))


def confirm(origin: Origin) -> Origin:
    """The origin of a model that has just been loaded.

    The hub's cache holds all files only after loading, so a hub model gets its identity again. Raises UserError where
    the files of a local folder changed while they were loaded.
    """
    if origin.revision is not None:
        return replace(origin, identity=current_identity(origin))
    check_base_unchanged(origin)
    return origin


def check_base_unchanged(origin: Origin) -> None:
    """Raise UserError where a base model's files changed since `origin` was computed."""
    if current_identity(origin) != origin.identity:
        raise UserError(f"{origin.folder}: the base model's files changed since they were loaded; put them back")


@dataclass(frozen=True)
class BaseFacts:
    """What a card says about a base model. hub: its name on the hub. licence: its identifier. "" where not known."""

    title: str
    hub: str = ""
    licence: str = ""


def base_facts(base: str, source: Origin) -> BaseFacts:
    """What is known about `model.base`: from the catalogue, or from the head of the base's own README.md."""
    if base in zoo.MODELS:
        model = zoo.MODELS[base]
        return BaseFacts(model.title, model.hub, model.licence)
    folder = Path(source.folder)
    if folder.is_dir():
        return BaseFacts(folder.name, "", licence_of(folder / "README.md"))
    from huggingface_hub import try_to_load_from_cache

    card = try_to_load_from_cache(source.folder, "README.md", revision=source.revision)
    return BaseFacts(source.folder, source.folder, licence_of(Path(card)) if isinstance(card, str) else "")


def licence_of(card: Path) -> str:
    """The licence in the head of a model card; "" where there is no card, or none in it."""
    from huggingface_hub import metadata_load

    try:
        licence = (metadata_load(card) or {}).get("license")
    except Exception:  # no file, no YAML, no mapping
        return ""
    return licence if isinstance(licence, str) and re.fullmatch(r"[\w.-]{1,60}", licence) else ""


def read_config(source: Origin, base: str) -> Any:
    """The config of a base model. Raises UserError where it cannot be read or needs Python code that is not trusted."""
    from transformers import AutoConfig

    try:
        with zoo.quiet_transformers():
            return AutoConfig.from_pretrained(source.folder, **source.options)
    except Exception as error:  # transformers raises many types of exceptions here
        if (code := needs_code(error)) is not None:
            raise UserError(f'model.base = "{base}": {code}') from None
        if Path(source.folder).is_dir():
            raise UserError(f'model.base = "{base}": cannot be loaded: {first_line(error)}') from None
        raise UserError(
            f'model.base = "{base}": no catalogue name ({", ".join(zoo.MODELS)}), no local directory, '
            f"and not available from the Hugging Face hub ({first_line(error)}){hint(base, zoo.MODELS)}"
        ) from None


def needs_code(error: Exception) -> str | None:
    """A line where loading failed because the folder's own Python code would have to run; else None."""
    if "trust_remote_code" not in str(error):
        return None
    return (
        "its folder brings Python code of its own, which is not run; read that code, and if you trust it, "
        "set model.trust_remote_code = true"
    )
