"""The command line: `airpfed run | link | plan | bound | sweep | compare | federate | export | tasks | report`."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airpfed.core.errors import UserError
from airpfed.federation import commands as federate

if TYPE_CHECKING:
    from airpfed.sweeps.job import Report

app = typer.Typer(
    help="Personalised, multi-task federated LoRA fine-tuning of LLMs over the air.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(federate.app, name="federate")

File = Annotated[Path, typer.Argument(metavar="FILE.toml", help="settings of the experiment")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one setting")]
Run = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="directory of a run")]


@app.command()
def run(
    file: File,
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="directory of the run; default runs/NAME of the file, or NAME-2, ...")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last checkpoint (without --out: of the newest run)")
    ] = False,
) -> None:
    """Fine-tune: rounds of gradients over the air, a checkpoint each, adapters and a report at the end."""
    from airpfed.experiment.run import run_job

    code = run_job(file, set_ or [], out, resume, "airpfed " + shlex.join(sys.argv[1:]))
    raise typer.Exit(code)


@app.command()
def link(
    file: File,
    draws: Annotated[int, typer.Option("--draws", help="random drops and channels, at least 1")] = 20,
    grid: Annotated[list[str] | None, typer.Option("--grid", metavar="KEY=A,B,C", help="vary one setting")] = None,
    set_: Overrides = None,
    design: Annotated[
        list[str] | None, typer.Option("--design", metavar="NAME", help="only this design; may be given again")
    ] = None,
    correlation: Annotated[float, typer.Option("--correlation", help="of the devices' symbols, 0 to 1")] = 0.0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="write link.csv and figures to this directory too")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print JSON, one object a point of the grid")] = False,
) -> None:
    """Study the uplink without learning: every design over the same channels, claimed beside measured error."""
    import json
    from functools import partial

    from rich.console import Console

    from airpfed.config import settings_file
    from airpfed.config.applicability import notes
    from airpfed.planning import link_study, link_study_files

    found = link_study.studies(file, set_ or [], grid or [], draws, correlation, design or link_study.EVERY)
    for line in notes(settings_file.read(file, set_ or [])):
        typer.echo(line, err=True)
    if out is not None:
        found = link_study_files.kept(found, out, grid or [], partial(typer.echo, err=True))
    for point, rows in found:
        where = " ".join(point)
        if json_:
            typer.echo(
                json.dumps(link_study.as_json(rows) if not point else {"set": where, **link_study.as_json(rows)})
            )
        else:
            Console(width=None if sys.stdout.isatty() else 160).print(link_study.table(where, rows, draws))


@app.command()
def plan(
    file: File,
    set_: Overrides = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="KEY=A,B,C", help="radio settings to compare; default: power, antennas, design, access"
        ),
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option("--split", metavar="R_S:R_P", help="split of the ranks; may be given again")
    ] = None,
    limit: Annotated[float, typer.Option("--limit", help="largest share of the channel in Psi_T, percent")] = 10.0,
    draws: Annotated[int, typer.Option("--draws", help="random channels a candidate")] = 20,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PLAN.json", help="keep the plan for airpfed bound --plan")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Plan a run: the step size that is admissible, Psi_T and its price over settings, the cheapest good one."""
    import json

    from rich.console import Console

    from airpfed.experiment.artifacts import written_to
    from airpfed.planning import planner

    if out is not None:
        written_to(out, ".json")
    made = planner.make(file, set_ or [], grid or [], split or [], limit / 100, draws)
    if out is not None:
        planner.keep(made, out)
    if json_:
        typer.echo(json.dumps(planner.as_json(made)))
        return
    Console(width=None if sys.stdout.isatty() else 160).print(planner.table(made))
    for line in planner.lines(made):
        typer.echo(line)


