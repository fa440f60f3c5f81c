"""Settings to an experiment: layout, clients, uplink, aggregator, monitor, and the memory that they need."""

import math
from dataclasses import replace
from functools import partial

import torch

from airpfed.air.error_memory import UnsentScope
from airpfed.air.impairments import NONE
from airpfed.air.schedule import Uplink, reason_without_any_claim, reason_without_claim
from airpfed.air.schemes import exact_sums
from airpfed.air.uplink import initial_statistics, uplink, uplink_over_seeds
from airpfed.analysis.monitor import BoundMonitor
from airpfed.analysis.probe import load_or_probe
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.core.memory import allocate_matrix, check_memory
from airpfed.core.rng import stream
from airpfed.devices import fast_paths
from airpfed.devices.clients import Clients
from airpfed.devices.compute import ComputeModel
from airpfed.experiment.build.blocks import pilot_notes, plan_blocks
from airpfed.experiment.build.data import base_hash, fingerprint
from airpfed.experiment.build.model import Preparation, build_preparation
from airpfed.experiment.build.uplink import (
    build_uplink,
    check_channel_memory,
    check_recorded_channels,
    impairments_of,
    scheme_fields,
)
from airpfed.model import layout, methods
from airpfed.model.backbone import Backbone
from airpfed.model.layers import linear_shape
from airpfed.model.layout import Layout
from airpfed.model.tokens import Encoding
from airpfed.tasks.sample import Task
from airpfed.training.downlink import with_copies
from airpfed.training.factor_averaging import RULES, FactorAveraging
from airpfed.training.round import Aggregator, LocalTraining
from airpfed.training.setup import TrainingSetup
from airpfed.training.state import ServerStep, start

GIVEN_CONSTANTS = ("beta", "c", "sigma_sgd2", "lam", "sigma_dif2")
"""Constants of the bounds that settings may give, so that the probe does not measure them."""


def build_experiment(
    settings: Settings, tasks: tuple[Task, ...], preparation: Preparation | None = None, probing: bool = False
) -> TrainingSetup:
    """Build the experiment of a run from its settings and tasks.

    preparation: result of `build_preparation` for the same settings, if available. probing: build the monitor of the
    theory even if the settings do not use it.
    """
    preparation = preparation or build_preparation(settings, tasks)
    base, shards, cache, batch_multiplier = preparation.base, preparation.shards, preparation.cache, tuple[int, ...]()
    if settings.adapters.method.row.pooled:
        batch_multiplier, shards = pool_devices(shards)
        cache = cache.fresh()  # the entries of the old cache belong to other devices
    classes = tuple(0 if base.causal else len(task.labels) for task in tasks)
    order = experiment_layout(settings, base, classes)
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
        settings.adapters.dropout,
    )
    check_device_memory(settings, clients)
    clients, notes = choose_fast_paths(settings, clients, preparation)
    initial_vectors = layout.initial_vectors(order, base.heads, stream(settings.run.seed, "adapters"))
    side = client_uplink(settings, clients)
    scheme = settings.radio.scheme
    if settings.devices.memory and scheme.row.leaves_unsent(scheme.options):
        side = replace(side, memory_bytes=clients.gradient_bytes)
    aggregate, correlation_statistics, factor_averaging = build_aggregator(settings, clients, side)
    added = torch.zeros(1, sum(out * width for out, width in base.target_layers.values()) if factor_averaging else 0)
    memory = None if side.memory_bytes is None else empty_memory(clients)
    chunk = chunk_size(settings, clients)
    monitored = probing or settings.theory.meter_every > 0 or settings.server.lr == "theory"
    if monitored and settings.devices.memory:
        raise UserError("devices.memory = true: the theory has no bound for gradients of several rounds in one")
    if monitored and (factor_averaging or order.alternating):
        raise UserError(f'adapters.method = "{settings.adapters.method.name}": the theory has no bound for it')
    if monitored and clients.dropout:
        raise UserError(f"adapters.dropout = {clients.dropout}: the theory's gradients drop nothing; 0 fits")
    if monitored and base.coarse:
        raise UserError(
            "model: the theory measures differences that rounding to 16 or 8 bits would hide; model.dtype = "
            '"float32" with model.quantization = "none" or "nf4" fits'
        )
    monitor = build_monitor(settings, clients, side, chunk) if monitored else None
    row, downlink_bits = settings.adapters.method.row, settings.server.downlink_bits
    if monitored and downlink_bits is not None and not probing:
        raise UserError(
            f"server.downlink_bits = {downlink_bits}: the theory has no bound for devices that compute at other "
            "parameters than the server's; leave it out"
        )
    if row.pooled or row.averages or probing:  # a probe's pilot rounds have an exact downlink
        downlink_bits = None
    initial = start(
        initial_vectors,
        order,
        len(tasks),
        len(devices),
        correlation_statistics,
        server_step_of(settings),
        added,
        memory,
    )
    return TrainingSetup(
        method=settings.adapters.method.name,
        clients=clients,
        tasks=preparation.views,
        aggregate=aggregate,
        initial=initial if downlink_bits is None else with_copies(initial),
        server_step=server_step_of(settings),
        local_training=local_training_of(settings),
        rounds=settings.server.rounds,
        devices_per_pass=chunk,
        eval_every=settings.run.eval_every,
        seed=settings.run.seed,
        fingerprint=fingerprint(settings, [task.source_sha256 for task in tasks], base_hash(base)),
        probe=partial(load_or_probe, monitor) if monitor else None,
        monitor=monitor,
        factor_averaging=factor_averaging,
        base_key=preparation.base_key,
        air_seconds=settings.server.air_seconds,
        air_seconds_of=settings.server.air_seconds_of,
        seconds=settings.server.seconds,
        compute=None if row.pooled else compute_model(settings, len(devices)),
        downlink_bits=downlink_bits,
        score=settings.run.score,
        cross_eval=settings.run.cross_eval,
        payload=settings.federation.payload,
        notes=(*base.notes, *notes, *pilot_notes(settings.radio, side)),
    )


