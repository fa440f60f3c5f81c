"""A grid in this process: every message goes through Flower's own types and the ClientApp, and may be tampered with."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.experiment import build
from airpfed.experiment.console import open_console
from airpfed.federation import build_federation
from airpfed.federation.client_app import app_of
from airpfed.federation.device import Device, handle
from airpfed.federation.flower_codec import content
from airpfed.federation.message import Packet
from airpfed.federation.server_app import serve
from airpfed.training.loop import Outcome

Tamper = Callable[[int, Packet, Callable[[], Packet]], list[Packet] | None]
"""(node, question, what would answer it) -> the answers that come; []: Flower finds the node gone; None: silence."""


def honest(_node: int, _asked: Packet, answer: Callable[[], Packet]) -> list[Packet] | None:
    return [answer()]


@dataclass
class LocalGrid:
    """Nodes by id. ids: which of them are there now; tamper: what happens to questions and answers."""

    handlers: dict[int, Callable[[Packet], Packet]]
    tamper: Tamper = honest
    ids: set[int] = field(default_factory=set)
    waiting: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = self.ids or set(self.handlers)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # Flower's processes set these

    def get_node_ids(self) -> Iterable[int]:
        return list(self.ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            names.append(uuid4().hex)
            message.metadata.__dict__["_message_id"] = names[-1]
            self.waiting += self.replies(message)
        return names

    def replies(self, message: Message) -> list[Message]:
        node = message.metadata.dst_node_id
        result: list[Message] = []

        def handle(packet: Packet, _context: Context) -> Packet:
            answers = self.tamper(node, packet, partial(self.handlers[node], packet))
            result.extend(Message(content(extra), reply_to=message) for extra in (answers or ())[1:])
            if not answers:
                raise _SilentError(answers is not None)
            return answers[0]

        context = Context(1, node, {}, RecordDict(), {})
        try:
            return [app_of(handle)(message, context), *result]
        except _SilentError as silence:
            gone = Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable")
            return [Message(gone, reply_to=message)] if silence.args[0] else []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        came = [message for message in self.waiting if message.metadata.reply_to_message_id in wanted]
        self.waiting = [message for message in self.waiting if message not in came]
        return came[::-1]  # answers come in any order


class _SilentError(Exception):
    pass


def local_devices(settings: Settings, folder: Path) -> dict[int, Device]:
    tasks = build.load_tasks(settings)
    return build_federation.devices_of(
        settings, tasks, {k: folder / str(k) for k in range(sum(len(t.train) for t in tasks))}
    )


def grid_of(devices: dict[int, Device], tamper: Tamper = honest) -> LocalGrid:
    """Node ids are far from device numbers, and in another order."""
    return LocalGrid({1000 - 7 * k: partial(handle, device) for k, device in devices.items()}, tamper)


@dataclass(frozen=True)
class Served:
    outcome: Outcome
    lines: list[str]


def served(
    file: Path,
    overrides: list[str],
    out: Path,
    grid: LocalGrid,
    resume: bool = False,
    device_of_node: dict[int, int] | None = None,
) -> Served:
    """A whole run over the grid, and the lines it said."""
    settings = settings_file.read_settings(file, overrides)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    with log.open("a") as lines, open_console(settings.server.rounds, lines) as console:
        outcome = serve(grid, settings, out, resume, "x", device_of_node, console, lambda: False)
    return Served(outcome, log.read_text().splitlines())
