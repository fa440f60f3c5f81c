"""Settings to objects: the one file that sees both."""

import hashlib
import json
from functools import partial
from typing import Any

import torch

from airpfed import units
from airpfed.air import geometry
from airpfed.air.designs.table import design_of, refine_of
from airpfed.air.plan import Air, Groups
from airpfed.air.uplink import fresh_memory, send
from airpfed.devices.fleet import Fleet
from airpfed.devices.prefix import PrefixCache
from airpfed.errors import UserError
from airpfed.model import adapters, backbone, catalog, encode, vector
from airpfed.model.backbone import Backbone
from airpfed.model.encode import Encoded
from airpfed.rounds.evaluate import Split, TaskView
from airpfed.rounds.run import Experiment
from airpfed.rounds.state import start
from airpfed.settings import RadioSettings, Settings, TaskSettings
from airpfed.streams import stream
from airpfed.tasks.load import Source
from airpfed.tasks.sample import Sample, Task
from airpfed.tasks.split import Shares
from airpfed.tasks.task import build as build_task

UNSHAPING: dict[str, set[str]] = {
    "server": {"rounds"},
    "run": {"eval_every", "threads"},
    "federation": {"min_devices", "wait_seconds", "deadline_seconds", "address", "listen", "folder"},
}
"""Settings that a resumed run may change: they do not alter what the rounds so far computed."""


def load_tasks(settings: Settings) -> tuple[Task, ...]:
    """All tasks, loaded, split and shared over their devices."""
    return tuple(build_task(source_of(task), shares_of(task), settings.run.seed) for task in settings.tasks)


def source_of(task: TaskSettings) -> Source:
    """A task's settings as a source; empty settings take the source's own values."""
    return Source(
        name=task.name,
        source=task.source or task.name,
        kind=None if task.kind == "auto" else task.kind,
        prompt=task.prompt or None,
        text_column=task.text,
        label_column=task.label,
        device_column=task.device_column or None,
        labels=task.labels or None,
        max_chars=task.max_chars or None,
    )


def shares_of(task: TaskSettings) -> Shares:
    """A task's settings as the way its samples are dealt out."""
    return Shares(
        devices=task.devices,
        samples_per_device=task.samples_per_device,
        dev_samples=task.dev_samples,
        test_samples=task.test_samples,
        split=task.split,
        dirichlet_alpha=task.dirichlet_alpha,
        sizes=task.sizes,
        sizes_sigma=task.sizes_sigma,
    )


def load_backbone(settings: Settings, tasks: tuple[Task, ...]) -> Backbone:
    """The base model with adapters on it."""
    wanted = settings.adapters
    made = backbone.build(
        settings.model.base,
        settings.model.kind,
        max((len(task.labels) for task in tasks), default=1) or 1,
        wanted.target_modules,
        wanted.layers,
        wanted.alpha / (wanted.rank_shared + wanted.rank_personal),
        machine(settings.run.device),
        stream(settings.run.seed, "head"),
    )
    if not made.causal and any(task.kind == "generate" for task in tasks):
        raise UserError(f'model.base = "{settings.model.base}": a classifier cannot generate; use a causal LM')
    return made


