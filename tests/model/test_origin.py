"""Which base model it is: everything that numbers depend on counts, each file is read once, and no code of it runs."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from airpfed.config import settings_file
from airpfed.core import wheels
from airpfed.core.errors import UserError
from airpfed.experiment import artifacts, run
from airpfed.experiment.build import build_experiment, current_fingerprints, load_tasks
from airpfed.model import export, zoo
from airpfed.model.origin import Origin, folder_identity, hub_identity, origin_of, read_config
from airpfed.training import checkpoint
from airpfed.training.evaluate import model_of
from airpfed.training.state import vectors

pytestmark = pytest.mark.usefixtures("shared_bases")

INPUTS = [
    "config.json", "model.safetensors", "pytorch_model.bin", "model-00001-of-00002.safetensors", "w.gguf", "w.msgpack",
    "tokenizer.json", "tokenizer_config.json", "spiece.model", "vocab.txt", "merges.txt", "generation_config.json",
    "chat_template.jinja", "additional_chat_templates/tool.jinja", "modeling_own.py", "weights.pt", "LICENSED.bin",
]  # fmt: skip
BESIDE = ["README.md", "LICENSE", ".gitattributes", ".cache/x.json", "exp.toml", "reviews.csv", "runs/a/summary.json"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, where files count as settled at once."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("AIRPFED_CACHE", str(cache))
    monkeypatch.setattr(wheels, "SETTLED_SECONDS", -60.0)
    return cache


def folder_of(home: Path, files: list[str]) -> Path:
    for name in files:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"content of {name}")
    (home / "runs" / "a").mkdir(parents=True)
    (home / "runs" / "a" / "experiment.toml").write_text("")
    return home


@pytest.mark.parametrize("name", INPUTS)
def test_every_file_that_a_model_is_read_from_counts(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, INPUTS)
    before = folder_identity(folder)
    (folder / name).write_text(f"Content of {name}")
    changed = folder_identity(folder)
    (folder / name).unlink()
    assert len({before, changed, folder_identity(folder)}) == 3
    (folder / name).write_text(f"content of {name}")
    assert folder_identity(folder) == before


def test_what_lies_beside_a_model_does_not_count_nor_where_it_lies(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", INPUTS)
    before = folder_identity(folder)
    for name in BESIDE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("anything")
    assert folder_identity(folder) == before == folder_identity(folder_of(tmp_path / "b", INPUTS))
    (folder / "config.json").rename(folder / "configs.json")
    assert folder_identity(folder) != before, "names count"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Contents that were hashed."""
    seen: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: seen.append(file.name) or digest(file, kind))
    return seen


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    wanted = hashlib.sha256(b"weights").hexdigest()
    assert wheels.file_sha256(file) == wanted
    wheels._cached_sha256.cache_clear()  # as another process
    assert wheels.file_sha256(file) == wanted and len(reads) == 1
    time = file.stat().st_mtime_ns
    file.write_bytes(b"WEIGHTS")
    os.utime(file, ns=(time, time))  # size and time of change as before: the inode's own time tells
    assert wheels.file_sha256(file) == hashlib.sha256(b"WEIGHTS").hexdigest() and len(reads) == 2


def test_a_file_that_changed_just_now_is_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "SETTLED_SECONDS", 60.0)
    (tmp_path / "x").write_bytes(b"1")
    assert wheels.file_sha256(tmp_path / "x") == wheels.file_sha256(tmp_path / "x")
    assert len(reads) == 2


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"0" * 64 + b"\n" + b"1" * 64])
def test_a_damaged_cache_only_costs_time(damage: bytes, tmp_path: Path, own_cache: Path, reads: list[str]) -> None:
    (tmp_path / "x").write_bytes(b"1")
    before = wheels.file_sha256(tmp_path / "x")
    for kept in (own_cache / "hashes").iterdir():
        kept.write_bytes(damage)
    wheels._cached_sha256.cache_clear()
    assert wheels.file_sha256(tmp_path / "x") == before and len(reads) == 2


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"1")
    monkeypatch.setenv("AIRPFED_CACHE", str(tmp_path / "x"))
    assert wheels.file_sha256(tmp_path / "x") == hashlib.sha256(b"1").hexdigest()


