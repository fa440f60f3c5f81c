"""Whole federations on this machine: three engines, one result; nodes and server killed; strangers at the door."""

import json
import re
import ssl
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file

from airpfed.config import settings_file
from airpfed.experiment import artifacts
from airpfed.federation import certificates
from airpfed.training.loop import play_round
from airpfed.training.setup import RoundGradients, TrainingSetup, simulate_gradients
from airpfed.training.state import State
from support.experiments import experiment_of
from support.loopback import airpfed, copied, eventually, federation, free_port
from support.settings import make_settings

pytestmark = pytest.mark.loopback

MINILM = """
[model]
base = "minilm"

[adapters]
target_modules = ["query", "value"]

[[tasks]]
name = "trec"
devices = 1
dev_samples = 0
test_samples = 40

[[tasks]]
name = "movies"
devices = 2
dev_samples = 0
test_samples = 40

[devices]
chunk = 1

[server]
rounds = 5

[radio]
scheme = "error_free"

[run]
threads = 1
"""


def adapters(folder: Path) -> dict[str, bytes]:
    """Exported adapters, byte by byte, under their task's name."""
    return {path.parent.name: path.read_bytes() for path in sorted(folder.rglob("adapter_model.safetensors"))}


def parameters(out: Path) -> torch.Tensor:
    result = load_file(next((out / "checkpoint").glob("*.safetensors")))
    return torch.cat([result["server.shared.value"].flatten(), result["server.personal.value"].flatten()])


def test_three_engines_end_in_the_same_adapters(tmp_path: Path) -> None:
    """MiniLM, 5 rounds, ideal link: simulator, Flower's simulation, 3 nodes over TLS bit for bit; stacked to 1e-5."""
    file, site = tmp_path / "minilm.toml", tmp_path / "site"
    file.write_text(MINILM)
    airpfed("run", file, "--out", tmp_path / "alone")
    airpfed("run", file, "--set", "devices.chunk=0", "--out", tmp_path / "stacked")
    airpfed("federate", file, "--backend", "simulation", "--out", tmp_path / "ray")
    ports = free_port(4)
    airpfed(
        "federate",
        "init",
        site,
        "--settings",
        file,
        "--deal",
        "--address",
        f"localhost:{ports}",
        "--port",
        str(ports + 1),
    )
    with federation(site, tmp_path / "tls") as running:
        for k in range(3):
            running.start(f"device-{k}")
        running.serve()
        running.finish()
        for k in range(3):
            assert (site / f"device-{k}" / "state" / "trainer.log").read_text().count("is ready") == 1, "loaded once"
    wanted = adapters(tmp_path / "alone" / "adapters")
    assert list(wanted) == ["movies", "trec"]
    for engine in ("ray", "tls"):
        assert adapters(tmp_path / engine / "adapters") == wanted, engine
        assert torch.equal(parameters(tmp_path / engine), parameters(tmp_path / "alone"))
    own = [adapters(site / f"device-{k}" / "state") for k in range(3)]
    assert own == [{"trec": wanted["trec"]}, {"movies": wanted["movies"]}, {"movies": wanted["movies"]}]
    torch.testing.assert_close(parameters(tmp_path / "stacked"), parameters(tmp_path / "alone"), rtol=0, atol=1e-5)
    seconds = [sum(row.seconds.values()) for row in running.rows()]
    print("seconds a round over TLS:", [round(one, 1) for one in seconds])


DEADLINE = 15

FAULTY = (
    "tasks.colours.devices=1", "tasks.moods.devices=2", "adapters.method=feddpa", "adapters.layers=last-2",
    "radio.scheme=error_free", "devices.chunk=1", "run.eval_every=0", "tasks.*.test_samples=6", "server.rounds=99",
    "federation.min_devices=2", f"federation.deadline_seconds={DEADLINE}",
)  # fmt: skip


def masked(file: Path, absent: list[list[int]]) -> tuple[TrainingSetup, State]:
    """The simulator with the absences that the federation wrote down."""
    settings = settings_file.read_settings(file)

    def collect(experiment: TrainingSetup, state: State) -> RoundGradients:
        result = simulate_gradients(experiment, state)
        for rows in result.gradients.values():
            rows[absent[state.round]] = torch.nan
        return result

    made = replace(experiment_of(settings), collect=collect)
    state = made.initial
    for _ in absent:
        state, _ = play_round(made, state)
    return made, state


