"""Plug-ins from outside the package, wherever their kind acts: with options, on resume, from a stranger's folder."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from airpfed.config import plugins as plugins_module
from airpfed.core import run_files
from airpfed.sweeps import figures
from support.commands import Done, command, good, stopping_after
from support.plugins import CHOICES, TEXTS, save_plugins, without_rows
from support.settings import save_settings

pytestmark = pytest.mark.usefixtures("shared_bases")

OVER_THE_AIR = ("design.py", "channel.py", "method.py", "metric.py", "optimizer.py")
ERROR_FREE = ("aggregator.py", "method.py", "metric.py", "optimizer.py")


@pytest.fixture(autouse=True)
def fresh_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(figures, "FIGURES", ())
    with without_rows():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    save_settings(folder, False)
    return folder


@pytest.fixture
def file(base: Path, tmp_path: Path) -> Path:
    """A settings file of two small tasks, in a folder of its own."""
    text = (base / "tiny.toml").read_text().replace('design = "channel_inversion"\n', "")
    path = tmp_path / "mine" / "tiny.toml"
    path.parent.mkdir()
    path.write_text(text.replace("rounds = 3", "rounds = 2"))
    return path


def sets(overrides: tuple[str, ...]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def one_line(done: Done, *words: str) -> None:
    """The command ended with one line that has these words."""
    assert done.code == 2 and not done.traceback, (done.code, done.out, done.err, done.traceback)
    assert done.err.count("\n") == 1 and done.err.startswith("airpfed: "), done.err
    assert all(word in done.err for word in words), done.err


def outside(*words: object, **variables: str) -> Done:
    """`airpfed WORDS` in a process of its own, which has seen no plug-in."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(
        [sys.executable, "-m", "airpfed.cli", *map(str, words)], capture_output=True, text=True, env=environment
    )
    return Done(done.returncode, done.stdout, done.stderr, "Traceback" if "Traceback" in done.stderr else "")


def test_a_plug_in_takes_at_most_15_lines():
    assert set(TEXTS) == set(CHOICES) == {*OVER_THE_AIR, *ERROR_FREE}
    assert all(len(text.strip().splitlines()) <= 15 for text in TEXTS.values())


@pytest.mark.parametrize(
    ("names", "more"), [(OVER_THE_AIR, ()), (ERROR_FREE, ("radio.scheme=error_free",))], ids=["air", "error-free"]
)
def test_a_run_uses_rows_of_every_kind(names, more, file, tmp_path):
    overrides = (*save_plugins(file.parent, *names), *more)
    out = tmp_path / "run"
    good(command("run", file, *sets(overrides), "--out", out))
    assert sorted(path.name for path in (out / "plugins").iterdir()) == sorted(names)
    stored = (out / "experiment.toml").read_text()
    for override in overrides[1 : 1 + len(names)]:
        option = override.partition("(")[2].rstrip(")")
        assert option.partition("=")[0] in stored
    environment = run_files.read_json(out / "environment.json", run_files.Environment)
    assert set(environment.root["plugins"]) == set(names)
    assert run_files.load_summary(out / "summary.json").exit == "completed"


@pytest.mark.parametrize(
    ("plugin", "override", "more"),
    [
        ("design.py", "radio.design.truncation=0.9", ()),
        ("channel.py", "radio.channel.weak_db=40.0", ()),
        ("method.py", "adapters.method.share=0.0", ()),
        ("optimizer.py", "server.optimizer.decay=0.5", ()),
        ("aggregator.py", "server.aggregator.norm=1e-3", ("radio.scheme=error_free",)),
    ],
)
def test_an_option_changes_what_is_trained(plugin, override, more, file, tmp_path):
    overrides = (*save_plugins(file.parent, plugin), *more)
    records = []
    for name, options in (("plain", ()), ("other", (override,)), ("again", ())):
        good(command("run", file, *sets((*overrides, *options)), "--out", tmp_path / name))
        losses = [dict(row.loss) for row in run_files.load_records(tmp_path / name / "records.jsonl")]
        latest = json.loads((tmp_path / name / "checkpoint" / "latest.json").read_text())
        records.append((losses, latest["sha256"]))
    assert records[0] == records[2] != records[1]


