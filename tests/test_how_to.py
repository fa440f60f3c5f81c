"""The how-to pages, as a reader follows them in the folder of `airpfed init`: files, settings, commands, outputs."""

import doctest
import json
import linecache
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from safetensors.torch import load_file

import airpfed as ap
from airpfed.config import plugins
from airpfed.config.choice import KINDS
from airpfed.config.schema import choices_of
from airpfed.config.settings_file import read_settings, read_stored
from airpfed.core import run_files
from airpfed.core.rows import parse_call
from airpfed.experiment import build
from airpfed.experiment.starter import example_data, write_starter
from support.checks import disarm
from support.commands import Done, command, good
from support.models import SMALL, WORDS, save_bert

pytestmark = pytest.mark.usefixtures("shared_bases")

HOW_TO = Path(__file__).parent.parent / "docs" / "how-to"
FILES = "channel_file"
"""The page about channels and waveforms in files, which brings no row of the reader's own."""
SHARED = ("README", "base", "check-your-row", "serve", FILES)
"""Pages that are about no single kind of row."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module", autouse=True)
def _no_checks_but_the_packages_own() -> None:
    """A page shows what a user reads, whose `Block` no type checker wraps."""
    disarm("airpfed.model.methods", "Block.__init__")


@dataclass
class Row:
    """What a page is about. label: the row with an option, on a command line. acts: raises if the row does not act."""

    kind: str
    label: str
    acts: Callable[["Page"], None]


@dataclass
class Page:
    """A page whose commands have run. outputs: by command. run: folder of the run with the option on the line."""

    name: str
    folder: Path
    outputs: dict[str, Done] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The folder of the run with the row's label."""
        (line,) = [line for line in self.outputs if line.startswith("airpfed run") and ROWS[self.name].label in line]
        assert self.outputs[line].code == 0
        return self.folder / "runs" / "experiment"

    def output(self, *words: str) -> str:
        """The standard output of the command with these words."""
        (line,) = [line for line in self.outputs if all(word in line for word in words)]
        return self.outputs[line].out


def blocks_of(name: str) -> list[tuple[str, str]]:
    """The language and the text of each block of a page."""
    return BLOCK.findall((HOW_TO / f"{name}.md").read_text(encoding="utf-8"))


def file_name(text: str) -> str:
    """The file that a block is; empty for a cell of a notebook."""
    match = re.match(r"# ([a-z_]+\.py)\n", text)
    return match[1] if match else ""


def plugin_of(name: str) -> str:
    """The text of the page's plug-in, its first file."""
    return next(text for language, text in blocks_of(name) if language == "python" and file_name(text))


def tensors_of(run: Path) -> dict[str, Any]:
    (file,) = (run / "checkpoint").glob("*.safetensors")
    return load_file(file)


def summary_of(run: Path) -> Any:
    return json.loads((run / "summary.json").read_text())


# What each row did


def design_acts(page: Page) -> None:
    lines = page.output("airpfed link").splitlines()
    pi = {name: next(line for line in lines if f"│ {name} " in line).split("│")[2] for name in ("ridge", "mmse")}
    assert pi["ridge"] != pi["mmse"]
    assert "ridge(loading=30.0)" in page.output("airpfed link")
    records = run_files.load_records(page.run / "records.jsonl")
    assert all(0 < record.pi < 1 for record in records)


def channel_acts(page: Page) -> None:
    rows = (page.folder / "study" / "link.csv").read_text().splitlines()
    clear, hidden = (float(row.split(",")[-14]) for row in rows[1:])
    assert hidden > clear + 0.5


def scheme_acts(page: Page) -> None:
    """An entry of size 0.01 moves Adam's mean by a tenth of it."""
    first = tensors_of(page.run)["server.shared.first"].abs().unique()
    assert {round(float(value), 6) for value in first} <= {0.0, 0.001}
    record = run_files.load_records(page.run / "records.jsonl")[0]
    assert record.pi > 0 and record.pi_claimed is None and record.ledger.joules_max > 0


def method_acts(page: Page) -> None:
    tensors = tensors_of(page.run)
    assert tensors["devices.own.value"].shape[0] == 4 and tensors["devices.own.value"].shape[1] > 0
    assert bool((tensors["devices.own.value"][0] != tensors["devices.own.value"][1]).any())