def test_a_killed_node_a_killed_server_and_strangers(tiny_llama: Path, tmp_path: Path) -> None:
    """A node is killed (-9) in a round and comes back, the server is killed (-9) and resumed, a key is not admitted, a
    certificate is wrong: the run completes, and all adapters are the simulator's with the same absences.

    On a busy machine a device may be late; it is then absent in that round, and the simulator's is too. The environment
    is an odd one: proxies that are dead, forwarders that are trusted, a long TMPDIR, no umask; the run's folder has
    quotes in its name.
    """
    out, odd = tmp_path / 'an "odd" place', tmp_path / ("t" * 90)
    odd.mkdir()
    extra = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy"), "http://127.0.0.1:9")
    extra |= {"FORWARDED_ALLOW_IPS": "*", "TMPDIR": str(odd), "FLWR_INTERNAL_GRPC_CONTROL_API": "1"}
    file, site = make_settings(tmp_path, tiny_llama), tmp_path / "site"
    ports = free_port(8)
    sets = [part for one in FAULTY for part in ("--set", one)]
    place = ("--address", f"localhost:{ports}", "--port", str(ports + 1))
    airpfed("federate", "init", site, "--settings", file, "--deal", *place, *sets)
    stranger, misled = copied(site, "device-1", "stranger"), copied(site, "device-0", "misled")
    (stranger / "device.key").unlink()
    certificates.new_device(stranger / "device.key", tmp_path / "unknown.pub")
    (tmp_path / "other").mkdir()
    certificates.new_authority(tmp_path / "other", 30)
    (misled / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    for number, home in enumerate((stranger, misled)):
        text = (home / "device.toml").read_text()
        (home / "device.toml").write_text(re.sub(r"port = \d+", f"port = {ports + 5 + number}", text))
    with federation(site, out, extra) as running:
        for name in ("device-0", "device-1", "device-2", "stranger", "misled"):
            running.start(name)
        running.serve()
        eventually(lambda: "this key is not admitted" in running.log("stranger"), "the stranger is refused")
        eventually(lambda: "has a wrong certificate" in running.log("misled"), "the wrong server is refused")
        running.kill("stranger")
        running.kill("misled")
        running.wait_for_round(2)
        trust = ssl.create_default_context(cafile=str(site / "ca.crt"))
        for header in ({"X-Forwarded-For": "127.0.0.1"}, {"Forwarded": "for=192.0.2.7"}, {"X-Real-IP": "192.0.2.7"}):
            for path in ("control/list-runs", "fleet/pull-messages"):
                asked = httpx.post(
                    f"https://localhost:{ports}/v1/{path}", headers=header, verify=trust, trust_env=False
                )
                assert asked.status_code == 403, (header, path)
        running.kill("device-2")
        killed = len(running.rows())
        eventually(lambda: any(2 in row.absent for row in running.rows()[killed:]), "a round without device 2")
        running.start("device-2")
        eventually(lambda: 2 not in running.rows()[-1].absent, "device 2 is back")
        running.kill("server")
        done = len(running.rows())
        running.serve("--resume", "--set", f"server.rounds={done + 6}")
        running.finish()
        lines = running.log("server").splitlines()
    rows = running.rows()
    assert [row.round for row in rows] == list(range(1, done + 7))
    assert any(row.absent == [] for row in rows[done:])
    identity_of = (
        rf"device 2 (did not answer \(train\) within {DEADLINE} s|is gone)|round \d+: device 2 is absent: Flower says: "
    )
    assert any(re.match(identity_of, line) for line in lines)
    assert all(row.seconds["gradients"] < 2.5 * DEADLINE for row in rows[killed:done]), "rounds end by their deadline"
    for folder in (out / "flower", *(site / f"device-{k}" / "state" for k in range(3))):
        modes = {path: path.lstat().st_mode & 0o077 for path in (folder, *folder.glob("*.log"))}
        assert len(modes) > 2 and not any(modes.values()), modes
        assert not [path for path in folder.rglob(".*") if re.fullmatch(r"\..+\.\d+", path.name)]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["exit"] == "completed" and summary["average"] is not None
    made, state = masked(out / "experiment.toml", [row.absent for row in rows])
    assert torch.equal(parameters(out), torch.cat([
        state.server.shared.value.flatten(), state.server.personal.value.flatten(),
    ]))  # fmt: skip
    settings = settings_file.read_settings(out / "experiment.toml")
    wanted = [
        adapters(folder)
        for folder in artifacts.export_adapters(settings, made, state, tmp_path / "simulated", merged=False)
    ]
    own = [adapters(site / f"device-{k}" / "state") for k in range(3)]
    assert [list(one.values()) for one in own] == [list(one.values()) for one in wanted]
    assert not list(out.rglob("adapter_model.safetensors")), "the server has none of device scope"