def choose_fast_paths(
    settings: Settings, clients: Clients, preparation: Preparation
) -> tuple[Clients, tuple[str, ...]]:
    """Return the clients with the fast paths that are exact on their base model, and lines about the others."""
    prompts = [sample for task in preparation.views for sample in (*task.test.prompts, *task.dev.prompts)]
    generate = any(task.kind != "classify" for task in preparation.views)
    stacking = settings.devices.chunk != 1 and len(clients.shards) > 1
    measurement = fast_paths.cached_measurement(clients, prompts, base_hash(preparation.base), stacking, generate)
    clients.cache.use_tolerance(measurement.tolerance)
    backbone = clients.cache.use_paths(measurement.paths)
    return replace(clients, backbone=backbone), tuple(
        fast_paths.report_lines(f'model.base = "{settings.model.base}"', measurement)
    )


def experiment_layout(settings: Settings, base: Backbone, classes: tuple[int, ...]) -> Layout:
    """Return the layout of the devices' vectors for a method and its ranks. classes: outputs of each task's head."""
    method, head = settings.adapters.method, settings.adapters.head
    blocks = methods.blocks_of(
        method.name, settings.adapters.rank_shared, settings.adapters.rank_personal, method.options
    )
    shapes = {name: (weight.shape[0], weight.shape[1]) for name, weight in base.heads.items()}
    return layout.arrange_layout(base.target_layers, blocks, shapes, classes, head)


