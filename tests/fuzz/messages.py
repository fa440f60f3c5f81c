"""Messages of a federation, mutated, in both directions: each is used with finite numbers, or refused in a line.

`check(case)` plays one of them; `run(n, seed)` plays n and counts what came of them. By hand, with `tests` on
the path: `python -m fuzz.messages 2000 0`.
"""

import atexit
import hashlib
import json
import math
import os
import shutil
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.message import Array
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from airpfed.config import settings_file
from airpfed.core import run_files
from airpfed.experiment import build
from airpfed.federation import build_federation, mailbox
from airpfed.federation.client_app import app_of
from airpfed.federation.device import RUN, Device, handle
from airpfed.federation.flower_codec import TYPES
from airpfed.federation.ipc import read_packet
from airpfed.federation.message import BadPacketError, Packet, digest
from airpfed.federation.server import Federation
from airpfed.federation.server_app import federation_of
from airpfed.training.loop import play_round
from airpfed.training.setup import TrainingSetup
from support.local_grid import LocalGrid
from support.models import SMALL, save_llama
from support.settings import make_settings

RAW = "\x00raw:"
"""Begins a string that stands in a head without its quotes, as no encoder of ours would write it."""

WRONG = 2
"""The device whose messages are mutated."""

NAME = "0123456789abcdef" * 2
"""The run's."""

LINE = 700
"""Characters of the longest line that may be said about a message."""


@dataclass(frozen=True)
class Case:
    """A message and what is changed of it.

    world: "tasks" (s and p travel), "words" (parts of their own, answers are classes) or "devices" (the same, and a
    task with texts). to: who gets it. kind: of the question, or of the question that it answers. edits: (what, name or
    place, value), in turn.
    """

    world: Literal["tasks", "words", "devices"]
    to: Literal["device", "server"]
    kind: Literal["hello", "train", "answer", "finish"]
    edits: tuple[tuple[str, Any, Any], ...]


texts = st.text(max_size=30) | st.sampled_from(
    ["", "\n", "\x1b[2J", "\u202e", "\u2028x", "\ud800", "x" * 10_000, "..", "../..", "NaN", "done", "f" * 32, NAME]
)
leaves = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.integers(-3, 12) | st.floats() | texts
    | st.sampled_from([RAW + one for one in ("1e999", "-1e999", "NaN", "9" * 5000, "[" * 2000, "0x1", '"a', "1e-400")])
    | st.sampled_from([3e38, 1e308, -1.0, 1e6, 1e7, -0.0, 2**31, 2**63 - 1, 10**9, 10**9 + 1])
)  # fmt: skip
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=6
)
FACTS = (
    "device", "samples", "run", "round", "counted", "agreement", "seconds", "loss", "said", "why", "new",
    "agreement.tasks", "agreement.model.max_tokens", "agreement.new", "said.0", "said.1",
)  # fmt: skip
NAMES = ("hello", "train", "answer", "finish", "done", "refused")
BODIES = ("global", "task", "ids", "lengths")
FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, 1e30, 1e3, 0.0, 1e-40)

edits = st.one_of(
    st.tuples(st.just("fact"), st.sampled_from(FACTS), values),
    st.tuples(st.just("fact"), st.sampled_from(FACTS), values),
    st.tuples(st.just("no fact"), st.sampled_from(FACTS), st.none()),
    st.tuples(st.just("kind"), st.none(), texts | st.sampled_from(NAMES)),
    st.tuples(st.just("float"), st.sampled_from(["global", "task"]), st.sampled_from(FLOATS)),
    st.tuples(st.just("int"), st.sampled_from(BODIES[2:]), st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 99)),
    st.tuples(st.just("body"), st.sampled_from(["global", "task", "ids", "lengths", "new"]), st.binary(max_size=9)),
    st.tuples(st.just("cut"), st.sampled_from(BODIES), st.integers(0, 40)),
    st.tuples(st.just("double"), st.sampled_from(BODIES), st.none()),
    st.tuples(st.just("length"), st.sampled_from(["global", "new"]), values),
    st.tuples(st.just("sha256"), st.none(), values),
    st.tuples(st.just("head"), st.integers(0, 400), st.characters() | st.none()),
    st.tuples(st.just("record"), st.sampled_from(["head", "bodies", "number", "type"]), st.none()),
)  # fmt: skip
cases = st.builds(
    Case,
    st.sampled_from(["tasks", "words", "devices"]),
    st.sampled_from(["device", "server"]),
    st.sampled_from(["hello", "train", "train", "answer", "finish"]),
    st.lists(edits, min_size=1, max_size=3).map(tuple),
)