def test_the_list_has_the_row_with_its_options(file):
    save_plugins(file.parent, *TEXTS)
    words = [word for name in TEXTS for word in ("--plugin", file.parent / name)]
    out = good(command("list", *words)).out
    for name in ("mine", "two_rays", "half", "clipped_mean", "recall", "sign"):
        assert f"\n  {name} " in out
    assert "Channel inversion with a fixed threshold" in out
    assert "truncation = 0.2: a number at least 0 and at most 1 (threshold)" in out and "of = 0: a whole number" in out
    only = good(command("list", "metrics")).out
    assert only.startswith("metrics (tasks.metric)") and "channels" not in only
    one_line(command("list", "metric"), "metric: should be one of", "did you mean 'metrics'")


def test_a_link_study_compares_a_design_of_a_plug_in_in_a_channel_of_another(file, tmp_path):
    plugins, *choices = save_plugins(file.parent, "design.py", "channel.py")
    plain = json.loads(good(command("link", file, "--set", plugins, "--draws", "2", "--json")).out)
    assert "mine" in plain and "mmse" in plain
    rays = json.loads(good(command("link", file, *sets((plugins, choices[1])), "--draws", "2", "--json")).out)
    assert rays["mmse"]["pi_db"] != plain["mmse"]["pi_db"]
    designs = ["--design", "mine(truncation=0.9)", "--design", "mine"]
    done = good(command("link", file, "--set", plugins, "--draws", "2", "--json", *designs))
    results = json.loads(done.out)
    assert list(results) == ["mine(truncation=0.9)", "mine"] and results["mine"]["pi_db"] == plain["mine"]["pi_db"]
    assert results["mine(truncation=0.9)"]["pi_db"] != results["mine"]["pi_db"]
    grid = ["--grid", "radio.design.truncation=0.1,0.9", "--set", "radio.design=mine", "--design", "mine"]
    points = good(command("link", file, "--set", plugins, "--draws", "2", "--json", *grid)).out.splitlines()
    assert len({json.loads(point)["mine"]["pi_db"] for point in points}) == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--design", "mine(truncation=2)"], "--design mine(truncation=2): truncation = 2: should be a number"),
        (["--design", "mine(trunc=1)"], "trunc: no option of mine; its options are truncation; did you mean"),
        (["--design", "min"], "--design min: should be one of"),
        (["--design", "mine(0.1)"], "'0.1' should be written option=value"),
        (["--design", "mine(truncation=0.1, truncation=0.2)"], "truncation stands twice"),
        (["--grid", "radio.design=mine,mmse"], "--grid radio.design: has no effect"),
        (["--grid", "radio.design.truncation=0.1,0.2", "--set", "radio.design=mine", "--design", "mmse"], "no effect"),
        (
            ["--grid", "radio.design.truncation=0,1", "--set", "radio.design=mine", "--design", "mine(truncation=1)"],
            "has no effect beside --design with options",
        ),
        (["--grid", "radio.scheme=linear,digital"], "--grid radio.scheme: has no effect"),
    ],
)
def test_what_a_link_study_cannot_compare_is_one_line(words, line, file):
    plugins, _ = save_plugins(file.parent, "design.py")
    one_line(command("link", file, "--set", plugins, "--draws", "1", *words), line)


def test_a_plan_compares_the_settings_own_design(file):
    overrides = save_plugins(file.parent, "design.py", "channel.py")
    tree = json.loads(good(command("plan", file, *sets(overrides), "--draws", "1", "--json")).out)
    designs = {candidate["set"]["radio.design"] for candidate in tree["candidates"]}
    assert designs == {"uniform_forcing", "mmse", "mine(truncation=0.1)"}


