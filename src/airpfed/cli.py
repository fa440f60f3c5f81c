"""The command line: `airpfed run | link | export | tasks | report | federate`."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from airpfed.errors import UserError
from airpfed.flower import commands as federate

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
    from airpfed.job import run_job

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

    from airpfed import study, study_files

    found = study.studies(file, set_ or [], grid or [], draws, correlation, design or study.EVERY)
    if out is not None:
        found = study_files.kept(found, out, grid or [], partial(typer.echo, err=True))
    for point, rows in found:
        where = " ".join(point)
        if json_:
            typer.echo(json.dumps(study.as_json(rows) if not point else {"set": where, **study.as_json(rows)}))
        else:
            Console(width=None if sys.stdout.isatty() else 160).print(study.table(where, rows, draws))


@app.command()
def export(
    run_dir: Run,
    merged: Annotated[bool, typer.Option("--merged", help="write merged weights to RUN_DIR/merged too")] = False,
) -> None:
    """Write every task's model as a PEFT adapter, reloaded and compared before success is said."""
    from airpfed.job import export_job

    for folder in export_job(run_dir, merged):
        typer.echo(f"{folder}: reloaded with PEFT, same logits")
    if merged:
        typer.echo(f"{run_dir / 'merged'}: merged weights")


@app.command()
def tasks() -> None:
    """List the tasks and base models that can be had by name."""
    from airpfed.job import catalogue

    for line in catalogue():
        typer.echo(line)


@app.command()
def report(run_dir: Run) -> None:
    """Write report.html of a run again."""
    from airpfed.report.page import write

    typer.echo(write(run_dir))


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
