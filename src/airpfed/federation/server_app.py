"""The ServerApp: the same run as `airpfed run`, with gradients from real devices."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO

from flwr.app import Context
from flwr.serverapp import Grid as FlowerGrid
from flwr.serverapp import ServerApp

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core import run_files
from airpfed.core.errors import UserError
from airpfed.core.files import acquire_lock
from airpfed.experiment.console import RunConsole, open_console
from airpfed.experiment.loggers import open_tracker
from airpfed.experiment.run import run_experiment
from airpfed.federation import build_federation
from airpfed.federation.device_silence import FILE, SilenceRecords
from airpfed.federation.handshake import Agreement
from airpfed.federation.mailbox import Grid, Mailbox
from airpfed.federation.message import LINE, safe_line
from airpfed.federation.registry import Registry
from airpfed.federation.server import Federation
from airpfed.training.checkpoint import exists as rounds_exist
from airpfed.training.loop import Outcome
from airpfed.training.setup import TrainingSetup


def federation_of(
    grid: Grid,
    settings: Settings,
    sides: tuple[TrainingSetup, list[Agreement]],
    run: str,
    device_of_node: Mapping[int, int] | None,
    log: Callable[[str], None],
    stopping: Callable[[], bool],
    silence_records: SilenceRecords | None = None,
) -> Federation:
    """The devices of a run.

    sides: the server's experiment, and one agreement per task. run: the run's identifier. silence_records: what
    devices are to be told of their silence, if they have to be told.
    """
    experiment, agreements = sides
    # Text from devices is made printable where it enters, and every line about a device once more here.
    registry = Registry(
        experiment.clients.task_of.tolist(),
        agreements,
        device_of_node,
        lambda text: log(safe_line(text, 2 * LINE)),
    )
    aggregator_of = partial(build_federation.aggregator_of, settings, experiment)
    terms = build_federation.terms_of(settings)
    return Federation(Mailbox(grid), registry, terms, run, aggregator_of, stopping, silence_records)


def serve(
    grid: Grid,
    settings: Settings,
    out: Path,
    resume: bool,
    command: str,
    device_of_node: Mapping[int, int] | None,
    console: RunConsole,
    stopping: Callable[[], bool],
) -> Outcome:
    """Play a whole run over a grid.

    device_of_node: node -> device by registered key (deployment), or None in Flower's simulation.
    """
    track = open_tracker(settings.run.tracker, out)
    console.log("loading tasks and base model")
    tasks = build_federation.server_tasks(settings, deployed=device_of_node is not None)
    sides = build_federation.server(settings, tasks)
    run = build_federation.run_identity(out / "checkpoint", resume, device_of_node is not None)
    silence_records = None
    if build_federation.tells_silence(settings):
        checkpoint = out / "checkpoint"
        silence_records = SilenceRecords.open(checkpoint / FILE, resume and rounds_exist(checkpoint))
    federation = federation_of(grid, settings, sides, run, device_of_node, console.log, stopping, silence_records)
    if 0 < settings.federation.min_devices < len(federation.registry.task_of):
        console.log(
            f"federation.min_devices = {settings.federation.min_devices} of {len(federation.registry.task_of)}: a "
            "round starts without absent devices, so a run that is interrupted and resumed need not end in the "
            "same bits (0, all, does)"
        )
    experiment = federation.experiment(sides[0])
    outcome = run_experiment(settings, experiment, tasks, command, out, resume, console, track, stopping)
    if outcome.completed and (device_of_node is not None or experiment.clients.layout.size("device")):
        federation.finish(experiment, outcome.state)
    return outcome


HELD: list[IO[str]] = []
"""The lock of the run's folder. It keeps a second server out while a killed one is still ending."""

app = ServerApp()


@app.main()
def main(grid: FlowerGrid, context: Context) -> None:
    """The server process of a deployment. It reads the launcher's plan file and writes its lines to the log named
    there.
    """
    plan = json.loads(Path(str(context.run_config["plan"])).read_text(encoding="utf-8"))
    out, stop = Path(plan["out"]), Path(plan["stop"])
    settings = settings_file.read_settings(Path(plan["file"]), plan["overrides"])
    device_of_node = {int(node): device for node, device in plan["owners"].items()}
    fault = f"the server's process failed; see {out / 'flower' / 'superlink.log'}; go on with --resume"
    ended: dict[str, object] = {"error": fault}
    HELD.append(acquire_lock(Path(plan["lock"]), 20.0))
    with Path(plan["log"]).open("a", encoding="utf-8", buffering=1) as log:
        try:
            with open_console(settings.server.rounds, log) as console:
                outcome = serve(
                    grid, settings, out, plan["resume"], plan["command"], device_of_node, console, stop.exists
                )
            ended = {"completed": outcome.completed, "round": outcome.state.round}
        except UserError as error:
            ended = {"error": str(error)}
        except OSError as error:
            ended = {"error": f"{error.filename or out}: {error.strerror or error}; go on with --resume"}
        finally:
            run_files.write_json(Path(plan["ended"]), ended)