def machine(device: str) -> str:
    """The torch device a setting means."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError('run.device = "cuda": torch sees no GPU here; "cpu" or "auto" would run')
    return device


def experiment(settings: Settings, tasks: tuple[Task, ...]) -> Experiment:
    """Everything a run needs, from its settings and its tasks."""
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    base = load_backbone(settings, tasks)
    words = [label_tokens(base, task) for task in tasks]
    classes = tuple(0 if base.causal else len(task.labels) for task in tasks)
    blocks = adapters.blocks_of(
        settings.adapters.method, settings.adapters.rank_shared, settings.adapters.rank_personal
    )
    shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in base.heads.items()}
    order = vector.layout(base.sites, blocks, shapes, classes)
    owners = [(n, shard) for n, task in enumerate(tasks) for shard in task.train]
    task_of = torch.tensor([n for n, _ in owners])
    limit = settings.model.max_tokens
    shards = tuple(tuple(train_sample(base, s, tasks[n], words[n], limit) for s in shard) for n, shard in owners)
    fleet = Fleet(base, order, PrefixCache(base), shards, task_of, classes, settings.run.seed)
    begin = vector.initial(order, base.heads, stream(settings.run.seed, "adapters"))
    radio = air(settings, fleet, tuple(task.name for task in tasks))
    return Experiment(
        method=settings.adapters.method,
        fleet=fleet,
        tasks=tuple(view(base, t, w, s, limit) for t, w, s in zip(tasks, words, settings.tasks, strict=True)),
        link=partial(send, radio),
        initial=start(begin, order, len(tasks), len(shards), fresh_memory(radio)),
        optimizer=settings.server.optimizer,
        lr=settings.server.lr,
        rounds=settings.server.rounds,
        batch_size=settings.devices.batch_size,
        local_steps=settings.devices.local_steps,
        local_lr=settings.devices.local_lr,
        chunk=chunk_size(settings, fleet),
        eval_every=settings.run.eval_every,
        seed=settings.run.seed,
        fingerprint=fingerprint(settings, tasks, base),
        payload=settings.federation.payload,
    )


def label_tokens(base: Backbone, task: Task) -> tuple[int, ...]:
    """What stands for each class in the model's output: a token (causal LM), or its index (classifier)."""
    if base.causal:
        return encode.label_tokens(base.tokenizer, task.labels, f"tasks.{task.name}.labels")
    return tuple(range(len(task.labels)))


def train_sample(base: Backbone, sample: Sample, task: Task, words: tuple[int, ...], limit: int) -> Encoded:
    """A training sample as the loss reads it."""
    if task.kind == "generate":
        return encode.completion(base.tokenizer, sample.prompt, sample.answer, limit)
    return Encoded(encode.prompt_ids(base.tokenizer, sample.prompt, limit), (words[sample.label],))


def view(base: Backbone, task: Task, words: tuple[int, ...], wanted: TaskSettings, limit: int) -> TaskView:
    """A task as evaluation reads it."""

    def split(samples: tuple[Sample, ...]) -> Split:
        prompts = tuple(Encoded(encode.prompt_ids(base.tokenizer, s.prompt, limit), (0,)) for s in samples)
        return Split(prompts, tuple(s.label for s in samples), tuple(s.answer for s in samples))

    return TaskView(task.name, task.kind, words, wanted.max_new_tokens, split(task.dev), split(task.test))


def air(settings: Settings, fleet: Fleet, names: tuple[str, ...], told: torch.Tensor | None = None) -> Air:
    """The radio side of a fleet, in linear SI units; the drop of devices is fixed by the seed.

    told: D_k where the data is not here.
    """
    here = torch.tensor([len(shard) for shard in fleet.shards], dtype=torch.float64)
    samples = here if told is None else told
    order = fleet.layout
    groups = (order.groups("global"), order.groups("task"))
    return radio_side(settings, fleet.task_of, samples, names, groups, order.task_lengths)


def radio_side(
    settings: Settings,
    task_of: torch.Tensor,
    samples: torch.Tensor,
    names: tuple[str, ...],
    groups: tuple[Groups, Groups],
    lengths: tuple[int, ...],
) -> Air:
    """The radio side of any devices: their tasks, their samples D_k, and the vectors they send."""
    radio, seed = settings.radio, settings.run.seed
    devices = len(samples)
    place = geometry.disc_distances(devices, radio.cell_radius_m, radio.min_distance_m, stream(seed, "drop"))
    gain = geometry.log_distance_gain(place, radio.carrier_hz, radio.path_loss_exponent)
    power = limits(settings, task_of)
    return Air(
        **design_fields(radio, radio.design),
        correlation=believed_of(radio),
        personal_slots=radio.personal_slots or len(names),
        access=radio.access,
        packing=radio.packing,
        normalizer=radio.normalizer,
        task_names=names,
        task_of=task_of,
        samples=samples,
        gain=gain,
        power=power,
        noise=noise_watts(radio, gain, power),
        antennas=radio.antennas,
        csi_error=radio.csi_error,
        coherence_symbols=radio.coherence_symbols,
        bandwidth_hz=radio.bandwidth_hz,
        subcarriers=radio.subcarriers,
        shared_groups=groups[0],
        personal_groups=groups[1],
        lengths=lengths,
        seed=seed,
    )


