"""Losses and gradients of many devices in one stacked pass over the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.core import memory
from airpfed.core.rng import stream
from airpfed.devices.clients import Clients, group_devices
from airpfed.devices.parallel import run_parallel, worker_count
from airpfed.devices.prefix_cache import stack
from airpfed.model.backbone import Backbone
from airpfed.model.forward import logits, packed_logits, with_adapters
from airpfed.model.layout import Factors, Vectors, flatten, gather, trained_factors
from airpfed.model.methods import SCOPES
from airpfed.model.tokens import IGNORED, Encoding, collate, length_buckets, pack

PASS_TOKENS = {"cpu": 16, "cuda": 4096}
"""Cost of one more pass over the model, in tokens: launching its operations takes as long as computing so many."""


def gradients(
    clients: Clients,
    vectors: Vectors,
    plan: Sequence[Sequence[Sequence[int]]],
    local_lr: float,
    devices_per_pass: int,
    active_columns: tuple[int, int] | None = None,
    proximal_mu: float = 0.0,
    t: int = 0,
) -> tuple[Vectors, Float[Tensor, " K"]]:
    """Each device's gradient of its own loss at its own parameters, and its loss in the first local step (nats).

    plan: sample indices by device and local step (E steps). With E > 1 the result is the pseudo-gradient
    (W_start - W_end) / (E local_lr) of steps on the loss + proximal_mu/2 ||W - W_start||^2. devices_per_pass: devices
    computed together (`group_devices`). active_columns: first and last column of the `global` vector that local steps
    may change; None for all columns. Methods with alternating factors need it when E > 1. t: the round, for
    the random stream of the dropout (`Dropout`). Returns scope -> (K, d_scope) and losses (K,); the matrices may lie in
    a temporary file (`core.memory`).
    """
    results, losses = zero_gradients(clients), torch.zeros(len(clients.shards))
    for k, steps in enumerate(plan):
        clients.cache.fill(f"device {k}", clients.shards[k], [i for rows in steps for i in rows])

    def work(backbone: Backbone, devices: list[int]) -> None:
        local = replace(clients, backbone=without_company(backbone) if clients.dropout else backbone)
        group, loss = _local_steps(local, vectors, plan, devices, local_lr, active_columns, proximal_mu, t)
        index = torch.tensor(devices)
        losses[index] = loss.to(losses)
        for scope, matrix in results.items():
            matrix[index] = group[scope].to(matrix)
            memory.release_pages(matrix)

    workers = worker_count(clients.backbone, devices_per_pass)
    groups = [[k] for k in range(len(plan))]
    groups = groups if clients.dropout else group_devices(clients, plan, devices_per_pass, workers)
    run_parallel(clients.backbone, work, groups, workers)
    return results, losses


@dataclass(frozen=True)
class Dropout:
    """The random numbers of the adapters' dropout in a local step.

    A sample has a stream of its own, (seed, "dropout", t, device, step, position in the mini-batch), from which the
    layers draw in the order in which they run. So samples are computed one at a time, and neither the devices of a pass
    nor the machine of a device changes what is dropped.
    """

    seed: int
    t: int
    step: int

    def stream(self, device: int, position: int) -> torch.Generator:
        """The stream of a sample."""
        return stream(self.seed, "dropout", self.t, device, self.step, position)


def without_company(backbone: Backbone) -> Backbone:
    """The backbone with the fast paths of samples that are computed one at a time, layer by layer."""
    paths = replace(backbone.paths, stacking=False, batching=False, packing=False, last_layer=False, fused=False)
    return backbone.with_paths(paths)


def zero_gradients(clients: Clients) -> Vectors:
    """Zeros for a round's gradients, scope -> (K, d_scope); each scope gets its share of `gradient_bytes`."""
    sizes = {scope: clients.layout.size(scope) for scope in SCOPES}
    share = clients.gradient_bytes / max(1, sum(sizes.values()))
    return {scope: memory.allocate_matrix(len(clients.shards), size, share * size) for scope, size in sizes.items()}


