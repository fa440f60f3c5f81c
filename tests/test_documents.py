"""The documents are true: commands parse, settings exist, code runs, links lead somewhere, and old keys are gone."""

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import study
import typer
from click import BadOptionUsage, Command, Group, MissingParameter
from click.exceptions import NoArgsIsHelpError
from structure import LEVEL

from airpfed.cli import app
from airpfed.config.choice import BY_KEY
from airpfed.config.grid import axes_of, grid_points, overrides_of
from airpfed.config.schema import Settings
from airpfed.config.settings_file import read_new_settings, section_of
from airpfed.config.upgrade import MOVED_OPTIONS
from airpfed.experiment import starter

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WITHOUT_PLUGINS = [name for name in NAMES if not name.startswith("docs/how-to/")]
"""Documents whose settings need no plug-in; tests of their own run the how-to pages."""
SETTINGS_OF_RUN = ("run", "check", "link", "plan", "sweep", "federate", "federate run", "federate init")
"""Commands that read a settings file."""
WITH_PAGE = (
    "aggregator", "channel", "design", "method", "metric", "optimizer", "scheme", "source", "split", "tracker",
)  # fmt: skip
"""Kinds of rows, each with a how-to page."""
OWN_FILE = "reviews.toml"
"""The reader's own settings file in docs/first_run.md."""


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fenced(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def indented(text: str) -> list[str]:
    """The lines of indented code, with continued lines joined."""
    lines = re.sub(r" *\\\n *", " ", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)).splitlines()
    return [line[4:] for line in lines if line.startswith("    ")]


