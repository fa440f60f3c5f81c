"""Settings to objects: the one file that sees both."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from airpfed.air.impairments import NONE
from airpfed.air.schedule import Uplink, reason_without_claim
from airpfed.air.uplink import initial_statistics, uplink, uplink_over_seeds
from airpfed.analysis.monitor import BoundMonitor
from airpfed.analysis.probe import load_or_probe
from airpfed.config.schema import Settings, TaskSettings
from airpfed.core.errors import UserError
from airpfed.core.heap import keep_freed, uncollected
from airpfed.core.memory import fits
from airpfed.core.rng import stream
from airpfed.devices import fast_paths
from airpfed.devices.gradients import Clients
from airpfed.devices.prefix_cache import PrefixCache
from airpfed.experiment import build_uplink
from airpfed.model import adapters, backbone, export, fit, layout, tokens, zoo
from airpfed.model.backbone import Backbone
from airpfed.model.layout import Layout
from airpfed.model.origin import origin
from airpfed.model.tokens import Encoded
from airpfed.tasks.datasets import build_all
from airpfed.tasks.sample import Sample, Task
from airpfed.tasks.sources import Source
from airpfed.tasks.split import Shares
from airpfed.training.evaluate import Split, TaskView
from airpfed.training.experiment import Experiment
from airpfed.training.factor_averaging import RULES, FactorAveraging
from airpfed.training.round import Aggregator, LocalTraining
from airpfed.training.state import ServerStep, start

UNSHAPING: dict[str, set[str]] = {
    "model": {"base", "trust_remote_code"},  # what the base is, wherever it lies, is in the fingerprint
    "devices": {"cache_gb", "gradients_gb"},
    "server": {"rounds", "air_seconds"},
    "run": {"eval_every", "threads", "score", "cross_eval", "tracker"},
    "theory": {"meter_every"},
    "federation": {"min_devices", "wait_seconds", "deadline_seconds", "address", "listen", "folder"},
}
"""Settings that a resumed run may change: they do not alter what the rounds so far computed."""

UNKNOWN = 0.9
"""Share of unknown words in a task's texts above which its tokenizer is not one for them."""

GIVEN = ("beta", "c", "sigma_sgd2", "lam", "sigma_dif2")
"""Constants that settings may give instead of the probe."""


def load_tasks(settings: Settings) -> tuple[Task, ...]:
    """All tasks, loaded, split and shared over their devices."""
    wanted = [(source_of(task), how) for task, how in zip(settings.tasks, all_shares(settings), strict=True)]
    return build_all(wanted, settings.run.seed)


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
        classes=task.classes,
        max_empty_share=task.max_empty_share,
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
        split_as=task.split_as,
    )


def fingerprints() -> Callable[[Settings], str | None]:
    """What a run of some settings would have as its fingerprint now, without its model being built.

    None where data or base model are not to be had. What several settings share is read once.
    """
    data: dict[str, list[str]] = {}
    bases: dict[str, str] = {}

    def fingerprint_now(settings: Settings) -> str | None:
        base = settings.model.base
        key = settings.model_dump_json(include={"tasks": True, "run": {"seed"}})
        try:
            data[key] = data.get(key) or [task.source_sha256 for task in load_tasks(settings)]
            bases[base] = bases.get(base) or origin(base, settings.model.trust_remote_code).identity
        except UserError:
            return None
        return fingerprint_of(settings, data[key], bases[base])

    return fingerprint_now


def all_shares(settings: Settings) -> list[Shares]:
    """`shares_of` every task, where tasks that split alike, by way of others too, name the same shuffle."""
    leads = {task.name: task.split_as for task in settings.tasks}

    def root(name: str) -> str:
        met = [name]
        while leads.get(met[-1]) and leads[met[-1]] not in met:
            met.append(leads[met[-1]])
        onward = leads.get(met[-1])  # a ring of tasks has no end: the first of them by name stands for it
        return min(met[met.index(onward) :]) if onward else met[-1]

    return [replace(shares_of(task), split_as=root(task.name) if task.split_as else "") for task in settings.tasks]


def load_backbone(settings: Settings, tasks: tuple[Task, ...]) -> Backbone:
    """The base model with adapters on it."""
    name = settings.model.base
    if name not in zoo.MODELS and not Path(name).is_absolute() and Path(name).is_dir():
        raise UserError(
            f'model.base = "{name}": the working directory holds a folder of this name, which would be taken for one '
            f'of the hub; "./{name}" is a folder beside the settings file'
        )
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
        settings.model.max_tokens,
        max(
            (
                wanted.max_new_tokens
                for task, wanted in zip(tasks, settings.tasks, strict=True)
                if task.kind == "generate"
            ),
            default=0,
        ),
        settings.model.trust_remote_code,
    )
    if any(task.kind == "generate" for task in tasks):
        can_generate(made, settings.model.base)
    if wanted.method not in RULES:
        export.acceptable(made, wanted.rank_shared + wanted.rank_personal, wanted.alpha)
    return replace(made, notes=(*made.notes, *spelled(made, settings.tasks)))


