"""A run's folder: which folder a run gets, its files before round 1, and the exported adapters."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from airpfed.air.network import Network
from airpfed.config.plugins import code_hashes, plugin_files
from airpfed.config.schema import Settings
from airpfed.config.settings_file import write_settings
from airpfed.config.user_rows import user_functions
from airpfed.core import files, run_files, units
from airpfed.core.errors import UserError
from airpfed.experiment.adapter_files import RunFacts, adapter_documents, adapter_task, public_command
from airpfed.experiment.build import base_hash, fixed_functions, option_files
from airpfed.experiment.build.uplink import build_network
from airpfed.model import export, gguf_adapter
from airpfed.training.checkpoint import LATEST, tensor_file
from airpfed.training.evaluate import model_of
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import State, vectors

FILES = (
    "experiment.toml", "environment.json", "layout.json", "records.jsonl", "summary.json", "theory.json", "report.html",
)  # fmt: skip
FOLDERS = ("checkpoint", "adapters", "merged", "gguf")
"""Files and folders that a run writes into its folder."""
EXTRA_FILES = ("plugins", "tensorboard", "flower", "devices", "federation.log")
"""Files and folders that trackers and the processes of a federation write there."""

SETTINGS_FORMAT = 2
"""Version of the words of settings, of which a fingerprint is a hash. Runs of the first version name none."""
PACKAGES = ("airpfed", "torch", "transformers", "peft", "safetensors", "numpy")


def fresh_folder(runs: Path, stem: str) -> Path:
    """Return the first of `runs/stem`, `runs/stem-2`, ... that does not exist or is empty."""
    names = [runs / stem, *(runs / f"{stem}-{number}" for number in range(2, 10_000))]
    return next(folder for folder in names if not folder.exists() or not any(folder.iterdir()))


def newest_folder(runs: Path, stem: str) -> Path:
    """Return the newest run among `runs/stem` and `runs/stem-N`. Raises UserError if there is none.

    The settings are written whenever a run starts or resumes, so their time counts if the file exists.
    """
    pattern = re.compile(rf"{re.escape(stem)}(-[0-9]+)?")
    times = []
    for folder in runs.iterdir() if runs.is_dir() else ():
        names = files_of_run(folder) if pattern.fullmatch(folder.name) else []
        dated = [FILES[0]] if FILES[0] in names else names
        if dated:
            times.append((max((folder / name).lstat().st_mtime for name in dated), folder))
    if not times:
        raise UserError(f"{runs / stem}: nothing to resume; run without --resume first")
    return max(times)[1]


def files_of_run(folder: Path) -> list[str]:
    """List the names of a run's files in a folder. A folder with any of them is a run."""
    return [name for name in (*FILES, *FOLDERS) if os.path.lexists(folder / name)]


def claim_folder(out: Path | None, stem: str, resume: bool) -> Path:
    """Choose and create the folder of a run: `out`, or a folder below `runs/`. No other run is overwritten."""
    if out is None:
        out = newest_folder(Path("runs"), stem) if resume else fresh_folder(Path("runs"), stem)
    check_folder(out, resume)
    return out