def test_a_base_that_changed_is_neither_resumed_nor_exported(
    small_settings: Path, small_llama: Path, tmp_path: Path
) -> None:
    """The tokenizer alone: no weight changes, and every number does."""
    base = shutil.copytree(small_llama, tmp_path / "base")
    override = [f"model.base={base}", "server.rounds=1"]
    out = tmp_path / "run"
    assert run.run_file(small_settings, override, out, False, "") == 0
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text(text.replace('"ba"', '"zzz"'))
    with pytest.raises(UserError, match=r"model\.base = .* has other files than when this run started"):
        run.export_run(out, False)
    with pytest.raises(UserError, match=r"model\.base = .* has other files than when this run started"):
        run.run_file(small_settings, [f"model.base={base}", "server.rounds=2"], out, True, "")
    (base / "tokenizer.json").write_text(text)
    assert run.export_run(out, False)
    moved = base.rename(tmp_path / "moved")
    assert run.run_file(small_settings, [f"model.base={moved}", "server.rounds=2"], out, True, "") == 0


def test_a_base_that_changes_during_a_run_is_not_exported_on(
    small_settings: Path, small_llama: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(small_llama, tmp_path / "base")
    settings = settings_file.read_settings(small_settings, [f"model.base={base}"])
    made = build_experiment(settings, load_tasks(settings))
    (base / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match="the base model's files changed since they were loaded"):
        artifacts.export_adapters(settings, made, made.initial, tmp_path / "out", merged=False)
    assert not (tmp_path / "out" / "adapters" / "colours").exists()


def test_fingerprint_base_key_and_record_stand_on_the_same_identity(
    small_settings: Path, small_llama: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(small_llama, tmp_path / "base")
    settings = settings_file.read_settings(small_settings, [f"model.base={base}"])
    tasks = load_tasks(settings)
    one = build_experiment(settings, tasks)
    (base / "vocab.bin").write_bytes(b"x")
    two = build_experiment(settings, tasks)
    assert one.fingerprint != two.fingerprint and one.base_key != two.base_key
    artifacts.write_start(settings, two, {}, "", tmp_path, {})
    kept = json.loads((tmp_path / "environment.json").read_text())["base_sha256"]
    assert kept == two.clients.backbone.origin.identity == origin_of(str(base)).identity


def test_what_cells_of_a_sweep_are_held_against_moves_with_the_base(
    small_settings: Path, small_llama: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(small_llama, tmp_path / "base")
    settings = settings_file.read_settings(small_settings, [f"model.base={base}"])
    before = current_fingerprints()(settings)
    assert before == build_experiment(settings, load_tasks(settings)).fingerprint
    (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + " ")
    assert current_fingerprints()(settings) != before


CODE = """
open("MARK", "w").close()
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("where", ["config", "tokenizer"])
def test_a_folders_python_runs_only_if_settings_say_so(
    where: str, small_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with yes on standard input: nobody is asked."""
    base, mark = shutil.copytree(small_llama, tmp_path / "base"), tmp_path / "mark"
    (base / "own.py").write_text(CODE.replace("MARK", str(mark)))
    name = "config.json" if where == "config" else "tokenizer_config.json"
    tree = json.loads((base / name).read_text())
    if where == "config":
        tree |= {
            "model_type": "own",
            "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
        }
    else:
        tree |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (base / name).write_text(json.dumps(tree))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    from airpfed.model.backbone import load_model

    def build(trusted: bool) -> object:
        return load_model(str(base), "causal", 2, "cpu", torch.Generator(), trusted=trusted)

    with pytest.raises(UserError) as caught:
        build(False)
    assert "model.trust_remote_code = true" in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists()
    with suppress(UserError):  # how far that code gets is its own affair
        build(True)
    assert mark.exists()


def test_nothing_is_loaded_through_an_adapter_in_the_folder(small_llama: Path, tmp_path: Path) -> None:
    """transformers would put it on by itself, and load whatever base it names."""
    base = shutil.copytree(small_llama, tmp_path / "base")
    (base / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds an adapter \(adapter_config.json\)"):
        origin_of(str(base))


def test_a_gguf_file_is_known_by_its_content(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file of the same name, size and time does not get the first one's weights."""
    made = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(gguf.read_bytes())
        folder.mkdir()
        (folder / "config.json").write_bytes(gguf.read_bytes())
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(zoo, "_convert", convert)
    gguf, said = tmp_path / "m.gguf", list[str]()
    found = []
    for content in (b"one", b"two", b"one"):
        gguf.write_bytes(content)
        os.utime(gguf, ns=(1, 1))
        found.append(Path(zoo.resolve(str(gguf), said.append)))
        assert (found[-1] / "config.json").read_bytes() == content
    assert found[0] == found[2] != found[1] and made == [b"one", b"two"] and said == []
    assert [path.name for path in (own_cache / "models").iterdir() if path.name.startswith("tmp")] == []


@pytest.mark.parametrize("damage", ["missing", "changed", "unlisted", "more"])
def test_a_damaged_conversion_is_made_again_and_told(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(_gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(zoo, "_convert", convert)
    (tmp_path / "m.gguf").write_bytes(b"g")
    said: list[str] = []
    home = zoo.convert_gguf(tmp_path / "m.gguf", "m", said.append)
    whole = wheels.files_sha256(home)
    match damage:
        case "missing":
            (home / "model.safetensors").unlink()
        case "changed":
            (home / "model.safetensors").write_bytes(b"weightS")
        case "unlisted":
            (home / zoo.FILES).write_bytes(b"\xff")
        case _:
            (home / "adapter_config.json").write_text("{}")
    assert zoo.convert_gguf(tmp_path / "m.gguf", "m", said.append) == home
    assert wheels.files_sha256(home) == whole
    (line,) = said
    assert "damaged or incomplete; converted again" in line and "\n" not in line


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], Path]:
    """The hub's own cache with commits of one model; nothing is asked of the network."""
    import huggingface_hub.constants as constants

    home = tmp_path / "hub" / "models--org--tiny"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def commit(name: str, weights: bytes) -> Path:
        snapshot = home / "snapshots" / name
        for folder in (snapshot, home / "blobs", home / "refs"):
            folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()
        for file, data in (("config.json", config), ("model.safetensors", weights)):
            blob = home / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data)
            (snapshot / file).symlink_to(blob)
        (home / "refs" / "main").write_text(name)
        return snapshot

    return commit


def test_a_hub_name_is_known_by_its_commit(hub: Callable[[str, bytes], Path]) -> None:
    hub("a" * 40, b"one")
    first = origin_of("org/tiny")
    assert (first.folder, first.revision, first.identity) == ("org/tiny", "a" * 40, f"org/tiny@{'a' * 40}")
    assert first.options == {"revision": "a" * 40, "trust_remote_code": False}
    hub("b" * 40, b"two")
    assert origin_of("org/tiny").identity == f"org/tiny@{'b' * 40}"
    assert origin_of(f"org/tiny@{'a' * 40}") == first, "a run of the first goes on with it"
    assert read_config(first, "org/tiny").model_type == "llama", "the first commit is still to be had"


def test_a_damaged_file_in_the_hubs_cache_is_refused(hub: Callable[[str, bytes], Path]) -> None:
    snapshot = hub("a" * 40, b"one")
    (snapshot / "model.safetensors").resolve().write_bytes(b"two")
    with pytest.raises(UserError, match=r"model\.base = \"org/tiny\": .* is damaged"):
        origin_of("org/tiny")


def test_files_that_the_hubs_cache_does_not_name_by_content_are_hashed(hub: Callable[[str, bytes], Path]) -> None:
    snapshot = hub("a" * 40, b"one")
    (snapshot / "vocab.txt").write_text("a")
    first = hub_identity("org/tiny", "a" * 40)
    (snapshot / "vocab.txt").write_text("b")
    assert first.startswith(f"org/tiny@{'a' * 40}+") and hub_identity("org/tiny", "a" * 40) != first


def test_an_adapter_names_the_commit_of_its_base(small_settings: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    settings = settings_file.read_settings(small_settings, [])
    made = build_experiment(settings, load_tasks(settings))
    base = replace(made.clients.backbone, folder="org/tiny", origin=Origin("org/tiny", "a" * 40, "x"))
    export.write_adapter(base, model_of(made.clients, vectors(made.initial), 0, 0), 0, 6.0, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "a" * 40)


def test_the_checkpoint_is_of_the_base(small_settings: Path, small_llama: Path, tmp_path: Path) -> None:
    """Also where environment.json is gone."""
    base = shutil.copytree(small_llama, tmp_path / "base")
    settings = settings_file.read_settings(small_settings, [f"model.base={base}"])
    one = build_experiment(settings, load_tasks(settings))
    checkpoint.save_state(tmp_path / "c", one.initial, 0, one.fingerprint)
    model = LlamaForCausalLM.from_pretrained(base)
    model.lm_head.weight.data[0, 0] += 1
    model.save_pretrained(base)
    two = build_experiment(settings, load_tasks(settings))
    with pytest.raises(UserError, match="other settings, data or base model"):
        checkpoint.load_state(tmp_path / "c", two.initial, two.fingerprint)
