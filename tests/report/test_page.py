"""The report in a real browser: figures drawn, nothing fetched, no error on the console."""

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.run_files import Ledger, MeanSquaredErrors, RoundRecord, SlotError, Summary, TaskSummary
from airpfed.report import page, runs
from airpfed.report.figures import X_AXES, figures_of, metric_figure
from support.theory_records import make_probe, make_theory

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
    run_files.write_records(folder / "records.jsonl", rows)
    places = [run_files.DevicePosition(x=10.0 * n, y=-5.0, task=TASKS[n % 2], gain_db=-90.0 - n) for n in range(4)]
    run_files.write_json(folder / "layout.json", run_files.NetworkLayout(stations=[(0.0, 0.0)], devices=places))
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
    run_files.write_json(folder / "summary.json", summary)
    run_files.write_json(folder / "environment.json", {"command": "airpfed run tiny.toml --out 'a <dir>'", "seed": 0})
    (folder / "experiment.toml").write_text(SETTINGS)
    return folder


def make_metered(folder: Path) -> None:
    """Add to a run's directory what a metered one has."""
    rows = [
        row.model_copy(update={"theory": make_theory()}) for row in run_files.load_records(folder / "records.jsonl")
    ]
    run_files.write_records(folder / "records.jsonl", rows)
    run_files.write_json(folder / "theory.json", make_probe(tasks=dict.fromkeys(TASKS, 0.5)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "study")


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Open a page in a headless browser without a network; returns the page after its scripts, and the console."""
    if BROWSER is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium here: apt-get install chromium")
        pytest.skip("no Chromium here: apt-get install chromium")

    def open_page(path: Path, *more: str, seconds: int = 10) -> tuple[str, str]:
        options = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
        options += ["disable-background-networking", "disable-component-update", "disable-dev-shm-usage"]
        options += [
            f"user-data-dir={tmp_path / 'browser'}",
            f"virtual-time-budget={1000 * seconds}",
            "window-size=1300,2400",
        ]
        options += ["host-resolver-rules=MAP * ~NOTFOUND", "enable-logging=stderr", "dump-dom", *more]
        command = [str(BROWSER), *(f"--{option}" for option in options), path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return done.stdout, done.stderr

    return open_page


def console(log: str) -> list[str]:
    return [line for line in log.splitlines() if "CONSOLE" in line]


WALK = """<script>
addEventListener("load", async () => {
  const wait = () => new Promise((done) => setTimeout(done, 200));
  const all = (where) => [...document.querySelectorAll(where)];
  const colours = () => {
    const text = document.querySelector("section:not([hidden]) .figure .xtick text");
    return [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color, text?.style.fill];
  };
  const found = {name: document.title, width: innerWidth, tabs: {}};
  found.dark = matchMedia("(prefers-color-scheme: dark)").matches;
  await wait();
  all("[role=tab]")[0].focus();
  found.looks = [colours()];
  for (const _ of all("[role=tab]")) {
    const tab = document.querySelector("[role=tab][aria-selected=true]");
    const drawn = (box) => ({
      figure: !!box.querySelector("svg.main-svg"),
      marks: box.querySelectorAll("path.js-line, .point, path.js-fill").length,
      width: box.querySelector("svg")?.getBoundingClientRect().width, room: box.clientWidth,
    });
    found.tabs[tab.dataset.name] = {
      focused: document.activeElement === tab, outline: getComputedStyle(tab).outline,
      shown: all("section:not([hidden])").map((panel) => panel.id), scroll: document.documentElement.scrollWidth,
      figures: Object.fromEntries(all("section:not([hidden]) .figure").map((box) => [box.id.slice(7), drawn(box)])),
    };
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
    await wait();
  }
  found.around = document.activeElement.id;
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}));
  found.back = document.activeElement.id;
  document.getElementById("tab-learning").click();
  const across = () => document.getElementById("figure-loss").querySelector(".xtitle").textContent;
  found.across = [across()];
  for (const input of all("input[name=across]").slice(1)) {
    input.click();
    await wait();
    found.across.push(across());
  }
  document.getElementById("theme").click();
  await wait();
  found.looks.push(colours());
  found.kept = localStorage.getItem("airpfed-theme");
  localStorage.clear();
  parent.postMessage(JSON.stringify(found), "*");
});
</script></body>"""
FRAMES = """<!doctype html><link rel="icon" href="data:,"><body><pre></pre><script>
const frames = %s;
function next() {
  document.querySelector("iframe")?.remove();
  const frame = Object.assign(document.createElement("iframe"), frames.shift());
  if (frame.src) document.body.append(frame);
}
addEventListener("message", (event) => { document.querySelector("pre").append(event.data + "\\n"); next(); });
next();
</script></body>"""
"""One page after another, for only one can have the keyboard."""


@pytest.fixture
def walked(tmp_path: Path, opened: Callable[..., tuple[str, str]]) -> Callable[..., tuple[list[dict], list[str]]]:
    """Walk by keyboard through pages, each with its width; returns what was seen, and the console."""

    def walk(pages: list[tuple[Path, int]], *options: str) -> tuple[list[dict], list[str]]:
        frames = []
        for number, (path, width) in enumerate(pages):
            own = tmp_path / f"walk-{number}.html"
            own.write_text(path.read_text().replace("</body>", WALK))
            frames.append({"src": own.name, "width": width, "height": 900})
        (tmp_path / "frames.html").write_text(FRAMES % json.dumps(frames))
        dom, log = opened(tmp_path / "frames.html", *options, seconds=40)
        text = re.search("<pre>(.*?)</pre>", dom, re.DOTALL)
        assert text is not None
        return [json.loads(html.unescape(line)) for line in text[1].splitlines()], console(log)

    return walk


def contrast(one: str, other: str) -> float:
    """WCAG contrast of two colours, `rgb(r, g, b)`: text should have 4.5."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