@app.command()
def bound(
    run_dir: Run,
    plan_: Annotated[
        Path | None, typer.Option("--plan", metavar="PLAN.json", help="compare with what airpfed plan --out kept")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Hold a metered run against the convergence theory: violations, slack, Psi_T and who causes it."""
    import json

    from airpfed.core import run_files
    from airpfed.report import bound_check
    from airpfed.theory.verification import as_json, verify_run

    records, probe = bound_check.load(run_dir)
    with run_files.fitting(run_dir):
        if json_:
            typer.echo(json.dumps(run_files.told(as_json(verify_run(records, probe), probe))))
            return
        lines = [
            *bound_check.lines(records, probe),
            *(bound_check.compared(run_dir, records, probe, plan_) if plan_ else []),
        ]
    for line in lines:
        typer.echo(line)


@app.command()
def sweep(
    file: File,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="KEY=A,B,C", help="vary one setting; A:B:STEP: a range; KEY/KEY=A/B,C/D: joined"
        ),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option("--tune", metavar="KEY=A,B,C", help="choose this setting for every point, on the dev splits"),
    ] = None,
    tune_seeds: Annotated[
        int | None, typer.Option("--tune-seeds", help="seeds that --tune is judged on; default as many as --seeds")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="seeds a point, from run.seed on")] = 1,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="KEY=A", help="reference of the paired differences; default the first value"),
    ] = None,
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="directory of the sweep; default runs/NAME-sweep")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=0, help="cells at once; 0: one a core, two a GPU")] = 0,
    reuse: Annotated[
        list[Path] | None,
        typer.Option("--reuse", metavar="DIR", help="copy cells of the same settings from this sweep"),
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", metavar="ADDRESS", help='compute on a Ray cluster; "local" starts one here')
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Run every point of a grid with several seeds, where it is not there yet; tables with intervals, and figures."""
    from airpfed.sweeps.console import SweepScreen
    from airpfed.sweeps.job import Plan, sweep

    home = out or Path("runs") / f"{file.stem}-sweep"
    command = "airpfed " + shlex.join(sys.argv[1:])
    plan = Plan(
        file=file,
        overrides=tuple(set_ or ()),
        grid=tuple(grid or ()),
        tune=tuple(tune or ()),
        tune_seeds=tune_seeds,
        seeds=seeds,
        against=tuple(against or ()),
        home=home,
        reuse=tuple(reuse or ()),
        workers=workers,
        ray=ray,
        command=command,
    )
    try:
        done = sweep(plan, SweepScreen())
    except KeyboardInterrupt:
        typer.echo(f"stopped; go on with the same command: {command}", err=True)
        raise typer.Exit(130) from None
    show(done, json_)
    if done.failed:
        raise UserError(f"{len(done.failed)} of the cells failed, the first: {done.failed[0]}")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="runs, or folders of runs (a sweep's)")],
    against: Annotated[
        list[str] | None, typer.Option("--against", metavar="KEY=A", help="reference of the paired differences")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="OUT", help="write figures and their numbers to this directory")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Finished runs side by side, by the settings in which they differ; paired where seeds match."""
    from airpfed.sweeps import job
    from airpfed.sweeps.console import SweepScreen

    show(job.compare(folders, against or (), figures, SweepScreen()), json_)


def show(done: "Report", as_json: bool) -> None:
    """The final table of a sweep or a comparison on standard output."""
    import json

    from rich.console import Console

    from airpfed.sweeps.console import table

    if as_json:
        typer.echo(json.dumps(done.tree))
    else:
        Console(width=None if sys.stdout.isatty() else 200).print(table(done.found, done.against))


@app.command()
def export(
    run_dir: Run,
    merged: Annotated[bool, typer.Option("--merged", help="write merged weights to RUN_DIR/merged too")] = False,
) -> None:
    """Write every task's model as a PEFT adapter, reloaded and compared before success is said."""
    from airpfed.experiment.run import export_job

    folders = export_job(run_dir, merged)
    for folder in folders:
        if folder.is_relative_to(run_dir / "adapters"):
            typer.echo(f"{folder}: reloaded with PEFT, same logits")
    if merged:
        typer.echo(f"{run_dir / 'merged'}: merged weights")


@app.command()
def tasks() -> None:
    """List the tasks and base models that can be had by name."""
    from airpfed.experiment.run import catalogue

    for line in catalogue():
        typer.echo(line)


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="directories of runs")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html", help="where; default RUN_DIR/report.html of one run")
    ] = None,
) -> None:
    """Write report.html of a run again, or one page of several runs side by side."""
    from airpfed.experiment.artifacts import written_to
    from airpfed.report.page import write

    if out is not None:
        written_to(out, ".html")
    typer.echo(write(*run_dirs, out=out))


def main() -> None:
    """Entry point: what the user can put right is one line and exit code 2."""
    # Threads that wait spin shortly and then sleep: without a bound, two runs on the same cores stall each other;
    # without any spinning a round takes a fifth longer. Set before torch is loaded; GNU's OpenMP reads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        app(standalone_mode=True)
    except UserError as error:
        typer.echo(f"airpfed: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        typer.echo(f"airpfed: {error.filename or 'file'}: {error.strerror or error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