def check_folder(out: Path, resume: bool) -> None:
    """Create `out` if needed. Raises UserError if a new run would overwrite a run, or if there is no run to resume."""
    if resume and not out.is_dir():
        raise UserError(f"{out}: nothing to resume; run without --resume first")
    names = files_of_run(out)
    if not resume and names:
        raise UserError(
            f"{out}: holds a run already ({names[0]}); add --resume to go on with it, or choose another --out"
        )
    unknown = [p for p in out.iterdir() if p.name not in EXTRA_FILES and not is_temporary(p)] if resume else []
    if unknown and not names:
        raise UserError(f"{out}: nothing to resume, no run's files are here; run without --resume first")
    for name in names:
        if (out / name).is_dir() != (name in FOLDERS):
            kind = "a folder" if name in FOLDERS else "a file"
            raise UserError(f"{out / name}: should be {kind} of the run; restore it, or move it away")
    if resume:
        check_checkpoint_exists(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made: {error.strerror}") from None


def check_checkpoint_exists(out: Path) -> None:
    """Raise UserError if a run has finished rounds but no checkpoint, because a restart would lose the rounds.

    A run that was killed before its first checkpoint was complete has nothing to lose.
    """
    checkpoint = out / "checkpoint"
    if os.path.lexists(checkpoint / LATEST):
        return
    done = [out / name for name in ("summary.json", "adapters", "merged", "gguf", "report.html", "theory.json")]
    done += [
        path
        for path in checkpoint.glob("*")
        if path.name not in (tensor_file(0), "run.json", "base.json") and not is_temporary(path)
    ]
    records = out / "records.jsonl"
    if [path for path in done if os.path.lexists(path)] or (records.exists() and records.stat().st_size):
        raise UserError(
            f"{checkpoint / LATEST}: missing, but rounds were done here; restore it, or start a new run "
            "with another --out"
        )


def is_temporary(path: Path) -> bool:
    """Check whether a file is a temporary file of an interrupted write."""
    return bool(files.TEMPORARY_NAME.fullmatch(path.name))


def damaged_files(out: Path) -> Iterator[str]:
    """Write a line for every damaged file of a run that `--resume` writes again."""
    kinds: dict[str, Any] = {
        "environment.json": run_files.Environment,
        "layout.json": run_files.NetworkLayout,
        "summary.json": run_files.Summary,
    }
    for name, kind in kinds.items():
        try:
            run_files.read_json(out / name, kind)
        except UserError as error:
            yield f"{error}; written again"


def clean_up(out: Path) -> None:
    """Remove temporary files of interrupted writes from a run's folder. This process must hold the lock."""
    below = [path for name in ("adapters", "merged", "gguf") for path in (out / name).glob("*")]
    for folder in (out, *(out / name for name in FOLDERS), *below):
        if folder.is_dir() and not folder.is_symlink():
            for left in files.leftovers(folder):
                files.discard(left)


def check_output_file(path: Path, ending: str) -> None:
    """Raise UserError unless `--out` names a file with the expected ending, so that no other file is overwritten."""
    if path.suffix != ending or path.is_dir():
        raise UserError(f"--out {path}: should be a file that ends in {ending}")


def write_start(
    settings: Settings,
    experiment: TrainingSetup,
    data: dict[str, str],
    command: str,
    out: Path,
    reports: Mapping[str, run_files.DataReport],
) -> None:
    """Write the resolved settings, the positions, and the environment: versions, commit, hashes of data and base.

    Plug-ins are copied into the run's folder. Other functions that are not the package's are in the environment, each
    with its name and a hash of its source.
    """
    settings = copy_plugins(settings, out)
    write_settings(settings, out / "experiment.toml")
    environment: dict[str, object] = {
        "command": command,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(experiment.clients.backbone.device),
        "commit": source_commit(),
        "seed": experiment.seed,
        "base_sha256": base_hash(experiment.clients.backbone),
        "data_sha256": data,
        "fingerprint": experiment.fingerprint,
        "settings_format": SETTINGS_FORMAT,
        "plugins": code_hashes(settings),
        "files": option_files(settings),
        "data": {name: report.model_dump(mode="json") for name, report in reports.items()},
    }
    if functions := user_functions(settings):
        environment["functions"] = functions
    run_files.write_json(out / "environment.json", environment)
    task_of = experiment.clients.task_of
    network = build_network(settings.radio, settings.run.seed, task_of, len(settings.tasks))
    names = [experiment.tasks[int(n)].name for n in task_of]
    if bool(network.stations.isfinite().all() and network.devices.isfinite().all()):  # a channel file may have none
        run_files.write_json(out / "layout.json", network_layout(network, names))


def environment_of(out: Path) -> dict[str, Any]:
    """Read environment.json of a run. Returns an empty dict if there is none, or none that can be read."""
    try:
        environment = run_files.read_json(out / "environment.json", run_files.Environment)
    except (OSError, UserError):
        return {}
    return dict(environment.root) if environment else {}


def stored_functions(out: Path) -> dict[str, dict[str, str]]:
    """Map each setting to the name and hash of the function that a run got from Python."""
    functions = environment_of(out).get("functions")
    if not isinstance(functions, dict):
        return {}
    return {
        str(key): {"name": str(item.get("name")), "sha256": str(item.get("sha256"))}
        for key, item in functions.items()
        if isinstance(item, dict)
    }


def check_functions(out: Path, settings: Settings) -> None:
    """Raise UserError unless the functions from Python are those that the run in `out` started with.

    If environment.json cannot be read, the fingerprint of the checkpoint detects other functions.
    """
    present = fixed_functions(settings)
    for key, function in stored_functions(out).items():
        name, noun = function["name"], key.rpartition(".")[2]
        given = present.get(key, {})
        if key == "run.tracker":
            continue
        if given.get("name") != name:
            raise UserError(
                f"{out}: {key} is the function {name}, which came from Python; resume it there with {noun}={name}"
            )
        if given.get("sha256") != function["sha256"]:
            raise UserError(
                f"{out}: the function {name} ({key}) has another source than when this run started; pass the old one, "
                "or run in another folder"
            )


def check_files(out: Path, settings: Settings) -> None:
    """Raise UserError if a file that an option names has changed since the run in `out` started.

    If environment.json cannot be read, the fingerprint of the checkpoint detects other files.
    """
    previous, present = environment_of(out).get("files"), option_files(settings)
    for key, sha256 in previous.items() if isinstance(previous, dict) else ():
        if not key.startswith("run.tracker.") and present.get(key, sha256) != sha256:
            raise UserError(
                f"{out}: the file of {key} has changed since this run started; restore it, or use another --out"
            )


def copy_plugins(settings: Settings, folder: Path) -> Settings:
    """Copy the plug-ins and what they import beside them into `folder`/plugins, and return settings that name these.

    Sweeps and later commands on the folder use the copies, whatever happens to the originals.
    """
    if not settings.plugins:
        return settings
    target, plugins = folder / "plugins", list(map(Path, settings.plugins))
    contents = {str(file.relative_to(p.parent)): file.read_bytes() for p in plugins for file in plugin_files(p)}
    for name, content in contents.items():
        copy = target / name
        if files.read_bytes(copy) != content:
            copy.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(copy, content)
    for path in target.rglob("*.py"):  # of an earlier version, which no longer belongs to the plug-in
        if str(path.relative_to(target)) not in contents:
            path.unlink()
    return settings.model_copy(update={"plugins": tuple(str((target / path.name).resolve()) for path in plugins)})


def check_plugins(out: Path, settings: Settings) -> None:
    """Raise UserError if the plug-ins differ from those with which the run in `out` started."""
    try:
        previous: Any = getattr(run_files.read_json(out / "environment.json", run_files.Environment), "root", {})
        hashes = dict(previous["plugins"])
    except (OSError, UserError, ValueError, TypeError, KeyError):
        return  # the fingerprint of the checkpoint covers them
    current = code_hashes(settings)
    for name in {**hashes, **current}:
        if hashes.get(name) != current.get(name):
            change = "is new" if name not in hashes else "is missing" if name not in current else "has changed"
            raise UserError(
                f"{out}: the plug-in {name} {change} since this run started; restore it, or use another --out"
            )


def recorded_fingerprint(run: Path, fingerprint: str) -> str:
    """Return the fingerprint that a run's checkpoint should have.

    That is the present one, unless an older version wrote the run: its fingerprint is of settings in other words, and
    only environment.json tells it. Data, base model and plug-ins are compared with their own hashes.
    """
    try:
        tree: Any = getattr(run_files.read_json(run / "environment.json", run_files.Environment), "root", {})
        return fingerprint if "settings_format" in tree else str(tree["fingerprint"])
    except (UserError, KeyError):
        return fingerprint


def check_unchanged(out: Path, experiment: TrainingSetup, data: dict[str, str]) -> None:
    """Raise UserError if the base model or the data of a task changed since the run in `out` started.

    data: task -> hash of its source. If environment.json cannot be read, the fingerprint of the checkpoint detects
    changes of both.
    """
    previous = environment_of(out)
    try:
        base, sources = previous["base_sha256"], dict(previous["data_sha256"])
    except (ValueError, TypeError, KeyError):
        return
    if base != base_hash(experiment.clients.backbone):
        raise UserError(
            f"{out}: model.base = {experiment.clients.backbone.folder!r} has other files than when this run started "
            f"({base[:60]}); restore those, or use another --out"
        )
    for name, sha256 in data.items():
        if sources.get(name, sha256) != sha256:
            raise UserError(
                f"{out}: the data of task {name} has changed since this run started; restore it, or use another --out"
            )


def network_layout(network: Network, tasks: list[str]) -> run_files.NetworkLayout:
    """Return the positions of stations and devices, and each device's mean gain at its strongest station."""
    gains = network.gain.amax(0)
    devices = [
        run_files.DevicePosition(x=float(x), y=float(y), task=task, gain_db=units.to_db(float(gain)))
        for (x, y), task, gain in zip(network.devices, tasks, gains, strict=True)
    ]
    return run_files.NetworkLayout(stations=[(float(x), float(y)) for x, y in network.stations], devices=devices)


def source_commit() -> str | None:
    """Return the commit of the package's source tree, or None if it is not a git repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def export_adapters(
    settings: Settings, experiment: TrainingSetup, state: State, out: Path, merged: bool, gguf: bool = False
) -> list[Path]:
    """Export the models as PEFT adapters, compare them after reloading, and return their folders.

    There is a model per task, or per device if anything is of device scope. The tokenizer, task.json and a model card
    lie beside each. merged: also write merged weights to `out/merged`. gguf: also write adapters for llama.cpp to
    `out/gguf`. A method that changes the frozen weights has no adapters: merged weights are written instead, and
    without `merged` UserError is raised. The server of a federation has no parts of device scope: then nothing is
    written here, and the devices export their own models.
    """
    folders: list[Path] = []
    clients, values = experiment.clients, vectors(state)
    backbone = clients.backbone
    if (reason := reason_without_adapter(settings)) and (gguf or not merged):
        raise UserError(f"{out}: {reason}")
    if gguf:
        gguf_adapter.check_base(backbone)
    if values["device"].shape[1] < clients.layout.size("device"):
        return folders
    facts = replace(run_facts(out), per_device=bool(values["device"].shape[1]))
    for number, task in enumerate(experiment.tasks):
        classes = clients.classes[number]
        samples = task.test.prompts[:8]
        documents, merged_documents = (
            adapter_documents(settings, number, task, backbone, facts, merged=value) for value in (False, True)
        )
        described = adapter_task(settings, number, task, backbone)
        names = list(described.labels)[:classes]
        for device, parts in models_of(experiment, number):
            factors = model_of(clients, values, number, device)
            base = export.fresh_base(backbone, classes)
            if reason:
                folder = path_below(out, "merged", *parts)
                plain = export.merge_weights(backbone, factors, classes, base)
                if task.kind == "chat":
                    export.set_end_tokens(plain, described.end_tokens)
                export.export_merged(backbone, factors, plain, names, samples, folder, merged_documents)
                folders.append(folder)
                continue
            folder = path_below(out, "adapters", *parts)
            alpha = settings.adapters.alpha
            loaded = export.export_adapter(backbone, factors, classes, alpha, folder, base, samples, documents)
            if gguf:
                gguf_adapter.write_gguf_adapter(
                    backbone, factors, path_below(out, "gguf", *parts[:-1], f"{parts[-1]}.gguf")
                )
            if merged:
                plain = export.merge_adapter(loaded)
                if task.kind == "chat":
                    export.set_end_tokens(plain, described.end_tokens)
                target = path_below(out, "merged", *parts)
                export.export_merged(backbone, factors, plain, names, samples, target, merged_documents)
            folders.append(folder)
    return folders


def run_facts(out: Path) -> RunFacts:
    """What model cards tell about the run in a folder."""
    try:
        summary = run_files.read_json(out / "summary.json", run_files.Summary)
    except UserError:  # damaged; a resumed run writes it again
        summary = None
    return RunFacts(public_command(str(environment_of(out).get("command") or "")), summary)


def reason_without_adapter(settings: Settings) -> str | None:
    """Explain in a line why a method's models are not LoRA adapters. Returns None if they are."""
    method, rank = settings.adapters.method, settings.adapters.rank_shared + settings.adapters.rank_personal
    if not method.row.averages:
        return None
    return (
        f"no adapters: {method.name} changes the frozen weights by more than a LoRA adapter of rank {rank} can hold; "
        "`airpfed export RUN_DIR --merged` writes merged weights"
    )


def models_of(experiment: TrainingSetup, task: int) -> list[tuple[int, tuple[str, ...]]]:
    """List the models of a task: (a device with this model, names of its folder and parent folders).

    There is a model per device if anything is of device scope.
    """
    devices = (experiment.clients.task_of == task).nonzero().flatten().tolist()
    name = experiment.tasks[task].name
    if experiment.initial.devices.own.value.shape[1] == 0:
        return [(devices[0], (name,))]
    return [(device, (name, f"device-{device}")) for device in devices]


def path_below(folder: Path, *names: str) -> Path:
    """Return a path below a run's folder. Every part of it is checked."""
    for name in names:
        folder = files.path_inside(folder, name)
    return folder