def aggregator_acts(page: Page) -> None:
    """With SGD a shorter sum is a shorter step."""
    steps = {}
    for name in ("uplink", "capped(factor=1)"):
        words = ("--set", f"server.aggregator={name}", "--set", "server.optimizer=sgd", "--set", "server.rounds=1")
        good(command("run", *words, "--out", f"sgd-{name[:6]}"))
        steps[name] = tensors_of(page.folder / f"sgd-{name[:6]}")["server.personal.value"]
    start = load_start(page.folder)
    long, short = ((steps[name] - start).norm() for name in ("uplink", "capped(factor=1)"))
    assert 0 < short < 0.98 * long


def load_start(folder: Path) -> Any:
    """The tasks' parameters before round 1."""
    settings = read_settings(folder / "experiment.toml")
    return build.build_experiment(settings, build.load_tasks(settings)).initial.server.personal.value


def metric_acts(page: Page) -> None:
    summary = summary_of(page.run)
    assert summary["tasks"]["tone"]["metric"] == "f_beta" and summary["tasks"]["topic"]["metric"] == "accuracy"
    assert "f_beta" in page.output("beta=0.5")


def source_acts(page: Page) -> None:
    data = json.loads((page.run / "environment.json").read_text())["data"]
    assert data["tone"]["rows"] == 200 and list(data["tone"]["classes"]) == ["angry", "calm"]


def optimizer_acts(page: Page) -> None:
    tensors = tensors_of(page.run)
    assert tensors["server.shared.mean"].norm() > 0 and "server.shared.first" not in tensors


def schedule_acts(page: Page) -> None:
    words = ("--set", "server.schedule=step(step_size=1)", "--set", "server.rounds=2")
    good(command("run", *words, "--out", "two-rounds"))
    records = run_files.load_records(page.folder / "two-rounds" / "records.jsonl")
    assert [record.lr for record in records] == pytest.approx([5e-3, 5e-4])


def split_acts(page: Page) -> None:
    settings = read_settings(page.folder / "experiment.toml", ["tasks.*.split=by_length"])
    first, last = ([len(sample.prompt) for sample in device] for device in build.load_tasks(settings)[0].train)
    assert max(first) <= min(last)


def tracker_acts(page: Page) -> None:
    rounds, end = (page.run / "lines.txt").read_text().splitlines()
    record = run_files.load_records(page.run / "records.jsonl")[0]
    assert rounds == f"round 1: topic {record.loss['topic']:.6f} tone {record.loss['tone']:.6f}"
    assert end == f"end: average {summary_of(page.run)['average']}"


ROWS = {
    "design": Row("designs", "ridge(loading=0.5)", design_acts),
    "channel": Row("channels", "blockage(share=0.3)", channel_acts),
    "scheme": Row("schemes", "sign_vote(size=0.01)", scheme_acts),
    "method": Row("methods", "shared_a(personal=device)", method_acts),
    "aggregator": Row("aggregators", "capped(factor=1)", aggregator_acts),
    "optimizer": Row("optimizers", "lion(beta2=0.95)", optimizer_acts),
    "schedule": Row("schedules", "step(step_size=1)", schedule_acts),
    "metric": Row("metrics", "f_beta(beta=0.5)", metric_acts),
    "source": Row("sources", "folders(path=messages, ending=.txt)", source_acts),
    "split": Row("splits", "by_length(noise=0.5)", split_acts),
    "tracker": Row("trackers", "lines(digits=6)", tracker_acts),
}