def test_a_sweep_takes_plug_ins_to_its_workers_and_goes_on(file, tmp_path):
    """Two spawned workers; another copy of the plug-in in the settings' folder afterwards changes nothing."""
    overrides = save_plugins(file.parent, "design.py", "channel.py", "metric.py", "optimizer.py", "method.py")
    grid = ["--grid", "radio.design=mine(truncation=0.1),mine(truncation=0.5)"]
    out = tmp_path / "sweep"
    words = ["sweep", file, *sets((overrides[0], *overrides[2:])), *grid, "--workers", "2", "--out", out, "--json"]
    first = good(command(*words)).out
    cells = sorted(path.name for path in (out / "cells").iterdir())
    assert len(cells) == 2 and "mine-truncation=0.1-" in cells[0]
    assert all((out / "cells" / cell / "plugins" / "design.py").is_file() for cell in cells)
    assert "mine(truncation=0.5)" in (out / "cells.csv").read_text()
    again = command(*words)
    assert again.out == first and "2 of 2 are finished already" in again.err
    alone = [*words[:-5], "--workers", "1", "--out", tmp_path / "alone", "--json"]
    assert good(command(*alone)).out == first
    one = file.parent / "design.py"
    one.write_text(one.read_text().replace("truncation=truncation", "truncation=truncation / 2"))
    other = command(*words)
    assert "finished already" not in other.err and len(list((out / "cells").iterdir())) == 4


def test_a_sweep_that_was_killed_goes_on_with_its_plug_in(file, tmp_path):
    overrides = save_plugins(file.parent, "design.py", "optimizer.py")
    words = ["sweep", file, *sets(overrides), "--seeds", "2", "--workers", "1", "--json"]
    whole = good(command(*words, "--out", tmp_path / "whole")).out
    out = tmp_path / "killed"
    good(command(*words, "--out", out))
    for cell in (out / "cells").iterdir():  # as after a kill before the summary, in the last round
        (cell / "summary.json").unlink()
    with without_rows():
        assert good(command(*words, "--out", out)).out == whole


def test_scores_of_the_untouched_model_follow_the_metrics_code(file, tmp_path):
    """They are kept beside the cells and shared; another text of the same metric, or another option, shares nothing."""
    overrides, out = save_plugins(file.parent, "metric.py"), tmp_path / "sweep"

    def base() -> set[float]:
        good(command("sweep", file, *sets((overrides[0], "tasks.*.metric=recall")), "--workers", "1", "--out", out))
        summaries = [run_files.load_summary(path) for path in (out / "cells").glob("*/summary.json")]
        return {summary.tasks["colours"].base for summary in summaries}

    first = base()
    metric = file.parent / "metric.py"
    metric.write_text(metric.read_text().replace("sum(answers) / len(answers) if answers else 0.0", "0.125"))
    assert 0.125 not in first and base() == first | {0.125}


@pytest.mark.loopback
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_workers_and_flowers_actors_load_plug_ins(file, tmp_path):
    pytest.importorskip("ray")
    overrides = save_plugins(file.parent, *OVER_THE_AIR)
    words = ["sweep", file, *sets(overrides), "--seeds", "2", "--json"]
    alone = good(command(*words, "--workers", "1", "--out", tmp_path / "alone")).out
    assert good(command(*words, "--ray", "local", "--out", tmp_path / "ray")).out == alone
    pytest.importorskip("flwr")
    good(command("run", file, *sets((*overrides, "devices.chunk=1")), "--out", tmp_path / "run"))
    good(outside("federate", file, *sets((*overrides, "devices.chunk=1")), "--out", tmp_path / "federation"))
    records = [run_files.load_records(tmp_path / name / "records.jsonl") for name in ("run", "federation")]
    assert [row.loss for row in records[0]] == [row.loss for row in records[1]]


# Resume


