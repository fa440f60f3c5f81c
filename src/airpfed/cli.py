"""The command line: `airpfed init | run | predict | link | plan | bound | sweep | compare | federate | export ...`."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airpfed.config.experiment_files import default_path, settings_path
from airpfed.core.errors import UserError
from airpfed.federation import commands as federate

if TYPE_CHECKING:
    from rich.table import Table

    from airpfed.sweeps.job import SweepResult

app = typer.Typer(
    help="Personalised, multi-task federated LoRA fine-tuning of LLMs over the air.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(federate.app, name="federate")

Texts = list[str] | None
OptionalPath = Path | None

_FILE = typer.Argument(
    metavar="FILE.toml", parser=settings_path, help="settings of the experiment, or its name, such as quickstart"
)
File = Annotated[Path, _FILE]
OptionalFile = Annotated[OptionalPath, _FILE]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="directory of a run")]
Overrides = Annotated[Texts, typer.Option("--set", metavar="KEY=VALUE", help="change one setting")]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="your own copy of a plug-in; may be given again"),
]
Reference = Annotated[
    Texts,
    typer.Option("--against", metavar="KEY=A", help="reference of the paired differences; default: the first value"),
]


def _show_version(requested: bool) -> bool:
    if requested:
        from importlib.metadata import version

        typer.echo(f"airpfed {version('airpfed')}")
        raise typer.Exit()
    return requested


@app.callback()
def main_options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Personalised, multi-task federated LoRA fine-tuning of LLMs over the air."""


@app.command()
def init() -> None:
    """Write a first settings file and its data, experiment.toml and example.csv, into the working directory."""
    from airpfed.experiment import starter

    starter.write_starter(Path())
    typer.echo("experiment.toml: settings with comments\nexample.csv: 200 messages in two tasks\nnext: airpfed run")


@app.command()
def run(
    file: OptionalFile = None,
    set_: Overrides = None,
    plugin: Plugins = None,
    out: Annotated[
        OptionalPath, typer.Option(help="directory of the run; default runs/NAME of the file, or NAME-2, ...")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the last checkpoint (without --out: of the newest run)")
    ] = False,
) -> None:
    """Fine-tune: rounds of gradients over the air, a checkpoint after each, adapters and a report at the end.

    FILE.toml may be the name of an experiment of the package, such as quickstart; default: experiment.toml.
    """
    from airpfed.experiment.run import run_file

    raise typer.Exit(run_file(file or default_path(), _overrides(set_, plugin), out, resume, _command()))