def spelled(base: Backbone, tasks: Sequence[TaskSettings]) -> list[str]:
    """Lines about prompts that spell a control token: what settings and data say is text."""
    control = [base.tokenizer.convert_ids_to_tokens(one) for one in sorted(tokens.control_ids(base.tokenizer))]
    return [
        f"tasks.{task.name}.prompt: {token!r} is read as text, not as the tokenizer's control token"
        for task in tasks
        for token in control
        if token in task.prompt
    ]


def can_generate(base: Backbone, name: str) -> None:
    """UserError where a base cannot complete texts."""
    if not base.causal:
        raise UserError(f'model.base = "{name}": a classifier cannot generate; use a causal LM')
    if not base.ends:
        raise UserError(
            f'model.base = "{name}": its tokenizer has no end token, so no answer could end; name one as eos_token in '
            "its tokenizer_config.json"
        )
    if not base.model.can_generate():
        raise UserError(f'model.base = "{name}": transformers has no generation for this model; kind = "classify" fits')


def head_applies(settings: Settings, base: Backbone) -> None:
    """UserError where the user gave a head's scope and the base has none; its own default says nothing."""
    head = settings.adapters.head
    if base.causal and head != "task" and "head" in settings.adapters.model_fields_set:
        raise UserError(
            f'adapters.head = "{head}": does nothing with model.base = "{settings.model.base}", a causal LM without a '
            "new head; leave it out, or take a classifier"
        )


def machine(device: str) -> str:
    """The torch device a setting means."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError('run.device = "cuda": torch sees no GPU here; "cpu" or "auto" would run')
    return device


@dataclass(frozen=True)
class Prepared:
    """What runs of one base model, one data split and one set of adapted layers share.

    shards: each task's devices' samples, as the loss reads them. cache: what the layers below the adapters make of
    samples. base_key: of what the untouched model's scores depend on.
    """

    tasks: tuple[Task, ...]
    base: Backbone
    cache: PrefixCache
    shards: tuple[tuple[tuple[Encoded, ...], ...], ...]
    views: tuple[TaskView, ...]
    base_key: str


def prepared(settings: Settings, tasks: tuple[Task, ...]) -> Prepared:
    """Load the base model with adapters on it, and tokenise the tasks; sets the process's threads and heap."""
    keep_freed()
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    with uncollected():
        base = load_backbone(settings, tasks)
    limit = settings.model.max_tokens
    worded = [wording(base, task, limit) for task in tasks]
    shards = tuple(
        tuple(tuple(train_sample(base, s, task, own, limit) for s in shard) for shard in task.train)
        for task, own in zip(tasks, worded, strict=True)
    )
    views = tuple(view(t, w, s) for t, w, s in zip(tasks, worded, settings.tasks, strict=True))
    for task, own in zip(tasks, shards, strict=True):
        readable(base, task.name, [sample for shard in own for sample in shard])
    asked = [asdict(one) | {"name": "", "dev": ""} for one in views]
    parts = [base_hash(base), [weight.tolist() for weight in base.heads.values()], asked]
    return Prepared(
        tasks,
        base,
        PrefixCache(base, settings.devices.cache_gb, settings.devices.cache_precision),
        shards,
        views,
        hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
    )


def preparation(settings: Settings) -> str:
    """What `prepared` depends on: settings that agree in it may share its result."""
    adapters = settings.adapters
    parts = settings.model_dump(mode="json", include={"model": True, "tasks": True, "run": {"seed", "device"}})
    places = [
        adapters.target_modules,
        adapters.layers,
        adapters.alpha / (adapters.rank_shared + adapters.rank_personal),
        settings.devices.cache_precision,
    ]
    return json.dumps([parts, places])