@pytest.fixture
def stopped(file: Path, tmp_path: Path) -> tuple[Path, list[str | Path]]:
    """A run that stopped after a round, with a plug-in, its local imports, and a file in an option; how to go on."""
    (file.parent / "design.py").write_text(
        TEXTS["design.py"]
        .lstrip()
        .replace("import airpfed as ap", "import airpfed as ap\nimport factors\nfrom parts import most")
        .replace("= 0.2):", '= 0.2, table: str = ""):')
        .replace("truncation=truncation)", "truncation=factors.SCALE * min(truncation, most()))")
    )
    (file.parent / "factors.py").write_text("SCALE = 1.0\n")
    (file.parent / "parts").mkdir()
    (file.parent / "parts" / "__init__.py").write_text("from .inner import most\n")
    (file.parent / "parts" / "inner.py").write_text("def most():\n    import factors\n    return factors.SCALE\n")
    (file.parent / "codebook.csv").write_text("1,2\n")
    overrides = ('plugins=["design.py"]', "radio.design=mine(truncation=0.1, table=codebook.csv)")
    words = ["run", file, *sets(overrides), "--out", tmp_path / "run"]
    with stopping_after(1):
        assert command(*words).code == 130
    return file.parent, [*words, "--resume"]


def test_a_run_with_local_imports_goes_on_where_it_stopped(stopped, tmp_path):
    folder, words = stopped
    copies = tmp_path / "run" / "plugins"
    names = {str(path.relative_to(copies)) for path in copies.rglob("*.py")}
    assert names == {"design.py", "factors.py", "parts/__init__.py", "parts/inner.py"}
    with without_rows():
        good(command(*words))
    assert not list((tmp_path / "run").rglob("*.pyc")) and not list(folder.rglob("*.pyc"))


@pytest.mark.parametrize("change", ["design.py", "factors.py", "parts/inner.py", "parts/new.py"])
def test_a_run_is_not_resumed_with_another_plug_in(change, stopped, tmp_path):
    folder, words = stopped
    before = (tmp_path / "run" / "plugins" / "design.py").read_bytes()
    with (folder / change).open("a") as text:
        text.write("OTHER = 1\n")
    one_line(command(*words), "the plug-in design.py has changed since this run started; restore it")
    (tmp_path / "run" / "environment.json").unlink()  # then the checkpoint's own fingerprint is left
    one_line(command(*words), "checkpoint")
    assert (tmp_path / "run" / "plugins" / "design.py").read_bytes() == before


def test_a_run_is_not_resumed_with_another_file_in_an_option(stopped):
    folder, words = stopped
    (folder / "codebook.csv").write_text("1,3\n")
    one_line(command(*words), "radio.design.table", "has changed")
    (folder / "codebook.csv").write_text("1,2\n")
    good(command(*words))


def test_an_option_that_names_a_file_means_the_one_beside_the_settings(stopped, tmp_path, monkeypatch):
    folder, _ = stopped
    stored = (tmp_path / "run" / "experiment.toml").read_text()
    assert f'table = "{folder / "codebook.csv"}"' in stored


# A stranger's folder


@pytest.fixture
def received(file: Path, tmp_path: Path) -> Path:
    """A run's folder as somebody else sends it; its plug-in would leave a trace."""
    overrides = save_plugins(file.parent, "design.py", "metric.py")
    with (file.parent / "design.py").open("a") as text:
        text.write('import os, pathlib\npathlib.Path(os.environ["TRACE"]).touch()\n')
    os.environ["TRACE"] = str(tmp_path / "trace")
    good(command("run", file, *sets(overrides), "--out", tmp_path / "theirs"))
    (tmp_path / "trace").unlink()
    shutil.copytree(tmp_path / "theirs", tmp_path / "again")
    shutil.copytree(file.parent, tmp_path / "own")
    return tmp_path / "theirs"


