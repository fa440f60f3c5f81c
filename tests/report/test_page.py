"""The report in a real browser: figures drawn, nothing fetched, no error on the console."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from airpfed import record
from airpfed.record import Ledger, MeanSquaredErrors, RoundRecord, SlotError, Summary, TaskSummary
from airpfed.report import page
from airpfed.report.figures import FIGURES

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TASKS = ("colours", "moods")
SETTINGS = '# <b>kept</b> & "quoted" </script>\n[[tasks]]\nname = "colours"\n'


def row(number: int, error_free: bool) -> RoundRecord:
    def error(size: float) -> SlotError:
        zero = 0.0 if error_free else 1.0
        return SlotError(
            claimed=zero * size, measured=1.1 * zero * size, bias=0.1 * zero * size, variance=zero * size,
            silence=0.3, scale=1e-9,
        )  # fmt: skip

    quiet = number == 3
    return RoundRecord(
        round=number,
        loss={name: 1.0 / (number + index) for index, name in enumerate(TASKS[: 1 if quiet else 2])},
        accuracy={"colours": 0.5 + 0.05 * number} if number % 2 == 0 else {},
        mse=MeanSquaredErrors(s=error(0.02), p={name: error(0.05) for name in TASKS[: 1 if quiet else 2]}),
        pi=0.03,
        pi_claimed=0.025,
        absent=[3, 4] if quiet else [],
        ledger=Ledger(channel_uses=1000, air_seconds=0.25, joules_mean=1e-3, joules_max=2e-3, ofdm_symbols=4),
        seconds={"gradients": 1.0, "air": 0.1, "evaluate": 0.2},
    )


def make_run(folder: Path, error_free: bool = False) -> Path:
    """A run's directory, written by hand: six rounds of two tasks, one of them without its devices in round 3."""
    folder.mkdir(parents=True)
    rows = [row(number, error_free) for number in range(1, 7)]
    record.rewrite(folder / "records.jsonl", rows)
    places = [record.Place(x=10.0 * n, y=-5.0, task=TASKS[n % 2], gain_db=-90.0 - n) for n in range(4)]
    record.write_json(folder / "layout.json", record.Layout(stations=[(0.0, 0.0)], devices=places))
    tasks = {
        "colours": TaskSummary(
            metric="accuracy", base=0.523, final=0.871, base_balanced=0.456, final_balanced=0.812, samples=250
        ),
        "moods": TaskSummary(metric="exact_match", base=0.011, final=0.333, samples=120),
    }  # fmt: skip
    ledger = Ledger()
    for item in rows:
        ledger = ledger + item.ledger
    summary = Summary(
        method="airpfed", rounds=6, tasks=tasks, average=0.602, average_base=0.267, pi_mean=0.03, ledger=ledger,
        seconds={"gradients": 6.0}, exit="completed",
    )  # fmt: skip
    record.write_json(folder / "summary.json", summary)
    record.write_json(folder / "environment.json", {"command": "airpfed run tiny.toml --out 'a <dir>'", "seed": 0})
    (folder / "experiment.toml").write_text(SETTINGS)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "study")


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Path], tuple[str, str]]:
    """Open a page in a headless browser without a network; returns the page after its scripts, and the console."""
    if BROWSER is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium here: apt-get install chromium")
        pytest.skip("no Chromium here: apt-get install chromium")

    def open_page(path: Path) -> tuple[str, str]:
        options = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
        options += ["disable-background-networking", "disable-component-update", "disable-dev-shm-usage"]
        options += [f"user-data-dir={tmp_path / 'browser'}", "virtual-time-budget=10000", "window-size=1300,2400"]
        options += ["host-resolver-rules=MAP * ~NOTFOUND", "enable-logging=stderr", "dump-dom"]
        command = [str(BROWSER), *(f"--{option}" for option in options), path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        return done.stdout, done.stderr

    return open_page


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


def figure_divs(dom: str) -> dict[str, str]:
    """Name of each figure -> what the browser put into its div."""
    parts = re.split(r'<div class="figure[^"]*" id="figure-', dom)[1:]
    return {part.split('"')[0]: part for part in parts}


@pytest.mark.parametrize("error_free", [False, True])
def test_every_figure_is_drawn_without_an_error_on_the_console(tmp_path, opened, error_free):
    """An error-free run has zeros on a logarithmic axis: those traces are empty, the others are drawn."""
    dom, log = opened(page.write(make_run(tmp_path / "study", error_free)))
    assert console(log) == []
    divs = figure_divs(dom)
    assert set(divs) == {*FIGURES, "layout"}
    for name, div in divs.items():
        assert '<svg class="main-svg"' in div, name
        if not (error_free and name == "errors"):
            assert re.search(r'<path class="(js-line|point)"[^>]* d="M', div), name


def test_the_check_of_the_console_sees_an_error(run, opened):
    """The planted fault: a figure whose place is missing."""
    path = page.write(run)
    path.write_text(path.read_text().replace('id="figure-loss"', 'id="figure-lost"'))
    _, log = opened(path)
    assert console(log)


class Resources(HTMLParser):
    """Everything a browser would fetch for a page's tags."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_fetches_nothing(run):
    parser = Resources()
    parser.feed(page.write(run).read_text())
    assert parser.found == ["data:,"]


def test_the_numbers_of_the_run_are_on_the_page(run):
    text = page.write(run).read_text()
    body = text[: text.index("<script>")]
    for number in (
        "0.523",
        "0.871",
        "0.456",
        "0.812",
        "0.011",
        "0.333",
        "250",
        "120",
        "0.267",
        "0.602",
        "6,000",
        "1.5",
    ):
        assert re.search(rf"[>\s]{re.escape(number)}[<,\s]", body), number
    assert "round 3: 3, 4" in body
    for key, field in Ledger.model_fields.items():
        assert f"<td>{key}</td>" in body and str(field.description).split(",")[0] in body


def test_settings_and_command_are_shown_as_text(run):
    """What a user wrote never becomes markup."""
    text = page.write(run).read_text()
    assert "&lt;b&gt;kept&lt;/b&gt; &amp;" in text and "&lt;/script&gt;" in text
    assert "<b>kept</b>" not in text and "a &lt;dir&gt;" in text


def test_figures_hold_the_records_values(run):
    rows, summary = record.load(run / "records.jsonl"), record.load_summary(run / "summary.json")
    loss = FIGURES["loss"](rows, summary)["data"]
    assert [trace["name"] for trace in loss] == list(TASKS)
    assert loss[1]["y"] == [r.loss.get("moods") for r in rows] and loss[1]["y"][2] is None
    errors = {trace["name"]: trace["y"] for trace in FIGURES["errors"](rows, summary)["data"]}
    assert errors["s measured"] == pytest.approx([0.022] * 6) and errors["s claimed"] == [0.02] * 6
    assert FIGURES["air-time"](rows, summary)["data"][0]["x"] == pytest.approx([0.25 * n for n in range(1, 7)])
    metric = {trace["name"]: trace for trace in FIGURES["accuracy"](rows, summary)["data"]}
    assert metric["colours (test)"]["x"] == [0, 6] and metric["colours (test)"]["y"] == [0.523, 0.871]
    assert metric["colours (dev)"]["x"] == [2, 4, 6]


def test_figures_are_plain_json_without_nan(run):
    rows, summary = record.load(run / "records.jsonl"), record.load_summary(run / "summary.json")
    for figure in FIGURES.values():
        json.dumps(figure(rows, summary), allow_nan=False)


def test_a_run_that_stopped_before_its_first_round_has_a_report(run):
    record.rewrite(run / "records.jsonl", [])
    summary = record.load_summary(run / "summary.json")
    stopped = summary.model_copy(update={"rounds": 0, "pi_mean": None, "exit": "interrupted"})
    record.write_json(run / "summary.json", stopped)
    assert "airpfed, 0 rounds, interrupted" in page.write(run).read_text()