def experiment(
    settings: Settings, tasks: tuple[Task, ...], made: Prepared | None = None, probing: bool = False
) -> Experiment:
    """Everything a run needs, from its settings and its tasks.

    made: `prepared` of the same, if it is at hand. probing: the theory's meter whatever settings say.
    """
    made = made or prepared(settings, tasks)
    base, shards, cache, batch_multiplier = made.base, made.shards, made.cache, tuple[int, ...]()
    if settings.adapters.method == "centralised":
        (batch_multiplier, shards), cache = pooled(shards), cache.fresh()  # its shelves hold the data of other devices
    classes = tuple(0 if base.causal else len(task.labels) for task in tasks)
    order = layout_of(settings, base, classes)
    devices = tuple(shard for task in shards for shard in task)
    task_of = torch.tensor([n for n, task in enumerate(shards) for _ in task])
    clients = Clients(
        base,
        order,
        cache,
        devices,
        task_of,
        classes,
        settings.run.seed,
        batch_multiplier,
        settings.devices.gradients_gb * 1e9,
        settings.devices.precision == "bfloat16",
    )
    held(settings, clients)
    clients, notes = on_fast_paths(settings, clients, made)
    begin = layout.initial(order, base.heads, stream(settings.run.seed, "adapters"))
    side = link(settings, clients)
    aggregate, correlation_statistics, factor_averaging = aggregator_of(settings, clients, side)
    added = torch.zeros(1, sum(out * width for out, width in base.sites.values()) if factor_averaging else 0)
    chunk = chunk_size(settings, clients)
    asked = probing or settings.theory.meter_every > 0 or settings.server.lr == "theory"
    if asked and (factor_averaging or order.in_turn):
        raise UserError(f'adapters.method = "{settings.adapters.method}": the theory has no bound for it')
    monitor = monitor_of(settings, clients, side, chunk) if asked else None
    return Experiment(
        method=settings.adapters.method,
        clients=clients,
        tasks=made.views,
        aggregate=aggregate,
        initial=start(begin, order, len(tasks), len(devices), correlation_statistics, added),
        server_step=server_step_of(settings),
        local_training=local_training_of(settings),
        rounds=settings.server.rounds,
        devices_per_pass=chunk,
        eval_every=settings.run.eval_every,
        seed=settings.run.seed,
        fingerprint=fingerprint(settings, tasks, base),
        probe=partial(load_or_probe, monitor) if monitor else None,
        monitor=monitor,
        factor_averaging=factor_averaging,
        base_key=made.base_key,
        air_seconds=settings.server.air_seconds,
        score=settings.run.score,
        cross_eval=settings.run.cross_eval,
        payload=settings.federation.payload,
        notes=(*base.notes, *notes),
    )


def on_fast_paths(settings: Settings, clients: Clients, made: Prepared) -> tuple[Clients, tuple[str, ...]]:
    """The fleet computing in the fast ways that are right on its base, and lines that say which are not."""
    prompts = [sample for task in made.views for sample in (*task.test.prompts, *task.dev.prompts)]
    generate = any(task.kind == "generate" for task in made.views)
    stacking = settings.devices.chunk != 1 and len(clients.shards) > 1
    found = fast_paths.known(clients, prompts, base_hash(made.base), stacking, generate)
    backbone = clients.cache.computed_on(found.paths)
    return replace(clients, backbone=backbone), tuple(fast_paths.lines(f'model.base = "{settings.model.base}"', found))


def layout_of(settings: Settings, base: Backbone, classes: tuple[int, ...]) -> Layout:
    """The vectors that devices have with the settings' method and ranks. classes: outputs of each task's head."""
    wanted = settings.adapters
    blocks = adapters.blocks_of(wanted.method, wanted.rank_shared, wanted.rank_personal)
    shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in base.heads.items()}
    return layout.layout(base.sites, blocks, shapes, classes, wanted.head)


def monitor_of(settings: Settings, clients: Clients, side: Uplink, chunk: int) -> BoundMonitor:
    """What the theory's probe and meter need; channel draws have streams of their own, the drop of devices stays."""
    theory = settings.theory
    claimable(side)
    random = stream(settings.run.seed, "theory")
    seeds = torch.randint(2**62, (theory.draws,), generator=random).tolist()
    given = {key: getattr(theory, key) for key in GIVEN}
    return BoundMonitor(
        clients=clients,
        names=side.task_names,
        draws=partial(uplink_over_seeds, side, seeds),
        exact=partial(uplink, replace(side, design=None, digital=None)),
        unbiased=unbiased(settings),
        server_step=server_step_of(settings),
        local_training=local_training_of(settings),
        rounds=settings.server.rounds,
        devices_per_pass=chunk,
        period=theory.meter_every,
        hessian_samples=theory.hessian_samples,
        lanczos_steps=theory.lanczos_steps,
        pilot_rounds=theory.pilot_rounds,
        safety=theory.safety,
        given={key: value for key, value in given.items() if value is not None},
    )