def _local_steps(
    clients: Clients,
    vectors: Vectors,
    plan: Sequence[Sequence[Sequence[int]]],
    devices: list[int],
    local_lr: float,
    active_columns: tuple[int, int] | None,
    proximal_mu: float,
    t: int,
) -> tuple[Vectors, Float[Tensor, " k"]]:
    """All local steps of some devices, computed together: mean gradients over the steps, losses of the first step.

    The proximal term of FedProx adds proximal_mu (W - W_start) to the gradient of each step after the first.
    """
    index = torch.tensor(devices)
    start = gather(vectors, clients.layout, clients.task_of[index], index)
    factors = {key: tensor.to(clients.backbone.device) for key, tensor in start.items()}
    origin, steps = factors, len(plan[devices[0]])
    masks = trainable_masks(clients, factors, active_columns) if steps > 1 else {}
    total: Factors = {}
    losses = []
    for step in range(steps):
        dropout = Dropout(clients.seed, t, step) if clients.dropout else None
        loss, gradient = loss_gradient(clients, factors, devices, [plan[k][step] for k in devices], dropout)
        losses.append(loss)
        if proximal_mu and step:
            gradient = {key: gradient[key] + proximal_mu * (factors[key] - origin[key]) for key in gradient}
        total = {key: total[key] + gradient[key] for key in total} if total else gradient
        if step + 1 < steps:
            factors = factors | {key: factors[key] - local_lr * masks[key] * gradient[key] for key in total}
    mean = {key: tensor.cpu() if steps == 1 else (tensor / steps).cpu() for key, tensor in total.items()}
    return flatten(mean, clients.layout), losses[0].cpu()


def trainable_masks(clients: Clients, factors: Factors, active_columns: tuple[int, int] | None) -> Factors:
    """Masks of one device's factors: 1 where a local step may change an entry, 0 where it is frozen or not active.

    factors: any factors of the right type and device. Raises ValueError where the method alternates factors and
    `active_columns` is None.
    """
    if active_columns is None and clients.layout.alternating:
        raise ValueError("local steps of a method with alternating factors need the active columns")
    template = next(iter(factors.values()))
    masks: Vectors = {
        scope: template.new_full((1, clients.layout.size(scope)), 0.0 if scope == "frozen" else 1.0) for scope in SCOPES
    }
    if active_columns is not None:
        first, last = active_columns
        masks["global"][:, :first] = masks["global"][:, last:] = 0.0
    zero = torch.zeros(1, dtype=torch.long)
    return gather(masks, clients.layout, zero, zero)


def loss_gradient(
    clients: Clients,
    factors: Factors,
    devices: Sequence[int],
    rows: Sequence[Sequence[int]],
    dropout: Dropout | None = None,
) -> tuple[Float[Tensor, " K"], Factors]:
    """Losses of some devices on the given samples, and each device's gradient with respect to its own factors.

    One backward pass serves all devices: no device's loss depends on another device's factors, so the gradient of the
    sum of losses holds every device's gradient.
    """
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in trained_factors(factors).items()}
    with torch.autocast(clients.backbone.device.type, torch.bfloat16, enabled=clients.autocast):
        loss, weight = row_losses(clients, factors | leaves, devices, rows, dropout)
    device_losses = (loss * weight).sum(1)
    # A factor that no sample uses has gradient 0, for example the factors of an expert without tokens.
    inputs = list(leaves.values())
    gradient = (
        torch.autograd.grad(device_losses.sum(), inputs, allow_unused=True, materialize_grads=True)
        if device_losses.requires_grad
        else map(torch.zeros_like, inputs)
    )
    return device_losses.detach(), dict(zip(leaves, gradient, strict=True))


def row_losses(
    clients: Clients,
    factors: Factors,
    devices: Sequence[int],
    rows: Sequence[Sequence[int]],
    dropout: Dropout | None = None,
) -> tuple[Float[Tensor, "K b"], Float[Tensor, "K b"]]:
    """Losses of some devices' samples, and the weights of each device's mean loss.

    rows: sample indices by device, of unequal numbers; b is the largest number, and shorter rows have weight 0 at the
    end. The backbone's `FastPaths` decide how samples are computed: end to end in one row, in batches of similar
    length, or one at a time. dropout: for one device alone, and samples one at a time; None drops nothing.
    """
    paths = clients.backbone.paths
    assert dropout is None or (len(devices) == 1 and not (paths.packing or paths.batching)), "a stream per sample"
    assert len(devices) == 1 or paths.stacking, "devices come one at a time where they may not be stacked"
    width = max(len(row) for row in rows)
    weight = torch.tensor([[(j < len(row)) / len(row) for j in range(width)] for row in rows])
    if paths.packing:
        loss = packed_losses(clients, factors, devices, rows)
        return loss, weight.to(loss)
    full = [[*row, *[row[0]] * (width - len(row))] for row in rows]  # the first sample fills a shorter row
    sizes = [[len(clients.shards[k][i].ids) for i in row] for k, row in zip(devices, full, strict=True)]
    order = [sorted(range(width), key=lengths.__getitem__) for lengths in sizes]
    if paths.batching:
        widths = [max(column) for column in zip(*map(sorted, sizes), strict=True)]
        pass_tokens = PASS_TOKENS[clients.backbone.device.type]
        cuts = length_buckets(widths, [len(rows)] * width, lambda count, tokens: count * tokens + pass_tokens)
    else:
        cuts = [(column, column + 1) for column in range(width)]
    batches = [[[row[j] for j in o[a:b]] for row, o in zip(full, order, strict=True)] for a, b in cuts]
    streams: list[torch.Generator | None] = [None] * len(batches)
    if dropout is not None:
        number = clients.numbers[devices[0]] if clients.numbers else devices[0]
        streams = [dropout.stream(number, position) for position in order[0]]
    parts = [stacked_losses(clients, factors, devices, batch, rng) for batch, rng in zip(batches, streams, strict=True)]
    loss = torch.cat(parts, 1).gather(1, torch.tensor(order).argsort(1).to(parts[0].device))
    return loss, weight.to(loss)


