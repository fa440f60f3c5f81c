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
from airpfed.core.locks import locked
from airpfed.experiment.conduct import conduct
from airpfed.experiment.console import Screen, open_screen
from airpfed.experiment.loggers import TRACKERS
from airpfed.federation import build_federation
from airpfed.federation.handshake import Agreement
from airpfed.federation.mailbox import Grid, Post
from airpfed.federation.message import LINE, printable
from airpfed.federation.registry import Roster
from airpfed.federation.server import Federation
from airpfed.training.experiment import Experiment
from airpfed.training.loop import Outcome


def federation_of(
    grid: Grid,
    settings: Settings,
    sides: tuple[Experiment, list[Agreement]],
    run: str,
    owners: Mapping[int, int] | None,
    say: Callable[[str], None],
    stopping: Callable[[], bool],
) -> Federation:
    """The devices of a run. sides: the server's experiment and what devices must agree on; run: the run's identity."""
    made, agreed = sides
    # Devices' words are cut and cleaned where they are taken, and here once more whatever is said of devices.
    roster = Roster(made.clients.task_of.tolist(), agreed, owners, lambda text: say(printable(text, 2 * LINE)))
    aggregator_of = partial(build_federation.aggregator_of, settings, made)
    return Federation(Post(grid), roster, build_federation.terms(settings), run, aggregator_of, stopping)


def serve(
    grid: Grid,
    settings: Settings,
    out: Path,
    resume: bool,
    command: str,
    owners: Mapping[int, int] | None,
    screen: Screen,
    stopping: Callable[[], bool],
) -> Outcome:
    """A whole run over a grid. owners: node -> device by registered key (deployment); None in Flower's simulation."""
    track = TRACKERS[settings.run.tracker](out)
    screen.say("loading tasks and base model")
    tasks = build_federation.server_tasks(settings, deployed=owners is not None)
    sides = build_federation.server(settings, tasks)
    run = build_federation.run_identity(out / "checkpoint", resume, owners is not None)
    federation = federation_of(grid, settings, sides, run, owners, screen.say, stopping)
    if 0 < settings.federation.min_devices < len(federation.roster.task_of):
        screen.say(
            f"federation.min_devices = {settings.federation.min_devices} of {len(federation.roster.task_of)}: a round "
            "starts without who is not there, so a run that is broken off and resumed need not end in the same bits "
            "(0, all, does)"
        )
    made = federation.experiment(sides[0])
    outcome = conduct(settings, made, tasks, command, out, resume, screen, track, stopping)
    if outcome.completed and (owners is not None or made.clients.layout.size("device")):
        federation.finish(made, outcome.state)
    return outcome


HELD: list[IO[str]] = []
"""The lock of the run's folder: two servers never work in one, even if the first was killed and is still ending."""

app = ServerApp()


@app.main()
def main(grid: FlowerGrid, context: Context) -> None:
    """A deployment's server process: what to do stands in the plan that the launcher wrote; lines go to its log."""
    plan = json.loads(Path(str(context.run_config["plan"])).read_text(encoding="utf-8"))
    out, stop = Path(plan["out"]), Path(plan["stop"])
    settings = settings_file.read(Path(plan["file"]), plan["overrides"])
    owners = {int(node): device for node, device in plan["owners"].items()}
    fault = f"the server's process failed; see {out / 'flower' / 'superlink.log'}; go on with --resume"
    ended: dict[str, object] = {"error": fault}
    HELD.append(locked(Path(plan["lock"]), 20.0))
    with Path(plan["log"]).open("a", encoding="utf-8", buffering=1) as log:
        try:
            with open_screen(settings.server.rounds, log) as screen:
                outcome = serve(grid, settings, out, plan["resume"], plan["command"], owners, screen, stop.exists)
            ended = {"completed": outcome.completed, "round": outcome.state.round}
        except UserError as error:
            ended = {"error": str(error)}
        except OSError as error:
            ended = {"error": f"{error.filename or out}: {error.strerror or error}; go on with --resume"}
        finally:
            run_files.write_json(Path(plan["ended"]), ended)
