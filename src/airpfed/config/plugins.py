"""Plug-ins: Python files, or installed packages, that add rows to the public dicts.

A plug-in is a file that assigns to a public dict: `DESIGNS["mine"] = mine`. A settings file names it,
`plugins = ["mine.py"]`, beside itself. An installed package names a module in the entry-point group `airpfed`. A
plug-in runs once a process for each content, before settings are checked; afterwards its rows only take their places
again.
"""

import ast
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import FileFinder, ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from airpfed.config.choice import KINDS
from airpfed.config.schema import Settings, choices_of
from airpfed.core.errors import UserError, one_line
from airpfed.core.rows import RowEntry, entries_of

GROUP = "airpfed"
"""The entry-point group of installed packages with rows."""
MAX_BYTES = 1 << 20
"""Size of the largest plug-in file."""
MAX_FILES = 200
"""Number of files that a plug-in may import from its folder."""


@dataclass(frozen=True)
class LoadedPlugin:
    """What a plug-in's code left. entries: its rows. modules: the modules of its local imports, by name."""

    entries: list[RowEntry]
    modules: dict[str, ModuleType]


_loaded: dict[str, LoadedPlugin] = {}
"""Hash of a plug-in with its local imports -> what it left."""
_code_files: set[str] = set()
"""Files whose code was run."""
_installed: dict[str, str] | None = None
"""Name of each installed package with rows -> its version and the hash of its files."""


# Loading


def load_installed() -> dict[str, str]:
    """Load the rows of installed packages, once a process. Returns the version and hash of each such package.

    Raises UserError if a package cannot be loaded.
    """
    global _installed
    if _installed is None:
        packages = {}
        for entry in importlib.metadata.entry_points(group=GROUP):
            package = entry.dist.name if entry.dist else entry.name
            try:
                with entries_of(package), contextlib.redirect_stdout(sys.stderr):
                    entry.load()
            except (Exception, SystemExit) as error:
                raise UserError(
                    f"{package}: the plug-in of this installed package cannot be loaded: {_words(error)}"
                ) from None
            version = entry.dist.version if entry.dist else ""
            packages[package] = f"{version} {_package_hash(entry.module)}"
        _installed = packages
    return dict(_installed)


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Load installed plug-ins and these files. A file whose content, local imports included, is loaded does not run.

    Raises UserError with the file and the line if a file is missing or if its code fails, and if two plug-ins have a
    row, or a local file, of one name.
    """
    load_installed()
    plugins = list(map(Path, paths))
    _check_local_names(plugins)
    rows: dict[tuple[str, str], Path] = {}
    for path in plugins:
        content = plugin_hash(path)
        if content not in _loaded:
            _loaded[content] = _run(path)
        plugin = _loaded[content]
        sys.modules.update(plugin.modules)
        for entry in plugin.entries:
            entry.rows.restore(entry, str(path))
            noun = entry.rows.noun
            if rows.setdefault((noun, entry.name), path) != path:
                other = rows[noun, entry.name].name
                raise UserError(f"plugins: {other} and {path.name} both have a {noun} {entry.name}; rename one")


def plugin_paths(names: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Resolve the plug-ins of a settings file in its folder. Raises UserError if two have one name."""
    paths = [os.path.abspath(folder / os.path.expanduser(name)) for name in names]  # noqa: PTH100, PTH111
    stems = [Path(path).name.casefold() for path in paths]
    if repeated := [Path(path).name for path in paths if stems.count(Path(path).name.casefold()) > 1]:
        raise UserError(f"plugins: two files are called {repeated[0]}; their names should differ")
    return tuple(paths)


def _check_local_names(plugins: Sequence[Path]) -> None:
    """Raise UserError if two plug-ins have local files of one name but other content: a run keeps one folder of all."""
    files: dict[str, Path] = {}
    for plugin in plugins:
        for file in plugin_files(plugin):
            name = str(file.relative_to(plugin.parent)).casefold()
            other = files.setdefault(name, file)
            if other != file and _read(other) != _read(file):
                raise UserError(f"plugins: {other} and {file} have one name; rename one")


def _run(path: Path) -> LoadedPlugin:
    """Run a plug-in's code as a module of its own, which finds its local imports in its folder."""
    files = plugin_files(path)
    if path.suffix.lower() != ".py":
        raise UserError(f"plugins: {path}: should be a Python file, with a name that ends in .py")
    _code_files.update(map(str, files))
    local = {file.relative_to(path.parent).parts[0].removesuffix(".py") for file in files[1:]}
    for name in _modules_of(local):  # of another plug-in, or of an older version of this one
        del sys.modules[name]
    name = f"airpfed_plugin_{path.stem}_{plugin_hash(path)[:8]}"
    spec: Any = importlib.util.spec_from_file_location(name, path, loader=SourceLoader(name, str(path)))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    finder = LocalFinder(path.parent, local)
    sys.meta_path.insert(0, finder)
    entries: list[RowEntry] = []
    try:
        # A plug-in may print; standard output belongs to the command, whose JSON another program may read.
        with entries_of(str(path)) as entries, contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
            for local_name in sorted(local):  # a function may import it later, when the finder is gone
                with contextlib.suppress(Exception):
                    importlib.import_module(local_name)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name)
        for entry in entries:
            entry.rows.origins.pop(entry.name, None)
            entry.rows.data.pop(entry.name, None)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in files]
        place = f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else str(path)
        raise UserError(f"plugins: {place}: {_words(error)}") from None
    finally:
        sys.meta_path.remove(finder)
    return LoadedPlugin(entries, {name: sys.modules[name] for name in _modules_of(local)})