@dataclass(frozen=True)
class World:
    """Both sides of a tiny federation, and what the others answer in round 1."""

    experiment: TrainingSetup
    agreements: list[dict[str, str]]
    wanted: Any
    devices: dict[int, Device]
    answers: dict[tuple[str, int], Packet]

    def federation(self, grid: Any, lines: list[str]) -> Federation:
        return federation_of(
            grid, self.wanted, (self.experiment, self.agreements), NAME, None, lines.append, lambda: False
        )


def passing_folder() -> Path:
    """A folder that goes with this process."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def base() -> Path:
    """A causal LM of two layers."""
    return save_llama(passing_folder(), **SMALL)


@cache
def world(name: str) -> World:
    """A federation of five devices."""
    folder = passing_folder()
    overrides = [
        "radio.scheme=error_free",
        "devices.chunk=1",
        "run.eval_every=0",
        "tasks.*.test_samples=4",
        "federation.min_devices=4",
        "federation.wait_seconds=1",
        "federation.deadline_seconds=1",
    ]
    if name != "tasks":
        overrides += ["adapters.method=feddpa"]
    if name == "devices":
        overrides += ["tasks.moods.kind=generate", "tasks.moods.labels={}",
                      "tasks.moods.max_new_tokens=3"]  # fmt: skip
    wanted = settings_file.read_settings(make_settings(folder, base()), overrides)
    tasks = build.load_tasks(wanted)
    count = sum(len(task.train) for task in tasks)
    devices = build_federation.devices_of(wanted, tasks, {k: folder / "devices" / str(k) for k in range(count)})
    made, agreements = build_federation.server(wanted, build_federation.server_tasks(wanted, deployed=False))
    bare = World(made, agreements, wanted, devices, {})
    federation = bare.federation(LocalGrid({}), [])
    answers = {}
    for kind in ("hello", "train", "answer", "finish"):
        for k in devices:
            if kind != "answer" or name != "tasks":
                answers[kind, k] = handle(devices[k], request(bare, federation, kind, k))
    assert all(one.kind == "done" for one in answers.values()), answers
    return replace(bare, answers=answers)


def request(connected: World, federation: Federation, kind: str, device: int) -> Packet:
    """What the server asks in round 1."""
    if kind == "hello":
        return Packet("hello", {"seconds": 0.2})
    task = connected.experiment.tasks[int(connected.experiment.clients.task_of[device])]
    bodies = {
        "ids": post_integers([token for sample in task.test.prompts for token in sample.ids]),
        "lengths": post_integers([len(sample.ids) for sample in task.test.prompts]),
    }
    return federation.request(
        kind, connected.experiment, connected.experiment.initial, device, bodies if kind == "answer" else None
    )


def post_integers(numbers: list[int]) -> bytes:
    return torch.tensor(numbers, dtype=torch.int32).numpy().tobytes()


@dataclass(frozen=True)
class Wire:
    """A message as it would travel. head: None for none; kind: of its array records."""

    head: Any
    bodies: dict[str, bytes]
    record: str = ""

    def content(self) -> RecordDict:
        """As Flower carries it."""
        dtype = "float64" if self.record == "type" else "uint8"
        arrays = {name: Array(dtype, (len(body),), "other", body) for name, body in self.bodies.items()}
        parts: dict[str, Any] = {
            "head": ConfigRecord(
                {"json": 7 if self.record == "number" else self.head.encode("utf-8", "replace").decode()}
            ),
            "bodies": ArrayRecord(arrays),
        }
        parts.pop(self.record, None)
        return RecordDict(parts)

    def data(self) -> bytes:
        """As it goes through a device's socket."""
        head = self.head.encode("utf-8", "replace")
        return b"".join([len(head).to_bytes(4, "big"), head, *self.bodies.values()])