def test_a_strangers_plug_in_runs_only_by_permission(received, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    monkeypatch.setenv("TRACE", str(trace))
    one_line(outside("export", received), 'radio.design = "mine" needs the code of', "design.py", "--trust", "--plugin")
    with without_rows():
        good(command("report", received))
        good(command("compare", received, tmp_path / "again"))
        done = command("bound", received)
        assert not done.traceback and "no theory.json" in done.err, done
    assert not trace.exists(), "the stranger's code did not run"
    with without_rows():
        done = good(command("export", received, "--trust"))
        assert trace.exists() and "running the code of this plug-in" in done.err and "same logits" in done.out
    trace.unlink()
    words = ["--plugin", tmp_path / "own" / "design.py", "--plugin", tmp_path / "own" / "metric.py"]
    (received / "plugins" / "design.py").unlink()
    with without_rows():
        done = good(command("export", received, *words))
        assert trace.exists() and "same logits" in done.out and "running" not in done.err


def test_rows_of_another_plug_in_of_the_same_name_are_not_taken_for_the_runs(received, tmp_path):
    """The run's row is in this process already: that is no permission either."""
    one_line(command("export", received), "needs the code of")
    other = tmp_path / "own" / "design.py"
    other.write_text(other.read_text() + "# another\n")
    words = ["--plugin", other, "--plugin", tmp_path / "own" / "metric.py"]
    one_line(command("export", received, *words), "differs from the one of this run")
    (received / "plugins" / "design.py").unlink()
    one_line(command("export", received, *words), "the plug-in design.py has changed since this run started")
    elsewhere = other.rename(tmp_path / "elsewhere.py")
    one_line(command("export", received, "--plugin", elsewhere), "no plug-in of this run has this name")
    one_line(command("export", received, "--plugin", tmp_path / "own" / "metric.py"), 'radio.design = "mine" needs')


# An installed package


def test_an_installed_package_brings_rows(file, tmp_path, monkeypatch):
    """A package with an entry point: listed, run, and compared on resume, without `plugins` in any settings."""
    site = tmp_path / "site"
    (site / "my_rows").mkdir(parents=True)
    (site / "my_rows" / "__init__.py").write_text(TEXTS["design.py"].lstrip())
    info = site / "my_rows-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-rows\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[airpfed]\nrows = my_rows\n")
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert "\n  mine " in good(outside("list", "designs", PYTHONPATH=path)).out
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(plugins_module, "_installed", None)
    out = tmp_path / "run"
    words = ["run", file, "--out", out]
    with stopping_after(1):
        assert command(*words, "--set", "radio.design=mine").code == 130
    environment = run_files.read_json(out / "environment.json", run_files.Environment)
    assert environment.root["plugins"]["my-rows"].startswith("1.2 ")
    with stopping_after(1):
        assert command("run", file, "--out", tmp_path / "plain").code == 130
    plain = run_files.read_json(tmp_path / "plain" / "environment.json", run_files.Environment)
    assert plain.root["plugins"] == {}, "a run without its rows does not depend on the package"
    monkeypatch.setitem(plugins_module._installed, "my-rows", "1.3 other")
    one_line(command(*words, "--resume", "--set", "radio.design=mine"), "the plug-in my-rows has changed")
    monkeypatch.setattr(plugins_module, "_installed", None)


