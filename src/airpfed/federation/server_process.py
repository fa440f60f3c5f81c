"""The server of a deployment: start SuperLink with TLS and node keys, play the run on it, then end SuperLink and the
run's process.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from airpfed.config.schema import Settings
from airpfed.core import files, run_files
from airpfed.core.errors import UserError
from airpfed.federation import certificates
from airpfed.federation.addresses import check_address, host_of, port_of, private_folder, task_of_devices
from airpfed.federation.message import safe_line
from airpfed.federation.processes import end_process, environment, last_line, start_process

CONNECTION = "airpfed"
"""The server's name in Flower's configuration."""

PATIENCE = 120.0
"""Timeout in seconds for one call of Flower's command line."""

APP = """[project]
name = "airpfed-federation"
version = "1.0.0"
description = "Points at the airpfed that is installed; nothing else travels."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "airpfed"

[tool.flwr.app.components]
serverapp = "airpfed.federation.server_app:app"
clientapp = "airpfed.federation.client_app:app"

[tool.flwr.app.config]
plan = ""
"""


@dataclass(frozen=True)
class Site:
    """A server's folders and addresses.

    keys: the folder that `airpfed federate init` wrote. work: the folder of this run's processes.
    """

    keys: Path
    work: Path
    host: str
    listen: str
    port: int

    @property
    def local(self) -> str:
        """The address at which processes of this machine reach the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.listen, self.listen)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for this run's Flower processes."""
        return {
            "FLWR_HOME": str(self.work / "home"),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "NO_PROXY": host_of(self.local),
        }


def site_of(settings: Settings, file: Path, out: Path) -> Site:
    """A server's folders and addresses. Raises UserError unless certificate and public keys are valid."""
    wanted = settings.federation
    if not wanted.address or not wanted.folder:
        raise UserError(
            f"{file}: federation.address and federation.folder are needed; `airpfed federate init` sets them"
        )
    check_address(wanted.address)
    site = Site(
        (file.resolve().parent / wanted.folder).resolve(), out / "flower", host_of(wanted.address), wanted.listen,
        port_of(wanted.address),
    )  # fmt: skip
    certificates.check_server(site.keys, site.host)
    known = [device for device in range(len(task_of_devices(settings))) if public_key(site, device).exists()]
    for device in known:
        certificates.read_public(public_key(site, device))
    if not known:
        raise UserError(f"{site.keys / 'devices'}: no public keys here; `airpfed federate init` writes them")
    return site


def public_key(site: Site, device: int) -> Path:
    """The path of a device's public key."""
    return site.keys / "devices" / f"device-{device}.pub"


def deploy(
    site: Site, devices: int, plan: Mapping[str, Any], show: Callable[[str], None], stopping: Callable[[], bool]
) -> dict[str, Any]:
    """Serve a run to its end. Returns the result that the server process wrote. All processes have ended on return.

    show: a function that receives the lines of the server process's log. stopping: a function; if it returns true, the
    run stops after the current round.
    """
    home = private_folder(private_folder(site.work) / "home")
    files.write_atomic(home / "config.toml", tomlkit.dumps({"superlink": connections(site)}))
    log = site.work / "superlink.log"
    superlink = start_process(superlink_words(site), log, site.environment)
    try:
        wait_for(superlink, site, log)
        owners = {admit_key(site, k): k for k in range(devices) if public_key(site, k).exists()}
        show(f"listening on {site.listen}:{site.port}; {len(owners)} keys admitted")
        return follow_run(superlink, site, {**plan, "owners": owners}, show, stopping)
    finally:
        end_process(superlink)


def connections(site: Site) -> dict[str, Any]:
    """Flower's configuration with one server."""
    one = {"address": site.local, "root-certificates": str(site.keys / "ca.crt")}
    return {"default": CONNECTION, CONNECTION: one}