def design_fields(radio: RadioSettings, name: str) -> dict[str, Any]:
    """The fields of `Air` that a design decides, with the settings' options."""
    truncation = None if radio.truncation == "best" else radio.truncation
    return {
        "design": design_of(name, truncation, radio.debias, radio.starts),
        "refine": refine_of(name, radio.energy, radio.debias),
        "rescale": name == "mmse" and not radio.debias and radio.correlation != "none",
    }


def believed_of(radio: RadioSettings) -> float | None:
    """The correlation that receivers expect from the start; None: they estimate it."""
    fixed = {"none": 0.0, "estimated": None}
    return fixed[radio.correlation] if isinstance(radio.correlation, str) else radio.correlation


def limits(settings: Settings, task_of: torch.Tensor) -> torch.Tensor:
    """Power limit of every device in watts: its task's own, one for all its devices or one each, or the radio's."""
    power = torch.full((len(task_of),), units.dbm_to_watts(settings.radio.power_dbm), dtype=torch.float64)
    for n, task in enumerate(settings.tasks):
        if task.power_dbm is not None:
            count = int((task_of == n).sum())
            own = task.power_dbm if isinstance(task.power_dbm, tuple) else (task.power_dbm,) * count
            if len(own) != count:
                where = f"tasks.{task.name}.power_dbm"
                raise UserError(f"{where} has {len(own)} values: should be one, or {count}, one a device")
            power[task_of == n] = torch.tensor([units.dbm_to_watts(one) for one in own], dtype=torch.float64)
    return power


def noise_watts(radio: RadioSettings, gain: torch.Tensor, power: torch.Tensor) -> float:
    """Noise power over the band; `snr_db`, if given, sets it from the median device."""
    if radio.snr_db is not None:
        return geometry.noise_for_snr(gain, power, units.from_db(radio.snr_db))
    if radio.noise_dbm == "off":
        return 0.0
    if radio.noise_dbm == "thermal":
        return units.thermal_noise_watts(radio.bandwidth_hz, radio.noise_figure_db)
    return units.dbm_to_watts(radio.noise_dbm)


def chunk_size(settings: Settings, fleet: Fleet) -> int:
    """Devices computed together: `devices.chunk`, or so many that all stays within `devices.memory_gb`.

    A linear layer keeps about its input and output, four bytes each, twice over for what lies between; a device's
    factors are held about four times (values, gradients, sums).
    """
    if settings.devices.chunk:
        return settings.devices.chunk
    above = [layer.base for layer in fleet.backbone.layers.values()]
    widths = sum(linear.in_features + linear.out_features for linear in above)
    tokens = settings.devices.batch_size * settings.model.max_tokens
    factors = sum((entry.stop - entry.start) for entry in fleet.layout.entries)
    bytes_each = 8 * 2 * widths * tokens + 16 * factors
    return max(1, min(len(fleet.shards), int(settings.devices.memory_gb * 1e9 // bytes_each)))


def fingerprint(settings: Settings, tasks: tuple[Task, ...], base: Backbone) -> str:
    """sha256 of what a run's numbers depend on: settings, data, base model."""
    parts = [settings.model_dump(mode="json", exclude=UNSHAPING), [t.source_sha256 for t in tasks], base_hash(base)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def base_hash(base: Backbone) -> str:
    """The base model's own fingerprint."""
    return catalog.identity(base.folder)