def commands(text: str) -> list[tuple[list[str], bool]]:
    """Every command of `airpfed` in a document: its words, and whether it is a line of code, and so complete.

    A command within a line of text that holds a placeholder, such as DIR or `...`, is left out.
    """
    pattern = r"(?:\.venv/bin/)?airpfed "
    lines = [line for line in indented(text) if re.match(pattern, line)]
    within = [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    placeholder = re.compile(r"\.\.\.|\b[A-Z]{3,}\b|\bKEY\b|\||<")
    mentions = [code for code in within if re.match(pattern, code) and not placeholder.search(code)]
    pairs = [*((line, True) for line in lines), *((code, False) for code in mentions)]
    return [(shlex.split(line, comments=True)[1:], complete) for line, complete in pairs]


def parse(words: list[str]) -> tuple[str, dict[str, object]]:
    """Parse a command with the command line itself, and run nothing. Returns its name and its parameters."""
    command: Command = typer.main.get_command(app)
    context, name = command.make_context("airpfed", list(words)), ""
    while isinstance(command, Group):
        rest = [*context._protected_args, *context.args]
        word, command, rest = command.resolve_command(context, rest)
        assert command is not None
        name = f"{name} {word}".strip()
        context = command.make_context(word, rest, parent=context)
    return name, context.params


def read_settings_of(name: str, parameters: dict[str, object]) -> int:
    """Read the settings that a command names, at every point of its grids. Returns the number of points."""
    file = parameters.get("file") or parameters.get("settings") or Path("experiment.toml")
    overrides = list(parameters.get("set_") or ())
    axes = axes_of([*(parameters.get("grid") or ()), *(parameters.get("tune") or ())])
    if name == "link":
        overrides += [f"radio.design={design}" for design in parameters["design"] or ()][:1]
    points = grid_points(axes) if axes else [()]
    for point in points:
        read_new_settings(Path(file), [*overrides, *overrides_of(point)], training=name != "link")
    return len(points)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the settings files that the documents speak of."""
    monkeypatch.chdir(tmp_path)
    starter.write_starter(tmp_path)
    shutil.copytree(ROOT / "docs" / "tables", tmp_path / "docs" / "tables")
    (tmp_path / OWN_FILE).write_text(fenced(text_of("docs/first_run.md"), "toml")[0])
    return tmp_path


# Commands


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse_and_their_settings_are_right(name: str, desk: Path) -> None:
    for words, complete in commands(text_of(name)):
        try:
            command, parameters = parse(words)
        except (MissingParameter, BadOptionUsage, NoArgsIsHelpError):
            assert not complete, words  # `airpfed sweep --reuse` in a sentence: command and option exist
            continue
        if command in SETTINGS_OF_RUN and name in WITHOUT_PLUGINS:
            assert read_settings_of(command, parameters) > 0, words


def test_every_document_of_use_has_commands() -> None:
    """What is read above is there to be read."""
    counts = {name: len(commands(text_of(name))) for name in NAMES}
    assert counts["README.md"] > 6
    assert all(counts[f"docs/{name}.md"] for name in ("first_run", "methods", "sweeps", "air", "theory", "federation"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("airpfed run minilm --outt x", "outt"),
        ("airpfed run minilm --set radio.debias=true", "debiased_mmse"),
        ("airpfed run minilm --set radio.design=error_free", "radio.scheme"),
        ("airpfed run experiments/minilm.toml", "is called minilm"),
        ("airpfed sweep conflict --grid tasks.*.dirichlet_alpha=0.1", "split"),
        ("airpfed link four_tasks --grid radio.snr=0,10", "snr_db"),
        ("airpfed federate init site --deal", "settings"),
        ("airpfed sweeps conflict", "sweeps"),
    ],
)
def test_a_command_that_is_out_of_date_is_seen(line: str, message: str, desk: Path) -> None:
    ((words, _),) = commands(f"    {line}\n")
    with pytest.raises(Exception, match=message):
        read_settings_of(*parse(words))


@pytest.mark.parametrize("name", NAMES)
def test_scripts_targets_and_their_options_exist(name: str) -> None:
    text = text_of(name)
    code = "\n".join([*indented(text), *(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text))])
    for script, rest in re.findall(r"\b((?:benchmarks|docs)/[\w/]+\.py)\b([^\n]*)", code):
        source = (ROOT / script).read_text(encoding="utf-8")
        assert [option for option in re.findall(r"--[a-z-]+", rest) if f'"{option}"' not in source] in ([], ["--set"])
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", code, re.MULTILINE)) <= targets


# Settings


@cache
def keys() -> set[str]:
    """All keys, `section.key`; those of tasks are `tasks.key`."""
    sections = {name: section_of(field.annotation) for name, field in Settings.model_fields.items()}
    return {f"{name}.{key}" for name, model in sections.items() if model for key in model.model_fields}


@pytest.mark.parametrize("name", NAMES)
def test_keys_in_documents_exist(name: str) -> None:
    sections = sorted({key.split(".")[0] for key in keys()})
    pattern = rf"`(?:--set )?['\"]?((?:{'|'.join(sections)})(?:\.[a-z*_][a-z_]*)+)"
    for key in re.findall(pattern, text_of(name)):
        section, *rest = key.split(".")
        if rest[-1] in ("json", "log", "toml", "key"):  # a file's name; the placeholder of a key
            continue
        last = f"{section}.{rest[-1]}"
        option = f"{section}.{rest[-2]}" in BY_KEY if len(rest) > 1 else False
        assert last in keys() or option or (ROOT / "src/airpfed" / section / f"{rest[0]}.py").is_file(), key


@pytest.mark.parametrize("name", NAMES)
def test_old_keys_are_gone(name: str) -> None:
    """A key that moved into a row's options, under another name."""
    moved = {key.split(".")[1] for key, (_, option, _) in MOVED_OPTIONS.items() if key.split(".")[1] != option}
    present = {key.split(".")[1] for key in keys()}
    text = text_of(name)
    assert not [key for key in moved - present | {"debias"} if re.search(rf"\b{key}\b", text)]
    for key in ("error_free", "digital"):
        assert not re.search(rf'design ?= ?"?{key}\b', text)


@pytest.mark.parametrize("name", WITHOUT_PLUGINS)
def test_settings_files_in_documents_are_right(name: str, desk: Path) -> None:
    for number, block in enumerate(fenced(text_of(name), "toml")):
        file = desk / f"block{number}.toml"
        file.write_text(block)
        read_new_settings(file)


# Python


def test_the_readme_runs() -> None:
    """Its ten lines of Python, as they stand, and the picture that they end with."""
    (block,) = fenced(text_of("README.md"), "python")
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) == 9 and lines[0] == "import airpfed as ap"
    plt.close("all")
    space: dict[str, object] = {}
    exec(block, space)
    table = space["table"].pivot(index="snr_db", columns="design", values="nmse_db")  # type: ignore[attr-defined]
    assert len(table) == 5 and bool((table["mmse"] < table["mine"]).all())
    (line,) = plt.figure(plt.get_fignums()[-1]).axes
    assert {artist.get_label() for artist in line.get_lines()} == {"mine", "mmse"}
    plt.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_python_in_documents_compiles(name: str) -> None:
    for block in fenced(text_of(name), "python"):
        compile(block, name, "exec")