def _words(error: BaseException) -> str:
    """Write an error of a plug-in's code in a line."""
    return one_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)[:300]}"


def fault_of(error: BaseException) -> str | None:
    """Say in a line where the code of a plug-in failed; None if an exception is not of such code."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _code_files:
            return f"plugins: {frame.filename}, line {frame.lineno}: {_words(error)}"
    return None


def _modules_of(names: Collection[str]) -> list[str]:
    """List the loaded modules with these top-level names, and those below them."""
    return [name for name in sys.modules if name.partition(".")[0] in names]


class SourceLoader(SourceFileLoader):
    """A loader that compiles a file's present text. Compiled copies, which may be of an older text, are left alone."""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the file."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class LocalFinder:
    """A finder, for sys.meta_path, of the modules that lie beside a plug-in. names: their top-level names."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        """Look in a folder for modules of these names alone."""
        self.folder, self.names = folder, names

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Find a module. path: folders of the package that it belongs to."""
        if name.partition(".")[0] not in self.names:
            return None
        finders = (FileFinder(folder, (SourceLoader, [".py"])) for folder in path or [str(self.folder)])
        return next((spec for finder in finders if (spec := finder.find_spec(name))), None)


# Files and hashes


def code_hashes(settings: Settings, keys: Collection[str] | None = None) -> dict[str, str]:
    """Map the plug-ins of settings to hashes: its files by name, and the installed packages whose rows it names.

    keys: only plug-ins with the rows of these settings, such as "adapters.method"; all files by default.
    """
    packages, files = load_installed(), {Path(path).name: Path(path) for path in settings.plugins}
    choices = [choice for key, choice in choices_of(settings).items() if keys is None or key in keys]
    origins = {KINDS[choice.kind].rows.origins.get(choice.name, "") for choice in choices}
    hashes = {name: version for name, version in packages.items() if name in origins}
    used = {Path(origin).name for origin in origins}
    return {name: plugin_hash(path) for name, path in files.items() if keys is None or name in used} | hashes


def plugin_hash(path: Path) -> str:
    """Hash a plug-in and the files beside it that it imports, by name and content."""
    names = {str(file.relative_to(path.parent)): file for file in plugin_files(path)}
    parts = [f"{name} {hashlib.sha256(_read(names[name])).hexdigest()}" for name in sorted(names)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _package_hash(module: str) -> str:
    """Hash the Python files of an installed package, which may be installed in place and change with its version kept.

    module: dotted name of a module of the package.
    """
    file = Path(str(sys.modules[module.partition(".")[0]].__file__ or ""))
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    parts = [f"{one.relative_to(file.parent)} {hashlib.sha256(one.read_bytes()).hexdigest()}" for one in files]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def plugin_files(path: Path) -> list[Path]:
    """List a plug-in and the files of its folder that it imports, also indirectly. The plug-in comes first.

    Of a package, a folder with `__init__.py`, all Python files count. A file with the name of a module of Python is not
    imported. Raises UserError if a file is not Python, or has the name of an installed package.
    """
    files, queue = [path], [path]
    while queue:
        for file in [file for name in _imported_names(queue.pop()) for file in _local_files(name, path.parent)]:
            if file not in files:
                files.append(file)
                queue.append(file)
        if len(files) > MAX_FILES:
            raise UserError(f"plugins: {path}: imports more than {MAX_FILES} files of its folder")
    return files


def _local_files(name: str, folder: Path) -> list[Path]:
    """List the files of a module in a folder: none if there is no such module, or if it is Python's or this package's.

    Raises UserError if an installed package has its name.
    """
    if name in sys.stdlib_module_names or name == "airpfed":
        return []
    if (folder / name / "__init__.py").is_file():
        files = sorted(file for file in (folder / name).rglob("*.py") if file.is_file())
    else:
        files = [file for file in [folder / f"{name}.py"] if file.is_file()]
    installed = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    spec = PathFinder.find_spec(name, installed) if files else None
    if spec is not None and spec.origin is not None and not files[0].samefile(spec.origin):
        raise UserError(f"plugins: {files[0]}: the installed package {name} has this name; rename the file")
    return files


def _read(path: Path) -> bytes:
    """Read a plug-in. Raises UserError if there is no such file."""
    try:
        if not path.is_file():
            raise UserError(f"plugins: {path}: no such Python file; it should lie beside the settings file")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"plugins: {path}: cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"plugins: {path}: larger than {MAX_BYTES >> 20} MB; a Python file is needed")
    return content


def _imported_names(path: Path) -> Iterator[str]:
    """List the top-level names of the modules that a file imports. Raises UserError if it is not Python."""
    try:
        tree = ast.parse(_read(path), str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else one_line(error) or "nested too deeply"
        raise UserError(f"plugins: {path}{line}: not Python: {reason}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.partition(".")[0]
