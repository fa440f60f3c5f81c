"""The error memory of a federation: on the devices' disks, equal to the simulator's, also where answers are lost."""

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from airpfed.air.error_memory import Silence
from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.federation import build_federation
from airpfed.federation.device import handle, stored_state, unsent_vectors
from airpfed.federation.device_silence import SilenceRecords, checked_silences
from airpfed.federation.device_state import Personal, fresh, memory_at_start
from airpfed.federation.message import Packet
from airpfed.federation.server_app import federation_of
from airpfed.training.checkpoint import tensors_of
from airpfed.training.loop import play_round
from airpfed.training.state import ServerStep
from support.experiments import experiment_of
from support.local_grid import grid_of, local_devices

pytestmark = pytest.mark.usefixtures("shared_bases")

FADES = ("devices.memory=true", "radio.fade_truncation_db=3", "radio.antennas=1")
TOP = ("devices.memory=true", "radio.scheme=digital(quantizer=top_k, share=0.1)")
SMALL = ("server.rounds=3", "devices.chunk=1", "run.eval_every=0", "federation.deadline_seconds=0.4")


@pytest.mark.parametrize(
    "overrides",
    [
        TOP,
        (*TOP, "federation.payload=int8"),
        FADES,
        (*FADES, "radio.access=superposed", "radio.packing=real", "federation.payload=int8"),
        (*FADES, "radio.normalizer=common", "radio.mixing=none"),
    ],
    ids=["top_k", "top_k, int8", "fades", "fades, superposed, int8", "fades, not mixed"],
)
def test_devices_remember_what_the_simulator_remembers(
    overrides: tuple[str, ...], llama_settings: Path, tmp_path: Path
) -> None:
    """Also where the answer of round 4 of device 0 is lost: it keeps all that it wanted to send."""
    settings = settings_file.read_settings(llama_settings, [*overrides, *SMALL])
    made, devices = experiment_of(settings), local_devices(settings, tmp_path)
    sides = build_federation.server(settings, build_federation.server_tasks(settings, deployed=False))
    lost = set[int]()

    def tamper(node: int, asked: Packet, answer):
        came = answer()
        return [] if node == 1000 and asked.kind == "train" and asked.facts["round"] in lost else [came]

    run = uuid4().hex
    wanted = settings.model_copy(update={"federation": settings.federation.model_copy(update={"min_devices": 4})})
    told = SilenceRecords(tmp_path / "silence.json") if build_federation.tells_silence(settings) else None
    federation = federation_of(grid_of(devices, tamper), wanted, sides, run, None, lambda _: None, lambda: False, told)
    there, here, state = federation.experiment(sides[0]), made.initial, sides[0].initial
    for _ in range(3):
        here, _ = play_round(made, here)
        state, _ = play_round(there, state)
        assert torch.equal(here.server.shared.value, state.server.shared.value)
        assert torch.equal(here.server.personal.value, state.server.personal.value)
    assert state.devices.memory == {} and not [key for key in tensors_of(state) if "error_memory" in key]
    some = False
    for k, device in devices.items():
        asked = federation.request("train", there, state, k)
        left = unsent_vectors(device, asked, 3, stored_state(device, run).transmitted)
        for scope, vector in left.items():
            assert torch.equal(vector[0], here.devices.memory[scope][k]), (k, scope)
            some = some or bool(vector.any())
    assert some, "something was not sent"
    if told is not None:  # a server that goes on after a kill tells the same
        assert SilenceRecords.open(told.path, resume=True).fact(0, 3) == told.fact(0, 3)
    lost.add(4)
    state, row = play_round(there, state)
    assert row.absent == [0]
    kept = stored_state(devices[0], run)
    asked = federation.request("train", there, state, 0)
    memory = memory_at_start(kept, 5, asked.facts["counted"], lambda sent: unsent_vectors(devices[0], asked, 3, sent))
    assert asked.facts["counted"] == 3 and all(torch.equal(memory[scope], kept.transmitted[scope]) for scope in memory)
    before = handle(devices[0], asked)
    assert before == handle(devices[0], asked), "a repeated question adds nothing twice"


def state_of(round: int, counted: int) -> Personal:
    memory, sent = {"global": torch.ones(1, 3)}, {"global": torch.full((1, 3), 2.0)}
    start = fresh(torch.zeros(1, 0), ServerStep("adam", 0.5), memory)
    before, after = (replace(start.before, updates=torch.tensor([count])) for count in (counted, counted + 1))
    return Personal(round, before, after, memory, sent)