def test_an_installed_package_that_fails_is_one_line_every_time(tmp_path, monkeypatch):
    site = tmp_path / "site"
    info = site / "broken_rows-1.dist-info"
    info.mkdir(parents=True)
    (site / "broken_rows.py").write_text("import sys\nsys.exit(3)\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-rows\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[airpfed]\nrows = broken_rows\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(plugins_module, "_installed", None)
    for _ in range(2):
        one_line(command("list", "designs"), "broken-rows: the plug-in of this installed package cannot be loaded")
    monkeypatch.setattr(plugins_module, "_installed", None)


# Faults of a plug-in


BROKEN = {
    "syntax": ("def mine(:\n", ("line 1: not Python",)),
    "raises": ("\n\nraise RuntimeError('no licence')\n", ("line 3: RuntimeError: no licence",)),
    "module": ("import not_there_at_all\n", ("line 1", "ModuleNotFoundError", "not_there_at_all")),
    "exit": ("import sys\nsys.exit('bye')\n", ("line 2: SystemExit: bye",)),
    "overrides": ("import airpfed as ap\nap.DESIGNS['mmse'] = ap.DESIGNS['naive_ao']\n", ("line 2", "design mmse")),
    "no function": ("import airpfed as ap\nap.DESIGNS['mine'] = 3\n", ("line 2", "design mine: should be a function")),
    "another kind": ("import airpfed as ap\nap.CHANNELS['x'] = ap.DESIGNS['mmse']\n", ("channel x: should be",)),
    "bad name": ("import airpfed as ap\nap.DESIGNS['my design'] = print\n", ("'my design': a name should be",)),
    "no type": ("import airpfed as ap\ndef f(p, *, x=1): ...\nap.DESIGNS['f'] = f\n", ("line 3", "x has no type")),
    "kwargs": ("import airpfed as ap\ndef f(p, **x): ...\nap.DESIGNS['f'] = f\n", ("line 3", "**x hides")),
    "null": ("a = '\0'\n", ("not Python",)),
    "deep": ("(" * 5000 + ")" * 5000, ("not Python",)),
    "large": ("#" * (2 << 20), ("larger than 1 MB",)),
    "local": ("import local_part\n", ("local_part.py, line 1: not Python",)),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.parametrize("order", ["run", "link", "check"])
def test_a_broken_plug_in_is_one_line_in_every_command(order, fault, file, tmp_path):
    text, words = BROKEN[fault]
    (file.parent / "broken.py").write_text(text)
    (file.parent / "local_part.py").write_text("a b\n")
    more = ["--out", tmp_path / "out"] if order == "run" else []
    for _ in range(2):  # what a first try left must not let the second pass
        one_line(command(order, file, "--set", 'plugins=["broken.py"]', *more), "plugins: ", *words)
    assert not (tmp_path / "out").exists()
    assert "mine" not in good(command("list", "designs")).out


def test_a_plug_in_may_print_and_read_what_lies_beside_it(file):
    plugins, _ = save_plugins(file.parent, "design.py")
    (file.parent / "large.txt").write_text("1\n" * (1 << 20))
    with (file.parent / "design.py").open("a") as text:
        text.write(
            "import pathlib\nprint('hello')\n"
            "TOTAL = sum(map(int, pathlib.Path(__file__).with_name('large.txt').read_text().split()))\n"
        )
    done = good(command("link", file, "--set", plugins, "--draws", "1", "--design", "mine", "--json"))
    assert list(json.loads(done.out)) == ["mine"], "standard output is the command's"
    assert "hello" in done.err


def test_two_plug_ins_with_one_row_or_one_file_name_are_refused(file):
    save_plugins(file.parent, "design.py")
    other = file.parent / "other"
    other.mkdir()
    (other / "design.py").write_text(TEXTS["design.py"])
    (other / "second.py").write_text(TEXTS["design.py"].lstrip())

    def run(*names: str) -> Done:
        return command("link", file, "--set", f"plugins={json.dumps(names)}", "--draws", "1")

    one_line(run("design.py", "other/second.py"), "design.py and second.py both have a design mine; rename one")
    one_line(run("design.py", "other/design.py"), "two files are called design.py")
    one_line(run("design.py", "design.py"), "two files are called design.py")
    for folder, value in ((file.parent, 1), (other, 2)):
        (folder / "tool.py").write_text(f"A = {value}\n")
        (folder / f"user{value}.py").write_text("import tool\n")
    one_line(run("user1.py", "other/user2.py"), "have one name; rename one", "tool.py")


def test_a_file_beside_a_plug_in_never_takes_an_installed_packages_place(file):
    plugins, _ = save_plugins(file.parent, "design.py")
    (file.parent / "numpy.py").write_text("raise RuntimeError('mine')\n")
    (file.parent / "random.py").write_text("raise RuntimeError('mine')\n")
    (file.parent / "airpfed.py").write_text("raise RuntimeError('mine')\n")
    with (file.parent / "design.py").open("a") as text:
        text.write("import random\nrandom.random()\n")
    good(command("link", file, "--set", plugins, "--draws", "1", "--design", "mine"))
    with (file.parent / "design.py").open("a") as text:
        text.write("import numpy\n")
    one_line(command("link", file, "--set", plugins), "numpy.py: the installed package numpy has this name; rename")


@pytest.mark.parametrize("name", ["My Design.py", "DESIGN.PY", "sub folder/Ünï.py", "link.py"])
def test_a_plug_in_may_have_any_path(name, file, tmp_path):
    path = file.parent / name
    path.parent.mkdir(exist_ok=True)
    if name == "link.py":
        (tmp_path / "real.py").write_text(TEXTS["design.py"].lstrip() + "import beside\n")
        (file.parent / "beside.py").write_text("")
        path.symlink_to(tmp_path / "real.py")
    else:
        path.write_text(TEXTS["design.py"].lstrip())
    plugins = f"plugins={json.dumps([name], ensure_ascii=False)}"
    done = good(command("run", file, *sets((plugins, "radio.design=mine")), "--out", tmp_path / "run"))
    assert (tmp_path / "run" / "plugins" / path.name).is_file(), done.err
    with without_rows():
        good(command("export", tmp_path / "run", "--trust"))


def test_a_plug_in_in_a_folder_that_cannot_be_written_works(file):
    plugins, _ = save_plugins(file.parent, "design.py")
    (file.parent / "design.py").write_text((file.parent / "design.py").read_text() + "import beside\n")
    (file.parent / "beside.py").write_text("")
    file.parent.chmod(0o555)
    try:
        good(command("link", file, "--set", plugins, "--draws", "1", "--design", "mine"))
    finally:
        file.parent.chmod(0o755)
    assert not (file.parent / "__pycache__").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('plugins=["no.py"]', ("no.py: no such Python file; it should lie beside the settings file",)),
        ('plugins=["."]', ("no such Python file",)),
        ('plugins=["tiny.toml"]', ("tiny.toml",)),
        ("plugins=3", ("plugins = 3: should be a list",)),
        ("plugins=mine.py", ('plugins = "mine.py": should be a list',)),
        ("plugins=[3]", ("plugins",)),
    ],
)
def test_plugins_that_are_none_are_one_line(override, words, file):
    one_line(command("link", file, "--set", override, "--draws", "1"), *words)


