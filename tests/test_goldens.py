"""benchmarks/goldens.py sees what differs between two sides, and only that."""

import json
from pathlib import Path

import goldens
import pytest
import torch
from safetensors.torch import save_file


def side(folder: Path, pi: float, *, seconds: float = 1.0, bit: float = 0.0, key: str = "pi") -> Path:
    """A run's folder with two rounds and one tensor."""
    (folder / "checkpoint").mkdir(parents=True)
    rows = [{"round": t, key: pi * t, "seconds": {"air": seconds}} for t in (1, 2)]
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file({"shared.value": torch.tensor([1.0, bit])}, folder / "checkpoint" / "round-000002.safetensors")
    return folder


def test_seconds_do_not_count(tmp_path: Path) -> None:
    assert goldens.compare(side(tmp_path / "a", 0.1), side(tmp_path / "b", 0.1, seconds=2.0), {}, 0.0) == (5, "")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pi": 0.1 * (1 + 2**-50)}, "records.jsonl: 0.pi: 0.1 is now 0.1000"),
        ({"pi": 0.1, "bit": -0.0}, "round-000002.safetensors: shared.value: (2,) float32"),
        ({"pi": 0.1, "key": "psi"}, "records.jsonl: 0.pi: 0.1 is now 'absent'"),
    ],
)
def test_a_bit_is_seen(tmp_path: Path, changed: dict, message: str) -> None:
    count, difference = goldens.compare(side(tmp_path / "a", 0.1), side(tmp_path / "b", **changed), {}, 0.0)
    assert count >= 5
    assert message in difference


def test_a_tolerance_is_relative(tmp_path: Path) -> None:
    old, new = side(tmp_path / "a", 0.1), side(tmp_path / "b", 0.1 * (1 + 1e-12))
    assert goldens.compare(old, new, {}, 1e-11)[1] == ""
    assert "2 values differ" in goldens.compare(old, new, {}, 1e-13)[1]


def test_the_map_renames_keys(tmp_path: Path) -> None:
    old, new = side(tmp_path / "a", 0.1), side(tmp_path / "b", 0.1, key="psi")
    assert goldens.compare(old, new, {"pi": "psi"}, 0.0) == (5, "")


def test_a_command_has_the_words_of_each_side() -> None:
    command = "run a --set <<radio.starts||radio.design.starts>>=2 <<||--set x>>"
    assert goldens.words_of(command, 0) == "run a --set radio.starts=2 "
    assert goldens.words_of(command, 1) == "run a --set radio.design.starts=2 --set x"


def test_the_unused_moments_of_a_plain_optimizer_may_go(tmp_path: Path) -> None:
    for name, extra in (("a", torch.zeros(2)), ("b", None), ("c", torch.ones(2))):
        (tmp_path / name).mkdir()
        tensors = {"value": torch.ones(2)} | ({} if extra is None else {"first": extra})
        save_file(tensors, tmp_path / name / "round-000001.safetensors")
    assert goldens.compare(tmp_path / "a", tmp_path / "b", {}, 0.0)[1] == ""
    assert "first" in goldens.compare(tmp_path / "c", tmp_path / "b", {}, 0.0)[1]


def test_a_missing_file_is_a_difference_and_a_further_one_is_not(tmp_path: Path) -> None:
    old, new = side(tmp_path / "a", 0.1), side(tmp_path / "b", 0.1)
    (new / "theory.json").write_text("{}")
    assert goldens.compare(old, new, {}, 0.0)[1] == ""
    assert goldens.compare(new, old, {}, 0.0)[1] == "names of files: theory.json is missing"
