"""Imports point down: a file imports only lower levels or its own folder."""

import ast
from functools import cache
from pathlib import Path

import pytest

import airpfed

ROOT = Path(airpfed.__file__).parent
LEVELS = [
    {"errors", "units", "streams", "heap", "memory", "spill", "lock", "files", "paths"}
    | {"settings", "applies", "reading", "record", "fetch"},
    {"tasks", "model", "air", "theory"},
    {"devices"},
    {"rounds"},
    {"build", "radio"},
    {"report", "outputs", "terminal", "reference", "tracker", "grid", "conduct", "flower", "data_report"},
    {"job", "study", "study_files", "bounds", "planning", "sweep", "cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part(module: str) -> str:
    """airpfed.air.problem -> air: the folder or file right below the package."""
    return module.split(".")[1]


@cache
def imports(path: Path) -> frozenset[str]:
    """All modules a file imports, also inside functions; `from airpfed.air import ledger` counts as the submodule."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if file_of(name) else str(node.module) for name in names}
    return frozenset(found)


def file_of(module: str) -> Path | None:
    """The file of one of our modules."""
    path = ROOT.parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def own(path: Path) -> set[str]:
    return {module for module in imports(path) if module.startswith("airpfed.")}


def name_of(path: Path) -> str:
    return ".".join(["airpfed", *path.relative_to(ROOT).with_suffix("").parts])


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down_or_stay_in_the_folder(path):
    """On levels 0, 5 and 6 single files may use each other (no cycle: below); folders of one level never do."""
    here = part(name_of(path))
    for module in own(path):
        there = part(module)
        beside = LEVEL[there] == LEVEL[here] and LEVEL[here] != 1
        assert there == here or LEVEL[there] < LEVEL[here] or beside, f"{name_of(path)} imports {module}"


def test_every_file_has_a_level():
    assert {part(name_of(path)) for path in FILES} <= set(LEVEL)


def test_there_is_no_import_cycle():
    """Depth-first over all modules; a module met again on its own path is a cycle."""
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " -> ".join(name_of(p) for p in (*trail, path))
        if path not in done:
            for module in own(path):
                target = file_of(module)
                if target is not None and target != path:
                    visit(target, (*trail, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_only_the_model_folder_knows_the_model_libraries(library):
    users = {part(name_of(path)) for path in FILES if library in {module.split(".")[0] for module in imports(path)}}
    assert users == {"model"}


def test_settings_know_no_torch():
    assert not any(module.split(".")[0] == "torch" for module in imports(ROOT / "settings.py"))


def test_nothing_below_build_sees_the_settings():
    """The mathematics receives plain values."""
    users = {part(name_of(path)) for path in FILES if "airpfed.config.schema" in own(path)}
    assert users <= {
        "applies",
        "reading",
        "build",
        "radio",
        "outputs",
        "reference",
        "study",
        "job",
        "planning",
        "sweep",
        "conduct",
        "flower",
        "data_report",
    }