@app.command()
def link(
    file: File,
    draws: Annotated[int, typer.Option(help="random drops and channels, at least 1")] = 20,
    grid: Annotated[Texts, typer.Option(metavar="KEY=A,B,C", help="vary one setting")] = None,
    set_: Overrides = None,
    plugin: Plugins = None,
    design: Annotated[
        Texts, typer.Option(metavar="NAME", help="only this design, or name(option=...); may be given again")
    ] = None,
    correlation: Annotated[float, typer.Option(help="of the devices' symbols, 0 to 1")] = 0.0,
    out: Annotated[
        OptionalPath, typer.Option(metavar="DIR", help="also write link.csv and figures to this directory")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print JSON, an object per point of the grid")] = False,
) -> None:
    """Study the uplink without learning: all designs over the same channels, with claimed and measured error."""
    from functools import partial

    from airpfed.config import settings_file
    from airpfed.config.applicability import settings_notes
    from airpfed.planning import link_study

    results = link_study.study_grid(file, _overrides(set_, plugin), grid or [], draws, correlation, design or ())
    for line in settings_notes(settings_file.read_settings(file, _overrides(set_, plugin), training=False)):
        typer.echo(line, err=True)
    if out is not None:
        results = link_study.save_results(results, out, grid or [], partial(typer.echo, err=True))
    for point, by_design in results:
        setting = " ".join(point)
        if json_:
            typer.echo(json.dumps(({"set": setting} if point else {}) | link_study.as_json(by_design)))
        else:
            _print_table(link_study.design_table(setting, by_design, draws))


@app.command()
def plan(
    file: File,
    set_: Overrides = None,
    plugin: Plugins = None,
    grid: Annotated[
        Texts,
        typer.Option(metavar="KEY=A,B,C", help="radio settings to compare; default: power, antennas, design, access"),
    ] = None,
    split: Annotated[Texts, typer.Option(metavar="R_S:R_P", help="split of the ranks; may be given again")] = None,
    limit: Annotated[float, typer.Option(help="largest share of the channel in Psi_T, percent")] = 10.0,
    draws: Annotated[int, typer.Option(help="random channels per candidate")] = 20,
    out: Annotated[
        OptionalPath, typer.Option(metavar="PLAN.json", help="write the plan for airpfed bound --plan")
    ] = None,
    json_: Json = False,
) -> None:
    """Plan a run: the admissible step size, Psi_T and its cost over settings, and the cheapest good candidate."""
    from airpfed.experiment.artifacts import check_output_file
    from airpfed.planning import planner

    if out is not None:
        check_output_file(out, ".json")
    result = planner.make_plan(file, _overrides(set_, plugin), grid or [], split or [], limit / 100, draws)
    if out is not None:
        planner.save_plan(result, out)
    if json_:
        typer.echo(json.dumps(planner.as_json(result)))
        return
    _print_table(planner.candidate_table(result))
    for line in planner.summary_lines(result):
        typer.echo(line)


@app.command()
def bound(
    run_dir: RunFolder,
    plan_: Annotated[
        OptionalPath, typer.Option("--plan", metavar="PLAN.json", help="compare with a plan of airpfed plan --out")
    ] = None,
    json_: Json = False,
) -> None:
    """Compare a monitored run with the convergence theory: violations, slack, Psi_T and its causes."""
    from airpfed.core import run_files
    from airpfed.report import bound_check
    from airpfed.theory.verification import as_json, verify_run

    records, probe = bound_check.load_monitored_run(run_dir)
    with run_files.require_consistent(run_dir):
        if json_:
            lines = [json.dumps(run_files.to_json_tree(as_json(verify_run(records, probe), probe)))]
        else:
            lines = list(bound_check.verification_lines(records, probe))
            lines += bound_check.plan_lines(run_dir, records, probe, plan_) if plan_ else []
    for line in lines:
        typer.echo(line)


@app.command()
def sweep(
    file: File,
    grid: Annotated[
        Texts,
        typer.Option(metavar="KEY=A,B,C", help="vary one setting; A:B:STEP: a range; KEY/KEY=A/B,C/D: joined"),
    ] = None,
    tune: Annotated[
        Texts,
        typer.Option(metavar="KEY=A,B,C", help="choose this setting for every point, on the dev splits"),
    ] = None,
    tune_seeds: Annotated[
        int | None, typer.Option(help="seeds for the choice of --tune; default: as many as --seeds")
    ] = None,
    seeds: Annotated[int, typer.Option(help="seeds per point, from run.seed on")] = 1,
    reference: Reference = None,
    set_: Overrides = None,
    plugin: Plugins = None,
    out: Annotated[
        OptionalPath, typer.Option(metavar="DIR", help="directory of the sweep; default runs/NAME-sweep")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="trials at once; 0: one a core, two a GPU")] = 0,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="copy trials of the same settings from this sweep"),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help='compute on a Ray cluster; "local" starts one here')
    ] = None,
    json_: Json = False,
) -> None:
    """Run every point of a grid with several seeds, unless it is done; tables with intervals, and figures."""
    from airpfed.sweeps.console import SweepConsole
    from airpfed.sweeps.job import SweepRequest, run_sweep

    request = SweepRequest(
        file=file,
        overrides=tuple(_overrides(set_, plugin)),
        grid=tuple(grid or ()),
        tune=tuple(tune or ()),
        tune_seeds=tune_seeds,
        seeds=seeds,
        reference=tuple(reference or ()),
        folder=out or Path("runs") / f"{file.stem}-sweep",
        reuse=tuple(reuse or ()),
        workers=workers,
        ray=ray,
        command=_command(),
    )
    try:
        result = run_sweep(request, SweepConsole())
    except KeyboardInterrupt:
        typer.echo(f"stopped; go on with the same command: {request.command}", err=True)
        raise typer.Exit(130) from None
    _show_means(result, json_)
    if result.failures:
        raise UserError(f"{len(result.failures)} of the trials failed, the first: {result.failures[0]}")