def superlink_words(site: Site) -> list[str]:
    """The command line of SuperLink."""
    keys = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
    files = [part for option, name in keys.items() for part in (f"--ssl-{option}", str(site.keys / name))]
    return [
        sys.executable, "-m", "airpfed.federation.superlink", *files, "--enable-supernode-auth", "--host", site.listen,
        "--port", str(site.port), "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def wait_for(superlink: subprocess.Popen[bytes], site: Site, log: Path, seconds: float = 60.0) -> None:
    """Wait until SuperLink accepts connections. Raises UserError if it exits or does not start in time."""
    context = ssl.create_default_context(cafile=str(site.keys / "ca.crt"))
    host, end = host_of(site.local), time.monotonic() + seconds
    while superlink.poll() is None and time.monotonic() < end:
        try:
            with socket.create_connection((host, site.port), timeout=2) as line:
                context.wrap_socket(line, server_hostname=host).close()
                return
        except (OSError, ssl.SSLError):
            time.sleep(0.2)
    raise UserError(f"SuperLink did not start on {site.local}: {last_line(log, '[Errno')}; all of it is in {log}")


def admit_key(site: Site, device: int) -> int:
    """Register a device's public key. Returns Flower's node id for it."""
    words = ["supernode", "register", str(public_key(site, device)), CONNECTION, "--format", "json"]
    return int(flower_command(site, words)["node-id"])


def flower_command(site: Site, words: list[str]) -> dict[str, Any]:
    """The JSON answer of Flower's command line. Raises UserError with its reason if the command fails.

    Flower 1.41 exits with 0 even on failure; only its output shows a failure.
    """
    command = f"flwr {words[0]} {words[1]}"
    try:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "flwr"), *words], capture_output=True, text=True, timeout=PATIENCE,
            env=environment(site.environment), errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return answer_of(1, "", f"no answer within {PATIENCE:g} s", command)
    return answer_of(done.returncode, done.stdout, done.stderr, command)


def answer_of(code: int, out: str, errors: str, command: str) -> dict[str, Any]:
    """The JSON that a Flower command printed. Raises UserError unless it reports success."""
    tree: Any = None
    with suppress(ValueError, RecursionError):
        tree = json.loads(out)
    if code == 0 and isinstance(tree, dict) and tree.get("success") is True:
        return tree
    said = tree.get("error-message") if isinstance(tree, dict) else None
    lines = [line for line in (errors.strip() or out.strip()).splitlines() if line.strip()] or ["no output"]
    proxies = [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]
    hint = f" (the environment sets {proxies[0]})" if proxies else ""
    raise UserError(f"{command} failed: {safe_line(said or lines[-1])}{hint}")


def follow_run(
    superlink: subprocess.Popen[bytes],
    site: Site,
    plan: Mapping[str, Any],
    show: Callable[[str], None],
    stopping: Callable[[], bool],
) -> dict[str, Any]:
    """Start the run and pass on its log lines until it ends."""
    app, log = site.work / "app", Path(plan["log"])
    app.mkdir(exist_ok=True)
    files.write_atomic(app / "pyproject.toml", APP)
    run_files.write_json(site.work / "plan.json", dict(plan))
    # In a file, because Flower splits words with quotes or spaces.
    files.write_atomic(site.work / "run.toml", tomlkit.dumps({"plan": str(site.work / "plan.json")}))
    for old in (Path(plan["stop"]), *site.work.glob("ended-*")):
        old.unlink(missing_ok=True)
    log.touch()
    words = [str(Path(sys.executable).parent / "flwr"), "run", str(app), CONNECTION, "--stream"]
    words += ["--run-config", str(site.work / "run.toml")]
    with log.open(encoding="utf-8") as lines:
        lines.seek(0, 2)
        run = start_process(words, site.work / "run.log", site.environment)
        try:
            while run.poll() is None and superlink.poll() is None and not Path(plan["ended"]).exists():
                if stopping():
                    Path(plan["stop"]).touch()
                for line in lines:
                    show(line.rstrip("\n"))
                time.sleep(0.2)
        finally:
            end_process(run)
        for line in lines:
            show(line.rstrip("\n"))
    if not Path(plan["ended"]).exists():
        why = last_line(site.work / "superlink.log", "Error", "ERROR")
        if superlink.poll() is None:  # then Flower's command line may have failed
            why += f"; {last_line(site.work / 'run.log', 'rror')}"
        raise UserError(f"the server's process ended early: {why}; logs are in {site.work}; go on with --resume")
    found: dict[str, Any] = json.loads(Path(plan["ended"]).read_text(encoding="utf-8"))
    return found
