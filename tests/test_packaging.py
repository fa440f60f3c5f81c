"""The wheel holds what a run needs, the source archive what the tests need, and extras are what messages say."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from airpfed.config.experiment_files import experiment_names
from support.commands import command

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LEFT_OUT = {".git", ".venv", ".venv-peers", "runs", "build", "dist"}
"""Folders of a checkout that are not copied; a build also writes into its folder."""
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]
build_meta.build_wheel(folder)  # which changes sys.argv
build_meta.build_sdist(folder)
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str], str]:
    """Names of files in the wheel and in the source archive, and the wheel's metadata."""
    folder = tmp_path_factory.mktemp("dist")

    def ignored(parent: str, names: list[str]) -> set[str]:
        marked = {name for name in names if name.startswith((".", "__pycache__")) or name.endswith(".egg-info")}
        return marked | (LEFT_OUT & set(names) if Path(parent) == ROOT else set())

    copy = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "copy", ignore=ignored))
    done = subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as tar:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
        members = {member.name.partition("/")[2] for member in tar.getmembers() if member.isfile()}
    return names, members, metadata


def source_files(*folders: str) -> set[str]:
    """Every file of the checkout below these folders, without what Python and tools leave there."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = {path.relative_to(ROOT).as_posix() for path in paths}
    return {name for name in names if not re.search(r"__pycache__|\.egg-info|/\.", name)}


def test_the_wheel_holds_the_whole_package_and_nothing_else(archives: tuple[set[str], set[str], str]) -> None:
    package = {name.removeprefix("src/") for name in source_files("src")}
    assert {name for name in archives[0] if ".dist-info/" not in name} == package
    assert {f"airpfed/experiments/{name}.toml" for name in experiment_names()} <= package
    assert {"airpfed/py.typed", "airpfed/config/renames.toml", "airpfed/report/page.css"} <= package


def test_the_source_archive_holds_tests_benchmarks_and_documents(archives: tuple[set[str], set[str], str]) -> None:
    loose = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "MANIFEST.in"}
    loose |= {"pyproject.toml"}
    assert loose | source_files("src", "tests", "benchmarks", "docs") <= archives[1]
    assert not [name for name in archives[1] if name.startswith(("runs/", ".")) or name.endswith(".pyc")]


def test_the_metadata_offer_the_extras(archives: tuple[set[str], set[str], str]) -> None:
    extras = set(re.findall(r"^Provides-Extra: (.+)$", archives[2], re.MULTILINE))
    assert extras == set(PROJECT["optional-dependencies"])


def test_messages_name_extras_that_exist_and_no_extra_is_without_one() -> None:
    """Each extra is for a library that some code imports, and tells its name where the library is missing."""
    texts = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    messages = {name for text in texts for name in re.findall(r"airpfed\[([a-z,]+)\]", text)}
    messages |= {name for text in texts for name in re.findall(r'import_tracker\(.*"([a-z]+)"\)', text)}
    assert messages == set(PROJECT["optional-dependencies"]) - {"dev", "tensorboard"}


def test_the_version_is_the_projects() -> None:
    done = command("--version")
    assert (done.code, done.out, done.err) == (0, f"airpfed {PROJECT['version']}\n", "")
