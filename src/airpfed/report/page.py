"""One self-contained page of a run, or of several side by side, readable offline."""

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape
from plotly.offline import get_plotlyjs

from airpfed.core import files, run_files
from airpfed.core.errors import UserError
from airpfed.report import figures_of_runs
from airpfed.report import runs as loaded
from airpfed.report.figures import ACROSS, FIGURES, Figure, layout
from airpfed.report.figures_of_theory import THEORY
from airpfed.report.runs import Run
from airpfed.report.style import PALETTE
from airpfed.theory.verification import verify_run

TABS = ("overview", "learning", "air", "theory", "ledger", "settings")


def write(run: Path, *others: Path, out: Path | None = None) -> Path:
    """Write the page of these runs' directories from what the runs left there; returns its path.

    out: by default `report.html` in the directory of the one run; with several runs it has to be said.
    """
    runs = loaded.load((run, *others))
    if out is None and others:
        raise UserError("--out: say where the page of several runs should be, e.g. --out runs.html")
    path = out or run / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made: {error.strerror}") from None
    with run_files.require_consistent(run, *others):
        made = page_of(runs)
    files.write_atomic(path, made)
    return path


def page_of(runs: Sequence[Run]) -> str:
    """The page as HTML."""
    figures = figures_of_one(runs[0]) if len(runs) == 1 else figures_of_many(runs)
    pages = Environment(loader=PackageLoader("airpfed", "report"), autoescape=select_autoescape(["html"]))
    tabs = [tab for tab in TABS if tab != "theory" or any(run.probe for run in runs)]
    return pages.get_template("page.html").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side",
        runs=runs,
        colours=[PALETTE[i % len(PALETTE)] for i in range(len(runs))],
        tabs=tabs,
        across=ACROSS,
        number=run_files.format_metric,
        tasks=figures_of_runs.task_names(runs),
        ledger=run_files.Ledger.model_fields,
        accounts={run.name: verify_run(run.records, run.probe) for run in runs if run.probe},
        differing=loaded.differing([run.settings for run in runs]) if len(runs) > 1 else {},
        json=json,
        figures={tab: figures.get(tab, {}) for tab in tabs},
        drawings={name: figure for own in figures.values() for name, figure in own.items()},
        phases=list(dict.fromkeys(phase for run in runs for phase in run.summary.seconds)),
        plotly=get_plotlyjs(),
    )


def figures_of_one(run: Run) -> dict[str, dict[str, Figure]]:
    """Tab -> name -> figure."""
    found = {tab: {name: make(run.records, run.summary) for name, make in own.items()} for tab, own in FIGURES.items()}
    if run.place is not None:
        found["air"]["layout"] = layout(run.place)
    if run.probe is not None:
        found["theory"] = {name: make(run.records, run.probe) for name, make in THEORY.items()}
    return found


def figures_of_many(runs: Sequence[Run]) -> dict[str, dict[str, Figure]]:
    """Tab -> name -> figure; the theory's figures of each run that was metered, a place a drop of its own."""
    found = {tab: {name: make(runs) for name, make in own.items()} for tab, own in figures_of_runs.SIDE.items()}
    found["learning"] |= {
        f"accuracy-{i}": figures_of_runs.task_accuracy(runs, name)
        for i, name in enumerate(figures_of_runs.task_names(runs))
    }
    places = [run.place for run in runs]
    for i, run in enumerate(runs):
        if run.place is not None and run.place not in places[:i]:
            having = [other.name for other, place in zip(runs, places, strict=True) if place == run.place]
            found["air"][f"layout-{i}"] = titled(layout(run.place), ", ".join(having))
    if any(run.probe for run in runs):
        found["theory"] = {"psi": figures_of_runs.psi(runs)}
    for i, run in enumerate(runs):
        if run.probe is not None:
            own = {f"{name}-{i}": titled(make(run.records, run.probe), run.name) for name, make in THEORY.items()}
            found["theory"] |= own
    return found


def titled(figure: Figure, names: str) -> Figure:
    """The figure with the runs' names in its title."""
    return {**figure, "title": f"{figure['title']}: {names}"}
