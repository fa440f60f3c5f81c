"""Where a base model comes from, and which one it is: one identity for resume, export, sweeps and federations."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airpfed.core.errors import UserError, hint
from airpfed.core.wheels import file_sha256, files_sha256
from airpfed.model import zoo

BESIDE = (".md", ".toml", ".csv", ".jsonl", ".parquet")
"""Endings of files that lie beside a model and that no `from_pretrained` reads."""

RUN = ("experiment.toml", "sweep.json")
"""What a subfolder of results holds; these are not the model's."""


@dataclass(frozen=True)
class Origin:
    """A base model as `from_pretrained` takes it.

    folder: a local directory or a hub name; revision: the commit that the hub name stands for. identity: of everything
    that numbers depend on, the same wherever the same files lie. trusted: whether Python code in the folder may run.
    """

    folder: str = ""
    revision: str | None = None
    identity: str = ""
    trusted: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What every call of `from_pretrained` is given beside the folder."""
        return {"revision": self.revision or "main", "trust_remote_code": self.trusted}


def origin(base: str, trusted: bool = False, say: Callable[[str], None] = lambda _: None) -> Origin:
    """The origin of `model.base`; what is fetched or converted for it is kept in the cache.

    trusted: `model.trust_remote_code`. say: is told, in a line each, what had to be made again. Raises UserError where
    there is no such model.
    """
    folder = zoo.resolve(base, say)
    if Path(folder).is_dir():
        return Origin(folder, None, folder_identity(Path(folder)), trusted)
    return _hub(folder, trusted)


def folder_identity(folder: Path) -> str:
    """sha256 over the paths and contents of a folder's files, in whatever format; subfolders too.

    Not in it: hidden files, licences and notes, data and settings that lie beside a model, folders of results.
    """
    return _digest(files_sha256(folder, lambda below: _read_by_models(folder, below)))


def _read_by_models(folder: Path, below: Path) -> bool:
    path = folder / below
    if path.is_dir():
        return below.name != "__pycache__" and not any((path / name).is_file() for name in RUN)
    note = below.name.upper().removesuffix(".TXT") in ("LICENSE", "LICENCE", "NOTICE")
    return below.suffix.lower() not in BESIDE and not note


def _digest(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()


def _hub(base: str, trusted: bool) -> Origin:
    """A hub name with the commit that it stands for, and that commit's files as they lie in the hub's own cache.

    base: OWNER/NAME, or OWNER/NAME@REVISION with a branch, a tag or a commit.
    """
    from transformers.utils import cached_file

    name, _, revision = base.partition("@")
    read_config(Origin(name, revision or None, "", trusted), base)
    path = cached_file(name, "config.json", revision=revision or None)
    commit = Path(path).parent.name
    return Origin(name, commit, hub_identity(name, commit), trusted)


def hub_identity(name: str, commit: str) -> str:
    """`name@commit`, which stands for the contents; with the sha256 of files that the hub's cache does not name by it.

    The cache names a file's content by its sha256 or its git hash: UserError where one does not have it.
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
    """What git calls a file of this content."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def identity_now(origin: Origin) -> str:
    """The identity that a base model has by now."""
    path = Path(origin.folder)
    return folder_identity(path) if path.is_dir() else hub_identity(origin.folder, str(origin.revision))


def loaded(place: Origin) -> Origin:
    """The origin of a model that has just been loaded: the hub's cache holds all its files only now.

    UserError where a folder's files changed meanwhile.
    """
    if place.revision is not None:
        return replace(place, identity=identity_now(place))
    same(place)
    return place


def same(origin: Origin) -> None:
    """UserError where a base model is no longer what it was when `origin` was made."""
    if identity_now(origin) != origin.identity:
        raise UserError(f"{origin.folder}: the base model's files changed since they were loaded; put them back")


def read_config(place: Origin, base: str) -> Any:
    """The config of a base model, by transformers. Raises UserError where it cannot be read, or is code not trusted."""
    from transformers import AutoConfig

    try:
        with zoo.quiet():
            return AutoConfig.from_pretrained(place.folder, **place.options)
    except Exception as error:  # transformers raises many kinds here
        if (code := needs_code(error)) is not None:
            raise UserError(f'model.base = "{base}": {code}') from None
        if Path(place.folder).is_dir():
            raise UserError(f'model.base = "{base}": cannot be loaded: {zoo.first_line(error)}') from None
        raise UserError(
            f'model.base = "{base}": no catalogue name ({", ".join(zoo.MODELS)}), no local directory, '
            f"and not to be had from the Hugging Face hub ({zoo.first_line(error)}){hint(base, zoo.MODELS)}"
        ) from None


def needs_code(error: Exception) -> str | None:
    """A line, if loading failed because the folder's own Python code would have to run."""
    if "trust_remote_code" not in str(error):
        return None
    return (
        "its folder brings Python code of its own, which is not run; read that code, and if you trust it, "
        "set model.trust_remote_code = true"
    )
