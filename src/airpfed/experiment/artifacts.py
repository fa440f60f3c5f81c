"""A run's directory: what is written before the first round and after the last."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from airpfed.air.network import Network
from airpfed.config.schema import Settings
from airpfed.config.settings_file import write
from airpfed.core import files, run_files, units
from airpfed.core.errors import UserError
from airpfed.experiment import build_uplink
from airpfed.experiment.build import base_hash
from airpfed.model import export
from airpfed.training.checkpoint import LATEST, tensor_file
from airpfed.training.evaluate import model_of
from airpfed.training.experiment import Experiment
from airpfed.training.factor_averaging import RULES
from airpfed.training.state import State, vectors

FILES = (
    "experiment.toml", "environment.json", "layout.json", "records.jsonl", "summary.json", "theory.json", "report.html",
)  # fmt: skip
FOLDERS = ("checkpoint", "adapters", "merged")
"""What a run leaves in its folder."""
BESIDE = ("tensorboard", "flower", "devices", "federation.log")
"""What trackers and a federation's processes keep there."""

PACKAGES = ("airpfed", "torch", "transformers", "peft", "safetensors", "numpy")


def fresh_folder(runs: Path, stem: str) -> Path:
    """`runs/stem`, or `runs/stem-2`, ... : the first that does not exist or is empty."""
    names = [runs / stem, *(runs / f"{stem}-{number}" for number in range(2, 10_000))]
    return next(folder for folder in names if not folder.exists() or not any(folder.iterdir()))


def newest_folder(runs: Path, stem: str) -> Path:
    """The newest run of a settings file, among `runs/stem` and `runs/stem-N`; UserError if there is none."""
    own = re.compile(rf"{re.escape(stem)}(-[0-9]+)?")
    places = [path for path in runs.iterdir() if own.fullmatch(path.name)] if runs.is_dir() else []
    found = [(time, folder) for folder in places if (time := started(folder)) is not None]
    if not found:
        raise UserError(f"{runs / stem}: nothing to resume; run without --resume first")
    return max(found)[1]


def started(run: Path) -> float | None:
    """When a folder's run was begun or last gone on with; None where it holds none."""
    names = traces(run)
    written = [name for name in names if name == FILES[0]] or names  # settings are written when a run begins or goes on
    return max(((run / name).lstat().st_mtime for name in written), default=None)


def traces(run: Path) -> list[str]:
    """Names of a run's files in a folder: whichever of them is there, the folder is that run's."""
    return [name for name in (*FILES, *FOLDERS) if os.path.lexists(run / name)]


def claimed(out: Path | None, stem: str, resume: bool) -> Path:
    """The run's folder: `out`, or one below `runs/`; made, and never one with a run that this one would overwrite."""
    if out is None:
        out = newest_folder(Path("runs"), stem) if resume else fresh_folder(Path("runs"), stem)
    claim(out, resume)
    return out


