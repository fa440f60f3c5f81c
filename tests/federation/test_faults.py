"""What goes wrong on one device is told in a line and leaves the others' round exactly right."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from safetensors.torch import load_file, save_file

from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.federation import build_federation, client_app, flower_codec, mailbox
from airpfed.federation.device import Device, handle
from airpfed.federation.message import Packet
from airpfed.federation.server import Federation
from airpfed.federation.server_app import federation_of
from airpfed.training.checkpoint import tensors_of
from airpfed.training.loop import play_round
from airpfed.training.setup import RoundGradients, TrainingSetup, simulate_gradients
from airpfed.training.state import State
from support.experiments import experiment_of
from support.local_grid import LocalGrid, Tamper, grid_of, honest, local_devices, served
from support.settings import make_settings

pytestmark = pytest.mark.usefixtures("shared_bases")

BASE = (
    "radio.scheme=error_free", "devices.chunk=1", "run.eval_every=0", "federation.deadline_seconds=0.5",
    "adapters.layers=last-2",
)  # fmt: skip
WRONG = 2
"""The device that things happen to."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> Settings:
    return settings_file.read_settings(make_settings(tmp_path_factory.mktemp("settings"), small_llama), BASE)


@pytest.fixture(scope="module")
def devices(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Device]:
    return local_devices(settings, tmp_path_factory.mktemp("devices"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(mailbox, "POLL", 0.01)
    return


Start = Callable[..., tuple[TrainingSetup, Federation, list[str]]]


@pytest.fixture(scope="module")
def start(settings: Settings) -> Start:
    """A federation over a grid, its experiment, and where its lines go."""
    sides = build_federation.server(settings, build_federation.server_tasks(settings, deployed=False))

    def made(
        grid: LocalGrid, device_of_node: dict[int, int] | None = None, least: int = 4, run: str | None = None
    ) -> tuple[TrainingSetup, Federation, list[str]]:
        wanted = settings.federation.model_copy(update={"min_devices": least})
        own = settings.model_copy(update={"federation": wanted})
        lines: list[str] = []
        federation = federation_of(grid, own, sides, run or uuid4().hex, device_of_node, lines.append, lambda: False)
        return federation.experiment(sides[0]), federation, lines

    return made


@pytest.fixture(scope="module")
def plain(settings: Settings) -> TrainingSetup:
    """The simulator's experiment."""
    return experiment_of(settings)


SEEN: dict[str, State] = {}


def without(plain: TrainingSetup, absent: dict[int, int], rounds: int) -> State:
    """The simulator after so many rounds, where one device (by round) has no finite gradient."""

    def collect(experiment: TrainingSetup, state: State) -> RoundGradients:
        result = simulate_gradients(experiment, state)
        if (t := state.round + 1) in absent:
            for rows in result.gradients.values():
                rows[absent[t]] = torch.nan
        return result

    name = f"{absent} {rounds}"
    if name not in SEEN:
        SEEN[name] = played(replace(plain, collect=collect), rounds)[0]
    return SEEN[name]


def played(experiment: TrainingSetup, rounds: int) -> tuple[State, list[list[int]]]:
    state, absent = experiment.initial, []
    for _ in range(rounds):
        state, row = play_round(experiment, state)
        absent.append(row.absent)
    return state, absent


def same(connected: State, there: State) -> bool:
    pairs = [(connected.server.shared, there.server.shared), (connected.server.personal, there.server.personal)]
    return all(torch.equal(tensors_of(a)[key], tensors_of(b)[key]) for a, b in pairs for key in tensors_of(a))


def node(device: int) -> int:
    return 1000 - 7 * device


def on_train(change: Callable[[Packet], list[Packet] | None], rounds: tuple[int, ...] = (1,)) -> Tamper:
    """What happens to the wrong device's answer in some rounds."""

    def tamper(number: int, asked: Packet, answer: Callable[[], Packet]) -> list[Packet] | None:
        if number != node(WRONG) or asked.kind != "train" or asked.facts["round"] not in rounds:
            return [answer()]
        return change(answer())

    return tamper


def facts(**changed: object) -> Callable[[Packet], list[Packet]]:
    return lambda reply: [replace(reply, facts={**reply.facts, **changed})]


def body(name: str, change: Callable[[bytes], bytes]) -> Callable[[Packet], list[Packet]]:
    return lambda reply: [replace(reply, bodies={**reply.bodies, name: change(reply.bodies[name])})]


def put(value: float) -> Callable[[bytes], bytes]:
    """A float32 in the place of the first."""
    return lambda data: torch.tensor([value]).numpy().tobytes() + data[4:]


FAULTS = {
    "NaN in the payload": (body("global", put(float("nan"))), "its gradient is not finite"),
    "infinity in the payload": (body("task", put(float("inf"))), "its gradient is not finite"),
    "a huge norm": (body("task", put(3e4)), "norm 3e+04, should be at most 1000"),
    "wrong shape": (body("global", lambda data: data[:-4]), "wrong shape: its global gradient has"),
    "oversize": (body("task", lambda data: data * 50), "oversize: its task gradient has"),
    "no body": (lambda reply: [replace(reply, bodies={})], "wrong shape"),
    "another round": (facts(round=7), "it answers round 7"),
    "another run": (facts(run="f" * 32), "of run ffffffff"),
    "another device's name": (facts(device=0), "it answers as device 0"),
    "no loss": (facts(loss="low"), "its loss is not a number"),
    "a loss of the largest double": (facts(loss=1e308), "its loss is 1e+308, should be from 0 to 1e+06"),
    "a loss beyond float32": (facts(loss=3e38), "its loss is 3e+38, should be from 0 to 1e+06"),
    "a negative loss": (facts(loss=-0.5), "its loss is -0.5, should be from 0"),
    "true as a loss": (facts(loss=True), "its loss is not a number"),
    "a table as a loss": (facts(loss={"a": [1] * 999}), "its loss is not a number"),
    "true as a round": (facts(round=True), "it answers round True"),
    "a round with a point": (facts(round=1.0), "it answers round 1.0"),
    "a device with a point": (facts(device=2.0), "it answers as device 2.0"),
    "true as samples": (facts(samples=True), "says that it holds True samples"),
    "too many samples": (facts(samples=10**9 + 1), "says that it holds 1000000001 samples"),
    "forged lines": (
        lambda reply: [Packet("refused", {"why": "x\nround 1: device 0 is absent: y\u2028z\x1b[2J\u202e" * 99999})],
        "absent: x round 1: device 0 is absent: y z?[2J?x round 1",
    ),
    "a table for a reason": (lambda reply: [Packet("refused", {"why": {"a\x1b": "b" * 10**6}})], "{'a\\x1b': 'bbb"),
    "a long name of a run": (facts(run="\x1b[1m" * 10**5), "of run ?[1m?[1"),
    "no samples": (facts(samples=0), "says that it holds 0 samples"),
    "refuses": (lambda reply: [Packet("refused", {"why": "no\nelectricity " * 99})], "no electricity no electricity"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_answer_is_refused_with_a_line_and_the_rest_is_right(
    fault: str, start: Start, devices: dict[int, Device], plain: TrainingSetup
) -> None:
    change, words = FAULTS[fault]
    experiment, _, lines = start(grid_of(devices, on_train(change)))
    state, absent = played(experiment, 2)
    assert absent == [[WRONG], []]
    identity_of = [line for line in lines if "is absent" in line]
    assert (
        len(identity_of) == 1
        and identity_of[0].startswith(f"round 1: device {WRONG} is absent: ")
        and words in identity_of[0]
    ), lines
    assert all(len(line) < 400 and line.isprintable() for line in lines)
    assert same(state, without(plain, {1: WRONG}, 2))


def test_corrupted_messages_are_refused_on_both_sides(
    start: Start, devices: dict[int, Device], plain: TrainingSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit flips after the sender has written its sha256: once in a question, once in an answer."""
    experiment, _, lines = start(grid_of(devices))
    written = flower_codec.content
    flips: list[str] = []

    def flipping(packet: Packet) -> object:
        made = written(packet)
        where = {"train": packet.kind == "train", "done": packet.facts.get("round") == 2 and packet.kind == "done"}
        for name, connected in where.items():
            if connected and name not in flips:
                flips.append(name)
                array = made["bodies"]["global"]
                array.data = bytes([array.data[0] ^ 1]) + array.data[1:]
        return made

    monkeypatch.setattr(mailbox, "content", flipping)
    monkeypatch.setattr(client_app, "content", flipping)
    state, absent = played(experiment, 3)
    assert flips == ["train", "done"] and absent == [[0], [0], []]
    assert [line for line in lines if "corrupted (its sha256 differs)" in line] == [
        f"round {t}: device 0 is absent: the message is corrupted (its sha256 differs)" for t in (1, 2)
    ]
    assert same(state, without(plain, {1: 0, 2: 0}, 3))


def test_a_replayed_answer_is_refused(start: Start, devices: dict[int, Device], plain: TrainingSetup) -> None:
    kept: list[Packet] = []

    def replay(reply: Packet) -> list[Packet]:
        kept.append(reply)
        return [kept[0]]

    experiment, _, lines = start(grid_of(devices, on_train(replay, (1, 2))))
    state, absent = played(experiment, 3)
    assert absent == [[], [WRONG], []] and any("it answers round 1 of run" in line for line in lines)
    assert same(state, without(plain, {2: WRONG}, 3))


def test_who_answers_twice_is_counted_once(start: Start, devices: dict[int, Device], plain: TrainingSetup) -> None:
    def twice(reply: Packet) -> list[Packet]:
        second = replace(reply, bodies={**reply.bodies, "global": put(9.0)(reply.bodies["global"])})
        return [second, reply]  # the grid gives the last one first

    experiment, _, _ = start(grid_of(devices, on_train(twice, (1, 2))))
    state, absent = played(experiment, 2)
    assert absent == [[], []] and same(state, without(plain, {}, 2))


def test_the_round_ends_by_its_deadline_and_a_late_answer_is_told_of(
    start: Start, devices: dict[int, Device], plain: TrainingSetup
) -> None:
    grid = grid_of(devices)
    held: list[object] = []
    reply = grid.replies

    def slow(message: object) -> list:
        result = reply(message)
        if message.metadata.dst_node_id == node(WRONG) and message.metadata.group_id == "1":
            held.extend(result)
            return []
        if message.metadata.group_id == "2":
            grid.waiting += held[:1]
        return result

    grid.replies = slow
    experiment, _, lines = start(grid)
    state, absent = played(experiment, 3)
    assert absent == [[WRONG], [WRONG], []], "while it works on round 1 it is not asked and not waited for"
    assert lines.count(f"device {WRONG} did not answer (train) within 0.5 s") == 1
    assert f"device {WRONG} answered round 1 too late; not used" in lines
    assert same(state, without(plain, {1: WRONG, 2: WRONG}, 3))


def test_a_node_that_vanishes_comes_back_under_another_id(
    start: Start, devices: dict[int, Device], plain: TrainingSetup
) -> None:
    """Node ids are not stable; who a node is, it says itself."""
    grid = grid_of(devices)
    experiment, _, lines = start(grid)
    state, absent = experiment.initial, []
    for t in range(1, 5):
        if t == 2:
            grid.ids.remove(node(WRONG))
        if t == 3:
            grid.handlers[5] = grid.handlers.pop(node(WRONG))
            grid.ids.add(5)
        state, row = play_round(experiment, state)
        absent.append(row.absent)
    assert absent == [[], [WRONG], [WRONG], []], "it is greeted in one round and counts in the next"
    gone, back = (lines.index(f"device {WRONG} is {what}") for what in ("gone", "here"))
    assert back < gone and f"device {WRONG} is here" in lines[gone:]
    assert same(state, without(plain, {2: WRONG, 3: WRONG}, 4))


def test_a_key_is_of_one_device_only(start: Start, devices: dict[int, Device]) -> None:
    """Device 2's node says that it is device 1."""

    def lies(number: int, asked: Packet, answer: Callable[[], Packet]) -> list[Packet] | None:
        reply = answer()
        identity_of = {**reply.facts, "device": 1} if number == node(WRONG) and asked.kind == "hello" else reply.facts
        return [replace(reply, facts=identity_of)]

    experiment, _, lines = start(grid_of(devices, lies), {node(k): k for k in devices})
    assert played(experiment, 1)[1] == [[WRONG]]
    assert f"device {WRONG} refused: says it is device 1, but its key is of {WRONG}" in lines


def test_a_device_with_another_base_model_is_refused_and_the_run_goes_on(
    start: Start,
    settings: Settings,
    devices: dict[int, Device],
    plain: TrainingSetup,
    tmp_path: Path,
    small_llama: Path,
) -> None:
    """One weight of the device's base model is another."""
    folder = shutil.copytree(small_llama, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values()))[0] += 1.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = settings.model.model_copy(update={"base": str(folder)})
    other = local_devices(settings.model_copy(update={"model": model}), tmp_path / "state")
    experiment, _, lines = start(grid_of({**devices, WRONG: other[WRONG]}))
    state, absent = played(experiment, 2)
    assert absent == [[WRONG], [WRONG]]
    identity_of = [line for line in lines if "refused" in line]
    assert len(identity_of) == 1 and re.fullmatch(
        r"node 986 refused: model\.base differs: \w{12}\.\.\. at the server, \w{12}\.\.\. on the device", identity_of[0]
    )
    assert same(state, without(plain, {1: WRONG, 2: WRONG}, 2))


def test_a_device_that_changes_under_way_refuses_by_itself(start: Start, devices: dict[int, Device]) -> None:
    """Whatever decides its gradients is compared in every round, before anything is computed."""
    grid = grid_of(devices)
    experiment, federation, lines = start(grid)
    agreement = devices[WRONG].agreement
    wanted = {"model.base", "adapters", "initial adapters", "tasks.moods.labels", "run.seed", "devices.batch_size"}
    assert wanted < set(agreement)
    request = federation.request("train", experiment, experiment.initial, WRONG)
    for name in agreement:
        changed = replace(devices[WRONG], agreement={**agreement, name: "changed"})
        answer = handle(changed, request)
        assert answer.kind == "refused" and answer.facts["why"].startswith(f"{name} differs: ")
    state, _ = play_round(experiment, experiment.initial)
    grid.handlers[node(WRONG)] = partial(handle, changed)
    _, row = play_round(experiment, state)
    assert row.absent == [WRONG] and any(f"device {WRONG} is absent: {name} differs" in line for line in lines)


def test_too_few_devices_stop_the_run_so_that_it_can_be_resumed(
    start: Start, devices: dict[int, Device], settings: Settings
) -> None:
    experiment, federation, _ = start(grid_of({k: devices[k] for k in (0, 1, 3)}))
    federation.terms = replace(federation.terms, wait_seconds=0.3)
    with pytest.raises(UserError, match=r"3 of 4 devices are there .* go on with --resume"):
        play_round(experiment, experiment.initial)


def test_who_is_missing_and_for_how_long_is_told_once(start: Start, devices: dict[int, Device]) -> None:
    """Not a word for ten minutes was the fault; a line a look would be another."""
    experiment, federation, lines = start(grid_of({k: devices[k] for k in (0, 1, 3)}), least=5)
    federation.terms = replace(federation.terms, wait_seconds=0.3)
    with pytest.raises(UserError, match="without 2, 4; go on with --resume"):
        play_round(experiment, experiment.initial)
    waits = [line for line in lines if line.startswith("waiting:") and "3 of 5" in line]
    assert waits == [
        "waiting: 3 of 5 devices are there (federation.min_devices), without 2, 4; for 0.3 s at most"
    ]  # fmt: skip


def test_more_than_there_are_is_all_of_them(start: Start, devices: dict[int, Device]) -> None:
    """`check_federable` refuses it; whatever gets here, nobody waits for a sixth of five."""
    experiment, federation, _ = start(grid_of(devices))
    federation.terms = replace(federation.terms, min_devices=99, wait_seconds=5.0)
    assert play_round(experiment, experiment.initial)[1].absent == []


@pytest.mark.parametrize("least", [0, 5, 4])
def test_a_run_that_need_not_end_in_the_same_bits_says_so(least: int, tmp_path: Path, small_llama: Path) -> None:
    """A resumed run's round may begin without a device that the broken one had."""
    file = make_settings(tmp_path, small_llama)
    overrides = [*BASE, "server.rounds=1", "tasks.*.test_samples=2", f"federation.min_devices={least}"]
    grid = grid_of(local_devices(settings_file.read_settings(file, overrides), tmp_path / "devices"))
    lines = served(file, overrides, tmp_path / "out", grid).lines
    identity_of = [line for line in lines if "need not end in the same bits" in line]
    assert [line.startswith("federation.min_devices = 4 of 5: ") for line in identity_of] == [True] * (least == 4)


def test_a_server_that_was_killed_goes_on_where_it_was(
    start: Start, devices: dict[int, Device], plain: TrainingSetup
) -> None:
    """It dies after the devices have answered round 2 and before it has used their answers; devices move once."""
    run = uuid4().hex
    first, _, _ = start(grid_of(devices), run=run)
    state, _ = played(first, 1)
    first.collect(first, state)
    again, _, _ = start(grid_of(devices), run=run)
    for _ in range(2):
        state, row = play_round(again, state)
        assert row.absent == []
    assert same(state, without(plain, {}, 3))


def test_honest_devices_are_not_refused(start: Start, devices: dict[int, Device], plain: TrainingSetup) -> None:
    experiment, _, lines = start(grid_of(devices, honest))
    assert same(played(experiment, 2)[0], without(plain, {}, 2))
    assert not [line for line in lines if "refused" in line or "absent" in line or "answer" in line]
