"""The public API: it loads what is used, type checkers see it from outside, and its examples run."""

import ast
import doctest
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import airpfed as ap
from support.settings import save_settings

SOURCE = Path(ap.__file__)
MODULES = sorted({ap._MODULES[name] for name in ap.__all__} | {inspect.getmodule(ap.lower_bound).__name__, "airpfed"})

OUTSIDE = """
import airpfed as ap

net = ap.single_cell(devices=[4, 4], antennas=8, snr_db=10)
problem = net.problem(round=0, blocks=5)
reveal_type(problem)
reveal_type(ap.designs.mmse(problem))
reveal_type(ap.DESIGNS["mmse"])
net.problem(blocks="five")
"""


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Another process that sees the package as this one does."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE.parent.parent)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_import_is_light():
    """The least of three, because other processes use the machine."""
    code = (
        "import sys, time; known = set(sys.modules); t = time.perf_counter(); import airpfed; "
        "t = time.perf_counter() - t; import json; print(json.dumps([t, sorted(set(sys.modules) - known)]))"
    )
    times, modules = zip(*(json.loads(python("-c", code).stdout) for _ in range(3)), strict=True)
    assert min(times) < 0.1
    assert {name.partition(".")[0] for name in modules[0]} & {"torch", "pydantic", "numpy", "pandas"} == set()


def test_every_public_name_is_there():
    for name in ap.__all__:
        assert getattr(ap, name) is not None, name
    assert set(ap.__all__) <= set(dir(ap))


def test_the_contract_checks_are_there():
    assert ap.testing.check_design("mmse").ok and "testing" in dir(ap)


def test_a_wrong_name_has_the_nearest_one():
    with pytest.raises(AttributeError, match=r"no attribute 'single_cel'. Did you mean: 'single_cell'\?"):
        ap.single_cel  # noqa: B018


def test_type_checkers_see_the_same_names():
    """The block for type checkers imports each name of the table from the table's module, and nothing else."""
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    imports = {alias.asname: node.module for node in block.body for alias in node.names if alias.asname == alias.name}
    assert imports == ap._MODULES | dict.fromkeys(ap._SUBPACKAGES, "airpfed")


def test_a_type_checker_outside_sees_types(tmp_path):
    (tmp_path / "outside.py").write_text(OUTSIDE)
    root = Path(__file__).parent.parent
    config = root / "pyproject.toml"  # strict, and without the sources of large libraries
    arguments = ("--config-file", str(config), "--cache-dir", str(root / ".mypy_cache"), "outside.py")
    lines = python("-m", "mypy", *arguments, cwd=tmp_path).stdout
    assert 'Revealed type is "airpfed.air.problem.TransceiverProblem"' in lines
    assert 'Revealed type is "airpfed.air.problem.Transceiver"' in lines
    assert 'Revealed type is "airpfed.air.designs.Design"' in lines
    assert 'has incompatible type "str"; expected "int"' in lines
    assert "Found 1 error in 1 file" in lines


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    """All of them: doctest passes over a function that a decorator of another module wraps."""
    module = importlib.import_module(name)
    lines = Path(module.__file__).read_text(encoding="utf-8").splitlines()
    if any("tiny.toml" in line for line in lines):  # two small tasks on a model with random weights
        save_settings(tmp_path, False)
        monkeypatch.chdir(tmp_path)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted == sum(line.strip().startswith(">>> ") for line in lines)


def test_every_function_and_class_has_an_example():
    values = {name: getattr(ap, name) for name in ap.__all__}
    without = [
        name
        for name, value in values.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and ">>> " not in (inspect.getdoc(value) or "")
    ]
    assert not without
