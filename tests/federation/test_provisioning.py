"""`airpfed federate init`: what it makes fits together, and its checks see what does not."""

import datetime
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from airpfed import cli
from airpfed.config import settings_file
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.experiment import build
from airpfed.federation import build_federation, certificates, provisioning, server_process, supervisor
from airpfed.federation.addresses import check_federable, host_of, node_of
from airpfed.federation.handshake import agreement, difference
from airpfed.federation.provisioning import FederationPlan, provision
from support.experiments import experiment_of
from support.plugins import save_plugins, without_rows
from support.settings import make_settings, write_rows

pytestmark = pytest.mark.usefixtures("shared_bases")

PLAN = FederationPlan("hub.example:9500", ("hub.example", "192.0.2.1"), True, 30, 9100)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> Path:
    return make_settings(tmp_path_factory.mktemp("settings"), small_llama)


@pytest.fixture(scope="module")
def site(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fed") / "site"
    steps = provision(folder, settings_file.read_settings(file), PLAN)
    assert (folder / "README.txt").read_text() == "\n".join(steps) + "\n"
    return folder


def test_every_device_has_a_folder_with_one_settings_file_and_one_script(site: Path) -> None:
    assert {path.name for path in site.iterdir()} == {
        "README.txt", "ca.crt", "ca.key", "server", *(f"device-{k}" for k in range(5)),
    }  # fmt: skip
    for k in range(5):
        home = site / f"device-{k}"
        names = {path.name for path in home.iterdir()}
        assert names == {"ca.crt", "device.key", "device.toml", "start.sh", "data.jsonl"}
        assert stat.S_IMODE((home / "device.key").stat().st_mode) == 0o600
        assert stat.S_IMODE(home.stat().st_mode) == 0o700 and (home / "start.sh").stat().st_mode & 0o100
        assert node_of(settings_file.read_settings(home / "device.toml"), home).device == k
    assert not [path for path in (site / "server").rglob("*") if b"OPENSSH PRIVATE" in _bytes(path)]


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_dealt_devices_hold_what_the_simulator_gives_them(site: Path, file: Path) -> None:
    tasks = build.load_tasks(settings_file.read_settings(file))
    device_of_node = [(n, k) for n, task in enumerate(tasks) for k in range(len(task.train))]
    for device, (n, k) in enumerate(device_of_node):
        own = build_federation.node_tasks(
            settings_file.read_settings(site / f"device-{device}" / "device.toml"), device
        )
        assert [len(shard) > 0 for one in own for shard in one.train] == [other == device for other in range(5)]
        assert [provisioning.plain(s) for s in own[n].train[k]] == [provisioning.plain(s) for s in tasks[n].train[k]]
        assert [task.labels for task in own] == [task.labels for task in tasks]


@pytest.mark.parametrize("prompt", ["{text}\nLabel: ", "\n{text}\nLabel:", " {text} : \n"])
def test_white_space_around_a_dealt_prompt_stays(prompt: str, file: Path) -> None:
    settings = settings_file.read_settings(file, [f"tasks.*.prompt={json.dumps(prompt)}"])
    task = build.load_tasks(settings)[1]
    words = provisioning.labels_of(settings.tasks[1], task)
    dealt = provisioning.local_task_settings(settings.tasks[1], task, words, True).prompt
    sample = task.train[0][0].prompt
    assert dealt.format(prompt=sample.strip()) == sample != sample.strip()


def test_the_servers_settings_are_the_experiments_with_a_federation(site: Path, file: Path) -> None:
    before, after = settings_file.read_settings(file), settings_file.read_settings(site / "server" / "experiment.toml")
    assert after.federation.address == "hub.example:9500" and after.node is None
    assert after.model_copy(update={"federation": before.federation}) == before


def test_devices_with_their_own_file_keep_the_wording(file: Path, tmp_path: Path) -> None:
    """Without --deal: the task's prompt, columns and labels, and a file that the device's owner puts there."""
    provision(
        tmp_path / "site",
        settings_file.read_settings(file),
        FederationPlan("localhost:9500", ("localhost",), False, 30, 9100),
    )
    home = tmp_path / "site" / "device-3"
    settings = settings_file.read_settings(home / "device.toml")
    own = settings.tasks[1]
    assert (own.name, own.source, own.prompt) == ("moods", str(home / "data.jsonl"), "{text} Label :")
    assert list(own.labels) == ["good", "bad", "it"] and not (home / "data.jsonl").exists()
    write_rows(tmp_path / "mine.csv", 9, ("good",), 5)  # one class only: a device's own file may be so
    own = own.model_copy(update={"source": str(tmp_path / "mine.csv")})
    tasks = build_federation.node_tasks(settings.model_copy(update={"tasks": (settings.tasks[0], own)}), 3)
    assert len(tasks[1].train[1]) == 9 and tasks[1].labels == (" good", " bad", " it")


def test_a_server_needs_no_training_samples(file: Path) -> None:
    """Dev and test as in the simulator; a source that holds nothing else is enough."""
    settings = settings_file.read_settings(file)
    whole, held = build.load_tasks(settings), build_federation.server_tasks(settings, deployed=True)
    for a, b in zip(whole, held, strict=True):
        assert (a.dev, a.test, a.labels, a.source_sha256) == (b.dev, b.test, b.labels, b.source_sha256)
        assert b.train == ((),) * len(a.train)
    small = [task.model_copy(update={"dev_samples": 0, "test_samples": 80}) for task in settings.tasks[:1]]
    assert len(build_federation.server_tasks(settings.model_copy(update={"tasks": tuple(small)}), True)[0].test) == 80


CONFLICT = """
[model]
base = "{base}"

[[tasks]]
name = "first"
source = "{folder}/all.csv"
labels = {{ red = "red", blue = "blue" }}

[[tasks]]
name = "second"
source = "{folder}/all.csv"
labels = {{ red = "blue", blue = "red" }}
split_as = "first"

[[tasks]]
name = "third"
source = "{folder}/all.csv"
split_as = "first"
"""


@pytest.fixture(scope="module")
def conflict(tmp_path_factory: pytest.TempPathFactory, small_llama: Path) -> Path:
    """Three tasks over the same texts, as in the experiment conflict; the second and third are split as the first."""
    folder = tmp_path_factory.mktemp("conflict")
    write_rows(folder / "all.csv", 90, ("red", "blue"), 1)
    file = folder / "conflict.toml"
    file.write_text(CONFLICT.format(base=small_llama, folder=folder))
    return file


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.data())
def test_nobody_trains_on_what_the_server_holds_out(conflict: Path, data: st.DataObject) -> None:
    """Whatever seed, sizes and shares: dev and test are those of `airpfed run`, and none of it is on a device."""
    whole = st.integers(1, 12)
    overrides = [f"run.seed={data.draw(st.integers(0, 2**20))}"]
    overrides += [f"tasks.*.{key}={data.draw(whole)}" for key in ("dev_samples", "test_samples")]
    for name in ("first", "second", "third"):
        overrides += [f"tasks.{name}.devices={data.draw(st.integers(1, 3))}"]
        overrides += [f"tasks.{name}.samples_per_device={data.draw(whole)}"]
        overrides += [f"tasks.{name}.split={data.draw(st.sampled_from(['iid', 'dirichlet']))}"]
    settings = settings_file.read_settings(conflict, overrides)
    dealt, held = build.load_tasks(settings), build_federation.server_tasks(settings, deployed=True)
    assert [(task.dev, task.test) for task in held] == [(task.dev, task.test) for task in dealt]
    train = {sample.prompt for task in dealt for shard in task.train for sample in shard}
    kept = {sample.prompt for task in held for sample in (*task.dev, *task.test)}
    assert kept and not train & kept


