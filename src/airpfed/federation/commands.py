"""`airpfed federate`: the same settings file on Flower's simulation or on real devices."""

import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from click import Context
from typer.core import TyperGroup

from airpfed.config.experiment_files import settings_path
from airpfed.core.errors import UserError
from airpfed.experiment import REOPEN

if TYPE_CHECKING:
    from airpfed.config.schema import Settings
    from airpfed.training.setup import TrainingSetup


class FileFirst(TyperGroup):
    """A command group whose first word may be a settings file. A file there means the command `run`."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Insert the command `run` if the first word is a file."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=FileFirst, no_args_is_help=True, help="Run the experiment as a federation on Flower.")

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.toml", parser=settings_path, help="settings of the experiment, or its name, such as federation"
    ),
]


def _reopen(settings: "Settings", checkpoint: Path) -> "TrainingSetup":
    from airpfed.federation import build_federation

    return build_federation.reopen(settings, checkpoint)


REOPEN["run.json"] = _reopen
"""build_federation.IDENTITY, which is not imported here because it loads torch."""


def require_flower() -> None:
    """Raise UserError unless Flower is installed, and set the variables that keep Flower from sending telemetry.

    Flower reads them when it is imported and passes them to the processes that it starts.
    """
    if importlib.util.find_spec("flwr") is None:
        raise UserError("airpfed federate needs Flower, which is not installed: pip install 'airpfed[flower]'")
    if importlib.util.find_spec("fcntl") is None:
        raise UserError("airpfed federate needs a Unix system (Linux, macOS): this one cannot lock files as it does")
    from airpfed.federation.processes import QUIET

    os.environ.update(QUIET)


@app.command()
def run(
    file: File,
    backend: Annotated[
        Literal["simulation", "deployment"],
        typer.Option("--backend", help="devices are processes on this machine, or machines that join over TLS"),
    ] = "simulation",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one setting")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="directory of the run; default as for `airpfed run`")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")] = False,
) -> None:
    """Fine-tune with gradients from a federation's devices (`airpfed federate FILE.toml`)."""
    require_flower()
    from airpfed.federation.launch import federate

    raise typer.Exit(federate(file, set_ or [], out, resume, backend, "airpfed " + shlex.join(sys.argv[1:])))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new folder")],
    settings: Annotated[
        Path,
        typer.Option(
            "--settings", metavar="FILE.toml", parser=settings_path, help="settings of the experiment, or its name"
        ),
    ],
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="where devices reach the server")
    ] = "localhost:9500",
    host: Annotated[
        list[str] | None, typer.Option("--host", help="a further name or address of the server; may be given again")
    ] = None,
    write_share: Annotated[
        bool, typer.Option("--deal", help="give each device its share of the tasks' data, as the simulator deals it")
    ] = False,
    days: Annotated[int, typer.Option("--days", help="how long the certificates are valid")] = 365,
    port: Annotated[int, typer.Option("--port", help="loopback port of device 0's SuperNode; device k: plus k")] = 9100,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one setting")] = None,
) -> None:
    """Make certificates, keys, and a folder with settings and a start script for the server and for each device."""
    require_flower()
    from airpfed.config import settings_file
    from airpfed.federation.addresses import host_of
    from airpfed.federation.provisioning import FederationPlan, provision

    read = settings_file.read_new_settings(settings, [*(set_ or []), f'federation.address="{address}"'])
    plan = FederationPlan(address, (host_of(address), *(host or [])), write_share, days, port)
    for line in provision(folder, read, plan):
        typer.echo(line)


@app.command()
def join(file: Annotated[Path, typer.Argument(metavar="DEVICE.toml", help="the device's own settings")]) -> None:
    """Take part as a device until Ctrl-C. Trainer and SuperNode restart if they end; the server may be offline."""
    require_flower()
    from datetime import datetime

    from airpfed.federation.supervisor import join_federation

    join_federation(file, lambda line: typer.echo(f"{datetime.now():%H:%M:%S} {line}"))