def server_step_of(settings: Settings) -> ServerStep:
    """The servers\' optimizer; its learning rate is None if the theory\'s probe sets it."""
    lr = settings.server.lr
    return ServerStep(settings.server.optimizer, None if isinstance(lr, str) else lr)


def local_training_of(settings: Settings) -> LocalTraining:
    """A device\'s work in a round."""
    devices = settings.devices
    return LocalTraining(devices.batch_size, devices.local_steps, devices.local_lr)


def claimable(side: Uplink) -> None:
    """UserError where the theory has no claimed error to go by."""
    if why := reason_without_claim(side):
        right = (
            'clipping_db = "off" would be right'
            if side.impairments.clipping is not None
            else "a number for radio.correlation, or another radio.access or topology, would be right"
        )
        raise UserError(f"theory: the bounds need a claimed error of every sum, and {why}; {right}")


def unbiased(settings: Settings) -> bool:
    """Whether the settings' link claims E Ghat = G; errors of linear MMSE channel estimates have mean 0."""
    return settings.radio.design in build_uplink.UNBIASED and build_uplink.harm_of(settings.radio) == NONE


def pooled(
    shards: tuple[tuple[tuple[Encoded, ...], ...], ...],
) -> tuple[tuple[int, ...], tuple[tuple[tuple[Encoded, ...], ...], ...]]:
    """How many devices each task has, and one worker in their place with all their data.

    The workers' weighted sum is the gradient of one worker with the data of all tasks.
    """
    return tuple(len(task) for task in shards), tuple((tuple(s for shard in task for s in shard),) for task in shards)


def aggregator_of(
    settings: Settings, clients: Clients, side: Uplink
) -> tuple[Aggregator, torch.Tensor, FactorAveraging | None]:
    """The link, its memory before the first round, and the rule that takes the sum's place where the method has one."""
    method, layout = settings.adapters.method, clients.layout
    alternating = layout.turns() if layout.in_turn else ()
    sending = replace(side, alternating=alternating, colocated=method == "centralised")
    averaging = None
    if method in RULES:
        averaging = FactorAveraging(RULES[method], clients, side, local_training_of(settings))
    return partial(uplink, sending), initial_statistics(sending), averaging


@dataclass(frozen=True)
class Wording:
    """A task as the base model reads it.

    choices: what stands for each class in the model's output, a token (causal LM) or its index (classifier). prompts:
    prompt -> token ids.
    """

    choices: tuple[int, ...]
    prompts: dict[str, tuple[int, ...]]


def wording(base: Backbone, task: Task, limit: int) -> Wording:
    """A task's prompts and label words as tokens, all splits alike. limit: tokens that a prompt is cut to."""
    shards = (*task.train, task.dev, task.test)
    texts = list(dict.fromkeys(sample.prompt for shard in shards for sample in shard))
    choices = tuple(range(len(task.labels)))
    if task.kind == "generate":
        ids = tokens.read(base.tokenizer, [tokens.before_answer(text) for text in texts])
    elif base.causal:
        ids, choices = tokens.labelled(base.tokenizer, texts or ["Label:"], task.labels, task.name)
    else:
        ids = tokens.read(base.tokenizer, texts, causal=False)
    if () in ids[: len(texts)]:
        raise UserError(
            f"tasks.{task.name}.prompt: the base's tokenizer makes no token of {texts[ids.index(())][:40]!r}"
        )
    return Wording(choices, {text: tokens.cut(one, limit) for text, one in zip(texts, ids, strict=False)})


def train_sample(base: Backbone, sample: Sample, task: Task, own: Wording, limit: int) -> Encoded:
    """A training sample as the loss reads it."""
    if task.kind == "generate":
        return tokens.completion(base.tokenizer, sample.prompt, sample.answer, limit, base.ends[0])
    return Encoded(own.prompts[sample.prompt], (own.choices[sample.label],))


def view(task: Task, own: Wording, wanted: TaskSettings) -> TaskView:
    """A task as evaluation reads it."""

    def split(samples: tuple[Sample, ...]) -> Split:
        prompts = tuple(Encoded(own.prompts[s.prompt], (0,)) for s in samples)
        return Split(prompts, tuple(s.label for s in samples), tuple(s.answer for s in samples))

    return TaskView(
        task.name, task.kind, task.labels, own.choices, wanted.max_new_tokens, split(task.dev), split(task.test)
    )


