"""The same bits from simulator and federation, whatever the method; every message goes through Flower's own types."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from airpfed.config import settings_file
from airpfed.core import run_files
from airpfed.experiment import run
from airpfed.training.loop import play_round
from support.experiments import experiment_of
from support.local_grid import grid_of, local_devices, served

pytestmark = pytest.mark.usefixtures("shared_bases")

SMALL = ("server.rounds=2", "tasks.*.test_samples=4", "devices.chunk=1")
CASES = {
    "both scopes, over the air": (),
    "ideal link, rounded at random to 8 bits": ("radio.scheme=error_free", "federation.payload=int8"),
    "a rounded broadcast": ("server.downlink_bits=4",),
    "a late device": ("devices.hertz=[2e9,2e9,2e9,1e5,2e9]", "server.deadline_seconds=0.5"),
    "a schedule, decay, FedProx and clipping": (
        "adapters.method=feddpa",
        "radio.scheme=error_free",
        "devices.local_steps=2",
        "adapters.layers=last-2",
        "server.optimizer=adamw",
        "server.schedule=cosine(warmup=1)",
        "devices.proximal_mu=0.5",
        "devices.max_grad_norm=1e-3",
    ),
    "device scope, local steps": (
        "adapters.method=feddpa",
        "radio.scheme=error_free",
        "devices.local_steps=2",
        "adapters.layers=last-2",
    ),
}


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_file(next((out / "checkpoint").glob("*.safetensors")))


def rows(out: Path) -> tuple[list[Any], list[tuple[int, int]]]:
    """Records without what clocks and wires say, and the bytes computed and counted."""
    found_rows, counted = [], []
    for row in run_files.load_records(out / "records.jsonl"):
        tree = row.model_dump(exclude={"seconds"})
        counted.append((row.ledger.payload_bytes, tree["ledger"].pop("uplink_bytes")))
        tree["ledger"].pop("downlink_bytes")
        found_rows.append(tree)
    return found_rows, counted


def exported(out: Path, devices: Path) -> dict[str, bytes]:
    """Adapters by task, or by device where devices have parts of their own (the server then has none)."""
    found_rows = {path.parts[-2]: path.read_bytes() for path in (out / "adapters").rglob("*.safetensors")}
    return found_rows or {
        f"device-{path.parts[-5]}": path.read_bytes() for path in devices.rglob("adapter_model.safetensors")
    }


@pytest.mark.parametrize("case", CASES)
def test_simulator_and_federation_end_in_the_same_bits(case: str, llama_settings: Path, tmp_path: Path) -> None:
    overrides = [*CASES[case], *SMALL]
    assert run.run_file(llama_settings, overrides, tmp_path / "sim", False, "x") == 0
    devices = local_devices(settings_file.read_settings(llama_settings, overrides), tmp_path / "devices")
    served(llama_settings, overrides, tmp_path / "fed", grid_of(devices))
    connected, there = tensors(tmp_path / "sim"), tensors(tmp_path / "fed")
    own = {key for key in connected if key.startswith("devices.own") and key != "devices.own.updates"}
    assert all(torch.equal(connected[key], there[key]) for key in connected.keys() - own)
    assert all(there[key].numel() == 0 for key in own), "nothing of device scope is at the server"
    assert rows(tmp_path / "sim")[0] == rows(tmp_path / "fed")[0]
    for computed, counted in rows(tmp_path / "fed")[1]:  # a head of at most 500 bytes a message beside the payload
        assert 0 < counted - computed < 500 * len(devices)
    for adapter in (tmp_path / "devices").rglob("adapter_model.safetensors"):
        assert (adapter.parent / "task.json").is_file(), "a device can use its model"
    left, right = (run_files.load_summary(tmp_path / run / "summary.json") for run in ("sim", "fed"))
    assert left.tasks == right.tasks and right.exit == "completed"
    nowhere = tmp_path / "none"
    assert exported(tmp_path / "fed", tmp_path / "devices") == exported(tmp_path / "sim", nowhere)


def test_the_stacked_engine_is_within_1e_5(llama_settings: Path) -> None:
    settings = settings_file.read_settings(llama_settings, ["radio.scheme=error_free", "run.eval_every=0"])
    made = experiment_of(settings)
    assert made.devices_per_pass > 1
    states = []
    for chunk in (made.devices_per_pass, 1):
        state = made.initial
        for _ in range(3):
            state, _ = play_round(replace(made, devices_per_pass=chunk), state)
        states.append(state.server)
    for scope in ("shared", "personal"):
        stacked, alone = (getattr(server, scope).value for server in states)
        torch.testing.assert_close(stacked, alone, rtol=0, atol=1e-5)