def build_monitor(settings: Settings, clients: Clients, side: Uplink, chunk: int) -> BoundMonitor:
    """Build the monitor of the bounds. Its channel draws have separate random streams and the run's drop of devices."""
    theory, scheme = settings.theory, settings.radio.scheme
    check_claims(side)
    if scheme.row.claimed_mean(scheme.options) != scheme.row.unbiased:
        raise UserError(f'theory: the bounds need a claimed error of every sum; radio.scheme = "{scheme}" claims none')
    random = stream(settings.run.seed, "theory")
    seeds = torch.randint(2**62, (theory.draws,), generator=random).tolist()
    given = {key: getattr(theory, key) for key in GIVEN_CONSTANTS}
    return BoundMonitor(
        clients=clients,
        names=side.task_names,
        draws=partial(uplink_over_seeds, side, seeds),
        exact=partial(uplink, replace(side, design=None, send=exact_sums, cost=None)),
        unbiased=is_unbiased(settings),
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
    """Return the server's optimizer. Its learning rate is None if the theory's probe determines it."""
    lr = settings.server.lr
    optimizer, schedule = settings.server.optimizer, settings.server.schedule
    return ServerStep(
        optimizer.name,
        None if isinstance(lr, str) else lr,
        optimizer.options,
        schedule.name,
        schedule.options,
        settings.server.rounds,
    )


def local_training_of(settings: Settings) -> LocalTraining:
    """Return a device's work in a round."""
    devices = settings.devices
    return LocalTraining(
        devices.batch_size, devices.local_steps, devices.local_lr, devices.proximal_mu, devices.max_grad_norm
    )


def compute_model(settings: Settings, num_devices: int) -> ComputeModel:
    """Return the devices' processors. Raises UserError unless there is one clock frequency, or one for each device."""
    devices = settings.devices
    hertz = devices.hertz if isinstance(devices.hertz, tuple) else (devices.hertz,) * num_devices
    if len(hertz) != num_devices:
        raise UserError(f"devices.hertz has {len(hertz)} values: should be one, or {num_devices}, one a device")
    return ComputeModel(
        torch.tensor(hertz, dtype=torch.float64),
        devices.cycles_per_flop,
        devices.kappa,
        settings.server.deadline_seconds,
    )


def check_claims(side: Uplink) -> None:
    """Raise UserError if the uplink claims no error of a sum, because the bounds need one."""
    if reason := reason_without_claim(side):
        if side.noise_alpha < 2 or not math.isinf(side.receive_clipping):
            remedy = 'noise_alpha = 2 and receive_clipping = "off" would be right'
        elif side.impairments.clipping is not None and reason_without_any_claim(side):
            remedy = (
                'clipping_db = "off" would be right, or mixing = "full" where packing is "iq" and s and p have slots'
            )
        else:
            remedy = "a number for radio.correlation, or another radio.access or topology, would be right"
        raise UserError(f"theory: the bounds need a claimed error of every sum, and {reason}; {remedy}")


def is_unbiased(settings: Settings) -> bool:
    """Check whether the uplink claims E Ghat = G. Errors of linear MMSE channel estimates have mean 0."""
    return not scheme_fields(settings.radio)["biased"] and impairments_of(settings.radio) == NONE


def pool_devices(
    shards: tuple[tuple[tuple[Encoding, ...], ...], ...],
) -> tuple[tuple[int, ...], tuple[tuple[tuple[Encoding, ...], ...], ...]]:
    """Replace the devices of each task by one worker with all their data. Also returns the numbers of devices.

    The weighted sum of the workers' gradients is the gradient of one worker with the data of all tasks.
    """
    return tuple(len(task) for task in shards), tuple((tuple(s for shard in task for s in shard),) for task in shards)


def build_aggregator(
    settings: Settings, clients: Clients, side: Uplink
) -> tuple[Aggregator, torch.Tensor, FactorAveraging | None]:
    """Return the aggregator, its initial correlation statistics, and the method's rule in place of the sum, if any."""
    method = settings.adapters.method
    sending = sending_uplink(settings, clients, side)
    # With a limit of time on air, the last round is known only when it has ended.
    check_recorded_channels(
        settings.radio, settings.server.rounds if settings.server.air_seconds is None else 1, sending
    )
    averaging = None
    if method.row.averages and method.name not in RULES:
        raise UserError(
            f'adapters.method = "{method.name}": averages = true is for methods with a rule of averaging, '
            f"{', '.join(RULES)}"
        )
    if method.row.averages:
        if method.name not in RULES:
            raise UserError(
                f'adapters.method = "{method.name}": says that its server averages; only {", ".join(RULES)} have such '
                "a rule, and server.aggregator takes one of your own"
            )
        averaging = FactorAveraging(RULES[method.name], clients, side, local_training_of(settings))
    aggregator = settings.server.aggregator
    aggregate = aggregator.row.build(partial(uplink, sending), sending, aggregator.bind())
    return aggregate, initial_statistics(sending), averaging


def sending_uplink(settings: Settings, clients: Clients, side: Uplink) -> Uplink:
    """The uplink of the rounds of a run: with the phases of alternating factors, without a cost for pooled devices.

    side: the uplink of `client_uplink`.
    """
    alternating = clients.layout.phases() if clients.layout.alternating else ()
    return replace(side, alternating=alternating, colocated=settings.adapters.method.row.pooled)


def client_uplink(settings: Settings, clients: Clients, samples: torch.Tensor | None = None) -> Uplink:
    """Build the uplink of clients. samples: D_k, shape (K,), if the data is on the devices."""
    if samples is None:
        samples = torch.tensor([len(shard) for shard in clients.shards], dtype=torch.float64)
    order = clients.layout
    if settings.radio.scheme.name != "error_free":
        uses = (order.size("global") + sum(order.task_lengths)) // (2 if settings.radio.packing == "iq" else 1)
        plan = plan_blocks(settings.radio, len(samples))
        blocks = max(-(-uses // plan.data_uses), plan.groups if not settings.radio.scheme.row.superposes else 1)
        check_channel_memory(settings.radio, len(samples), len(settings.tasks), blocks)
    return build_uplink(
        settings, clients.task_of, samples, (order.kinds("global"), order.kinds("task")), order.task_lengths
    )


def empty_memory(clients: Clients) -> dict[UnsentScope, torch.Tensor]:
    """The devices' error memory before round 1: zeros, in a temporary file if larger than a round's gradients may be.

    Raises UserError if a checkpoint, which is made in memory, could not hold it.
    """
    sizes: dict[UnsentScope, int] = {"global": clients.layout.size("global"), "task": clients.layout.size("task")}
    devices, total = len(clients.shards), max(1, sum(sizes.values()))
    description = f"devices.memory = true: checkpoints of what {devices} devices have not sent"
    check_memory(description, 8.0 * devices * total, "fewer devices, or a lower rank")
    share = clients.gradient_bytes / total
    return {scope: allocate_matrix(devices, size, share * size) for scope, size in sizes.items()}


def check_device_memory(settings: Settings, clients: Clients) -> None:
    """Raise UserError if the adapters with the optimizer's state, or the step of a device, exceed the memory."""
    order, ranks, devices = clients.layout, settings.adapters, len(clients.shards)
    counts = {scope: layout.num_copies(scope, len(settings.tasks), devices) for scope in methods.SCOPES}
    entries = sum(order.size(scope) * count for scope, count in counts.items())
    description = f"adapters.rank_shared = {ranks.rank_shared}, rank_personal = {ranks.rank_personal}"
    description = f"{description}: adapters of {entries:,} entries in all"
    check_memory(description, 16.0 * entries, "a lower rank, or fewer layers")
    local = settings.devices
    description = f"devices.batch_size = {local.batch_size}, local_steps = {local.local_steps}: a step of one device"
    indices = 8.0 * local.batch_size * local.local_steps * devices
    longest = max((len(sample.ids) for shard in clients.shards for sample in shard), default=1)
    share = min(1.0, longest / settings.model.max_tokens)
    size = share * device_pass_bytes(settings, clients) + indices
    check_memory(description, size, "a smaller batch, or fewer model.max_tokens")


def chunk_size(settings: Settings, clients: Clients) -> int:
    """Return the number of devices in a pass: `devices.chunk`, or as many as fit into `devices.memory_gb`.

    Returns 1 if a pass of several devices is not exact on this base model.
    """
    if not clients.backbone.paths.stacking:
        return 1
    if settings.devices.chunk:
        return settings.devices.chunk
    fitting = int(settings.devices.memory_gb * 1e9 // device_pass_bytes(settings, clients))
    return max(1, min(len(clients.shards), fitting))


def device_pass_bytes(settings: Settings, clients: Clients) -> int:
    """Estimate the memory of one device in a pass, in bytes.

    4 bytes per input and output value of each linear layer, doubled to cover the activations between layers. The
    factors of a device are stored about four times (values, gradients, sums).
    """
    widths = sum(sum(linear_shape(layer.base)) for layer in clients.backbone.layers.values())
    tokens = settings.devices.batch_size * settings.model.max_tokens * max(clients.batch_multiplier, default=1)
    factors = sum((entry.stop - entry.start) for entry in clients.layout.entries)
    return int(8 * widths * tokens + 16 * factors)
