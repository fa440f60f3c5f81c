"""A device's processes: the trainer answers, dies and is there again; what keeps them away is told in a line."""

import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from flwr.app import Context, RecordDict

from airpfed import cli
from airpfed.config import settings_file
from airpfed.core.errors import UserError
from airpfed.core.files import acquire_lock, end_lock_holder
from airpfed.federation import build_federation, client_app, commands, processes, server_process, supervisor
from airpfed.federation.ipc import exchange
from airpfed.federation.message import Packet
from airpfed.federation.processes import end_process, last_line, start_process
from airpfed.federation.provisioning import FederationPlan, provision
from airpfed.federation.server_app import federation_of
from airpfed.federation.supervisor import TRIES, SupervisedProcess, meaning, unreachable, watch
from support.local_grid import LocalGrid
from support.settings import make_settings

pytestmark = pytest.mark.usefixtures("shared_bases")


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> Path:
    base = tmp_path_factory.mktemp("join")
    settings = settings_file.read_settings(make_settings(base, small_llama), ["devices.chunk=1"])
    provision(base / "site", settings, FederationPlan("localhost:1", ("localhost",), True, 30, 9100))
    return base / "site"


@pytest.fixture
def running() -> Iterator[list[SupervisedProcess]]:
    """Kept processes that are ended whatever happens."""
    kept: list[SupervisedProcess] = []
    yield kept
    for one in kept:
        one.end()


