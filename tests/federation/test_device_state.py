"""What a device keeps: it moves once a round, only if the server counted it, and survives the trainer's end."""

import os
import stat
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from airpfed.config import settings_file
from airpfed.config.choice import parse_choice
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.federation import build_federation
from airpfed.federation.device import Device, handle, stored_state
from airpfed.federation.device_state import Personal, fresh, load, outcomes, save, start_of_round
from airpfed.federation.message import Packet
from airpfed.federation.server_app import federation_of
from airpfed.training.checkpoint import tensors_of
from airpfed.training.loop import play_round
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import ServerStep, State
from support.local_grid import LocalGrid, grid_of, local_devices
from support.settings import make_settings

pytestmark = pytest.mark.usefixtures("shared_bases")

SETTINGS = (
    "radio.scheme=error_free", "run.eval_every=0", "adapters.method=feddpa", "adapters.layers=last-2",
    "federation.deadline_seconds=0.4",
)  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> Settings:
    return settings_file.read_settings(make_settings(tmp_path_factory.mktemp("settings"), small_llama), SETTINGS)


@pytest.fixture(scope="module")
def devices(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Device]:
    return local_devices(settings, tmp_path_factory.mktemp("devices"))


@pytest.fixture(scope="module")
def server(settings: Settings) -> tuple[TrainingSetup, list]:
    return build_federation.server(settings, build_federation.server_tasks(settings, deployed=False))


def request(server: tuple[TrainingSetup, list], settings: Settings, run: str, t: int, counted: int) -> Packet:
    """What the server asks device 0 in round t; always at the initial shared parameters."""
    federation = federation_of(LocalGrid({}), settings, server, run, None, lambda _: None, lambda: False)
    state = replace(server[0].initial, round=t - 1)
    asked = federation.request("train", server[0], state, 0)
    return replace(asked, facts={**asked.facts, "counted": counted})


def test_a_repeated_question_gets_the_same_answer_and_moves_nothing_twice(
    devices: dict[int, Device], server: tuple[TrainingSetup, list], settings: Settings
) -> None:
    run = uuid4().hex
    first = handle(devices[0], request(server, settings, run, 1, 0))
    before = stored_state(devices[0], run)
    again = handle(devices[0], request(server, settings, run, 1, 0))
    after = stored_state(devices[0], run)
    assert first == again and first.kind == "done"
    for part in ("before", "after"):
        old, new = tensors_of(getattr(before, part)), tensors_of(getattr(after, part))
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert int(after.after.updates) == 1 and not torch.equal(after.after.value, after.before.value)


def test_a_replayed_question_of_an_earlier_round_is_refused(
    devices: dict[int, Device], server: tuple[TrainingSetup, list], settings: Settings
) -> None:
    run = uuid4().hex
    old = request(server, settings, run, 1, 0)
    assert handle(devices[0], old).kind == handle(devices[0], request(server, settings, run, 2, 1)).kind == "done"
    answer = handle(devices[0], old)
    assert answer.kind == "refused" and answer.facts["why"] == "round 1 is over here: the last one was 2"
    assert stored_state(devices[0], run).round == 2


@pytest.mark.parametrize(
    ("t", "counted", "words"),
    [
        (7, 5, "moved 1 times, the server counted 5; restore"),
        (7, 7, "counted = 7: should be a whole number from 0 to 6"),
        (2, -1, "counted = -1: should be a whole number from 0 to 1"),
        (2, True, "counted = True: should be a whole number"),
        (2, 1.0, "counted = 1.0: should be a whole number"),
        (10**9 + 1, 1, "round = 1000000001: should be a whole number from 1 to 1000000000"),
    ],
)
def test_lost_parameters_are_refused(
    t: int,
    counted: int,
    words: str,
    devices: dict[int, Device],
    server: tuple[TrainingSetup, list],
    settings: Settings,
) -> None:
    run = uuid4().hex
    handle(devices[0], request(server, settings, run, 1, 0))
    answer = handle(devices[0], request(server, settings, run, t, counted))
    assert answer.kind == "refused" and words in answer.facts["why"]