def test_dealt_devices_train_on_nothing_that_the_server_holds_out(conflict: Path, tmp_path: Path) -> None:
    """The same of what `init --deal` writes, as the devices and the server read it."""
    sizes = ["tasks.*.devices=2", "tasks.*.dev_samples=10", "tasks.*.test_samples=20", "tasks.*.samples_per_device=9"]
    provision(tmp_path / "site", settings_file.read_settings(conflict, sizes), PLAN)
    server = settings_file.read_settings(tmp_path / "site" / "server" / "experiment.toml")
    held = build_federation.server_tasks(server, deployed=True)
    kept = {sample.prompt for task in held for sample in (*task.dev, *task.test)}
    for device in range(6):
        own = build_federation.node_tasks(
            settings_file.read_settings(tmp_path / "site" / f"device-{device}" / "device.toml"), device
        )
        train = {sample.prompt for task in own for shard in task.train for sample in shard}
        assert len(train) == 9 and not train & kept


def test_nothing_is_overwritten(site: Path, file: Path) -> None:
    with pytest.raises(UserError, match="not empty; choose a new folder"):
        provision(site, settings_file.read_settings(file), PLAN)


def test_the_number_of_devices_must_be_known(file: Path, tmp_path: Path) -> None:
    settings = settings_file.read_settings(
        file, ["tasks.moods.devices=0", "tasks.moods.split=column", "tasks.moods.split.column=a"]
    )
    with pytest.raises(UserError, match=r"tasks\.moods\.devices = 0: a federation needs"):
        provision(tmp_path / "site", settings, PLAN)