def readable(base: Backbone, name: str, samples: Sequence[Encoded]) -> None:
    """UserError where the tokenizer does not fit: tokens that the model does not have, or hardly a known word."""
    if not samples:
        return
    have = fit.rows(base.model)
    targets = [sample.targets for sample in samples if base.causal]
    if (highest := max(max(ids) for ids in [*(sample.ids for sample in samples), *targets])) >= have:
        raise UserError(
            f"tasks.{name}: its texts hold token {highest}, but the base model has {have}; tokenizer and model should "
            "be of one kind"
        )
    if not fit.reads(base.model, min((sample.ids for sample in samples), key=len), base.causal):
        raise UserError(f"tasks.{name}: the base cannot read its shortest text; prompt should have more words")
    unknown, control = base.tokenizer.unk_token_id, tokens.control_ids(base.tokenizer)
    holding = Counter(token for sample in samples for token in set(sample.ids))
    own = {token for token, count in holding.items() if count < len(samples)} - control | {unknown}  # not the template
    words = Counter(token for sample in samples for token in sample.ids if token in own)
    if (share := words[unknown] / max(1, words.total())) > UNKNOWN:
        raise UserError(
            f"tasks.{name}: the base's tokenizer knows {1 - share:.0%} of the words in its texts; another base fits"
        )


def link(settings: Settings, clients: Clients, told: torch.Tensor | None = None) -> Uplink:
    """The radio side of a fleet. told: D_k where the data is not here."""
    here = torch.tensor([len(shard) for shard in clients.shards], dtype=torch.float64)
    samples = here if told is None else told
    order = clients.layout
    if settings.radio.design != "error_free":
        uses = (order.size("global") + sum(order.task_lengths)) // (2 if settings.radio.packing == "iq" else 1)
        build_uplink.room(
            settings.radio, len(samples), len(settings.tasks), -(-uses // settings.radio.coherence_symbols)
        )
    return build_uplink.link(
        settings, clients.task_of, samples, (order.kinds("global"), order.kinds("task")), order.task_lengths
    )


def held(settings: Settings, clients: Clients) -> None:
    """UserError where adapters and their optimizer's state, or one device's step, cannot fit into memory."""
    order, wanted, devices = clients.layout, settings.adapters, len(clients.shards)
    counts = {scope: layout.copies(scope, len(settings.tasks), devices) for scope in adapters.SCOPES}
    entries = sum(order.size(scope) * count for scope, count in counts.items())
    ranks = f"adapters.rank_shared = {wanted.rank_shared}, rank_personal = {wanted.rank_personal}"
    fits(f"{ranks}: adapters of {entries:,} entries in all", 16.0 * entries, "a lower rank, or fewer layers")
    local = settings.devices
    what = f"devices.batch_size = {local.batch_size}, local_steps = {local.local_steps}: a step of one device"
    plan = 8.0 * local.batch_size * local.local_steps * devices
    longest = max((len(sample.ids) for shard in clients.shards for sample in shard), default=1)
    share = min(1.0, longest / settings.model.max_tokens)
    fits(what, share * device_bytes(settings, clients) + plan, "a smaller batch, or fewer model.max_tokens")


def chunk_size(settings: Settings, clients: Clients) -> int:
    """Devices computed together: `devices.chunk`, or so many that all stays within `devices.memory_gb`.

    One, where several in a pass are not right on this base. A linear layer keeps about its input and output, four bytes
    each, twice over for what lies between; a device's factors are held about four times (values, gradients, sums).
    """
    if not clients.backbone.paths.stacking:
        return 1
    if settings.devices.chunk:
        return settings.devices.chunk
    return max(1, min(len(clients.shards), int(settings.devices.memory_gb * 1e9 // device_bytes(settings, clients))))


def device_bytes(settings: Settings, clients: Clients) -> int:
    """Bytes that one device of a stacked pass takes, as `chunk_size` counts them."""
    above = [layer.base for layer in clients.backbone.layers.values()]
    widths = sum(linear.in_features + linear.out_features for linear in above)
    tokens = settings.devices.batch_size * settings.model.max_tokens * max(clients.batch_multiplier, default=1)
    factors = sum((entry.stop - entry.start) for entry in clients.layout.entries)
    return int(8 * widths * tokens + 16 * factors)


def fingerprint(settings: Settings, tasks: tuple[Task, ...], base: Backbone) -> str:
    """sha256 of what a run's numbers depend on: settings, data, base model."""
    return fingerprint_of(settings, [task.source_sha256 for task in tasks], base_hash(base))


def fingerprint_of(settings: Settings, data: Sequence[str], base: str) -> str:
    """The same from the hashes of the tasks' data and of the base model."""
    parts = [settings.model_dump(mode="json", exclude=UNSHAPING), list(data), base]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()  # as written: the order of labels is that of classes


def base_hash(base: Backbone) -> str:
    """The base model's own fingerprint: of the files that it was loaded from."""
    return base.origin.identity