def test_a_killed_trainer_is_started_again_and_answers_the_same(
    site: Path, tmp_path: Path, running: list[SupervisedProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 between two questions; the second is asked while nobody is there. The model is loaded once a life."""
    monkeypatch.setattr(supervisor, "PAUSES", (0.1,))
    file, socket_path, log = site / "device-0" / "device.toml", tmp_path / "t.sock", tmp_path / "trainer.log"
    settings = settings_file.read_settings(site / "server" / "experiment.toml")
    sides = build_federation.server(settings, build_federation.server_tasks(settings, deployed=True))
    federation = federation_of(LocalGrid({}), settings, sides, uuid4().hex, None, lambda _: None, lambda: False)
    words = [sys.executable, "-m", "airpfed.federation.device_worker", str(file), str(socket_path)]
    trainer, lines, stopping = SupervisedProcess("trainer", words, log, lambda code: f"exit {code}"), [], []
    running.append(trainer)
    absent_devices = SupervisedProcess("SuperNode", ["true"], tmp_path / "none.log", str)
    thread = threading.Thread(target=watch, args=(trainer, absent_devices, lambda: "no server", lines.append, stopping))
    thread.start()
    try:
        hello = exchange(socket_path, Packet("hello"), 60.0)
        federation.registry.admit(7, hello)
        assert federation.registry.nodes == {7: 0} and hello.facts["samples"] == 10
        assert socket_path.stat().st_mode & 0o077 == 0, "only this user may ask"
        request = federation.request("train", sides[0], sides[0].initial, 0)
        first = exchange(socket_path, request, 30.0)
        assert trainer.process is not None
        os.kill(trainer.process.pid, signal.SIGKILL)
        again = exchange(socket_path, request, 60.0)
    finally:
        stopping.append(True)
        thread.join()
    assert first == again and first.kind == "done"
    assert "trainer ended: exit -9; again in 0.1 s" in lines and lines.count("no server") == 1
    assert sum(line.startswith("trainer started") for line in lines) == 2
    text = log.read_text()
    assert text.count("is ready") == 2 and text.count("train 1: done") == 2


def test_a_process_that_keeps_ending_is_started_less_and_less_often(
    tmp_path: Path, running: list[SupervisedProcess]
) -> None:
    kept = SupervisedProcess(
        "x", [sys.executable, "-c", "import sys; print('why'); sys.exit(3)"], tmp_path / "x.log", str
    )
    running.append(kept)
    lines: list[str] = []
    until(lambda: kept.look(lines.append) or any("again in 5 s" in line for line in lines), 30)
    waits = [line.split("again in ")[1] for line in lines if "again" in line]
    assert waits == ["2 s", "5 s"] and "x ended: 3; again in 2 s" in lines


@pytest.mark.parametrize(("name", "tries"), TRIES.items())
def test_a_process_that_never_works_is_given_up_with_its_last_line(
    name: str, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer's settings are wrong, say: it is not started for ever."""
    monkeypatch.setattr(supervisor, "PAUSES", (0.0,))
    log = tmp_path / "x.log"
    kept = SupervisedProcess(
        name, ["sh", "-c", "echo 'airpfed: device.toml: \x1b[2Jwrong'; exit 2"], log, lambda _: last_line(log)
    )
    lines: list[str] = []
    with pytest.raises(UserError) as identity_of:
        until(lambda: bool(kept.look(lines.append)), 60)
    assert str(identity_of.value) == (
        f"{name} ended {tries} times in a row: airpfed: device.toml: ?[2Jwrong; all of it is in {log}"
    )
    assert sum("started" in line for line in lines) == tries and kept.process is None


def test_who_is_refused_by_the_server_keeps_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key may be admitted tomorrow."""
    monkeypatch.setattr(supervisor, "PAUSES", (0.0,))
    kept = SupervisedProcess(
        "SuperNode",
        ["false"],
        tmp_path / "x.log",
        lambda _: f"{supervisor.REFUSED}: x",
        lambda reason: "refused" in reason,
    )
    lines: list[str] = []
    until(lambda: kept.look(lines.append) or len(lines) > 2 * TRIES["SuperNode"] + 4, 60)
    kept.end()


def test_a_trainer_that_worked_for_long_and_then_finds_something_wrong_is_given_up_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model takes long to load before its settings are found wrong."""
    monkeypatch.setattr(supervisor, "PAUSES", (0.0,))
    monkeypatch.setattr(supervisor, "LASTING", 0.0)
    kept = SupervisedProcess("trainer", ["sh", "-c", "exit 2"], tmp_path / "x.log", str)
    with pytest.raises(UserError, match="ended 5 times"):
        until(lambda: bool(kept.look(lambda _: None)), 60)
    fine = SupervisedProcess("trainer", ["sh", "-c", "exit 1"], tmp_path / "y.log", str)
    lines: list[str] = []
    until(lambda: fine.look(lines.append) or len(lines) > 20, 60)
    fine.end()


def test_a_log_is_for_its_owner_only(tmp_path: Path) -> None:
    (tmp_path / "old.log").write_text("x")
    (tmp_path / "old.log").chmod(0o644)
    before = os.umask(0)
    try:
        for name in ("old.log", "new.log"):
            end_process(start_process(["true"], tmp_path / name))
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_a_devices_state_is_for_its_owner_only_and_swept(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `airpfed federate join` begins; what a killed process left half written goes, all else stays."""
    home = shutil.copytree(site / "device-1", tmp_path / "device-1")
    run = home / "state" / "runs" / ("a" * 32)
    run.mkdir(parents=True)
    (home / "state").chmod(0o755)
    (run / "adapters" / ".colours.0a1b2c3d.77" / "inner").mkdir(parents=True)
    files = {".latest.json.4242": False, ".latest.json.0a1b2c3d.4242": False, "adapters/.colours.0a1b2c3d.77": False}
    files |= {".round-000003.safetensors.99": False, "latest.json": True, ".mine": True}
    for name in files:
        if not (run / name).is_dir():
            (run / name).write_text("x")
    (run / ".outside.1").symlink_to(tmp_path)
    seen: list[int] = []

    def look(
        trainer: SupervisedProcess, aggregate: SupervisedProcess, fault: object, log: object, stopping: list[bool]
    ) -> None:
        seen.append(stat.S_IMODE((home / "state").stat().st_mode))
        (home / "state" / "new").touch()

    monkeypatch.setattr(supervisor, "watch", look)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    before = os.umask(0)
    try:
        supervisor.join_federation(home / "device.toml", print)
    finally:
        os.umask(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert seen == [0o700] and stat.S_IMODE((home / "state" / "new").stat().st_mode) == 0o600
    assert {name: (run / name).exists() for name in files} == files and tmp_path.is_dir()


@pytest.mark.parametrize("name", ["x" * 90, "a b", 'a"b', "a'b"])
def test_a_socket_finds_a_place_whatever_tmpdir_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setattr(supervisor.tempfile, "gettempdir", lambda: str(folder))
    assert supervisor.short_folder() == Path("/tmp")
    with socket.socket(socket.AF_UNIX) as socket_path:
        path = Path("/tmp") / f"airpfed-{os.getpid():08d}"
        path.mkdir()
        try:
            socket_path.bind(str(path / supervisor.DOOR))
        finally:
            shutil.rmtree(path)
    monkeypatch.setattr(supervisor.os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"TMPDIR = .*: too long or of odd letters for a socket, .* at most 77 letters"):
        supervisor.short_folder()


def test_a_good_tmpdir_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor.tempfile, "gettempdir", lambda: "/var/tmp")
    assert supervisor.short_folder() == Path("/var/tmp")


def test_what_was_started_dies_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of a process that has started another."""
    code = f"""
import sys, time
from pathlib import Path
from airpfed.federation.processes import start_process
child = start_process([sys.executable, "-c", "import time; time.sleep(60)"], Path({str(tmp_path / "x.log")!r}))
print(child.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.communicate()
    until(lambda: not alive(child), 10)


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_a_process_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE", 0.3)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    process = start_process([sys.executable, "-c", code], tmp_path / "x.log")
    until(lambda: "on" in (tmp_path / "x.log").read_text())
    end_process(process)
    assert process.returncode == -signal.SIGKILL


def server(site: Path) -> tuple[socket.socket, int]:
    """A TLS server with the site's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site / "server" / "server.crt", site / "server" / "server.key")
    place = socket.create_server(("0.0.0.0", 0))

    def serve() -> None:
        while True:
            try:
                line, _ = place.accept()
                with line, context.wrap_socket(line, server_side=True) as talk:
                    talk.recv(1)
            except OSError:
                if place.fileno() < 0:
                    return

    threading.Thread(target=serve, daemon=True).start()
    return place, place.getsockname()[1]


def test_a_wrong_certificate_is_refused_with_a_line(site: Path, tmp_path: Path) -> None:
    from airpfed.federation import certificates

    certificates.new_authority(tmp_path, 30)
    place, port = server(site)
    try:
        assert unreachable(f"localhost:{port}", site / "ca.crt") is None
        assert unreachable(f"localhost:{port}", tmp_path / "ca.crt") == (
            f"refused: the server at localhost:{port} has a wrong certificate: unable to get local issuer certificate"
        )
        assert "IP address mismatch" in str(unreachable(f"127.0.0.9:{port}", site / "ca.crt"))
    finally:
        place.close()
    assert "cannot be reached" in str(unreachable("localhost:1", site / "ca.crt"))


def test_what_a_supernodes_end_means(tmp_path: Path) -> None:
    log = tmp_path / "s.log"
    log.write_text("a\nExit Code: 305\nFailed to initialize\n[code: 2004] Failed to activate SuperNode\n")
    assert meaning(1, log).startswith("refused by the server: this key is not admitted")
    log.write_text("Exit Code: 600 (address)\nmore\n")
    assert meaning(1, log) == "Exit Code: 600 (address) (exit 1)"


def test_two_processes_never_work_in_one_folder(tmp_path: Path) -> None:
    with (
        acquire_lock(tmp_path / "lock", 1.0),
        pytest.raises(UserError, match="another process works in this folder"),
        acquire_lock(tmp_path / "lock", 0.1),
    ):
        raise AssertionError
    with acquire_lock(tmp_path / "lock", 0.1):
        pass


def test_a_settings_file_without_a_node_is_one_line(site: Path) -> None:
    with pytest.raises(UserError, match=r"no \[node\] table; `airpfed federate init` writes one settings file"):
        supervisor.join_federation(site / "server" / "experiment.toml", print)


def test_without_flower_a_line_says_which_extra_to_install(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None)
    file = str(site / "server" / "experiment.toml")
    for words in (["federate", file], ["federate", "init", "x", "--settings", file], ["federate", "join", file]):
        monkeypatch.setattr(sys, "argv", ["airpfed", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        identity_of = capsys.readouterr().err.strip().splitlines()
        assert identity_of == [
            "airpfed: airpfed federate needs Flower, which is not installed: pip install 'airpfed[flower]'"
        ]


def test_who_holds_a_lock_for_too_long_is_killed(tmp_path: Path) -> None:
    """A server's process that outlives its launcher."""
    lock = tmp_path / "lock"
    code = f"""
import time
from pathlib import Path
from airpfed.core.files import acquire_lock
held = acquire_lock(Path({str(lock)!r}), 1.0)
print("on", flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "on\n"
    end_lock_holder(lock, 0.3)
    holder.communicate()
    assert holder.returncode == -signal.SIGKILL
    end_lock_holder(lock, 0.3)
    assert not alive(holder.pid)


SUCCESS = '{"success": true, "node-id": 7}'
FAILURE = '{"success": false, "error-message": "Connection to the SuperLink\\u001b[1m failed\\nProxyError"}'


@pytest.mark.parametrize(
    ("code", "out", "errors", "words"),
    [
        (0, FAILURE, "", "flwr supernode register failed: Connection to the SuperLink?[1m failed ProxyError"),
        (1, SUCCESS, "x\nno\x1b[2J route\n", "flwr supernode register failed: no?[2J route"),
        (0, "", "", "flwr supernode register failed: no output"),
        (0, "[1]", "", "failed: [1]"),
        (0, '{"success": "true"}', "", "failed"),
        (0, "<html>" * 999, "", "failed: <html>"),
    ],
)
def test_flowers_command_line_is_believed_only_where_it_says_that_it_succeeded(
    code: int, out: str, errors: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower 1.41 ends with 0 behind a dead proxy."""
    assert server_process.answer_of(0, SUCCESS, "", "x")["node-id"] == 7
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(UserError) as identity_of:
        server_process.answer_of(code, out, errors, "flwr supernode register")
    line = str(identity_of.value)
    assert words in line and line.isprintable() and len(line) < 400 and "(the environment sets HTTPS_PROXY)" in line


def test_flowers_command_line_that_hangs_is_one_line(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a proxy that takes connections and says nothing, say. It is started with this machine as no proxy's."""
    (tmp_path / "flwr").write_text('#!/bin/sh\necho "$no_proxy" > "$FLWR_HOME"\nexec sleep 60\n')
    (tmp_path / "flwr").chmod(0o700)
    monkeypatch.setattr(server_process.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(server_process, "PATIENCE", 2.0)
    monkeypatch.setenv("NO_PROXY", "a.example")
    place = server_process.Site(site / "server", tmp_path, "localhost", "192.0.2.1", 9500)
    with pytest.raises(UserError, match=r"^flwr supernode register failed: no answer within 2 s"):
        server_process.admit_key(place, 0)
    assert (tmp_path / "home").read_text() == "a.example,localhost,127.0.0.1,::1,192.0.2.1\n"


@pytest.mark.parametrize(
    ("seconds", "waits"),
    [
        (0.5, 0.5),
        (7, 7.0),
        (True, 60.0),
        ("9", 60.0),
        (-1, 60.0),
        (0, 60.0),
        (1e300, 86400.0),
        (None, 60.0),
        ([], 60.0),
    ],
)
def test_the_relay_waits_as_long_as_the_server_says_within_reason(
    seconds: object, waits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    flower_command: list[float] = []

    def exchange(path: Path, packet: Packet, wait: float) -> Packet:
        flower_command.append(wait)
        return packet

    monkeypatch.setattr(client_app, "exchange", exchange)
    client_app.relay(Packet("train", {"seconds": seconds}), Context(1, 1, {"socket": "x"}, RecordDict(), {}))
    assert flower_command == [waits]


def test_a_plan_of_any_path_reaches_the_servers_process(tmp_path: Path) -> None:
    """Flower takes a path with quotes or spaces in it apart; from a file it reads it whole."""
    import tomlkit
    from flwr.common.config import parse_config_args

    odd = str(tmp_path / "my \"runs\" 'a' = b")
    (tmp_path / "run.toml").write_text(tomlkit.dumps({"plan": odd}))
    assert parse_config_args([str(tmp_path / "run.toml")]) == {"plan": odd}