def mutated(packet: Packet, case: Case) -> Wire:
    """A parcel with a case's edits; its sha256 is right wherever one can be written, unless that is the edit."""
    facts: dict[str, Any] = json.loads(json.dumps(dict(packet.facts)))
    kind, bodies, lengths, tree = packet.kind, dict(packet.bodies), dict[str, Any](), dict[str, Any]()
    record, cuts = "", []
    for what, name, value in case.edits:
        body = bodies.get(name, b"") if isinstance(name, str) else b""
        match what:
            case "fact":
                put(facts, name, value)
            case "no fact":
                facts.pop(name, None)
            case "kind":
                kind = value
            case "float":
                bodies[name] = torch.tensor([value]).numpy().tobytes() + body[4:]
            case "int":
                bodies[name] = post_integers([value]) + body[4:]
            case "body":
                bodies[name] = value
            case "cut":
                bodies[name] = body[: len(body) - value]
            case "double":
                bodies[name] = body * 2
            case "length":
                lengths[name] = value
            case "sha256":
                tree["sha256"] = value
            case "head":
                cuts.append((name, value))
            case "record":
                record = name
    whole = Packet(kind, facts, bodies)
    sizes = {name: len(body) for name, body in bodies.items()}
    tree = {"kind": kind, "facts": facts, "lengths": {**sizes, **lengths}, "sha256": signed(whole), **tree}
    head = json.dumps(tree)
    begin = json.dumps(RAW)[:-1]
    while (place := head.find(begin)) >= 0:
        end = head.index('"', place + len(begin))
        head = head[:place] + head[place + len(begin) : end].replace("\\", "") + head[end + 1 :]
    for place, sign in cuts:
        head = head[:place] if sign is None else head[:place] + sign + head[place + 1 :]
    return Wire(head, bodies, record)


def put(facts: dict[str, Any], name: str, value: Any) -> None:
    """Change a fact, or a member of one."""
    outer, dot, inner = name.partition(".")
    if not dot:
        facts[outer] = value
    elif isinstance(facts.get(outer), dict):
        facts[outer][inner] = value
    elif isinstance(facts.get(outer), list) and inner.isdigit() and int(inner) < len(facts[outer]):
        facts[outer][int(inner)] = value


def signed(packet: Packet) -> str:
    with suppress(ValueError, TypeError, RecursionError):
        return digest(packet)
    return "0" * 64


def check(case: Case) -> Literal["accepted", "refused"]:
    """Play a case; AssertionError where it is neither used rightly nor refused in a line, other errors as they come."""
    connected = world(case.world)
    if case.kind == "answer" and case.world == "tasks":
        case = replace(case, kind="train")
    with quick():
        return to_device(connected, case) if case.to == "device" else to_server(connected, case)


def to_device(connected: World, case: Case) -> Literal["accepted", "refused"]:
    """A device gets a question: by Flower's message, and through the socket of its trainer."""
    device = connected.devices[WRONG]
    sent = mutated(request(connected, connected.federation(LocalGrid({}), []), case.kind, WRONG), case)
    before = tree_hash(device.folder.parent)
    message = Message(sent.content(), dst_node_id=1, message_type=TYPES[case.kind])
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(1, 1, {}, RecordDict(), {})
    reply = mailbox._read(app_of(lambda packet, _: handle(device, packet))(message, context))[0]
    assert reply.kind in ("done", "refused"), reply
    if reply.kind == "refused":
        is_line(reply.facts["why"], 300)
        assert tree_hash(device.folder.parent) == before, "a refused message changed what the device keeps"
    else:
        assert finite(dict(reply.facts))
        assert all(RUN.fullmatch(path.name) for path in device.folder.iterdir())
        assert {path.name for path in device.folder.parent.iterdir()} == {str(k) for k in connected.devices}
    with suppress(EOFError):
        try:
            came = through(sent.data(), device.limit)
        except BadPacketError as error:
            is_line(str(error), 300)
        else:
            assert handle(device, came).kind in ("done", "refused")
    return "accepted" if reply.kind == "done" else "refused"