ONE = {
    "overview": {"tasks"}, "learning": {"accuracy", "loss"}, "air": {"errors", "pi", "layout"}, "ledger": {"air-time"},
    "settings": set(),
}  # fmt: skip
MANY = {
    "overview": {"tasks"},
    "learning": {"accuracy", "loss", "accuracy-0", "accuracy-1"},
    "air": {"pi", "layout-0"},
    "theory": {"psi", "theory-decrease-1", "theory-shares-1", "theory-average-1"},
    "ledger": {"air-time"},
    "settings": set(),
}


@pytest.mark.parametrize("dark", [False, True])
def test_every_tab_is_drawn_wide_and_narrow_light_and_dark(tmp_path, walked, dark):
    """One run, one without errors (zeros on a logarithmic axis: those traces are empty), two side by side."""
    runs = [make_run(tmp_path / name, error_free=name == "free") for name in ("one", "free", "metered")]
    make_metered(runs[2])
    if dark:
        pages = [(page.write_page(runs[0], runs[2], out=tmp_path / "deep" / "two.html"), 400)]
    else:
        two = page.write_page(runs[0], runs[2], out=tmp_path / "two.html")
        pages = [(page.write_page(runs[0]), 400), (page.write_page(runs[1]), 1200), (two, 1200)]
    seen, log = walked(pages, *(["blink-settings=preferredColorScheme=0"] if dark else []))
    assert log == [] and [one["width"] for one in seen] == [width for _, width in pages]
    assert len({one["name"] for one in seen}) == len(pages)
    for one in seen:
        name = one["name"].split(" - ")[0]
        wanted = MANY if name.startswith("2") else ONE
        assert {tab: set(shown["figures"]) for tab, shown in one["tabs"].items()} == wanted, name
        for tab, shown in one["tabs"].items():
            assert shown["shown"] == [f"panel-{tab}"] and shown["focused"], (name, tab)
            assert re.search(r"solid 3px", shown["outline"]), f"{name}, {tab}: the focus is not seen"
            assert shown["scroll"] <= one["width"], f"{name}, {tab}: scrolls sideways at {one['width']}"
            for figure, drawn in shown["figures"].items():
                assert drawn["figure"] and 200 < drawn["width"] < drawn["room"] + 1, (name, tab, figure)
                assert drawn["marks"] or (name == "free" and figure in ("errors", "pi")), (name, tab, figure)
        assert (one["around"], one["back"]) == ("tab-overview", "tab-settings")
        assert one["across"] == list(X_AXES.values())
        assert one["dark"] is dark
        first, second = one["looks"]
        assert one["kept"] == ("light" if dark else "dark")
        assert [contrast(background, "rgb(0, 0, 0)") < 4 for background in (first[0], second[0])] == [dark, not dark]
        for background, *inks in (first, second):
            assert all(contrast(background, ink) > 4.5 for ink in inks), (name, background, inks)


def test_the_check_of_the_console_sees_an_error(run, opened):
    """The planted fault: a figure that the page does not know."""
    path = page.write_page(run)
    path.write_text(path.read_text().replace('id="figure-tasks"', 'id="figure-task"'))
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
    parser.feed(page.write_page(run).read_text())
    assert parser.found == ["data:,"]


def test_the_numbers_of_the_run_are_on_the_page(run):
    text = page.write_page(run).read_text()
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
        assert f'<th scope="row">{key}</th>' in body and str(field.description).split(",")[0] in body


def test_settings_and_command_are_shown_as_text(run):
    """What a user wrote never becomes markup."""
    text = page.write_page(run).read_text()
    assert "&lt;b&gt;kept&lt;/b&gt; &amp;" in text and "&lt;/script&gt;" in text
    assert "<b>kept</b>" not in text and "a &lt;dir&gt;" in text


def figure(name: str, run: Path) -> dict:
    return figures(runs.load_runs([run]))[name]


def figures(loaded: list[runs.RunData]) -> dict[str, dict]:
    return {name: made for by_name in figures_of(loaded).values() for name, made in by_name.items()}


