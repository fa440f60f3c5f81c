"""The devices of a run, their data, and the gradients of many of them in one stacked pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from airpfed.core import memory
from airpfed.core.rng import stream
from airpfed.devices.parallel import dealt, side_by_side, workers
from airpfed.devices.prefix_cache import PrefixCache, stack
from airpfed.model.adapters import SCOPES
from airpfed.model.backbone import Backbone
from airpfed.model.buckets import buckets
from airpfed.model.forward import adapted, logits, packed_logits
from airpfed.model.layout import Factors, Layout, Vectors, flatten, gather, trained
from airpfed.model.tokens import IGNORED, Encoded, collate, pack

PASS_TOKENS = {"cpu": 16, "cuda": 4096}
"""What one more pass over the model costs by itself, in tokens' worth of arithmetic: launching its operations."""


@dataclass(frozen=True)
class Clients:
    """K devices over one backbone.

    shards: each device's encoded samples; task_of: each device's task; classes: outputs of each task's head
    (classifier). batch_multiplier: batches that a device takes at once, where it stands for so many; by default one.
    gradient_bytes: of a round's gradients held in memory, more lies in a temporary file (`spill`). autocast: training
    passes multiply matrices in bfloat16, which leaves gradients about a percent off.
    """

    backbone: Backbone
    layout: Layout
    cache: PrefixCache
    shards: tuple[tuple[Encoded, ...], ...]
    task_of: Int[Tensor, " K"]
    classes: tuple[int, ...]
    seed: int
    batch_multiplier: tuple[int, ...] = ()
    gradient_bytes: float = float("inf")
    autocast: bool = False