@app.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="runs, or folders of runs (a sweep's)")],
    reference: Reference = None,
    figures: Annotated[
        OptionalPath, typer.Option(metavar="OUT", help="write figures and their numbers to this directory")
    ] = None,
    json_: Json = False,
) -> None:
    """Compare finished runs by the settings in which they differ, paired by seed."""
    from airpfed.sweeps.console import SweepConsole
    from airpfed.sweeps.job import compare_runs

    _show_means(compare_runs(folders, reference or (), figures, SweepConsole()), json_)


@app.command()
def export(
    run_dir: RunFolder,
    merged: Annotated[bool, typer.Option("--merged", help="also write merged weights to RUN_DIR/merged")] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="also write adapters for llama.cpp to RUN_DIR/gguf")] = False,
    plugin: Plugins = None,
    trust: Annotated[bool, typer.Option("--trust", help="run the plug-ins that lie in the run's folder")] = False,
) -> None:
    """Write every task's model as a PEFT adapter, and compare it with the run's model after reloading."""
    from functools import partial

    from airpfed.experiment.run import export_run

    for folder in export_run(run_dir, merged, plugin or (), trust, partial(typer.echo, err=True), gguf):
        if folder.is_relative_to(run_dir / "adapters"):
            typer.echo(f"{folder}: reloaded with PEFT, same logits")
    if merged:
        typer.echo(f"{run_dir / 'merged'}: merged weights, reloaded, same logits")
    if gguf:
        typer.echo(f"{run_dir / 'gguf'}: adapters for llama.cpp")


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR|ADAPTER_DIR", help="a run, or an exported folder of it")],
    file: Annotated[
        str,
        typer.Argument(metavar="[FILE]", help=".csv, .tsv, .jsonl, .json, .parquet, or .txt: a text a line; -: stdin"),
    ] = "-",
    task: Annotated[str, typer.Option(help="task of the run; not needed where it has one")] = "",
    device: Annotated[int | None, typer.Option(help="device, where each has its own model")] = None,
    column: Annotated[str, typer.Option(help="the file's column with the text; default: that of the prompt")] = "",
    format_: Annotated[
        str,
        typer.Option("--format", help="of the input: csv, tsv, jsonl, json, parquet, lines; default: by the ending"),
    ] = "",
    out: Annotated[OptionalPath, typer.Option(metavar="FILE", help="write to this .csv or .jsonl file")] = None,
    base: Annotated[str, typer.Option(help="folder or name of the base model, if it has moved since the run")] = "",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="run Python code in the base model's folder")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="print JSON lines instead of CSV")] = False,
) -> None:
    """Answer texts with a task's model: labels with probabilities, or generated text, a row each row of the input."""
    from airpfed.experiment import predict_file

    request = predict_file.PredictRequest(
        folder=folder, task=task, device=device, file=file, column=column, format=format_, base=base or None,
        trusted=trust_remote_code,
    )  # fmt: skip
    output = predict_file.answer_file(request, out, json_)
    for line in output.notes:
        typer.echo(line, err=True)
    typer.echo(output.text, nl=False)


@app.command(name="export-channels")
def export_channels(
    file: File,
    out: Annotated[Path, typer.Option(metavar="FILE.npz|.mat", help="output: numpy's or MATLAB's format")],
    rounds: Annotated[int | None, typer.Option(help="rounds, from the first on; default: server.rounds")] = None,
    blocks: Annotated[
        int | None, typer.Option(help="coherence blocks of a round; default: as many as a round needs")
    ] = None,
    set_: Overrides = None,
    plugin: Plugins = None,
) -> None:
    """Write the channels of an experiment's rounds to a file, which radio.channel = "file" reads."""
    from airpfed.experiment.channel_export import export_channels as channel_lines

    for line in channel_lines(file, _overrides(set_, plugin), rounds, blocks, out):
        typer.echo(line)