def test_figures_hold_the_records_values(run):
    rows = run_files.load_records(run / "records.jsonl")
    loss = figure("loss", run)
    assert [trace["name"] for trace in loss["data"]] == list(TASKS)
    assert loss["data"][1]["y"] == [r.loss.get("moods") for r in rows] and loss["data"][1]["y"][2] is None
    assert loss["across"]["seconds"]["x"][0] == pytest.approx([0.25 * n for n in range(1, 7)])
    assert loss["across"]["joules"]["x"][1] == pytest.approx([1e-3 * n for n in range(1, 7)])
    errors = {trace["name"]: trace["y"] for trace in figure("errors", run)["data"]}
    assert errors["s measured"] == pytest.approx([0.022] * 6) and errors["s claimed"] == [0.02] * 6
    metric = figure("accuracy", run)
    traces = {trace["name"]: trace for trace in metric["data"]}
    assert traces["colours (test)"]["x"] == [0, 6] and traces["colours (test)"]["y"] == [0.523, 0.871]
    assert traces["colours (dev)"]["x"] == [2, 4, 6] and "moods (dev)" not in traces
    assert not traces["colours (test)"]["showlegend"] and traces["moods (test)"]["showlegend"]
    assert metric["across"]["seconds"]["x"][:2] == [pytest.approx([0.5, 1.0, 1.5]), [0, 1.5]]
    (own, base) = figure("tasks", run)["data"]
    assert own["y"] == [0.871, 0.333] and base["y"] == [0.523, 0.011]
    assert [trace["y"] for trace in figure("pi", run)["data"]] == [[0.03] * 6, [0.025] * 6]


def test_runs_beside_each_other_hold_their_own_values(run, tmp_path):
    other = make_run(tmp_path / "other")
    summary = run_files.load_summary(other / "summary.json")
    gone = {"colours": summary.tasks["colours"].model_copy(update={"final": 0.6})}
    run_files.write_json(other / "summary.json", summary.model_copy(update={"tasks": gone}))
    both = runs.load_runs([run, other])
    made = figures(both)
    assert [(bar["name"], bar["y"]) for bar in made["tasks"]["data"]] == [
        ("study", [0.871, 0.333]), ("other", [0.6, None]),
    ]  # fmt: skip
    traces = {trace["name"]: trace for trace in made["accuracy"]["data"]}
    assert traces["study (test)"]["y"] == [pytest.approx(0.267), pytest.approx(0.602)]
    assert traces["other (test)"]["y"] == [0.523, 0.6] and traces["other (dev)"]["y"] == [0.6, 0.7, 0.8]
    assert [trace["name"] for trace in metric_figure(both, "moods")["data"]] == ["study (test)"]
    assert made["loss"]["data"][0]["y"][0] == pytest.approx((1 + 1 / 2) / 2)
    for one in made.values():
        json.dumps(one, allow_nan=False)


def test_what_differs_is_told_and_long_names_give_way_to_it(tmp_path):
    texts = [
        '[radio]\nsnr_db = 0.0\n[[tasks]]\nname = "a"\ndevices = 2\n',
        '[radio]\nsnr_db = 5.0\n[[tasks]]\nname = "a"\n',
    ]
    assert runs.different_settings(texts) == {"radio.snr_db": ["0.0", "5.0"], "tasks.a.devices": ["2", "-"]}
    assert runs.different_settings(texts[:1] * 2) == {}
    long = [tmp_path / f"method=airpfed_snr_db={n}_seed=0-0123abcd" for n in (0, 5)]
    assert runs.names_of(long, texts) == ["snr_db 0.0, devices 2", "snr_db 5.0, devices -"]
    assert runs.names_of(long, texts[:1] * 2) == [path.name for path in long]
    short = [tmp_path / "a", tmp_path / "b"]
    assert runs.names_of(short, texts) == ["a", "b"]
    alike = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    assert runs.names_of(alike, texts[:1] * 2) == [str(path) for path in alike]


def test_a_page_of_several_runs_needs_a_place_and_a_run_is_named_once(run, tmp_path):
    other = make_run(tmp_path / "other")
    with pytest.raises(UserError, match=r"^--out: say where"):
        page.write_page(run, other)
    with pytest.raises(UserError, match=r"named twice$"):
        page.write_page(run, run, out=tmp_path / "page.html")
    with pytest.raises(UserError, match=r"not a run's directory"):
        page.write_page(run, tmp_path, out=tmp_path / "page.html")
    path = page.write_page(run, other, out=tmp_path / "page.html")
    text = path.read_text()
    assert path == tmp_path / "page.html" and text.count("0.871") >= 2 and not (run / "report.html").exists()


def test_figures_are_plain_json_without_nan(run):
    assert json.dumps(figures(runs.load_runs([run])), allow_nan=False)


def test_a_run_that_stopped_before_its_first_round_has_a_report(run):
    run_files.write_records(run / "records.jsonl", [])
    summary = run_files.load_summary(run / "summary.json")
    stopped = summary.model_copy(update={"rounds": 0, "pi_mean": None, "exit": "interrupted"})
    run_files.write_json(run / "summary.json", stopped)
    assert "airpfed, 0 rounds, interrupted" in page.write_page(run).read_text()