def test_with_an_experiment_of_the_package_a_plug_in_lies_in_the_working_directory(tmp_path, monkeypatch):
    plugins, _ = save_plugins(tmp_path, "design.py")
    monkeypatch.chdir(tmp_path)
    done = good(command("link", "four_tasks", "--set", plugins, "--draws", "1", "--design", "mine", "--json"))
    assert list(json.loads(done.out)) == ["mine"]


def test_the_newest_content_counts_and_an_older_one_comes_back(file, tmp_path):
    """In one process: a changed file runs again; the former content is what its settings mean, not the last loaded."""

    def level(value: float) -> float:
        text = TEXTS["design.py"].lstrip().replace("truncation=truncation", f"truncation={value}")
        (file.parent / "design.py").write_text(text)
        words = ["link", file, "--set", 'plugins=["design.py"]', "--draws", "1", "--design", "mine", "--json"]
        return json.loads(good(command(*words)).out)["mine"]["measured"]

    first, second = level(0.1), level(0.9)
    assert first != second and (level(0.1), level(0.9)) == (first, second)


def test_check_names_plug_ins_rows_and_data_and_writes_nothing(file, tmp_path):
    overrides = save_plugins(file.parent, *OVER_THE_AIR)
    before = sorted(tmp_path.rglob("*"))
    out = good(command("check", file, *sets(overrides))).out
    assert "plug-in: " in out and "radio.design = mine(truncation=0.1): Channel inversion with a fixed threshold" in out
    assert "tasks.colours.metric = recall(of=1): Share of the samples" in out and "memory: about" in out
    assert sorted(tmp_path.rglob("*")) == before


def test_a_notebook_row_needs_no_file(file):
    """Assigning to the public dict does it, for the process."""
    code = textwrap.dedent(
        f"""
        import sys
        import airpfed as ap
        ap.DESIGNS["twice"] = lambda problem: ap.designs.mmse(problem)
        from airpfed import cli
        sys.argv = ["airpfed", "link", {str(file)!r}, "--draws", "1", "--design", "twice", "--json"]
        cli.main()
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert list(json.loads(done.stdout)) == ["twice"], done.stderr
