"""The files of a plug-in, their hashes, and their loading once for each content."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airpfed import cli
from airpfed.air.designs import DESIGNS
from airpfed.config import plugins
from airpfed.config.plugins import code_hashes, load_plugins, plugin_files, plugin_hash, plugin_paths
from airpfed.config.settings_file import read_settings, write_settings
from airpfed.core.errors import UserError
from support.plugins import TEXTS, save_plugins, without_rows

COUNTED = "import airpfed as ap\nimport counter\ncounter.RUNS.append(1)\nap.DESIGNS['counted'] = ap.DESIGNS['mmse']\n"


@pytest.fixture(autouse=True)
def fresh_rows() -> Iterator[None]:
    with without_rows():
        yield


def files_of(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "mine.py"


def names(path: Path) -> list[str]:
    return [str(file.relative_to(path.parent)) for file in plugin_files(path)]


def test_local_imports_are_found_also_indirectly_and_in_functions(tmp_path):
    path = files_of(
        tmp_path,
        mine="import a\nfrom b import x\n",
        a="def f():\n    import c.inner\n",
        b="x = 1\ntry:\n    import nowhere\nexcept ImportError:\n    pass\n",
        c__inner="import mine\n",
        c__other="",
        unused="",
        os="",
        airpfed="",
    )
    (tmp_path / "c" / "__init__.py").write_text("")
    assert names(path) == ["mine.py", "a.py", "b.py", "c/__init__.py", "c/inner.py", "c/other.py"]
    folder = tmp_path / "namespace"
    folder.mkdir()
    path.write_text("import namespace, os, sys, airpfed\nfrom . import a\n")
    assert names(path) == ["mine.py"]


def test_the_hash_is_of_names_and_contents_wherever_they_lie(tmp_path):
    path = files_of(tmp_path / "x", mine="import a\n", a="A = 1\n", b="")
    other = files_of(tmp_path / "y", mine="import a\n", a="A = 1\n")
    first = plugin_hash(path)
    assert plugin_hash(other) == first
    (tmp_path / "x" / "b.py").write_text("changed")
    assert plugin_hash(path) == first
    (tmp_path / "x" / "a.py").write_text("A = 2\n")
    assert plugin_hash(path) != first
    renamed = other.rename(other.with_name("yours.py"))
    assert plugin_hash(renamed) != first


def test_a_plug_in_that_imports_too_much_is_refused(tmp_path):
    path = files_of(tmp_path, mine="\n".join(f"import part{n}" for n in range(300)))
    for n in range(300):
        (tmp_path / f"part{n}.py").write_text("")
    with pytest.raises(UserError, match="imports more than 200 files of its folder"):
        plugin_files(path)


def test_a_content_runs_once_and_a_changed_one_again(tmp_path):
    path = files_of(tmp_path, mine=COUNTED, counter="RUNS = []\n")
    load_plugins([path])
    counter = sys.modules["counter"]
    load_plugins([path])
    copy = files_of(tmp_path / "copy", mine=COUNTED, counter="RUNS = []\n")
    load_plugins([copy])
    assert counter.RUNS == [1] and DESIGNS.origins["counted"] == str(copy)
    path.write_text(COUNTED + "counter.RUNS.append(2)\n")
    load_plugins([path])
    assert sys.modules["counter"].RUNS == [1, 2] and counter.RUNS == [1]
    load_plugins([copy])
    assert sys.modules["counter"] is counter, "its own local import stands again"


def test_a_local_import_of_the_same_size_and_second_is_the_present_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = files_of(tmp_path, mine="import airpfed as ap\nimport level\nVALUE = level.VALUE\n", level="VALUE = 1\n")
    for value in (1, 2, 3):
        (tmp_path / "level.py").write_text(f"VALUE = {value}\n")
        os.utime(tmp_path / "level.py", (1e9, 1e9))
        load_plugins([path])
        assert value == sys.modules["level"].VALUE
    assert not list(tmp_path.rglob("__pycache__"))


def test_a_function_may_import_beside_it_when_it_is_called(tmp_path):
    text = "import airpfed as ap\ndef late(problem):\n    import helper\n    return helper.solve(problem)\n"
    text += "ap.DESIGNS['late'] = late\n"
    path = files_of(tmp_path, mine=text, helper="def solve(problem):\n    return 'solved'\n")
    load_plugins([path])
    assert DESIGNS["late"].solve(None) == "solved"


def test_a_plug_in_that_fails_leaves_no_row(tmp_path):
    path = files_of(tmp_path, mine=TEXTS["design.py"] + "raise KeyError('x')\n")
    before = set(sys.modules)
    for _ in range(2):
        with pytest.raises(UserError, match=r"mine.py, line 12: KeyError: 'x'"):
            load_plugins([path])
        assert "mine" not in DESIGNS and set(sys.modules) == before


def test_paths_are_beside_the_settings_file_and_differ_in_their_names(tmp_path):
    assert plugin_paths(["a.py", "b/c.py", "/x/d.py"], tmp_path) == (
        str(tmp_path / "a.py"), str(tmp_path / "b" / "c.py"), "/x/d.py",
    )  # fmt: skip
    for pair in (["a.py", "b/a.py"], ["a.py", "b/A.py"], ["a.py", "./a.py"]):
        with pytest.raises(UserError, match=r"plugins: two files are called a.py; their names should differ"):
            plugin_paths(pair, tmp_path)


def test_settings_name_what_lies_beside_them_and_other_files_in_full(tmp_path):
    file = tmp_path / "study.toml"
    save_plugins(tmp_path, "design.py", "metric.py")
    (tmp_path / "sub").mkdir()
    (tmp_path / "metric.py").rename(tmp_path / "sub" / "metric.py")
    file.write_text('plugins = ["design.py", "sub/metric.py"]\n[[tasks]]\nname = "sst2"\n')
    settings = read_settings(file)
    write_settings(settings, tmp_path / "again.toml")
    assert (tmp_path / "again.toml").read_text().startswith('plugins = ["design.py", "sub/metric.py"]\n')
    assert read_settings(tmp_path / "again.toml") == settings
    write_settings(settings, tmp_path / "sub" / "again.toml")
    assert read_settings(tmp_path / "sub" / "again.toml") == settings


def test_the_code_of_chosen_rows_is_asked_for_alone(tmp_path):
    file = tmp_path / "study.toml"
    overrides = save_plugins(tmp_path, "design.py", "method.py")
    file.write_text('[[tasks]]\nname = "sst2"\n')
    settings = read_settings(file, overrides)
    assert code_hashes(settings) == {name: plugin_hash(tmp_path / name) for name in ("design.py", "method.py")}
    assert set(code_hashes(settings, {"adapters.method", "server.optimizer"})) == {"method.py"}
    assert code_hashes(settings, {"server.optimizer"}) == {}


def test_code_that_fails_later_is_one_line_with_its_place(tmp_path, monkeypatch, capsys):
    """A design that raises in the middle of a study: no traceback of ours for a fault of theirs."""
    path = files_of(
        tmp_path, mine="from airpfed import DESIGNS\ndef mine(problem):\n    return 1 / 0\nDESIGNS['mine'] = mine\n"
    )
    (tmp_path / "a.toml").write_text('plugins = ["mine.py"]\n[[tasks]]\nname = "a"\n')
    monkeypatch.setattr(sys, "argv", ["airpfed", "link", str(tmp_path / "a.toml"), "--draws", "1", "--design", "mine"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"airpfed: plugins: {path}, line 3: ZeroDivisionError: division by zero\n"


def test_a_fault_of_other_code_stays_a_traceback():
    try:
        raise ValueError("ours")
    except ValueError as error:
        assert plugins.fault_of(error) is None


def test_a_plug_in_of_the_line_joins_those_of_the_file(tmp_path):
    files_of(tmp_path, mine="y = 2\n", other="x = 1\n")
    (tmp_path / "a.toml").write_text('plugins = ["other.py"]\n[[tasks]]\nname = "a"\n')
    settings = read_settings(tmp_path / "a.toml", [f"plugins+={tmp_path / 'mine.py'}"])
    assert [Path(path).name for path in settings.plugins] == ["other.py", "mine.py"]