def draw(clients: Clients, device: int, cursor: int, count: int) -> list[int]:
    """Indices of a device's next `count` samples.

    Each epoch is a fresh permutation, fixed by seed, device and epoch.
    """
    size = len(clients.shards[device])
    return [_order(clients.seed, device, p // size, size)[p % size] for p in range(cursor, cursor + count)]


def _order(seed: int, device: int, epoch: int, size: int) -> list[int]:
    order: list[int] = torch.randperm(size, generator=stream(seed, "data", device, epoch)).tolist()
    return order


def batches(
    clients: Clients, cursors: Int[Tensor, " K"], batch: int, steps: int
) -> tuple[list[list[list[int]]], Tensor]:
    """Sample indices of each device for each local step, and the cursors after them."""
    counts = batch_sizes(clients, batch)
    plan = [
        [draw(clients, k, int(cursors[k]) + step * count, count) for step in range(steps)]
        for k, count in enumerate(counts)
    ]
    return plan, cursors + steps * torch.tensor(counts)


def batch_sizes(clients: Clients, batch: int) -> list[int]:
    """Samples that each device takes at once: small shards give small batches."""
    batch_multiplier = clients.batch_multiplier or (1,) * len(clients.shards)
    return [min(batch * many, len(shard)) for many, shard in zip(batch_multiplier, clients.shards, strict=True)]


def gradients(
    clients: Clients,
    vectors: Vectors,
    plan: Sequence[Sequence[Sequence[int]]],
    local_lr: float,
    chunk: int,
    turn: tuple[int, int] | None = None,
) -> tuple[Vectors, Float[Tensor, " K"]]:
    """Each device's gradient of its own loss at its own parameters, and that loss (nats, of the first local step).

    plan: indices of each device's samples for each of E local steps. With E > 1 the pseudo-gradient (W_start - W_end) /
    (E local_lr) comes back instead. turn: columns of the `global` vector that local steps move (None: all); what a
    method in turn lets rest must rest here too. chunk: devices computed together (`chunks`). Returns scope ->
    (K, d_scope), ordinary tensors that may lie in a file: one pass over the model, however many devices, and every
    normaliser exact.
    """
    whole, losses = held(clients), torch.zeros(len(clients.shards))
    for k, steps in enumerate(plan):
        clients.cache.fill(f"device {k}", clients.shards[k], [i for rows in steps for i in rows])

    def work(backbone: Backbone, devices: list[int]) -> None:
        found, loss = _chunk(replace(clients, backbone=backbone), vectors, plan, devices, local_lr, turn)
        index = torch.tensor(devices)
        losses[index] = loss.to(losses)
        for scope, matrix in whole.items():
            matrix[index] = found[scope].to(matrix)
            memory.release_pages(matrix)

    count = workers(clients.backbone, chunk)
    side_by_side(clients.backbone, work, chunks(clients, plan, chunk, count), count)
    return whole, losses


def held(clients: Clients) -> Vectors:
    """Room for a round's gradients, scope -> (K, d_scope); each scope has its share of `gradient_bytes`."""
    sizes = {scope: clients.layout.size(scope) for scope in SCOPES}
    share = clients.gradient_bytes / max(1, sum(sizes.values()))
    return {scope: memory.allocate_matrix(len(clients.shards), size, share * size) for scope, size in sizes.items()}


def chunks(clients: Clients, plan: Sequence[Sequence[Sequence[int]]], size: int, at_once: int = 1) -> list[list[int]]:
    """Devices of one task that are computed together, with about as many tokens in each chunk; the largest first.

    size: devices of all chunks that are computed at once. Where samples are packed, tasks do not matter, and there may
    be up to twice as many if they have no more tokens than `size` of the largest.
    """
    tokens = [max(sum(len(clients.shards[k][i].ids) for i in rows) for rows in own) for k, own in enumerate(plan)]
    packs = clients.backbone.paths.packing and size > 1
    groups = [list(own) for _, own in groupby(range(len(plan)), key=lambda k: 0 if packs else int(clients.task_of[k]))]
    found = []
    for members in groups:
        own = [tokens[k] for k in members]
        most = 2 * size if packs else size
        count = max(ceil(len(own) / most), ceil(sum(own) / (size * max(own))))
        lists = dealt(own, min(at_once * count, len(own)), ceil(most / at_once))
        found += [[members[index] for index in part] for part in lists]
    return sorted(found, key=lambda part: -sum(tokens[k] for k in part))


def _chunk(
    clients: Clients,
    vectors: Vectors,
    plan: Sequence[Sequence[Sequence[int]]],
    devices: list[int],
    local_lr: float,
    turn: tuple[int, int] | None,
) -> tuple[Vectors, Tensor]:
    """The stacked pass over some devices, all their local steps."""
    index = torch.tensor(devices)
    start = gather(vectors, clients.layout, clients.task_of[index], index)
    now = {key: tensor.to(clients.backbone.device) for key, tensor in start.items()}
    steps = len(plan[devices[0]])
    moves = movable(clients, now, turn) if steps > 1 else {}
    total: Factors = {}
    losses = []
    for step in range(steps):
        loss, gradient = loss_gradient(clients, now, devices, [plan[k][step] for k in devices])
        losses.append(loss)
        total = {key: total[key] + gradient[key] for key in total} if total else gradient
        if step + 1 < steps:
            now |= {key: now[key] - local_lr * moves[key] * gradient[key] for key in total}
    mean = {key: tensor.cpu() if steps == 1 else (tensor / steps).cpu() for key, tensor in total.items()}
    return flatten(mean, clients.layout), losses[0].cpu()


def movable(clients: Clients, factors: Factors, turn: tuple[int, int] | None) -> Factors:
    """1 where a local step may move a factor, 0 on what is frozen or rests in this turn.

    Shaped to multiply the factors of any devices. Raises ValueError where a method in turn is not told whose it is.
    """
    if turn is None and clients.layout.in_turn:
        raise ValueError("local steps of a method in turn need the columns whose turn it is")
    like = next(iter(factors.values()))
    marks: Vectors = {s: like.new_full((1, clients.layout.size(s)), 0.0 if s == "frozen" else 1.0) for s in SCOPES}
    if turn is not None:
        marks["global"][:, : turn[0]] = marks["global"][:, turn[1] :] = 0.0
    one = torch.zeros(1, dtype=torch.long)
    return gather(marks, clients.layout, one, one)


def loss_gradient(
    clients: Clients, factors: Factors, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, " K"], Factors]:
    """Losses of some devices on the given samples and each one's gradient in its own factors, in one backward pass.

    Since no device's loss reads another's factors, the gradient of the sum of losses is every device's own gradient.
    """
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in trained(factors).items()}
    with torch.autocast(clients.backbone.device.type, torch.bfloat16, enabled=clients.autocast):
        loss, weight = row_losses(clients, factors | leaves, devices, rows)
    own = (loss * weight).sum(1)
    # A factor that no sample reads (of an expert that none is sent to, say) has gradient 0.
    every = list(leaves.values())
    found = (
        torch.autograd.grad(own.sum(), every, allow_unused=True, materialize_grads=True)
        if own.requires_grad
        else map(torch.zeros_like, every)
    )
    return own.detach(), dict(zip(leaves, found, strict=True))