def test_nothing_of_device_scope_is_in_any_message(
    devices: dict[int, Device], server: tuple[TrainingSetup, list], settings: Settings
) -> None:
    """feddpa: two of four ranks are the device's own; only s travels, either way."""
    layout = server[0].clients.layout
    assert layout.size("device") > 0 and layout.size("task") == 0
    asked = request(server, settings, uuid4().hex, 1, 0)
    answer = handle(devices[0], asked)
    for packet in (asked, answer):
        assert {name: len(body) for name, body in packet.bodies.items()} == {"global": 4 * layout.size("global")}
    assert set(answer.facts) == {"device", "samples", "run", "round", "loss", "flops"}


def test_an_answer_that_was_lost_leaves_the_parameters_where_the_simulator_has_them(
    devices: dict[int, Device], server: tuple[TrainingSetup, list], settings: Settings
) -> None:
    """Device 0's answer to round 2 is lost: after round 3 it has moved twice, as if it had been absent in round 2."""

    def run_with(lost: set[int], absent_at_all: bool) -> Personal:
        run = uuid4().hex

        def tamper(node: int, asked: Packet, answer):
            if node == 1000 and asked.kind == "train" and asked.facts["round"] in lost:
                if not absent_at_all:
                    answer()
                return []
            return [answer()]

        wanted = settings.model_copy(update={"federation": settings.federation.model_copy(update={"min_devices": 4})})
        federation = federation_of(grid_of(devices, tamper), wanted, server, run, None, lambda _: None, lambda: False)
        made, state = federation.experiment(server[0]), server[0].initial
        for _ in range(3):
            state, _ = play_round(made, state)
        assert int(state.devices.own.updates[0]) == 2
        return stored_state(devices[0], run)

    worked, slept = run_with({2}, False), run_with({2}, True)
    assert worked.round == slept.round == 3 and int(worked.after.updates) == 2
    assert torch.equal(worked.after.value, slept.after.value)
    assert torch.equal(worked.after.optimizer_state["second"], slept.after.optimizer_state["second"])


