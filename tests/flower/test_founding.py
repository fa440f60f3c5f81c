"""`airpfed federate init`: what it makes fits together, and its checks see what does not."""

import datetime
import stat
from pathlib import Path

import pytest

from airpfed import build, reading
from airpfed.errors import UserError
from airpfed.flower import certificates, founding, objects
from airpfed.flower.founding import Plan, found
from airpfed.flower.places import node_of
from tiny import make_settings, write_rows

PLAN = Plan("hub.example:9500", ("hub.example", "192.0.2.1"), True, 30, 9100)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return make_settings(tmp_path_factory.mktemp("settings"), tiny_llama)


@pytest.fixture(scope="module")
def site(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fed") / "site"
    steps = found(folder, reading.read(file), PLAN)
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
        assert node_of(reading.read(home / "device.toml"), home).device == k
    assert not [path for path in (site / "server").rglob("*") if b"OPENSSH PRIVATE" in _bytes(path)]


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def test_dealt_devices_hold_what_the_simulator_gives_them(site: Path, file: Path) -> None:
    tasks = build.load_tasks(reading.read(file))
    owners = [(n, k) for n, task in enumerate(tasks) for k in range(len(task.train))]
    for device, (n, k) in enumerate(owners):
        own = objects.node_tasks(reading.read(site / f"device-{device}" / "device.toml"), device)
        assert [len(shard) > 0 for one in own for shard in one.train] == [other == device for other in range(5)]
        assert [founding.plain(s) for s in own[n].train[k]] == [founding.plain(s) for s in tasks[n].train[k]]
        assert [task.labels for task in own] == [task.labels for task in tasks]


def test_the_servers_settings_are_the_experiments_with_a_federation(site: Path, file: Path) -> None:
    before, after = reading.read(file), reading.read(site / "server" / "experiment.toml")
    assert after.federation.address == "hub.example:9500" and after.node is None
    assert after.model_copy(update={"federation": before.federation}) == before


def test_devices_with_their_own_file_keep_the_wording(file: Path, tmp_path: Path) -> None:
    """Without --deal: the task's prompt, columns and labels, and a file that the device's owner puts there."""
    found(tmp_path / "site", reading.read(file), Plan("localhost:9500", ("localhost",), False, 30, 9100))
    home = tmp_path / "site" / "device-3"
    settings = reading.read(home / "device.toml")
    own = settings.tasks[1]
    assert (own.name, own.source, own.prompt) == ("moods", str(home / "data.jsonl"), "{text} Label :")
    assert list(own.labels) == ["good", "bad", "it"] and not (home / "data.jsonl").exists()
    write_rows(tmp_path / "mine.csv", 9, ("good",), 5)  # one class only: a device's own file may be so
    own = own.model_copy(update={"source": str(tmp_path / "mine.csv")})
    tasks = objects.node_tasks(settings.model_copy(update={"tasks": (settings.tasks[0], own)}), 3)
    assert len(tasks[1].train[1]) == 9 and tasks[1].labels == (" good", " bad", " it")


def test_a_server_needs_no_training_samples(file: Path) -> None:
    """Dev and test as in the simulator; a source that holds nothing else is enough."""
    settings = reading.read(file)
    whole, held = build.load_tasks(settings), objects.server_tasks(settings, deployed=True)
    for a, b in zip(whole, held, strict=True):
        assert (a.dev, a.test, a.labels, a.source_sha256) == (b.dev, b.test, b.labels, b.source_sha256)
        assert b.train == ((),) * len(a.train)
    small = [task.model_copy(update={"dev_samples": 0, "test_samples": 80}) for task in settings.tasks[:1]]
    assert len(objects.server_tasks(settings.model_copy(update={"tasks": tuple(small)}), True)[0].test) == 80


def test_nothing_is_overwritten(site: Path, file: Path) -> None:
    with pytest.raises(UserError, match="not empty; a federation is founded in a new folder"):
        found(site, reading.read(file), PLAN)


def test_the_number_of_devices_must_be_known(file: Path, tmp_path: Path) -> None:
    settings = reading.read(file, ["tasks.moods.devices=0", "tasks.moods.split=column", "tasks.moods.device_column=a"])
    with pytest.raises(UserError, match=r"tasks\.moods\.devices = 0: a federation needs"):
        found(tmp_path / "site", settings, PLAN)


def test_the_certificate_names_its_hosts_and_loopback(site: Path) -> None:
    for host in ("hub.example", "192.0.2.1", "localhost", "127.0.0.1", "::1"):
        certificates.check_server(site / "server", host)
    with pytest.raises(UserError, match=r"not for other\.example; it names hub\.example"):
        certificates.check_server(site / "server", "other.example")


def broken(site: Path, tmp_path: Path) -> Path:
    import shutil

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
    settings = reading.read(file, [change, 'server.optimizer="sgd"'])
    with pytest.raises(UserError, match="not in a federation; `airpfed run` does it"):
        found(tmp_path / "site", settings, PLAN)
    assert not (tmp_path / "site").exists()