def to_server(connected: World, case: Case) -> Literal["accepted", "refused"]:
    """The server gets an answer among those of the other devices, and plays its round."""
    lines: list[str] = []

    def reply(device: int, asked: Packet) -> Wire | Packet:
        found = connected.answers[asked.kind, device]
        if device != WRONG or asked.kind != case.kind:
            return found
        return mutated(found, case)

    grid = RawGrid({1000 - 7 * k: partial(reply, k) for k in connected.devices})
    federation = connected.federation(grid, lines)
    made = federation.experiment(connected.experiment)
    state, row = play_round(made, connected.experiment.initial)
    assert set(row.absent) <= {WRONG}
    file = Path(tempfile.gettempdir()) / f"fuzz-{id(grid)}.jsonl"
    try:
        run_files.append_record(file, row)
        assert run_files.load_records(file) == [row] and finite(row.model_dump()), "its record cannot be read"
    finally:
        file.unlink(missing_ok=True)
    assert all(0 <= one <= 1e6 for one in row.loss.values())
    assert bool(state.server.shared.value.isfinite().all()) and bool(state.server.personal.value.isfinite().all())
    good = not row.absent
    if case.kind == "answer":
        score = federation.rate(made, connected.experiment.initial, 1, "test")
        assert score is not None and 0 <= score.value <= 1
        good = not any("cannot be scored" in line for line in lines)
    if case.kind == "finish":
        federation.finish(made, connected.experiment.initial)
        good = f"device {WRONG} exported its adapter" in lines
    for line in lines:
        is_line(line, LINE)
    assert good or any(f"device {WRONG} " in line or "node 986" in line for line in lines), lines
    return "accepted" if good else "refused"


@dataclass
class RawGrid(LocalGrid):
    """A grid whose nodes' answers may be bytes that no version of ours writes."""

    def replies(self, message: Message) -> list[Message]:
        from airpfed.federation.flower_codec import content, packet_of

        found: Any = self.handlers[message.metadata.dst_node_id](packet_of(message))
        return [Message(found.content() if isinstance(found, Wire) else content(found), reply_to=message)]


@contextmanager
def quick() -> Iterator[None]:
    """The letter box is looked into often, and no disk is waited for."""
    before = mailbox.POLL, os.fsync
    mailbox.POLL, os.fsync = 0.001, lambda _: None
    try:
        yield
    finally:
        mailbox.POLL, os.fsync = before


def is_line(text: object, limit: int) -> None:
    assert isinstance(text, str) and 0 < len(text) <= limit and text.isprintable(), repr(text)[:1000]
    text.encode()


def finite(value: Any) -> bool:
    """Whether all numbers in a tree are finite."""
    if isinstance(value, dict):
        return all(finite(one) for one in value.values())
    if isinstance(value, list | tuple):
        return all(finite(one) for one in value)
    return not isinstance(value, float) or math.isfinite(value)


def tree_hash(folder: Path) -> str:
    """Names and contents of all files below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()


def through(data: bytes, limit: int) -> Packet:
    """What a trainer's socket makes of bytes."""
    left, right = socket.socketpair()

    def send() -> None:
        with left, suppress(OSError):  # who reads may have seen enough
            left.sendall(data)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with right:
            return read_packet(right, limit)
    finally:
        sender.join()


def run(n: int, seed_: int = 0) -> Counter[str]:
    """Play n cases; counts of what came of them, by who got them and what they were."""
    counts: Counter[str] = Counter()

    @seed(seed_)
    @settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(cases)
    def play(case: Case) -> None:
        counts[f"{case.kind} to the {case.to}: {check(case)}"] += 1

    play()
    return counts


if __name__ == "__main__":
    import sys

    for what, count in sorted(run(int(sys.argv[1]), int(sys.argv[2])).items()):
        print(f"{count:6d}  {what}")