# Shape and links


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = text_of("README.md")
    assert len(text.splitlines()) <= 130
    how_to = {f"docs/how-to/{kind}.md" for kind in WITH_PAGE}
    pages = {name for name in NAMES if re.fullmatch(r"docs/[a-z_]+\.md", name)}
    tutorials = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/tutorials").glob("*.py")}
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text)}
    assert how_to | pages | tutorials | {"CONTRIBUTING.md"} <= linked


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub writes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([\w.#][^)\s]*)\)", re.sub(r"`[^`]*`", "", text_of(name))):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), target


def test_every_word_of_the_glossary_is_where_it_says() -> None:
    text = text_of("docs/concepts.md").partition("## Glossary")[2]
    rows = re.findall(r"^\| (.+?) \| .+ \| `(\w+)` in \[`(.+?)`\]\((.+?)\) \|$", text, re.MULTILINE)
    assert len(rows) == text.count("\n| ") - text.count("| word |") > 50
    words = [word for row in rows for word in row[0].split(", ")]
    assert len(set(words)) == len(words), "one word, one meaning"
    for word, name, file, link in rows:
        assert link == f"../src/airpfed/{file}", word
        source = (ROOT / "src/airpfed" / file).read_text(encoding="utf-8")
        assert re.search(rf"\b{name}\b", source), word


def test_the_layout_is_that_of_the_package() -> None:
    rows = re.findall(r"^\| (\d) \| ((?:`\w+` ?)+) \|", text_of("CONTRIBUTING.md"), re.MULTILINE)
    levels = {folder: int(level) - 1 for level, names in rows for folder in re.findall(r"\w+", names)}
    assert levels == LEVEL
    assert all(int(a[0]) < int(b[0]) for a, b in pairwise(rows))


# Numbers


def test_the_studys_first_table_says_what_its_sections_say() -> None:
    page = text_of("docs/results.md")
    table = page.partition("## In one table")[2].partition("## Protocol")[0]
    studies = ("conflict", "air_conflict", "smollm2", "few", "related", "air_related")
    rows = [line for line in table.splitlines() if line.startswith(("| label", "| few", "| related"))]
    assert len(rows) == len(studies)
    for row, name in zip(rows, studies, strict=True):
        section = study.section(name, study.STUDIES[name])
        _, _, method, *halves, _ = (cell.strip() for cell in row.split("|"))
        assert f" {method} [" in section and all(f"| {half} |" in section for half in halves), row


def test_the_speed_in_short_is_that_of_the_tables() -> None:
    page = text_of("docs/performance.md")
    short, _, rest = page.partition("## In short")[2].partition("## Against one centralised step")
    for cell in re.findall(r"\d\.\d{3} \[[^\]]+\]", short):
        assert cell in rest
    for value in re.findall(r"(\d\.\d\d) \[", short):
        assert re.search(rf"{float(value):.2f}\d* \[|{value}", rest) or float(value) > 1


def test_pictures_have_their_numbers_beside_them() -> None:
    for picture in re.findall(r"\]\((docs/\S+\.svg)\)", text_of("README.md")):
        assert (ROOT / picture).stat().st_size < 100_000
        assert (ROOT / picture).with_suffix(".csv").is_file()


def test_the_picture_of_a_round_comes_from_its_script(tmp_path: Path) -> None:
    script = tmp_path / "round.py"
    script.write_text(text_of("docs/figures/round.py"))
    subprocess.run([sys.executable, str(script)], check=True, env={"MPLBACKEND": "Agg"}, cwd=tmp_path)
    drawn, stored = (path.read_text() for path in (tmp_path / "round.svg", ROOT / "docs/figures/round.svg"))
    assert drawn.count("<path") == stored.count("<path")