def row_losses(
    clients: Clients, factors: Factors, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "K b"], Float[Tensor, "K b"]]:
    """Losses of unequally many samples of some devices, and the weights that give each device's mean.

    All samples lie end to end, or those of like length are computed together (there a shorter row is filled up with its
    first sample, at weight 0), or each is computed alone: as `FastPaths` of the backbone says.
    """
    paths = clients.backbone.paths
    assert len(devices) == 1 or paths.stacking, "devices come one at a time where they may not be stacked"
    width = max(len(row) for row in rows)
    weight = torch.tensor([[(j < len(row)) / len(row) for j in range(width)] for row in rows])
    if paths.packing:
        loss = packed_losses(clients, factors, devices, rows)
        return loss, weight.to(loss)
    full = [[*row, *[row[0]] * (width - len(row))] for row in rows]
    sizes = [[len(clients.shards[k][i].ids) for i in row] for k, row in zip(devices, full, strict=True)]
    order = [sorted(range(width), key=own.__getitem__) for own in sizes]
    widths = [max(column) for column in zip(*map(sorted, sizes), strict=True)]
    once = PASS_TOKENS[clients.backbone.device.type]
    cuts = buckets(widths, [len(rows)] * width, lambda count, tokens: count * tokens + once)
    cuts = cuts if paths.batching else [(column, column + 1) for column in range(width)]
    chosen = [[[row[j] for j in o[a:b]] for row, o in zip(full, order, strict=True)] for a, b in cuts]
    parts = [stacked_loss(clients, factors, devices, part) for part in chosen]
    loss = torch.cat(parts, 1).gather(1, torch.tensor(order).argsort(1).to(parts[0].device))
    return loss, weight.to(loss)


def packed_losses(
    clients: Clients, factors: Factors, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> Float[Tensor, "K b"]:
    """Loss of every sample in one pass over all, end to end; 0 where a row is shorter than the longest."""
    samples, kept = taken(clients, devices, rows)
    counts = [len(row) for row in rows]
    batch = pack(samples, counts)
    with adapted(clients.backbone, factors, batch.spans):
        scores = packed_logits(clients.backbone, batch, counts, None if kept is None else torch.cat(kept)[batch.first])
    losses = torch.split(sample_losses(scores, batch.targets), counts)
    return torch.nn.utils.rnn.pad_sequence(list(losses), batch_first=True)


def stacked_loss(
    clients: Clients, factors: Factors, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> Float[Tensor, "K b"]:
    """Loss of every sample, device by device; `rows` are equally many samples of each device's shard."""
    samples, kept = taken(clients, devices, rows)
    batch = collate(samples, clients.backbone.tokenizer.pad_token_id, clients.backbone.paths.left)
    hidden = None if kept is None else stack(kept, clients.backbone.paths.left)
    with adapted(clients.backbone, factors):
        scores = logits(clients.backbone, batch.ids, batch.mask, batch.targets.shape[1], hidden)
    limits = [clients.classes[int(clients.task_of[k])] for k, row in zip(devices, rows, strict=True) for _ in row]
    return sample_losses(only_classes(scores, limits), batch.targets).reshape(len(devices), -1)


def taken(
    clients: Clients, devices: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[list[Encoded], list[Float[Tensor, "_ H"]] | None]:
    """Samples of some devices, device by device, and what the layers below the adapters make of them, if kept."""
    samples = [clients.shards[k][i] for k, row in zip(devices, rows, strict=True) for i in row]
    kept = [clients.cache.rows(f"device {k}", clients.shards[k], row) for k, row in zip(devices, rows, strict=True)]
    return samples, None if kept[0] is None else [state for part in kept for state in part or ()]


def only_classes(scores: Float[Tensor, "rows last C"], limits: Sequence[int]) -> Float[Tensor, "rows last C"]:
    """Scores with the classes that a row's task does not have ruled out; limit 0 (causal LM) rules out none."""
    if not any(limits):
        return scores
    beyond = torch.arange(scores.shape[-1])[None, :] >= torch.tensor(limits)[:, None]
    return scores.masked_fill(beyond[:, None, :].to(scores.device), -torch.inf)


def sample_losses(scores: Float[Tensor, "rows last C"], wanted: Int[Tensor, "rows last"]) -> Float[Tensor, " rows"]:
    """Cross-entropy of each sample in nats, mean over its target positions."""
    targets = wanted.to(scores.device)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    below = wide - wide.detach().amax(-1, keepdim=True)
    # `cross_entropy` adds a large vocabulary up one by one: in float32 1e-5 off, more than all layers together.
    each = below.logsumexp(-1) - below.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    counted = targets != IGNORED
    return each.where(counted, 0.0).sum(1) / counted.sum(1)