def test_the_certificate_names_its_hosts_and_loopback(site: Path) -> None:
    for host in ("hub.example", "192.0.2.1", "localhost", "127.0.0.1", "::1"):
        certificates.check_server(site / "server", host)
    with pytest.raises(UserError, match=r"not for other\.example; it names hub\.example"):
        certificates.check_server(site / "server", "other.example")


def broken(site: Path, tmp_path: Path) -> Path:
    return shutil.copytree(site / "server", tmp_path / "server")


def test_the_checks_see_what_does_not_fit(site: Path, tmp_path: Path) -> None:
    server = broken(site, tmp_path)
    (tmp_path / "other").mkdir()
    certificates.new_authority(tmp_path / "other", 30)
    (server / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    with pytest.raises(UserError, match=r"server\.crt: not signed by"):
        certificates.check_server(server, "hub.example")
    (server / "ca.crt").write_bytes((site / "ca.crt").read_bytes())
    certificates.check_server(server, "hub.example")
    (server / "server.key").chmod(0o644)
    with pytest.raises(UserError, match="others can read this private key; chmod 600"):
        certificates.check_server(server, "hub.example")
    (server / "server.key").write_bytes((site / "ca.key").read_bytes())
    (server / "server.key").chmod(0o600)
    with pytest.raises(UserError, match=r"not the key of server\.crt"):
        certificates.check_server(server, "hub.example")
    (server / "server.key").unlink()
    with pytest.raises(UserError, match="no private key here"):
        certificates.check_server(server, "hub.example")
    with pytest.raises(UserError, match="not the private key of"):
        certificates.check_pair(site / "device-0" / "device.key", site / "server" / "devices" / "device-1.pub")
    with pytest.raises(UserError, match="no public key here"):
        certificates.read_public(site / "ca.crt")


def test_a_certificate_that_has_run_out_is_told(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.now(tz) + datetime.timedelta(days=31)

    class Clock:
        datetime, timedelta, UTC = Later, datetime.timedelta, datetime.UTC

    monkeypatch.setattr(certificates, "datetime", Clock)
    with pytest.raises(UserError, match=r"ca\.crt: valid from .* to "):
        certificates.check_server(site / "server", "hub.example")


@pytest.mark.parametrize(
    "change",
    ['adapters.method="rolora"', "theory.meter_every=2", 'server.lr="theory"', "run.cross_eval=true"],
)
def test_what_only_the_simulator_does_is_refused_in_a_line(change: str, file: Path, tmp_path: Path) -> None:
    settings = settings_file.read_settings(file, [change, 'server.optimizer="sgd"'])
    with pytest.raises(UserError, match="not possible in a federation; use `airpfed run`"):
        provision(tmp_path / "site", settings, PLAN)
    assert not (tmp_path / "site").exists()


WRONG = {
    "no days": ({"days": 0}, "--days 0: should be from 1 to 36500"),
    "days before now": ({"days": -5}, "--days -5: should be from 1"),
    "days beyond all calendars": ({"days": 10**9}, "--days 1000000000: should be from 1"),
    "no port": ({"address": "localhost"}, "the port should be from 1 to 65535"),
    "port 0": ({"address": "localhost:0"}, "the port should be from 1 to 65535"),
    "port 70000": ({"address": "localhost:70000"}, "the port should be from 1 to 65535"),
    "a port of a hundred digits": ({"address": "localhost:" + "9" * 100}, "the port should be from 1 to 65535"),
    "an Arabic port": ({"address": "localhost:\u0669\u0669"}, "the port should be from 1 to 65535"),
    "no host": ({"address": ":9500"}, "host '': should be a host name"),
    "a space": ({"address": "my hub:9500"}, "host 'my hub': should be a host name"),
    "a host of 300 letters": ({"address": "a" * 300 + ":9500"}, "should be a host name"),
    "a name of 260": ({"address": ".".join(["a" * 51] * 5) + ".bb:9500"}, "should be a host name"),
    "an umlaut": ({"address": "m\u00fcller.example:9500"}, "others as xn--"),
    "a scheme": ({"address": "https://hub.example:9500"}, "should be a host name"),
    "a quote": ({"address": 'hub".example:9500'}, "should be a host name"),
    "an escape": ({"address": "\x1b[2J:9500"}, "host '?[2J': should be"),
    "IPv6 without brackets": ({"address": "::1:9500"}, "stands in brackets"),
    "IPv4 out of range": ({"address": "999.1.1.1:9500"}, "should be a host name"),
    "a zone": ({"address": "[fe80::1%eth0]:9500"}, "should be a host name"),
    "a further host": ({"hosts": ("hub.example", "a b")}, "host 'a b': should be a host name"),
    "a device's port": ({"port": 65533}, "--port 65533: should be from 1 to 65531; device k takes port + k"),
    "no device's port": ({"port": 0}, "--port 0: should be from 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_one_line_and_leaves_nothing(case: str, file: Path, tmp_path: Path) -> None:
    changed, words = WRONG[case]
    plan = replace(PLAN, **changed)
    if "address" in changed:
        plan = replace(plan, hosts=(host_of(plan.address),))
    with pytest.raises(UserError) as identity_of:
        provision(tmp_path / "site", settings_file.read_settings(file), plan)
    assert (
        words in str(identity_of.value) and len(str(identity_of.value)) < 300 and str(identity_of.value).isprintable()
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [("--days", "0"), ("--days", "-1"), ("--days", "9" * 30), ("--port", "0"), ("--port", "65533"), ("--host", "a b"),
     ("--address", "a b:1"), ("--address", "x:0"), ("--address", 'x":1'), ("--address", "m\u00fcller:1"),
     ("--address", "x:1\"\n[model]\nbase = \"y")],
)  # fmt: skip
def test_the_command_says_so_in_one_line(
    words: tuple[str, str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = ["airpfed", "federate", "init", str(tmp_path / "site"), "--settings", str(file), *words]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and lines[0].startswith("airpfed: "), lines
    assert not list(tmp_path.iterdir())


LONG = f"{'a' * 60}.{'b' * 60}:1"
"""A name that is longer than the one name that stands in a certificate's subject may be."""


@pytest.mark.parametrize("address", ["[::1]:9500", "[2001:db8::7]:1", "192.0.2.1:65535", "my_hub.example:80", LONG])
def test_what_can_be_is_founded(address: str, file: Path, tmp_path: Path) -> None:
    plan = replace(
        PLAN, address=address, hosts=(host_of(address), "a" * 60 + "." + "b" * 60), days=36500, write_share=False
    )
    provision(tmp_path / "site", settings_file.read_settings(file), plan)
    certificates.check_server(tmp_path / "site" / "server", host_of(address))
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_federation_is_founded_at_once_or_not_at_all(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last device's key cannot be made: the disk is full, say, or the check fails."""
    made: list[Path] = []

    def fails(private_folder: Path, public: Path) -> None:
        made.append(private_folder)
        assert not (tmp_path / "site").exists(), "it does not appear before it is whole"
        if "device-4" in str(private_folder):
            raise OSError(28, "No space left on device", str(private_folder))
        certificates_made(private_folder, public)

    certificates_made = certificates.new_device
    monkeypatch.setattr(certificates, "new_device", fails)
    with pytest.raises(UserError, match="site: cannot be made: No space left on device"):
        provision(tmp_path / "site", settings_file.read_settings(file), PLAN)
    assert len(made) == 5 and not list(tmp_path.iterdir())


def test_all_is_for_its_owner_only_whatever_the_umask(file: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        provision(tmp_path / "site", settings_file.read_settings(file), PLAN)
    finally:
        os.umask(before)
    for home in (tmp_path / "site", *(tmp_path / "site").glob("*/")):
        assert stat.S_IMODE(home.stat().st_mode) == 0o700, home
    assert stat.S_IMODE((tmp_path / "site" / "device-0" / "data.jsonl").stat().st_mode) == 0o600


def test_more_devices_than_there_are_are_not_waited_for(file: Path, tmp_path: Path) -> None:
    settings = settings_file.read_settings(file)
    wanted = settings.federation.model_copy(update={"min_devices": 99})
    with pytest.raises(UserError, match=r"federation\.min_devices = 99: should be at most 5"):
        check_federable(settings.model_copy(update={"federation": wanted}))


DAMAGE = {
    "missing": None, "empty": b"", "cut": "cut", "garbage": bytes(range(256)) * 9,
    "another shape": b'[1, {"a": null}]\n', "a folder": "folder",
}  # fmt: skip


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()
    match DAMAGE[how]:
        case bytes() as other:
            path.write_bytes(other)
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "folder":
            path.mkdir()
    if path.is_file():
        path.chmod(0o600)


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize(
    "name", ["experiment.toml", "ca.crt", "server.crt", "server.key", *(f"devices/device-{k}.pub" for k in (0, 4))]
)
def test_damaged_files_of_the_server_are_one_line(name: str, how: str, site: Path, tmp_path: Path) -> None:
    server = shutil.copytree(site / "server", tmp_path / "server")
    damage(server / name, how)
    if how == "missing" and "device-" in name:
        assert server_process.site_of(
            settings_file.read_settings(server / "experiment.toml"), server / "experiment.toml", tmp_path
        )
        return  # a device whose key is taken out is shut out
    with pytest.raises(UserError) as identity_of:
        server_process.site_of(
            settings_file.read_settings(server / "experiment.toml"), server / "experiment.toml", tmp_path
        )
    line = str(identity_of.value)
    assert Path(name).name.partition(".")[0] in line and "\n" not in line and len(line) < 500, line


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["device.toml", "ca.crt", "device.key", "data.jsonl"])
def test_damaged_files_of_a_device_are_one_line(name: str, how: str, site: Path, tmp_path: Path) -> None:
    home = shutil.copytree(site / "device-0", tmp_path / "device-0")
    damage(home / name, how)
    with pytest.raises((UserError, IsADirectoryError)) as identity_of:
        supervisor.device_settings_of(home / "device.toml")
        build_federation.node_tasks(settings_file.read_settings(home / "device.toml"), 0)
    line = str(identity_of.value)
    assert "\n" not in line and len(line) < 600 and name in line, line


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_identity_of_a_run_is_one_line(how: str, tmp_path: Path) -> None:
    name = build_federation.run_identity(tmp_path, False, True)
    assert build_federation.run_identity(tmp_path, True, True) != name, "nothing to go on from: a run begins"
    name = build_federation.run_identity(tmp_path, False, True)
    (tmp_path / "latest.json").write_text("{}")
    assert build_federation.run_identity(tmp_path, True, True) == name
    damage(tmp_path / "run.json", how)
    for use in (
        lambda: build_federation.run_identity(tmp_path, True, True),
        lambda: build_federation.identity(tmp_path / "run.json"),
    ):
        with pytest.raises(UserError, match=r"run\.json: (damaged; restore it|missing, so these rounds were not)"):
            use()


@pytest.mark.parametrize("tree", ['{"run": "../x", "deployed": true}', '{"run": 7, "deployed": true}', '{"run": "a"}'])
def test_an_identity_is_one_that_devices_take(tree: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(tree)
    with pytest.raises(UserError, match=r"run\.json: damaged"):
        build_federation.identity(tmp_path / "run.json")


# Plug-ins


@pytest.fixture
def plugin_settings(file: Path, tmp_path: Path) -> Iterator[Settings]:
    """Settings with a method and an optimizer, which devices run, and a design and a metric, which the server runs."""
    names = ("design.py", "method.py", "metric.py", "optimizer.py")
    overrides = save_plugins(tmp_path, *names)
    copy = tmp_path / "tiny.toml"
    copy.write_text(file.read_text())
    with without_rows():
        yield settings_file.read_settings(copy, overrides)


def test_devices_name_the_plug_ins_that_they_run_beside_themselves_and_get_no_code(plugin_settings, tmp_path):
    site = tmp_path / "site"
    steps = provision(site, plugin_settings, PLAN)
    (line,) = [step for step in steps if "own copy" in step]
    assert "method.py, optimizer.py" in line and "beside its device.toml" in line and "never sent" in line
    assert (site / "device-0" / "device.toml").read_text().count('plugins = ["method.py", "optimizer.py"]\n') == 1
    assert not list(site.glob("device-*/**/*.py")), "code does not travel"
    server = site / "server" / "experiment.toml"
    assert 'plugins = ["plugins/design.py", "plugins/method.py"' in server.read_text()
    assert settings_file.read_settings(server).adapters.method.label == "half"
    assert str(tmp_path) not in server.read_text().replace(str(plugin_settings.model.base), "").split("[[tasks]]")[0]
    device = site / "device-0" / "device.toml"
    with pytest.raises(UserError, match=r"device-0/method.py: no such Python file; it should lie beside the settings"):
        settings_file.read_settings(device)
    save_plugins(device.parent, "method.py", "optimizer.py")
    assert settings_file.read_settings(device).server.optimizer.name == "sign"


def test_the_handshake_compares_the_code_that_a_device_runs(plugin_settings, tmp_path):
    site = tmp_path / "site"
    provision(site, plugin_settings, PLAN)
    device = site / "device-0" / "device.toml"
    save_plugins(device.parent, "method.py", "optimizer.py")

    def difference_at(device_file: Path) -> str | None:
        server = settings_file.read_settings(site / "server" / "experiment.toml")
        wanted = build_federation.server(server, build_federation.server_tasks(server, deployed=True))[1][0]
        settings = settings_file.read_settings(device_file)
        tasks = build_federation.node_tasks(settings, 0)
        experiment = experiment_of(settings, tasks)
        return difference(wanted, agreement(settings, experiment, tasks, 0))

    assert difference_at(device) is None
    copy = device.parent / "method.py"
    copy.write_text(copy.read_text() + "# another\n")
    assert (difference_at(device) or "").startswith("plugins differs: ")
    copy.write_text(copy.read_text().removesuffix("# another\n"))
    design = site / "server" / "plugins" / "design.py"
    design.write_text(design.read_text() + "# the server's own concern\n")
    assert difference_at(device) is None


def test_a_federation_with_rows_of_the_server_alone_needs_no_code_on_devices(file, tmp_path):
    copy = tmp_path / "tiny.toml"
    copy.write_text(file.read_text())
    overrides = save_plugins(tmp_path, "aggregator.py", "metric.py")
    with without_rows():
        settings = settings_file.read_settings(copy, [*overrides, "radio.scheme=error_free"])
        steps = provision(tmp_path / "site", settings, PLAN)
    assert not [step for step in steps if "own copy" in step]
    with without_rows():
        device = settings_file.read_settings(tmp_path / "site" / "device-0" / "device.toml")
    assert device.plugins == () and device.server.aggregator.name == "uplink"
