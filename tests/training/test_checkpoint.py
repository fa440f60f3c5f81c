"""Checkpoints: every bit comes back, damage and mix-ups are told in one line, a crash leaves the old one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from airpfed.core.errors import UserError
from airpfed.training import checkpoint
from airpfed.training.checkpoint import LATEST, exists, load_state, save_state, tensors_of
from airpfed.training.state import DeviceState, OptimizedParameters, ServerState, State


def moving(copies: int, d: int, rng: torch.Generator) -> OptimizedParameters:
    draws = torch.randn(copies, d, generator=rng) * 10.0 ** torch.randint(-30, 9, (copies, d), generator=rng)
    state = {"first": draws / 3, "second": draws.square()}
    return OptimizedParameters(draws, state, torch.randint(9, (copies,), generator=rng))


def state(round: int, seed: int = 0, d: int = 40) -> State:
    """Values over the whole range of float32; a scope that a method does not use is empty."""
    rng = torch.Generator().manual_seed(seed)
    server = ServerState(moving(1, d, rng), moving(2, 7, rng), torch.rand(4, 7, generator=rng, dtype=torch.float64))
    own = DeviceState(moving(5, 0, rng), torch.randint(2**40, (5,), generator=rng))
    return State(round, server, own, torch.randn(1, 3, generator=rng))


def same(a: State, b: State) -> bool:
    x, y = tensors_of(a), tensors_of(b)
    return a.round == b.round and x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def one_line(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_bit_comes_back(tmp_path: Path) -> None:
    assert not exists(tmp_path)
    save_state(tmp_path, state(7), seed=3, fingerprint="f")
    assert exists(tmp_path) and same(load_state(tmp_path, state(0, seed=1), "f"), state(7))
    assert all(load_state(tmp_path, state(0), "f") is not None for _ in range(2)), "reading leaves it as it is"


def test_every_tensor_of_the_state_is_kept() -> None:
    fields = {
        f"{part}.{key}"
        for part in ("server.shared", "server.personal", "devices.own")
        for key in ("value", "first", "second", "updates")
    }
    assert tensors_of(state(0)).keys() == fields | {"devices.cursors", "frozen", "server.memory", "server.added"}


def test_only_the_newest_is_kept(tmp_path: Path) -> None:
    for t in range(4):
        save_state(tmp_path, state(t, seed=t), seed=3, fingerprint="f")
        assert same(load_state(tmp_path, state(0), "f"), state(t, seed=t))
    assert sorted(path.name for path in tmp_path.iterdir()) == [LATEST, "round-000003.safetensors"]


def test_nothing_there_is_said(tmp_path: Path) -> None:
    assert "no checkpoint" in one_line(lambda: load_state(tmp_path / "none", state(0), "f"))


@pytest.mark.parametrize("change", ["a bit", "cut", "empty"])
def test_a_damaged_file_is_noticed(tmp_path: Path, change: str) -> None:
    save_state(tmp_path, state(2), seed=3, fingerprint="f")
    (file,) = tmp_path.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes({"a bit": bytes(data), "cut": bytes(data[: len(data) // 2]), "empty": b""}[change])
    assert "damaged" in one_line(lambda: load_state(tmp_path, state(0), "f"))


@pytest.mark.parametrize("field", [{"round": 3}, {"round": -1}, {"file": "../round-000002.safetensors"}, {"seed": "x"}])
def test_a_pointer_that_contradicts_itself_is_damaged(tmp_path: Path, field: dict[str, object]) -> None:
    save_state(tmp_path, state(2), seed=3, fingerprint="f")
    told = json.loads((tmp_path / LATEST).read_text())
    (tmp_path / LATEST).write_text(json.dumps(told | field))
    assert "latest.json: damaged" in one_line(lambda: load_state(tmp_path, state(0), "f"))


def test_tensors_of_another_type_do_not_fit(tmp_path: Path) -> None:
    save_state(tmp_path, state(2), seed=3, fingerprint="f")
    like = state(0)
    other = State(0, like.server, like.devices, like.frozen.double())
    assert "does not fit" in one_line(lambda: load_state(tmp_path, other, "f"))


def test_what_is_no_round_of_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "round-best.safetensors").write_text("own")
    (tmp_path / "my-round-000001.safetensors").write_text("own")
    for t in range(2):
        save_state(tmp_path, state(t), seed=3, fingerprint="f")
    names = {LATEST, "round-000001.safetensors", "round-best.safetensors", "my-round-000001.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("text", ["", "{", "{}", '{"file": "round-000009.safetensors"}'])
def test_a_damaged_pointer_is_noticed(tmp_path: Path, text: str) -> None:
    save_state(tmp_path, state(2), seed=3, fingerprint="f")
    (tmp_path / LATEST).write_text(text)
    assert "latest.json: damaged" in one_line(lambda: load_state(tmp_path, state(0), "f"))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, state(2), seed=3, fingerprint="f")
    assert "other settings" in one_line(lambda: load_state(tmp_path, state(0), "g"))
    assert "does not fit" in one_line(lambda: load_state(tmp_path, state(0, d=41), "f"))


def test_the_pointer_says_what_the_random_streams_need(tmp_path: Path) -> None:
    save_state(tmp_path, state(2), seed=3, fingerprint="f")
    told = json.loads((tmp_path / LATEST).read_text())
    assert (told["round"], told["seed"], told["fingerprint"]) == (2, 3, "f")


class PowerCutError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("place", ["write_atomic", "write_json"])
def test_a_crash_before_the_pointer_leaves_the_old_checkpoint(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path, state(2), seed=3, fingerprint="f")

    def cut(path: Path, data: object) -> None:
        if isinstance(data, bytes):
            path.write_bytes(data[: len(data) // 2])
        raise PowerCutError

    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(checkpoint, place, cut)
        save_state(tmp_path, state(3, seed=1), seed=3, fingerprint="f")
    assert same(load_state(tmp_path, state(0), "f"), state(2))
    save_state(tmp_path, state(3, seed=1), seed=3, fingerprint="f")
    assert same(load_state(tmp_path, state(0), "f"), state(3, seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [LATEST, "round-000003.safetensors"]
