"""One self-contained page of a run, readable offline."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from plotly.offline import get_plotlyjs

from airpfed import record
from airpfed.errors import UserError
from airpfed.report.figures import FIGURES, layout
from airpfed.report.theory import THEORY
from airpfed.theory.account import account


def write(run: Path) -> Path:
    """Write `report.html` of a run's directory from what the run left there; returns its path."""
    if not (run / "experiment.toml").is_file():
        raise UserError(f"{run}: not a run's directory (no experiment.toml in it)")
    summary = record.load_summary(run / "summary.json")
    records = record.load(run / "records.jsonl")
    environment: dict[str, Any] = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    figures = {name: figure(records, summary) for name, figure in FIGURES.items()}
    place = record.load_layout(run / "layout.json")
    if place is not None:
        figures["layout"] = layout(place)
    probe = record.load_probe(run / "theory.json")
    if probe is not None:
        figures |= {name: figure(records, probe) for name, figure in THEORY.items()}
    page = Environment(loader=PackageLoader("airpfed", "report"), autoescape=select_autoescape(["html"]))
    text = page.get_template("page.html").render(
        title=run.name,
        number=record.number,
        summary=summary,
        ledger=summary.ledger.model_dump(),
        meaning={key: field.description for key, field in record.Ledger.model_fields.items()},
        settings=(run / "experiment.toml").read_text(encoding="utf-8"),
        environment=environment,
        environment_text=json.dumps(environment, indent=2),
        failed=account(records, probe).failed if probe else {},
        absent=[(row.round, row.absent) for row in records if row.absent],
        figures=figures,
        plotly=get_plotlyjs(),
    )
    record.write_atomic(run / "report.html", text)
    return run / "report.html"