# A page's folder and its blocks


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that knows the words of the data of `airpfed init`."""
    texts = [word for line in example_data().splitlines() for word in line.replace('"', " ").split()]
    return save_bert(tmp_path_factory.mktemp("bert"), words=[*WORDS, *(set(texts) - set(WORDS))], **SMALL)


QUICK = {
    "model": {"max_tokens": 24},
    "server": {"rounds": 1},
    "run": {"eval_every": 0, "threads": 1},
}
"""Changes of the settings for short runs. The numbers of samples stay, because pages show them."""


def start(folder: Path, base: Path) -> None:
    """What `airpfed init` writes, with a tiny base and few rounds."""
    write_starter(folder)
    file = folder / "experiment.toml"
    tree = tomlkit.parse(file.read_text())
    for section, table in {**QUICK, "model": {**QUICK["model"], "base": str(base)}}.items():
        tree[section].update(table)
    file.write_text(tomlkit.dumps(tree))


def change_settings(file: Path, text: str) -> None:
    """Edit the settings file as a page says; an empty text stands for a key that is deleted."""
    tree, changes = tomlkit.parse(file.read_text()), tomllib.loads(text)
    names = changes.pop("plugins", None)
    for task in changes.pop("tasks", []):
        table = next(table for table in tree["tasks"] if table["name"] == task["name"])
        table.update(task)
        for key in [key for key, value in task.items() if value == ""]:
            del table[key]
    for section, keys in changes.items():
        tree[section].update(keys)
    if "scheme" in changes.get("radio", {}):  # the pages say so in words
        del tree["radio"]["design"]
    head = "" if names is None else f"plugins = {json.dumps(names)}\n\n"
    file.write_text(head + tomlkit.dumps(tree))


@pytest.fixture
def rows() -> Iterator[None]:
    """The rows of the package, before and after."""
    with restored_rows():
        yield


class restored_rows:  # noqa: N801
    """A context that takes rows of plug-ins out again, and forgets that their files were loaded."""

    def __enter__(self) -> None:
        self.before = {name: dict(kind.rows.data) for name, kind in KINDS.items()}

    def __exit__(self, *_: object) -> None:
        plugins._loaded.clear()
        for name, kind in KINDS.items():
            kind.rows.data.clear()
            kind.rows.data.update(self.before[name])


@pytest.fixture(scope="module", params=ROWS)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Page]:
    """A page whose files are written, whose settings are made, and whose commands have run, in its order."""
    page = Page(request.param, tmp_path_factory.mktemp(request.param))
    with pytest.MonkeyPatch.context() as patch, restored_rows():
        follow(page, base, patch)
        yield page


def follow(page: Page, base: Path, patch: pytest.MonkeyPatch) -> None:
    """Write a page's files, make its settings, and run its commands, in its order, in the page's folder."""
    start(page.folder, base)
    patch.chdir(page.folder)
    for language, text in blocks_of(page.name):
        if language == "toml":
            change_settings(page.folder / "experiment.toml", text)
        elif language == "python" and file_name(text):
            Path(file_name(text)).write_text(text)
        elif language == "python" and not page.outputs:  # what stands before the first command makes data
            exec(text, {"ap": ap})
        elif language == "console":
            for line in [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]:
                page.outputs[line] = command(*shlex.split(line)[1:])


def expected_outputs(name: str) -> dict[str, str]:
    """The output that a page shows for each command."""
    outputs: dict[str, str] = {}
    for language, text in blocks_of(name):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:] if language == "console" else ():
            line, _, output = part.partition("\n")
            outputs[line] = output
    return outputs


# The tests


def test_there_is_a_page_for_every_kind_of_row():
    pages = {path.stem for path in HOW_TO.glob("*.md")} - set(SHARED)
    assert pages == set(ROWS)
    assert {row.kind for row in ROWS.values()} == set(KINDS)
    index = (HOW_TO / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\(([a-z_-]+)\.md\)", index)) == pages | {"base", "check-your-row", "serve", FILES}
    for page in pages:
        links = re.findall(r"\]\(([^)]+\.md)\)", (HOW_TO / f"{page}.md").read_text(encoding="utf-8"))
        assert all((HOW_TO / link).is_file() for link in links)


def test_settings_of_the_page_about_bases_are_settings(tmp_path):
    blocks = [tomllib.loads(text) for language, text in blocks_of("base") if language == "toml"]
    assert len(blocks) == 2
    for own in blocks:
        (tmp_path / "own.toml").write_text(tomlkit.dumps({**own, "tasks": [{"name": "sms"}]}))
        settings = read_settings(tmp_path / "own.toml").model_dump()
        assert all(settings[section][key] == value for section, keys in own.items() for key, value in keys.items())


@pytest.mark.parametrize("name", ROWS)
def test_a_plug_in_has_at_most_15_lines_and_public_names(name):
    for text in [text for language, text in blocks_of(name) if language == "python" and file_name(text)]:
        lines = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        assert len(lines) <= 15 and max(map(len, lines)) <= 120
        assert "airpfed." not in text and "import airpfed as ap\n" in text


def test_commands_print_what_the_page_shows(page: Page) -> None:
    compare_outputs(page)


def compare_outputs(page: Page) -> None:
    """Compare what commands printed with what the page shows, and their exit codes with whether it shows an error."""
    checker = doctest.OutputChecker()
    for line, expected in expected_outputs(page.name).items():
        done = page.outputs[line]
        assert not done.traceback, done.traceback
        refused = "airpfed: " in expected
        assert done.code == (2 if refused else 0), (line, done.err)
        # An error comes after what was printed before it.
        shown = done.out + done.err
        assert checker.check_output(expected, shown, FLAGS), f"{line}\n{shown}\nbut the page shows\n{expected}"
    assert any("airpfed: " in expected for expected in expected_outputs(page.name).values())


def test_a_row_acts(page: Page) -> None:
    ROWS[page.name].acts(page)


def test_a_row_and_its_options_are_listed(page: Page) -> None:
    name = ROWS[page.name].label.partition("(")[0]
    kind = KINDS[ROWS[page.name].kind]
    listed = page.output("airpfed list", kind.name)
    (line,) = [line for line in listed.splitlines() if line.split()[:1] == [name]]
    assert len(line.split()) > 3  # the first line of its documentation
    for option in kind.rows.options(name):
        assert f"{option.name} " in listed


def test_an_option_on_the_line_is_that_of_the_run(page: Page) -> None:
    label, key = ROWS[page.name].label, KINDS[ROWS[page.name].kind].key
    options = parse_call(label)
    stored = read_stored(page.run / "experiment.toml")
    if key == "tasks.source":
        assert parse_call(stored.tasks[1].source) == options
        return
    choices = [choice for name, choice in choices_of(stored).items() if re.sub(r"^tasks\..*\.", "tasks.", name) == key]
    assert any({"name": choice.name, **choice.options}.items() >= options.items() for choice in choices)


def test_a_changed_file_is_refused_on_resume(page: Page) -> None:
    """The last test of a page: it changes the file."""
    file = page.folder / file_name(plugin_of(page.name))
    (line,) = [line for line in page.outputs if line.startswith("airpfed run") and ROWS[page.name].label in line]
    words = [*shlex.split(line)[1:], "--resume", "--out", str(page.run)]
    good(command(*words, "--set", "server.rounds=1"))
    file.write_text(file.read_text() + "\n# a change\n")
    done = command(*words)
    assert done.code == 2 and f"the plug-in {file.name} has changed since this run started" in done.err


@pytest.mark.parametrize("name", ROWS)
def test_cells_of_a_notebook(name: str, tmp_path: Path, base: Path, rows: None, monkeypatch) -> None:
    """The plug-in's lines in a cell, then the page's other cells. A report of `airpfed.testing` is good."""
    start(tmp_path, base)
    monkeypatch.chdir(tmp_path)
    texts = [text for language, text in blocks_of(name) if language == "python"]
    cells = [text for text in texts if not file_name(text)]
    assert any("ap.Experiment" in cell for cell in cells)
    space: dict[str, Any] = {}
    for number, text in enumerate([plugin_of(name), *cells]):
        cell = f"<cell {number}>"
        linecache.cache[cell] = (len(text), None, text.splitlines(keepends=True), cell)  # as IPython does
        exec(compile(text, cell, "exec"), space)
        if "report" in space:
            assert space.pop("report").ok


# Channels and waveforms in files


@pytest.fixture(scope="module")
def files_page(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Page]:
    """The page about files, followed."""
    page = Page(FILES, tmp_path_factory.mktemp(FILES))
    with pytest.MonkeyPatch.context() as patch, restored_rows():
        follow(page, base, patch)
        yield page


def test_the_page_about_files_prints_what_it_shows(files_page: Page) -> None:
    compare_outputs(files_page)
    records = run_files.load_records(files_page.folder / "runs" / "experiment" / "records.jsonl")
    assert all(0 < record.pi < 1 for record in records)
    names = {path.name for path in (files_page.folder / "waveform").iterdir()}
    assert {"round-1.sigmf-collection", "receivers.npz", "round-1-antenna-15.sigmf-data"} <= names


def test_the_page_about_files_makes_files_that_are_channels(files_page: Page, monkeypatch) -> None:
    """The cells of the page in one notebook. The scene of Sionna RT, which tests do without, is only compiled."""
    monkeypatch.chdir(files_page.folder)
    space: dict[str, Any] = {}
    for text in [text for language, text in blocks_of(FILES) if language == "python"]:
        code = compile(text, FILES, "exec")
        if not file_name(text):
            exec(code, space)
    assert len(space["table"]) == 2 and float(space["table"]["nmse_db"].max()) < 0
    changes = {"subcarrier_groups": 4, "channel": ("file", {"path": "deepmimo.npz"})}
    net = ap.single_cell(devices=[2, 2], antennas=16, snr_db=10, **changes)
    expected = space["channel"][[3, 14, 15, 92], 0][:, :, [8, 24, 40, 56]]
    assert (net.channels(1, 4).numpy() == expected.transpose(2, 1, 0)).all()