def test_the_count_decides_what_is_left() -> None:
    state = state_of(round=4, counted=2)

    def half(sent):
        return {scope: vector / 2 for scope, vector in sent.items()}

    assert memory_at_start(state, 4, 2, half)["global"].tolist() == [[1.0] * 3], "the round again"
    assert memory_at_start(state, 5, 3, half)["global"].tolist() == [[1.0] * 3], "counted: what was left out"
    assert memory_at_start(state, 6, 2, half)["global"].tolist() == [[2.0] * 3], "not counted: all of it"
    with pytest.raises(UserError, match=r"error memory is not that of this run: sent 3 times, the server counted 5"):
        memory_at_start(state, 7, 5, half)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["devices.memory=true", "radio.scheme=error_free"], r'"error_free" leaves nothing out that devices know of'),
        ([*TOP, "adapters.method=rolora"], r'adapters.method = "rolora", which sends some factors a round'),
    ],
)
def test_what_devices_cannot_know_is_refused(overrides, words, llama_settings: Path, tmp_path: Path) -> None:
    settings = settings_file.read_settings(llama_settings, [*overrides, *SMALL])
    with pytest.raises(UserError, match=words):
        build_federation.server(settings, build_federation.server_tasks(settings, deployed=False))
    with pytest.raises(UserError, match=words):
        local_devices(settings, tmp_path)


def told(t: int, **changes) -> Packet:
    group = {"scope": "task", "slot": "s", "first": 2, "last": 8, "lengths": [6], "entries": [[0, 3]]} | changes
    return Packet("train", {"silence": {"round": t, "groups": [group]}})


def test_only_what_fits_a_device_s_vectors_is_taken_for_its_silence() -> None:
    """Nor may a packet make a device draw many maps, or the same group again and again."""
    sizes = {"lengths": {"global": 4, "task": 8}, "width": 8, "tasks": 2}
    (one,) = checked_silences(told(3), 3, **sizes)
    assert (one.scope, one.first, one.last, one.lengths, one.entries) == ("task", 2, 8, (6,), ((0, 3),))
    for packet in (Packet("train"), Packet("train", {"silence": None}), told(3, scope="device"), told(3, last=-1)):
        with pytest.raises(UserError, match=r"does not say where the device was silent"):
            checked_silences(packet, 3, **sizes)
    with pytest.raises(UserError, match=r"silence in round 2, the device was last counted in 3"):
        checked_silences(told(2), 3, **sizes)
    twice = told(3)
    twice.facts["silence"]["groups"] *= 2
    wrong = [{"last": 9}, {"first": 8}, {"entries": [[0, 7]]}, {"entries": [[3, 3]]}, {"entries": [[2, 4], [3, 5]]}]
    wrong += [{"lengths": [7]}, {"lengths": []}, {"lengths": [5]}, {"lengths": [6, 6]}, {"lengths": [2, 3, 4, 5, 6]}]
    wrong += [{"scope": "global", "first": 4, "last": 8, "lengths": [4]}]
    for packet in [twice, *(told(3, **changes) for changes in wrong)]:
        with pytest.raises(UserError, match=r"does not fit its vectors"):
            checked_silences(packet, 3, **sizes)


def test_a_federation_that_ended_in_its_first_round_goes_on(tmp_path: Path) -> None:
    SilenceRecords.open(tmp_path / "silence.json", resume=False)
    assert SilenceRecords.open(tmp_path / "silence.json", resume=True).devices == {}


def test_the_server_keeps_the_last_two_rounds_that_counted_a_device(tmp_path: Path) -> None:
    """A killed server plays its last round again, perhaps without a device that was there before."""
    records, silent = SilenceRecords(tmp_path / "silence.json"), Silence("global", "s", 0, 4, (4,), ((0, 2),))
    for t, silences in ((1, {0: (silent,)}), (2, {0: ()}), (5, {0: (silent,), 1: ()})):
        records.add(t, silences)
    again = SilenceRecords.open(tmp_path / "silence.json", resume=True)
    assert [again.fact(0, rounds)["round"] for rounds in (2, 4, 5)] == [2, 2, 5]
    assert again.fact(1, 4) is None and again.fact(2, 9) is None
    again.add(5, {1: ()})
    assert [one.round for one in again.devices[0]] == [2, 5] and again.fact(0, 4)["round"] == 2
    (tmp_path / "silence.json").unlink()
    with pytest.raises(UserError, match=r"silence.json: missing"):
        SilenceRecords.open(tmp_path / "silence.json", resume=True)


def test_both_sides_agree_on_the_scheme(llama_settings: Path, tmp_path: Path) -> None:
    """A device that left out other entries than the server thinks would send wrong sums."""
    settings = [settings_file.read_settings(llama_settings, [*TOP[:1], *SMALL, scheme]) for scheme in (
        TOP[1], TOP[1].replace("0.1", "0.2")
    )]  # fmt: skip
    devices = local_devices(settings[1], tmp_path)
    sides = build_federation.server(settings[0], build_federation.server_tasks(settings[0], deployed=False))
    federation = federation_of(grid_of(devices), settings[0], sides, uuid4().hex, None, lambda _: None, lambda: False)
    answer = handle(devices[0], federation.request("train", sides[0], sides[0].initial, 0))
    assert answer.kind == "refused" and "radio.scheme differs" in answer.facts["why"]