@app.command(name="export-waveform")
def export_waveform(
    file: File,
    out: Annotated[Path, typer.Option(metavar="DIR", help="new folder for the recordings")],
    round_: Annotated[int, typer.Option("--round", help="round; those before it are run")] = 1,
    set_: Overrides = None,
    plugin: Plugins = None,
) -> None:
    """Write the uplink's waveform of a round as SigMF recordings, one for each antenna, and decode them again."""
    from airpfed.experiment.waveform_export import export_waveform as waveform_lines

    for line in waveform_lines(file, _overrides(set_, plugin), round_, out):
        typer.echo(line)


@app.command(name="list")
def list_(
    kinds: Annotated[Texts, typer.Argument(metavar="[KIND]...", help="designs, channels, methods, ...")] = None,
    plugin: Plugins = None,
) -> None:
    """List the rows that settings may name, with their options: designs, channels, methods, optimizers and so on."""
    from airpfed.config.listing import list_rows
    from airpfed.config.plugins import load_plugins

    load_plugins(plugin or [])
    for line in list_rows(kinds or []):
        typer.echo(line)


@app.command()
def check(file: OptionalFile = None, set_: Overrides = None, plugin: Plugins = None) -> None:
    """Read settings, plug-ins, data and base model, and say what a run would do; nothing is trained or written."""
    from airpfed.planning.check import check_settings

    for line in check_settings(file or default_path(), _overrides(set_, plugin)):
        typer.echo(line)


@app.command()
def upgrade(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE.toml|RUN_DIR...", help="settings of an older version")],
) -> None:
    """Rewrite settings files of an older version, comments kept, in the words of this one."""
    from airpfed.config.upgrade import upgrade_file

    for path in paths:
        lines = upgrade_file(path)
        for line in lines or ["up to date"]:
            typer.echo(f"{path}: {line}")


@app.command()
def tasks() -> None:
    """List the tasks, base models and experiments that have a name."""
    from airpfed.experiment.run import catalogue_lines

    for line in catalogue_lines():
        typer.echo(line)


@app.command()
def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="directories of runs")],
    out: Annotated[
        OptionalPath, typer.Option(metavar="FILE.html", help="output; default RUN_DIR/report.html of one run")
    ] = None,
) -> None:
    """Write report.html of a run again, or one page of several runs."""
    from airpfed.experiment.artifacts import check_output_file
    from airpfed.report.page import write_page

    if out is not None:
        check_output_file(out, ".html")
    typer.echo(write_page(*run_dirs, out=out))


def _overrides(set_: Texts, plugin: list[Path] | None) -> list[str]:
    """Join `--set` and `--plugin`, which adds files to those that the settings file names."""
    return [*(set_ or []), *(f"plugins+={path.resolve()}" for path in plugin or [])]


def _command() -> str:
    return "airpfed " + shlex.join(sys.argv[1:])


def _print_table(table: "Table", width: int = 160) -> None:
    """Print a table on standard output. width: number of characters a line, if the output is not a terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else width).print(table)


def _show_means(result: "SweepResult", as_json: bool) -> None:
    """Print the table of a sweep or a comparison."""
    from airpfed.sweeps.console import means_table

    if as_json:
        typer.echo(json.dumps(result.tree))
    else:
        _print_table(means_table(result.means, result.reference), 200)


def main() -> None:
    """Run the command line. A fault that the user can correct is one line and exit code 2."""
    # Waiting threads spin shortly and then sleep. Without a limit, two runs on the same cores stall each other; without
    # any spinning, a round takes a fifth longer. GNU's OpenMP reads the variable when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        app(standalone_mode=True)
    except UserError as error:
        line = str(error)
    except Exception as error:
        from airpfed.config.plugins import fault_of

        if fault := fault_of(error):
            line = fault
        elif isinstance(error, OSError):
            line = f"{error.filename or 'file'}: {error.strerror or error}"
        else:
            raise
    typer.echo(f"airpfed: {line}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
