"""Plug-ins: Python files, or installed packages, that add rows to the public dicts.

A plug-in is a file that assigns to a public dict: `airpfed.DESIGNS["mine"] = mine`. A settings file names it,
`plugins = ["mine.py"]`, beside itself. An installed package names a module in the entry-point group `airpfed`. A
plug-in is loaded once a process for each content, before settings are checked.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from airpfed.core.errors import UserError, one_line

GROUP = "airpfed"
"""The entry-point group of installed packages with rows."""
MODULE_PREFIX = "airpfed_plugin_"
"""Start of the name of the module that a plug-in file becomes."""
MAX_BYTES = 1 << 20
"""Size of the largest plug-in file."""

_loaded: set[str] = set()
_installed: dict[str, str] = {}
_installed_loaded = False


def load_installed() -> dict[str, str]:
    """Load the rows of installed packages, once a process. Returns the version of each such package.

    Raises UserError if a package cannot be loaded.
    """
    global _installed_loaded
    if not _installed_loaded:
        _installed_loaded = True
        for entry in importlib.metadata.entry_points(group=GROUP):
            package = entry.dist.name if entry.dist else entry.name
            try:
                entry.load()
            except Exception as error:
                raise UserError(f"{package}: its plug-in for airpfed cannot be loaded: {one_line(error)}") from None
            _installed[package] = entry.dist.version if entry.dist else ""
    return dict(_installed)


def load_plugins(paths: Iterable[str | Path]) -> None:
    """Load installed plug-ins and these files. A file whose content, local imports included, is loaded is skipped.

    Raises UserError with the file and the line if a file is missing or if its code fails.
    """
    load_installed()
    for path in map(Path, paths):
        content = plugin_hash(path)
        if content not in _loaded:
            _run(path)
            _loaded.add(content)


def plugin_hash(path: Path) -> str:
    """Hash a plug-in and the files beside it that it imports, by name and content."""
    files = plugin_files(path)
    parts = [f"{file.name} {hashlib.sha256(_read(file)).hexdigest()}" for file in sorted(files, key=lambda f: f.name)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def plugin_hashes(paths: Iterable[str | Path]) -> dict[str, str]:
    """Map the name of every plug-in file, and of every installed plug-in, to its hash or version."""
    return {Path(path).name: plugin_hash(Path(path)) for path in paths} | load_installed()


def plugin_files(path: Path) -> list[Path]:
    """List a plug-in and the files of its folder that it imports, also indirectly. The plug-in comes first."""
    files, queue = [path], [path]
    while queue:
        for name in _imported_names(queue.pop()):
            file = path.parent / f"{name}.py"
            if file.is_file() and file not in files:
                files.append(file)
                queue.append(file)
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


def _imported_names(path: Path) -> list[str]:
    """List the top-level names of the modules that a file imports. Raises UserError if it is not Python."""
    try:
        tree = ast.parse(_read(path), str(path))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(
            f"plugins: {path}{line}: not Python: {getattr(error, 'msg', None) or one_line(error)}"
        ) from None
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module.split(".")[0])
    return names


def _run(path: Path) -> None:
    """Run a plug-in's code as a module of its own, with its folder first on the path for its local imports."""
    files, folder = plugin_files(path), str(path.parent.resolve())
    for file in files[1:]:  # a module of that name from elsewhere, or an older version
        sys.modules.pop(file.stem, None)
    name = f"{MODULE_PREFIX}{path.stem}_{plugin_hash(path)[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"plugins: {path}: should be a Python file, with a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"plugins: {path}: {error}") from None
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in files]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise UserError(f"plugins: {path}{line}: {type(error).__name__}: {one_line(error)[:300]}") from None
    finally:
        sys.path.remove(folder)


def plugin_paths(names: Sequence[str], folder: Path) -> tuple[str, ...]:
    """Resolve the plug-ins of a settings file in its folder. Raises UserError if two have one name."""
    paths = [str((folder / name).resolve()) for name in names]
    stems = [Path(path).name for path in paths]
    if repeated := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UserError(f"plugins: two files are called {repeated[0]}; their names should differ")
    return tuple(paths)