def test_damage_on_the_disk_is_told(
    devices: dict[int, Device], server: tuple[TrainingSetup, list], settings: Settings
) -> None:
    run = uuid4().hex
    handle(devices[0], request(server, settings, run, 1, 0))
    file = next((devices[0].folder / run).glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    answer = handle(devices[0], request(server, settings, run, 2, 1))
    assert answer.kind == "refused" and "damaged (its sha256 differs)" in answer.facts["why"]


def test_both_outcomes_of_a_round_are_kept_and_the_count_decides(tmp_path: Path) -> None:
    start = fresh(torch.ones(1, 3), ServerStep("sgd", 0.5))
    after = outcomes(start.before, torch.tensor([[1.0, 0.0, -1.0]]), 1, ServerStep("sgd", 0.5))
    save(tmp_path, after, 0, "f")
    back = load(tmp_path, start, "f")
    assert start_of_round(back, 2, 1).value.tolist() == [[0.5, 1.0, 1.5]] and start_of_round(
        back, 2, 0
    ).value.tolist() == [[1.0] * 3]
    assert start_of_round(back, 1, 0).value.tolist() == [[1.0] * 3], "the round again"
    with pytest.raises(UserError, match="round 0 is over"):
        start_of_round(back, 0, 0)
    with pytest.raises(UserError, match="other settings"):
        load(tmp_path, start, "g")


def test_a_device_without_own_parameters_follows_any_count(tmp_path: Path) -> None:
    """Nothing can be lost then: a new disk may join in the middle."""
    assert int(start_of_round(fresh(torch.zeros(1, 0), ServerStep("adam", 0.5)), 9, 7).updates) == 7


def test_presence_is_seen_where_nothing_is_sent(settings: Settings, devices: dict[int, Device], tmp_path: Path) -> None:
    """Method local: a device that does not answer is absent although no gradient is missing."""
    alone = settings.model_copy(update={
        "adapters": settings.adapters.model_copy(update={"method": parse_choice("methods", "local")}),
        "federation": settings.federation.model_copy(update={"min_devices": 4}),
    })  # fmt: skip
    there = local_devices(alone, tmp_path)
    sides = build_federation.server(alone, build_federation.server_tasks(alone, deployed=False))
    grid = grid_of(there, lambda node, asked, answer: None if (node, asked.kind) == (993, "train") else [answer()])
    federation = federation_of(grid, alone, sides, uuid4().hex, None, lambda _: None, lambda: False)
    state: State = sides[0].initial
    state, row = play_round(federation.experiment(sides[0]), state)
    assert row.absent == [1] and state.devices.own.updates.tolist() == [1, 0, 1, 1, 1]


DAMAGE = {
    "empty": b"", "cut": "cut", "garbage": bytes(range(256)) * 9, "another shape": b'[1, {"a": null}]',
    "another table": b'{"file": 1, "sha256": [], "round": {}, "fingerprint": ""}', "missing": None,
    "a folder": "folder",
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["latest.json", "round-000001.safetensors"])
def test_a_damaged_state_is_one_line(
    name: str, how: str, devices: dict[int, Device], server: tuple[TrainingSetup, list], settings: Settings
) -> None:
    """Each file of what a device keeps; it is refused, and neither replaced nor removed."""
    run = uuid4().hex
    handle(devices[0], request(server, settings, run, 1, 0))
    file, data = devices[0].folder / run / name, DAMAGE[how]
    whole = file.read_bytes()
    file.unlink()
    if isinstance(data, bytes):
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif how == "a folder":
        file.mkdir()
    before = sorted(path.name for path in file.parent.iterdir())
    answer = handle(devices[0], request(server, settings, run, 2, 1))
    assert answer.kind == "refused" and sorted(path.name for path in file.parent.iterdir()) == before
    why = answer.facts["why"]
    assert len(why) < 301 and why.isprintable(), why
    assert any(words in why for words in ("restore", "damaged", "cannot be read")), why


def test_a_full_disk_is_one_line(
    devices: dict[int, Device], server: tuple[TrainingSetup, list], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = handle(devices[0], request(server, settings, uuid4().hex, 1, 0))
    assert answer.kind == "refused" and answer.facts["why"].startswith("the device's disk: ")
    assert answer.facts["why"].endswith(": No space left on device")


def test_what_a_device_keeps_is_for_its_owner_only(
    devices: dict[int, Device], server: tuple[TrainingSetup, list], settings: Settings
) -> None:
    """Whatever the umask, and where an earlier version had left it open."""
    devices[1].folder.mkdir(exist_ok=True)
    devices[1].folder.chmod(0o755)
    before = os.umask(0)
    try:
        handle(devices[1], request(server, settings, uuid4().hex, 1, 0))  # of devices 0 and 1 alike: of their task
    finally:
        os.umask(before)
    assert stat.S_IMODE(devices[1].folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["..", ".", "-x", "../..", "a" * 300, "\x1b[2J"])
def test_a_device_writes_where_its_state_is(
    name: str, devices: dict[int, Device], server: tuple[TrainingSetup, list], settings: Settings
) -> None:
    """A task's name that leads elsewhere is refused before anything is written or removed."""
    run = uuid4().hex
    asked = request(server, settings, run, 1, 0)
    handle(devices[0], asked)
    view = replace(devices[0].experiment.tasks[0], name=name)
    made = replace(devices[0].experiment, tasks=(view, *devices[0].experiment.tasks[1:]))
    before = sorted(devices[0].folder.rglob("*"))
    answer = handle(replace(devices[0], experiment=made), replace(asked, kind="finish"))
    assert answer.kind == "refused" and "cannot name a f" in answer.facts["why"]
    assert sorted(devices[0].folder.rglob("*")) == before