def claim(out: Path, resume: bool) -> None:
    """Make sure `out` can be written to and holds no run that this one would overwrite."""
    if resume and not out.is_dir():
        raise UserError(f"{out}: nothing to resume; run without --resume first")
    there = traces(out)
    if not resume and there:
        raise UserError(
            f"{out}: holds a run already ({there[0]}); add --resume to go on with it, or choose another --out"
        )
    others = [path for path in out.iterdir() if path.name not in BESIDE and not leftover(path)] if resume else []
    if others and not there:
        raise UserError(f"{out}: nothing to resume, no run's files are here; run without --resume first")
    for name in there:
        if (out / name).is_dir() != (name in FOLDERS):
            what = "a folder" if name in FOLDERS else "a file"
            raise UserError(f"{out / name}: should be {what} of the run; restore it, or move it away")
    if resume:
        begun(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made: {error.strerror}") from None


def begun(out: Path) -> None:
    """UserError where a run's checkpoint is gone after rounds that it stood for: to begin anew would lose them.

    Nothing is lost where the run was killed before its first checkpoint was whole.
    """
    checkpoint = out / "checkpoint"
    if os.path.lexists(checkpoint / LATEST):
        return
    done = [out / name for name in ("summary.json", "adapters", "merged", "report.html", "theory.json")]
    done += [
        path
        for path in checkpoint.glob("*")
        if path.name not in (tensor_file(0), "run.json", "base.json") and not leftover(path)
    ]
    records = out / "records.jsonl"
    if [path for path in done if os.path.lexists(path)] or (records.exists() and records.stat().st_size):
        raise UserError(
            f"{checkpoint / LATEST}: missing, and rounds were done here; restore it, or begin anew elsewhere"
        )


def leftover(path: Path) -> bool:
    """Whether a file is what a killed write left."""
    return bool(files.TEMPORARY.fullmatch(path.name))


def renewed(out: Path) -> Iterator[str]:
    """A line for every damaged file of a run that going on with it writes again."""
    kinds: dict[str, Any] = {
        "environment.json": run_files.Environment,
        "layout.json": run_files.Layout,
        "summary.json": run_files.Summary,
    }
    for name, kind in kinds.items():
        try:
            run_files.read_json(out / name, kind)
        except UserError as error:
            yield f"{error}; written again"


def tidied(out: Path) -> None:
    """Remove what killed writes left in a run's folder, which this process holds the lock of."""
    for folder in (out, *(out / name for name in FOLDERS), *(out / "adapters").glob("*"), *(out / "merged").glob("*")):
        if folder.is_dir() and not folder.is_symlink():
            for left in files.leftovers(folder):
                files.discard(left)


def written_to(path: Path, ending: str) -> None:
    """Make sure that `--out` names a file of the kind that will be written, and not by a slip one of the user's own."""
    if path.suffix != ending or path.is_dir():
        raise UserError(f"--out {path}: should be a file that ends in {ending}")


def begin(
    settings: Settings,
    experiment: Experiment,
    data: dict[str, str],
    command: str,
    out: Path,
    reports: Mapping[str, run_files.DataReport],
) -> None:
    """Write the resolved settings and what the run stands on: versions, commit, data, hashes of data and base model."""
    write(settings, out / "experiment.toml")
    environment: dict[str, object] = {
        "command": command,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(experiment.clients.backbone.device),
        "commit": commit(),
        "seed": experiment.seed,
        "base_sha256": base_hash(experiment.clients.backbone),
        "data_sha256": data,
        "fingerprint": experiment.fingerprint,
        "data": {name: report.model_dump(mode="json") for name, report in reports.items()},
    }
    run_files.write_json(out / "environment.json", environment)
    place = build_uplink.network(settings.radio, settings.run.seed, experiment.clients.task_of, len(settings.tasks))
    names = [experiment.tasks[int(n)].name for n in experiment.clients.task_of]
    run_files.write_json(out / "layout.json", layout(place, names))


def unchanged(out: Path, experiment: Experiment, data: dict[str, str]) -> None:
    """UserError that names the base model or the task whose files are no longer what a run in `out` was made with.

    data: task -> hash of its source. What cannot be read is left to the checkpoint's fingerprint, which covers both.
    """
    try:
        before: Any = getattr(run_files.read_json(out / "environment.json", run_files.Environment), "root", {})
        base, sources = before["base_sha256"], dict(before["data_sha256"])
    except (OSError, UserError, ValueError, TypeError, KeyError):
        return
    if base != base_hash(experiment.clients.backbone):
        raise UserError(
            f"{out}: model.base = {experiment.clients.backbone.folder!r} holds other files than when this run was made "
            f"({base[:60]}); put those back, or use another --out"
        )
    for name, sha256 in data.items():
        if sources.get(name, sha256) != sha256:
            raise UserError(
                f"{out}: the data of task {name} is not what it was when this run was made; put it back, or use "
                "another --out"
            )


def layout(place: Network, tasks: list[str]) -> run_files.Layout:
    """Where a drop's stations and devices stand, and each device's mean gain at its strongest station."""
    gain = place.gain.amax(0)
    devices = [
        run_files.Place(x=float(at[0]), y=float(at[1]), task=task, gain_db=units.to_db(float(g)))
        for at, task, g in zip(place.devices, tasks, gain, strict=True)
    ]
    return run_files.Layout(stations=[(float(at[0]), float(at[1])) for at in place.stations], devices=devices)


def commit() -> str | None:
    """The commit of the source tree this package runs from, if it is one."""
    home = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(home), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def adapters(settings: Settings, experiment: Experiment, state: State, out: Path, merged: bool) -> list[Path]:
    """Export every task's model (device scope: every device's) as PEFT adapters, checked; returns their folders.

    merged: write merged weights to `out/merged` too. A method that adds to the frozen weights has no adapters: merged
    weights are written instead, or UserError says so. In a federation what is of device scope is not here: the devices
    export their own models, and this writes none.
    """
    written: list[Path] = []
    clients, values = experiment.clients, vectors(state)
    if (why := no_adapter(settings)) and not merged:
        raise UserError(f"{out}: {why}")
    if values["device"].shape[1] < clients.layout.size("device"):
        return written
    for number, task in enumerate(experiment.tasks):
        classes = clients.classes[number]
        samples = task.test.prompts[:8]
        for device, parts in models_of(experiment, number):
            factors = model_of(clients, values, number, device)
            base = export.fresh_base(clients.backbone, classes)
            if why:
                folder = below(out, "merged", *parts)
                export.merge_plainly(clients.backbone, factors, classes, base, samples, folder)
                written.append(folder)
                continue
            folder = below(out, "adapters", *parts)
            alpha = settings.adapters.alpha
            loaded = export.checked(clients.backbone, factors, classes, alpha, folder, base, samples)
            if merged:
                export.merge(loaded, clients.backbone.tokenizer, below(out, "merged", *parts))
            written.append(folder)
    return written


def no_adapter(settings: Settings) -> str | None:
    """Why a method's models are no LoRA adapters, in a line; None where they are."""
    method, rank = settings.adapters.method, settings.adapters.rank_shared + settings.adapters.rank_personal
    if method not in RULES:
        return None
    return (
        f"no adapters: {method} adds to the frozen weights what no LoRA adapter of rank {rank} holds; "
        "`airpfed export RUN_DIR --merged` writes merged weights"
    )


def models_of(experiment: Experiment, task: int) -> list[tuple[int, tuple[str, ...]]]:
    """The models of a task: (a device that has it, names of the folders it lies in).

    One a device where anything is of device scope.
    """
    devices = (experiment.clients.task_of == task).nonzero().flatten().tolist()
    name = experiment.tasks[task].name
    if experiment.initial.devices.own.value.shape[1] == 0:
        return [(devices[0], (name,))]
    return [(device, (name, f"device-{device}")) for device in devices]


def below(folder: Path, *names: str) -> Path:
    """A path below a run's folder, each part checked."""
    for name in names:
        folder = files.inside(folder, name)
    return folder
