"""The report: one self-contained HTML page of a run, or of several side by side, readable offline."""

import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape
from plotly.offline import get_plotlyjs

from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import write_atomic
from airpfed.report.figures import X_AXES, figures_of, task_names
from airpfed.report.runs import RunData, different_settings, load_runs
from airpfed.report.style import PALETTE
from airpfed.theory.verification import verify_run

TABS = ("overview", "learning", "air", "theory", "ledger", "settings")


def write_page(run: Path, *other_runs: Path, out: Path | None = None) -> Path:
    """Write the page of the runs in these folders and return its path.

    out: the page's path; by default `report.html` in the folder of the run, required for several runs. Raises UserError
    if a folder holds no run.
    """
    runs = load_runs((run, *other_runs))
    if out is None and other_runs:
        raise UserError("--out: say where the page of several runs should be, e.g. --out runs.html")
    path = out or run / "report.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made: {error.strerror}") from None
    with run_files.require_consistent(run, *other_runs):
        page = page_of(runs)
    write_atomic(path, page)
    return path


def page_of(runs: Sequence[RunData]) -> str:
    """The page as HTML."""
    figures = figures_of(runs)
    pages = Environment(loader=PackageLoader("airpfed", "report"), autoescape=select_autoescape(["html"]))
    tabs = [tab for tab in TABS if tab != "theory" or any(run.probe for run in runs)]
    return pages.get_template("page.html").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs side by side",
        runs=runs,
        colours=[PALETTE[i % len(PALETTE)] for i in range(len(runs))],
        tabs=tabs,
        x_axes=X_AXES,
        number=run_files.format_metric,
        tasks=task_names(runs),
        ledger=run_files.Ledger.model_fields,
        verifications={run.name: verify_run(run.records, run.probe) for run in runs if run.probe},
        differences=different_settings([run.settings for run in runs]) if len(runs) > 1 else {},
        json=json,
        figures={tab: figures.get(tab, {}) for tab in tabs},
        drawings={name: figure for by_name in figures.values() for name, figure in by_name.items()},
        phases=list(dict.fromkeys(phase for run in runs for phase in run.summary.seconds)),
        plotly=get_plotlyjs(),
    )