def packed_losses(
    clients: Clients, factors: Factors, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> Float[Tensor, "K b"]:
    """Losses of all samples in one pass, with the samples end to end; 0 at the end of shorter rows."""
    samples, states = _samples_and_states(clients, devices, rows)
    counts = [len(row) for row in rows]
    batch = pack(samples, counts)
    hidden = None if states is None else torch.cat(states)[batch.first_use]
    with with_adapters(clients.backbone, factors, batch.tokens_per_device):
        scores = packed_logits(clients.backbone, batch, counts, hidden)
    losses = torch.split(sample_losses(scores, batch.targets), counts)
    return torch.nn.utils.rnn.pad_sequence(list(losses), batch_first=True)


def stacked_losses(
    clients: Clients,
    factors: Factors,
    devices: Sequence[int],
    rows: Sequence[Sequence[int]],
    rng: torch.Generator | None = None,
) -> Float[Tensor, "K b"]:
    """Losses of equally many samples of each device, in one padded pass. rng: stream of the dropout; None: none."""
    samples, states = _samples_and_states(clients, devices, rows)
    batch = collate(samples, clients.backbone.tokenizer.pad_token_id, clients.backbone.paths.pad_left)
    hidden = None if states is None else stack(states, clients.backbone.paths.pad_left)
    with with_adapters(clients.backbone, factors, rng=rng):
        scores = logits(clients.backbone, batch.ids, batch.mask, batch.targets.shape[1], hidden)
    limits = [clients.classes[int(clients.task_of[k])] for k, row in zip(devices, rows, strict=True) for _ in row]
    return sample_losses(mask_classes(scores, limits), batch.targets).reshape(len(devices), -1)


def _samples_and_states(
    clients: Clients, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[list[Encoding], list[Float[Tensor, "_ H"]] | None]:
    """Samples of some devices, device by device, and their hidden states below the adapters where these are cached."""
    samples = [clients.shards[k][i] for k, row in zip(devices, rows, strict=True) for i in row]
    states = [clients.cache.rows(f"device {k}", clients.shards[k], row) for k, row in zip(devices, rows, strict=True)]
    return samples, None if states[0] is None else [state for part in states for state in part or ()]


def mask_classes(scores: Float[Tensor, "rows last C"], limits: Sequence[int]) -> Float[Tensor, "rows last C"]:
    """Scores with -inf at classes that a row's task does not have.

    limits: number of classes of each row's task. If all are 0 (causal LM), nothing is masked.
    """
    if not any(limits):
        return scores
    outside = torch.arange(scores.shape[-1])[None, :] >= torch.tensor(limits)[:, None]
    return scores.masked_fill(outside[:, None, :].to(scores.device), -torch.inf)


def sample_losses(scores: Float[Tensor, "rows last C"], targets: Int[Tensor, "rows last"]) -> Float[Tensor, " rows"]:
    """Cross-entropy of each sample in nats, averaged over its target positions."""
    targets = targets.to(scores.device)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    shifted = wide - wide.detach().amax(-1, keepdim=True)
    # `cross_entropy` sums a large vocabulary entry by entry: its float32 error of 1e-5 exceeds that of all layers.
    losses = shifted.logsumexp(-1) - shifted.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    valid = targets != IGNORED
    return losses.where(valid, 0.0).sum(1) / valid.sum(1)
